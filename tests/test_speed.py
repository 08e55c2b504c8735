"""Speed is measured honestly: turns, ratios, counts, other packages. No test depends on how long anything takes."""
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from typer.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

import mc.evidence.speed.peers
import mc.evidence.speed.ratios
import nbtool
from mc.commands.base import main
from mc.evidence.records import provenance
from mc.evidence.speed.kept import Kept, grm_bytes, grm_kept, kept_bytes
from mc.evidence.speed.peers import PEERS, Peer, PeerFailed
from mc.evidence.speed.ratios import Comparison, interleaved, median_interval, parts_of, ratios, split
from mc.evidence.speed.records import against_targets, measure, measure_all, overview, read_speed, remarks
from mc.evidence.speed.variants import KINDS, Variant, multiply_adds, torch_mm
from mc.storage import load_json, save_json

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
TINY = Variant("layer", 32, d_model=8, segment_size=8)
OURS = Comparison("ours", "SSC / no caching", "T = 32", {"SSC": replace(TINY, aggregation="ssc"), "none": replace(TINY, aggregation="none")},
                  ("SSC", "none"), repeats=6, explain=("SSC",))
THEIRS = Comparison("theirs", "memory-caching / GRM", "T = 32", {"GRM": TINY, "theirs": replace(TINY, kind="memory-caching")},
                    ("theirs", "GRM"), target=1.0, repeats=6)


class Clock:
    "Time passes when somebody works, and only then."

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def work(self, name, amounts):
        amounts = iter(amounts)

        def call():
            self.calls.append(name)
            self.now += next(amounts)
        return call


def fake(folder, code):
    "A memory-caching that is there already, so that nothing is installed."
    place = folder / "memory-caching-0.1.0"
    place.mkdir(parents=True)
    (place / "memory_caching.py").write_text(code)
    return folder


WORKS = """
print("a package may say what it likes")
from types import SimpleNamespace
import torch

MCConfig = DLAConfig = TitansConfig = SimpleNamespace
LinearMemoryBackend = DLABackend = TitansBackend = lambda *_: None

class MemoryCachingLayer(torch.nn.Linear):
    def __init__(self, config, backend):
        assert (config.state_init_mode, config.segment_size, torch.get_num_threads()) == ("restart", 8, 1)
        super().__init__(config.d_model, config.d_model)
"""


# ---- turns

def test_variants_take_turns_and_the_first_round_does_not_count():
    clock = Clock()
    found = interleaved({"a": clock.work("a", [9, 1, 2]), "b": clock.work("b", [9, 3, 5])}, 2, clock=clock)
    assert clock.calls == ["a", "b", "a", "b", "a", "b"]
    assert found == {"a": [1, 2], "b": [3, 5]}


def test_a_variant_may_be_called_several_times_a_round_and_may_time_itself():
    clock = Clock()
    variants = {"a": clock.work("a", [9, 1, 2, 4, 4, 1]), "elsewhere": lambda: 0.25}
    assert interleaved(variants, 2, {"a": 3}, warmup=0, clock=clock) == {"a": [2, 4], "elsewhere": [0.25, 0.25]}
    assert clock.calls == ["a"] * 6


def test_ratios_are_of_neighbours():
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2.0, 3.0]
    with pytest.raises(ValueError):
        ratios({"a": [2.0, 9.0], "b": [1.0]}, "a", "b")


@pytest.mark.parametrize("n, low, high", [(5, None, None), (6, 1, 6), (8, 1, 8), (9, 2, 8), (15, 4, 12), (20, 6, 15)])
def test_interval_of_the_median_against_a_table(n, low, high):
    "Ranks of the sign test's interval at 95 %, as statistics tables print them."
    values = [float(i) for i in range(n, 0, -1)]
    assert median_interval(values) == ((n + 1) / 2, low, high)


# ---- bytes and multiply-adds

