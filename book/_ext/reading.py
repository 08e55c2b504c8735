"""How a page for readers reads: code folds to what it says, a claim carries the cell that checks it, imports are hidden, and
"Reproduce" is closed. All of it is native <details>, so that it works without scripts; what is folded is still in the page.
nbs/workshop/pages.md shows each convention."""
import ast
import re
from html import escape

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

READERS = re.compile(r"nbs/(start|see|memories|inside|evidence|use)/|book/runs/")
CLAIM = re.compile(r"^Claim:\s*")
CHECKED = ('<span class="mc-mark">checked</span><span class="visually-hidden">: the cell that checks it</span>')
SHOW, SOURCE = (f'<span class="mc-closed">Show the {what}</span><span class="mc-opened">Hide the {what}</span>' for what in ("code", "source"))


class Details(nodes.Element):
    "A <details>; `summary` is HTML."


def visit_details(self, node):
    self.body.append(self.starttag(node, "details") + f"<summary>{node['summary']}</summary>\n")


def depart_details(self, node):
    self.body.append("</details>\n")


# ---- what a cell says of itself

def parsed(source):
    "The statements of a cell; None for what is no Python, such as a magic."
    try:
        return ast.parse(source).body
    except SyntaxError:
        return None


def only_imports(statements):
    return bool(statements) and all(isinstance(s, ast.Import | ast.ImportFrom) for s in statements)


def first_sentence(text):
    return re.split(r"(?<!Eq)(?<!Sec)(?<!e\.g)(?<!i\.e)\.(?:\s|$)", " ".join((text or "").split()))[0].strip()


def without_types(node):
    "The same function, its signature short enough for a list."
    node.returns = None
    for a in ast.walk(node.args):
        if isinstance(a, ast.arg):
            a.annotation = None
    return node


def signature(node, short=False):
    "`def f(a: int) -> int: ...` of a definition, `NAME = ...` of an assignment; None of anything else."
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node = without_types(node) if short else node
        back = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        start = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        return f"{start} {node.name}({ast.unparse(node.args)}){back}: ..."
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, [*node.bases, *node.keywords]))
        return f"class {node.name}({bases}): ..." if bases else f"class {node.name}: ..."
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        return f"{', '.join(names)} = ..." if names else None
    return None


def says(source):
    "HTML of a cell's definitions: each with its signature and the first sentence of its docstring; '' if it defines nothing."
    found = [s for s in parsed(source) or [] if signature(s)]
    definitions = [s for s in found if hasattr(s, "body")]
    found = definitions or found
    found = [s for s in found if not re.match(r"(?:\w+ )*_", signature(s))] or found
    lines = []
    for s in found:
        about = first_sentence(ast.get_docstring(s)) if s in definitions else ""
        about = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(about, quote=False))
        code = highlight(signature(s, short=len(found) > 1), PythonLexer(), HtmlFormatter(nowrap=True)).strip()
        lines.append(f'<span class="mc-sig"><code class="highlight">{code}</code>'
                     + (f' <span class="mc-about">{about}.</span>' if about else "") + "</span>")
    return f'<span class="mc-sigs">{"".join(lines)}</span>' if lines else ""


# ---- one page

def part(cell, name):
    return next((c for c in cell.children if isinstance(c, nodes.Element) and c.get("nb_element") == name), None)


def only_text(output):
    kinds = {c["mime_type"] for c in output.findall(nodes.container) if c.get("mime_type")}
    return kinds <= {"text/plain"}


def tags(cell):
    return set((cell["cell_metadata"] or {}).get("tags", []))


