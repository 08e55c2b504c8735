"The ledger of claims: each rule on records that are made up, each row on those of the repository."
import ast
import re
from math import inf, isfinite, nan
from pathlib import Path
from statistics import median, stdev

import pytest
import yaml

from mc.evidence import claims, ledger_runs
from mc.evidence.claims import CLAIMS, claim, sentence
from mc.evidence.ledger import VERDICTS, Claim, Found, contradicted, proved, unmeasured, untestable, verdict
from mc.evidence.ledger_runs import all_of, change, each, paired, text
from mc.evidence.ledger_times import cost, growth, ratio
from mc.evidence.questions import QUESTIONS, Question
from mc.evidence.scores import gap, measured
from mc.storage import load_json, save_json

ROOT = Path(__file__).resolve().parents[1]
HOLDS, FAILS, OPEN = "holds here", "does not hold here", "undecided"


def record(root, name, seed, start=None, **right):
    "A record of the runs `name` with a score for each length: `at128=0.5`."
    benchmark, variant = name.split("/")
    scores = [dict(task=dict(name="needles", vocab_size=64, length=int(n[2:]), pairs=8), sequences=2, right=share, sd_over_sequences=0.0,
                   test_hash="", state_bytes=8, seconds=0.0, routing=None) for n, share in right.items()]
    settings = dict(task={}, model={}, training=None, tests=[], sequences=2, test_tokens=1, start=start, router="learned", test_seed=1)
    save_json(root / f"results/{benchmark}/cpu/{variant}-seed{seed}.json", dict(
        variant=variant, seed=seed, settings=settings, parameters=1, start_sha256=None, scores=scores,
        command="", commit="", device="", torch="", python="", time=""))


@pytest.fixture
def made(tmp_path):
    "Three seeds: b is always .1 above a, c scatters around a, d has one seed, e lacks a seed."
    for seed, a in enumerate((0.2, 0.5, 0.7)):
        record(tmp_path, "made/a", seed, at128=1.0, at512=a)
        record(tmp_path, "made/b", seed, at128=1.0, at512=a + 0.1 + seed / 100)
        record(tmp_path, "made/c", seed, at128=1.0, at512=a + (0.1, -0.1, 0.05)[seed])
        record(tmp_path, "other/b", seed, at512=a - 0.1 - seed / 100)
        if seed != 1:
            record(tmp_path, "made/e", seed, at512=a)
    record(tmp_path, "made/d", 0, at512=0.9)
    record(tmp_path, "made/far", 9, at512=0.9)
    return tmp_path


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
    assert found.said == said and found.ours.startswith(f"weakest of 2 comparisons: {least}") and len(found.records) >= 4


def test_each_is_above_all_the_others_in_all_the_tests(made):
    assert each("made/b", ["made/a"], length=(512,))(made).said == HOLDS
    assert each("made/b", ["made/a", "made/c"], length=(128, 512))(made).ours.startswith("weakest of 4 comparisons: ")
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


def test_a_contradiction_is_one_of_the_papers_numbers(made):
    found = contradicted([0.5, -0.25, 0.0], "cells")(made)
    assert found.said == "the paper contradicts itself" and found.ours == "1 of 3 cells do not say so; worst −0.25"
    assert contradicted([0.5, 0.0], equal=True)(made).ours.startswith("1 of 2 ")
    for agreeing in ([0.5, 0.0], [0.1]):
        with pytest.raises(ValueError, match="no contradiction"):
            contradicted(agreeing)


def test_reasons_are_sentences(made):
    why = "Nobody has a machine that large."
    assert (unmeasured(why)(made).said, untestable(why)(made).said) == ("not measured", "not testable at this scale")
    with pytest.raises(ValueError, match="why must be a sentence"):
        unmeasured("too large")


def test_a_proof_needs_its_test():
    assert proved("test_equations.py::test_logarithmic_cuts")(ROOT).said == "exact"
    with pytest.raises(FileNotFoundError, match="has no test_nothing"):
        Claim("lost", "", "", "", "", proved("test_equations.py::test_nothing"), "").found(ROOT)


