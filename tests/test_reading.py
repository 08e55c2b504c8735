"""How pages read: what a reader sees first, what is folded and what opens it, terms, formulas on a phone."""
import os
import re
import subprocess
import sys

import pytest
import yaml

from conftest import BOOK, chromium
from test_browser import SETTLED

ROOT = BOOK.parents[1]
sys.path += [str(ROOT / "book/_ext"), str(ROOT / "book/_tools")]
import shown  # noqa: E402
from reading import READERS, first_sentence, says  # noqa: E402

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [p for p in (TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])) if READERS.match(p)]
EXAMPLES = "nbs/workshop/pages"
SCREEN, SCREENS = 900, 7
LONGER = {"nbs/evidence/errata": 12}    # a list to look something up in
UNRECORDED = {f"book/runs/{path.stem}/smoke" for path in ROOT.glob("nbs/bench/*.yaml")
              if not any(ROOT.glob(f"results/{path.stem}/cpu/*.json"))}    # what they measure is not there to be pictured
OPEN = {"nbs/start/use_it": 6, "nbs/use/hugging_face": 4}    # what one copies


def visit(page, site, name):
    assert page.goto(f"{site}{name}.html").status == 200
    page.wait_for_function(SETTLED, timeout=20_000)


# ---- each page for readers

@pytest.mark.parametrize("name", PAGES)
def test_a_page_for_readers(page, site, name):
    "A picture in the first screen, short, its claims marked, its code folded; all of it said at once, for a visit takes its time."
    visit(page, site, name)
    seen = page.evaluate("""() => {
        const all = selector => [...document.querySelectorAll("article " + selector)], visible = e => e.checkVisibility();
        return {
            tops: all(":is(.mc-plotly, .mc-widget, img, svg)").map(e => e.getBoundingClientRect())
                .filter(box => box.height > 100).map(box => Math.round(box.top + scrollY)),
            height: document.querySelector("article").getBoundingClientRect().height,
            bare: all("strong").map(e => e.textContent).filter(text => /^Claim:/.test(text)),
            unmarked: all(".mc-claim:not(.mc-open)").filter(e => !e.querySelector("summary .mc-mark")).map(e => e.textContent),
            open: all(".cell:not(.tag_teaches) .cell_input").filter(visible).map(e => e.innerText.slice(0, 80)),
            teaches: all(".cell.tag_teaches .cell_input").filter(visible).length } }""")
    troubles, high = [], seen["height"] / SCREEN
    if min(seen["tops"], default=9999) > SCREEN - 200 and name not in UNRECORDED:
        troubles.append(f"the first picture begins at {min(seen['tops'], default=None)} px")
    if high > LONGER.get(name, SCREENS):
        troubles.append(f"{high:.1f} screens of {SCREEN} px, with everything folded")
    troubles += [f"no code cell stands right after: {text}" for text in seen["bare"]]
    troubles += [f"no mark: {text}" for text in seen["unmarked"]]
    troubles += [f"not folded: {text}" for text in seen["open"]]
    if seen["teaches"] > OPEN.get(name, 3):
        troubles.append(f"{seen['teaches']} cells are open: what is the equation?")
    assert not troubles, "\n".join(troubles)


# ---- what folds, on the page that has an example of each

def fold(page, words):
    return page.locator("article details.mc-fold", has_text=words).first


def test_each_convention_folds_what_it_says(page, site):
    visit(page, site, EXAMPLES)
    assert "import pandas" not in page.inner_text("article") and "import pandas" not in page.content()
    assert page.locator(".cell.tag_teaches .cell_input").is_visible()
    defs = fold(page, "even_share")
    assert "def even_share(memories: int) -> float: ..." in defs.inner_text()
    assert "if all scores were equal." in defs.inner_text() and "A second sentence" not in defs.inner_text()
    defs.locator("summary").click()
    assert "return 1 / memories" in defs.inner_text() and defs.locator(".mc-sigs").is_hidden()
    printed, drawn = page.locator(".mc-claim").all()
    assert printed.locator("p strong").first.inner_text().startswith("The gates of a token")
    assert not printed.get_by_text("1.000000").is_visible()
    printed.locator("summary").click()
    assert printed.get_by_text("1.000000").is_visible() and printed.get_by_text("allclose").is_visible()
    assert page.locator("table.dataframe").is_visible()
    assert not drawn.get_by_text("idxmax").first.is_visible()
    assert page.get_by_text("0.25", exact=True).is_visible()


