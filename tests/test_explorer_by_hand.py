"""The gate by hand in the published page: what the page computes itself is what mc computes, by mouse and by keyboard."""
import pytest
import torch

from conftest import opened
from mc.explorers.by_hand import START, ByHandExplorer, ask, by_hand, draws

STORIES = torch.cat([draws(1, 27), draws(5, 1)])    # those of the chapter
GRID = [
    {},
    {"position": 0}, {"position": 22}, {"position": 11, "size": 5},
    {"size": 1}, {"size": 2, "top_k": 3}, {"size": 7, "scale": 2.5}, {"size": 12, "pool": "sum"}, {"size": 23}, {"size": 24},
    {"top_k": 1}, {"top_k": 2, "position": 15, "pool": "sum"}, {"top_k": 2, "scale": 0.0}, {"top_k": 4, "init": "checkpoint"},
    {"init": "checkpoint"}, {"init": "checkpoint", "size": 3, "position": 20, "scale": 4.0},
    {"pool": "sum", "scale": 0.3}, {"pool": "sum", "init": "checkpoint", "size": 9, "top_k": 1},
    {"draw": 1}, {"draw": 5, "size": 6, "top_k": 1}, {"draw": 3, "pool": "sum", "position": 9},
]
NUMBERS = """root => ({
    gates: [...root.querySelectorAll('[data-gate]')].map(e => +e.dataset.gate),
    y: root.querySelector('.total.y .vector').dataset.value.split(' ').map(Number),
    close: +root.querySelector('.bars .gates').dataset.value, plain: +root.querySelector('.bars .plain').dataset.value,
    alone: +root.querySelector('.bars .alone').dataset.value })"""


@pytest.fixture
def explorer(page, site):
    return opened(page, f"{site}nbs/workshop/explorer_by_hand.html", ".mc-by-hand")


def press(root, name):
    root.get_by_role("button", name=name, exact=True).click()


def put(root, name, value):
    root.locator(f"input[data-name={name}]").fill(f"{value:g}")


def arrange(root, settings):
    "Start again and set the page's controls to `settings`."
    press(root, "start again")
    wanted = START | settings
    for _ in range(wanted["draw"]):
        press(root, "other noise")
    put(root, "size", wanted["size"])
    put(root, "position", wanted["position"] + 1)
    put(root, "scale", wanted["scale"])
    if wanted["top_k"] is not None:
        put(root, "top_k", wanted["top_k"])
    press(root, wanted["pool"])
    press(root, wanted["init"])


