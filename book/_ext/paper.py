"""Where each equation of the paper stands in the chapters, in the package and in the tests, collected from what these say of
themselves: a chapter's subtitle, a heading of the errata, a function's or a test's docstring names its equations ("Eq. 26-29").
"""
import ast
import re
from dataclasses import dataclass
from functools import cache

import yaml

EQUATIONS = range(1, 37)


def named(text):
    "The equations that a text names: [26, 27, 28, 30] for 'Eq. 26-28, 30'."
    found = []
    for numbers in re.findall(r"\bEq\. (\d+(?:(?:-|, | and )\d+)*)", " ".join((text or "").split())):
        for part in re.split(", | and ", numbers):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    return sorted(set(found))


@dataclass
class Place:
    "Something that names equations."
    name: str
    where: str    # a chapter's page, an erratum's label, a function's module, a test's file
    equations: list
    module: str = ""    # that a chapter exports
    part: str = ""      # of the book


@cache    # every page asks, and nothing changes during a build
def chapters(root):
    "All that are in the table of contents, in its order."
    found, toc = [], yaml.safe_load((root / "_toc.yml").read_text())
    for part in [{"caption": "", "chapters": [{"file": toc["root"]}]}, *toc["parts"]]:
        for page in (entry["file"] for entry in part["chapters"]):
            if (source := root / f"{page}.md").exists() and page.startswith("nbs/"):
                text = source.read_text()
                title = re.search(r"^# (.+)", text, re.M)[1]
                subtitle = re.search(r"^> (.+)", text, re.M)
                module = re.search(r"^  default_exp: (\S+)", text, re.M)
                module = f"mc.{module[1]}".removesuffix(".__init__") if module else ""
                found.append(Place(title, page, named(subtitle and subtitle[1]), module, part["caption"]))
    return found


def formulas(root):
    "{equation: labels of the formulas that show it}: the text before a formula names it."
    shown = {}
    for chapter in chapters(root):
        if chapter.equations:
            text = (root / f"{chapter.where}.md").read_text()
            for before, label in re.findall(r"((?:[^\n]+\n)+)\n\$\$\n(?:(?!\$\$).)+\$\$ \(([\w-]+)\)", text, re.S):
                for n in named(before):
                    shown.setdefault(n, []).append(label)
    return shown


def errata(root):
    "The sections of the errata, each under its label."
    text = "".join(file.read_text() for file in root.glob("nbs/evidence/errata.md"))
    return [Place(title, label, named(where)) for label, where, title in re.findall(r"^\((errata-[\w-]+)\)=\n### (Eq\.[^:]+): (.+)", text, re.M)]


def functions(root):
    "Exported functions, classes and methods whose docstrings name an equation."
    def walk(node, module, names):
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
                here = [*names, child.name]
                found.append(Place(".".join(here), module, named(ast.get_docstring(child))))
                walk(child, module, here) if isinstance(child, ast.ClassDef) else None
    found = []
    for file in sorted(root.glob("mc/**/*.py")):
        module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        walk(ast.parse(file.read_text()), module, [])
    return [f for f in found if f.equations]


@cache
def tests(root):
    "Tests whose docstrings name an equation."
    found = []
    for file in sorted(root.glob("tests/test_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and (n := named(ast.get_docstring(node))):
                found.append(Place(node.name, f"tests/{file.name}", n))
    return found