def test_times_are_judged_against_one_or_their_target():
    record = load_json(ROOT / "results/speed/cpu/ssc.json")
    timed = ratio("speed/cpu/ssc", side=-1, aim=True)(ROOT)
    assert timed.said == (HOLDS if record["high"] < record["target"] else FAILS if record["low"] > record["target"] else OPEN)
    assert timed.margin[0] == pytest.approx(record["target"] / record["value"]) and f"bound {record['target']:g}" in timed.gap
    same = growth("dial/cpu/tokens-4096", "dial/cpu/tokens-4096", "attention", "grm 256")(ROOT)
    assert same.said == FAILS and same.equal and same.margin == (1, 1, 1)


def test_costs_are_those_of_the_longest_text(tmp_path):
    old = load_json(ROOT / "results/speed/cpu/ssc.json")
    for tokens, slow in ((512, 9.0), (1024, 2.0)):
        rounds = {"attention": [slow + i / 100 for i in range(8)], "grm": [1.0] * 8}
        new = {n: v for n, v in old.items() if n != "sha256"} | dict(name=f"training-{tokens}", at=f"T = {tokens:,}", rounds=rounds)
        save_json(tmp_path / f"results/cost/cpu/training-{tokens}.json", new)
    found = cost("training", "attention", "grm")(tmp_path)
    assert found.said == HOLDS and 2 <= found.margin[0] <= 2.1 and found.records == ("results/cost/cpu/training-1024.json",) and found.runs == "8 rounds"
    save_json(tmp_path / "results/cost/cpu/training-2048.json", new | dict(name="training-2048", rounds={"grm": [1.0] * 8}))
    assert cost("training", "attention", "grm")(tmp_path) == found    # of the longest text, only one was measured
    assert Claim("", "", "", "", "", cost("training", "attention", "ssc"), "").found(tmp_path).said == "not measured yet"
    assert cost("training", "grm", "attention")(tmp_path).said == cost("training", "attention", "grm", side=-1)(tmp_path).said == FAILS


@pytest.mark.parametrize("attention, grm, said", [
    (0.03, 0.02, HOLDS), (0.03, -0.02, FAILS), (0.03, 0.0, OPEN), (0.01, 0.02, "not testable at this scale"), (0.03, None, "not testable at this scale"),
    (None, 0.02, "not measured yet")])
def test_text_says_something_only_where_attention_gains(monkeypatch, tmp_path, attention, grm, said):
    gains = {v: g for v, g in dict(none=0.0, grm=grm, attention=attention).items() if g is not None}
    runs = [dict(variant=v, seed=s, scores=[dict(length=256, bits_per_byte=2.0 - g + s / 10 - (s - 1) * 0.001 * (v == "grm"))]) for v, g in gains.items() for s in range(3)]
    monkeypatch.setattr(ledger_runs, "text_records", lambda folder: {100: [], 200: runs} if folder == tmp_path / "results/language/cpu" else {})
    for r in runs:
        save_json(tmp_path / f"results/language/cpu/steps-200/{r['variant']}-seed{r['seed']}.json", {})
    found = Claim("text", "", "", "", "", text("grm"), "").found(tmp_path)
    assert found.said == said and all(r.startswith("results/language/cpu/steps-200/") for r in found.records)
    assert ("bits per byte" in found.gap) == (said in (HOLDS, FAILS, OPEN)) and found.command == "mc bench language --profile cpu"


@pytest.mark.parametrize("variant, said", [
    ("ssc", "SSC"), ("wide", "no caching (one head)"), ("needles-grm-position", "GRM (weights by place only)"), ("mqar-ssc", "SSC"), ("x", "x"),
    ("short-signed-16", "trained at 128 (u = ±q, C = 16)"), ("long-uniform-1024", "trained at 1,024 (even weights, C = 1,024)"),
    ("needles-grm-scale4", "GRM (scores × 4)"), ("mqar-grm-scale16", "GRM (scores × 16)"), ("needles-ssc-as-k1", "SSC (trained with k = 4, read with k = 1)"),
    ("needles-ssc-random", "SSC (random router)"), ("needles-ssc-k2-random", "SSC (k = 2, random router)"), ("needles-grm-checkpoint", "GRM (checkpoint)"),
    ("needles-ssc-random-as-k8", "SSC (random router, trained with k = 4, read with k = 8)"), ("needles-grm-blocks4", "GRM (4 pools a segment)"),
    ("mqar-grm-detach", "GRM (no gradient through the cache)"), ("swla-ssc", "SWLA (SSC)"), ("dla-grm-64", "DLA (GRM, C = 64)"), ("grm-128", "GRM (C = 128)")])
