"""Sweeps: what is skipped, what waits, what fails, what is left behind; and the options of mc bench that set them."""
import gc
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml
from typer.testing import CliRunner

from mc.commands.base import main
from mc.evidence import clusters, sweeps, weights
from mc.evidence.clusters import Here, local
from mc.evidence.dry_runs import dry, dry_table
from mc.evidence.experiments import Experiment
from mc.evidence.measured import measure
from mc.evidence.record_schema import Training
from mc.evidence.sweeps import Step, carry_out, measure_all, search_all
from mc.evidence.variants import VARIANTS, Sizes, made
from mc.storage import load_json, save_json
from mc.tasks.needles import Needles

ROOT = Path(__file__).resolve().parents[1]
TASK = Needles(16, 16, 2)
TINY = Experiment(TASK, (TASK,), (0.003, 0.01), steps=4, batch=2, search_steps=2, sizes=Sizes(1, 16, 2, 4), sequences=4)
RUN = TINY.run("ssc", 0, 0.01)


def sweep(runs, tmp_path, **options):
    return measure_all(runs, tmp_path / "tiny/smoke", "a test", **{"jobs": 1} | options)


def test_finished_runs_are_read_before_anything_starts(tmp_path, monkeypatch):
    done = sweep([RUN], tmp_path)
    called = []
    monkeypatch.setattr(sweeps, "measure", lambda run, *rest: called.append(run.name) or measure(run, *rest))
    both = sweep([TINY.run("none", 0, 0.01), RUN], tmp_path)
    assert called == ["none-seed0"] and both[1] == done[0] and [r["variant"] for r in both] == ["none", "ssc"]
    monkeypatch.setattr(sweeps, "cluster", None)                                   # nothing is started where nothing is to be done
    assert sweep([RUN, TINY.run("none", 0, 0.01)], tmp_path) == both[::-1]
    with pytest.raises(ValueError, match="ssc-seed0.json was recorded with other settings"):
        sweep([TINY.run("grm", 0, 0.01), replace(RUN, sequences=5)], tmp_path)
    assert called == ["none-seed0"]


def test_checkpoints_of_finished_runs_that_a_kill_left_are_removed(tmp_path):
    record, folder = sweep([RUN], tmp_path), tmp_path / "tiny/smoke"
    for name in (".ssc-seed0.checkpoint", ".none-seed0.checkpoint"):
        (folder / name).write_bytes(b"left")
    assert sweep([RUN], tmp_path) == record
    assert sorted(p.name for p in folder.iterdir()) == [".none-seed0.checkpoint", "ssc-seed0.json", "weights"]    # the other run is not finished
    (folder / "weights/ssc-seed0.safetensors").unlink()
    (folder / ".ssc-seed0.checkpoint").write_bytes(b"of weights that are made again")
    assert sweep([RUN], tmp_path) == record and (folder / ".ssc-seed0.checkpoint").exists()


def test_a_run_waits_for_the_run_that_it_starts_from(tmp_path):
    on = replace(TINY, curriculum=False).run("ssc-on", 0, 0.01, start="tiny/ssc-seed0", of="ssc")
    reading = TINY.reading("ssc-on-random", 0, "tiny/ssc-on-seed0", "ssc", "random")
    records = sweep([reading, on, RUN], tmp_path)
    assert [r["variant"] for r in records] == ["ssc-on-random", "ssc-on", "ssc"] and records[0]["time"] >= records[1]["time"] >= records[2]["time"]


def test_a_failed_run_is_told_at_the_end_with_what_starts_from_it(tmp_path):
    broken = TINY.run("grm", 0, 1e20)
    reading = TINY.reading("grm-oracle", 0, "tiny/grm-seed0", "grm", "oracle")
    never = TINY.reading("x", 0, "other/ssc-seed0", "ssc")
    with pytest.raises(RuntimeError) as caught:
        sweep([reading, broken, never, RUN], tmp_path)
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("3 of 4 runs failed; the others are recorded in ") and (tmp_path / "tiny/smoke/ssc-seed0.json").exists()
    assert sorted(line.split(": ")[0] for line in rest) == ["tiny/grm-oracle-seed0", "tiny/grm-seed0", "tiny/x-seed0"]
    assert "tiny/grm-oracle-seed0: tiny/grm-seed0, from which it starts, failed" in rest and any("FloatingPointError" in line for line in rest)
    assert any("mc bench other --profile smoke" in line for line in rest)


def test_runs_that_start_from_each_other_are_told(tmp_path):
    one, two = (TINY.reading(a, 0, f"tiny/{b}-seed0", "ssc") for a, b in ("ab", "ba"))
    with pytest.raises(RuntimeError, match="2 of 3 runs failed(.|\n)*tiny/a-seed0: it starts from tiny/b-seed0, which starts from it"):
        sweep([one, two, RUN], tmp_path)


