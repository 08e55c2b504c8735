"""Runs and their records: what decides them, what they find, what becomes of damage, interruption and lost weights."""
import json
import warnings
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch

from mc.evidence import measured, records, weights
from mc.evidence.experiments import Experiment, best_rate
from mc.evidence.measured import measure
from mc.evidence.readings import ROUTERS
from mc.evidence.record_schema import Measured, Training
from mc.evidence.records import read_records
from mc.evidence.runs import Run
from mc.evidence.variants import Sizes, made, model_of
from mc.evidence.weights import lost, remade, weights_beside
from mc.nn.model import LanguageModel
from mc.storage import load_json, save_json
from mc.tasks.mqar import MQAR
from mc.tasks.needles import Needles

TASK, FAR = Needles(16, 16, 2), Needles(16, 40, 2)
SIZES = Sizes(2, 16, 2, 4)
TINY = Experiment(TASK, (TASK, FAR), (0.003, 0.01), steps=4, batch=2, search_steps=2, sizes=SIZES, sequences=8)
RUN = TINY.run("ssc", 0, 0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder with the records and weights of several variants."
    folder = tmp_path_factory.mktemp("results") / "tiny/smoke"
    return folder, {v: measure(TINY.run(v, 0, 0.01), folder, "a test") for v in ("ssc", "none", "attention", "swla-ssc", "residual")}


def parts_make(found):
    "The score that the parts of `found` make."
    r = found["routing"]
    return r["looked_at"] * (r["right_if_looked_at"] or 0) + (1 - r["looked_at"]) * (r["right_if_not"] or 0)


@pytest.mark.parametrize("of", ["grm", "ssc", "checkpoint", "fenwick", "swla-ssc", "dla-soup-64"])
@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_reads_every_variant_and_its_parts_make_the_score(router, of, trained, tmp_path):
    folder, _ = trained
    start = "swla-ssc" if of.startswith("swla") else "none"
    if of.startswith("dla"):
        measure(TINY.run(of, 0, 0.01), folder, "a test")
        start = of
    changes = dict(segment_size=4) if of.endswith("64") else {}
    if router == "signed":
        changes["gate"] = "shared"
    name = f"{of}-{router}"
    record = measure(TINY.reading(name, 0, f"tiny/{start}-seed0", of, router, **changes), folder, "a test")
    assert [s["task"]["length"] for s in record["scores"]] == [16, 40] and "train_seconds" not in record
    for found in record["scores"]:
        routing = found["routing"]
        assert abs(parts_make(found) - found["right"]) < 2e-5 and len(routing["hit"]) == 2
        assert (routing["looked_at"] == 1) >= (router == "oracle")
        assert (routing["signs"] is not None) == (router == "signed")
        assert router != "signed" or {s for layer in routing["signs"] for s in layer} <= {1, -1}


def test_the_learned_router_finds_what_the_training_found(trained):
    folder, records = trained
    again = measure(TINY.reading("ssc-again", 0, "tiny/ssc-seed0", "ssc"), folder, "a test")
    same = lambda record: [{k: v for k, v in s.items() if k != "seconds"} for s in record["scores"]]
    assert same(again) == same(records["ssc"])
    assert all("routing" not in s for v in ("none", "attention", "residual") for s in records[v]["scores"])
    assert records["ssc"]["scores"][1]["state_bytes"] > records["none"]["scores"][1]["state_bytes"] == records["none"]["scores"][0]["state_bytes"]


def test_random_choices_are_the_same_each_time_and_hit_less_often(trained):
    folder, _ = trained
    task = Needles(16, 128, 2)
    many = replace(TINY, tests=(task,), sequences=64)
    one, other, best = (measure(many.reading(f"ssc-{name}", 0, "tiny/ssc-seed0", "ssc", router, top_k=1), folder, "a test")["scores"][0]
                        for name, router in (("a", "random"), ("b", "random"), ("c", "oracle")))
    assert one["routing"] == other["routing"] and one["routing"]["looked_at"] < 0.6 < best["routing"]["looked_at"] == 1


@pytest.mark.parametrize("make", [
    lambda: RUN, lambda: TINY.run("attention", 3, 0.01), lambda: TINY.reading("x", 0, "tiny/ssc-seed0", "dla-soup-64", "fading"),
    lambda: replace(RUN, task=MQAR(16, 16, 4), tests=(), training=Training(steps=1, batch=1, learning_rate=1, curriculum=False)),
    lambda: TINY.run("grm", 0, 0.01, of="grm", pool_blocks=2), lambda: TINY.search("ssc")[1],
])
def test_a_run_is_what_its_record_says(make):
    run = make()
    again = Run.of(json.loads(json.dumps({"variant": run.variant, "seed": run.seed, "settings": run.settings})))
    assert again.settings == run.settings and again == replace(run, tests=run.tests or run.task.tests)


@pytest.mark.parametrize("name, values", {
    "variant": ("", None, 3, "a/b", ".hidden", "a\0"), "seed": (-1, 0.5, "0", None, True, 10**7), "model": (None, {}, "ssc"),
    "training": ({"steps": 4}, "no", 3), "task": (None, "needles", {}), "tests": (TASK, "all", (None,), (TASK, MQAR(32, 16, 2))),
    "sequences": (0, 1, -5, 2.0, None), "test_tokens": (0, -1, "many"), "test_seed": (-1, None),
    "start": ("ssc-seed0", "a/b/c", "/ssc-seed0", "needles/", "../x/y", "", 3), "router": ("oracel", None, 3, "oracle"),
}.items())
def test_no_run_is_made_from_nonsense(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} ?(must|of)?") as caught:
            replace(RUN, **{name: value})
        assert "\n" not in str(caught.value) and str(caught.value).startswith(name), value
    with pytest.raises(ValueError, match="^training must be given, or start"):
        replace(RUN, training=None)
    with pytest.raises(ValueError, match="^task must have the vocab_size of the model, 16; got 32"):
        replace(RUN, task=Needles(32, 16, 2))


@pytest.mark.parametrize("name, values", {
    "steps": (0, -5, 1.5, "4", None, True), "batch": (0, 2.0), "learning_rate": (0, -1, nan, inf, "fast", True), "curriculum": ("yes", None, 1),
}.items())
def test_no_training_is_made_from_nonsense(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^Training needs {name} to be .*; got "):
            Training(**dict(steps=4, batch=2, learning_rate=0.01) | {name: value})


def test_numbers_of_numpy_are_numbers(trained, tmp_path):
    training = Training(steps=np.int32(4), batch=np.uint8(2), learning_rate=np.float64(0.01))
    run = replace(RUN, seed=np.int64(0), sequences=np.int16(8), training=training)
    assert run == RUN and type(run.seed) is type(run.training.steps) is int
    same = lambda r: [r["settings"], r["loss_every_20"], [s["right"] for s in r["scores"]]]
    assert same(measure(run, tmp_path, "a test")) == same(trained[1]["ssc"]) == same(read_records(tmp_path, Measured)[0])


def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path):
    (tmp_path / "file").write_text("")
    for arguments in ((None, tmp_path, "a test"), (RUN, tmp_path / "file", "a test"), (RUN, "", "a test"), (RUN, tmp_path, ""), (RUN, tmp_path, None)):
        with pytest.raises(ValueError, match="^(run|folder|command) "):
            measure(*arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name, values", {
    "task": (None, "needles"), "tests": (TASK, None, (3,), (Needles(32, 16, 2),)), "rates": ((), (0.01, 0.01), (0,), ("fast",), 0.01, (-1.0,)),
    "steps": (0, -4, 1.5), "batch": (0, "2"), "search_steps": (0, None), "sizes": (None, (2, 16)), "sequences": (1, -1), "test_tokens": (0,),
    "search_length": (0, 8), "search_tokens": (0,),
}.items())
def test_no_experiment_is_made_from_nonsense(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} ") as caught:
            replace(TINY, **{name: value}).search("ssc")
        assert "\n" not in str(caught.value)


