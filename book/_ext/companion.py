"""What the book adds to Sphinx: pages that load nothing from elsewhere, plotly figures, and the badge on exported cells."""
import importlib.util
import json
import re
import shutil
from html import escape
from pathlib import Path

import myst_nb.core.render as render
import plotly
from docutils import nodes
from sphinx.util import logging

PLOTLY = "application/vnd.plotly.v1+json"
FIGURE = """<div class="mc-plotly" role="img" aria-label="{alt}" style="min-height: {height}px">\
<script type="{mime}">{spec}</script><noscript><p>{alt}</p></noscript></div>"""

STATE, VIEW = "application/vnd.jupyter.widget-state+json", "application/vnd.jupyter.widget-view+json"
STILL = '<figure class="mc-still"><img src="{image}" alt=""><figcaption>{alt}</figcaption></figure>'

log = logging.getLogger(__name__)


def vendor(app):
    "Copy MathJax and plotly.js out of their Python packages, and what runs the explorers, into the built site."
    if app.builder.format != "html":
        return
    here = Path(app.outdir, "_static/vendor")
    mathjax = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax"
    copies = {mathjax / part: here / "mathjax" / part
              for part in ("tex-chtml.js", "output/chtml/fonts", "input/tex/extensions", "a11y", "sre", "ui")}
    copies[Path(plotly.__file__).parent / "package_data/plotly.min.js"] = here / "plotly.min.js"
    for source, target in copies.items():
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, target)
    shutil.copy2(Path(app.srcdir, "mc/explorers/host.js"), here)
    for weights in Path(app.srcdir, "results").glob("*/cpu/models/*.safetensors"):    # what the live explorers fetch
        if weights.parts[-4] == "deep":    # no page runs these
            continue
        target = here.parent / "models" / weights.parts[-4] / weights.parts[-3] / weights.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(weights, target)


class PlotlyFigures:
    "A mime renderer for myst-nb, which does not know the type in which plotly stores its figures."
    mime_priority_overrides = [("html", PLOTLY, 5)]

    @staticmethod
    def handle_mime(renderer, data, inline):
        if data.mime_type != PLOTLY:
            return None
        figure = data.content if isinstance(data.content, dict) else json.loads(data.content)
        layout = figure["layout"]
        alt = layout.get("meta", {}).get("alt", "")
        if not alt:
            log.warning("%s: a figure without words for those who cannot see it; give it layout.meta = {'alt': ...}", renderer.source)
        renderer.add_js_file("plotly", "vendor/plotly.min.js", {"priority": 200})
        renderer.add_js_file("plotly_boot", "plotly-boot.js", {"priority": 210})
        spec = json.dumps(figure, separators=(",", ":")).replace("<", "\\u003c")    # no text in it can end the script
        height = layout.get("height") or layout.get("template", {}).get("layout", {}).get("height", 450)
        html = FIGURE.format(alt=escape(alt), height=height, mime=PLOTLY, spec=spec)
        return [nodes.raw(text=html, format="html", classes=["output"])]


def stills(app, pagename, templatename, context, doctree):
    "Put its still picture before each explorer: host.js hides it where the explorer runs, and print shows it instead."
    saved = [file.attributes["body"] for file in context["script_files"] if file.attributes.get("type") == STATE]
    states = json.loads(saved[0])["state"] if saved else {}

    def with_still(view):
        still = states.get(json.loads(view[1])["model_id"], {}).get("state", {}).get("still")
        return (STILL.format(image=still["image"], alt=escape(still["alt"])) if still else "") + view[0]
    if states:
        context["body"] = re.sub(rf'<script type="{re.escape(VIEW)}">(.*?)</script>', with_still, context["body"], flags=re.S)


def badge(app, doctree):
    "Mark the cells that nbdev exports; companion.css writes the words."
    for cell in doctree.findall(nodes.container):
        if (cell.get("cell_metadata") or {}).get("nbdev"):
            cell["classes"].append("mc-export")


def local_scripts_only(app, pagename, templatename, context, doctree):
    "jupyter-book always adds thebe, which runs code on a server elsewhere."
    def thebe(file):
        return "thebe" in str(file.filename) or "THEBE" in file.attributes.get("body", "")
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context[kind] if not thebe(file)]


def setup(app):
    known = render.load_mime_renders    # entry points of installed packages; ours is not installed
    render.load_mime_renders = lambda: [*known(), PlotlyFigures]
    app.connect("builder-inited", vendor)
    app.connect("doctree-read", badge)
    app.connect("html-page-context", stills, priority=850)
    app.connect("html-page-context", local_scripts_only, priority=900)
    app.add_css_file("companion.css")
    app.add_css_file("drawings.css")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
