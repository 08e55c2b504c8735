"""Benchmarks from the command line: kept, gone on with, validated, and ended with whoever asked for them."""
import json
import re
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
from typer.testing import CliRunner

from mc.evidence.first_runs import TEST_SEED, MQARRun, measure, measure_all
from mc.commands.base import main
from mc.evidence.records import interval, read_records
from mc.storage import load_json, load_tensors, save_json

pytestmark = pytest.mark.slow

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
    assert result.exit_code == 1 and "grm-seed0.json is not a complete JSON file" in result.output
    assert "Traceback" not in result.output
    assert {p.stem for p in folder.glob("*.json")} == {f"{variant}-seed0" for variant in VARIANTS}


@pytest.mark.parametrize("arguments, message", [
    (["bench", "mqra"], "NAME must be one of mqar"),
    (["bench", "mqar", "--profile", "gpu"], "--profile must be one of tiny, typo; got 'gpu'"),
    (["bench", "mqar", "--profile", "typo"], "has no parameter step"), (["bunch"], "No such command"),
])
def test_wrong_requests_end_with_a_sentence_and_code_2(arguments, message, tmp_path):
    result = mc(*arguments, *(["--notebooks", tiny(tmp_path)] if arguments[0] == "bench" else []))
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("source", sorted((ROOT / "nbs/bench").glob("*.md")), ids=lambda f: f.stem)
def test_a_results_page_answers_before_it_says_how(source):
    "Title, figure, answer from the records, what it does not say; parameters and this copy's run are below, under Reproduce."
    text = source.read_text()
    title, order = re.search(r"^# (.+)", text, re.M)[1], ["display(", "say(", "**What it does not say.**", "\n## Reproduce\n", "mc bench", ":tags: [parameters]"]
    places = [text.index(part, text.index("# " + title)) for part in order]
    assert title.endswith("?") and places == sorted(places) and "### This copy's run" in text


def test_one_failing_run_does_not_lose_the_others(tmp_path):
    broken = replace(RUN, seed=1, learning_rate=1e20)
    with pytest.raises(RuntimeError, match="1 of 3 runs failed(.|\n)*grm seed 1: .*(NaN|nan)"):
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
    from mc.evidence.records import provenance

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


@pytest.mark.parametrize("profile", ["cpu", "deep"])
def test_shipped_records_and_models_are_whole(profile):
    """The book's numbers: the first seeds of each variant, committed code, and models that still score what the record says,
    up to what 64 sequences can differ from all."""
    from mc.nn.model import LanguageModel
    from mc.tasks.mqar import Batch, correct, fingerprint

    folder = ROOT / "results/mqar" / profile
    asked = yaml.safe_load((ROOT / "nbs/bench/mqar.yaml").read_text())[profile]
    records = read_records(folder)
    seeds = {v: sorted(r["seed"] for r in records if r["variant"] == v) for v in asked["variants"]}
    assert sum(map(len, seeds.values())) == len(records) and {"none", "grm"} <= {v.split("-")[-1] for v in seeds if seeds[v]}
    assert all(found == asked["seeds"][: len(found)] for found in seeds.values())
    assert {r["command"] for r in records} == {f"mc bench mqar --profile {profile}"}
    assert not any(r["commit"].endswith("+") for r in records)
    for record in (r for r in records if r["seed"] == 0):
        path = folder / "models" / f"{record['variant']}.safetensors"
        assert path.stat().st_size < 1_000_000
        run = MQARRun(**record["settings"])
        batch = run.task.sample(run.test, torch.Generator().manual_seed(TEST_SEED))
        assert fingerprint(batch) == record["test_hash"]
        now = correct(LanguageModel.load(path), Batch(*(part[:64] for part in batch))).mean().item()
        assert now == pytest.approx(record["accuracy"], abs=1e-3 + 4 * record["sd_over_sequences"] / 64**0.5)


BAD = [("accuracy", float("nan")), ("accuracy", 1.7), ("accuracy", "high"), ("accuracy", True), ("accuracy", None), ("seed", 0.5), ("seed", "0"), ("seed", -1),
       ("variant", 3), ("variant", ""), ("parameters", 0), ("parameters", 1.5), ("seconds", -1), ("seconds", float("inf")), ("by_pairs", {"4": 2}),
       ("by_pairs", [1]), ("loss_every_20", [float("nan")]), ("loss_every_20", 3), ("test_hash", None), ("commit", 3), ("settings", []),
       ("settings", {"steps": 4})]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return measure(RUN, tmp_path_factory.mktemp("sound"), "a test")


