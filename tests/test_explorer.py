"""The routing explorer in the published page: by mouse, by keyboard, over time, and with the numbers of mc."""
from pathlib import Path

import pytest
import torch

from mc.model import LanguageModel
from mc.tasks.mqar import IGNORE, MQAR

ROOT = Path(__file__).resolve().parents[1]
GATES = """() => [...document.querySelectorAll('.mc-routing .gate')].map(e =>
    [e.dataset.layer, e.dataset.head, e.dataset.slot, e.dataset.value].map(Number))"""


@pytest.fixture(scope="module")
def truth():
    "Gates (layers, T, heads, N+1), logits and the batch that the page shows."
    model = LanguageModel.load(ROOT / "results/mqar/cpu/models/grm.safetensors")
    batch = MQAR().sample(1, torch.Generator().manual_seed(2026))
    logits, traces = model.inspect(batch.tokens)
    return torch.stack([trace.gates[0] for trace in traces]), logits[0], batch


@pytest.fixture(params=["nbs/00_start", "nbs/92_routing"])
def explorer(page, site, request):
    page.goto(f"{site}{request.param}.html")
    root = page.locator(".mc-routing").first
    root.wait_for(timeout=20_000)
    return root


def shown(root):
    return int(root.get_attribute("data-token"))


def token(root, t):
    return root.locator(f".token[data-index='{t}']")


def test_gates_in_the_page_are_those_of_mc(explorer, page, truth):
    gates, _, _ = truth
    for t in (0, 17, 100, 130, 255):
        token(explorer, t).click()
        assert shown(explorer) == t
        cells = page.evaluate(GATES)
        assert len(cells) == gates.shape[0] * gates.shape[2] * gates.shape[3]
        for layer, head, slot, value in cells:
            assert value == pytest.approx(gates[int(layer), t, int(head), int(slot)].item(), abs=1e-3)


def test_the_answer_and_the_true_segment_are_those_of_mc(explorer, truth):
    _, logits, batch = truth
    questions = (batch.labels[0] != IGNORE).nonzero().flatten().tolist()
    right = 0
    for t in questions[:: len(questions) // 8]:
        token(explorer, t).click()
        answer, label = int(logits[t].argmax()), int(batch.labels[0, t])
        verdict = explorer.locator(".verdict").inner_text()
        assert str(answer) in explorer.inner_text() and ("right" in verdict.lower()) == (answer == label)
        segment = explorer.locator(f"[data-segment='{int(batch.source[0, t]) // 16}']")
        assert "true" in segment.get_attribute("class")
        right += answer == label
    assert right > 0


def test_the_first_frame_shows_a_question_answered_right(explorer, truth):
    _, logits, batch = truth
    t = shown(explorer)
    assert batch.labels[0, t] != IGNORE and logits[t].argmax() == batch.labels[0, t]


def test_hover_shows_and_click_holds(explorer):
    start = shown(explorer)
    token(explorer, 40).hover()
    assert shown(explorer) == 40
    explorer.locator(".mc-time").hover()
    assert shown(explorer) == start
    token(explorer, 41).click()
    explorer.locator(".mc-time").hover()
    assert shown(explorer) == 41


def test_keys_walk(explorer, page, truth):
    _, _, batch = truth
    token(explorer, 100).click()
    for key, expected in [("ArrowRight", 101), ("ArrowLeft", 100), ("ArrowDown", 116), ("ArrowUp", 100), ("End", 255), ("Home", 0)]:
        page.keyboard.press(key)
        assert shown(explorer) == expected
    page.keyboard.press("n")
    assert shown(explorer) == (batch.labels[0] != IGNORE).nonzero()[0].item()


def test_tokens_that_scroll_under_a_resting_pointer_are_not_pointed_at(explorer, page):
    page.set_viewport_size({"width": 1280, "height": 260})
    token(explorer, 130).click()
    for key, expected in [("Home", 0), ("End", 255), ("Home", 0)]:
        page.keyboard.press(key)
        page.wait_for_timeout(300)
        assert shown(explorer) == expected


def test_keys_work_from_the_buttons_and_the_slider(explorer, page):
    token(explorer, 100).click()
    explorer.get_by_role("button", name="next query").click()
    first = shown(explorer)
    page.keyboard.press("n")
    assert shown(explorer) > first
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("p")
    assert shown(explorer) == first
    explorer.locator(".mc-time").focus()
    page.keyboard.press("ArrowRight")
    assert shown(explorer) == first + 1
    page.keyboard.press("n")
    assert shown(explorer) > first + 1


def test_the_slider_closes_segments(explorer, page):
    slider = explorer.locator(".mc-time")
    for t, cached in [(15, 0), (16, 1), (255, 15)]:
        slider.fill(str(t))
        assert shown(explorer) == t
        assert f"{cached} state" in explorer.locator(".status").inner_text()
    assert slider.get_attribute("aria-valuetext")


def test_it_fits_a_phone_and_the_dark(explorer, page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    ink, paper = page.evaluate("""() => { const s = getComputedStyle(document.querySelector('.mc-routing'));
        return [s.color, getComputedStyle(document.body).backgroundColor] }""")
    brightness = lambda c: sum(map(int, c[c.index("(") + 1 : -1].split(",")[:3]))
    assert brightness(ink) - brightness(paper) > 300