def test_variants_have_names_for_readers(variant, said):
    assert ledger_runs.label(variant) == said


def listed_variants():
    "Every variant that a record has, or a profile of a benchmark lists."
    found = {load_json(p).get("variant") for p in (ROOT / "results").glob("*/cpu/*.json")}
    for path in (ROOT / "nbs/bench").glob("*.yaml"):
        for profile in yaml.safe_load(path.read_text()).values():
            found |= {*profile.get("variants", ())}
            for way in profile.get("ways", ()):
                changes = [*profile["gates"], *profile["choices"], *(f"blocks{n}" for n in profile["pool_blocks"]), *(f"scale{n}" for n in profile["scales"])]
                changes += [f"{end}{k}{random}" for k in profile["other_ks"] for end in ("k", "as-k") for random in ("", "-random")]
                found |= {f"{task}-{way}-{change}" for task in ("needles", "mqar") for change in changes}
            sizes = profile.get("segment_sizes", ())
            tags = [dict(extrapolation="short", length_of_training="long", own="own")[start] for start in profile.get("starts", ())]
            found |= {f"{tag}-{how}-{C}" for tag in tags for how in profile["readings"] for C in sizes}
    return sorted(found - {None})


def test_no_label_is_a_raw_name():
    variants = listed_variants()
    assert len(variants) > 150 and {"ssc", "dla-grm", "mqar-grm-sum", "needles-ssc-as-k8", "short-signed-16"} <= {*variants}
    raw = {v: ledger_runs.label(v) for v in variants if v not in ("none", "x")}
    known = ("router", "trained", "weights", "gradient", "pools", "scores", "sum", "keys", "caching", "checkpoint", "residual", "attention", "oracle")
    for variant, said in raw.items():
        assert not re.search(r"[a-zA-Z]+\d|_|\w-\w|\b(needles|mqar|short|long|own|as-k|detach|signed|shared|fading(?! weights)|uniform|position|none|wide|swla|grm|ssc|dla|titans|soup|fenwick)\b",
                             said.replace("Log-Linear", "").replace("top-p", "")), (variant, said)
        assert any(word in said for word in known) or re.search(r"GRM|SSC|SWLA|DLA|Titans|Soup|Log-Linear", said), (variant, said)
    words = {v: said for v, said in raw.items() if v.startswith(("needles-", "short-", "long-"))}
    assert len({*words.values()}) >= len(words) - 1 - sum(v.startswith("needles-ssc-") and v.endswith("-random") and "-as-" in v for v in words)


def test_what_the_labels_say_of_training_is_what_the_records_say():
    trained = {word: load_json(ROOT / f"results/{name}/cpu/none-seed0.json")["settings"]["task"]["length"]
               for word, name in (("short", "extrapolation"), ("long", "length_of_training"))}
    assert {w: ledger_runs.word(w) for w in trained} == {w: f"trained at {n:,}" for w, n in trained.items()}
    assert load_json(ROOT / "results/gates/cpu/needles-ssc-seed0.json")["settings"]["model"]["mixer"]["top_k"] == 4


def test_a_sentence_has_the_verdict_and_the_numbers(made, monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", [Claim("b", "", "B is better.", "", "", paired("made/b", "made/a", length=512), ""),
                                           Claim("c", "", "C is better.", "", "", paired("made/x", "made/a", length=512), "")])
    said = sentence("b", made)
    assert said == "B is better. *Holds here*: b 0.58, a 0.47 at 512 tokens, +11.0 points (+8.5 to +13.5), 3 seeds."
    assert sentence("c", made) == "C is better. *Not measured yet*."
    with pytest.raises(ValueError, match="name must be one of b, c; got 'd'"):
        claim("d")


# ---- the rows

