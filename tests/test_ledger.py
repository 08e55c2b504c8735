"The ledger of claims: each rule on records that are made up."
import re
from math import inf, isfinite, nan
from statistics import median

import pytest

from ledger_records import FAILS, HOLDS, OPEN, ROOT, record, three_seeds
from mc.evidence import ledger_runs
from mc.evidence.claims import CLAIMS
from mc.evidence.ledger import Claim, Found, contradicted, explained, proved, unmeasured, untestable, verdict
from mc.evidence.ledger_runs import all_of, change, each, narrowed, paired, reread
from mc.evidence.ledger_text import text
from mc.evidence.ledger_times import cost, growth, ratio
from mc.evidence.scores import gap, measured
from mc.paper.sentences import SENTENCES, Sentence, against, report
from mc.storage import load_json


@pytest.fixture
def made(tmp_path):
    return three_seeds(tmp_path)


# ---- the rule

@pytest.mark.parametrize("low, high, bound, side, said", [
    (0.1, 0.3, 0, 1, HOLDS), (-0.3, -0.1, 0, 1, FAILS), (-0.1, 0.1, 0, 1, OPEN), (0.0, 0.1, 0, 1, OPEN), (-0.1, 0.0, 0, 1, OPEN),
    (-0.3, -0.1, 0, -1, HOLDS), (0.1, 0.3, 0, -1, FAILS), (0.0, 0.0, 0, 1, FAILS), (0.0, 0.0, 0, -1, FAILS), (1.0, 1.0, 1.0, 1, FAILS), (-inf, inf, 0, 1, OPEN), (1.3, 1.5, 1.25, -1, FAILS), (1.1, 1.2, 1.25, -1, HOLDS),
    (1.1, 1.2, 1.0, 1, HOLDS)])
def test_the_rule(low, high, bound, side, said):
    assert verdict(low, high, bound, side) == said


@pytest.mark.parametrize("bad", [(1.0, 0.0), (nan, 1.0), (0.0, nan), (0.0, 1.0, nan), (0.0, 1.0, 0.0, 0)])
def test_no_verdict_on_what_is_no_interval(bad):
    with pytest.raises(ValueError, match="no interval from"):
        verdict(*bad)


@pytest.mark.parametrize("source, said, runs", [
    (paired("made/b", "made/a", length=512), HOLDS, "3 seeds"), (paired("made/a", "made/b", length=512), FAILS, "3 seeds"),
    (paired("made/a", "made/b", side=-1, length=512), HOLDS, "3 seeds"), (paired("made/c", "made/a", length=512), OPEN, "3 seeds"),
    (paired("made/d", "made/a", length=512), OPEN, "one seed"), (paired("made/e", "made/a", length=512), FAILS, "2 seeds"),
    (paired("made/a", "other/b", length=512), HOLDS, "3 seeds"),
    (change("made/a", dict(length=128), dict(length=512)), OPEN, "3 seeds"), (change("made/d", dict(length=512), dict(length=512)), OPEN, "one seed")])
def test_runs_against_runs(made, source, said, runs):
    found = source(made)
    assert (found.said, found.runs) == (said, runs)
    assert all((made / r).exists() for r in found.records) and len(found.records) >= 1
    assert isfinite(found.margin[1]) == (runs != "one seed") and ("to" in found.gap) == (runs != "one seed" and not found.equal)


def test_what_a_comparison_says(made):
    found = paired("made/b", "made/a", length=512)(made)
    assert found.ours == "b 0.58, a 0.47 at 512 tokens" and found.gap.startswith("+11.0 points (+8.5 to +13.5)")
    assert found.records == tuple(f"results/made/cpu/{v}-seed{s}.json" for v in "ab" for s in range(3))
    assert found.command == "mc bench made --profile cpu"
    two = paired("made/a", "other/b", length=512)(made)
    assert two.command == "mc bench made --profile cpu && mc bench other --profile cpu" and "results/other/cpu/b-seed0.json" in two.records
    down = paired("made/a", "made/b", side=-1, length=512)(made)
    assert down.margin == pytest.approx(found.margin) and down.gap.startswith("−11.0 points")