def test_a_search_shares_nothing_with_the_measurement_and_takes_the_best(tmp_path):
    trials = [measure(run, tmp_path / "tiny/smoke/search", "a test") for run in TINY.search("grm")]
    assert [r["variant"] for r in trials] == ["grm-rate0.003", "grm-rate0.01"] and {r["seed"] for r in trials} == {1000}
    run = measure(TINY.run("grm", 0, 0.01), tmp_path / "tiny/smoke", "a test")
    assert {s["test_hash"] for r in trials for s in r["scores"]}.isdisjoint(s["test_hash"] for s in run["scores"])
    mean = lambda r: sum(s["right"] for s in r["scores"])
    assert best_rate(trials) == (0.01 if mean(trials[1]) > mean(trials[0]) else 0.003)


def test_a_record_of_other_settings_is_refused_and_kept(tmp_path):
    measure(RUN, tmp_path, "a test")
    before = (tmp_path / "ssc-seed0.json").read_bytes()
    for change in ({"sequences": 9}, {"tests": (TASK,)}, {"test_seed": 3}, {"training": Training(steps=5, batch=2, learning_rate=0.01)},
                   {"model": model_of("grm", 16, SIZES)}):
        with pytest.raises(ValueError, match="ssc-seed0.json was recorded with other settings"):
            measure(replace(RUN, **change), tmp_path, "a test")
    assert (tmp_path / "ssc-seed0.json").read_bytes() == before and measure(RUN, tmp_path, "a test")