@pytest.mark.parametrize("row", CLAIMS, ids=lambda c: c.name)
def test_every_row_has_its_record_its_number_its_chapter_and_its_command(row):
    found = row.found(ROOT)
    assert found.said in VERDICTS and row.says.endswith(".") and row.where and row.paper and row.about
    chapter, _, label = row.page.partition("#")
    assert f"({label or '#'})=" in (ROOT / f"{chapter}.md").read_text() or not label
    assert all((ROOT / r).exists() for r in found.records)
    assert found.command or found.said in ("not measured", "not testable at this scale")
    for command in filter(None, found.command.split(" && ") if not found.command.startswith("python") else []):
        if command.startswith("pytest"):
            assert re.fullmatch(r"pytest (tests/\w+\.py) -k (\w+)", command)
            continue
        name, profile = re.fullmatch(r"mc bench (\w+) --profile (\w+)", command).groups()
        file = ROOT / f"nbs/bench/{name}.yaml"
        assert profile in yaml.safe_load(file.read_text()) if file.exists() else found.said == "not measured yet"


def test_names_are_different():
    assert len({c.name for c in CLAIMS}) == len(CLAIMS) >= 40 and {c.found(ROOT).said for c in CLAIMS} <= set(VERDICTS)


def test_evidence_is_what_the_records_hold():
    "Recomputed from the files without the ledger's code."
    found = claim("GRM, recall").found(ROOT)
    runs = {}
    for path in found.records:
        r = load_json(ROOT / path)
        right = r.get("accuracy") or next(s["right"] for s in r["scores"] if s["task"]["pairs"] == 64)
        runs.setdefault(r["variant"], {})[r["seed"]] = right
    gaps = [a - runs["none"][s] for s, a in runs["grm"].items()]
    assert found.runs == f"{len(gaps)} seeds" and found.margin[0] == pytest.approx(sum(gaps) / len(gaps)) and found.margin[1] < found.margin[0]


@pytest.mark.parametrize("module, call", [("claims", "Claim"), ("questions", "Question")])
def test_no_number_of_a_row_is_typed(module, call):
    "In the sources numbers are those of tables, sizes of tests and counts; no text that is shown as a number has a digit."
    tree = ast.parse((ROOT / f"mc/evidence/{module}.py").read_text())
    rows = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == call]
    assert len(rows) > 15
    sizes = {64, 120, 128, 512, 1024, 2048, 4096, 8192, 16384}
    for row in rows:
        words = [row.args[4]] if call == "Claim" else []
        specs = [f.format_spec for n in words for f in ast.walk(n) if isinstance(f, ast.FormattedValue)]
        literal = [v for n in words for j in ast.walk(n) if isinstance(j, ast.JoinedStr) and j not in specs for v in j.values if isinstance(v, ast.Constant)]
        literal += [n for n in words if isinstance(n, ast.Constant)]
        assert not [v.value for v in literal if re.search(r"\d", v.value)], ast.unparse(row)
        parts = row.args[4:] + [k.value for k in row.keywords]
        constants = [n.value for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant)]
        typed = {c for c in constants if isinstance(c, int | float) and not isinstance(c, bool)}
        assert typed <= {1, 2, 3, 4, 5, 6, 8} | sizes and not [c for c in typed if isinstance(c, float)], ast.unparse(row)


def test_rows_that_the_paper_contradicts_lead_to_the_errata():
    rows = [c for c in CLAIMS if c.found(ROOT).said == "the paper contradicts itself"]
    assert len(rows) >= 5 and all(c.page.startswith("nbs/evidence/errata#errata-") for c in rows)
    back = (ROOT / "nbs/evidence/errata.md").read_text()
    assert "what_holds" in back or "chap-what-holds" in back


# ---- the open questions

def test_sixteen_questions_have_an_answer_or_a_reason():
    assert len(QUESTIONS) == 16 and len({q.short for q in QUESTIONS}) == 16
    for q in QUESTIONS:
        found = q.evidence_in(ROOT)
        assert q.asks.endswith("?") and q.answer(found).endswith(".") and found
        assert all((ROOT / r).exists() for f in found for r in f.records)