def fold(cell, module):
    "Fold the source of a cell: an exported one, or one that `defines`, to its signatures; any other to a quiet line."
    code = part(cell, "cell_code_source")
    if code is None or "teaches" in tags(cell) or cell.get("hide_mode") == "all":
        return
    exported = bool((cell["cell_metadata"] or {}).get("nbdev"))
    summary, classes = (says(code.astext()) if exported or "defines" in tags(cell) else ""), ["mc-fold", "mc-code"]
    if summary:
        classes = ["mc-fold", "mc-defs"]
        summary += (f'<span class="mc-home">exported to {escape(module)}</span>' if exported else "") + SOURCE
    cell["classes"].append("mc-folded")
    cell.replace(code, folded := Details(classes=classes, summary=summary or SHOW))
    folded += code
    if "hide_mode" in cell:    # myst-nb's own fold, of the output too
        del cell.attributes["hide_mode"]
    if tags(cell) & {"hide-output"} and (output := part(cell, "cell_code_output")) is not None:
        cell.replace(output, hidden := Details(classes=["mc-fold"], summary="Show the output"))
        hidden += output


def claim_in(node):
    "The bold words of a paragraph that make it a claim."
    if isinstance(node, nodes.paragraph):
        return next((s for s in node.findall(nodes.strong) if CLAIM.match(s.astext())), None)


def check(paragraph, bold, cell):
    "Join a claim and the cell that checks it: what the cell prints folds with it, what it draws stays."
    first = bold.children[0]
    words = CLAIM.sub("", first.astext())
    bold.replace(first, nodes.Text(words[:1].upper() + words[1:]))
    at = paragraph.parent.index(paragraph)
    joined = nodes.container(classes=["mc-claim"])
    joined["classes"] += ["mc-open"] if "teaches" in tags(cell) else []
    paragraph.parent[at] = joined
    joined += paragraph
    if "teaches" in tags(cell):
        return
    code, output = part(cell, "cell_code_source"), part(cell, "cell_code_output")
    if code is None:
        return
    joined += (folded := Details(classes=["mc-fold", "mc-check"], summary=CHECKED))
    inside = cell.copy()
    inside.attributes.pop("hide_mode", None)
    inside["classes"] = [*cell["classes"], "mc-folded"]
    folded += inside
    drawn = output is not None and not only_text(output)
    cell.remove(code)
    inside += code
    if drawn:
        return
    if output is not None:
        cell.remove(output)
        inside += output
    cell.parent.remove(cell)


def is_cell(node):
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def for_readers(app, docname):
    return READERS.match(docname) or "readers" in str(app.env.metadata[docname].get("companion", ""))


def fold_page(app, doctree):
    "Every cell of a page for readers."
    docname = app.env.docname
    if not for_readers(app, docname):
        return
    module = re.search(r'"default_exp": *"(\S+?)"', str(app.env.metadata[docname].get("nbdev", "")))
    module = f"mc.{module[1]}".removesuffix(".__init__") if module else "mc"
    cells = [c for c in doctree.findall(nodes.container) if is_cell(c)]
    for cell in cells:
        if (code := part(cell, "cell_code_source")) is not None and only_imports(parsed(code.astext())) and "teaches" not in tags(cell):
            cell.remove(code)
            if not cell.children:
                cell.parent.remove(cell)
    for paragraph in list(doctree.findall(nodes.paragraph)):
        bold, after = claim_in(paragraph), paragraph.next_node(descend=False, siblings=True)
        if bold is not None and is_cell(after) and not (after["cell_metadata"] or {}).get("nbdev"):
            check(paragraph, bold, after)
    for cell in cells:
        if cell.parent is not None and "mc-folded" not in cell["classes"]:
            fold(cell, module)


def close_reproduce(app, doctree, docname):
    "A section called Reproduce: its heading opens it. After Sphinx has collected the headings, which it seeks in a section."
    for section in doctree.findall(nodes.section) if for_readers(app, docname) else []:
        if isinstance(section[0], nodes.title) and section[0].astext() == "Reproduce":
            section.insert(1, nodes.raw(text="</summary>", format="html"))
            section.insert(0, nodes.raw(text='<details class="mc-fold mc-section"><summary>', format="html"))
            section += nodes.raw(text="</details>", format="html")


def setup(app):
    skip = (lambda self, node: None,) * 2
    app.add_node(Details, html=(visit_details, depart_details), latex=skip, text=skip, man=skip, texinfo=skip)
    app.connect("doctree-read", fold_page)
    app.connect("doctree-resolved", close_reproduce)
    app.add_css_file("reading.css")
    app.add_js_file("reading.js", loading_method="defer")
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
