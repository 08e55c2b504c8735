"""The reference part: the paper-to-code map, the API reference, the last lines of each chapter, and the launch buttons."""
import ast
import re
from pathlib import Path

from docutils import nodes
from pydantic import BaseModel
from sphinx import addnodes

from paper import EQUATIONS, chapters, errata, formulas, functions, tests

COLAB = """!git clone -q {url} book-on-mc && pip install -q ./book-on-mc anywidget
%cd book-on-mc/nbs/{folder}
from google.colab import output; output.enable_custom_widget_manager()"""


def map_page(root):
    "The table, and the tests that it names, in full."
    all_chapters, all_errata, all_functions, all_tests = map(lambda collect: collect(root), (chapters, errata, functions, tests))
    shown = formulas(root)
    public = re.findall(r'"(\w+)"', (root / "mc/__init__.py").read_text())
    short = lambda f: f.name if f.name[0].isupper() or f.name in public else f"{f.where.split('.')[-1]}.{f.name}"
    of = lambda places, n: [p for p in places if n in p.equations]
    lines = ["| Eq. | shown as | chapter | in the package | tested by |", "|---|---|---|---|---|"]
    for n in EQUATIONS:
        cells = [[f"{{eq}}`{label}`" for label in shown.get(n, [])],
                 [*(f"[{c.name}](/{c.where})" for c in of(all_chapters, n)), *(f"*[{e.name}](#{e.where})*" for e in of(all_errata, n))],
                 [f"{{py:obj}}`{short(f)} <{f.where}.{f.name}>`" for f in of(all_functions, n)],
                 [f"[{t.name.removeprefix('test_').replace('_', ' ')}](#{t.name})" for t in of(all_tests, n)]]
        lines.append(f"| <span id=\"equation-{n}\"></span>{n} | " + " | ".join("<br>".join(c) for c in cells) + " |")
    lines += ["", "## The tests", ""]
    for t in all_tests:
        back = ", ".join(f"<a href=\"#equation-{n}\">{n}</a>" for n in t.equations)
        lines += [f"({t.name})=", f"`{t.where}::{t.name}`, Eq. {back}", "",
                  f"```{{literalinclude}} /{t.where}", f":pyobject: {t.name}", "```", ""]
    return "\n".join(lines)


def api_page(root):
    "One section for each module, in the order and under the parts of the book."
    lines, part = [], None
    for c in chapters(root):
        if c.module:
            lines += [f"## {c.part}", ""] if c.part != part else []
            part = c.part
            lines += [f"### {c.module}", "", f"Exported by [{c.name}](/{c.where}).", "", "```{eval-rst}",
                      f".. automodule:: {c.module}", "   :members:", "   :ignore-module-all:", "", "```", ""]
    return "\n".join(lines)


def names_page(root):
    "A table of `mc.__all__`, each name with the first sentence about it."
    lines = ["| name | |", "|---|---|"]
    top = ast.parse((root / "mc/__init__.py").read_text()).body
    checked = next(node.body for node in top if isinstance(node, ast.If))    # if TYPE_CHECKING
    for node in [*checked, *top]:
        if isinstance(node, ast.ImportFrom) and node in checked:
            home = ast.parse((root / f"{node.module.replace('.', '/')}.py").read_text())
            about = {child.name: ast.get_docstring(child) for child in home.body if isinstance(child, ast.FunctionDef | ast.ClassDef)}
            for name in (alias.name for alias in node.names):
                sentence = re.split(r"(?<!Eq)(?<!Sec)\.(?:\s|$)", about[name])[0].replace("\n", " ").replace("|", "\\|")
                lines.append(f"| {{py:obj}}`mc.{name} <{node.module}.{name}>` | {sentence} |")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            lines.append(f"| {{py:obj}}`mc.{node.name}` | {ast.get_docstring(node).splitlines()[0]} |")
    return "\n".join(lines)


GENERATED = {"book/map": {"map": map_page}, "book/api": {"names": names_page, "modules": api_page}}


