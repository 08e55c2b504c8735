"""The states explorer in the published page: by mouse, by keyboard, and with the numbers of mc."""
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from conftest import opened
from mc.explorers.states import explore_states, hear, states_data
from mc.nn.model import LanguageModel
from mc.tasks.mqar import MQAR, Batch

ROOT = Path(__file__).resolve().parents[1]
INITS = ("independent", "checkpoint")
CELLS = """e => [...e.querySelectorAll('.shelf')].map(s => [...s.querySelectorAll('.memory')].map(
    m => [Number(m.dataset.value), m.querySelector('.reply').textContent]))"""


def caching(init, path="results/state_per_byte/cpu/models/grm.safetensors"):
    model = LanguageModel.load(ROOT / path)
    other = LanguageModel(replace(model.config, mixer=replace(model.config.mixer, init=init)))
    other.load_state_dict(model.state_dict())
    return other.eval()


@pytest.fixture(scope="module")
def truth():
    "The batch that the page shows; by init the cached memories (heads, N, 16, 16); q, k and v of the first layer."
    batch = MQAR().sample(1, torch.Generator().manual_seed(2026))
    models = {init: caching(init) for init in INITS}
    states = {init: m.inspect(batch.tokens)[1][0].cache.states["m"][0].transpose(0, 1) for init, m in models.items()}
    mixer, x = models["independent"].blocks[0], models["independent"].embedding(batch.tokens)
    with torch.no_grad():
        q, k, v = mixer.mixer.conv(mixer.mixer_norm(x))[0].unflatten(-1, (3, 4, -1))[0].unbind(1)
    return batch, states, F.normalize(q, dim=-1), F.normalize(k, dim=-1), v


@pytest.fixture
def explorer(page, site):
    return opened(page, f"{site}nbs/workshop/explorer_states.html", ".mc-states")


def token(root, t):
    return root.locator(f".token[data-index='{t}']")


def memory(root, i, shelf=0):
    return root.locator(".shelf").nth(shelf).locator(f"[data-memory='{i}']")


def number(root, attribute, shelf=0):
    return float(root.locator(f"[data-{attribute}]").nth(shelf).get_attribute(f"data-{attribute}"))


def test_closeness_and_answers_are_those_of_mc(explorer, truth):
    batch, states, q, k, v = truth
    question = int((batch.labels[0] >= 0).nonzero()[9])
    source = int(batch.source[0, question])
    for asked, vector, place in [(1, k[1], 1), (64, k[65], 65), (127, k[127], 127), (question, q[question], source)]:
        token(explorer, asked).click()
        for head in (0, 2):
            explorer.get_by_role("button", name=str(head + 1), exact=True).click()
            for init, cells in zip(INITS, explorer.evaluate(CELLS)):
                assert len(cells) == 16
                for i, (value, reply) in enumerate(cells):
                    answer = states[init][head, i] @ vector[head]
                    assert value == pytest.approx(F.cosine_similarity(answer, v[place, head], dim=0).item(), abs=1e-3)
                    cosines = F.cosine_similarity(answer, v[1:128:2, head], dim=1)
                    best = 2 * int((cosines.abs() if asked == question else cosines).argmax()) + 1
                    right = batch.tokens[0, best] == batch.tokens[0, place]
                    assert reply == ("✓" if right else "") + str(int(batch.tokens[0, best]))


def test_the_large_view_shows_the_numbers_of_mc(explorer, page, truth):
    _, states, *_ = truth
    explorer.get_by_role("button", name="2", exact=True).click()
    for i in (0, 6):
        memory(explorer, i).click()
        for shelf, init in enumerate(INITS):
            state, before = states[init][1, i], states[init][1, i - 1] if i else torch.zeros(16, 16)
            assert number(explorer, "norm", shelf) == pytest.approx(state.norm().item(), rel=1e-3)
            assert number(explorer, "change", shelf) == pytest.approx((state - before).norm().item(), rel=1e-3)
            bars = explorer.locator(".bars").nth(shelf).get_attribute("data-values")
            shown = torch.tensor([float(x) for x in bars.split()])
            assert torch.allclose(shown, torch.linalg.svdvals(state), atol=1e-2)    # 16 bits of numbers up to 900
    explorer.locator(".map").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    for shelf, init in enumerate(INITS):
        assert number(explorer, "number", shelf) == pytest.approx(states[init][1, 6, 2, 1].item(), abs=5e-3)
    assert "Row 3, column 2" in explorer.locator(".spoken").inner_text()
    box = explorer.locator(".map canvas").first.bounding_box()
    page.mouse.move(box["x"] + 15.5 / 16 * box["width"], box["y"] + 0.5 / 16 * box["height"])
    assert number(explorer, "number") == pytest.approx(states["independent"][1, 6, 0, 15].item(), abs=5e-3)


def test_the_change_of_a_checkpoint_is_the_fresh_memory(explorer, truth):
    _, states, *_ = truth
    memory(explorer, 6).click()
    explorer.get_by_role("button", name="change since the last one").click()
    explorer.locator(".map").nth(1).focus()
    assert number(explorer, "number", 1) == pytest.approx(states["independent"][0, 6, 0, 0].item(), abs=5e-3)
    explorer.get_by_role("button", name="memory", exact=True).click()
    assert number(explorer, "norm", 1) == pytest.approx(states["checkpoint"][0, 6].norm().item(), rel=1e-3)