SCORE = {"right": (1.5, "high", True, None, nan), "state_bytes": (-1, 0, 1.5), "seconds": (-1, inf), "sequences": (1, 2.5), "test_hash": (None, 3), "task": ([],)}
RECORD = {"variant": (3, ""), "seed": (0.5, "0", -1, 10**7), "parameters": (0, 1.5), "scores": ([], 3), "loss_every_20": ([nan], 3), "resumed_at": (-1,), "commit": (3,),
          "train_seconds": (-1, inf), "acuracy": (1,), "settings": ([], {"tests": []})}


@pytest.fixture
def unsealed(monkeypatch):
    "Records are read whatever a checksum says of an edited file."
    for module in (measured, records):
        monkeypatch.setattr(module, "load_json", lambda path: json.loads(Path(path).read_text()))


@pytest.mark.parametrize("name, values, inside", [*((n, v, True) for n, v in SCORE.items()), *((n, v, False) for n, v in RECORD.items())])
def test_a_record_of_nonsense_is_refused_by_file_and_key(name, values, inside, trained, tmp_path, unsealed):
    sound, path = trained[1]["ssc"], tmp_path / "ssc-seed0.json"
    save = lambda content: path.write_text(json.dumps(content))
    save(sound)
    assert read_records(tmp_path, Measured) == [sound] == [measure(RUN, tmp_path, "a test")]
    for value in values:
        first, *rest = sound["scores"]
        save(sound | ({"scores": [first | {name: value}, *rest]} if inside else {name: value}))
        for read in (lambda: read_records(tmp_path, Measured), lambda: measure(RUN, tmp_path, "a test")):
            with pytest.raises(ValueError, match=rf"ssc-seed0.json (is not a complete record: it (lacks|needs|has) .*{name}|was recorded with other settings)") as caught:
                read()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change, said", [
    (lambda r: r.pop("scores"), "lacks scores"), (lambda r: r.update(scors=1), "has no scors; did you mean scores"),
    (lambda r: r["scores"][0].update(right=r["scores"][0]["right"] + 0.1), "has a score that its parts do not make"),
    (lambda r: r["scores"][0]["routing"].pop("hit"), "lacks scores.0.routing.hit"),
    (lambda r: r["settings"]["training"].update(steps=-5), "needs settings.training.steps to be an integer of at least 1; got -5"),
    (lambda r: r["settings"]["training"].update(stesp=5), "has no settings.training.stesp; did you mean steps"),
])
def test_what_is_wrong_with_a_record_is_said(change, said, trained, tmp_path, unsealed):
    record = json.loads(json.dumps(trained[1]["ssc"]))
    change(record)
    (tmp_path / "ssc-seed0.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"ssc-seed0.json is not a complete record: it {said}"):
        read_records(tmp_path, Measured)


def test_a_record_cut_in_half_is_named(tmp_path):
    measure(RUN, tmp_path, "a test")
    path = tmp_path / "ssc-seed0.json"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="ssc-seed0.json is not a complete JSON file"):
        measure(RUN, tmp_path, "a test")


def test_an_interrupted_training_goes_on_to_the_same_record(tmp_path, monkeypatch):
    whole, train = measure(RUN, tmp_path / "whole", "a test"), weights.train

    def cut(*arguments, **options):
        train(*arguments, **options, stop=3)
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        measure(RUN, tmp_path / "cut", "a test")
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == [".ssc-seed0.checkpoint"]
    monkeypatch.setattr(weights, "train", train)
    again = measure(RUN, tmp_path / "cut", "a test")
    timeless = lambda r: {k: v for k, v in r.items() if "seconds" not in k and k not in ("time", "resumed_at", "scores")} | {
        "scores": [{k: v for k, v in s.items() if k != "seconds"} for s in r["scores"]]}
    assert timeless(again) == timeless(whole) and (whole["resumed_at"], again["resumed_at"]) == (0, 3)
    one, other = ((tmp_path / place / "weights/ssc-seed0.safetensors").read_bytes() for place in ("whole", "cut"))
    assert one == other and not (tmp_path / "cut/.ssc-seed0.checkpoint").exists()