def fill(app, docname, source):
    "Put what is generated in the place of its comment: `% generated: map`."
    for name, page in GENERATED.get(docname, {}).items():
        root = Path(app.srcdir)
        source[0] = source[0].replace(f"% generated: {name}\n", page(root) + "\n")
        for file in [*root.glob("mc/**/*.py"), *root.glob("tests/test_*.py"), *root.glob("nbs/*/*.md"), root / "_toc.yml"]:
            app.env.note_dependency(str(file))


def link(text, domain, kind, target):
    return addnodes.pending_xref("", nodes.inline(text=text), refdomain=domain, reftype=kind, reftarget=target, refexplicit=True, refwarn=True)


def where(app, doctree):
    "The last lines of a chapter: its equations, the module it exports, the tests of its equations."
    root, docname = Path(app.srcdir), app.env.docname
    for chapter in chapters(root):
        if chapter.where == docname:
            break
    else:
        return
    parts = []
    if chapter.equations:
        links = [nodes.reference("", str(n), refuri=f"../../book/map.html#equation-{n}") for n in chapter.equations]
        parts.append(("Equations", links))
    if chapter.module:
        parts.append(("Exported to", [link(chapter.module, "py", "mod", chapter.module)]))
    if holding := [t for t in tests(root) if set(t.equations) & set(chapter.equations)]:
        parts.append(("Tested by", [link(t.name, "std", "ref", t.name) for t in holding]))
    lines = nodes.container(classes=["mc-where"])
    for title, links in parts:
        line = nodes.paragraph("", f"{title} ")
        for i, each in enumerate(links):
            line += [nodes.Text(", "), each] if i else each
        lines += line
    if url := app.config.html_theme_options.get("repository_url"):
        line = nodes.paragraph("", "On Colab, begin with a cell of these lines")
        lines += [line, nodes.literal_block(text=COLAB.format(url=url, folder=Path(docname).parent.name), language="none")]
    if lines.children:
        doctree.children[0].append(lines) if isinstance(doctree.children[0], nodes.section) else doctree.append(lines)


def as_rst(app, what, name, obj, options, lines):
    "Docstrings are plain text: `code` in single backticks, and lists whose items hang. Sphinx reads reStructuredText."
    blocks = []
    for block in "\n".join(lines).strip().split("\n\n"):
        if re.search(r"^ +\S", block, re.M):
            block = "\n".join(f"* {item}" for item in re.sub(r"\n +", " ", block).splitlines())
        bullets = block.startswith("* ")
        pieces = block.split("`")
        pieces[::2] = [re.sub(r"([*|_\\])", r"\\\1", plain) for plain in pieces[::2]]
        pieces[1::2] = [f"\\ ``{' '.join(code.split())}``\\ " for code in pieces[1::2]]
        block = "".join(pieces)
        blocks.append(re.sub(r"^\\\* ", "* ", block, flags=re.M) if bullets else block)
    lines[:] = [*"\n\n".join(blocks).splitlines(), ""]


def without_fields(app, what, name, obj, options, signature, returns):
    "The signature of a pydantic model spells out its validators; the source, a click away, reads better."
    return ("", None) if what == "class" and issubclass(obj, BaseModel) else None


def chapter_of(root):
    "For sphinx.ext.linkcode: the page of the chapter that exports a module."
    pages = {c.module: f"../{c.where}.html" for c in chapters(root) if c.module}
    return lambda domain, info: pages.get(info.get("module"))


def configure(app, config):
    "Launch buttons need the repository's address."
    if not config.html_theme_options.get("repository_url"):
        config.html_theme_options.pop("launch_buttons", None)
    config.linkcode_resolve = chapter_of(Path(app.srcdir))


def launch_sources(app, pagename, templatename, context, doctree):
    "A benchmark's page is a run of a notebook in nbs/bench, and only that one is in the repository."
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []) if group.get("label") == "launch-buttons" else []:
            button["url"] = re.sub(r"book/runs/(\w+)/smoke\.ipynb$", r"nbs/bench/\1.ipynb", button["url"])


def setup(app):
    for name in ("autodoc", "linkcode"):
        app.setup_extension(f"sphinx.ext.{name}")
    app.connect("config-inited", configure)
    app.connect("source-read", fill)
    app.connect("doctree-read", where)
    app.connect("autodoc-process-docstring", as_rst)
    app.connect("autodoc-process-signature", without_fields)
    app.connect("html-page-context", launch_sources, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
