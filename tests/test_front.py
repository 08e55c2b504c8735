"The README and the drawings: what they say is true, and can be read by those who do not see it."
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mc.evidence.records import interval, read_records
from mc.evidence.first_runs import MQARRun
from mc.evidence.speed.records import read_speed
from mc.nn.model import LanguageModel
from mc.storage import load_json
from mc.tasks.mqar import MQAR

ROOT = Path(__file__).parents[1]
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
    variant, seed = re.findall(r"MQARRun\('(\w+)', (\d+)\)", README)[0]
    record, = [r for r in read_records(ROOT / "results/mqar/cpu") if r["variant"] == variant and r["seed"] == int(seed)]
    run = MQARRun(variant, int(seed))                             # the defaults are those of the recorded run
    assert record["settings"] == {name: getattr(run, name) for name in record["settings"]}
    assert f"results/mqar/cpu/{run.name}.json" in README


def test_numbers_of_the_readme_are_those_of_the_records():
    said = " ".join(README[README.index("## What was measured"):].split())

    def mean(task, variant, value):
        return f"{interval([value(r) for r in read_records(ROOT / f'results/{task}/cpu') if r['variant'] == variant])[0]:.2f}"
    mqar = {v: mean("mqar", v, lambda r: r["accuracy"]) for v in ("grm", "none", "attention", "wide")}
    assert ("gated caching recalls {grm}, no caching {none}, attention {attention}, and an uncached model with one larger head {wide}."
            .format(**mqar)) in said
    needles = {v: mean("needles", v, lambda r: r["by_length"]["2048"]) for v in ("ssc", "grm", "none")}
    assert "sparse caching {ssc}, gated {grm}, none {none}.".format(**needles) in said
    ratio = {r["name"]: r["value"] for r in read_speed(ROOT / "results/speed/cpu")}
    assert f"attention takes {ratio['attention-32']:.1f} times as long as linear GRM at 4,096 tokens" in said
    assert f"SSC (k = 2) {ratio['ssc']:.1f} times as long as no caching" in said
    assert f"`memory-caching` 0.1.0 {ratio['peer-linear-1024']:.0f} times as long" in said
    deep = {r["variant"]: r["accuracy"] for r in read_records(ROOT / "results/mqar/deep")}
    assert all(deep[f"{m}-none"] > deep[f"{m}-{way}"] for m in ("dla", "titans") for way in ("grm", "soup", "ssc"))


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
    page.goto(f"{site}nbs/start/landing.html")
    root = page.locator(".mc-routing").first
    root.wait_for(timeout=20_000)
    token, right = int(root.get_attribute("data-token")), {}
    batch = MQAR().sample(1, torch.Generator().manual_seed(2026))
    for variant in ("attention", "none", "residual", "grm", "ssc"):
        model = LanguageModel.load(ROOT / f"results/mqar/cpu/models/{variant}.safetensors")
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