@pytest.mark.parametrize("name, value", BAD)
def test_records_of_nonsense_are_refused_by_file_and_key(name, value, sound, tmp_path, monkeypatch):
    from mc.evidence import first_runs as bench, records

    for module in (bench, records):                                                # whatever a checksum says of an edited file
        monkeypatch.setattr(module, "load_json", lambda path: json.loads(Path(path).read_text()))
    save = lambda content: (tmp_path / "grm-seed0.json").write_text(json.dumps(content))
    save(sound)
    assert read_records(tmp_path) == [sound] == [measure(RUN, tmp_path, "a test")]
    save(sound | {name: value})
    for read in (read_records, lambda folder: measure(RUN, folder, "a test")):
        with pytest.raises(ValueError, match=f"grm-seed0.json (is not a complete record: it (needs|lacks) .*{name}|was recorded with other settings)") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_keys_of_records_are_those_of_the_schema(sound, tmp_path):
    for record, said in [(sound | {"acuracy": 1}, "has no acuracy; did you mean accuracy"), ({**sound, "seed": 1}, "another variant or seed"),
                         (sound | {"settings": sound["settings"] | {"steps": -5}}, "settings.steps to be an integer of at least 1; got -5"),
                         (sound | {"settings": sound["settings"] | {"stesp": 5}}, "no settings.stesp; did you mean steps")]:
        save_json(tmp_path / "grm-seed0.json", record)
        with pytest.raises(ValueError, match=f"grm-seed0.json is not a complete record: it .*{said}"):
            read_records(tmp_path)


@pytest.mark.parametrize("name, values", {
    "seed": (0.0, -1, "0", None, True, 10**7), "steps": (0, -5, 1.5, "4", None, True), "learning_rate": (0, -1, float("nan"), float("inf"), "fast", True),
    "batch": (0, 2.0), "pairs": (0, 3.5), "length": (0, None), "vocab_size": (0, "16"), "segment_size": (0, -4, 4.0), "test": (0, 1, 8.0), "variant": (None, 3),
}.items())
def test_no_run_is_made_from_nonsense(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^a run needs {name} to be .*; got ") as caught:
            replace(RUN, **{name: value})
        assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers(tmp_path):
    import numpy as np

    run = replace(RUN, seed=np.int64(0), steps=np.int32(4), pairs=np.uint8(4), learning_rate=np.float64(5e-3))
    assert run == RUN and type(run.seed) is int and measure(run, tmp_path, "a test") == read_records(tmp_path)[0]


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path):
    (tmp_path / "file").write_text("")
    sound = {"runs": [RUN], "folder": tmp_path / "out", "command": "a test", "jobs": 1}
    for name, values in {"runs": ([], None, RUN, "grm", [RUN, RUN], [RUN, replace(RUN, steps=5)], [3], {RUN: 1}), "jobs": (0, -1, 1.5, "2", None, True),
                         "folder": (tmp_path / "file", "", None, 3, "a\0b"), "command": ("", None, 3)}.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} "):
                measure_all(**sound | {name: value})
    for arguments in ((None, tmp_path, "a test"), (RUN, tmp_path / "file", "a test"), (RUN, tmp_path, "")):
        with pytest.raises(ValueError, match="^(run|folder|command) "):
            measure(*arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_finished_checkpoints_that_a_kill_left_are_removed(tmp_path):
    record = measure(RUN, tmp_path, "a test")
    for name in (".grm-seed0.checkpoint", ".none-seed0.checkpoint"):
        (tmp_path / name).write_bytes(b"left")
    assert measure_all([RUN], tmp_path, "a test") == [record]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".none-seed0.checkpoint", "grm-seed0.json"]    # the other run is not finished


def test_a_killed_worker_is_reported_as_such_and_records_are_kept(tmp_path):
    long = replace(RUN, seed=1, steps=100_000)
    kill = ("import os, psutil, sys, threading, time\nfrom pathlib import Path\nfrom dataclasses import replace\nfrom mc.evidence.first_runs import MQARRun, measure_all\n"
            "def kill():\n    while not Path(sys.argv[1], '.grm-seed1.checkpoint').exists(): time.sleep(.05)\n"
            "    [p.kill() for p in psutil.Process().children() if 'spawn_main' in ' '.join(p.cmdline())]\n"
            f"if __name__ == '__main__':\n    threading.Thread(target=kill).start()\n    measure_all([{RUN!r}, {long!r}], sys.argv[1], 'a test')\n")
    (tmp_path / "job.py").write_text(kill)
    job = subprocess.run([sys.executable, tmp_path / "job.py", tmp_path / "out"], capture_output=True, text=True)
    assert "1 of 2 runs failed" in job.stderr and "grm seed 1: its worker process was killed" in job.stderr
    assert [r["seed"] for r in read_records(tmp_path / "out")] == [0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(number, tmp_path):
    import psutil

    code = (f"from mc.evidence.first_runs import *\nif __name__ == '__main__':\n"
            f"    measure_all([replace({replace(RUN, steps=100_000)!r}, seed=s) for s in (1, 2)], {str(tmp_path / 'out')!r}, 'a test', jobs=2)\n")
    (tmp_path / "job.py").write_text("from dataclasses import replace\n" + code.replace("import *", "import MQARRun, measure_all"))
    job = subprocess.Popen([sys.executable, tmp_path / "job.py"], stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
                           if number != signal.SIGKILL else None)
    kept = [tmp_path / f"out/.grm-seed{s}.checkpoint" for s in (1, 2)]
    while not all(path.exists() for path in kept):
        assert job.poll() is None
        time.sleep(0.1)
    workers = psutil.Process(job.pid).children(recursive=True)
    job.send_signal(number)
    assert job.wait(10) == -number and len(workers) >= 2 and not psutil.wait_procs(workers, timeout=10)[1]
    assert all(len(load_tensors(path)[0]["losses"]) % 50 == 0 for path in kept)


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
    assert records.provenance("a test")["commit"] == "none"