@pytest.mark.parametrize("parts, said, least", [
    ("ba ba", HOLDS, "b 0.58"), ("ba ca", OPEN, "c"), ("ba ab", FAILS, "a 0.47"), ("ca ab", FAILS, "a 0.47"), ("ba da", OPEN, "d")])
def test_all_must_hold_and_one_may_fail(made, parts, said, least):
    found = all_of(*(paired(f"made/{a}", f"made/{b}", length=512) for a, b in parts.split()))(made)
    counts = {"ba ca": " (1 holds, 1 is undecided)", "ba ab": " (1 holds, 1 does not)", "ca ab": " (1 is undecided, 1 does not)", "ba da": " (1 holds, 1 is undecided)"}
    assert found.said == said and found.ours.startswith(f"weakest of 2 comparisons{counts.get(parts, '')}: {least}") and len(found.records) >= 4
    assert found.also == ("Strongest: b 0.58, a 0.47 at 512 tokens, +11.0 points (+8.5 to +13.5)." if parts == "ba ab" else "")


def test_the_first_record_is_that_of_the_number_shown(made):
    weakest = paired("made/a", "other/b", length=512), paired("made/b", "made/a", length=512), paired("made/c", "made/a", length=512)
    found = all_of(*weakest)(made)
    assert found.records[: len(weakest[2](made).records)] == weakest[2](made).records and len({*found.records}) == len(found.records) == 12
    turned = all_of(*weakest[:2], paired("other/b", "made/a", length=512))(made)
    assert turned.records[0].startswith("results/made") and {r.split("/")[1] for r in turned.records[:6]} == {"made", "other"}
    for row in (c for c in CLAIMS if "slower" in c.name):
        found = row.found(ROOT)
        r = load_json(ROOT / found.records[0])
        names = r["settings"]["ratio"] if "/speed/" in found.records[0] else [n for n in r["rounds"] if n.startswith("titans-") and n.endswith(("-none", "-grm-64"))][::-1]
        assert f"{median(a / b for a, b in zip(*(r['rounds'][n] for n in names))):.2f} times" in found.gap


def test_each_is_above_all_the_others_in_all_the_tests(made):
    assert each("made/b", ["made/a"], length=(512,))(made).said == HOLDS
    assert each("made/b", ["made/a", "made/c"], length=(128, 512))(made).ours.startswith("weakest of 4 comparisons (1 holds, 1 is undecided, 2 do not): ")
    assert each("made/b", ["made/a"], length=(128, 512))(made).said == FAILS    # equal at 128


def test_no_difference_at_all_is_no_gain(made):
    same = paired("made/b", "made/a", length=128)(made)
    assert (same.said, same.gap, same.equal) == (FAILS, "+0.0 points, no difference at all", True)
    assert not paired("made/c", "made/a", length=512)(made).equal
    once = change("made/d", dict(length=512), dict(length=512))(made)
    assert once.said == OPEN and not once.equal and "no difference" not in once.gap    # one seed says nothing


def test_no_difference_of_shares_goes_beyond_a_hundred_points(tmp_path):
    for seed, b in enumerate((0.0, 1.0, 1.0)):
        record(tmp_path, "far/a", seed, at512=0.0)
        record(tmp_path, "far/b", seed, at512=b)
    up, down = paired("far/b", "far/a", length=512)(tmp_path), paired("far/a", "far/b", length=512)(tmp_path)
    assert up.gap == "+66.7 points (−76.8 to +100.0)"
    assert up.margin[2] == 1.0 and down.margin[1] == -1.0 and down.gap.startswith("−66.7 points (−100.0 to ")
    both = gap([r for name in "ab" for r in measured(tmp_path / "results/far/cpu") if r["variant"] == name], "b", "a", length=512)
    assert (both.low, both.high) == pytest.approx((up.margin[1], 1.0))


# ---- gaps to a third, readings, reasons

