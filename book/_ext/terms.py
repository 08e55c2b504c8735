"""A glossary term shows its definition where it stands: each page carries the definitions of its terms (reading.js shows them)."""
import re
from html import escape, unescape
from urllib.parse import unquote

from docutils import nodes
from docutils.utils import new_document
from sphinx import addnodes

GLOSSARY = "book/glossary"
LINK = re.compile(r'href="([^"]*)#(term-[^"]+)"')


def uses_terms(app, doctree):
    "A page with terms changes with the glossary, whose definitions may hold formulas."
    if any(x.get("reftype") == "term" for x in doctree.findall(addnodes.pending_xref)):
        app.env.note_dependency(app.env.doc2path(GLOSSARY))
        app.env.get_domain("math").data["has_equations"][app.env.docname] = True


def definitions(app, docname, wanted):
    "{id: HTML of the definition}, with links as they are from the page `docname`."
    found = {}
    for item in app.env.get_doctree(GLOSSARY).findall(nodes.definition_list_item):
        ids = [i for t in item.findall(nodes.term) for i in t["ids"] if i in wanted]
        if ids:
            document = new_document("terms")
            document.settings.env, document.settings.language_code = app.env, "en"
            document += [child.deepcopy() for child in item[-1].children]
            for link in document.findall(addnodes.pending_xref):
                link["refdoc"] = docname
            app.env.resolve_references(document, docname, app.builder)
            for node in document.findall(nodes.Element):
                node["ids"] = []
            html = "".join(app.builder.render_partial(child)["fragment"] for child in document.children)
            found |= {i: (item[0].astext(), html) for i in ids}
    return found


def carry(app, pagename, templatename, context, doctree):
    "Put the definitions at the end of the page, in a <template>: they are shown when asked for."
    links = {unescape(unquote(i)): href for href, i in LINK.findall(context.get("body", ""))}
    if not doctree or pagename == GLOSSARY or not links:
        return
    parts = [f'<div data-term="{escape(i)}"><p class="mc-tip-name">{escape(name)}</p>{html}'
             f'<p class="mc-tip-more"><a href="{links[i]}#{escape(i)}">In the glossary</a></p></div>'
             for i, (name, html) in definitions(app, pagename, links).items()]
    context["body"] += f'<template class="mc-terms">{"".join(parts)}</template>' if parts else ""


def setup(app):
    app.connect("doctree-read", uses_terms)
    app.connect("html-page-context", carry)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