def test_lost_weights_are_made_once_for_all_that_need_them(tmp_path, monkeypatch, capsys):
    sweep([RUN, TINY.run("on", 0, 0.01, start="tiny/ssc-seed0", of="ssc")], tmp_path)
    for file in (tmp_path / "tiny/smoke/weights").iterdir():
        file.unlink()
    record = load_json(tmp_path / "tiny/smoke/on-seed0.json")
    record["scores"][0] |= {"right": abs(record["scores"][0]["right"] - 0.5), "routing": None}
    save_json(tmp_path / "tiny/smoke/on-seed0.json", record)
    trained, original = [], weights.trained
    monkeypatch.setattr(weights, "trained", lambda run, *rest: trained.append(run.name) or original(run, *rest))
    readings = [TINY.reading(router, 0, "tiny/on-seed0", "ssc", router) for router in ("random", "oracle")]
    sweep([*readings, TINY.reading("first", 0, "tiny/ssc-seed0", "ssc", "fading")], tmp_path)
    assert trained == ["ssc-seed0", "on-seed0"]
    said = capsys.readouterr().err
    assert "the weights of tiny/on-seed0 were lost and made again on the same machine: they answer" in said and "tiny/ssc-seed0 were" not in said


def test_a_search_gives_each_variant_a_rate_of_its_own_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "best_rate", lambda records: max(r["settings"]["training"]["learning_rate"] for r in records) + len(records))
    folder = tmp_path / "tiny/smoke"
    assert search_all(TINY, {"none": {}, "pooled": dict(of="grm", pool_blocks=2)}, folder, "a test", jobs=1) == {"none": 2.01, "pooled": 2.01}
    assert sorted(p.stem for p in (folder / "search").glob("*.json")) == [f"{v}-rate{r}-seed1000" for v in ("none", "pooled") for r in (0.003, 0.01)]
    assert load_json(folder / "search/pooled-rate0.01-seed1000.json")["settings"]["model"]["mixer"]["pool_blocks"] == 2
    assert search_all(replace(TINY, rates=(0.5,)), ["none"], tmp_path / "unused", "a test") == {"none": 0.5} and not (tmp_path / "unused").exists()


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path):
    (tmp_path / "file").write_text("")
    sound = {"runs": [RUN], "folder": tmp_path / "out", "command": "a test", "jobs": 1}
    for name, values in {"runs": ([], None, RUN, "ssc", [RUN, RUN], [RUN, replace(RUN, sequences=5)], [3], {RUN: 1}), "jobs": (0, -1, 1.5, "2", None, True),
                         "folder": (tmp_path / "file", "", None, 3, "a\0b"), "command": ("", None, 3)}.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name} ") as caught:
                measure_all(**sound | {name: value})
            assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_no_scheduler_is_a_sentence(tmp_path, monkeypatch):
    from distributed import Client

    monkeypatch.setattr(clusters, "PATIENCE", 0.5)
    for address in ("tcp://127.0.0.1:9", "nowhere", "udp://x:1"):
        with pytest.raises(ValueError, match="^scheduler must be the address of a running Dask scheduler; got "):
            sweep([RUN], tmp_path, scheduler=address)
        assert not [one for one in gc.get_objects() if type(one) is Client]         # its end, during the start of another, is a deadlock
    assert not list(tmp_path.rglob("*.json"))


def test_a_running_scheduler_measures(tmp_path, monkeypatch):
    from distributed import LocalCluster

    options = dict(processes=False, protocol="tcp://", dashboard_address="127.0.0.1:0", local_directory=str(tmp_path / "dask"))
    monkeypatch.chdir(tmp_path)
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        records = measure_all([RUN, TINY.run("none", 0, 0.01)], "tiny/smoke", "a test", scheduler=cluster.scheduler_address)
        assert [r["variant"] for r in records] == ["ssc", "none"] and load_json("tiny/smoke/ssc-seed0.json") == records[0]
        assert cluster.scheduler.workers                                           # it is not ours to end
    with LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster:
        with pytest.raises(ValueError, match="must have one thread each: dask worker tcp"):
            sweep([replace(RUN, seed=5)], tmp_path, scheduler=cluster.scheduler_address)


