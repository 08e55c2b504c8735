"The ledger: times, and text."
import re
from pathlib import Path
from statistics import median

import pytest

from ledger_records import FAILS, HOLDS, OPEN, ROOT
from mc.evidence import ledger_text
from mc.evidence.claims import CLAIMS, claim
from mc.evidence.ledger import Claim, Found
from mc.evidence.ledger_text import text
from mc.evidence.ledger_times import cost, growth, ratio, since
from mc.storage import load_json, save_json


def test_times_are_judged_against_one_or_their_target():
    record = load_json(ROOT / "results/speed/cpu/ssc.json")
    timed = ratio("speed/cpu/ssc", side=-1, aim=True)(ROOT)
    assert timed.said == (HOLDS if record["high"] < record["target"] else FAILS if record["low"] > record["target"] else OPEN)
    assert timed.margin[0] == pytest.approx(record["target"] / record["value"]) and f"bound {record['target']:g}" in timed.gap
    same = growth("dial/cpu/tokens-4096", "dial/cpu/tokens-4096", "attention", "grm 256")(ROOT)
    assert same.said == FAILS and same.equal and same.margin == (1, 1, 1)


def timed(tokens, ways=("attention", "grm")):
    "Settings of a record of whole models."
    one = dict(tokens=tokens, d_model=64, num_heads=2, segment_size=16, options=dict(num_layers=2))
    return dict(variants={way: one for way in ways})


def test_from_which_length_on_a_time_holds():
    found = {n: Found(said, gap=f"{n} times", records=("x",)) for n, said in ((1024, FAILS), (2048, HOLDS), (4096, FAILS), (8192, HOLDS), (16384, HOLDS))}
    assert since(found) == "The same from 8,192 tokens on; does not hold here at 4,096: 4096 times." and since({1024: found[1024]}) == ""
    assert since({n: found[n] for n in (8192, 16384)}) == "The same at every recorded length, 8,192 to 16,384 tokens."


def test_times_say_of_what_they_are():
    for c in (c for c in CLAIMS if c.about == "cost" and c.name not in ("growth with length", "faster, short C")):
        found = c.found(ROOT)
        r = load_json(ROOT / found.records[0])
        shown = [v for v in r["settings"]["variants"].values() if f"{v['tokens']:,} tokens" in found.ours]
        assert shown and re.search(r"(one layer|2 layers), D = 32, C = (64|256), |one layer, D = 64, C = 256, ", found.ours), found.ours
        assert any(f"D = {v['d_model'] // v['num_heads']}, C = {v['segment_size']}" in found.ours for v in shown)
        assert re.search("linear memory|deep memory", c.says), c.says
    token = claim("one token").found(ROOT)
    lengths = sorted(int(p.stem.split("-")[1]) for p in (ROOT / "results/cost/cpu").glob("decode-*.json"))
    middle = lambda n, under: median(a / b for a, b in zip(*(load_json(ROOT / f"results/cost/cpu/decode-{n}.json")["rounds"][w] for w in ("attention", under))))
    faster = [n for n in lengths if middle(n, "grm") > 1]
    assert token.said == HOLDS and f"The same from {min(faster):,} tokens on; does not hold here at {max(set(lengths) - {*faster}):,}: " in token.also and faster == [n for n in lengths if n >= min(faster)]
    deep = claim("between, deep").found(ROOT)
    assert deep.said == FAILS and deep.margin[0] < 0.5 and "comparisons: softmax attention / Titans (GRM, C = 64), training" in deep.ours


