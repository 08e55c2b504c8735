"""What a chapter's outputs depend on: the modules that its code reaches, without their words."""
import ast
import re
from functools import cache
from pathlib import Path


def code_of(nb):
    "The notebook's Python; magics are not."
    code = "\n".join(c.source for c in nb.cells if c.cell_type == "code")
    return re.sub(r"^\s*[%!].*$", "", code, flags=re.M)


def imports(node, folder):
    "The paths that code in the package folder `folder` imports, if there are such files."
    names = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Import):
            names |= {alias.name for alias in n.names}
        elif isinstance(n, ast.ImportFrom):
            parents = folder.parts[:len(folder.parts) - n.level + 1] if n.level else ()
            module = ".".join([*parents, *filter(None, [n.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in n.names)}
    paths = {Path(*name.split(".")) for name in names}
    return {f for p in paths for f in (p.with_suffix(".py"), p / "__init__.py")}


def identifiers(node):
    return {n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)}


@cache
def parts(source, folder):
    "What the code imports and names, as (imports, identifiers): its top functions by name, and the rest under None."
    tree = ast.parse(source)
    functions = {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}
    tree.body = [n for n in tree.body if n not in functions.values()]
    return {name: (imports(node, folder), identifiers(node)) for name, node in [*functions.items(), (None, tree)]}


def reached(code, folder, files):
    """The files that `code` reaches by its imports; what a function imports when it is called counts only where the
    function is named."""
    tree = ast.parse(code)
    used, names, late, todo = set(), identifiers(tree), {}, imports(tree, folder) & files.keys()
    while todo:
        for f in todo - used:
            used.add(f)
            if f.suffix == ".py":
                for name, (paths, named) in parts(files[f], f.parent).items():
                    if name and paths & files.keys():
                        late[f, name] = paths, named
                    else:
                        names, todo = names | named, todo | paths & files.keys()
                todo = todo | {g for g in files if g.parent == f.parent and g.suffix != ".py"}
        for f, name in [key for key in late if key[1] in names]:
            paths, named = late.pop((f, name))
            names, todo = names | named, todo | paths & files.keys()
        todo = todo - used
    return used


@cache
def wordless(source):
    "Python `source` without comments and docstrings."
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).encode()
