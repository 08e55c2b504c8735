"Numbers of the ledger without a verdict: how far seeds scatter, what segments and tokens cost, what was not run and why."
from statistics import stdev

import pytest

from ledger_records import ROOT, record
from mc.evidence import ledger_numbers
from mc.evidence.ledger import Claim, Missing
from mc.evidence.questions import Question
from mc.storage import load_json, save_json


def trained(root, name, seed, start=None, width=64, **right):
    "As `record`, of a run that trains a model of a `width`."
    record(root, name, seed, start, **right)
    benchmark, variant = name.split("/")
    path = root / f"results/{benchmark}/cpu/{variant}-seed{seed}.json"
    found = load_json(path)
    found["settings"] |= {"training": dict(steps=1, batch=1, learning_rate=0.01, curriculum=True), "model": {"d_model": width}}
    found["train_cpu_seconds"] = 1800.0
    save_json(path, found)


def test_how_far_seeds_scatter(tmp_path):
    "Trained models inside alone: no ceiling, no floor, no reading, no repeated run, no single seed."
    shares = {"one/none": (0.2, 0.5, 0.7), "one/wide": (0.4, 0.5, 0.6), "two/ssc": (0.8, 0.9, 0.7), "two/none": (0.2, 0.5, 0.7)}
    for width, (name, some) in enumerate(shares.items()):
        for seed, a in enumerate(some):
            trained(tmp_path, name, seed, width=0 if name == "two/none" else width, at128=1.0, at512=a)
            record(tmp_path, "one/grm", seed, at512=0.1 + seed / 5)     # a reading
            trained(tmp_path, "one/swla", seed, width=9, at512=0.01 * seed)
    trained(tmp_path, "two/grm", 0, width=7, at512=0.5)
    found = ledger_numbers.scatter(("one", "nowhere", "two"))(tmp_path)
    sd = {name: stdev(100 * a for a in some) for name, some in shares.items()}
    first, second = sd["one/none"], sd["two/ssc"]
    assert f"median {second:.1f}, largest {first:.1f} (no caching at 8 pairs and 512 tokens); of 3 trained models" in found.ours
    assert found.gap.startswith(f"one: median {(first + sd['one/wide']) / 2:.1f}, ") and f"; two: median {second:.1f}, " in found.gap
    assert found.said == "measured" and found.runs == "3 seeds" and len(found.records) == 9 and found.command.count("mc bench") == 2
    asked = Question("", "", "", (ledger_numbers.scatter(("one",)),))
    assert asked.answer(asked.evidence_in(tmp_path)).endswith("between 10 and 90 %.")
    nothing = Claim("", "", "", "", "", ledger_numbers.scatter(("nowhere",)), "").found(tmp_path)
    assert nothing.said == "not measured yet"


def test_numbers_without_a_verdict(tmp_path):
    for seed, a in enumerate((0.25, 0.75)):
        trained(tmp_path, "one/ssc", seed, at512=a)
    for rate in (0.003, 0.01):
        trained(tmp_path, f"one/ssc-rate{rate:g}", 1000, at512=0.5)
        path = tmp_path / f"results/one/cpu/ssc-rate{rate:g}-seed1000.json"
        found = load_json(path)
        found["settings"]["training"]["learning_rate"] = rate
        save_json(tmp_path / f"results/one/cpu/search/{path.name}", found)
        path.unlink()
    found = ledger_numbers.every_seed("one/ssc", length=512)(tmp_path)
    assert found.ours == "SSC at 512 tokens, seed by seed 0.25, 0.75; its rate, 0.01, is the largest that was tried" and len(found.records) == 2
    why = ledger_numbers.not_run("one", "It took {hours} hours of our time.")(tmp_path)
    assert why.ours == "It took 2.0 hours of our time." and len(why.records) == 4
    for source in (ledger_numbers.by_segment, ledger_numbers.segment_costs, ledger_numbers.token_costs("attention", "grm")):
        with pytest.raises(Missing):
            source(tmp_path)
    tokens = load_json(ROOT / "results/cost/cpu/decode-1024.json")
    said = ledger_numbers.token_costs("attention", "grm")(ROOT)
    assert f"attention {1000 * tokens['cpu_seconds']['attention']:.2f} ms" in said.ours and "D = 32, C = 64" in said.ours
    assert "C = 4 " in ledger_numbers.by_segment(ROOT).ours and " ms and " in ledger_numbers.segment_costs(ROOT).ours