@pytest.mark.slow
def test_a_lost_worker_is_tried_once_more_and_then_told(tmp_path, capsys):
    "One step always ends its process, another does so the first time; a third one fails by itself; the others are done."
    count = f"open({str(tmp_path / 'tries')!r}, 'a').write(NAME)"
    die = f"({count}, __import__('os')._exit(9))"
    once = f"__import__('os')._exit(9) if {count} and open({str(tmp_path / 'tries')!r}).read().count(NAME) == 1 else 7"
    steps = {"b/die": Step(eval, (die.replace("NAME", "'d'"),), None), "b/once": Step(eval, (once.replace("NAME", "'o'"),), None),
             "b/wrong": Step(int, ("x",), None), "b/after": Step(int, ("1",), "b/die"), **{f"b/{n}": Step(int, (str(n),), None) for n in range(4)}}
    done = {}
    with local(2, tmp_path) as client:
        failed = carry_out(steps, client, 2, done.__setitem__)
    assert done == {"b/once": 7, **{f"b/{n}": n for n in range(4)}}
    assert failed == {"b/die": sweeps.KILLED, "b/after": "b/die, from which it starts, failed", "b/wrong": failed["b/wrong"]}
    assert failed["b/wrong"].startswith("ValueError: invalid literal")
    assert sorted((tmp_path / "tries").read_text()) == ["d", "d", "o", "o"]
    assert "b/once: its worker process was killed; it is tried once more" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_measure_what_this_one_does(tmp_path):
    runs = [TINY.reading("ssc-random", 0, "tiny/ssc-seed0", "ssc", "random"), RUN, TINY.run("none", 0, 0.01)]
    here, there = sweep(runs, tmp_path / "here"), sweep(runs, tmp_path / "there", jobs=2)
    timeless = lambda r: [r["settings"], r.get("loss_every_20"), r["start_sha256"], [s["right"] for s in r["scores"]], r["device"]]
    assert list(map(timeless, here)) == list(map(timeless, there))


JOB = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    from mc.evidence.clusters import local
    from mc.evidence.sweeps import Step, carry_out
    folder = Path(sys.argv[1])
    write = "[f := open({!r}, 'xb'), __import__('fcntl').flock(f, 2), __import__('time').sleep(3600)]"
    with local(2, folder) as client:
        steps = {f"b/{n}": Step(eval, (write.format(str(folder / f".mc-{n}.part")),), None) for n in range(2)}
        carry_out(steps, client, 2, print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_sweep_that_was_ended(number, tmp_path):
    "No process, no scratch folder, no half-written file, however it ended."
    import psutil

    for name in ("out", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "job.py").write_text(JOB)
    reset = (lambda: signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)) if number != signal.SIGKILL else None
    job = subprocess.Popen([sys.executable, tmp_path / "job.py", tmp_path / "out"], stderr=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
                           preexec_fn=reset)
    while len(list((tmp_path / "out").iterdir())) < 2:
        assert job.poll() is None
        time.sleep(0.1)
    family = psutil.Process(job.pid).children(recursive=True)
    assert len(family) >= 3 and any((tmp_path / "tmp").iterdir())                  # two workers, and who tidies up
    job.send_signal(number)
    assert job.wait(30) != 0 and not psutil.wait_procs(family, timeout=30)[1]
    assert not list((tmp_path / "out").iterdir()) and not list((tmp_path / "tmp").iterdir())


# ---- mc bench

PARAMETERS = """
from mc.evidence.schema import Count, Names, Seeds
profile: str = "smoke"
out: str = "out"
variants: Names = ["none"]
seeds: Seeds = [0]
width: Count = 16
rates: list = [0.003, 0.01]
jobs: Count = 1
scheduler: str = ""
"""
DECLARED = """
from mc.evidence.experiments import Experiment
from mc.evidence.variants import Sizes
from mc.tasks.needles import Needles
task = Needles(16, 16, 2)
experiment = Experiment(task, (task,), tuple(rates), 4, 2, 2, Sizes(1, width, 2, 4), sequences=4)
def runs(rates):
    return [experiment.run(v, seed, rates[v]) for seed in seeds for v in variants]
"""
MEASURED = """
from mc.evidence.sweeps import measure_all, search_all
command = f"mc bench mine --profile {profile}"
best = search_all(experiment, variants, out, command, jobs, scheduler)
records = measure_all(runs(best), out, command, jobs, scheduler)
"""


def cell(source, *tags):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


def benchmark(folder, parameters=PARAMETERS, declared=DECLARED, **values):
    "A benchmark of seconds in `folder`."
    notebook = nbformat.v4.new_notebook(cells=[cell(parameters, "parameters"), *([cell(declared, "runs")] if declared else []), cell(MEASURED)])
    nbformat.write(notebook, folder / "mine.ipynb")
    profile = {"variants": ["none", "ssc"], "seeds": [0], "width": 16, "rates": [0.003, 0.01], "jobs": 1} | values
    kept = {name: value for name, value in profile.items() if f"{name}:" in parameters}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"smoke": kept}))
    return ["bench", "mine", "--notebooks", str(folder), "--out", str(folder / "results")]


