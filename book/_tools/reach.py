"""What a chapter's outputs depend on: the modules that its code reaches, without their words."""
import ast
import re
from pathlib import Path


def code_of(nb):
    "The notebook's Python; magics are not."
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    return re.sub(r"^\s*[%!].*$", "", code, flags=re.M)


def imported(tree, folder, files):
    "The paths among `files` that the syntax tree of code in the package folder `folder` imports."
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = folder.parts[:len(folder.parts) - node.level + 1] if node.level else ()
            module = ".".join([*parents, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    paths = {Path(*name.split(".")) for name in names}
    return {f for p in paths for f in (p.with_suffix(".py"), p / "__init__.py") if f in files}


def identifiers(tree):
    return {n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute)}


def take_out_late(tree, folder, files):
    "Take the top functions that import something of `files` when they are called out of `tree`: {name: function}."
    late = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef) and imported(n, folder, files)}
    tree.body = [n for n in tree.body if n not in late.values()]
    return late


def reached(code, folder, files):
    """The files that `code` reaches by its imports; what a function imports when it is called counts only where the
    function is named."""
    tree = ast.parse(code)
    used, names, late, todo = set(), identifiers(tree), {}, imported(tree, folder, files)
    while todo:
        for f in todo - used:
            used.add(f)
            if f.suffix == ".py":
                tree = ast.parse(files[f])
                late |= {(f, name): node for name, node in take_out_late(tree, f.parent, files).items()}
                names |= identifiers(tree)
                todo = todo | imported(tree, f.parent, files) | {g for g in files if g.parent == f.parent and g.suffix != ".py"}
        for f, name in [key for key in late if key[1] in names]:
            node = late.pop((f, name))
            names |= identifiers(node)
            todo = todo | imported(node, f.parent, files)
        todo = todo - used
    return used


def wordless(source):
    "Python `source` without comments and docstrings."
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).encode()
