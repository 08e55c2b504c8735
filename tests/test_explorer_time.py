"""The time explorer in the published page: by mouse, by keyboard, played, and with the numbers of mc."""
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mc.explorers.time import closeness, play, reread, sizes, time_data
from mc.nn.model import LanguageModel
from mc.tasks.mqar import IGNORE, MQAR

ROOT = Path(__file__).resolve().parents[1]
HEAD = 3
SLOTS = """() => [...document.querySelectorAll('.mc-timeline .slot.closed')].map(e => [+e.dataset.norm, +e.dataset.gate])"""
OPACITY = """() => { const c = document.querySelector('.mc-timeline .M canvas');
    return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].filter((_, i) => i % 4 === 3); }"""


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load(ROOT / "results/state_per_byte/cpu/models/grm.safetensors")


@pytest.fixture(scope="module")
def batch():
    return MQAR().sample(1, torch.Generator().manual_seed(2026))


@pytest.fixture(scope="module")
def saved(model, batch, tmp_path_factory):
    "The explorer of the chapter alone, which opens faster than the chapter."
    path = tmp_path_factory.mktemp("time") / "page.html"
    play(model, batch, HEAD, "A trained GRM over time").save_html(path)
    return path


def opened(page, address):
    "The explorer at an address, or in a saved file."
    if isinstance(saved := address, Path):
        address = "http://127.0.0.1/saved.html"
        page.route(address, lambda route: route.fulfill(path=saved, content_type="text/html"))
    page.goto(address, wait_until="domcontentloaded")
    root = page.locator(".mc-timeline").first
    root.locator(".slot").first.wait_for(timeout=20_000)
    return root


@pytest.fixture
def explorer(page, saved):
    return opened(page, saved)


@pytest.fixture
def published(page, site):
    return opened(page, f"{site}nbs/workshop/explorer_time.html")


def shown(root):
    return int(root.get_attribute("data-token"))


def at(root, t):
    root.locator(".mc-time").fill(str(t))
    assert shown(root) == t


def turn(root, size):
    root.locator(f".radios input[value='{size}']").check(force=True)
    assert int(root.get_attribute("data-size")) == size


def compare(page, root, model, batch, size, t):
    "States, online state and gates in the page with those of mc after token t."
    trace = reread(model, size).inspect(batch.tokens[:, : t + 1])[1][0]
    closed, head = t // size, HEAD
    gates = trace.gates[0, -1, head]
    norms = trace.cache.states["m"][0, :closed, head].flatten(1).norm(dim=1)
    slots = torch.tensor(page.evaluate(SLOTS)).view(-1, 2)
    assert torch.allclose(slots, torch.stack([norms, gates[:closed]], 1), atol=1e-3, rtol=1e-4)
    done = (t + 1) % size == 0
    online = (trace.cache.states["m"][:, -1] if done else trace.cache.online["m"])[0, head]
    assert float(root.locator(".M canvas").get_attribute("data-norm")) == pytest.approx(online.norm().item(), abs=1e-3, rel=1e-4)
    strong = float(root.locator(".online .values ~ span").inner_text())
    drawn = torch.tensor(page.evaluate(OPACITY)) / 255
    assert torch.allclose(drawn, (online.abs() / strong).clamp(max=1).flatten(), atol=0.01)
    assert f"gate {gates[-1]:.3f}" in root.locator(".online").inner_text()


@pytest.mark.parametrize("size", [256, 64, 16, 2, 1])
def test_states_and_gates_in_the_page_are_those_of_mc(explorer, page, model, batch, size):
    turn(explorer, size)
    for t in (0, 17, 136, 255):
        at(explorer, t)
        compare(page, explorer, model, batch, size, t)


def test_checkpoints_and_unequal_segments_are_those_of_mc(page, model, tmp_path):
    going_on = LanguageModel(replace(model.config, mixer=replace(model.config.mixer, init="checkpoint", segment_size=10)))
    going_on.load_state_dict(model.state_dict())
    short = MQAR(length=48, pairs=12).sample(1, torch.Generator().manual_seed(1))
    play(going_on, short, HEAD, "checkpoints").save_html(tmp_path / "page.html")
    root = opened(page, tmp_path / "page.html")
    for size in (32, 10, 4):
        turn(root, size)
        for t in (3, 35, 47):
            at(root, t)
            compare(page, root, going_on, short, size, t)


