"""After a build: how much of the height of the pages for readers, from Start to Evidence, is visible code.

    shown.py [-v] [_build/html]      one line (-v: and one a page), or nothing where there is no browser; never an error: it decides nothing
"""
import functools
import http.server
import os
import re
import shutil
import sys
import threading
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
READ = re.compile(r"nbs/(?!workshop/)|book/runs/")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
SETTLED = """async () => {
    if (window.MathJax) await MathJax.startup.promise;
    return [...document.querySelectorAll(".mc-plotly, .mc-widget")].every(e => e.dataset.ready) }"""
MEASURE = """() => {
    const code = ".cell_input, div.highlight, .mc-sig";
    const outermost = [...document.querySelectorAll("article :is(.cell_input, div.highlight, .mc-sig)")].filter(e =>
        e.checkVisibility() && !e.parentElement.closest(code) && !e.closest(".cell_output"));
    const height = e => e.getBoundingClientRect().height;
    return [outermost.reduce((sum, e) => sum + height(e), 0), height(document.querySelector("article"))] }"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def pages(root):
    "The pages for readers up to the part Evidence, in the order of the table of contents."
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    files, captions = [toc["root"]], [part["caption"] for part in toc["parts"]]
    for part in toc["parts"][:captions.index("Evidence") + 1]:
        files += [chapter["file"] for chapter in part["chapters"]]
    return [f for f in files if READ.match(f)]


def measure(html, names, chromium):
    "{page: (height of its visible code, its height)}, both in pixels, 1280 wide."
    from playwright.sync_api import sync_playwright
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        for name in names:
            page.goto(f"http://127.0.0.1:{server.server_port}/{name}.html", timeout=20_000)
            page.wait_for_function(SETTLED, timeout=20_000)
            found[name] = page.evaluate(MEASURE)
        browser.close()
    server.shutdown()
    return found


def main():
    html = Path(next((a for a in sys.argv[1:] if a != "-v"), ROOT / "_build/html"))
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    if not chromium:
        return
    heights = measure(html, [p for p in pages(ROOT) if (html / f"{p}.html").exists()], chromium)
    code, total = map(sum, zip(*heights.values()))
    print(f"book: visible code is {100 * code / total:.0f} % of the page height from Start to Evidence ({total / 900:.0f} screens, {len(heights)} pages)")
    if "-v" in sys.argv:
        for name, (part, whole) in heights.items():
            print(f"{100 * part / whole:5.1f} % of {whole / 900:4.1f} screens  {name}")


if __name__ == "__main__":
    try:
        main()
    except Exception as error:    # a figure for its readers, no test
        print(f"book: the share of code was not measured ({type(error).__name__})") if "-v" in sys.argv else None
