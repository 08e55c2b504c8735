"""Text notebooks, executed notebooks and the package say the same; `make sync` is what keeps it so."""
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

import nbtool

pytestmark = pytest.mark.slow

HEADER = """---
kernelspec: {name: python3, display_name: Python 3, language: python}
nbdev: {default_exp: %s}
---
"""
ONE = HEADER % "deep.one" + """
(one)=
# One

> What the module is for.

```{code-cell}
:nbdev: {export: "true"}

def double(x):
    return 2 * x
```
"""
TWO = HEADER % "two" + """
# Two

```{code-cell}
:nbdev: {export: "true"}

from mc.deep.one import double
```

```{code-cell}
import anywidget
display(object(), anywidget.AnyWidget(), anywidget.AnyWidget())
double(21)
```
"""
BENCH = HEADER % "none" + """
```{code-cell}
print("never run")
```
"""


@pytest.fixture(scope="module")
def synced(tmp_path_factory):
    root = tmp_path_factory.mktemp("synced")
    for name, text in {"nbs/a/01_one.md": ONE, "nbs/a/02_two.md": TWO, "nbs/bench/b.md": BENCH, "mc/explorers/e.js": "// e"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        nbtool.sync(root)
    return root


@pytest.fixture
def tree(synced, tmp_path, monkeypatch):
    shutil.copytree(synced, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def contents(root):
    return {f.relative_to(root): f.read_bytes() for f in root.rglob("*") if f.is_file() and "__pycache__" not in f.parts}


def names(root):
    return " ".join(re.findall(r"^\S+", "\n".join(nbtool.State(root).report()), re.M))


def test_this_repository_is_in_step():
    assert nbtool.State(nbtool.ROOT).report() == []


def test_sync_makes_everything_and_then_nothing(tree):
    assert names(tree) == ""
    assert {str(f) for f in contents(tree) if f.parts[0] == "mc"} == {
        "mc/__init__.py", "mc/deep/__init__.py", "mc/deep/one.py", "mc/two.py", "mc/explorers/__init__.py", "mc/explorers/e.js"}
    assert '"""What the module is for."""' in (tree / "mc/deep/one.py").read_text()
    before = {f: f.stat().st_mtime_ns for f in tree.rglob("*")}
    nbtool.sync(tree)
    assert before == {f: f.stat().st_mtime_ns for f in tree.rglob("*")}


def test_executing_again_gives_the_same_bytes(tree):
    before = contents(tree)
    nbtool.sync(tree, everything=True)
    assert contents(tree) == before


def test_benchmarks_are_converted_and_not_run(tree):
    cell = nbformat.read(tree / "nbs/bench/b.ipynb", as_version=4).cells[-1]
    assert cell.source == 'print("never run")' and cell.outputs == [] and cell.execution_count is None


def test_a_changed_text_is_named(tree):
    edit(tree / "nbs/a/02_two.md", "# Two", "# Three")
    assert names(tree) == "nbs/a/02_two.md"


def test_words_do_not_make_other_chapters_stale_but_code_does(tree):
    edit(tree / "nbs/a/01_one.md", "# One", "# First")
    assert names(tree) == "nbs/a/01_one.md"
    edit(tree / "nbs/a/01_one.md", "2 * x", "x + x")
    assert names(tree) == "nbs/a/01_one.md nbs/a/02_two.md mc/deep/one.py"


def test_a_result_that_a_chapter_reads_is_named_when_it_changes(tree):
    edit(tree / "nbs/a/02_two.md", "nbdev: {default", "companion: {reads: [results]}\nnbdev: {default")
    nbtool.sync(tree)
    assert names(tree) == ""
    (tree / "results").mkdir()
    (tree / "results/record.json").write_text("{}")
    assert names(tree) == "nbs/a/02_two.md"


def test_a_module_edited_by_hand_is_named_and_put_back(tree):
    module = tree / "mc/deep/one.py"
    before = module.read_bytes()
    edit(module, "2 * x", "3 * x")
    assert names(tree) == "mc/deep/one.py"
    nbtool.sync(tree)
    assert module.read_bytes() == before


def test_a_module_of_no_notebook_is_named_and_removed(tree):
    (tree / "mc/old.py").write_text("x = 1")
    assert names(tree) == "mc/old.py"
    nbtool.sync(tree)
    assert not (tree / "mc/old.py").exists()


def test_a_front_end_file_is_its_own_source(tree):
    (tree / "mc/explorers/e.js").write_text("// f")
    assert names(tree) == ""
    nbtool.sync(tree)
    assert (tree / "mc/explorers/e.js").read_text() == "// f"


def test_a_module_can_keep_its_old_address(tree):
    edit(tree / "nbs/a/01_one.md", "nbdev: {default", "companion: {formerly: first}\nnbdev: {default")
    nbtool.sync(tree)
    assert subprocess.check_output([sys.executable, "-c", "import mc.first; print(mc.first.double(2))"], cwd=tree, text=True) == "4\n"


def test_only_the_chapters_that_are_named_are_executed(tree):
    edit(tree / "nbs/a/01_one.md", "2 * x", "x + x")
    nbtool.sync(tree, only=["nbs/a/02_two"])
    assert names(tree) == "nbs/a/01_one.md"
    with pytest.raises(nbtool.Broken, match="nbs/a/03.md: no such chapter"):
        nbtool.sync(tree, only=["nbs/a/03"])


@pytest.mark.parametrize("damage", [lambda nb: nb[:len(nb) // 2], lambda nb: re.sub(r'"execution_count": \d+', '"execution_count": null', nb)])
def test_a_damaged_or_cleared_notebook_is_named(tree, damage):
    path = tree / "nbs/a/01_one.ipynb"
    path.write_text(damage(path.read_text()))
    assert names(tree) == "nbs/a/01_one.md"


def test_a_notebook_without_a_text_is_named_and_never_deleted(tree):
    (tree / "nbs/a/01_one.md").rename(tree / "one.md")
    assert "nbs/a/01_one.ipynb" in names(tree)
    with pytest.raises(nbtool.Broken, match="nbs/a/01_one.ipynb has no text notebook"):
        nbtool.sync(tree)
    assert (tree / "nbs/a/01_one.ipynb").exists()


def test_a_syntax_error_is_one_line_and_leaves_the_package_alone(tree):
    before = contents(tree / "mc")
    edit(tree / "nbs/a/01_one.md", "return 2 * x", "return 2 *")
    with pytest.raises(nbtool.Broken, match=r"^nbs/a/01_one.md: cell 2, line 2: invalid syntax: return 2 \*$"):
        nbtool.sync(tree)
    assert contents(tree / "mc") == before


def test_a_text_that_cannot_be_read_is_named(tree):
    edit(tree / "nbs/a/01_one.md", '{export: "true"}', '{export: "true"')
    with pytest.raises(nbtool.Broken, match="^nbs/a/01_one.md: "):
        nbtool.sync(tree)


def test_a_failing_cell_is_named_and_the_old_notebook_stays(tree):
    before = (tree / "nbs/a/02_two.ipynb").read_bytes()
    edit(tree / "nbs/a/02_two.md", "double(21)", "double(1) / 0")
    with pytest.raises(nbtool.Broken, match=r"nbs/a/02_two.md: cell 3 \(import anywidget.*ZeroDivisionError: division by zero"):
        nbtool.sync(tree)
    assert (tree / "nbs/a/02_two.ipynb").read_bytes() == before
    assert names(tree) == "nbs/a/02_two.md"


def test_an_output_that_names_a_folder_of_this_machine_is_refused(tree):
    edit(tree / "nbs/a/02_two.md", "double(21)", "import mc.two\nprint(mc.two.__file__)")
    with pytest.raises(nbtool.Broken, match="nbs/a/02_two.md: an output names a folder of this machine"):
        nbtool.sync(tree)


def test_new_words_execute_nothing(tree, monkeypatch):
    "Prose of a chapter, and a docstring of another chapter; outputs and widgets stay."
    edit(tree / "nbs/a/01_one.md", "def double(x):\n", 'def double(x):\n    "Twice x."\n')
    nbtool.sync(tree)
    assert names(tree) == "" and '"Twice x."' in (tree / "mc/deep/one.py").read_text()
    before = nbformat.read(tree / "nbs/a/02_two.ipynb", as_version=4)
    edit(tree / "nbs/a/02_two.md", "# Two", "# Three\n\nMore words.")

    async def never(*_):
        raise AssertionError("a chapter was executed")

    monkeypatch.setattr(nbtool, "execute", never)
    nbtool.sync(tree)
    after = nbformat.read(tree / "nbs/a/02_two.ipynb", as_version=4)
    assert names(tree) == "" and "More words." in after.cells[0].source + after.cells[1].source
    outputs = lambda nb: [c.outputs for c in nb.cells if c.cell_type == "code"]
    assert outputs(after) == outputs(before) and after.metadata["widgets"] == before.metadata["widgets"]


def test_what_a_function_imports_counts_where_it_is_named(tree):
    "Else one line of CSS would execute every chapter that imports a package whose __init__ can show a picture."
    edit(tree / "nbs/a/01_one.md", "    return 2 * x", "    return 2 * x\n\ndef show():\n    from mc.explorers import e2\n    return e2")
    (tree / "nbs/a/03_e.md").write_text(HEADER % "explorers.e2" + '# E\n\n```{code-cell}\n:nbdev: {export: "true"}\n\nx = 1\n```\n')
    (tree / "nbs/a/04_show.md").write_text(HEADER % "none" + "# S\n\n```{code-cell}\nfrom mc.deep import one\none.show().x\n```\n")
    nbtool.sync(tree)
    (tree / "mc/explorers/e.js").write_text("// f")
    assert names(tree) == "nbs/a/01_one.md nbs/a/04_show.md"        # not nbs/a/02_two.md, which imports the same module
