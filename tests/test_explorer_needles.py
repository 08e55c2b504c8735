"""The explorer of needles: its numbers are those of the readers, and a page alone shows, switches and zooms."""
import json
import re

import pytest
import torch

from mc.evidence.readings import ask, places, reader_of
from mc.evidence.variants import made, model_of
from mc.explorers.needles import explore_needles, needles
from mc.explorers.needles_data import SHOWN, unpack_shares
from mc.tasks.needles import Needles

VARIANTS = ("none", "attention", "grm", "ssc", "fenwick")


@pytest.fixture(scope="module")
def models():
    return {name: made(model_of(name, 64), 1) for name in VARIANTS}


@pytest.fixture(scope="module")
def texts():
    return [Needles(64, n, 8).sample(1, torch.Generator().manual_seed(3)) for n in (128, 600)]


@pytest.fixture(scope="module")
def widget(models, texts):
    return explore_needles(models, texts, "</script> needles")


def test_the_payload_is_what_the_readers_noted(widget, models, texts):
    for variant in widget.data["variants"]:
        for batch, shown, asked in zip(texts, variant["passes"], widget.data["texts"]):
            assert set(shown["routers"]) == set(SHOWN if variant["kind"] in ("grm", "ssc") else SHOWN[:1])
            for router, found in shown["routers"].items():
                logits, notes = ask(reader_of(models[variant["name"]], router), batch)
                assert [a[0] for a in found["answers"]] == [str(i) for i in logits[0].argmax(-1).tolist()]
                p = logits.softmax(-1).gather(-1, batch.labels.gather(1, places(batch))[..., None])
                assert [a[2] for a in found["answers"]] == pytest.approx(p.flatten().tolist(), abs=1e-4)
                if not notes:
                    continue
                some = notes[0].seen[0, 0].any(0)
                wanted = torch.stack([(n.gates * n.seen.sum(-1, keepdim=True))[0, ..., some] for n in notes]).permute(2, 0, 1, 3)
                shares = unpack_shares(found["shares"], *wanted.shape)
                assert wanted.shape[-1] == len(shown["bounds"]) + 1
                assert torch.equal(shares > 0, wanted > 0) and ((shares / wanted).log2()[wanted > 0].abs() < 0.04).all()
                hits = torch.stack([n.hit[0] for n in notes]).flatten(0, 1).T
                assert ["".join("01"[h] for h in row) for row in hits.tolist()] == found["hit"]


