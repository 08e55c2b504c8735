"""Every page of the built book, as a reader's browser shows it."""
import json
import re

import pytest
import yaml

from conftest import BOOK

TOC = yaml.safe_load((BOOK.parents[1] / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]
WITH_FIGURES = [p for p in PAGES if (f := BOOK / f"{p}.html").exists() and "mc-plotly" in f.read_text()]

SETTLED = """async () => {
    if (window.MathJax) await MathJax.startup.promise;
    return [...document.querySelectorAll(".mc-plotly, .mc-widget")].every(e => e.dataset.ready) }"""
PROSE = """() => {
    const article = document.querySelector("article").cloneNode(true);
    article.querySelectorAll("pre, code, script, style, noscript, .mc-widget, .mc-plotly, mjx-container").forEach(e => e.remove());
    return article.textContent }"""
TOO_WIDE = """() => [...document.querySelectorAll("article *")].filter(e => {
    for (let p = e.parentElement; p; p = p.parentElement)    // what scrolls inside its own box may be wide
        if (p !== document.body && ["auto", "scroll", "hidden"].includes(getComputedStyle(p).overflowX) && p.closest("article")) return false;
    return e.getBoundingClientRect().right > innerWidth + 1
}).slice(0, 3).map(e => e.outerHTML.slice(0, 120))"""


def visit(page, site, name):
    response = page.goto(f"{site}{name}.html")
    assert response.status == 200
    page.wait_for_function(SETTLED, timeout=20_000)


@pytest.mark.parametrize("name", PAGES)
def test_page_is_whole_and_fits_a_phone(page, site, name):
    page.set_viewport_size({"width": 380, "height": 800})
    visit(page, site, name)
    assert page.evaluate("[...document.querySelectorAll('.math')].filter(e => !e.querySelector('mjx-container')).map(e => e.textContent)") == []
    assert page.locator("mjx-merror, mjx-mtext[style*='color: red']").count() == 0    # the second: an unknown command
    assert re.findall(r"\\[(\[][^\n]*|\$[^$\n]+\$", page.evaluate(PROSE)) == []
    assert page.evaluate("[...document.querySelectorAll('.mc-plotly')].filter(e => !e.querySelector('.main-svg .overplot :is(path, image)')).length") == 0
    assert page.locator("[data-ready=failed]").all_inner_texts() == []
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 380, f"{width} px wide because of {page.evaluate(TOO_WIDE)}"


@pytest.mark.parametrize("name", WITH_FIGURES[:1])
def test_figures_follow_the_theme(page, site, name):
    page.emulate_media(color_scheme="light")
    visit(page, site, name)
    look = """() => ({theme: document.documentElement.dataset.theme, paper: getComputedStyle(document.body).backgroundColor,
                      ink: getComputedStyle(document.querySelector('.mc-plotly .xtick text')).fill})"""
    light = page.evaluate(look)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
    page.wait_for_function(f"({look})().ink !== {json.dumps(light['ink'])}")
    dark = page.evaluate(look)
    brightness = {k: [sum(map(int, re.findall(r"\d+", t[k])[:3])) for t in (light, dark)] for k in ("paper", "ink")}
    assert brightness["paper"][0] > 600 > 200 > brightness["paper"][1]
    assert brightness["ink"][0] < 300 < 500 < brightness["ink"][1]


@pytest.mark.parametrize("name", WITH_FIGURES[:3])
def test_figures_keep_their_height_on_a_phone(page, site, name):
    page.set_viewport_size({"width": 380, "height": 800})
    page.emulate_media(color_scheme="light")
    visit(page, site, name)
    ink = "getComputedStyle(document.querySelector('.mc-plotly .xtick text')).fill"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ink} !== {json.dumps(light)}")
    assert page.evaluate("Math.min(...[...document.querySelectorAll('.js-plotly-plot')].map(e => e.offsetHeight))") >= 200


def test_search_works_without_network(page, site):
    page.goto(f"{site}search.html?q=memory")
    page.wait_for_selector("#search-results li a")


def test_a_widget_that_fails_says_so(page, site):
    state = {"state": {"m": {"model_name": "AnyModel", "state": {"_esm": "export default { render() { throw Error('no luck') } }"}}}}
    page.route(f"{site}failing.html", lambda route: route.fulfill(content_type="text/html", body=f"""<body>
        <script type="application/vnd.jupyter.widget-state+json">{json.dumps(state)}</script>
        <script type="application/vnd.jupyter.widget-view+json">{{"model_id": "m"}}</script>
        <script src="_static/vendor/host.js"></script>"""))
    page.goto(f"{site}failing.html")
    page.wait_for_selector("[role=alert]")
    assert "could not start: no luck" in page.inner_text("[role=alert]")
    assert len(page.troubles) == 1 and "no luck" in page.troubles.pop()
