"""The programs in examples/: short, run from anywhere in seconds, say what they promise, linked from the book."""
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NAMES = {"minimal_layer", "inspect_a_layer", "your_own_memory", "mc_in_an_existing_block", "train_on_your_text", "long_document_retrieval", "two_processes"}


def run(name, monkeypatch, capsys, tmp_path, *arguments):
    "What an example prints in a folder of its own."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    with torch.random.fork_rng(devices=[]):
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert [p for p in tmp_path.iterdir() if p not in arguments] == []                  # nothing is left
    return capsys.readouterr().out


def numbers(text):
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?", text)]


def test_there_are_seven_and_the_book_links_them():
    assert {f.stem for f in EXAMPLES} == NAMES
    pages = {page: page.read_text() for page in ROOT.glob("nbs/*/*.md")}
    for name in NAMES:
        linked = [page for page, text in pages.items() if f"](../../examples/{name}.py)" in text]
        assert {"use_it.md"} < {page.name for page in linked}, name                     # the list, and the chapter it belongs to


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda f: f.stem)
def test_it_is_short_and_says_how_it_is_run(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 150
    assert lines[0].startswith('"""') and f"python examples/{path.name}" in path.read_text().split('"""')[1]


def test_minimal_layer(monkeypatch, capsys, tmp_path):
    lines = run("minimal_layer", monkeypatch, capsys, tmp_path).splitlines()
    assert lines[0] == "all at once: (2, 100, 64)" and "5 states" in lines[1] and numbers(lines[2])[0] < 1e-5


def test_inspect_a_layer(monkeypatch, capsys, tmp_path):
    text = run("inspect_a_layer", monkeypatch, capsys, tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("  head")]
    assert len(rows) == 8 and sum(row.endswith(", read") for row in rows) == 4          # one cached memory and the online one, in two heads
    assert text.endswith("add up to [1.0, 1.0]\n")


def test_your_own_memory(monkeypatch, capsys, tmp_path):
    text = run("your_own_memory", monkeypatch, capsys, tmp_path)
    assert [line.split(":")[0] for line in text.splitlines()] == ["residual", "grm", "ssc", "in a layer"]
    assert "3 cached states" in text and numbers(text)[-1] > 0


def test_mc_in_an_existing_block(monkeypatch, capsys, tmp_path):
    first, steps, last = numbers(run("mc_in_an_existing_block", monkeypatch, capsys, tmp_path))
    assert steps == 80 and last < first / 2


def test_train_on_your_text(monkeypatch, capsys, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("The same line again and again.\n" * 300)
    count, bits, *_ = numbers(run("train_on_your_text", monkeypatch, capsys, tmp_path, text).replace(",", ""))
    assert count == 60 * 8 * 64 and bits < 1


def test_long_document_retrieval(monkeypatch, capsys, tmp_path):
    text = run("long_document_retrieval", monkeypatch, capsys, tmp_path)
    right, of, most, segments, looked = numbers(text.splitlines()[-1])
    assert of == 8 and right >= 6 and looked >= 6 and (most, segments) == (4, 127)


@pytest.mark.slow
def test_two_processes(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "examples/two_processes.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    ranks = re.findall(r"rank (\d): (\d+) tokens; outputs differ by ([\d.e+-]+), gradients by ([\d.e+-]+)", done.stdout)    # lines may share one
    assert sorted((int(r), int(n)) for r, n, *_ in ranks) == [(0, 64), (1, 36)] and all(float(gap) < 1e-5 for *_, gap, _ in ranks), done.stdout
    assert [*tmp_path.iterdir()] == []
