"""What a cache costs: whole models timed side by side, and the bytes that they keep."""
import pytest
import torch
import yaml
from pathlib import Path

from mc.evidence.record_schema import SpeedRecord
from mc.evidence.schema import checked
from mc.evidence.speed.models import PHASES, QUANTITIES, by_tokens, cost, cost_figure, filled, model_and_tokens, ratio_to
from mc.evidence.speed.peaks import CALLS, Peaks, peak_table
from mc.evidence.speed.ratios import median_interval
from mc.evidence.speed.records import measure
from mc.evidence.speed.variants import KINDS, again
from mc.evidence.variants import VARIANTS, Sizes, model_of

ROOT = Path(__file__).parents[1]
SMALL = Sizes(num_layers=1, d_model=16, num_heads=4, segment_size=8)
NAMES = ["attention", "none", "grm"]


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cost")
    items = [cost(phase, n, NAMES, SMALL, repeats=6, steps=8) for phase in PHASES for n in (16, 32)]
    return [measure(item, folder, "test") for item in items]


@pytest.mark.parametrize("name", list(VARIANTS))
def test_every_variant_runs_as_it_is_in_the_table(name):
    for phase in PHASES:
        item = cost(phase, 24, [name, "none"] if name != "none" else ["none", "wide"], SMALL, repeats=6, steps=8)
        variant = item.variants[name]
        KINDS[phase](variant)()
    model, tokens = model_and_tokens(variant)
    assert model.config == model_of(name, 256, SMALL) and tokens.shape == (1, 25)


def test_bytes_are_those_of_the_caches(records):
    found = {n: r["bytes"] for n, r in by_tokens(records, "decode").items()}
    keys = lambda n: (2 * 16 * n + 16) * 4          # keys and values of n tokens, one input of the token shift
    assert {n: b["attention"]["cache"] for n, b in found.items()} == {16: keys(16), 32: keys(32)}
    assert found[16]["none"] == found[32]["none"]
    assert found[32]["grm"]["cache"] - found[16]["grm"]["cache"] == 2 * (4 * (4 * 4 + 4) + 16) * 4    # two segments: matrix and pool of four heads, an input
    assert all("bytes" not in r for r in records if not r["name"].startswith("decode"))


def test_records_fit_the_schema_and_ratios_are_those_of_the_rounds(records):
    for record in records:
        checked(SpeedRecord, {k: v for k, v in record.items() if k != "sha256"}, "it")
        rounds = record["rounds"]
        assert set(rounds) == set(NAMES) and all(len(some) == 6 for some in rounds.values())
        by_hand = median_interval([a / b for a, b in zip(rounds["attention"], rounds["none"])])
        assert ratio_to(record, "none") == pytest.approx(by_hand, rel=1e-3)
        assert ratio_to(record, "attention") == (1, 1, 1)


def test_seconds_are_those_of_one_token():
    item = cost("decode", 16, NAMES, SMALL, repeats=6, steps=8)
    assert item.per == 8 and cost("prefill", 16, NAMES, SMALL, repeats=6).per == 16
    assert item.ratio == ("attention", "grm") and cost("decode", 16, ["none", "wide"], SMALL, 6).ratio == ("none", "wide")


def test_a_token_goes_on_where_the_last_one_ended():
    variant = cost("decode", 16, NAMES, SMALL, repeats=6, steps=8).variants["grm"]
    call = KINDS["decode"](variant)
    kept = call.__wrapped__.__closure__ if hasattr(call, "__wrapped__") else call.__closure__     # torch.no_grad wraps it
    (cache,) = [c.cell_contents for c in kept if isinstance(c.cell_contents, list)]
    call(), call()
    assert cache[0].position == 32 and call.bytes["cache"] < cache[0].nbytes


@pytest.mark.parametrize("name", ["attention", "none", "residual", "ssc", "fenwick", "titans-grm-64"])
def test_a_cache_that_stands_for_a_long_text_is_as_large_and_as_far(name, monkeypatch):
    monkeypatch.setattr("mc.evidence.speed.models.PIECE", 64)
    model, tokens = model_and_tokens(cost("decode", 256, [name, "wide"], SMALL, 6).variants[name])
    stands = filled(model, tokens[:, :-1])
    with torch.no_grad():
        read = model.forward_with_cache(tokens[:, :-1])[1]
        y, after = model.forward_with_cache(tokens[:, -1:], stands)
    far = 64 if name == "none" else 256                                            # one state is one state, however long the text
    assert stands.nbytes == read.nbytes and (stands.position, after.position) == (far, far + 1) and torch.isfinite(y).all()
    if name == "attention":
        assert after[0].keys.untyped_storage().data_ptr() == stands[0].keys.untyped_storage().data_ptr()      # a token copies no key


def test_a_cache_cannot_be_repeated_within_a_segment_or_where_segments_are_joined():
    for name, read in (("grm", 20), ("fenwick", 16)):
        model, tokens = model_and_tokens(cost("decode", read, [name, "none"], SMALL, 6).variants[name])
        with torch.no_grad():
            cache = model.forward_with_cache(tokens[:, :-1])[1]
        with pytest.raises(ValueError, match="whole segments that are not joined"):
            again(cache[0], 2)


@pytest.mark.slow
def test_peaks_are_those_of_a_process_of_its_own(tmp_path):
    sizes = Sizes(1, 32, 2, 64)
    record = measure(Peaks("peaks-forward_with_cache", "forward_with_cache", ("ssc",), (256, 16384), sizes), tmp_path, "test")
    small, large = record["bytes"].values()
    assert small["cache"] * 40 < large["cache"] <= large["peak"] and small["peak"] < 50e6 and record["value"] == pytest.approx(large["peak"] / large["cache"], rel=1e-3)
    assert list(peak_table([record])["tokens"]) == ["256", "16,384"]
    assert record["cpu_seconds"]["ssc, 16384"] < 1e-3                               # of a token


def test_a_figure_has_a_button_for_each_quantity(records):
    fig = cost_figure(records, NAMES, "title")
    (menu,) = fig.layout.updatemenus
    assert [b.label for b in menu.buttons] == list(QUANTITIES)
    for button in menu.buttons:
        seen = [t for t, shown in zip(fig.data, button.args[0]["visible"]) if shown]
        assert len(seen) == len(NAMES) and all(list(t.x) == [16, 32] for t in seen)
    assert list(fig.data[-1].y) == pytest.approx([by_tokens(records, "decode")[n]["bytes"]["grm"]["cache"] for n in (16, 32)], rel=5e-3)


def test_what_cannot_be_is_refused():
    for given, said in ((("sleep", 16, NAMES), "phase"), (("decode", 16, ["nobody", "none"]), "variant")):
        with pytest.raises(ValueError, match=said):
            cost(*given, SMALL, repeats=6)


@pytest.mark.parametrize("profile", ["smoke", "cpu"])
def test_profiles_name_variants_and_sizes_that_there_are(profile):
    given = yaml.safe_load((ROOT / "nbs/bench/cost.yaml").read_text())[profile]
    sizes = Sizes(*(given[n] for n in ("num_layers", "d_model", "num_heads", "segment_size")))
    for phase, lengths in (("training", "train_lengths"), ("prefill", "read_lengths"), ("decode", "step_lengths")):
        for n in given[lengths]:
            cost(phase, n, given["variants"], sizes, given["repeats"], given["steps"])
    for call in given["peak_calls"]:
        assert call in CALLS and set(given["peak_variants"]) <= VARIANTS.keys() and sizes.segment_size * 4 <= min(given["peak_lengths"])
    assert given["steps"] >= given["segment_size"]      # the end of a segment has its share in a round