def test_lost_weights_are_made_again_through_all_that_they_start_from(tmp_path):
    first, second = tmp_path / "first/cpu", tmp_path / "second/cpu"
    measure(RUN, first, "a test")
    on = TINY.run("ssc", 0, 0.01, start="first/ssc-seed0")
    record = measure(on, second, "a test")
    kept = {path: path.read_bytes() for path in (first / "weights/ssc-seed0.safetensors", second / "weights/ssc-seed0.safetensors")}
    for path in kept:
        path.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure(TINY.reading("ssc-random", 0, "second/ssc-seed0", "ssc", "random"), tmp_path / "third/cpu", "a test")
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert measure(on, second, "a test") == record and not list(tmp_path.rglob(".*"))


def test_weights_that_come_out_otherwise_are_said_and_used(trained, tmp_path):
    record = json.loads(json.dumps(trained[1]["none"])) | {"torch": "0.9"}
    record["scores"][1]["right"] += 0.25
    save_json(tmp_path / "tiny/cpu/none-seed0.json", record)
    assert lost("tiny/none-seed0", tmp_path / "other/cpu")
    reading = TINY.reading("again", 0, "tiny/none-seed0", "none")
    with pytest.warns(UserWarning, match="weights of tiny/none-seed0 were lost and made again on another machine: they answer .* torch 0.9"):
        found = measure(reading, tmp_path / "other/cpu", "a test")
    assert found["scores"][1]["right"] == trained[1]["none"]["scores"][1]["right"]
    assert not lost("tiny/none-seed0", tmp_path / "other/cpu") and weights_beside(tmp_path / "tiny/cpu/none-seed0.json").exists()


def test_a_start_that_was_never_measured_says_what_to_run(trained, tmp_path):
    with pytest.raises(ValueError, match="^start must be a run that was measured.*mc bench needles --profile gpu"):
        measure(TINY.reading("x", 0, "needles/ssc-seed0", "ssc"), tmp_path / "other/gpu", "a test")
    folder, _ = trained
    measure(TINY.reading("plain", 0, "tiny/none-seed0", "none"), folder, "a test")
    with pytest.raises(ValueError, match="^start must be a run that trains; tiny/plain-seed0 reads the weights of tiny/none-seed0"):
        remade("tiny/plain-seed0", folder)
    assert "other" not in {p.name for p in tmp_path.rglob("*.json")}


def test_a_trial_finds_the_weights_that_it_starts_from(trained):
    folder, records = trained
    trial = TINY.search("ssc", start="tiny/none-seed0")[0]
    assert measure(trial, folder / "search", "a test")["start_sha256"] == measure(
        TINY.reading("b", 0, "tiny/none-seed0", "ssc", gate="shared"), folder, "a test")["start_sha256"]


def test_a_gate_that_the_weights_lack_stays_as_it_began(trained):
    folder, _ = trained
    run = TINY.reading("fresh", 0, "tiny/none-seed0", "ssc")
    model, _ = weights.starting(run, folder)
    own, old = made(run.model, 0).state_dict(), torch.nn.Module.state_dict(LanguageModel.load(folder / "weights/none-seed0.safetensors"))
    new = [n for n in own if n not in old]
    assert new and all(torch.equal(a, own[n] if n in new else old[n]) for n, a in model.state_dict().items())


def test_a_file_in_the_place_of_the_record_survives_a_failing_run(tmp_path):
    with pytest.raises(FloatingPointError):
        measure(TINY.run("grm", 0, 1e20), tmp_path / "a/b", "a test")
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.part"))
    assert load_json(save_json(tmp_path / "x.json", {"a": 1})) == {"a": 1}


def test_the_earlier_name_of_a_run_makes_the_same_run():
    from mc.bench import MQARRun, measure_all as many
    from mc.evidence.sweeps import measure_all

    task = MQAR(32, 48, 12)
    run = MQARRun("ssc", 3, 32, 48, 12, 8, steps=7, batch=4, learning_rate=0.01, test=16)
    training = Training(steps=7, batch=4, learning_rate=0.01, curriculum=True)
    assert run == Run("ssc", 3, task, model_of("ssc", 32, Sizes(segment_size=8)), training, task.tests, 16) and many is measure_all
    with pytest.raises(ValueError, match="variant must be one of"):
        MQARRun("grn", 0)
