"""The dial in the published page: its numbers are those of mc.costs, and those are what mc carries, fetches and multiplies."""
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mc
from conftest import opened
from mc.costs import MEMORIES, MIXERS, break_even, costs
from mc.figures import COLOURS
from mc.explorers.dial import SIZES, Dial, dial_data
from mc.evidence.speed.variants import Variant, multiply_adds

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {"operations": 1, "carried": 4, "fetched": 4}
GRID = [round(2 ** (5 + i / 8)) for i in range(105)]
MOVE = """([name, value]) => { const el = document.querySelector(`.mc-dial input[data-name=${name}]`);
    el.value = Math.log2(value); el.dispatchEvent(new Event('input')); }"""
CELLS = """() => Object.fromEntries([...document.querySelectorAll('.mc-dial td[data-count]')]
    .map(e => [e.dataset.count + ' ' + e.dataset.column, e.dataset.value]))"""


@pytest.fixture
def dial(page, site):
    return opened(page, f"{site}nbs/workshop/explorer_dial.html", ".mc-dial")


@pytest.mark.parametrize("way", MIXERS[1:])
@pytest.mark.parametrize("memory", MEMORIES)
def test_carried_is_what_the_cache_holds(memory, way):
    w = torch.ones(3, 8, 32)
    kind = {"linear": mc.LinearMemory, "deep": lambda: mc.DLAMemory(w, w.mT)}[memory]()
    for T, C in ((1, 1), (40, 16), (48, 16), (7, 64)):
        _, cache = mc.memory_caching(*torch.ones(4, 2, T, 3, 8), kind, aggregation=way, segments=C, return_cache=True,
                                     coefficients={"eta": 0.1} if memory == "deep" else {})
        assert cache.nbytes == 4 * 2 * 3 * costs(way, T, C, 8, memory).carried