def test_numbers_held_are_counted_as_they_grow(explorer, model, batch):
    for size, t in [(256, 200), (16, 15), (16, 16), (1, 255)]:
        turn(explorer, size)
        at(explorer, t)
        cache = reread(model, size).inspect(batch.tokens[:, : t + 1])[1][0].cache
        states = len(cache) + (cache.running > 0)    # a state that has just closed is the page's online memory
        held = {kind: int(explorer.locator(f"[data-kind='{kind}']").inner_text().replace(",", "")) for kind in ("rnn", "mc", "attention")}
        assert held == {"rnn": 16 * 16, "mc": states * 16 * 16, "attention": 2 * (t + 1) * 16}


def test_answers_and_closeness_are_those_of_mc(explorer, model, batch):
    asked = (batch.labels[0] != IGNORE).nonzero().flatten().tolist()
    right = []
    for size in (256, 16, 1):
        turn(explorer, size)
        close = closeness(model, batch, size)[:, HEAD]
        with torch.no_grad():
            answers = reread(model, size)(batch.tokens)[0].argmax(-1)
        right.append(int((answers == batch.labels[0])[asked].sum()))
        text = explorer.locator(".dial ul").inner_text()
        assert f"{right[-1]} of 64" in text and f"{close.mean():.2f}" in text
        for q in range(0, len(asked), 20):
            at(explorer, asked[q])
            assert float(explorer.locator(".dial .now").inner_text()) == pytest.approx(close[q].item(), abs=0.0051)
            story = explorer.locator(".story").inner_text()
            assert ("right" in story) == (answers[asked[q]] == batch.labels[0, asked[q]]).item()
            assert f"is {answers[asked[q]]}" in story.replace("✓ right: ", "").replace("✗ wrong: ", "")
            source = int(batch.source[0, asked[q]]) // size
            place = explorer.locator(".slot").nth(source) if source < asked[q] // size else explorer.locator(".board")
            assert "true" in place.get_attribute("class") and explorer.locator(".slot.true, .board.true").count() == 1
    assert right == sorted(right) and right[0] < right[-1]


def test_the_first_frame_of_the_chapter_tells_the_story(published, page, model, batch):
    t, answer = shown(published), {}
    for size in (256, 16):
        with torch.no_grad():
            answer[size] = reread(model, size)(batch.tokens)[0, t].argmax()
    assert answer[16] == batch.labels[0, t] != answer[256]
    assert published.get_attribute("data-size") == "16" and published.locator(".slot.closed").count() >= 8
    compare(page, published, model, batch, 16, t)


def test_play_pause_and_end(explorer, page):
    at(explorer, 10)
    button = explorer.locator(".play")
    page.wait_for_timeout(400)
    assert shown(explorer) == 10 and "play" in button.inner_text()
    explorer.get_by_label("speed").fill("4")
    button.click()
    page.wait_for_function("+document.querySelector('.mc-timeline').dataset.token >= 18")
    assert "pause" in button.inner_text() and explorer.locator(".slot.closed").count() >= 1
    page.keyboard.press("Space")    # on the button itself
    held = shown(explorer)
    page.wait_for_timeout(300)
    assert shown(explorer) == held and "play" in button.inner_text()
    explorer.locator(f".token[data-index='{held}']").click()
    page.keyboard.press("Space")    # on a token
    page.wait_for_function(f"+document.querySelector('.mc-timeline').dataset.token > {held + 2}")
    page.keyboard.press("ArrowRight")    # a move pauses
    held = shown(explorer)
    page.wait_for_timeout(300)
    assert shown(explorer) == held
    at(explorer, 253)
    button.click()
    page.wait_for_function("document.querySelector('.mc-timeline .play').textContent.includes('play')")
    assert shown(explorer) == 255
    button.click()    # from the end it starts again
    page.wait_for_function("+document.querySelector('.mc-timeline').dataset.token < 100")


def test_a_closing_state_moves_unless_motion_is_reduced(explorer, page):
    moving = "() => document.querySelectorAll('.mc-timeline .slot canvas')[1].getAnimations().length"
    at(explorer, 31)
    explorer.locator(".token[data-index='32']").click()
    assert page.evaluate(moving) == 1
    page.emulate_media(reduced_motion="reduce")
    at(explorer, 31)
    page.wait_for_function(f"() => ({moving})() === 0")
    explorer.locator(".token[data-index='32']").click()
    assert page.evaluate(moving) == 0


