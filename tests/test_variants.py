"""One look for one thing: in the stored figures a variant has the colour and the dash of `mc.figures`, and in the text there is
one sign for the product of entries."""
import json
import re
from pathlib import Path

import pytest

from mc import figures

ROOT = Path(__file__).resolve().parents[1]

# ---- one table of colours

HEADS = {}    # "GRM": the variants whose names begin so; any of their looks will do for a curve called "GRM" or "GRM, 4 heads"
for key, label in figures.NAMES.items():
    if "-" not in key and key != "swla":    # SWLA is a memory, and read in many ways
        HEADS.setdefault(label.split(",")[0], []).append(key)
HEADS |= {short: HEADS[long] for short, long in {"attention": "softmax attention", "uncached": "no caching"}.items()}


def variants(label):
    "The variants that a curve's or a category's name may mean."
    if not isinstance(label, str):
        return []
    exact = [key for key, name in figures.NAMES.items() if name == label]
    return exact + HEADS.get(re.split(r"[,:(]", label)[0].strip(), [])


def looks(trace):
    "(name, colour, dash) of what a trace shows of a variant; the dash is None where it draws no line."
    marker, line = trace.get("marker") or {}, trace.get("line") or {}
    if trace["type"] == "scatter" and "lines" in trace.get("mode", "lines"):
        yield trace.get("name"), line.get("color") or marker.get("color"), line.get("dash", "solid")
    elif trace["type"] in ("scatter", "bar", "box"):
        colour = marker.get("color")
        yield trace.get("name"), colour, None
        for axis in "xy":
            values = trace.get(axis) if isinstance(trace.get(axis), list) else []
            colours = colour if isinstance(colour, list) else [colour] * len(values)
            if trace.get("name") is None and set(map(str, values)) <= set(figures.NAMES.values()):
                yield from ((v, c, None) for v, c in zip(values, colours))


def odd_looks(figure):
    "What in a figure is named after a variant and does not look like it."
    odd = []
    for trace in figure["data"]:
        for name, colour, dash in looks(trace):
            allowed = variants(name)
            if allowed and not any(colour == figures.COLOURS[k] and dash in (None, figures.DASHES[k]) for k in allowed):
                odd.append(f"{name}: {colour}, {dash}")
    return odd


STORED = [f for f in sorted([*ROOT.glob("nbs/*/*.ipynb"), *ROOT.glob("book/runs/*/smoke.ipynb")]) if "vnd.plotly" in f.read_text()]


@pytest.mark.parametrize("file", STORED, ids=lambda f: str(f.relative_to(ROOT).with_suffix("")))
def test_a_variant_looks_the_same_everywhere(file):
    outputs = [o for cell in json.loads(file.read_text())["cells"] for o in cell.get("outputs", [])]
    drawn = [o["data"]["application/vnd.plotly.v1+json"] for o in outputs if "application/vnd.plotly.v1+json" in o.get("data", {})]
    odd = sorted({o for figure in drawn for o in odd_looks(figure)})
    assert odd == [], "not the colour and dash of mc.figures.COLOURS and DASHES"


def test_another_colour_is_seen():
    colour, dash = figures.COLOURS["grm"], figures.DASHES["grm"]

    def odd(**trace):
        return odd_looks({"data": [{"type": "scatter", **trace}]})
    for name in ("GRM, independent", "GRM", "GRM, k = 4"):
        assert odd(name=name, line={"color": colour, "dash": dash}) == []
        assert odd(name=name, line={"color": "#123456", "dash": dash}) and odd(name=name, line={"color": colour}) and odd(name=name)
    assert odd(name="softmax attention", line={"color": colour, "dash": dash})
    assert odd(type="bar", name="Soup", marker={"color": colour}) and not odd(type="bar", name="one of ours", marker={"color": colour})
    both, right = ["GRM, independent", "no caching"], [colour, figures.COLOURS["none"]]
    assert odd(type="bar", x=both, y=[1, 2], marker={"color": right}) == []
    assert odd(type="bar", x=both, y=[1, 2], marker={"color": right[::-1]})
    assert odd(mode="markers", y=both[:1], x=[1], marker={"color": right[1]})


# ---- one sign for the element-wise product

OUTER = {"nbs/workshop/cached_reads.md"}    # there it is the product of all entries with all others


def test_one_sign_for_the_product_of_entries():
    texts = {str(f.relative_to(ROOT)): f.read_text() for f in [*ROOT.glob("nbs/*/*.md"), *ROOT.glob("book/*.md")]}
    others = r"(?<!\^)(?<!\^\{)\\circ(?![a-z])|∘|\\ast\b|\\bullet|\\otimes|⊗"
    found = [f"{name}: {line.strip()[:100]}" for name, text in texts.items() if name not in OUTER for line in text.splitlines() if re.search(others, line)]
    assert found == [], r"the element-wise product is \odot"
    assert sum(text.count(r"\odot") + text.count("⊙") for text in texts.values()) > 0
