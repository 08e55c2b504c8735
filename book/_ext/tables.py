"""Tables of `mc.evidence.tables`: the pages that have one load DataTables, which is copied out of the Python package itables."""
import importlib.util
import re
from pathlib import Path

BUNDLE = "vendor/datatables.js"


def script(source):
    "The bundle, an ES module, as a script that sets `window.mcDataTable`: a module does not load from a file:// address."
    exports = re.search(r"\bexport\s*\{([^}]*)\};?", source)
    default = exports and re.search(r"([\w$]+) as default", exports[1])
    if not default or source.count("export{") != 1:
        raise ValueError("the bundle of itables exports something else than before; see book/_ext/tables.py")
    body = source[:exports.start()] + f"window.mcDataTable={default[1]};" + source[exports.end():]
    return f"(function(){{{body}\n}})();\n"


def vendor(app):
    "Write the script into the built site, once."
    if app.builder.format != "html":
        return
    target = Path(app.outdir, "_static", BUNDLE)
    source = Path(importlib.util.find_spec("itables").origin).parent / "html/dt_bundle.js"
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.write_text(script(source.read_text(encoding="utf-8")), encoding="utf-8")


def load(app, pagename, templatename, context, doctree):
    "Only where there is such a table."
    if doctree is None or 'class="mc-table"' not in context.get("body", ""):
        return
    app.add_js_file(BUNDLE, loading_method="defer")
    app.add_js_file("tables.js", loading_method="defer")
    app.add_css_file("tables.css")


def setup(app):
    app.connect("builder-inited", vendor)
    app.connect("html-page-context", load, priority=400)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
