"""Keep nbs/*/*.md, the executed .ipynb beside them and the package mc/ in step.

    nbtool.py sync              put right whatever is out of date
    nbtool.py sync --all        execute every chapter again
    nbtool.py sync nbs/see/...  of what is to be executed, only these chapters (while one writes them)
    nbtool.py check             name whatever is out of date; exit code 1 if anything is

The text notebooks are the only source. Everything is decided by content, never by file times: a chapter is executed
again when its text, a module of mc that it imports, or a file its header names (`companion: {reads: [results/extrapolation]}`)
differs from what its .ipynb was made with. Words change nothing that a cell prints, so they are put in without executing
anything: those between the cells, and other chapters' docstrings. Benchmarks (nbs/bench) are converted only; papermill runs them.
"""
import argparse
import ast
import asyncio
import hashlib
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbdev.export import nb_export
from tqdm import tqdm

from reach import code_of, reached, wordless

ROOT = Path(__file__).resolve().parents[2]
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
WIDGETS = "application/vnd.jupyter.widget-state+json"
CELL_TIMEOUT = 600
BY_HAND = (".js", ".css", ".csv", ".txt", ".jsonl", ".typed")    # what of mc/ is no Python, and has no other source


class Broken(Exception):
    "A notebook that cannot be exported or executed; the message says where."


# ---- text -> notebook -> package

def load(md):
    "The notebook that the text `md` describes: no outputs, and cell ids that depend on the text alone."
    nb, seen = jupytext.read(md), Counter()
    for cell in nb.cells:
        name = hashlib.sha1(cell.source.encode()).hexdigest()[:8]
        seen[name] += 1
        cell["id"] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    nb.metadata.pop("jupytext", None)
    nb.metadata["kernelspec"] = dict(KERNEL)
    nb.nbformat, nb.nbformat_minor = 4, 5
    return nb


def sources(root):
    "{path relative to root: notebook} of every text notebook, chapters before benchmarks."
    notebooks = {}
    for rel in sorted((md.relative_to(root) for md in root.glob("nbs/*/*.md")), key=lambda rel: (is_bench(rel), rel)):
        md = root / rel
        try:
            notebooks[rel] = load(md)
        except Exception as e:    # jupytext's own, and whatever the YAML in a header or a cell's options brings
            raise Broken(f"{rel}: not a MyST notebook: {e}") from None
    return notebooks


def is_bench(rel):
    return rel.parent.name == "bench"


def check_syntax(rel, nb):
    "nbdev writes a broken cell into the module first and fails later, so look before it does."
    for number, cell in enumerate(nb.cells, 1):
        if cell.cell_type == "code" and cell.metadata.get("nbdev"):
            try:
                ast.parse(cell.source)
            except SyntaxError as e:
                raise Broken(f"{rel}: cell {number}, line {e.lineno}: {e.msg}: {(e.text or '').strip()}") from None


def package(root, notebooks):
    "{path: bytes} of everything that belongs in mc/, made in a temporary folder from the text notebooks."
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        for rel, nb in notebooks.items():
            if is_bench(rel):
                continue
            check_syntax(rel, nb)
            nb = nbformat.from_dict(nb)
            for cell in nb.cells:    # nbdev wants the title first: only then is the line under it the module's docstring
                cell.source = re.sub(r"\A(\([\w:-]+\)=\s*)+(?=# )", "", cell.source)
            path = tmp / rel.with_suffix(".ipynb")
            path.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(nb, path)
            try:
                nb_export(path, lib_path=tmp / "mc")
            except Exception as e:
                raise Broken(f"{rel}: nbdev cannot export it: {type(e).__name__}: {e}") from None
        files = {f.relative_to(tmp): f.read_bytes() for f in tmp.glob("mc/**/*.py")}
    for nb in notebooks.values():
        if formerly := nb.metadata.get("companion", {}).get("formerly"):    # the module keeps its old address too
            now = f"mc.{nb.metadata.nbdev.default_exp}"
            files[Path("mc", f"{formerly}.py")] = f'"""Now `{now}`."""\nfrom {now} import *  # noqa: F403\n'.encode()
    files |= {f.relative_to(root): f.read_bytes() for f in root.glob("mc/**/*.*") if f.suffix in BY_HAND}
    for folder in {parent for f in files for parent in f.parents if parent.parts}:
        files.setdefault(folder / "__init__.py", b"")
    return files


# ---- what a chapter was made with

