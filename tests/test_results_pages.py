"Numbers of results pages: one score, a mean over seeds, a difference by seed; what a page says with one seed, and with none."
import re
from pathlib import Path

import pytest
import torch
import yaml

from mc.evidence import report, scores
from mc.evidence.experiments import Experiment
from mc.evidence.measured import measure
from mc.evidence.scores import Estimate, by_seed, estimate, gap, measured, right, splits, state_bytes, trials
from mc.evidence.variants import VARIANTS, Sizes, model_of
from mc.tasks.needles import Needles

ROOT = Path(__file__).parents[1]
PAGES = ("extrapolation", "length_of_training")


def record(variant, seed, shares, **routing):
    scores = [{"task": {"name": "needles", "vocab_size": 64, "length": n, "pairs": 8}, "sequences": 16, "right": a, "state_bytes": 100 * n}
              | ({"routing": routing} if routing else {}) for n, a in shares.items()]
    return {"variant": variant, "seed": seed, "scores": scores}


def three(variant, at_8192):
    return [record(variant, seed, {128: 1.0, 8192: a}) for seed, a in enumerate(at_8192)]


@pytest.fixture(autouse=True)
def chance_is_half(monkeypatch):
    "Records made up here do not say what a router that draws would need."
    monkeypatch.setattr(scores, "by_chance", lambda record, score: 0.5)


# ---- numbers

def test_a_difference_is_taken_seed_by_seed():
    "Two variants that move together with the seed: the gap is narrow where each of them scatters, and has the sign of its order."
    records = three("ssc", [0.5, 0.7, 0.9]) + three("none", [0.1, 0.31, 0.49])
    won = gap(records, "ssc", "none", length=8192)
    assert won.mean == pytest.approx(0.4) and won.above and won.high - won.low < 0.06
    assert gap(records, "none", "ssc", length=8192).mean == pytest.approx(-0.4) and not gap(records, "none", "ssc", length=8192).above
    assert estimate(records, "ssc", length=8192).high == 1.0                                # a share
    mixed = [r | {"seed": {0: 2, 1: 1, 2: 0}[r["seed"]]} if r["variant"] == "none" else r for r in records]
    assert not gap(mixed, "ssc", "none", length=8192).above


def test_seeds_that_one_lacks_are_left_out():
    records = three("ssc", [0.5, 0.7, 0.9]) + three("none", [0.1, 0.3, 0.5])[1:]
    assert gap(records, "ssc", "none", length=8192).count == 2 and by_seed(records, "none", length=8192) == {1: 0.3, 2: 0.5}
    one = gap(records[:2] + records[3:4], "ssc", "none", length=8192)
    assert one.count == 1 and not one.clear and not one.above and f"{one:+.2f}" == "+0.40 (one seed)"
    with pytest.raises(ValueError, match=r"ssc and none share no seed: ssc has \[0\], none has \[1, 2\]"):
        gap(records[:1] + records[3:], "ssc", "none", length=8192)


