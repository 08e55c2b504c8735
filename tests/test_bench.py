"""Benchmarks from the command line: what one leaves, goes on with and says; what a record knows of its making; the models that are shipped."""
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from typer.testing import CliRunner

from mc.commands.base import main
from mc.evidence.record_schema import Measured
from mc.evidence.records import interval, provenance, read_record, read_records
from mc.evidence.runs import Run
from mc.nn.model import LanguageModel
from mc.storage import load_json, load_tensors, save_json
from mc.tasks.mqar import Batch, correct, fingerprint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ["none", "grm"]


def mc(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def tiny(folder, **changes):
    "A copy of the benchmark on bytes of state with a profile of four steps, in a checkout of its own; the command that runs it."
    place = folder / "nbs/bench"
    place.mkdir(parents=True)
    (place / "state_per_byte.ipynb").write_bytes((ROOT / "nbs/bench/state_per_byte.ipynb").read_bytes())
    small = dict(variants=VARIANTS, seeds=[0], num_layers=1, d_model=16, num_heads=2, segment_size=4, vocab_size=16, length=16, pairs=4, steps=4, batch=2,
                 rates=[0.003, 0.01], search_steps=2, sequences=4, test_tokens=64, jobs=1, device="cpu")
    (place / "state_per_byte.yaml").write_text(yaml.safe_dump({"tiny": small | changes}))
    return ["bench", "state_per_byte", "--profile", "tiny", "--out", folder / "results", "--notebooks", place]


def test_a_benchmark_leaves_records_weights_and_its_notebook(tmp_path):
    arguments, folder = tiny(tmp_path), tmp_path / "results/state_per_byte/tiny"
    result = mc(*arguments)
    assert result.exit_code == 0, result.output
    records, trials = read_records(folder, Measured), read_records(folder / "search", Measured)
    assert [r["variant"] for r in records] == sorted(VARIANTS) and len(trials) == 2 * len(VARIANTS)
    assert all(r["command"] == "mc bench state_per_byte --profile tiny" and r["commit"] for r in records + trials)
    assert sorted(p.stem for p in (folder / "weights").iterdir()) == [f"{v}-seed0" for v in sorted(VARIANTS)]
    kept = nbformat.read(f"{folder}.ipynb", 4)
    assert "papermill" not in kept.metadata and str(tmp_path) not in json.dumps(kept)
    assert all(cell.execution_count for cell in kept.cells if cell.cell_type == "code")

    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.json")}
    assert mc(*arguments).exit_code == 0                                           # everything is there: nothing runs again
    assert times == {p: p.stat().st_mtime_ns for p in folder.rglob("*.json")}
    (path := folder / "grm-seed0.json").write_text(path.read_text()[:40])
    result = mc(*arguments)
    assert result.exit_code == 1 and "grm-seed0.json is not a complete JSON file" in result.output and "Traceback" not in result.output


def test_an_interrupted_benchmark_says_how_to_go_on(tmp_path):
    arguments = tiny(tmp_path, steps=20_000, rates=[0.01])
    job = subprocess.Popen([Path(sys.executable).parent / "mc", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    checkpoint = tmp_path / "results/state_per_byte/tiny/.none-seed0.checkpoint"
    while not checkpoint.exists():
        assert job.poll() is None
        time.sleep(0.1)
    job.send_signal(signal.SIGINT)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 130 and "run it again" in said and "Traceback" not in said
    assert len(load_tensors(checkpoint)[0]["losses"]) % 100 == 0


@pytest.mark.parametrize("source", sorted((ROOT / "nbs/bench").glob("*.md")), ids=lambda f: f.stem)
def test_a_results_page_answers_before_it_says_how(source):
    "Title, figure, answer from the records, what it does not say; parameters and this copy's run are below, under Reproduce."
    text = source.read_text()
    title, order = re.search(r"^# (.+)", text, re.M)[1], ["display(", "say(", "**What it does not say.**", "\n## Reproduce\n", "mc bench", ":tags: [parameters]"]
    places = [text.index(part, text.index("# " + title)) for part in order]
    assert title.endswith("?") and places == sorted(places) and "### This copy's run" in text


def test_incomplete_records_are_named(tmp_path):
    save_json(tmp_path / "grm-seed0.json", {"variant": "grm"})
    with pytest.raises(ValueError, match="grm-seed0.json is not a complete record: it lacks command, commit"):
        read_records(tmp_path, Measured)
    (tmp_path / "grm-seed0.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, found a list"):
        load_json(tmp_path / "grm-seed0.json")


def test_a_record_says_when_the_code_was_not_committed(tmp_path, monkeypatch):
    git = lambda *arguments: subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)
    for name in ("mc", "nbs/bench"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("one")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")
    monkeypatch.chdir(tmp_path / "nbs/bench")                                      # where benchmarks run
    assert not provenance("")["commit"].endswith("+")
    (tmp_path / "mc/file").write_text("two")
    assert provenance("")["commit"].endswith("+")


@pytest.mark.parametrize("what", ["absent", "no repository", "fails", "hangs", "folder"])
def test_without_git_the_commit_is_none(what, tmp_path, monkeypatch):
    from mc.evidence import records

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    if what != "no repository":
        monkeypatch.setenv("PATH", str(tmp_path))
    if what == "folder":
        (tmp_path / "git").mkdir()
    if what in ("fails", "hangs"):
        (tmp_path / "git").write_text("#!/bin/sh\n" + {"fails": "echo abc; exit 3", "hangs": "exec /bin/sleep 60"}[what])
        (tmp_path / "git").chmod(0o755)
        monkeypatch.setattr(records.subprocess, "run", lambda *a, run=subprocess.run, **k: run(*a, **k | {"timeout": min(k["timeout"], 1)}))
    assert provenance("a test")["commit"] == "none"


def test_interval_against_a_table():
    "t with 2 degrees of freedom at 97.5 % is 4.303."
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2 and high - mean == pytest.approx(4.303 / 3**0.5, abs=1e-3) and mean - low == pytest.approx(high - mean)


SHIPPED = [path for path in sorted((ROOT / "results").glob("*/cpu/models/*.safetensors")) if path.parents[2].name != "text"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parents[2].name}-{path.stem}")
def test_shipped_models_answer_what_their_record_says(path):
    "Each is that of a first seed, made by committed code, on the same texts; up to what 64 of them can differ from all."
    record = read_record(path.parents[1] / f"{path.stem}-seed0.json", Measured)
    run, found = Run.of(record), next(s for s in record["scores"] if s["task"] == record["settings"]["task"])
    assert path.stat().st_size < 1_000_000 and not record["commit"].endswith("+")
    batch = run.task.sample(found["sequences"], torch.Generator().manual_seed(run.test_seed))
    assert fingerprint(batch) == found["test_hash"]
    now = correct(LanguageModel.load(path), Batch(*(part[:64] for part in batch))).mean().item()
    assert now == pytest.approx(found["right"], abs=1e-3 + 4 * found["sd_over_sequences"] / 64**0.5)


def test_the_book_ships_models_of_recall():
    names = {f"{path.parents[2].name}/{path.stem}" for path in SHIPPED}
    assert {f"{name}/{variant}" for name in ("state_per_byte", "extrapolation") for variant in ("none", "wide", "grm", "ssc", "attention")} <= names
