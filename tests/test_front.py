"The README and the drawings: what they say is true, and can be read by those who do not see it."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import opened
from mc.evidence.again import main, run_of
from mc.evidence.measured import measure
from mc.evidence.record_schema import Measured, Training
from mc.evidence.records import read_record
from mc.evidence.runs import Run
from mc.evidence.speed.records import read_speed
from mc.evidence.variants import model_of
from mc.nn.model import LanguageModel
from mc.storage import load_json, save_json
from mc.tasks.mqar import MQAR
from mc.tasks.needles import Needles

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "book/_tools"))
import readme  # noqa: E402

README = (ROOT / "README.md").read_text()


def test_links_of_the_readme_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in link]
    assert len(links) > 25
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_takes_a_minute():
    assert len(README.splitlines()) <= 125


def test_code_of_the_readme_runs(tmp_path):
    code, = re.findall(r"```python\n(.*?)```", README, re.S)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)|`make (\w+)`", README, re.M))
    targets = {line or inline for line, inline in targets}
    assert {"book", "serve", "test", "check", "lab"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)] == []
    chapter, = re.findall(r"nbtool\.py sync (nbs/\w+/\w+)", README)
    assert (ROOT / f"{chapter}.md").exists() and (ROOT / "book/_tools/nbtool.py").exists()
    path, = re.findall(r"^python -m mc\.evidence\.again (\S+\.json)$", README, re.M)
    if not (ROOT / path).exists():
        pytest.skip(f"{path} is not recorded yet")
    record = read_record(ROOT / path, Measured)
    assert run_of(record).settings == record["settings"] and not run_of(record).start    # it can be made again from nothing
    assert record["train_cpu_seconds"] + sum(score["seconds"] for score in record["scores"]) < 120


def test_numbers_of_the_readme_are_those_of_the_records():
    assert readme.written(README) == README, "run python book/_tools/readme.py"
    said = " ".join(README[README.index("## What was measured"):].split())
    ratio = {r["name"]: r["value"] for r in read_speed(ROOT / "results/speed/cpu")}
    assert f"attention takes {ratio['attention-32']:.1f} times as long as linear GRM at 4,096 tokens (heads of 32; {ratio['attention-64']:.1f} with 64)" in said
    layers = [v for r in read_speed(ROOT / "results/speed/cpu") if r["name"] in ("attention-32", "attention-64", "ssc") for v in r["settings"]["variants"].values()]
    assert f"whole layer (linear memory, C = {layers[0]['segment_size']})" in said and len({v["segment_size"] for v in layers}) == 1
    assert f"SSC (k = 2) {ratio['ssc']:.1f} times as long as no caching" in said
    assert f"`memory-caching` 0.1.0 {ratio['peer-linear-1024']:.0f} times as long" in said


def test_a_record_alone_can_be_made_again(tmp_path, capsys):
    task = Needles(64, 64, 4)
    run = Run("ssc", 3, task, model_of("ssc", 64), Training(steps=4, batch=4, learning_rate=0.01), (task,), 16)
    record = measure(run, tmp_path / "needles/cpu", "a test")
    path = tmp_path / "needles/cpu/ssc-seed3.json"
    assert main([str(path)]) == 0 and f"{record['scores'][0]['right']:.3f}" in capsys.readouterr().out
    save_json(path, {n: a for n, a in record.items() if n != "sha256"} | {"scores": [record["scores"][0] | {"right": 0.99, "routing": None}]})
    assert main([str(path)]) == 1
    save_json(path, {n: a for n, a in record.items() if n != "sha256"} | {"variant": ""})
    for wrong in ([], [str(path)], ["nothing.json"]):
        assert main(wrong) == 2 and capsys.readouterr().err.count("\n") == 1


def test_the_training_of_the_readme_is_a_recorded_one():
    record = load_json(ROOT / "results/training/text_grm.json")
    assert ("$ mc train corpus --out run\nrun: {tokens:,} tokens in {seconds:.0f} s; held out {held_out:.3f}, bits per byte {bits_per_byte:.3f}\n"
            .format(**record)) in README and record["command"].startswith("mc train corpus --out run")
    assert f"hash {record['tokenizer'][:12]}" in README and f"hash {record['corpus'][:12]}" in README


DRAWINGS = sorted((ROOT / "book/_static/drawings").glob("*.html"))


@pytest.mark.parametrize("path", DRAWINGS, ids=lambda path: path.stem)
def test_drawings_have_words_and_take_their_colours_from_the_page(path):
    html = path.read_text()
    alt, = re.findall(r'<figure class="mc-drawing" role="img" aria-label="([^"]+)"', html)
    assert len(alt.split()) > 20
    assert html.count("<svg") == html.count('aria-hidden="true"') >= 2
    css = path.parent.with_suffix(".css").read_text()
    assert "currentColor" in css and "--pst-color" in css
    assert not re.search(r"(?:#000|#fff|black|white)\b(?!\))", html + css)  # only as a fallback
    ids = re.findall(r'id="([\w-]+)"', html)
    assert {use for use in re.findall(r'href="#([\w-]+)"', html)} <= set(ids)
    used = [name for name, text in ((p, p.read_text()) for p in (ROOT / "nbs").glob("*/*.md")) if f"drawings/{path.name}" in text]
    assert used


def test_the_picture_of_the_readme_is_the_drawing_of_the_landing_page():
    picture, = re.findall(r"!\[.{100,}\]\((\S+\.svg)\)", README)
    drawn = lambda text: re.search(r"<defs>.*?</svg>", text, re.S)[0]
    assert drawn((ROOT / picture).read_text()) == drawn((ROOT / picture).with_suffix(".html").read_text())


def test_the_landing_page_opens_on_a_question_that_gates_answer_and_others_do_not(page, site):
    root = opened(page, f"{site}nbs/start/landing.html", ".mc-routing")
    token, right = int(root.get_attribute("data-token")), {}
    batch = MQAR().sample(1, torch.Generator().manual_seed(2026))
    for variant in ("attention", "none", "residual", "grm", "ssc"):
        model = LanguageModel.load(ROOT / f"results/state_per_byte/cpu/models/{variant}.safetensors")
        with torch.no_grad():
            right[variant] = (model(batch.tokens)[0].argmax(-1) == batch.labels[0])[token].item()
    assert right == {"attention": True, "none": False, "residual": False, "grm": True, "ssc": True}
    rows = page.locator("table.dataframe tbody tr")
    assert [("right" in rows.nth(i).inner_text()) for i in range(5)] == list(right.values())


@pytest.mark.parametrize("width", [380, 1280])
@pytest.mark.parametrize("name", ["landing", "five_minutes"])
def test_letters_of_the_drawings_are_large_enough(page, site, name, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{site}nbs/start/{name}.html")
    sizes = page.locator(".mc-drawing svg:visible text").evaluate_all(
        "all => all.map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)")
    assert len(sizes) > 5 and min(sizes) >= 11, sizes
