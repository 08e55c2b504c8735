"""Benchmarks from the command line: kept, gone on with, validated, and ended with whoever asked for them."""
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from click.testing import CliRunner

from mc.bench import TEST_SEED, MQARRun, NeedleRun, measure, measure_all
from mc.cli import main
from mc.records import interval, read_records
from mc.storage import load_json, load_tensors, save_json

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ["attention", "grm", "titans-soup"]
RUN = MQARRun("grm", 0, vocab_size=16, length=16, pairs=4, segment_size=4, steps=4, batch=2, test=8)


def mc(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def tiny(folder):
    "A copy of the MQAR benchmark with a profile of four steps, in a checkout of its own."
    place = folder / "nbs/bench"
    place.mkdir(parents=True)
    (place / "mqar.ipynb").write_bytes((ROOT / "nbs/bench/mqar.ipynb").read_bytes())
    small = dict(variants=VARIANTS, seeds=[0], vocab_size=16, length=16, pairs=4, segment_size=4, steps=4, batch=2, learning_rate=5e-3, test=8,
                 jobs=1)
    (place / "mqar.yaml").write_text(yaml.safe_dump({"tiny": small, "typo": small | {"step": 3}}))
    return place


def test_a_benchmark_leaves_records_models_and_its_notebook(tmp_path):
    place = tiny(tmp_path)
    arguments = ["bench", "mqar", "--profile", "tiny", "--out", tmp_path / "results", "--notebooks", place]
    result = mc(*arguments)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "results/mqar/tiny"
    records = read_records(folder)
    assert [r["variant"] for r in records] == VARIANTS
    assert all(r["command"] == "mc bench mqar --profile tiny" and r["commit"] for r in records)
    assert sorted(p.stem for p in (folder / "models").iterdir()) == VARIANTS
    kept = nbformat.read(f"{folder}.ipynb", 4)
    assert "papermill" not in kept.metadata and str(tmp_path) not in json.dumps(kept)
    assert all(cell.execution_count for cell in kept.cells if cell.cell_type == "code")

    times = {p: p.stat().st_mtime_ns for p in folder.glob("*.json")}
    assert mc(*arguments).exit_code == 0                                           # everything is there: nothing runs again
    assert times == {p: p.stat().st_mtime_ns for p in folder.glob("*.json")}


def test_a_record_cut_in_half_is_named(tmp_path):
    place = tiny(tmp_path)
    folder = tmp_path / "results/mqar/tiny"
    measure(RUN, folder, "a test")
    path = folder / "grm-seed0.json"
    path.write_text(path.read_text()[:40])
    result = mc("bench", "mqar", "--profile", "tiny", "--out", tmp_path / "results", "--notebooks", place)
    assert result.exit_code == 2 and "grm-seed0.json is not a complete JSON file" in result.output
    assert "Traceback" not in result.output
    assert {p.stem for p in folder.glob("*.json")} == {f"{variant}-seed0" for variant in VARIANTS}


@pytest.mark.parametrize("arguments, message", [
    (["bench"], "Missing argument"), (["bench", "mqra"], "NAME must be one of mqar"),
    (["bench", "mqar", "--profile", "gpu"], "--profile must be one of tiny, typo; got 'gpu'"),
    (["bench", "mqar", "--profile", "typo"], "has no parameter step"), (["bunch"], "No such command"),
])
def test_wrong_requests_end_with_a_sentence_and_code_2(arguments, message, tmp_path):
    result = mc(*arguments, *(["--notebooks", tiny(tmp_path)] if arguments[0] == "bench" else []))
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def test_needles_are_scored_at_every_length(tmp_path):
    run = NeedleRun("ssc", 0, vocab_size=16, length=16, pairs=4, segment_size=4, steps=4, batch=2, test=8, lengths=(16, 40))
    record = measure(run, tmp_path, "a test")
    assert list(record["by_length"]) == ["16", "40"] and record["accuracy"] == record["by_length"]["16"]
    assert measure(run, tmp_path, "a test") == record == load_json(tmp_path / "ssc-seed0.json")
    with pytest.raises(ValueError, match="recorded with other settings"):
        measure(replace(run, lengths=(16,)), tmp_path, "a test")
    with pytest.raises(ValueError, match="lengths must contain length"):
        replace(run, lengths=(40,))


def test_one_failing_run_does_not_lose_the_others(tmp_path):
    broken = replace(RUN, seed=1, learning_rate=1e20)
    with pytest.raises(RuntimeError, match="1 of 3 runs failed(.|\n)*grm seed 1: ValueError: x contains NaN"):
        measure_all([broken, RUN, replace(RUN, variant="none")], tmp_path, "a test", jobs=1)
    assert [r["variant"] for r in read_records(tmp_path)] == ["grm", "none"]


def test_an_interrupted_run_goes_on_to_the_same_record(tmp_path):
    from mc.train import TrainConfig, train

    whole = measure(RUN, tmp_path / "whole", "a test")
    config = TrainConfig(RUN.steps, RUN.learning_rate, warmup=RUN.steps // 8, seed=0)
    from mc.tasks.mqar import curriculum

    def batch(step, generator):
        task, size = curriculum(RUN.task, RUN.batch, step, RUN.steps)
        return task.sample(size, generator)[:2]

    train(RUN.model(), batch, config, checkpoint=tmp_path / "cut/.grm-seed0.checkpoint", stop=2, progress=False)
    again = measure(RUN, tmp_path / "cut", "a test")
    assert again["resumed_at"] == 2 and whole["resumed_at"] == 0
    unstable = {"seconds", "cpu_seconds", "time", "resumed_at"}
    assert {k: v for k, v in again.items() if k not in unstable} == {k: v for k, v in whole.items() if k not in unstable}


def test_an_interrupted_benchmark_says_how_to_go_on(tmp_path):
    place = tiny(tmp_path)
    profile = yaml.safe_load((place / "mqar.yaml").read_text())["tiny"] | {"steps": 20_000}
    (place / "mqar.yaml").write_text(yaml.safe_dump({"long": profile}))
    command = [Path(sys.executable).parent / "mc", "bench", "mqar", "--profile", "long", "--out", tmp_path / "results"]
    job = subprocess.Popen([*command, "--notebooks", place], stderr=subprocess.PIPE, text=True, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    checkpoint = tmp_path / "results/mqar/long/.attention-seed0.checkpoint"
    while not checkpoint.exists():
        assert job.poll() is None
        time.sleep(0.1)
    job.send_signal(signal.SIGINT)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 130 and "run it again" in said and "Traceback" not in said
    assert len(load_tensors(checkpoint)[0]["losses"]) % 50 == 0


def test_a_record_made_with_other_settings_is_refused(tmp_path):
    measure(RUN, tmp_path, "a test")
    with pytest.raises(ValueError, match="recorded with other settings"):
        measure(replace(RUN, steps=5), tmp_path, "a test")


def test_incomplete_records_are_named(tmp_path):
    save_json(tmp_path / "grm-seed0.json", {"variant": "grm"})
    with pytest.raises(ValueError, match="grm-seed0.json is not a complete record: it lacks seed, accuracy"):
        read_records(tmp_path)
    (tmp_path / "grm-seed0.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, found a list"):
        load_json(tmp_path / "grm-seed0.json")


def test_a_record_says_when_the_code_was_not_committed(tmp_path, monkeypatch):
    from mc.records import provenance

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


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="variant must be one of attention, none, wide, residual, grm, .*; got 'rnn'"):
        MQARRun("rnn", 0)


def test_interval_against_a_table():
    "t with 2 degrees of freedom at 97.5 % is 4.303."
    mean, low, high = interval([1.0, 2.0, 3.0])
    assert mean == 2 and high - mean == pytest.approx(4.303 / 3**0.5, abs=1e-3) and mean - low == pytest.approx(high - mean)


@pytest.mark.parametrize("name, profile, kind", [("mqar", "cpu", MQARRun), ("mqar", "deep", MQARRun), ("needles", "cpu", NeedleRun)])
def test_shipped_records_and_models_are_whole(name, profile, kind):
    "The book's numbers: the first seeds of each variant, committed code, and models that still score what the record says."
    from mc.model import LanguageModel
    from mc.tasks.mqar import correct, fingerprint

    folder = ROOT / "results" / name / profile
    asked = yaml.safe_load((ROOT / f"nbs/bench/{name}.yaml").read_text())[profile]
    records = read_records(folder)
    seeds = {v: sorted(r["seed"] for r in records if r["variant"] == v) for v in asked["variants"]}
    assert sum(map(len, seeds.values())) == len(records) and {"none", "grm"} <= {v.split("-")[-1] for v in seeds if seeds[v]}
    assert all(found == asked["seeds"][: len(found)] for found in seeds.values())
    assert {r["command"] for r in records} == {f"mc bench {name} --profile {profile}"}
    assert not any(r["commit"].endswith("+") for r in records)
    for record in (r for r in records if r["seed"] == 0):
        path = folder / "models" / f"{record['variant']}.safetensors"
        assert path.stat().st_size < 1_000_000
        run = kind(**record["settings"])
        batch = run.task.sample(run.test, torch.Generator().manual_seed(TEST_SEED))
        assert fingerprint(batch) == record["test_hash"]
        now = correct(LanguageModel.load(path), batch).mean().item()
        assert now == pytest.approx(record["accuracy"], abs=1e-3)