def test_a_fold_opens_by_keyboard(page, site):
    visit(page, site, EXAMPLES)
    for which in (".mc-check", ".mc-defs", ".mc-code", ".mc-section"):
        summary = page.locator(f"article details{which} > summary").first
        summary.focus()
        page.keyboard.press("Enter")
        assert page.locator(f"article details{which}").first.get_attribute("open") is not None


def test_a_link_opens_what_it_leads_into(page, site):
    visit(page, site, EXAMPLES)
    section = page.locator("details.mc-section")
    assert section.get_attribute("open") is None
    page.locator("a[href$='#reproduce']:visible").first.click()
    page.wait_for_selector("details.mc-section[open]")
    section.evaluate("e => { e.open = false; e.querySelector('p').id = 'inside' }")
    page.evaluate("location.hash = '#inside'")
    page.wait_for_function("document.querySelector('details.mc-section').open")
    visit(page, site, "book/notation")
    page.goto(f"{site}{EXAMPLES}.html#reproduce")
    page.wait_for_function(SETTLED)
    assert section.get_attribute("open") is not None


def test_folds_work_without_scripts_and_on_paper(context, site):
    bare = context.browser.new_context(java_script_enabled=False).new_page()
    bare.goto(f"{site}{EXAMPLES}.html")
    assert not bare.get_by_text("return 1 / memories").is_visible()
    fold(bare, "even_share").locator("summary").click()
    assert bare.get_by_text("return 1 / memories").is_visible()
    bare.goto(f"{site}{EXAMPLES}.html")
    bare.emulate_media(media="print")
    assert bare.locator("details.mc-section p").first.is_visible()
    assert bare.locator("article .mc-closed:visible").count() == 0 and not bare.get_by_text("return 1 / memories").is_visible()
    assert bare.locator(".mc-sig").first.is_visible()
    bare.context.close()


def test_a_workshop_page_shows_its_code(page, site):
    visit(page, site, "nbs/workshop/parallel_writes")
    assert page.locator(".mc-export .cell_input:visible").count() > 3
    assert page.locator("article details.mc-fold").count() == 0


def test_a_cell_says_what_it_defines():
    html = says('def f(a: int, *, b=2) -> int:\n    "Eq. 3 of `a`. More."\n\n\ndef _hidden():\n    pass\n')
    text = re.sub("<[^>]+>", "", html)
    assert text == "def f(a: int, *, b=2) -&gt; int: ... Eq. 3 of a."
    both = re.sub("<[^>]+>", "", says("class A(B):\n    'One.'\n\nasync def g(a: int) -> int: ..."))
    assert both == "class A(B): ... One.async def g(a): ..."
    assert "TABLE" in says("TABLE = {}") and says("for i in range(3): pass") == says("%time 1") == ""
    assert first_sentence("Of Sec. 3 and Eq. 4, e.g. this one. And on.") == "Of Sec. 3 and Eq. 4, e.g. this one"


def test_the_share_of_code_is_measured_and_never_fails(site, tmp_path):
    one = f"import pathlib, shown; print(*shown.measure(pathlib.Path({str(BOOK)!r}), [{EXAMPLES!r}], {chromium()!r})[{EXAMPLES!r}])"
    run = subprocess.run([sys.executable, "-c", one], cwd=ROOT / "book/_tools", capture_output=True, text=True)    # its own browser
    code, whole = map(float, run.stdout.split())
    assert 0 < code < 0.2 * whole
    names = shown.pages(ROOT)
    assert names[0] == TOC["root"] and "book/runs/extrapolation/smoke" in names and not [n for n in names if "workshop" in n or "nbs/use" in n]
    for env, folder in ((os.environ, tmp_path), ({**os.environ, "PATH": "", "CHROMIUM": ""}, BOOK)):
        run = subprocess.run([sys.executable, shown.__file__, folder], env=env, capture_output=True, text=True)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# ---- terms

