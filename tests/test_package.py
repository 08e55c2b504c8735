"""What an engineer installs: small, importable, without the book's dependencies."""
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOOK_ONLY = ["anywidget", "ipywidgets", "jupytext", "matplotlib", "nbdev", "nbformat", "pandas", "papermill", "plotly", "scipy",
             "traitlets", "yaml"]
USE = """
import sys
for name in {blocked}:
    sys.modules[name] = None
import torch, mc, mc.cli, mc.bench, mc.train
layer = mc.MemoryCachingLayer(mc.MCConfig(d_model=16, num_heads=2, segment_size=4))
y, cache = layer.forward_with_cache(torch.randn(1, 9, 16))
layer.inspect(torch.randn(1, 9, 16)).rows
mc.cli.main(["bench", "mqar"])
"""


def test_the_package_works_without_the_book():
    result = subprocess.run([sys.executable, "-c", USE.format(blocked=BOOK_ONLY)], capture_output=True, text=True)
    assert result.returncode == 2 and "pip install 'mc[bench]'" in result.stderr and "Traceback" not in result.stderr


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
    assert missing.returncode == 1 and "ImportError" in missing.stderr and "pip install 'mc[explore]'" in missing.stderr
    assert run(EXPLORE.replace('sys.modules["anywidget"] = {blocked}', "")).stdout == "10\n"


def test_the_wheel_holds_the_package_and_its_explorers(tmp_path):
    source = tmp_path / "source"                                   # what an earlier build left in the checkout must not help
    shutil.copytree(ROOT / "mc", source / "mc", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    wheel, = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"mc/__init__.py", "mc/layer.py", "mc/memory/linear.py", "mc/explorers/routing.js", "mc/explorers/routing.css"} <= names
    assert all(name.startswith("mc") for name in names)