def test_costs_are_those_of_the_longest_text(tmp_path):
    old = load_json(ROOT / "results/speed/cpu/ssc.json")
    for tokens, slow in ((512, 9.0), (1024, 2.0)):
        rounds = {"attention": [slow + i / 100 for i in range(8)], "grm": [1.0] * 8}
        new = {n: v for n, v in old.items() if n != "sha256"} | dict(name=f"training-{tokens}", at=f"T = {tokens:,}", rounds=rounds, settings=timed(tokens))
        save_json(tmp_path / f"results/cost/cpu/training-{tokens}.json", new)
    found = cost("training", "attention", "grm")(tmp_path)
    assert found.said == HOLDS and 2 <= found.margin[0] <= 2.1 and found.records == ("results/cost/cpu/training-1024.json",) and found.runs == "8 rounds"
    save_json(tmp_path / "results/cost/cpu/training-2048.json", new | dict(name="training-2048", rounds={"grm": [1.0] * 8}))
    assert cost("training", "attention", "grm")(tmp_path) == found    # of the longest text, only one was measured
    assert found.ours == "softmax attention / GRM, training, 2 layers, D = 32, C = 16, 1,024 tokens" and found.also == "The same at every recorded length, 512 to 1,024 tokens."
    assert Claim("", "", "", "", "", cost("training", "attention", "ssc"), "").found(tmp_path).said == "not measured yet"
    assert cost("training", "grm", "attention")(tmp_path).said == cost("training", "attention", "grm", side=-1)(tmp_path).said == FAILS


@pytest.mark.parametrize("attention, grm, said", [
    (0.03, 0.02, HOLDS), (0.03, -0.02, FAILS), (0.03, 0.0, OPEN), (0.01, 0.02, "not testable at this scale"), (0.03, None, "not testable at this scale"),
    (None, 0.02, "not measured yet")])
def test_text_says_something_only_where_attention_gains(monkeypatch, tmp_path, attention, grm, said):
    gains = {v: g for v, g in dict(none=0.0, grm=grm, attention=attention).items() if g is not None}
    runs = [dict(variant=v, seed=s, scores=[dict(length=256, bits_per_byte=2.0 - g + s / 10 - (s - 1) * 0.001 * (v == "grm"))]) for v, g in gains.items() for s in range(3)]
    monkeypatch.setattr(ledger_text, "text_records", lambda folder: {100: [], 200: runs} if folder == tmp_path / "results/language/cpu" else {})
    for r in runs:
        save_json(tmp_path / f"results/language/cpu/steps-200/{r['variant']}-seed{r['seed']}.json", {})
    found = Claim("text", "", "", "", "", text("grm"), "").found(tmp_path)
    assert found.said == said and all(r.startswith("results/language/cpu/steps-200/") for r in found.records)
    measured = said in (HOLDS, FAILS, OPEN)
    assert ("bits per byte" in found.gap) == (None not in (attention, grm)) and found.command == "mc bench language --profile cpu"
    assert bool(found.margin) == measured and found.runs == ("3 seeds" if attention else "") and ("Attention itself gains" in found.also) == (said == "not testable at this scale")
    if attention == 0.01:
        assert found.gap == "+0.020 bits per byte (+0.018 to +0.022)" and "+0.010 bits per byte (" in found.also and "less than the 0.02" in found.also
    if grm is None:
        assert not found.ours and "too much for the other models" in found.also and {Path(r).stem.split("-")[0] for r in found.records} == {"attention", "none"}


def test_rows_about_text_have_their_interval_and_seeds():
    for way in ("grm", "ssc"):
        found = claim(f"{way.upper()}, text").found(ROOT)
        steps = max(int(p.parent.name.split("-")[1]) for p in (ROOT / "results/language/cpu").glob(f"steps-*/{way}-seed*.json"))
        bits = lambda v, s: load_json(ROOT / f"results/language/cpu/steps-{steps}/{v}-seed{s}.json")["scores"][0]["bits_per_byte"]
        gains = [bits("none", s) - bits(way, s) for s in range(3)]
        assert found.runs == "3 seeds" and found.gap.startswith(f"{sum(gains) / 3:+.3f} bits per byte (".replace("-", "−")) and {f"results/language/cpu/steps-{steps}/{way}-seed{s}.json" for s in range(3)} <= {*found.records}
