"""What an engineer installs: small, importable, without the book's dependencies."""
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOOK_ONLY = ["anywidget", "ipywidgets", "jupytext", "matplotlib", "nbdev", "nbformat", "pandas", "papermill", "plotly", "scipy",
             "traitlets", "yaml"]
USE = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import torch, mc, mc.commands.base, mc.evidence.sweeps, mc.train
layer = mc.MemoryCachingLayer(mc.MCConfig(d_model=16, num_heads=2, segment_size=4))
y, cache = layer.forward_with_cache(torch.randn(1, 9, 16))
layer.inspect(torch.randn(1, 9, 16)).rows
mc.commands.base.main(["bench", "state_per_byte"])
"""


def test_the_package_works_without_the_book():
    result = subprocess.run([sys.executable, "-c", USE.format(blocked=BOOK_ONLY)], capture_output=True, text=True)
    assert result.returncode == 2 and "pip install 'memory-caching-companion[bench]'" in result.stderr and "Traceback" not in result.stderr


EXPLORE = """
import sys
sys.modules["anywidget"] = {blocked}
import torch, mc
model = mc.LanguageModel(mc.LMConfig(16, 1, mc.MCConfig(8, 2, segment_size=4)))
print(len(mc.explore(model, torch.arange(10), title="ten").data["tokens"]))
"""


def test_explore_needs_an_extra_and_says_which():
    run = lambda code: subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    missing = run(EXPLORE.format(blocked=None))
    assert missing.returncode == 1 and "ImportError" in missing.stderr and "pip install 'memory-caching-companion[explore]'" in missing.stderr
    assert run(EXPLORE.replace('sys.modules["anywidget"] = {blocked}', "")).stdout == "10\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel, built where no earlier build can help."
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("mc", "nbs/bench"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_explorers_and_the_benchmarks(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mc/__init__.py", "mc/py.typed", "mc/nn/layer.py", "mc/memory/linear.py", "mc/explorers/routing.js", "mc/explorers/routing.css",
            "mc/paper/__init__.py", "mc/paper/tables.csv"} <= names
    assert all(name.startswith(("mc/", "memory_caching_companion-")) for name in names)
    there = [f.relative_to(ROOT / "nbs/bench") for pattern in ("*.ipynb", "*.yaml", "texts/*") for f in (ROOT / "nbs/bench").glob(pattern)]
    assert {f"mc/benchmarks/{f}" for f in there} == {name for name in names if name.startswith("mc/benchmarks/")} and len(there) > 20


@pytest.mark.slow
def test_an_installed_wheel_needs_no_checkout(wheel, tmp_path):
    "Benchmarks are listed and run, the commands answer, in a folder with nothing in it."
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "installed", wheel], check=True)
    place = tmp_path / "elsewhere"
    place.mkdir()
    env = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    run = lambda *arguments: subprocess.run([sys.executable, "-m", "mc", *arguments], cwd=place, env=env, capture_output=True, text=True)
    found = json.loads(run("bench", "--json").stdout)
    assert found["notebooks"] == str(tmp_path / "installed/mc/benchmarks") and [*place.iterdir()] == []
    assert {b["name"] for b in found["benchmarks"]} == {f.stem for f in (ROOT / "nbs/bench").glob("*.yaml")}
    done = run("bench", "longer", "--profile", "smoke", "--out", "o")
    assert done.returncode == 0 and (place / "o/longer/smoke.ipynb").exists() and [*(place / "o/longer/smoke").glob("*.json")], done.stderr
    version = subprocess.run([sys.executable, "-c", "import mc; print(mc.__version__, mc.__file__)"], cwd=place, env=env, capture_output=True, text=True)
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version.stdout.split() == [asked, str(tmp_path / "installed/mc/__init__.py")]


def test_every_pin_allows_every_python_that_the_readme_allows():
    "Else `make book` fails on a fresh machine after torch was downloaded. The Makefile asks the interpreter first, for the same range."
    import importlib.metadata as metadata
    import re

    from packaging.specifiers import SpecifierSet

    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    least, end = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", asked).groups()
    assert f"not (3, {least}) <= sys.version_info < (3, {end})" in (ROOT / "Makefile").read_text()
    assert f"Python 3.{least} or newer (up to 3.{int(end) - 1})" in (ROOT / "README.md").read_text()
    pins = re.findall(r"^([\w.\-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.M)
    assert len(pins) > 100
    for name, version in pins:
        found = metadata.distribution(name)
        assert found.version.split("+")[0] == version
        allowed = SpecifierSet(found.metadata.get("Requires-Python") or "")
        assert all(f"3.{minor}.0" in allowed for minor in range(int(least), int(end))), f"{name}=={version} needs Python {allowed}"


def test_another_interpreter_is_refused_before_anything_is_downloaded(tmp_path):
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nshift; exec {sys.executable} -c "import sys; sys.version_info = (3, 10, 9); $1"\n')
    fake.chmod(0o755)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    run = subprocess.run(["make", "environment", f"PYTHON={fake}"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2 and f"Python 3.11 to 3.14 is needed, and {fake} is not" in run.stderr and run.stdout == ""
    assert not (tmp_path / ".venv").exists()
