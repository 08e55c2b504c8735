"The reference part of the book: the map from paper to code, the API reference, downloads, launch buttons, exercises."
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml

import mc
from conftest import BOOK

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book/_ext"))
import paper  # noqa: E402

pytestmark = pytest.mark.slow

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]


@pytest.fixture(scope="module")
def book():
    return BOOK if (BOOK / ".complete").exists() else pytest.skip("the book is not built, or its last build failed: make book")


class Anchors(HTMLParser):
    "Where a page's links lead, and what they can lead to."

    def __init__(self, file):
        super().__init__()
        self.links, self.ids = [], {""}
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])


@pytest.mark.parametrize("text, numbers", [
    ("Eq. 26-28, 30", [26, 27, 28, 30]), ("(GRM, Eq. 8-10).", [8, 9, 10]), ("Eq. 3 and 11: a loss", [3, 11]),
    ("Eq. 9 against\n    Eq. 7, in 3 cases", [7, 9]), ("nothing of 12-13", []), (None, [])])
def test_the_equations_that_a_text_names(text, numbers):
    assert paper.named(text) == numbers


@pytest.mark.parametrize("kind", [paper.chapters, paper.functions, paper.tests])
def test_every_equation_has_a_chapter_a_function_and_a_test(kind):
    named = {n for place in kind(ROOT) for n in place.equations}
    assert named == set(paper.EQUATIONS)


def test_no_link_of_the_book_is_broken(book):
    pages = {f"{name}.html": Anchors(book / f"{name}.html") for name in [*PAGES, "search", "genindex"]}
    broken = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (book / name).parent / unquote(parts.path) if parts.path else book / name
            there = target.resolve().is_file()
            goal = pages.get(str(target.resolve().relative_to(book))) if there else None
            if not there or goal and parts.fragment and unquote(parts.fragment) not in goal.ids:
                broken.append(f"{name}: {link}")
    assert broken == []


def test_a_chapter_names_its_equations_module_and_tests(page, site):
    page.goto(f"{site}nbs/see/gates.html")
    text = page.inner_text(".mc-where")
    assert "Equations 8, 9, 10" in text and "Exported to mc.read.gated" in text and "test_gated_reading_as_printed" in text
    page.click(".mc-where a:text-is('9')")
    row = page.locator("tr:has(#equation-9)")
    assert "gated.gated" in row.inner_text() and page.url.endswith("map.html#equation-9")
    row.get_by_role("link", name="gated reading as printed").click()
    assert page.locator(":target").evaluate("e => e.getBoundingClientRect().top") < 300
    assert "def test_gated_reading_as_printed" in page.inner_text("article")


def test_the_api_reference_is_made_of_docstrings(page, site):
    page.goto(f"{site}book/api.html")
    for name in mc.__all__:
        home = getattr(mc, name).__module__
        entry = page.locator(f"[id='{home}.{name}']")
        chapter = next(c for c in paper.chapters(ROOT) if c.module == home)
        assert entry.locator("a:has-text('[source]')").get_attribute("href") == f"../{chapter.where}.html"
    prose = page.locator("article dd > p").all_inner_texts()
    assert len(prose) > 100 and not [p for p in prose if "`" in p or "\\" in p]


@pytest.mark.parametrize("name", [p for p in PAGES if p.startswith("nbs/") or "runs" in p])
def test_a_chapter_can_be_taken_along_as_a_notebook(book, name):
    links = [link for link in Anchors(book / f"{name}.html").links if link.endswith(".ipynb") and "_sources" in link]
    file = (book / f"{name}.html").parent / links[0]
    assert len(links) == 1 and file.read_bytes() == (ROOT / f"{name}.ipynb").read_bytes()
    nbformat.validate(nbformat.read(file, as_version=4))


@pytest.mark.parametrize("address", ["", "https://github.com/someone/somewhere"])
def test_launch_buttons_appear_with_the_address(address, tmp_path):
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["repository"]["url"] = address
    (tmp_path / "_config.yml").write_text(yaml.safe_dump(config))
    pages = ["nbs/workshop/figures", "book/runs/gates/smoke"]
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump({"format": "jb-book", "root": pages[0], "parts": [
        {"caption": "one", "chapters": [{"file": pages[1]}]}]}))
    for name in ("book/_ext", "book/_static", "book/references.bib", "mc/explorers", f"{pages[0]}.md", f"{pages[0]}.ipynb"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A run")], metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    (tmp_path / pages[1]).parent.mkdir(parents=True)
    nbformat.write(notebook, tmp_path / f"{pages[1]}.ipynb")
    subprocess.run([Path(sys.executable).with_name("jupyter-book"), "build", tmp_path], check=True, capture_output=True)
    html = [(tmp_path / "_build/html" / f"{name}.html").read_text() for name in pages]
    launches = [[link for link in re.findall(r'href="(https://[^"]+)"', text) if re.search("mybinder|colab", link)] for text in html]
    if not address:
        assert launches == [[], []] and "Colab" not in "".join(html)
        return
    for found, path in zip(launches, ("nbs/workshop/figures.ipynb", "nbs/bench/gates.ipynb")):
        assert sorted(found) == [f"https://colab.research.google.com/github/someone/somewhere/blob/main/{path}",
                                 f"https://mybinder.org/v2/gh/someone/somewhere/main?urlpath=lab/tree/{path}"]
    assert f"git clone -q {address}" in html[0]


@pytest.mark.parametrize("source", sorted(ROOT.glob("nbs/**/*.md")), ids=lambda f: f.stem)
def test_every_exercise_has_a_solution(source):
    exercises = source.read_text().partition("## Exercises")[2]
    solutions = re.search(r"```{dropdown} Solutions?\n(.+?)```", exercises, re.S)
    count = lambda text: re.findall(r"^(\d+)\. ", text, re.M)
    if exercises:
        assert count(exercises[:solutions.start()]) == (count(solutions[1]) or ["1"])