def mc(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.slow
def test_seeds_and_jobs_of_the_command_line_stand_in_for_the_profile(tmp_path):
    place = benchmark(tmp_path)
    result = mc(*place, "--seeds", "0-1,3", "--jobs", "1")
    assert result.exit_code == 0, result.output
    names = sorted(p.stem for p in (tmp_path / "results/mine/smoke").glob("*.json"))
    assert names == [f"{v}-seed{s}" for v in ("none", "ssc") for s in (0, 1, 3)]
    assert {load_json(p)["command"] for p in (tmp_path / "results").rglob("*.json")} == {"mc bench mine --profile smoke"}


@pytest.mark.parametrize("arguments, message", [
    (["--seeds", "4-0"], "--seeds must list numbers and ranges, as 0,2 or 0-4; got '4-0'"), (["--seeds", "a"], "--seeds must list"), (["--seeds", ""], "--seeds must list"),
    (["--seeds", "0,0"], "seeds must be a list of one or more different integers"), (["--jobs", "0"], "jobs"), (["--jobs", "two"], "jobs"), (["--scheduler"], "scheduler"),
])
def test_wrong_options_end_with_a_line_and_code_2(arguments, message, tmp_path):
    result = mc(*benchmark(tmp_path), *arguments)
    assert result.exit_code == 2 and message in result.output and result.output.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("option, value", [("seeds", "0-2"), ("jobs", "2"), ("scheduler", "tcp://127.0.0.1:8786")])
def test_options_that_a_notebook_does_not_ask_for_are_refused(option, value, tmp_path):
    without = "\n".join(line for line in PARAMETERS.splitlines() if not line.startswith(option))
    result = mc(*benchmark(tmp_path, without), f"--{option}", value)
    assert result.exit_code == 2 and f"--{option} cannot be given: " in result.output and f"has no parameter {option}" in result.output
    assert result.output.count("\n") == 1 and not (tmp_path / "results").exists()


def test_a_dry_run_shows_every_run_and_writes_nothing(tmp_path):
    place, before = benchmark(tmp_path), os.getcwd()
    result = mc(*place, "--dry-run", "--seeds", "0-4")
    assert result.exit_code == 0, result.output
    rows = {line.split("  ")[0].strip(): line.split()[-4:] for line in result.output.splitlines()}
    assert rows["none"][0] == "5" and rows["ssc (search)"][0] == "2" and rows["none"][2:] == [f"{5 * 4 * 2 * 16}", f"{5 * 4 * 16}"]
    assert rows["ssc"][1] == f"{sum(p.numel() for p in made(TINY.run('ssc', 0, 1).model, 0).parameters()):,}"
    assert not (tmp_path / "results").exists() and os.getcwd() == before


@pytest.mark.parametrize("change, message", [
    (dict(width=33), "d_model must be a multiple of num_heads; got 33 and 2"), (dict(variants=["nine"]), "variant must be"),
    (dict(declared=None), "has no cell with the tag runs"), (dict(declared="experiment = 1 / 0"), "ZeroDivisionError"), (dict(declared="pass"), "'experiment' is not defined"),
    (dict(declared=DECLARED + "runs = lambda rates: []"), "the profile has no runs"),
    (dict(declared=DECLARED + "runs = lambda rates: [experiment.run('ssc', 0, 1.0)] * 2"), "two runs are called ssc-seed0"),
])
def test_a_dry_run_says_what_is_wrong_in_a_line(change, message, tmp_path):
    result = mc(*benchmark(tmp_path, **change), "--dry-run")
    assert result.exit_code == 2 and message in result.output, result.output
    assert len([line for line in result.output.splitlines() if line.startswith("Error")]) == 1 and "Traceback" not in result.output


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_takes_a_dry_step(variant):
    experiment = replace(TINY, sizes=Sizes(1, 32, 4, 16), tests=(Needles(16, 200, 2),))
    run = experiment.run(variant, 0, 0.01)
    assert dry(run) == sum(p.numel() for p in made(run.model, 0).parameters())


def test_a_dry_run_of_what_no_machine_could_hold_takes_no_memory():
    task = Needles(2**15, 2**13, 64)
    huge = replace(TINY, task=task, tests=(task,), sizes=Sizes(2, 2**14, 16, 2**12))
    huge = replace(huge.run("grm", 0, 0.01), training=Training(steps=1000, batch=512, learning_rate=0.01))
    table = dry_table([], [huge])
    assert json.dumps(table).count("grm") == 1 and f"{1000 * 512 * 2**13:,}" in table


def test_a_step_here_is_done_when_it_is_submitted():
    done = {}
    assert carry_out({"b/a": Step(int, ("3",), "b/b"), "b/b": Step(int, ("4",), None), "b/c": Step(int, ("x",), None)}, Here(), 1, done.__setitem__) == {
        "b/c": "ValueError: invalid literal for int() with base 10: 'x'"}
    assert list(done.items()) == [("b/b", 4), ("b/a", 3)]