def test_a_gap_narrows_and_what_is_left_says_whether_it_is_closed(tmp_path):
    for seed, none in enumerate((0.2, 0.3, 0.4)):
        for name, right in dict(none=none, some=none + 0.2, near=none + 0.4, attention=none + 0.4 + (seed - 1) / 50, past=none + 0.5, below=none - 0.1).items():
            record(tmp_path, f"made/{name}", seed, at512=right)
    record(tmp_path, "once/none", 0, at512=0.2), record(tmp_path, "once/grm", 0, at512=0.4), record(tmp_path, "once/attention", 0, at512=0.5)
    of = lambda way: narrowed(f"made/{way}", "made/none", "made/attention", length=512)(tmp_path)
    said = {way: of(way).said for way in ("some", "near", "past", "below")}
    assert said == dict(some=HOLDS, near=HOLDS, past=HOLDS, below=FAILS)
    closed = {way: of(way).also.rsplit("; ", 1)[1] for way in said}
    assert closed == dict(some="not closed.", near="closed.", past="closed.", below="not closed.")
    some = of("some")
    assert some.gap == "+20.0 points (+20.0 to +20.0)" and some.also.startswith("Against softmax attention: no caching −40.0 points (")
    assert "some −20.0 points (" in some.also and len(some.records) == 9 and some.records[:6] == paired("made/some", "made/none", length=512)(tmp_path).records
    one = narrowed("once/grm", "once/none", "once/attention", length=512)(tmp_path)
    assert one.said == OPEN and one.also.endswith("one seed does not say whether it is closed.")


def test_a_reading_is_compared_wherever_it_is_recorded(tmp_path):
    for seed, right in enumerate((0.4, 0.5)):
        for name in ("extrapolation/none", "length_of_training/none"):
            record(tmp_path, name, seed, at512=right)
        for variant, gain in (("short-fading-16", -0.1), ("long-fading-64", 0.1), ("long-fadingest-64", 0.1), ("short-uniform-16", 0.0)):
            record(tmp_path, f"after_training/{variant}", seed, at512=right + gain * (1 + seed / 10))
    found = reread("fading")(tmp_path)
    assert found.said == FAILS and found.ours.startswith("weakest of 2 comparisons (1 holds, 1 does not): trained at 128 (fading weights, C = 16)")
    assert found.also.startswith("Strongest: trained at 1,024 (fading weights, C = 64)") and not [r for r in found.records if "fadingest" in r or "uniform" in r]
    assert Claim("", "", "", "", "", reread("random"), "").found(tmp_path).said == "not measured yet"
    same = explained(reread("uniform"), "It is the same.", "test_equations.py::test_logarithmic_cuts")
    with pytest.raises(FileNotFoundError):    # the proof is in another repository
        same(tmp_path)


# ---- commands

def test_a_command_makes_first_what_its_runs_start_from(tmp_path):
    record(tmp_path, "first/a", 0, at512=0.1)
    record(tmp_path, "second/a", 0, start="first/a-seed0", at512=0.2)
    record(tmp_path, "third/a", 0, start="second/a-seed0", at512=0.3)
    record(tmp_path, "third/own", 0, start="third/a-seed0", at512=0.3)
    line = lambda *names: " && ".join(f"mc bench {name} --profile cpu" for name in names)
    assert paired("third/a", "third/own", length=512)(tmp_path).command == line("first", "second", "third")
    assert paired("second/a", "first/a", length=512)(tmp_path).command == line("first", "second")
    mixed = all_of(paired("third/a", "third/own", length=512), paired("first/a", "second/a", length=512))(tmp_path)
    assert mixed.command == line("first", "second", "third")
    assert Claim("", "", "", "", "", paired("second/b", "second/a", length=512), "").found(tmp_path).command == line("first", "second")