def test_an_answer_follows_the_first_comparison(made):
    ask = lambda a, b: Question("", "", "", (paired(f"made/{a}", f"made/{b}", length=512),), "Yes.", "No.", "Unclear.")
    said = {pair: ask(*pair).answer(ask(*pair).evidence_in(made)) for pair in ("ba", "ab", "ca", "xa")}
    assert said == {"ba": "Yes.", "ab": "No.", "ca": "Unclear.", "xa": "Not measured yet."}
    four = Question("", "", "", tuple(paired(f"made/{a}", f"made/{b}", length=512) for a, b in ("ba", "ab", "ca", "xa")), "Yes.", "No.", alike=4)
    assert four.answer(four.evidence_in(made)) == "It depends: the one named first recalls more in 1 of 3 comparisons, less in 1; 1 undecided."
    same = paired("made/b", "made/a", length=128)
    mixed = Question("", "", "", (*four.evidence[:3], same), "Yes.", "No.", alike=4)
    assert mixed.answer(mixed.evidence_in(made)).endswith("more in 1 of 4 comparisons, less in 1; 1 undecided, 1 without any difference.")
    assert (two := Question("", "", "", four.evidence[:1] * 2, "Yes.", alike=2)).answer(two.evidence_in(made)) == "Yes."
    first = Question("", "", "", four.evidence, "Yes.", alike=1)
    assert first.answer(first.evidence_in(made)) == "Yes."    # the others are no evidence for it
    assert (equal := Question("", "", "", (same,), "Yes.", "No.")).answer(equal.evidence_in(made)) == "There is no difference at all."
    why = Question("", "", "", (unmeasured("Nobody has a machine that large."),))
    assert why.answer(why.evidence_in(made)) == "Nobody has a machine that large."


def test_how_far_seeds_scatter(made):
    found = ledger_runs.scatter(("made", "nowhere", "other"))(made)
    sd = {v: stdev([100 * next(s["right"] for s in r["scores"] if s["task"]["length"] == 512) for r in measured(made / "results/made/cpu") if r["variant"] == v]) for v in "abce"}
    all_ = sorted([*sd.values(), 0.0, 0.0, 0.0])
    assert f"made {median(all_):.1f} (0.0 to {max(all_):.1f}); other " in found.gap and found.runs == "2 to 3 seeds"
    assert found.said == "measured" and all((made / r).exists() for r in found.records) and found.command.count("mc bench") == 2
    assert f"(0.0 to {max(all_):.1f})" in found.ours and not found.ours.endswith(".")
    asked = Question("", "", "", (ledger_runs.scatter(("made",)),))
    assert asked.answer(asked.evidence_in(made)).endswith(f"(0.0 to {max(all_):.1f}).")
    nothing = Claim("", "", "", "", "", ledger_runs.scatter(("nowhere",)), "").found(made)
    assert nothing.said == "not measured yet"


def test_the_scale_of_the_connector_is_answered_by_its_readings():
    (asked,) = [q for q in QUESTIONS if q.short == "W_u"]
    found = asked.evidence_in(ROOT)
    assert "scores × 4" in found[0].ours and found[0].records and asked.answer(found).startswith(("Shape and initialisation", "It depends"))


# ---- the built pages

def test_the_ledger_of_the_page_is_the_computed_one(page, context, site):
    page.goto(f"{site}nbs/start/what_holds.html")
    page.wait_for_selector(".mc-table[data-ready]")
    held = [c for c in CLAIMS if c.found(ROOT).said == HOLDS]
    page.select_option("select[aria-label=verdict]", label=f"●\u00a0{HOLDS}")
    assert page.inner_text(".mc-table-count") == f"{len(held)} of {len(CLAIMS)} rows"
    first = page.locator(".mc-table tbody tr").first
    assert held[0].says in first.inner_text() and first.locator("td.command button").count() == 1
    page.select_option("select[aria-label=verdict]", label="–\u00a0not measured")
    without = page.locator(".mc-table tbody tr")
    assert without.count() >= 1 and without.locator("td.command button").count() == 0    # nothing to copy
    bare = context.browser.new_context(java_script_enabled=False).new_page()
    bare.goto(f"{site}nbs/start/what_holds.html")
    rows = bare.locator(".mc-table tbody tr").all_inner_texts()
    for row, shown in zip(CLAIMS, rows, strict=True):
        found = row.found(ROOT)
        assert all(part in shown for part in (row.says, row.paper, found.said, found.gap, found.command))
    for link in set(bare.locator(".mc-table tbody a").evaluate_all("all => all.map(a => a.href)")):
        assert bare.request.get(link).ok, link
    bare.context.close()
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_the_questions_open(page, site):
    page.goto(f"{site}nbs/evidence/open_questions.html")
    rows = page.locator("details.mc-question")
    assert rows.count() == len(QUESTIONS) and not rows.nth(3).locator("ul").is_visible()
    rows.nth(3).locator("summary").click()
    assert rows.nth(3).locator("ul").is_visible()