def test_keys_walk_turn_the_dial_and_read_the_shelf(explorer, page, batch):
    explorer.locator(f".token[data-index='{shown(explorer)}']").click()
    at(explorer, 100)
    explorer.locator(".token[data-index='100']").click()
    for key, expected in [("ArrowRight", 101), ("ArrowLeft", 100), ("ArrowDown", 116), ("ArrowUp", 100), ("End", 255), ("Home", 0)]:
        page.keyboard.press(key)
        assert shown(explorer) == expected
        assert page.evaluate("document.activeElement.dataset.index") == str(expected)
    page.keyboard.press("n")
    assert shown(explorer) == (batch.labels[0] != IGNORE).nonzero()[0].item()
    explorer.locator(".radios input:checked").focus()
    page.keyboard.press("ArrowRight")
    assert explorer.get_attribute("data-size") == "8"
    explorer.locator(".slot").first.focus()
    page.keyboard.press("ArrowRight")
    assert explorer.locator(".reading").inner_text().startswith("segment 2, tokens 9–16: state in the cache")
    assert f"token {shown(explorer) + 1}," in explorer.locator(".spoken").inner_text().lower().replace(". ", ", ")


def test_a_hovered_state_tells_its_numbers(explorer):
    slot = explorer.locator(".slot").nth(2)
    slot.hover()
    assert f"norm {float(slot.get_attribute('data-norm')):.2f}" in explorer.locator(".reading").inner_text()


def test_it_answers_within_a_tenth_of_a_second_at_512_tokens(page, model, tmp_path):
    long = MQAR(length=512, pairs=64).sample(1, torch.Generator().manual_seed(0))
    widget = play(model, long, HEAD, "512 tokens in 32 segments")
    assert len(str(widget.data)) < 300_000
    widget.save_html(tmp_path / "page.html")
    opened(page, tmp_path / "page.html")
    taken = page.evaluate("""() => [300, 17, 511, 129, 400].map((t) => { const s = document.querySelector('.mc-time');
        const before = performance.now(); s.value = t; s.dispatchEvent(new Event('input'));
        document.body.offsetHeight; return performance.now() - before; })""")
    assert sorted(taken)[2] < 100


def test_any_text_of_a_token_is_text(page, model, batch, tmp_path):
    widget = play(model, batch, HEAD, "</script><b>bold</b>")
    data = dict(widget.data)
    t = data["roles"].index("query")
    data["tokens"] = list(data["tokens"])
    data["tokens"][t] = '</script><img src=x onerror="boom()">'
    data["tokens"][data["source"][t]] = "مرحبا 🦉"
    widget.data = data
    widget.token = t
    with pytest.raises(ValueError, match="segment_size must be one of 0, 256, .*; got 5"):
        widget.segment_size = 5
    widget.segment_size = 4
    widget.save_html(tmp_path / "page.html")
    root = opened(page, tmp_path / "page.html")
    assert shown(root) == t and root.get_attribute("data-size") == "4"
    assert "</script><img" in root.locator(".story").inner_text() and "مرحبا 🦉" in root.locator(".story").inner_text()
    assert root.locator("img, b:text('bold')").count() == 0


def test_it_fits_a_phone_and_the_dark(site, page):
    page.set_viewport_size({"width": 380, "height": 800})                # before it opens: the book's sidebar takes its time to go away
    page.emulate_media(color_scheme="dark")
    published = opened(page, f"{site}nbs/workshop/explorer_time.html")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    for size in (256, 16, 1):
        turn(published, size)
        assert page.evaluate("document.documentElement.scrollWidth") <= 380
        assert published.evaluate("""e => [...e.querySelectorAll('.scene > *, .charts > *, .slot')].every(p =>
            p.getBoundingClientRect().right <= e.getBoundingClientRect().right + 1)""")


def test_bad_input_is_refused(model, batch):
    assert sizes(48) == [48, 32, 16, 8, 4, 2, 1] and sizes(1) == [1] and sizes(256)[:2] == [256, 128]
    with pytest.raises(ValueError, match="head must be 0 to 3; got 4"):
        time_data(model, batch, 4, "")
    silent = batch._replace(labels=torch.full_like(batch.labels, IGNORE))
    with pytest.raises(ValueError, match="batch must ask at least one question"):
        time_data(model, silent, HEAD, "")
    for name, refused in [("attention", "AttentionConfig"), ("none", "'aggregation': 'none'")]:
        other = LanguageModel.load(ROOT / f"results/state_per_byte/cpu/models/{name}.safetensors")
        with pytest.raises(ValueError, match=f"model must be linear GRM.*{refused}"):
            time_data(other, batch, HEAD, "")