def test_the_first_frame_tells_who_knows(explorer, truth):
    batch, *_ = truth
    fresh, running = explorer.evaluate(CELLS)
    assert "◆" in memory(explorer, 4).inner_text() and f"✓{int(batch.tokens[0, 65])}" in memory(explorer, 4).inner_text()
    assert max(range(16), key=lambda i: fresh[i][0]) == 4
    assert explorer.locator(".shelf").nth(0).locator(".holds").count() == 1
    assert explorer.locator(".shelf").nth(1).locator(".holds").count() == 12
    assert min(value for value, _ in running[4:]) > max(value for value, _ in running[:4])


def test_hover_shows_and_click_holds(explorer):
    token(explorer, 9).hover()
    assert explorer.get_attribute("data-token") == "9"
    explorer.locator(".heading").hover()
    assert explorer.get_attribute("data-token") == "65"
    memory(explorer, 2).hover()
    assert explorer.get_attribute("data-memory") == "2"
    explorer.locator(".story").hover()
    assert explorer.get_attribute("data-memory") == "4"
    memory(explorer, 3, shelf=1).click()
    explorer.locator(".story").hover()
    assert explorer.get_attribute("data-memory") == "3"


def test_keys_walk_tokens_and_memories(explorer, page, truth):
    batch, *_ = truth
    token(explorer, 20).click()
    page.keyboard.press("ArrowRight")
    assert explorer.get_attribute("data-token") == "21"
    page.keyboard.press("n")
    assert int(explorer.get_attribute("data-token")) == int((batch.labels[0] >= 0).nonzero()[0])
    memory(explorer, 4).focus()
    for key, expected in [("ArrowRight", 5), ("ArrowLeft", 4), ("End", 15), ("ArrowRight", 15), ("Home", 0)]:
        page.keyboard.press(key)
        assert int(explorer.get_attribute("data-memory")) == expected
        assert memory(explorer, expected).evaluate("e => e === document.activeElement")
    assert "closeness" in memory(explorer, 0).get_attribute("aria-label")


def test_a_filler_asks_nothing(explorer, truth):
    batch, *_ = truth
    filler = 128 + int((batch.labels[0, 128:] < 0).nonzero()[0])
    token(explorer, filler).click()
    assert "Nothing to ask" in explorer.locator(".story").inner_text()
    assert explorer.locator(".memory .number").all_inner_texts() == [""] * 32


def test_a_deep_memory_shows_both_layers(explorer, page):
    root = page.locator(".mc-states").nth(1)
    assert memory(root, 0).locator("canvas").count() == 2
    layer, head = (int(number) - 1 for number in re.search(r"layer (\d), head (\d)", root.locator(".heading").inner_text()).groups())
    batch = MQAR().sample(1, torch.Generator().manual_seed(2026))
    heard = hear(caching("independent", "results/deep/cpu/models/dla-grm.safetensors"), batch.tokens, layer)
    learned = heard.learned
    assert all((learned[name][0, head, 4] + heard.memory.start(heard.k[:, 0], heard.v[:, 0])[name][0, head]).allclose(
        heard.cache[4][name][0, head], atol=1e-6) for name in ("w1", "w2"))
    root.locator(".map").nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert number(root, "number") == pytest.approx(learned["w1"][0, head, 4, 1, 0].item(), abs=1e-3)
    norm = sum(leaf[0, head, 4].square().sum() for leaf in learned.values()).sqrt().item()
    assert number(root, "norm") == pytest.approx(norm, abs=1e-3)


def test_it_fits_a_phone_and_the_dark(explorer, page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    ink = explorer.evaluate("e => getComputedStyle(e).color")
    assert sum(map(int, ink[ink.index("(") + 1 : -1].split(",")[:3])) > 600


def test_a_long_sequence_of_any_words_answers_in_time(page, site, tmp_path):
    "512 tokens, 32 memories, a running segment, and tokens that are no numbers."
    batch = MQAR(vocab_size=256, length=520, pairs=100).sample(1, torch.Generator().manual_seed(0))
    widget = explore_states({init: caching(init) for init in INITS}, batch)
    data = dict(widget.data)
    data["tokens"] = ["</script><b>", 'a"b', "שלום", "🙂", *data["tokens"][4:]]
    widget.data = data
    widget.save_html(tmp_path / "states.html")
    page.route(f"{site}states.html", lambda route: route.fulfill(path=tmp_path / "states.html"))
    page.goto(f"{site}states.html")
    root = page.locator(".mc-states")
    root.wait_for(timeout=20_000)
    assert root.locator(".shelf").first.locator(".memory").count() == 32 == data["memories"]
    token(root, 1).click()
    assert "</script><b>" in root.locator(".story").inner_text()
    spent = root.evaluate("""e => { const all = [...e.querySelectorAll('.token')].slice(0, 60), start = performance.now();
        for (const t of all) { t.click(); e.getBoundingClientRect(); } return (performance.now() - start) / all.length }""")
    assert spent < 100


@pytest.mark.parametrize(("change", "words"), [
    ({"layer": 2}, "layer must be 0 to 1; got 2"),
    ({"heads": [4]}, r"heads must be some of 0 to 3; got \[4\]"),
    ({"models": {}}, "models must be one or more"),
    ({"batch": Batch(*(x[:, :15] for x in MQAR().sample(1, torch.Generator().manual_seed(0))))}, "none has closed a segment"),
])
def test_bad_input_is_refused(change, words):
    batch = MQAR().sample(1, torch.Generator().manual_seed(0))
    given = {"models": {"one": caching("independent")}, "batch": batch, "title": "", "layer": 0} | change
    with pytest.raises(ValueError, match=words):
        states_data(**given)