@pytest.mark.parametrize("ask, message", [
    (lambda r: right(r[0], length=2048), r"ssc, seed 0, has no score of length=2048; it has name=needles, .*length=128, .*; .*length=8192"),
    (lambda r: right(r[0], pairs=8), "has several scores of pairs=8"),
    (lambda r: state_bytes(r[0], size=1), "has no score of size=1"),
    (lambda r: estimate(r, "grm", length=128), "variant must be one of ssc; got 'grm'"),
    (lambda r: estimate([], "grm", length=128), "variant must be one of none recorded yet; got 'grm'"),
    (lambda r: gap(r, "ssc", "grm", length=128), "variant must be one of ssc; got 'grm'"),
])
def test_what_is_not_there_is_named(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(three("ssc", [0.5, 0.7, 0.9]))


def test_splits_show_the_parts_of_variants_with_a_router():
    parts = dict(looked_at=0.8, right_if_looked_at=0.9, right_if_not=None)
    records = [record("none", 0, {8192: 0.1}), record("ssc", 0, {8192: 0.72}, **parts), record("grm", 0, {8192: 0.72}, **parts)]
    shown = splits(records, ["grm", "ssc", "fenwick"], length=8192)
    assert list(shown.index) == ["GRM, independent", "SSC, independent"]
    assert list(shown.loc["SSC, independent"]) == ["0.80 (one seed)", "0.50", "0.90 (one seed)", "no such question", "0.72 (one seed)"]


def test_last_losses_are_means_of_a_hundred_steps_over_seeds():
    falls = lambda seed: record("none", seed, {128: 1.0}) | {"loss_every_20": [9.0, *[2.0 + seed] * 5, *[1.0] * 5]}
    short = record("ssc", 0, {128: 1.0}) | {"loss_every_20": [1.0] * 9}
    shown = report.last_losses([falls(0), falls(1), short, record("grm", 0, {128: 1.0})])
    assert list(shown.index) == ["no caching"] and list(shown.loc["no caching"]) == ["2.500", "1.000", "−60%"]


def test_curves_have_bars_only_where_there_are_several_seeds():
    records = three("ssc", [0.5, 0.7, 0.9]) + three("none", [0.1])
    ssc, none = report.curve(records, "length", "title", "tokens", ["ssc", "none"]).data
    half = Estimate.of([0.5, 0.7, 0.9]).high - 0.7
    assert none.error_y.array == (0, 0) and ssc.error_y.arrayminus[1] == pytest.approx(half)
    assert ssc.error_y.array[1] == pytest.approx(0.3)                                        # up to 1 and not further
    assert [len(set(report.curve(records, "length", "t", "x").data[i].y)) for i in (0, 1)] == [2, 2]


# ---- records that were measured

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A search and two seeds, trained for a few steps."
    folder = tmp_path_factory.mktemp("results") / "extrapolation/cpu"
    tasks = [Needles(16, n, 4) for n in (16, 32)]
    small = Experiment(tasks[0], tuple(tasks), (0.003, 0.01), 4, 2, 2, Sizes(1, 16, 4, 4), sequences=4)
    for variant in ("none", "ssc"):
        for trial in small.search(variant)[: 2 if variant == "ssc" else 1]:
            measure(trial, folder / "search", "a test")
    for variant, seed in (("ssc", 0), ("none", 1), ("none", 0), ("ssc", 1)):
        measure(small.run(variant, seed, 0.01), folder, "a test")
    measure(small.reading("ssc-oracle", 0, "extrapolation/ssc-seed0", "ssc", "oracle", (tasks[1],)), folder, "a test")
    return folder


def test_records_are_read_in_the_order_of_the_figures(folder):
    records = measured(folder)
    assert [(r["variant"], r["seed"]) for r in records] == [("none", 0), ("none", 1), ("ssc", 0), ("ssc", 1), ("ssc-oracle", 0)]
    assert state_bytes(records[2], length=32) > state_bytes(records[0], length=32) == state_bytes(records[1], length=16)
    assert measured(folder / "nowhere") == []
    shown = report.settings(records[:4])["value"]
    assert shown["model.mixer.d_model"] == "16" and shown["tests.length"] == "16, 32" and "model.mixer.aggregation" not in shown
    assert {t.name for t in report.training_curves(records, "losses").data} == {"no caching", "SSC, independent"}


def test_a_rate_is_taken_when_all_trials_are_there(folder):
    shown = trials(folder)
    assert list(shown.columns) == ["0.003", "0.01", "rate taken"] and list(shown.index) == ["no caching", "SSC, independent"]
    assert shown.loc["no caching", "rate taken"] == "" == shown.loc["no caching", "0.01"]
    assert shown.loc["SSC, independent", "rate taken"] in ("0.003", "0.01")
    assert trials(folder / "nowhere").empty
    taken = shown.loc["SSC, independent", "rate taken"]
    end = {"0.003": "smallest", "0.01": "largest"}[taken]
    assert report.at_the_edge(shown) == f"The search took the {end} rate that was tried, {taken}, for *SSC, independent*: beyond it a better one may lie."
    assert report.at_the_edge(shown[:1]) == report.at_the_edge(trials(folder / "nowhere")) == ""


@pytest.mark.parametrize("page", [p.stem for p in sorted((ROOT / "nbs/bench").glob("*.yaml")) if "gpu" in yaml.safe_load(p.read_text()) and p.stem not in ("speed", "cost")])
def test_a_page_says_that_its_large_profile_was_not_run_and_how_to_try_it(page):
    below = (ROOT / f"nbs/bench/{page}.md").read_text().split("\n## Reproduce\n")[1]
    (line,) = [row for row in below.splitlines() if row.startswith(f"mc bench {page} --profile gpu --dry-run ")]
    assert "not run here" in line and "meta device" in line


# ---- what the pages say

def said(page, monkeypatch, larger=(), **folders):
    "What a page says above Reproduce with the records in `folders`, by benchmark, and those of larger models."
    text = (ROOT / f"nbs/bench/{page}.md").read_text().split("\n## Reproduce\n")[0]
    out, seen = [], dict.fromkeys(PAGES, []) | folders
    space = {"display": lambda *all: out.extend(all), "print": out.append}
    monkeypatch.setattr(report, "measured", lambda path: seen[Path(path).parent.name] if Path(path).name == "cpu" else larger)
    monkeypatch.setattr(report, "trials", lambda path: trials("nowhere"))
    for code in re.findall(r"```\{code-cell\} ipython3\n(.*?)```", text, re.S):
        exec(compile(re.sub(r"\A(:.*\n)+", "", code), page, "exec"), space)
    return " ".join(words for each in out if isinstance(words := getattr(each, "data", each), str))


def runs(first, then=None, variants=("none", "wide", "swla", "ssc", "attention", "grm"), seeds=3, training=128, **scores):
    lengths, low = (training, first, then), dict.fromkeys(variants, 0.3) | scores
    steps = {"settings": {"task": {"length": training, "pairs": 8}, "training": {"steps": 250}}}
    return [record(v, s, {n: low[v] + (i + s) / 100 for i, n in enumerate(lengths)}) | steps for v in variants for s in range(seeds)]


@pytest.mark.parametrize("records, words", [
    (runs(2048, 8192, ssc=0.9), r"\*\*Yes.*SSC is above all three rivals at both lengths.*8,192 tokens, 64 times.*SSC 0.93, no caching 0.33"),
    (runs(2048, 8192, ssc=0.9, swla=0.9), r"\*\*Not by.* SSC is above no caching at both lengths and one head at both lengths; it is not shown to be above or below SWLA at both lengths\."),
    (runs(2048, 8192, ssc=0.5, swla=0.9), r"\*\*Not by the criterion.*; it is below SWLA at both lengths\."),
    (runs(2048, 8192, ssc=0.9, seeds=1), r"\*\*Not decided yet.*one seed has no interval.*SSC 0.92"),
    (runs(2048, 8192, variants=("none", "ssc"), ssc=0.9), r"\*\*Not decided yet.*no records of one head and SWLA\."),
    ([], r"No records in \.\./\.\./results/extrapolation/cpu yet\."),
])
def test_extrapolation_answers_by_its_criterion(records, words, monkeypatch):
    assert re.search(words, said("extrapolation", monkeypatch, extrapolation=records), re.S)


def test_larger_models_are_judged_by_the_same_criterion(monkeypatch):
    sized = lambda n, **scores: [r | {"parameters": n, "settings": r["settings"] | {"model": {"num_layers": 4, "mixer": {"d_model": 256}}}} for r in runs(2048, 8192, **scores)]
    text = said("extrapolation", monkeypatch, sized(3100, ssc=0.9), extrapolation=sized(100, ssc=0.9))
    assert re.search(r"31 times as many\. By the same criterion: \*\*Yes.*SSC 0\.93, .*Of what was trained, the order is that of the small models\.", text, re.S)
    with pytest.raises(AssertionError):                                           # what other pages say of the order would be wrong
        said("extrapolation", monkeypatch, sized(3100, swla=0.9), extrapolation=sized(100, ssc=0.9))
    whole = sized(3100, swla=0.9)
    for part in (whole[:1], whole[:-1], whole[1:]):                               # interrupted: nothing is said, and nothing stops the notebook that goes on
        assert "times as many" not in said("extrapolation", monkeypatch, part, extrapolation=sized(100, ssc=0.9))
    assert "times as many" not in said("extrapolation", monkeypatch, whole, extrapolation=[])


@pytest.mark.parametrize("before, after, words", [
    (runs(2048, 8192), runs(2048, 8192, training=1024, none=0.6, ssc=0.9), r"\*\*Both\.\*\*.* from 0.33 .* to 0.63 .* at 8,192 tokens.*\+0.300 .* over no caching"),
    (runs(2048, 8192), runs(2048, 8192, training=1024, none=0.9, ssc=0.9), r"\*\*Length of training\.\*\*"),
    (runs(2048, 8192), runs(2048, 8192, training=1024, ssc=0.9), r"\*\*Memory\.\*\*"),
    (runs(2048, 8192), runs(2048, 8192, training=1024), r"\*\*Neither is shown\.\*\*"),
    (runs(2048, 8192, seeds=1), runs(2048, 8192, training=1024, seeds=1), r"\*\*Not decided yet.*one seed"),
    (runs(2048, 8192), [], r"No records in \.\./\.\./results/length_of_training/cpu yet\."),
    ([], runs(2048, 8192, training=1024), r"No records"),
])
def test_length_of_training_tells_memory_from_training(before, after, words, monkeypatch):
    assert re.search(words, said("length_of_training", monkeypatch, extrapolation=before, length_of_training=after), re.S)


# ---- profiles

@pytest.mark.parametrize("page", PAGES)
def test_profiles_name_known_variants_and_fit_each_other(page):
    profiles = yaml.safe_load((ROOT / f"nbs/bench/{page}.yaml").read_text())
    first = yaml.safe_load((ROOT / "nbs/bench/extrapolation.yaml").read_text())
    assert [name for name in profiles if name != "larger"] == ["smoke", "cpu", "gpu"]
    for name, asked in profiles.items():
        assert set(asked["variants"]) <= set(VARIANTS) and set(asked["variants"]) <= set(first[name]["variants"])
        assert asked["length"] in asked["lengths"] and asked["seeds"] == first[name]["seeds"]
        assert all(asked[n] == first[name][n] for n in ("num_layers", "d_model", "num_heads", "segment_size", "vocab_size", "pairs", "rates"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["none", "ssc", "swla-ssc", "fenwick", "attention"])
def test_a_step_of_the_large_profile_runs_without_numbers(variant):
    "A layer of the gpu profile, forward and backward, on a device that has shapes alone."
    from mc.nn.model import LanguageModel

    asked = yaml.safe_load((ROOT / "nbs/bench/extrapolation.yaml").read_text())["gpu"]
    sizes = Sizes(1, asked["d_model"], asked["num_heads"], asked["segment_size"])
    with torch.device("meta"):
        model = LanguageModel(model_of(variant, asked["vocab_size"], sizes))
        answers = model(torch.zeros(1, asked["length"], dtype=torch.int64))
        answers.sum().backward()
    assert answers.shape == (1, asked["length"], asked["vocab_size"]) and all(p.grad is not None for p in model.blocks.parameters())