def test_the_oracle_is_one_memory_and_its_share_is_all(widget, texts):
    grm = next(v for v in widget.data["variants"] if v["name"] == "grm")
    found = grm["passes"][1]["routers"]["oracle"]
    shares = unpack_shares(found["shares"], 8, 2, 4, 38)
    home = (texts[1].source[0, -8:] // 16).tolist()
    assert (shares > 0).sum() == 64 and all(torch.allclose(shares[q, ..., s], torch.tensor(38.0).double()) for q, s in enumerate(home))


def test_a_page_stays_small_and_half_precision_is_left_alone(models):
    half = made(model_of("ssc", 64), 1).half()
    data = explore_needles({"grm": models["grm"], "half": half}, Needles(64, 2048, 8).sample(1, torch.Generator().manual_seed(0))).data
    assert len(json.dumps(data)) < 70_000 and half.embedding.weight.dtype == torch.float16


def test_what_cannot_be_shown_is_named(models, texts, widget, tmp_path, capsys):
    with pytest.raises(ValueError, match="texts must ask for something"):
        explore_needles(models, [texts[0]._replace(source=torch.full_like(texts[0].source, -1))])
    with pytest.raises(ValueError, match="models must be a LanguageModel with weights, .* got int for 'grm'"):
        explore_needles({"grm": 3}, texts)
    with pytest.raises(ValueError, match="router must be one of"):
        widget.setting = {"router": "learnt"}
    with pytest.raises(ValueError, match="question must be 0 to 7; got 8"):
        widget.setting = {"question": 8}
    assert needles(tmp_path) is None and "Not recorded yet" in capsys.readouterr().out


@pytest.fixture
def root(page, widget, tmp_path):
    widget.save_html(tmp_path / "page.html")
    page.route("http://127.0.0.1/**", lambda route: route.fulfill(path=tmp_path / "page.html", content_type="text/html"))
    page.goto("http://127.0.0.1/")
    root = page.locator(".mc-needles")
    root.wait_for(timeout=20_000)
    return root


@pytest.mark.slow
def test_the_page_shows_the_numbers_and_switches(root, page, widget, models, texts):
    batch = texts[1]
    order = batch.source[0, -8:].argsort().tolist()
    row = lambda name: root.locator(f".variant[data-variant='{VARIANTS.index(name)}']")
    for key, router in (("o", "oracle"), ("r", "random"), ("l", "learned")):
        page.locator(".mc-segment").focus()
        page.keyboard.press(key)
        assert root.locator(f"button[data-value={router}]").get_attribute("aria-pressed") == "true"
        for name in ("grm", "ssc"):
            logits, notes = ask(reader_of(models[name], router), batch)
            right = logits.argmax(-1)[0] == batch.labels[0, -8:]
            assert row(name).locator(".found").all_inner_texts() == ["✗✓"[right[q]] for q in order]
            page.keyboard.press(str(VARIANTS.index(name) + 1))
            for n in (5,) if router == "random" else (0, 5):
                root.locator(f".head button[data-question='{n}']").click()
                q = order[n]
                assert row(name).locator(".said").inner_text() == f"{'✗✓'[right[q]]} {logits[0, q].argmax()}"
                dots = " ".join("".join("○●"[h] for h in note.hit[0, :, q]) for note in notes)
                assert row(name).locator(".hits").inner_text() == dots
                source = int(batch.source[0, -8:][q])
                home = source // 16
                assert root.get_attribute("data-segment") == str(home)
                shown = root.locator(".head-row g").evaluate_all(
                    "(all, slot) => all.map(g => +(g.querySelector(`[data-slot='${slot}']`)?.dataset.value ?? 0))", home)
                wanted = torch.stack([n.gates[0, :, q, home] * n.seen[0, :, q].sum(-1) for n in notes]).flatten().tolist()
                assert shown == pytest.approx(wanted, rel=0.03)
                tokens = root.locator(".inside .token").all_inner_texts()
                assert tokens == [str(t) for t in batch.tokens[0, 16 * home : 16 * home + 16].tolist()]
                assert root.locator(".inside .pair").all_inner_texts() == [str(t) for t in batch.tokens[0, source - 1 : source + 1].tolist()]
    assert row("none").locator(".hits").inner_text() == "" and "nothing to choose" in row("none").inner_text()


@pytest.mark.slow
def test_keys_and_a_drag_move_and_zoom(root, page):
    title = lambda: [int(n) for n in re.findall(r"\d+", root.locator(".map .how").inner_text().split("segments ")[1])]
    page.keyboard.press("Tab")
    root.locator(".head button[data-question='0']").click()
    page.keyboard.press("n")
    assert root.get_attribute("data-question") == "1" and "Needle 2, key" in root.locator(".spoken").inner_text()
    page.keyboard.press("p")
    assert root.get_attribute("data-question") == "0"
    first = int(root.get_attribute("data-segment"))
    page.keyboard.press("ArrowRight")
    assert int(root.get_attribute("data-segment")) == first + 1
    start, end, of = title()
    page.keyboard.press("+")
    assert (title()[1] - title()[0], of) == ((end - start + 1) // 2 - 1, 38)
    page.keyboard.press("End")
    assert root.get_attribute("data-segment") == "37" and title()[1] == 38
    page.keyboard.press("h")
    assert int(root.get_attribute("data-segment")) == first
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    strip = root.locator(".variant[data-variant='2'] svg.track")
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    at = lambda segment: (box["x"] + (segment + 0.5) * 16 / 600 * box["width"], box["y"] + 9)
    page.mouse.move(*at(20))
    assert "segment 21" in root.locator(".reading").inner_text() and "× even" in root.locator(".reading").inner_text()
    page.mouse.down()
    page.mouse.move(*at(30), steps=4)
    page.mouse.up()
    assert title()[:2] == [21, 31]
    page.mouse.click(*at(25))
    assert root.get_attribute("data-segment") == "25" and root.locator(".variant[aria-checked=true]").get_attribute("data-variant") == "2"
    root.get_by_role("button", name="128 tokens").click()
    assert title()[2] == 8 and int(root.get_attribute("data-segment")) < 8


@pytest.mark.slow
def test_it_fits_a_phone_and_the_dark(root, page):
    page.set_viewport_size({"width": 380, "height": 800})
    page.emulate_media(color_scheme="dark")
    page.reload()
    root.wait_for(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    ink, paper = page.evaluate("[getComputedStyle(document.querySelector('.mc-needles')).color, getComputedStyle(document.body).backgroundColor]")
    brightness = lambda c: sum(map(int, c[c.index("(") + 1 : -1].split(",")[:3]))
    assert brightness(ink) - brightness(paper) > 300