class Reads(TorchDispatchMode):
    "The numbers that operations take out of some tensors; a view takes nothing, a gather what it returns."

    def __init__(self, tensors):
        super().__init__()
        self.total, self.known = 0, {x.untyped_storage().data_ptr() for x in tensors if x.numel()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = lambda x: isinstance(x, torch.Tensor) and x.numel() and x.untyped_storage().data_ptr() in self.known
        out = function(*args, **(kwargs or {}))
        if known(out) or function is torch.ops.aten.new_zeros.default:
            return out
        inside = sum(a.numel() for x in args for a in (x if isinstance(x, list) else [x]) if known(a))
        self.total += out.numel() if function is torch.ops.aten.index.Tensor and inside else inside
        return out


@pytest.mark.parametrize("way", MIXERS[1:])
@pytest.mark.parametrize("memory", MEMORIES)
def test_fetched_is_what_the_next_token_reads(memory, way):
    T, C, D, k = 41, 4, 8, 2
    w = torch.randn(1, D, 4 * D, generator=torch.Generator().manual_seed(0))
    kind = {"linear": mc.LinearMemory, "deep": lambda: mc.DLAMemory(w, w.mT)}[memory]()
    options = dict(aggregation=way, segments=C, top_k=k, return_cache=True, coefficients={"eta": 0.1} if memory == "deep" else {})
    with torch.no_grad():
        _, cache = mc.memory_caching(*torch.ones(4, 1, T, 1, D), kind, **options)
        with Reads([*cache.states.values(), *cache.online.values(), cache.pools, cache.key_sum]) as reads:
            mc.memory_caching(*torch.ones(4, 1, 1, 1, D), kind, cache=cache, **options)
    counted = costs(way, T, C, D, memory, k).fetched
    assert reads.total <= counted if way == "top_p" else reads.total == counted    # top-p is counted as if it read all


@pytest.mark.parametrize("aggregation", ["none", "grm"])
def test_operations_are_the_multiply_adds_of_the_speed_chapter(aggregation):
    for T, C in ((1024, 64), (1000, 16), (64, 128)):
        variant = Variant("layer", T, d_model=64, num_heads=2, aggregation=aggregation, segment_size=C)
        inside = multiply_adds(variant) - multiply_adds(replace(variant, kind="around"))
        assert 3 * 2 * T * costs(aggregation, T, C, 32).operations == pytest.approx(inside, rel=1e-12)


@pytest.mark.parametrize("bad", [dict(way="rnn"), dict(tokens=0), dict(segment_size=0), dict(head_size=-1), dict(top_k=0), dict(memory="swla")])
def test_bad_sizes_and_names_are_named(bad):
    (name, value), = bad.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*; got {value!r}"):
        costs(**{"way": "grm", "tokens": 64} | bad)


def turn(page, **sizes):
    for name, value in sizes.items():
        page.evaluate(MOVE, [name, value])


def choose(dial, value):
    dial.locator(f"button[data-value='{value}']").click()


def assert_counts(page, way, memory="linear", tokens=8192, segment_size=64, head_size=32, num_heads=2, top_k=2):
    shown = page.evaluate(CELLS)
    for column, name in (("none", "none"), ("way", way), ("attention", "attention")):
        found = costs(name, tokens, segment_size, head_size, memory, top_k)
        for count, scale in COUNTS.items():
            assert float(shown[f"{count} {column}"]) == pytest.approx(scale * num_heads * getattr(found, count), rel=1e-9)


def test_the_page_counts_as_mc_does(dial, page):
    settings = [dict(tokens=32, segment_size=4, head_size=8, num_heads=1, top_k=1), dict(tokens=64, segment_size=2048),
                dict(tokens=4096, segment_size=64, head_size=64, num_heads=4, top_k=8),
                dict(tokens=262144, segment_size=16, head_size=256, num_heads=32, top_k=16)]
    for sizes in settings:
        turn(page, **sizes)
        for memory in MEMORIES:
            choose(dial, memory)
            for way in MIXERS[2:]:
                choose(dial, way)
                assert_counts(page, way, memory, **(settings[0] | sizes))


def test_the_crossovers_are_those_of_mc(dial, page):
    said = {"operations": "takes fewer operations than", "carried": "keeps less than", "fetched": "fetches less than"}
    found = set()
    for memory, way, C in [("linear", "grm", 64), ("linear", "ssc", 16), ("linear", "residual", 8), ("deep", "grm", 64), ("deep", "soup", 256)]:
        choose(dial, memory)
        choose(dial, way)
        turn(page, segment_size=C)
        assert float(dial.locator(".verdict").get_attribute("data-even")) == break_even(32, memory)
        for count, words in said.items():
            dearer = [T for T in GRID if getattr(costs(way, T, C, 32, memory, 2), count) >= getattr(costs("attention", T, head_size=32), count)]
            after = GRID.index(dearer[-1]) + 1 if dearer else 0
            caption = dial.locator(f".panel[data-count={count}] .caption").inner_text()
            if after == len(GRID):
                expected = f" never {words} attention up to 262,144 tokens."
            else:
                expected = f" {words} attention " + (f"from about {GRID[after]:,} tokens on." if after else "at every length shown.")
            assert expected in caption.split(" RNN ")[0]
            found.add(expected.split()[0] == "never" or bool(after))
    assert found == {True, False}


def test_the_first_frame_and_its_measured_points(dial, page):
    assert_counts(page, "grm")
    data = dial_data(ROOT / "results/dial/cpu", "")
    seconds = {p["way"]: p["seconds"] for p in data["points"] if p["tokens"] == 8192 and p["segment_size"] in (None, 64)}
    shown = page.evaluate(CELLS)
    for column, way in (("none", "none"), ("way", "grm"), ("attention", "attention")):
        assert float(shown[f"time {column}"]) == pytest.approx(seconds[way] / 8192, rel=1e-9)
    assert dial.locator("[data-count=carried] .dot").count() == 12
    assert dial.locator("[data-count=recall] .dot").count() == len(data["recall"]) == 6
    turn(page, head_size=64)                                   # nothing was measured with such heads
    assert dial.locator("[data-count=carried] .dot").count() == 0
    dial.get_by_role("button", name="measured setting").click()
    assert_counts(page, "grm")


def test_measured_bytes_lie_on_the_line(dial):
    line = dial.locator("[data-count=carried] .line.attention").get_attribute("d")
    line = [tuple(map(float, point.split())) for point in line.replace("L", "M").split("M")[1:]]
    dots = dial.locator("[data-count=carried] .dot.attention").evaluate_all("all => all.map(e => [+e.getAttribute('cx'), +e.getAttribute('cy')])")
    assert len(dots) == 4
    for x, y in dots:
        assert min(abs(x - a) + abs(y - b) for a, b in line) < 0.3


def test_pointing_shows_and_a_click_keeps(dial, page):
    plot = dial.locator("[data-count=operations] svg")
    box = plot.bounding_box()
    at = lambda T: dict(x=box["width"] * (50 + 226 * (T.bit_length() - 6) / 13) / 320, y=box["height"] / 2)
    plot.hover(position=at(1024))
    assert_counts(page, "grm", tokens=1024)
    page.mouse.move(1, 1)
    assert_counts(page, "grm")
    plot.click(position=at(65536))
    page.mouse.move(1, 1)
    assert_counts(page, "grm", tokens=65536)
    recall = dial.locator("[data-count=recall] .dot").first
    recall.click(force=True)
    assert_counts(page, "grm", tokens=65536, segment_size=4)
    spoken = dial.locator(".spoken").inner_text()
    assert "65,536 tokens, segments of 4: GRM" in spoken


def test_keys_turn_and_choose(dial, page):
    dial.locator("input[data-name=tokens]").focus()
    page.keyboard.press("ArrowLeft")
    assert_counts(page, "grm", tokens=4096)
    page.keyboard.press("Tab")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert_counts(page, "grm", tokens=4096, segment_size=256)
    dial.locator("input[data-name=top_k]").focus()
    page.keyboard.press("ArrowRight")                          # only SSC has a k
    assert_counts(page, "ssc", tokens=4096, segment_size=256, top_k=4)
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert dial.locator("button[data-value=deep]").get_attribute("aria-pressed") == "true"
    assert_counts(page, "ssc", "deep", tokens=4096, segment_size=256, top_k=4)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_turning_takes_less_than_a_tenth_of_a_second(dial, page):
    times = page.evaluate("""() => [5, 6, 7, 8, 5, 6, 7, 8].map(value => {
        const el = document.querySelector('.mc-dial input[data-name=head_size]'), start = performance.now();
        el.value = value; el.dispatchEvent(new Event('input')); document.querySelector('.mc-dial').getBoundingClientRect();
        return performance.now() - start; })""")
    assert min(times) < 100                                    # the others had to wait for somebody else's program


def test_it_fits_a_phone_and_the_dark(dial, page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    light = page.evaluate("""() => ['--attention', '--none', '--way'].map(name => getComputedStyle(document.querySelector('.mc-dial')).getPropertyValue(name))""")
    assert light == [COLOURS[name].lower() for name in ("attention", "none", "grm")]    # as in every figure, light or dark


def test_a_saved_page_is_small_and_a_setting_is_checked(tmp_path):
    data = dial_data(ROOT / "results/dial/cpu", "</script><b>a title")
    Dial(data=data, setting={"segment_size": 16}).save_html(tmp_path / "dial.html")
    page = (tmp_path / "dial.html").read_text()
    assert "</script><b>" not in page and len(json.dumps(data)) < 20_000
    with pytest.raises(ValueError, match="segment_size must be a power of two between 4 and 4096; got 17"):
        Dial(setting={"segment_size": 17})
    with pytest.raises(ValueError, match="way must be one of residual, grm, soup, ssc; got 'none'"):
        Dial(setting={"way": "none"})
    with pytest.raises(ValueError, match="a setting has memory, way, tokens, .*; got 'size'"):
        Dial(setting={"size": 4})
    with pytest.raises(ValueError, match="no records of the dial in"):
        dial_data(tmp_path, "")
    assert SIZES["tokens"][0] == GRID[0] and SIZES["tokens"][-1] == GRID[-1]