def computed(settings):
    wanted = START | settings
    out, close = ask(STORIES[wanted["draw"]][None], wanted)
    states = torch.cat([out.cache.states["m"][0, :, 0], out.cache.online["m"][0]])
    k, v = STORIES[wanted["draw"]][:, -1]
    alone = torch.cosine_similarity(states[wanted["position"] // wanted["size"]] @ k, v, dim=0)
    return out.gates[0, -1, 0].tolist(), out.y[0, -1, 0].tolist(), close.item(), alone.item()


def test_the_page_computes_what_mc_computes(explorer):
    for settings in GRID:
        arrange(explorer, settings)
        shown = explorer.evaluate(NUMBERS)
        gates, y, close, alone = computed(settings)
        assert shown["gates"] == pytest.approx(gates, abs=1e-6), settings
        assert shown["y"] == pytest.approx(y, abs=1e-6) and shown["close"] == pytest.approx(close, abs=1e-6), settings
        _, _, plain, _ = computed(settings | {"size": 24, "top_k": None})
        assert shown["plain"] == pytest.approx(plain, abs=1e-6) and shown["alone"] == pytest.approx(alone, abs=1e-6), settings


def test_the_first_frame_finds_the_pair(explorer):
    gates, *_ = computed({})
    assert "Found" in explorer.locator(".story").inner_text() and max(gates) == gates[1]
    assert f"{gates[1]:.2f}"[1:] in explorer.locator(".story").inner_text()
    assert explorer.locator(".segment.true .token.pair").inner_text() == "◆"


def test_the_sentence_says_what_happened(explorer):
    for settings, word in [({"size": 24}, "One segment"), ({"scale": 0.0}, "nobody chooses"),
                           ({"draw": 1, "position": 1, "top_k": 1}, "Missed"), ({"draw": 1, "position": 12}, "Fooled")]:
        arrange(explorer, settings)
        said = explorer.locator(".story").inner_text()
        assert word in said and explorer.locator(".spoken").inner_text().startswith(said)


def test_the_pair_is_dragged(explorer, page):
    box = explorer.locator(".token.pair").bounding_box()
    goal = explorer.locator(".token[data-index='13']").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    for part in (0.3, 0.6, 1.0):
        page.mouse.move(box["x"] + 5 + part * (goal["x"] - box["x"]), box["y"] + 5 + part * (goal["y"] - box["y"]))
    page.mouse.up()
    page.mouse.move(box["x"] + 5, box["y"] + 5)    # released: it no longer follows
    assert explorer.locator(".token.pair").get_attribute("data-index") == "13"
    assert explorer.evaluate(NUMBERS)["gates"] == pytest.approx(computed({"position": 13})[0], abs=1e-6)
    assert explorer.locator("input[data-name=position]").input_value() == "14"


def test_keys_move_the_pair_and_turn_no_page(explorer, page):
    slider = explorer.locator("input[data-name=position]")
    slider.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "token 10" and page.url.endswith("explorer_by_hand.html")
    assert explorer.evaluate(NUMBERS)["gates"] == pytest.approx(computed({"position": 9})[0], abs=1e-6)


def test_keys_walk_the_memories(explorer, page):
    explorer.locator(".line[tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    picked = explorer.locator(".line[aria-selected=true]")
    assert "tokens 9–12" in picked.inner_text() and picked.evaluate("e => e === document.activeElement")
    assert explorer.locator("[data-step=write] .formula").inner_text().endswith("tokens 9–12")
    for key, where in [("Home", "tokens 1–4"), ("End", "tokens 21–24, online")]:
        page.keyboard.press(key)
        assert where in picked.inner_text()


def test_the_steps_are_filled_in(explorer):
    step = lambda name: explorer.locator(f"[data-step={name}]").inner_text().replace("−", "-")
    out, _ = ask(STORIES[:1], START)
    score, gate = out.scores[0, -1, 0, 1].item(), out.gates[0, -1, 0, 1].item()
    assert f"= {score:.2f}" in step("score") and f"{gate:.2f}"[1:] in step("gate")
    assert "Eq. 10" in step("score") and "Eq. 9" in step("answer") and explorer.locator("[data-step=choose]").count() == 0
    put(explorer, "top_k", 2)
    assert "Eq. 16" in step("score") and "Eq. 17" in step("answer") and "read: 1, 2, 6" in step("choose")
    explorer.locator(".line.unread").first.click()
    assert "not chosen" in step("gate")


def test_start_again(explorer):
    arrange(explorer, {"draw": 2, "size": 7, "top_k": 1, "pool": "sum", "init": "checkpoint"})
    press(explorer, "start again")
    assert explorer.evaluate(NUMBERS)["gates"] == pytest.approx(computed({})[0], abs=1e-6)


def test_a_change_takes_less_than_a_tenth_of_a_second(explorer):
    "The quickest of five at its slowest, segments of one token: others use this machine too."
    took = explorer.locator("input[data-name=size]").evaluate("""e => [1, 2, 3, 4, 5].map(() => { const start = performance.now();
        e.value = 1; e.dispatchEvent(new Event('input')); e.offsetHeight;
        return performance.now() - start })""")
    assert min(took) < 100


def test_it_fits_a_phone_and_the_dark(explorer, page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    for size in (1, 4, 24):
        put(explorer, "size", size)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        assert explorer.evaluate("root => root.scrollWidth <= root.clientWidth")


def test_a_live_notebook_moves_the_page_and_hears_of_it(page, site):
    widget = by_hand(STORIES)
    page.route(f"{site}live.html", lambda route: route.fulfill(content_type="text/html", body="<body></body>"))
    page.goto(f"{site}live.html")
    page.evaluate("""async ({ esm, data, settings }) => {
        const { default: widget } = await import(URL.createObjectURL(new Blob([esm], { type: 'text/javascript' })));
        const state = { data, settings }, on = {};
        window.tell = (name, value) => { state[name] = value; on['change:' + name](); };
        window.state = state;
        widget.render({ el: document.body, model: { get: n => state[n], on: (e, f) => { on[e] = f }, save_changes() { },
            set: (n, x) => { state[n] = x; on['change:' + n](); } } });
    }""", {"esm": str(widget._esm), "data": widget.data, "settings": widget.settings})
    root = page.locator(".mc-by-hand")
    moved = START | {"position": 17, "size": 6}
    page.evaluate("s => tell('settings', s)", moved)
    assert root.evaluate(NUMBERS)["gates"] == pytest.approx(computed(moved)[0], abs=1e-6)
    press(root, "sum")
    assert page.evaluate("state.settings") == moved | {"pool": "sum"}
    page.evaluate("tell('data', {})")
    assert "no tokens" in root.locator("[role=alert]").inner_text()


@pytest.mark.parametrize("settings, message", [
    ({"size": 25}, "size must be at most 24; got 25"), ({"size": 0}, "size must be an integer >= 1"), ({"position": 23}, "position must be at most 22"),
    ({"draw": 6}, "draw must be at most 5"), ({"top_k": 2.5}, "top_k must be an integer"), ({"scale": -1}, "scale must be a number between 0 and 4"),
    ({"pool": "max"}, "pool must be one of 'mean', 'sum'"), ({"init": "cold"}, "init must be one of"), ({"colour": 1}, "settings must be among"),
])
def test_bad_settings_are_refused(settings, message):
    widget = by_hand(STORIES)
    with pytest.raises(ValueError, match=message):
        widget.settings = settings


@pytest.mark.parametrize("shape", [(1, 2, 24, 17), (1, 2, 33, 8), (1, 2, 1, 8), (1, 3, 24, 8), (2, 24, 8)])
def test_more_than_a_hand_can_follow_is_refused(shape):
    with pytest.raises(ValueError, match="T from 2 to 32 and D up to 16"):
        by_hand(torch.zeros(shape))


def test_settings_left_out_are_those_of_the_start():
    widget = ByHandExplorer(data=by_hand(STORIES).data)
    widget.settings = {"size": 6}
    assert widget.settings == START | {"size": 6}


def test_the_page_carries_little(tmp_path):
    by_hand(STORIES).save_html(tmp_path / "hand.html")
    assert (tmp_path / "hand.html").stat().st_size < 100_000
