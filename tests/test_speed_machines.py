"""Floors, machines and devices: what does not depend on how long anything takes, nor on what it runs on."""
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mc.evidence.speed.floors
from mc.evidence.record_schema import SpeedRecord
from mc.evidence.schema import checked
from mc.evidence.speed.devices import CONTENDERS, DTYPES, OnDevice, device_items, device_table, ran_on_a_gpu
from mc.evidence.speed.floors import FLOOR, Floors, floor_figure, floor_table, floors, goals, operations, over_floor, parts, reasons, side_by_side
from mc.evidence.speed.machine import Rates, kind, kinds, machine, product, slug
from mc.evidence.speed.peers import PeerFailed, peer
from mc.evidence.speed.ratios import Comparison
from mc.evidence.speed.records import measure, read_speed, with_others
from mc.evidence.speed.variants import Variant, memory_caching_layer
from mc.storage import load_json, save_json

ROOT = Path(__file__).resolve().parents[1]
TINY = Variant("layer", 32, d_model=8, segment_size=8)
SOME = {"grm": TINY, "none": replace(TINY, aggregation="none")}
DEVICE = dict(tokens=48, heads=2, size=8, segment=16, device="cpu", repeats=6, least=1e-4)


# ---- floors

def test_operations_are_those_that_run_and_attention_counts_the_pairs_it_looks_at():
    x = torch.randn(1, 32, 8, requires_grad=True)
    layer = TINY.layer()
    with FlopCounterMode(display=False) as counter:
        layer(x).square().mean().backward()
    assert operations(TINY) == counter.get_total_flops()
    T, width = 32, 8
    around = 3 * 2 * T * width**2 * (3 * 2 + 1 + 1)
    assert operations(replace(TINY, kind="attention")) == around + 7 * 2 * (T * (T + 1) // 2) * width
    assert operations(replace(TINY, kind="attention", batch=3)) == 3 * operations(replace(TINY, kind="attention"))


def test_time_over_floor_by_hand():
    "Three GFLOP at a rate of one in two seconds are six; nine seconds are half as long again."
    record = {"flops": {"grm": 3 * 10**9, FLOOR: 10**9}, "rounds": {"grm": [9.0] * 6, FLOOR: [2.0] * 6}, "cpu_seconds": {"grm": 9.0}}
    assert over_floor(record, "grm") == (1.5, 1.5, 1.5) and parts(record, "grm") == pytest.approx((6, 3))


class Fake:
    "A compiled layer that answers at once, or cannot be compiled."
    closed = []

    def __init__(self, variant, folder, **env):
        assert variant.kind == "compiled" and variant.options == {"of": "layer"} and Path(env["TORCHINDUCTOR_CACHE_DIR"]).is_dir()
        self.works, self.first = variant.aggregation == "grm", {"wall": 12.345, "graphs": 2}

    def __call__(self):
        if not self.works:
            raise PeerFailed("no C++ compiler", "")
        return 0.5

    def close(self):
        Fake.closed.append(self)


def test_compiled_layers_take_turns_and_one_that_cannot_be_compiled_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(mc.evidence.speed.floors, "peer", Fake)
    item = Floors("floor-4096-1-32", "T = 32", SOME, ("grm", "none"), goals={"grm, compiled": 1e9, "none, compiled": 2, "none": 1e-9, "ssc": 1}, repeats=6)
    record = measure(item, tmp_path, "a test")
    assert list(record["cpu_seconds"]) == ["grm", "none", FLOOR, "grm, compiled"] and record["failed"] == {"none, compiled": "no C++ compiler"}
    assert record["rounds"]["grm, compiled"] == [0.5] * 6 and record["amounts"] == {"seconds of compiling": {"grm, compiled": 12.35}, "graphs": {"grm, compiled": 2}}
    assert record["flops"]["grm, compiled"] == record["flops"]["grm"] and len(Fake.closed) == 2
    (row,) = floors([record]).values()
    table = floor_table([record])
    assert "2 graphs, 12 s" in table.loc["GRM, compiled", "T = 32"] and table.loc["no caching, compiled", "T = 32"] == "did not compile: no C++ compiler"
    aims = goals([record]).set_index("layer")
    assert dict(aims["reached"]) == {"grm, compiled": "yes", "none, compiled": "no", "none": "no", "ssc": "no"}
    assert aims.loc["none, compiled", "time / floor"] == "no C++ compiler" and aims.loc["ssc", "time / floor"] == "not in this run"
    said, (value, *_) = aims.loc["none", "above the floor"], over_floor(record, "none")
    assert said == f"{1 - 1 / value:.0%} of the time"
    figure = floor_figure([record])
    assert [t.name for t in figure.data] == ["eager", "compiled"] and list(figure.data[1].y) == ["GRM"] and row is record


@pytest.mark.slow
def test_a_compiled_layer_in_a_process_of_its_own():
    "The protocol in earnest, with a backend that needs no C++ compiler: seconds, the wait for the first call, graphs, what came out."
    variant = replace(TINY, kind="compiled", aggregation="none", options={"of": "layer", "backend": "eager"})
    call = memory_caching_layer(replace(variant, kind="layer"))
    call()
    there = peer(variant, None)
    try:
        assert there() > 0 and there() > 0
        assert there.first["wall"] > there.answer["wall"] and there.first["graphs"] >= 1
        eager = call.largest()
        assert there.largest() == {name: pytest.approx(eager[name], rel=1e-4) for name in ("output", "gradient")}
    finally:
        there.close()
    there = peer(replace(variant, options=variant.options | {"backend": "nobody"}), None)
    with pytest.raises(PeerFailed, match="nobody"):
        there()
    there.close()


def test_floors_name_what_there_is():
    with pytest.raises(ValueError, match="of and compiled name variants, grm, none; got 'ssc'"):
        Floors("f", "", SOME, ("ssc",))


# ---- machines

def test_a_record_says_what_ran_it(tmp_path):
    record = measure(Rates("rates", shrink=64, repeats=6), tmp_path, "a test")
    assert record["machine"] == machine() and record["low"] <= record["value"] <= record["high"]
    assert set(record["amounts"]["GFLOP/s"]) == {"mm 64", "mm 256", "mm 1024"} and all(v > 0 for v in record["amounts"]["GB/s"].values())
    _, done = product(64, 4, 10**9 // 64**2)
    assert done % (2 * 64 * 4**2) == 0 and 0 <= done - 10**9 // 64**2 < 2 * 64 * 4**2
    each = [done / 2 / (2**24 / 64) * a / b for a, b in zip(record["rounds"]["copy, memory"], record["rounds"]["mm 256"])]
    assert min(each) * 0.99 <= record["value"] <= max(each) * 1.01


def other(record: dict) -> dict:
    "The same record, of another processor."
    return {k: v for k, v in record.items() if k != "sha256"} | {"machine": {"processor": "Intel(R) Xeon(R) CPU", "extensions": ["avx2", "avx512f"]}}


def test_kinds_of_processors_do_not_overwrite_each_other(tmp_path):
    item = Comparison("attention-32", "attention / GRM", "T = 32", SOME, ("none", "grm"), repeats=6)
    mine = measure(item, tmp_path, "a test")
    save_json(tmp_path / "attention-32.json", other(mine))                         # somebody else's came first
    again = measure(item, tmp_path, "a test")
    place = tmp_path / slug(kind(mine)) / "attention-32.json"
    assert load_json(place) == load_json(place) and load_json(place)["machine"] == machine() == again["machine"]
    assert [r["machine"]["processor"] for r in read_speed(tmp_path)] == ["Intel(R) Xeon(R) CPU"]
    assert list(kinds(tmp_path)) == ["Intel Xeon, AVX-512", kind(mine)]
    before = place.stat().st_mtime_ns
    measure(item, tmp_path, "a test")
    assert place.stat().st_mtime_ns == before                                      # measured once
    table = side_by_side(kinds(tmp_path))
    assert list(table.columns) == ["Intel Xeon, AVX-512", kind(mine)] and "attention / GRM, T = 32" in table.index


def test_shipped_records_have_a_kind_each():
    found = kinds(ROOT / "results/speed/cpu")
    assert found and all(records for records in found.values()) and sum(map(len, found.values())) >= len(read_speed(ROOT / "results/speed/cpu"))
    assert kinds(ROOT / "results/speed/nowhere") == {}


def test_the_difference_of_two_kinds_comes_apart():
    def record(mm, grm, attention):
        seconds = {"grm": grm, "attention": attention, FLOOR: mm}
        return {"name": "floor-4096-1-32", "settings": {"variants": {"grm": {"tokens": 4096}}}, "at": "here", "value": 1.0, "flops": dict.fromkeys(seconds, 10), "cpu_seconds": seconds,
                "rounds": {n: [s] * 6 for n, s in seconds.items()}}
    a, b = record(1.0, 3.0, 9.0), record(0.25, 1.25, 8.25)                         # above the floor: 2 and 8; then 1 and 8
    (said,) = reasons({"A": [a], "B": [b]})
    assert "the products take 0.25 times as long as on A, what GRM does besides 0.50 times, and what softmax attention does besides 1.00 times" in said
    assert "takes 6.6 times as long as GRM there, 3.0 here" in said
    assert reasons({"A": [a], "B": []}) == []


def test_older_records_of_memories_that_diverged_are_not_shown():
    some = [r for r in read_speed(ROOT / "results/speed/cpu") if r["name"].startswith("titans-pytorch")]
    assert {r["name"] for r in with_others(some)} == {r["name"] for r in some if r["settings"].get("bound")}
    assert with_others([some[0] | {"settings": some[0]["settings"] | {"bound": 100}}])


# ---- devices

@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_device_is_asked_runs_on_the_cpu(dtype, tmp_path):
    ours = ("attention", "none", "grm", "ssc", "gated_delta")
    record = measure(OnDevice("device-48", "T = 48", ours, ("attention", "grm"), dtype=dtype, **DEVICE), tmp_path, "a test")
    checked(SpeedRecord, {k: v for k, v in record.items() if k != "sha256"}, "it")
    assert set(record["rounds"]) == set(record["amounts"]["seconds"]) == set(ours) and record["low"] <= record["value"] <= record["high"]
    assert "failed" not in record and not ran_on_a_gpu([record])
    assert ran_on_a_gpu([record | {"settings": record["settings"] | {"device": "cuda"}}])
    step = measure(OnDevice("device-step-48", "T = 48", ours[:4], ("attention", "grm"), step=True, dtype=dtype, **DEVICE), tmp_path, "a test")
    assert set(step["rounds"]) == set(ours[:4]) and list(device_table([record, step]).index) == ["both passes, T = 48", "one token, T = 48"]


def library(monkeypatch, linear):
    "A flash-linear-attention with one kernel."
    for name in ("fla", "fla.ops", "fla.ops.linear_attn"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["fla.ops.linear_attn"].chunk_linear_attn = linear


def test_kernels_of_others_are_timed_if_they_compute_the_same(monkeypatch):
    def linear(q, k, v, scale, normalize):
        assert not normalize
        return scale * torch.einsum("bhts,bshd->bthd", torch.einsum("bthd,bshd->bhts", q, k).tril(), v), None
    item = OnDevice("device-48", "", ("grm", "attention", "fla linear", "fla gated delta"), ("attention", "grm"), **DEVICE)
    library(monkeypatch, linear)
    found = item.run()
    assert "fla linear" in found["rounds"] and found["failed"].keys() == {"fla gated delta"} and "ModuleNotFoundError" in found["failed"]["fla gated delta"]
    library(monkeypatch, lambda q, k, v, scale, normalize: linear(q, k, v, 0.5, normalize))
    found = item.run()
    assert "fla linear" not in found["rounds"] and "differs from ours by 0.5 of the largest number" in found["failed"]["fla linear"]


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    items = device_items("cuda", (4096,), (1024,), 6)
    assert {(i.dtype, i.step) for i in items} == {(d, s) for d in DTYPES for s in (False, True)} and items[0].names == tuple(CONTENDERS)
    with pytest.raises(ValueError, match="device must be one that torch sees; it sees no cuda"):
        items[0].run()
    with pytest.raises(ValueError, match="dtype"):
        replace(items[0], dtype="float8")