def test_a_term_shows_its_definition(page, site):
    visit(page, site, EXAMPLES)
    term, tip = page.locator("article a[href*='#term-gate']").first, page.locator("#mc-tip")
    assert tip.is_hidden()
    term.hover()
    tip.wait_for(state="visible")
    assert "softmax" in tip.inner_text() and term.get_attribute("aria-describedby") == "mc-tip" and tip.get_attribute("role") == "tooltip"
    tip.hover()    # one may point into it
    page.wait_for_timeout(400)
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert tip.is_hidden() and term.get_attribute("aria-describedby") is None
    page.mouse.move(2, 2)
    page.keyboard.press("Tab")    # from now on the keyboard is in use
    term.focus()
    assert tip.is_visible()
    page.keyboard.press("Tab")
    assert tip.is_hidden()
    for link in tip.locator("a").evaluate_all("links => links.map(a => a.href)"):
        assert page.request.get(link).ok, link


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_tap_shows_a_term_first(context, site, theme):
    phone = context.browser.new_context(viewport={"width": 380, "height": 800}, has_touch=True, color_scheme=theme).new_page()
    phone.goto(f"{site}{EXAMPLES}.html")
    phone.wait_for_function(SETTLED)
    term, tip = phone.locator("article a[href*='#term-gate']").first, phone.locator("#mc-tip")
    term.tap()
    assert tip.is_visible() and phone.url.endswith(f"{EXAMPLES}.html")
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 380
    ink, paper = (sum(map(int, re.findall(r"\d+", tip.evaluate(f"e => getComputedStyle(e).{what}"))[:3])) for what in ("color", "backgroundColor"))
    assert abs(ink - paper) > 400
    tip.get_by_text("In the glossary").tap()
    phone.wait_for_url("**/book/glossary.html#term-gate")
    phone.context.close()


# ---- on a phone

def test_a_long_formula_scrolls_inside_itself_with_its_number_below(page, site):
    page.set_viewport_size({"width": 380, "height": 800})
    scrolled = 0
    for name in ("nbs/see/sparse", "nbs/memories/titans", "nbs/workshop/dual"):
        visit(page, site, name)
        for f in page.evaluate("""[...document.querySelectorAll("article div.math")].filter(e => e.querySelector(".eqno")).map(e => {
                const box = e.querySelector("mjx-container"), number = e.querySelector(".eqno").getBoundingClientRect(), all = box.getBoundingClientRect();
                return {wide: box.scrollWidth > box.clientWidth + 1, scrolls: getComputedStyle(box).overflowX, id: e.id,
                        below: number.top >= all.bottom - 2, inside: number.right <= innerWidth && all.right <= innerWidth} })"""):
            assert f["below"] and f["inside"] and f["scrolls"] == "auto", f
            scrolled += f["wide"]
    assert scrolled


@pytest.mark.parametrize("name", ["book/map", "nbs/workshop/parallel", "nbs/evidence/errata"])
def test_a_table_scrolls_inside_itself(page, site, name):
    page.set_viewport_size({"width": 380, "height": 800})
    visit(page, site, name)
    assert page.evaluate("""[...document.querySelectorAll("article table")].filter(table => {
        for (let e = table; e.tagName !== "ARTICLE"; e = e.parentElement)
            if (["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e.getBoundingClientRect().right <= innerWidth) return false;
        return true }).length""") == 0


def test_figures_survive_being_measured_anew(page, site):
    "Plotly may measure its title in the middle of a redraw and give it the whole figure."
    name = next(p for p in PAGES if (f := BOOK / f"{p}.html").exists() and "mc-plotly" in f.read_text())
    for pause in (0, 100):
        visit(page, site, name)
        page.wait_for_timeout(pause)
        page.screenshot(full_page=True)
        page.wait_for_timeout(300)
        heights = page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].map(e => e._fullLayout._size.h / e._fullLayout.height)")
        assert min(heights) > 0.4
    page.set_viewport_size({"width": 1000, "height": 900})
    page.wait_for_function("[...document.querySelectorAll('.mc-plotly')].every(e => e.querySelector('.main-svg').getBoundingClientRect().width <= e.clientWidth + 1)")