def made_with(root, rel, nb, files):
    "A digest of all that the chapter's outputs depend on, besides its own text; of modules the words count only if it reads them."
    code = code_of(nb)
    try:
        used = reached(code, rel.parent, files)
    except SyntaxError as e:
        raise Broken(f"{rel}: {e.msg}: {(e.text or '').strip()}") from None
    words = "__doc__" in code
    seen = {str(f): files[f] if words or f.suffix != ".py" else wordless(files[f]) for f in used}
    for name in nb.metadata.get("companion", {}).get("reads", []):
        found = [f for f in [root / name, *(root / name).rglob("*")] if f.is_file()]
        seen |= {str(f.relative_to(root)): f.read_bytes() for f in found}
    digest = hashlib.sha1()
    for name in sorted(seen):
        digest.update(name.encode() + b"\0" + seen[name] + b"\0")
    return digest.hexdigest()[:12]


def inputs(nb):
    "What of a notebook comes from its text: everything but outputs, counts and widget state."
    nb = nbformat.from_dict(nb)
    nb.metadata.pop("widgets", None)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return nb


def code_inputs(nb):
    nb = inputs(nb)
    return [c for c in nb.cells if c.cell_type == "code"], nb.metadata


def read(root, rel):
    "The .ipynb beside the text `rel`; None if there is none, or one cut in half or with merge markers."
    try:
        return nbformat.read(root / rel.with_suffix(".ipynb"), as_version=4)
    except (FileNotFoundError, nbformat.reader.NotJSONError):
        return None


def executed(nb):
    return all(c.execution_count for c in nb.cells if c.cell_type == "code" and c.source.strip())


def out_of_date(root, rel, nb):
    "Whether the .ipynb beside the text `rel` is not what `nb` (its text, with its digest) gives."
    there = read(root, rel)
    return there is None or inputs(there) != inputs(nb) or not (is_bench(rel) or executed(there))


def reword(root, rel, nb):
    "If `nb` differs from the executed notebook in words only, take over what that put out, and say so."
    there = read(root, rel)
    if there is None or not executed(there) or code_inputs(there) != code_inputs(nb):
        return False
    for cell, old in zip(*([c for c in n.cells if c.cell_type == "code"] for n in (nb, there))):
        cell.outputs, cell.execution_count = old.outputs, old.execution_count
    if "widgets" in there.metadata:
        nb.metadata["widgets"] = there.metadata["widgets"]
    return True


class State:
    "What the text notebooks ask for, against what is in the working tree."

    def __init__(self, root):
        self.root, self.notebooks = root, sources(root)
        self.files = package(root, self.notebooks)
        for rel, nb in self.notebooks.items():
            if not is_bench(rel):
                nb.metadata.setdefault("companion", {})["made_with"] = made_with(root, rel, nb, self.files)
        self.stale = [rel for rel, nb in self.notebooks.items() if out_of_date(root, rel, nb)]
        self.reworded = [rel for rel in self.stale if not is_bench(rel) and reword(root, rel, self.notebooks[rel])]
        there = {f.relative_to(root) for f in root.glob("mc/**/*") if f.is_file() and "__pycache__" not in f.parts}
        self.orphans = sorted(there - set(self.files))
        self.changed = sorted(f for f, data in self.files.items() if f not in there or (root / f).read_bytes() != data)
        ipynb = {f.relative_to(root) for f in root.glob("nbs/*/*.ipynb")}
        self.strays = sorted(ipynb - {rel.with_suffix(".ipynb") for rel in self.notebooks})

    def report(self):
        "One line for each thing that is out of date."
        return [*(f"{rel} differs from {rel.with_suffix('.ipynb').name}, or something it uses has changed" for rel in self.stale),
                *(f"{f} is not what the notebooks export" for f in self.changed),
                *(f"{f} belongs to no notebook" for f in self.orphans),
                *(f"{f} has no text notebook beside it" for f in self.strays)]


# ---- putting it right

def write(path, data):
    "All or nothing: an interrupted run leaves the old file."
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    os.replace(new, path)


