"""The command line, typed wrongly and met by bad surroundings: one line that names what was typed, an exit code, nothing left behind."""
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
import yaml
from typer.testing import CliRunner

from mc.commands.base import main

pytestmark = pytest.mark.slow

ASKED = "from mc.evidence.schema import Count, Names, Rate, Seeds\nsteps: Count = 1\nrate: Rate = 0.1\nseeds: Seeds = [0]\nnames: Names = ['a']\n"
ASKED += "text: str = ''\nfree = None\nprofile: str = ''\nout: str = ''"
SOUND = {"steps": 3, "rate": 0.5, "seeds": [0], "names": ["a"], "text": "", "free": None}
PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
FINE = "import pathlib; pathlib.Path(out).mkdir(parents=True, exist_ok=True); (pathlib.Path(out) / 'r.json').write_text('{}')"


def notebook(*cells, asked="profile = ''\nout = ''", tags=("parameters",), metadata=PYTHON):
    cells = [nbformat.v4.new_code_cell(asked, metadata={"tags": list(tags)}), *map(nbformat.v4.new_code_cell, cells)]
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata=metadata))


def put(path, content=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def tree(folder):
    "Everything under `folder` with its content."
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A folder with two benchmarks, where the user stands: `probe` asks for nothing, `typed` for a little of everything."
    put(tmp_path / "bench/probe.ipynb", notebook(FINE))
    put(tmp_path / "bench/probe.yaml", "smoke: {}\ncpu: {}\n")
    put(tmp_path / "bench/typed.ipynb", notebook(FINE, asked=ASKED))
    put(tmp_path / "bench/typed.yaml", yaml.safe_dump({"smoke": SOUND}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mc(*arguments):
    return CliRunner().invoke(main, list(arguments))


def assert_one_line(said, *words):
    assert said.count("\n") == 1 and said.endswith("\n") and "Traceback" not in said, said
    for word in words:
        assert word in said, (word, said)


def assert_refused(result, *words, code=2):
    assert result.exit_code == code and result.stdout == "", (result.exit_code, result.output)
    assert_one_line(result.stderr, "Error: ", *words)


B, N = ["bench", "probe", "--notebooks", "bench"], ["--notebooks", "bench"]
LONG = "x" * 300

TYPED = [                                                                           # arguments, what the line says
    ([], "Missing command"), (["bunch"], "'bunch'", "bench"), (["Bench"], "'Bench'"), (["benchh", "x"], "'benchh'", "bench"),
    (["--nope"], "--nope"), (["-x"], "-x"), (["--versoin"], "--versoin", "--version"), (["--version=1"], "--version"),
    (["bench", "probe", "cpu", *N], "cpu"), (["bench", "--nope", "probe"], "--nope"),
    (["bench", "probe", "--profle", "cpu"], "--profle", "--profile"), (["bench", "probe", "--out"], "--out"),
    (["bench", "probe", "--profile"], "--profile"), (["bench", "probe", "--notebooks"], "--notebooks"), (["bench", "probe", "-p", "cpu"], "-p"),
    (["bench", "", *N], "NAME", "''", "probe"), (["bench", "prob", *N], "'prob'", "did you mean probe"), (["bench", "PROBE", *N], "'PROBE'"),
    (["bench", "probe.yaml", *N], "'probe.yaml'", "did you mean probe"), (["bench", "probe.ipynb", *N], "'probe.ipynb'"),
    (["bench", "./probe", *N], "'./probe'"), (["bench", "../bench/probe", *N], "'../bench/probe'"), (["bench", "bench/probe", *N], "'bench/probe'"),
    (["bench", "..", *N], "'..'"), (["bench", "/etc/passwd", *N], "'/etc/passwd'"), (["bench", "pr\0obe", *N], "pr\\x00obe"),
    (["bench", "pr\nobe", *N], "pr\\nobe"), (["bench", "pr\x1b[31mobe", *N], "pr\\x1b[31mobe"), (["bench", LONG, *N], LONG), (["bench", "*", *N], "'*'"),
    ([*B, "--profile", "gpu"], "--profile", "smoke, cpu", "'gpu'"), ([*B, "--profile", "smok"], "'smok'", "did you mean smoke"),
    ([*B, "--profile", ""], "''"), ([*B, "--profile", "SMOKE"], "'SMOKE'"), ([*B, "--profile", "../smoke"], "'../smoke'"),
    ([*B, "--profile", "smoke/"], "'smoke/'"), ([*B, "--profile", "smoke "], "'smoke '"), ([*B, "--profile", "0"], "'0'"),
    ([*B, "--profile", "smo\nke"], "smo\\nke"), ([*B, "--profile", "smo\0ke"], "smo\\x00ke"), ([*B, "--profile", LONG], LONG),
    (["bench", "probe"], "nbs/bench", "'probe'", "state_per_byte"), (["bench", "--list", "--notebooks", "nowhere"], "--notebooks nowhere", "No such file"), (["bench", "probe", "--notebooks", "nowhere"], "--notebooks nowhere", "No such file"),
    (["bench", "probe", "--notebooks", ""], "--notebooks", "''"), (["bench", "probe", "--notebooks", "ben\0ch"], "--notebooks", "ben\\x00ch"),
    (["bench", "probe", "--notebooks", "bench/probe.yaml"], "bench/probe.yaml", "Not a directory"),
    (["bench", "probe", "--notebooks", "bench/probe.yaml/x"], "bench/probe.yaml/x", "Not a directory"),
    (["bench", "probe", "--notebooks", LONG], LONG, "too long"), ([*B, "--out", ""], "--out", "''"), ([*B, "--out", "a\0b"], "--out", "a\\x00b"),
    ([*B, "--out", LONG], LONG, "too long"), ([*B, "--out", f"a/{LONG}"], f"a/{LONG}", "too long"), ([*B, "--out", "/".join("x" * 4000)], "too long"),
    ([*B, "--out", "bench/probe.yaml"], "bench/probe.yaml", "Not a directory"), ([*B, "--out", "bench/probe.yaml/x/y"], "bench/probe.yaml", "Not a directory"),
    ([*B, "--out", "/proc/nowhere"], "/proc/nowhere"), ([*B, "--out", "/dev/full"], "/dev/full"), ([*B, "--out", "/dev/null/x"], "/dev/null"),
    ([*B, "--out", "/sys"], "/sys/probe"),
]


@pytest.mark.parametrize("arguments, words", [(a, w) for a, *w in TYPED], ids=[f"{' '.join(a)[:60]!a}" for a, *_ in TYPED])
def test_what_is_typed_wrongly(arguments, words, here):
    before = tree(here)
    assert_refused(mc(*arguments), *words)
    assert tree(here) == before


def smoke(**more):
    return yaml.safe_dump({"smoke": SOUND | more}, allow_unicode=True)


def without(*names):
    return yaml.safe_dump({"smoke": {k: v for k, v in SOUND.items() if k not in names}})


Y = "bench/typed.yaml"
SOUND_TEXT = "smoke:\n  steps: 3\n  rate: 0.5\n  seeds: [0]\n  names: [a]\n  text: ''\n  free: null\n"
YAML = [                                                                            # content of typed.yaml, what the line says
    ("", Y, "is empty"), (" \n\n", Y, "is empty"), ("# nothing\n", Y, "NoneType"), ("null\n", Y, "NoneType"), ("3\n", Y, "int"), ("text\n", Y, "str"),
    ("[smoke, cpu]\n", Y, "list"), ("{}\n", Y, "dict"), ("smoke: [1]\n", Y, "profile smoke", "[1]"), ("smoke: 3\n", Y, "profile smoke", "3"),
    ("smoke:\n", Y, "profile smoke", "None"), ("smoke: text\n", Y, "'text'"), ("1: {}\n", Y, "1"), ("on: {}\n", Y, "True"), ("null: {}\n", Y, "None"),
    ("../smoke: {}\n", Y, "'../smoke'"), ("'': {}\n", Y, "''"), (".: {}\n", Y, "'.'"), (f"{LONG}: {{}}\n", Y, "name"), ("? [1]\n: {}\n", Y, "line 1"),
    ("smoke: {}\nsmoke: {}\n", Y, "smoke twice"), (SOUND_TEXT + "  steps: 4\n", Y, "steps twice", "line 2"), ("smoke:\n\tsteps: 3\n", Y, "line 2"),
    ("smoke: {steps: 3\n", Y, "line 2"), ("smoke: 'steps\n", Y, "line 2"), ("smoke: *nothing\n", Y, "line 1", "nothing"), ("a: 1\n---\nb: 2\n", Y, "line 2"),
    ("smoke: !!python/object/apply:os.getcwd []\n", Y, "line 1"), ("smoke: !mine {}\n", Y, "line 1"), ("smoke: &x {free: *x}\n", Y), ("[" * 5000, Y),
    ("smoke: {text: fär}\n".encode("latin-1"), Y, "UTF-8"), (smoke().encode("utf-16"), Y, "UTF-8"), (b"\x7fELF\x00\xff", Y), (b"smoke: \x00\n", Y),
    (SOUND_TEXT[:20], Y, "profile smoke", "lacks rate, seeds, names, text, free"), (SOUND_TEXT[: SOUND_TEXT.index("  text")], Y, "lacks text, free"),
    (without("rate"), Y, "profile smoke", "lacks rate"), (without("free", "text"), Y, "lacks text, free"), ("smoke: {}\n", Y, "lacks steps"),
    (smoke(step=3), Y, "profile smoke", "no parameter step", "did you mean steps"), (smoke(Rate=3), Y, "Rate"), (smoke(**{"": 3}), Y, "no parameter"),
    (yaml.safe_dump({"smoke": SOUND | {1: 2}}), Y, "no parameter 1"), (smoke(out="x"), Y, "out"), (smoke(profile="x"), Y, "profile"),
]
for name, values in {"steps": (0, -5, 1.5, 3.0, True, "many", "3", None, [3], {"a": 3}, float("nan"), float("inf")),
                     "rate": (0, -1e-3, True, "fast", "0.5", None, [0.5], float("nan"), float("inf")),
                     "seeds": ([], 0, [0, 0], [0.5], ["0"], [-1], [None], [True], [[0]], [10**7], None, "0", {"a": 0}),
                     "names": ([], "a", ["a", "a"], [1], [""], None), "text": (1, None, ["a"], True)}.items():
    YAML += [(smoke(**{name: value}), Y, "profile smoke", f"{name} must be") for value in values]
YAML += [("smoke: {steps: 3, rate: 1e400, seeds: [0], names: [a], text: '', free: 1}\n", Y, "rate must be", "inf")]


@pytest.mark.parametrize("content, words", [(c, w) for c, *w in YAML], ids=[f"yaml-{i}" for i in range(len(YAML))])
def test_profiles_of_another_shape(content, words, here):
    put(here / Y, content)
    before = tree(here)
    assert_refused(mc("bench", "typed", *N, "--out", "out"), *words)
    assert tree(here) == before


P = "bench/probe.ipynb"
OLD = {"nbformat": 2, "nbformat_minor": 0, "metadata": {}, "worksheets": []}
NOTEBOOKS = [                                                                       # content of probe.ipynb, what the line says
    ("", P, "is empty"), ("\n", P, "is empty"), (notebook()[:100], P, "no complete"), (notebook()[:-3], P), ("no json", P), ("[1, 2]", P), ("3", P), ("null", P),
    ("{}", P), ('{"cells": 3}', P), (json.dumps(OLD), P), (notebook().replace('"nbformat": 4', '"nbformat": 99'), P), ('{"nbformat": 4, "metadata": {}}', P),
    (json.dumps(json.loads(notebook()) | {"cells": [3]}), P), (json.dumps(json.loads(notebook()) | {"metadata": []}), P), (b"\xff\xfe{}", P), (b"\x00" * 50, P),
    (notebook(tags=()), P, "parameters"), (notebook(tags=("parameter",)), P, "parameters"), (notebook(asked="out ="), P, "no Python"),
    (notebook(asked="profile = ''"), P, "no parameter out"), (notebook(asked=""), P, "profile, out"),
    (notebook(metadata={"kernelspec": PYTHON["kernelspec"] | {"language": "R"}}), P, "in R"),
]


@pytest.mark.parametrize("content, words", [(c, w) for c, *w in NOTEBOOKS], ids=[f"notebook-{i}" for i in range(len(NOTEBOOKS))])
def test_notebooks_of_another_shape(content, words, here):
    put(here / P, content)
    before = tree(here)
    assert_refused(mc(*B, "--out", "out"), *words)
    assert tree(here) == before


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


PLACES = {                                                                          # what is in the way, arguments, what the line says
    "yaml is missing": (lambda f: (f / "bench/probe.yaml").unlink(), B, "NAME", "'probe'"),
    "yaml is a folder": (lambda f: ((f / "bench/probe.yaml").unlink(), (f / "bench/probe.yaml").mkdir()), B, "bench/probe.yaml", "directory"),
    "yaml leads nowhere": (lambda f: ((f / "bench/probe.yaml").unlink(), link(f / "bench/probe.yaml", "gone")), B, "bench/probe.yaml", "No such file"),
    "notebook is missing": (lambda f: (f / P).unlink(), B, P, "No such file"),
    "notebook is a folder": (lambda f: ((f / P).unlink(), (f / P).mkdir()), B, P, "directory"),
    "notebook leads nowhere": (lambda f: ((f / P).unlink(), link(f / P, "gone")), B, P, "No such file"),
    "notebook leads to itself": (lambda f: ((f / P).unlink(), link(f / P, "probe.ipynb")), B, P, "symbolic links"),
    "no benchmarks": (lambda f: (f / "empty").mkdir(), ["bench", "probe", "--notebooks", "empty"], "nothing", "empty", "'probe'"),
    "notebooks lead nowhere": (lambda f: link(f / "l", "gone"), ["bench", "probe", "--notebooks", "l"], "--notebooks l", "No such file"),
    "out leads to itself": (lambda f: link(f / "l", "l"), [*B, "--out", "l"], "l/probe"),
    "out leads nowhere": (lambda f: link(f / "l", "gone/far"), [*B, "--out", "l"], "l"),
    "a file where the benchmark's folder goes": (lambda f: put(f / "out/probe"), [*B, "--out", "out"], "out/probe", "Not a directory"),
    "a file where records go": (lambda f: put(f / "out/probe/smoke"), [*B, "--out", "out"], "out/probe/smoke", "Not a directory"),
    "a folder where the notebook goes": (lambda f: (f / "out/probe/smoke.ipynb").mkdir(parents=True), [*B, "--out", "out"], "out/probe/smoke.ipynb"),
}


@pytest.mark.parametrize("what", PLACES)
def test_files_in_the_way(what, here):
    prepare, arguments, *words = PLACES[what]
    prepare(here)
    before = {str(p): p.lstat().st_mtime_ns for p in here.rglob("*") if not p.is_dir()}
    assert_refused(mc(*arguments), *words)
    assert before == {str(p): p.lstat().st_mtime_ns for p in here.rglob("*") if not p.is_dir()}


@pytest.mark.parametrize("name, module", [("papermill", "papermill"), ("ipykernel", "ipykernel"), ("yaml", "yaml")])
def test_a_missing_package_is_named(name, module, here, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(mc(*B), "pip install 'memory-caching-companion[bench]'", name)


def test_a_full_disk_keeps_the_old_notebook(here, monkeypatch):
    from mc import files
    from mc.evidence import execution

    def full(*_):
        raise OSError(28, "No space left on device")

    put(here / "out/probe/smoke.ipynb", "the old one")
    monkeypatch.setattr(execution, "execute", lambda *_: None)
    monkeypatch.setattr(files.os, "fsync", full)
    assert_refused(mc(*B, "--out", "out"), "out/probe/smoke.ipynb", "No space left on device", code=1)
    assert tree(here / "out") == {"probe": None, "probe/smoke.ipynb": b"the old one"}


CELLS = {                                                                           # the cell, what the line says
    "1 / 0": ("ZeroDivisionError: division by zero",), "raise ValueError('one\\ntwo')": ("ValueError: one two",), "if": ("SyntaxError",),
    "open(out + '/gone.json')": ("out/probe/smoke/gone.json'",), "open('data.csv')": ("'bench/data.csv'",), "import os; os._exit(3)": ("cell 3", "ended"),
    "raise ValueError('../elsewhere/a.json is damaged')": ("ValueError: elsewhere/a.json is damaged",),
}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_that_fails(cell, here):
    put(here / P, notebook(cell, FINE))
    assert_refused(mc(*B, "--out", "out"), "bench/probe.ipynb", "profile smoke", "out/probe/smoke.ipynb", *CELLS[cell], code=1)
    kept = nbformat.read(here / "out/probe/smoke.ipynb", 4)
    assert [p.name for p in (here / "out/probe").iterdir()] == ["smoke.ipynb"] and kept.cells[2].source == cell
    assert str(here) not in json.dumps([c.source for c in kept.cells])


def shell(line, **more):
    env = os.environ | {"MC": f"{sys.executable} -m mc"} | more
    return subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("line, code, words", [
    ("$MC --version", 0, ()), ("$MC --help", 0, ()), ("$MC bench --help", 0, ()), ("$MC --help >&-", 2, ("standard output is closed",)),
    ("$MC bench probe --notebooks bench >&-", 2, ("standard output is closed",)), ("$MC --help > /dev/full", 1, ("standard output", "No space left")),
    ("$MC bench --help > /dev/full", 1, ("No space left",)), ("set -o pipefail; $MC --help | true", 1, ("standard output", "Broken pipe")),
    ("$MC --help 2>&-", 0, None), ("$MC bunch 2>&-", 2, None), ("$MC bunch 2> /dev/full", 2, None), ("$MC bunch <&-", 2, ("'bunch'",)),
    ("$MC bench prüf --notebooks bench", 2, ("pr",)), ("$MC bench probe --notebooks $'b\\xff'", 2, ("--notebooks b", "No such file")),
])
@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_streams_and_locales(line, code, words, locale, here):
    before = tree(here)
    more = {"LC_ALL": locale} | ({"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"} if locale == "C" else {})
    result = shell(line, **more)
    assert result.returncode == code, result
    if code == 0 and words is not None:
        assert result.stderr == "" and result.stdout
    elif words is not None:
        assert result.stdout == "" and result.stderr.count("\n") == 1 and all(word in result.stderr for word in words), result
    assert tree(here) == before


@pytest.mark.parametrize("out", ["o", "./o/", "Prüf stand 日本", "o'\"{x}$", "l/../o", os.fsdecode(b"o\xff")])
def test_records_are_where_the_command_says(out, here):
    "Through links on every side, and whatever the folder is called."
    (here / "disk/deep/er").mkdir(parents=True)
    (here / "bench").rename(here / "disk/deep/er/bench")
    link(here / "bench", "disk/deep/er/bench"), link(here / "l", "disk/deep")
    result = mc(*B, "--out", out)
    assert result.exit_code == 0, result.output
    assert (here / out / "probe/smoke/r.json").read_text() == "{}" and nbformat.read(here / out / "probe/smoke.ipynb", 4)
    assert len([*here.rglob("r.json")]) == 1
    place = (here / out).resolve()
    assert place == (here / "disk/o" if out == "l/../o" else here / out)


SLEEP = "import os, pathlib, time; pathlib.Path(out).mkdir(parents=True)\n"
SLEEP += "from mc.evidence.workers import workers\nwith workers(2) as pool:\n    one = [pool.submit(time.sleep, 600) for _ in range(2)]\n"
SLEEP += "    while not all(o.running() for o in one): time.sleep(.05)\n    (pathlib.Path(out) / 'working').touch(); time.sleep(600)"


def start(*arguments, **options):
    "The command with the signals' usual meanings, whatever they are where the tests run."
    def usual():
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
    return subprocess.Popen([sys.executable, "-m", "mc", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=usual,
                            **options)


def until(true, seconds=60):
    end = time.time() + seconds
    while not true() and time.time() < end:
        time.sleep(0.05)
    assert true()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)], ids=lambda n: str(int(n)))
def test_whatever_ends_the_command_ends_kernel_and_workers(number, code, here):
    put(here / P, notebook(SLEEP)), (here / "tmp").mkdir()
    job = start(*B, "--out", "out", env=os.environ | {"TMPDIR": str(here / "tmp")})
    until((here / "out/probe/smoke/working").exists)
    others = psutil.Process(job.pid).children(recursive=True)
    assert len(others) >= 3                                                         # the kernel and two workers
    job.send_signal(number)
    said = job.communicate(timeout=20)
    assert job.returncode == code and said[0] == ""
    _, left = psutil.wait_procs(others, timeout=10)
    assert not left
    if number != signal.SIGKILL:
        assert_one_line(said[1], "interrupted", "out/probe/smoke keeps what was done: run it again")
    assert tree(here / "out") == {"probe": None, "probe/smoke": None, "probe/smoke/working": b""}
    until(lambda: not [*(here / "tmp").iterdir()])


AT = """
import os, signal, sys
class At:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, At())
signal.signal(signal.SIGINT, signal.default_int_handler)
from mc.__main__ import run
run()
"""


@pytest.mark.parametrize("module", ["mc.commands.base", "typer", "mc.commands.bench", "tempfile", "mc.evidence.profiles", "papermill", "pydantic", "yaml", "nbformat", "mc.evidence.execution", "nbclient",
                                    "jupyter_client", "mc.files"])
def test_ctrl_c_during_an_import(module, here):
    before = tree(here)
    job = subprocess.run([sys.executable, "-c", AT.format(module=module), *B, "--out", "out"], capture_output=True, text=True)
    assert job.returncode == 130 and job.stdout == "", job
    assert_one_line(job.stderr, "interrupted")
    after = tree(here)
    assert after == before or module == "mc.files" and (here / "out/probe/smoke/r.json").exists() and "keeps what was done" in job.stderr


@pytest.mark.parametrize("delay", [0, 0.4])
def test_ctrl_c_while_the_kernel_starts(delay, here):
    "The folder made for the benchmark goes again."
    put(here / P, notebook("import time; time.sleep(600)"))
    before, job = tree(here), start(*B, "--out", "out")
    until(lambda: psutil.Process(job.pid).children())
    time.sleep(delay)
    others = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(signal.SIGINT)
    said = job.communicate(timeout=20)
    assert job.returncode == 130 and said[0] == "", said
    assert_one_line(said[1], "interrupted")
    assert not psutil.wait_procs(others, timeout=10)[1] and tree(here) == before


def test_ctrl_c_while_the_notebook_is_written(here, monkeypatch):
    from mc import files
    from mc.evidence import execution

    put(here / "out/probe/smoke.ipynb", "the old one")
    monkeypatch.setattr(execution, "execute", lambda *_: None)
    monkeypatch.setattr(files.os, "fsync", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.default_int_handler)
    result = mc(*B, "--out", "out")
    assert result.exit_code == 130 and result.stdout == ""
    assert_one_line(result.stderr, "interrupted", "out/probe/smoke")
    assert tree(here / "out") == {"probe": None, "probe/smoke.ipynb": b"the old one"}


def test_what_was_ignored_stays_ignored(here):
    "nohup: the terminal goes, the measurement goes on."
    put(here / P, notebook("import os, signal, time; os.kill(os.getppid(), signal.SIGHUP); time.sleep(1)", FINE))
    job = subprocess.run(["nohup", sys.executable, "-m", "mc", *B, "--out", "out"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert job.returncode == 0 and (here / "out/probe/smoke/r.json").exists(), job


@pytest.mark.parametrize("redirect, code", [("2> /dev/full", 0), ("2>&- > /dev/full", 1)])
def test_a_measurement_survives_its_streams(redirect, code, here):
    "Progress that nobody can see stops nothing; a last line that cannot be written is an error, and the records are there."
    put(here / P, notebook("import sys; print('1 of 2', file=sys.stderr)", FINE))
    result = shell(f"$MC bench probe --notebooks bench --out out {redirect}")
    assert result.returncode == code and (here / "out/probe/smoke/r.json").exists() and (here / "out/probe/smoke.ipynb").exists(), result


def test_without_a_home_or_settings_of_ipython(here):
    put(here / P, notebook("assert not hasattr(__builtins__, 'spoilt')", FINE))
    put(here / "home/.ipython/profile_default/startup/00.py", "import builtins; builtins.spoilt = 1")
    for home in ({"HOME": str(here / "home")}, {"HOME": "/proc/nowhere"}):
        env = {k: v for k, v in os.environ.items() if k in ("PATH", "PYTHONPATH")} | home
        job = subprocess.run([sys.executable, "-m", "mc", *B, "--out", "out"], env=env, capture_output=True, text=True)
        assert job.returncode == 0 and job.stderr == "", job


def test_a_kernel_that_cannot_start_says_why(here):
    put(here / "broken/ipykernel/__init__.py"), put(here / "broken/ipykernel/kernelapp.py", "raise ImportError('no zmq here')")
    job = shell("$MC bench probe --notebooks bench --out out", PYTHONPATH=f"{here / 'broken'}:{os.environ.get('PYTHONPATH', '')}")
    assert job.returncode == 1 and job.stdout == "", job
    assert_one_line(job.stderr, "bench/probe.ipynb", "no kernel of", sys.executable, "ImportError: no zmq here")


@pytest.mark.parametrize("text, value", [("1e-3", 1e-3), ("1E3", 1000.0), ("5e3", 5000.0), ("+1e-3", 1e-3), ("-2.5e+3", -2500.0), (".5e1", 5.0), ("1.e2", 100.0),
                                         ("1.5e-7", 1.5e-7), ("3", 3), ("1_000", 1000), ("'1e-3'", "1e-3"), ("1e", "1e"), ("e3", "e3"), ("1e-3x", "1e-3x")])
def test_numbers_of_yaml(text, value, here):
    from mc.evidence.profiles import profiles

    put(here / Y, f"smoke: {{x: {text}, für: 日本}}\n")
    given = profiles(here / "bench", "typed")["smoke"]
    assert given == {"x": value, "für": "日本"} and type(given["x"]) is type(value)


def test_a_notebook_imports_what_lies_beside_it(here):
    put(here / "bench/helper.py", "x = 3"), put(here / "bench/json.py", "1 / 0")
    put(here / P, notebook("import helper, json; assert helper.x == 3", "import warnings; warnings.warn('seen')\n!echo hi", FINE))
    result = mc(*B, "--out", "out")
    assert result.exit_code == 0 and "seen" in result.stderr, result.output
    cells = nbformat.read(here / "out/probe/smoke.ipynb", 4).cells
    assert [o.text.strip() for c in cells for o in c.outputs if o.output_type == "stream"] == ["hi"] and cells[1].source == '# Parameters\nprofile = "smoke"\nout = "../out/probe/smoke"\n'