def test_kept_bytes_of_known_graphs():
    x, w = torch.randn(10, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    assert kept_bytes(lambda: x @ w) == 4 * (40 + 16)
    assert kept_bytes(lambda: x @ w, besides=[w]) == 4 * 40
    assert kept_bytes(lambda: x[:5] @ w, besides=[w]) == 4 * 40                    # a view keeps all of its storage
    assert kept_bytes(lambda: (x.exp().tanh() + 1) * 2) == 2 * 4 * 40
    assert kept_bytes(lambda: x.double().exp()) == 8 * 40
    with torch.no_grad():
        assert kept_bytes(lambda: x @ w) == 0


@pytest.mark.parametrize("backend", ["linear", "swla", "dla", "titans", "gated_delta"])
@pytest.mark.parametrize("tokens, segment", [(256, 16), (256, 64), (1024, 64), (1024, 256), (2048, 16)])
def test_grm_keeps_no_more_than_its_formula(backend, tokens, segment):
    variant = Variant("layer", tokens, backend=backend, segment_size=segment)
    assert grm_kept(variant) <= grm_bytes(variant)
    rows = 4 * 2 * 2 * (tokens - 5) * 32                                           # numbers of D for every token of a ragged batch
    ragged = replace(variant, tokens=tokens - 5, batch=2)
    assert grm_kept(ragged) <= grm_bytes(ragged) + 8 * rows


def test_the_formula_is_that_of_the_text():
    "T (N+1) gates, N memories and an anchor, three rows; a byte of mask for each gate, two indexes."
    T, N, H, D = 1024, 16, 2, 32
    assert grm_bytes(Variant("layer", T)) == 4 * H * (T * (N + 1) + (N + 1) * D * D + 3 * T * D) + T * (N + 1) + 16 * T


def test_multiply_adds_by_hand_and_against_what_runs():
    variant = Variant("layer", 6, d_model=8, segment_size=4)                       # heads of 4; tokens 4 and 5 see one memory
    projections = 6 * 8 * 8 * (3 * 2 + 1 + 1 + 1)
    memory = 2 * (6 * 2 * 16 + 2 * (16 + 4) + 6 * 4)
    assert multiply_adds(variant) == 3 * (projections + memory)
    assert multiply_adds(replace(variant, kind="around")) == 3 * projections
    assert multiply_adds(replace(variant, aggregation="none")) == 3 * (6 * 64 * 8 + 2 * 6 * 2 * 16)
    for variant in (Variant("layer", 512), Variant("around", 512), Variant("layer", 512, aggregation="none")):
        call = KINDS[variant.kind](variant)
        with FlopCounterMode(display=False) as counter:
            call()
        assert 0.7 < multiply_adds(variant) / (counter.get_total_flops() / 2) <= 1


def test_torch_mm_does_as_much_as_the_layer():
    variant = Variant("torch.mm", 96, segment_size=32)
    with FlopCounterMode(display=False) as counter:
        torch_mm(variant)()
    layer = multiply_adds(replace(variant, kind="layer"))
    assert 0 <= layer - counter.get_total_flops() / 2 < 64**2                      # to less than a row


def test_the_parts_of_a_layer_add_up():
    seconds = {"GRM": 10.0, "GRM: around": 4.0, "GRM: segments": 5.0}
    assert list(split("GRM", seconds).values()) == [4.0, 1.0, 5.0]
    assert list(split("GRM", {"GRM": 10.0, "GRM: around": 4.0}).values()) == [4.0, 6.0]
    assert list(parts_of("GRM", TINY)) == ["GRM: around", "GRM: segments"]
    assert list(parts_of("none", replace(TINY, aggregation="none"))) == ["none: around"]


# ---- other packages

def test_a_peer_in_its_own_process(tmp_path):
    record = measure(THEIRS, tmp_path / "records", "a test", fake(tmp_path / "packages", WORKS))
    assert record["error"] is None and record["value"] > 0 and record["reached"] is not None
    assert set(record["cpu_seconds"]) == {"GRM", "theirs"} and len(record["rounds"]["theirs"]) == 6


def test_what_diverges_has_no_ratio(tmp_path):
    "Both sides are looked at, the other process included; a record within the bound holds what it saw."
    packages = fake(tmp_path / "packages", WORKS)
    record = measure(replace(THEIRS, bound=100), tmp_path / "records", "a test", packages)
    assert record["error"] is None and record["amounts"].keys() == {"GRM", "theirs"}
    assert record["amounts"]["GRM"].keys() == {"output", "gradient", "memory"} and record["amounts"]["theirs"].keys() == {"output", "gradient"}
    record = measure(replace(THEIRS, name="far", bound=1e-6), tmp_path / "records", "a test", packages)
    assert record["value"] is None and re.search("the output of GRM reaches .*; at most 1e-06 is a memory", record["error"])
    titans = Variant("layer", 1024, 2, num_heads=4, backend="titans", aggregation="none", chunk_size=64)
    pair = {"64": titans, "32": replace(titans, chunk_size=32)}
    record = measure(replace(OURS, name="titans", variants=pair, ratio=("64", "32"), repeats=1, explain=(), bound=100), tmp_path / "records", "a test")
    assert re.search("the (memory|gradient) of 64 reaches", record["error"])
    record = measure(replace(OURS, name="32", variants={"a": pair["32"], "b": pair["32"]}, ratio=("a", "b"), repeats=1, explain=(), bound=100), tmp_path / "records", "a test")
    assert record["error"] is None and record["amounts"]["a"]["memory"] < 10


@pytest.mark.parametrize("code, error", [
    ("raise ImportError('cannot use /home/somebody/torch.so')", "ImportError: cannot use torch.so"),
    (WORKS + "    def forward(self, x):\n        raise RuntimeError('first line\\nlast line')", "last line"),
    ("import os; os._exit(7)", "it ended with code 7"),
])
def test_a_peer_that_fails_is_recorded_and_the_run_goes_on(code, error, tmp_path):
    packages, folder = fake(tmp_path / "packages", code), tmp_path / "records"
    records = measure_all([THEIRS, OURS], folder, "a test", packages)
    assert [r["error"] for r in records] == [error, None]
    assert records[0]["value"] is None and records[0]["reached"] is None and records[1]["value"] > 0
    assert "somebody" not in (folder / "theirs.json").read_text()
    assert remarks(records) == f"theirs did not run: {error}"
    assert list(overview(records)["ratio"])[0] == "did not run"

    before = (folder / "ours.json").stat().st_mtime_ns
    (packages / "memory-caching-0.1.0/memory_caching.py").write_text(WORKS)        # repaired: only that one runs again
    assert [r["error"] for r in measure_all([THEIRS, OURS], folder, "a test", packages)] == [None, None]
    assert (folder / "ours.json").stat().st_mtime_ns == before


def test_a_package_that_cannot_be_installed_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setitem(PEERS, "memory-caching", [str(tmp_path / "memory_caching-9-py3-none-any.whl")])
    record = measure(THEIRS, tmp_path / "records", "a test", tmp_path / "packages")
    assert "memory_caching-9" in record["error"] and str(tmp_path) not in record["error"]
    assert list((tmp_path / "packages").iterdir()) == []                           # nothing half-installed


def test_a_peer_that_hangs_is_ended():
    peer = Peer([sys.executable, "-c", "import time; time.sleep(600)"], limit=0.1)
    with pytest.raises(PeerFailed, match="^it took more than 0.1 seconds$"):
        peer()
    peer.close()


def test_no_peer_is_left_running(tmp_path, monkeypatch):
    started, start = [], Peer

    def remember(*arguments):
        started.append(start(*arguments))
        return started[-1]
    monkeypatch.setattr(mc.evidence.speed.peers, "Peer", remember)
    measure(THEIRS, tmp_path / "records", "a test", fake(tmp_path / "packages", WORKS))
    assert [peer.process.poll() is not None for peer in started] == [True]


# ---- records

def test_a_record_is_whole_and_is_not_measured_twice(tmp_path, monkeypatch):
    record = measure(OURS, tmp_path, "a test")
    assert list(record["cpu_seconds"]) == ["SSC", "none", "SSC: around", "SSC: segments"]
    assert record["low"] <= record["value"] <= record["high"] and record["settings"]["variants"]["SSC"]["tokens"] == 32
    assert set(provenance("")) <= record.keys() and record["command"] == "a test"
    monkeypatch.setattr(mc.evidence.speed.ratios, "interleaved", None)
    assert measure(OURS, tmp_path, "another") == record == read_speed(tmp_path)[0]


def test_targets_reached_and_missed(tmp_path):
    cases = {"least": (1e-9, False, True), "too much": (1e9, False, False), "most": (1e9, True, True), "too little": (1e-9, True, False)}
    for name, (target, at_most, reached) in cases.items():
        record = measure(replace(OURS, name=name, target=target, at_most=at_most), tmp_path, "a test")
        assert record["reached"] is reached and (record["limit"] is None) is reached
        assert reached or "SSC spends" in record["limit"] and "in reads of cached memories" in record["limit"]
    figure = against_targets(read_speed(tmp_path))
    good, bad, target = ({*trace.y} for trace in figure.data)
    assert good == {"least", "most"} and bad == {"too much", "too little"}
    assert all(x > 1 for x in figure.data[0].x) and all(x < 1 for x in figure.data[1].x)


def test_reasons_for_growth_and_for_the_rate():
    long = replace(TINY, tokens=64)
    growth = replace(OURS, variants={"long": long, "short": TINY}, ratio=("long", "short"), explain=("long", "short"))
    seconds = {"long": 10.0, "long: around": 4.0, "long: segments": 6.0, "short": 4.0, "short: around": 2.0, "short: segments": 3.0}
    assert growth.reason({"cpu_seconds": seconds}).endswith(
        "Part by part the ratio is 2 around the memory (projections, norms, gate), 2 in online memories, pools and gates, "
        "4 in reads of cached memories.")
    rate = replace(OURS, variants={"GRM": TINY, "torch.mm": replace(TINY, kind="torch.mm")}, ratio=("torch.mm", "GRM"), explain=("GRM",))
    work = multiply_adds(replace(TINY, kind="around")) / multiply_adds(TINY)
    said = rate.reason({"cpu_seconds": {"GRM": 4.0, "GRM: around": 2.0, "GRM: segments": 3.0, "torch.mm": 1.0}})
    assert said.endswith(f"The part around the memory reaches {work / 2:.0%} of torch.mm's rate.")


def test_bytes_have_a_record_too(tmp_path):
    variants = {f"N = {256 // c}": Variant("layer", 256, segment_size=c) for c in (16, 64)}
    record = measure(Kept("kept", "bytes / formula", "T = 256", variants), tmp_path, "a test")
    counts = [b["counted"] / b["promised"] for b in record["bytes"].values()]
    assert record["reached"] and record["value"] == pytest.approx(max(counts), rel=1e-3)
    assert "N = 16 keeps" in Kept("", "", "", {}).reason({"bytes": {"N = 16": {"counted": 3, "promised": 2}}})


def test_records_made_with_other_settings_or_damaged_are_named(tmp_path):
    measure(OURS, tmp_path, "a test")
    with pytest.raises(ValueError, match="ours.json was recorded with other settings"):
        measure(replace(OURS, repeats=7), tmp_path, "a test")
    save_json(tmp_path / "ours.json", {"name": "ours"})
    with pytest.raises(ValueError, match="ours.json is not a complete record: it lacks title"):
        read_speed(tmp_path)
    (tmp_path / "ours.json").write_text("{")
    with pytest.raises(RuntimeError, match="1 of 2 measurements failed(.|\n)*ours.json is not a complete JSON file"):
        measure_all([OURS, replace(OURS, name="next")], tmp_path, "a test")
    assert load_json(tmp_path / "next.json")["value"] > 0


def test_the_benchmark_leaves_a_record_for_each_measurement(tmp_path):
    place = tmp_path / "nbs/bench"
    place.mkdir(parents=True)
    nbformat.write(nbtool.load(ROOT / "nbs/bench/speed.md"), place / "speed.ipynb")
    profiles = yaml.safe_load((ROOT / "nbs/bench/speed.yaml").read_text())
    assert set(profiles) == {"smoke", "cpu", "gpu"} and profiles["smoke"]["packages"] == "" and profiles["cpu"]["shrink"] == 1
    assert {p: (a["device"], a["compiled"]) for p, a in profiles.items()} == {"smoke": ("cpu", False), "cpu": ("cpu", True), "gpu": ("cuda", False)}
    (place / "speed.yaml").write_text(yaml.safe_dump({"tiny": profiles["smoke"] | {"shrink": 64}}))
    arguments = ["bench", "speed", "--profile", "tiny", "--out", str(tmp_path / "out"), "--notebooks", str(place)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out/speed/tiny"
    names = [r["name"] for r in read_speed(folder)]
    assert names == ["attention-32", "attention-64", "deep-dla", "deep-titans", "floor-256-1-32", "floor-256-16-32", "floor-4096-1-32",
                     "growth-none", "growth-ssc", "kept-dla", "kept-linear", "kept-titans", "rate-256", "rates", "residual", "ssc", "step-ssc", "streaming"]
    assert str(tmp_path) not in json.dumps(nbformat.read(f"{folder}.ipynb", 4))

    times = {p: p.stat().st_mtime_ns for p in folder.glob("*.json")}
    assert CliRunner().invoke(main, arguments).exit_code == 0                      # everything is there: nothing runs again
    assert times == {p: p.stat().st_mtime_ns for p in folder.glob("*.json")}


def test_shipped_speed_records_are_whole():
    "Committed code, one command, an interval for every ratio, and a reason for every target that was missed."
    records = read_speed(ROOT / "results/speed/cpu")
    assert {r["command"] for r in records} == {"mc bench speed --profile cpu"}
    assert not any(r["commit"].endswith("+") for r in records)
    for record in records:
        assert record["error"] is None and (record["reached"] is not False or record["limit"])
        assert "bytes" in record or record["low"] <= record["value"] <= record["high"]