def test_the_makefile_measures_in_the_order_of_the_records():
    "`make bench` begins with what others start from; the records say which."
    first = re.search(r"^BENCHES := (.*?) \$\(filter-out (.*?),", (ROOT / "Makefile").read_text(), re.M)
    assert first[1] == first[2]
    rest = sorted(p.stem for p in (ROOT / "nbs/bench").glob("*.yaml") if p.stem not in first[1].split())
    order = [f"results/{name}/cpu" for name in first[1].split() + rest]
    settings = {folder: [load_json(p).get("settings") or {} for p in (ROOT / folder).glob("*.json")] for folder in order}
    pairs = {(f"results/{s['start'].split('/')[0]}/cpu", folder) for folder, some in settings.items() for s in some if s.get("start")}
    apart = [(other, folder) for other, folder in pairs if other != folder]
    assert len(apart) >= 4 and all(order.index(other) < order.index(folder) for other, folder in apart), apart
    assert {*apart} == {(other, folder) for folder in {f for _, f in pairs} for other in ledger_runs.starts(ROOT, folder)}


@pytest.mark.parametrize("source", [
    paired("made/nobody", "made/a", length=512), paired("nowhere/a", "nowhere/b", length=512), change("made/nobody", dict(length=128), dict(length=512)),
    each("made/b", ["made/a", "made/nobody"], length=(512,)), paired("made/far", "made/a", length=512), ratio("speed/cpu/nothing"),
    growth("dial/cpu/a", "dial/cpu/b", "attention", "grm 256"), cost("training", "attention", "grm"), text("grm")])
def test_a_record_that_is_not_there_is_not_measured_yet(made, source):
    found = Claim("lost", "", "", "", "", source, "").found(made)
    assert found.said == "not measured yet" and not (found.ours or found.gap or found.records) and found.command.startswith("mc bench ")


def test_a_test_that_was_not_asked_is_a_mistake(made):
    with pytest.raises(ValueError, match="no score of length=64"):
        Claim("lost", "", "", "", "", paired("made/b", "made/a", length=64), "").found(made)


def test_a_damaged_record_is_named(made):
    path = made / "results/made/cpu/a-seed0.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="a-seed0.json"):
        paired("made/b", "made/a", length=512)(made)


def test_a_number_without_a_record_is_refused(made):
    for number in (dict(gap="+1.0 points"), dict(runs="3 seeds"), dict(margin=(1.0, 0.0, 2.0))):
        with pytest.raises(ValueError, match="a number without a record"):
            Found(HOLDS, **number)
    with pytest.raises(ValueError, match="said must be one of"):
        Found("true")
    lost = Claim("lost", "", "", "", "", lambda root: Found(HOLDS, gap="+1.0 points", records=("results/gone.json",)), "")
    with pytest.raises(ValueError, match="lost: a number without a record; results/gone.json"):
        lost.found(made)


def test_a_contradiction_is_one_of_the_papers_numbers(made, monkeypatch):
    says = lambda *gains, **how: monkeypatch.setitem(SENTENCES, "made", Sentence("cells", lambda: {f"cell {i}": g for i, g in enumerate(gains)}, **how))
    says(0.5, -0.25, 0.0, -0.5)
    found = contradicted("made")(made)
    assert found.said == "the paper contradicts itself" and found.ours == "2 of 4 cells do not say so; worst −0.50"
    assert against("made") == {"cell 3": -0.5, "cell 1": -0.25} and report("made").splitlines()[1:] == ["-0.50  cell 3", "-0.25  cell 1"]
    says(0.5, 0.0, differs=True)
    assert contradicted("made")(made).ours == "1 of 2 cells do not say so, but are equal" and against("made") == {"cell 1": 0.0}
    for agreeing in ((0.5, 0.0), (0.1,)):
        says(*agreeing)
        with pytest.raises(ValueError, match="no contradiction"):
            contradicted("made")
    with pytest.raises(ValueError, match="name must be one of consistent, .*; got 'nothing'"):
        against("nothing")


def test_reasons_are_sentences(made):
    why = "Nobody has a machine that large."
    assert (unmeasured(why)(made).said, untestable(why)(made).said) == ("not measured", "not testable at this scale")
    with pytest.raises(ValueError, match="why must be a sentence"):
        unmeasured("too large")


def test_a_proof_needs_its_test():
    assert proved("test_equations.py::test_logarithmic_cuts")(ROOT).said == "exact"
    with pytest.raises(FileNotFoundError, match="has no test_nothing"):
        Claim("lost", "", "", "", "", proved("test_equations.py::test_nothing"), "").found(ROOT)