async def execute(root, rel, nb):
    client = NotebookClient(nb, timeout=CELL_TIMEOUT, kernel_name="python3", record_timing=False, coalesce_streams=True,
                            extra_arguments=["--log-level=40"],    # or each kernel warns about its transport
                            resources={"metadata": {"path": str(root / rel.parent)}})
    try:
        await client.async_execute()
    except CellExecutionError as e:
        number = next(i for i, c in enumerate(nb.cells, 1) if any(o.output_type == "error" for o in c.get("outputs", [])))
        source = nb.cells[number - 1].source.strip().splitlines()
        raise Broken(f"{rel}: cell {number} ({source[0]} ...) failed: {e.ename}: {e.evalue}") from None
    except (CellTimeoutError, DeadKernelError) as e:
        raise Broken(f"{rel}: {e}") from None
    except AssertionError:    # a cell's own is a CellExecutionError; on Ctrl-C nbclient closes its kernel twice, trips and complains
        logging.getLogger("asyncio").disabled = True
        raise KeyboardInterrupt from None
    text = normalise(nb)
    if str(root) in text:
        line = next(line for line in text.splitlines() if str(root) in line)
        raise Broken(f"{rel}: an output names a folder of this machine, which no other will print: {line.strip()[:200]}")
    return text


def normalise(nb):
    "Take out what changes from run to run, so that the same text gives the same bytes."
    nb.metadata.pop("language_info", None)
    for cell in nb.cells:
        for name in ("execution", "collapsed"):
            cell.metadata.pop(name, None)
    text = re.sub(r" at 0x[0-9a-fA-F]+", " at 0x0", nbformat.writes(nb))
    models = nb.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    for i, model in enumerate(models):    # creation order is the program's order
        text = text.replace(model, hashlib.sha1(f"model {i}".encode()).hexdigest()[:32])
    return nbformat.writes(nbformat.reads(text, as_version=4))    # sorted anew, by the stable names


def sync(root, everything=False, only=()):
    state = State(root)
    wanted = {Path(name).with_suffix(".md") for name in only}
    if unknown := sorted(map(str, wanted - set(state.notebooks))):
        raise Broken(f"{', '.join(unknown)}: no such chapter")
    if state.strays:
        raise Broken("\n".join(f"{f} has no text notebook beside it. Delete it, or make a text of it: "
                               f"jupytext --to md:myst {f}" for f in state.strays))
    for f in state.changed:
        write(root / f, state.files[f])
    for f in state.orphans:
        (root / f).unlink()
    converted = [rel for rel in state.stale if is_bench(rel)]
    for rel in converted:
        write(root / rel.with_suffix(".ipynb"), nbformat.writes(state.notebooks[rel]).encode())
    for rel in state.reworded:
        write(root / rel.with_suffix(".ipynb"), nbformat.writes(state.notebooks[rel]).encode())
    todo = [rel for rel in state.notebooks if not is_bench(rel) and (rel in wanted if only else everything or rel in state.stale and rel not in state.reworded)]
    asyncio.run(execute_all(root, {rel: state.notebooks[rel] for rel in todo}))
    done = {"files of mc written": state.changed, "removed": state.orphans, "benchmarks converted": converted,
            "chapters given new words": state.reworded, "chapters executed": todo}
    print("sync:", ", ".join(f"{len(v)} {k}" for k, v in done.items() if v) or "everything is up to date")


async def execute_all(root, notebooks):
    "Execute chapters and write them, two at a time; what failed is named at the end."
    turn, failed = asyncio.Semaphore(2), []
    with tqdm(total=len(notebooks), unit="notebook", disable=not notebooks) as bar:
        async def one(rel, nb):
            async with turn:
                bar.set_description(rel.stem)
                try:
                    write(root / rel.with_suffix(".ipynb"), (await execute(root, rel, nb)).encode())
                except Broken as e:
                    failed.append(str(e))
                bar.update()

        await asyncio.gather(*(one(rel, nb) for rel, nb in notebooks.items()))
    if failed:
        raise Broken("\n".join(sorted(failed)))


def check(root):
    report = State(root).report()
    if report:
        raise Broken("\n".join([*report, "make sync puts this right"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["sync", "check"])
    parser.add_argument("chapters", nargs="*")
    parser.add_argument("--all", action="store_true", help="with sync: execute every chapter again")
    args = parser.parse_args()
    # for the kernels: the same order of sets, the same sums on any number of cores, and this tree's mc
    os.environ |= {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        sync(ROOT, args.all, args.chapters) if args.command == "sync" else check(ROOT)
    except Broken as e:
        sys.exit(str(e))
    except (KeyboardInterrupt, asyncio.CancelledError):    # nbclient turns the one into the other
        sys.exit("interrupted; what is done is kept, and the next run continues")


if __name__ == "__main__":
    main()
