"""The live controls, driven from Python as a reader drives them: what they run, and what they say when they cannot."""
import re
from pathlib import Path

import pytest
import torch

from mc.explorers.live import LONGEST, live, parse, questions, rewired, shipped
from mc.explorers.routing import RoutingExplorer, explore
from mc.nn.model import LanguageModel
from mc.tasks.mqar import MQAR

RESULTS = Path(__file__).resolve().parents[1] / "results"


@pytest.fixture(scope="module")
def controls():
    return live(RESULTS)


@pytest.fixture(autouse=True)
def opened(controls):
    "Every test begins with the trained GRM, and finds the controls ready again at its end."
    controls.name.value = "mqar/cpu/none"
    controls.name.value = "mqar/cpu/grm"
    yield
    assert not controls.start.disabled


def run(controls):
    controls.start.click()
    return re.sub("<.*?>", " ", controls.alert.value).replace("&#x27;", "'").strip()


def test_it_opens_with_a_sequence_of_the_task_and_the_rules_of_the_training(controls):
    assert (controls.aggregation.value, controls.gate.value, controls.size.value) == ("grm", "context", 16)
    assert controls.seed.value == 2026 and len(controls.tokens.value.split()) == 256
    assert isinstance(controls.explorer, RoutingExplorer) and controls.children[-1] is controls.explorer
    assert controls.progress.value == controls.progress.max and not controls.alert.value
    model = LanguageModel.load(RESULTS / "mqar/cpu/models/grm.safetensors")
    batch = MQAR().sample(1, torch.Generator().manual_seed(2026))
    right = int((model(batch.tokens).argmax(-1) == batch.labels).sum())
    assert controls.status.value == f"256 tokens; {right} of 64 questions right"


def test_the_picture_is_what_the_model_computes_under_the_chosen_rules(controls):
    controls.aggregation.value, controls.top_k.value, controls.size.value = "ssc", 2, 32
    assert run(controls) == ""
    model = LanguageModel.load(RESULTS / "mqar/cpu/models/grm.safetensors")
    other = rewired(model, aggregation="ssc", top_k=2, segment_size=32)
    tokens, title = parse(controls.tokens.value, 256), "mqar/cpu/grm, read by ssc, gate context, k = 2, segments of 32"
    assert controls.explorer.data == explore(other, questions(tokens, 256), title=title).data
    _, traces = other.inspect(tokens)
    assert ((traces[0].gates > 0).sum(-1) <= 3).all() and traces[0].gates.shape[-1] == 8


def test_typed_tokens_are_run_and_their_questions_found(controls):
    controls.tokens.value = " 7 200,9 201\n7,202 9  7 "
    assert run(controls) == ""
    data = controls.explorer.data
    assert data["tokens"] == "7 200 9 201 7 202 9 7".split()
    assert data["target"] == [None] * 6 + ["201", "202"] and data["source"][6:] == [3, 5]
    assert re.fullmatch(r"8 tokens; [012] of 2 questions right", controls.status.value)


@pytest.mark.parametrize("text, message", [
    ("7 200 seven 9", "number 3 is 'seven'"), ("7 256", "0 to 255, separated by spaces or commas; number 2 is '256'"), ("-1", "number 1 is '-1'"),
    ("1.5", "number 1 is '1.5'"), ("٣", "number 1 is '٣'"), ("9" * 5000, "number 1 is '99999999999999999999'"),
    (" ,\n", f"1 to {LONGEST} numbers; got 0"), ("1 " * (LONGEST + 1), f"1 to {LONGEST} numbers; got {LONGEST + 1}"),
])
def test_wrong_tokens_are_a_sentence_and_the_picture_stays(controls, text, message):
    before = controls.explorer
    controls.tokens.value = text
    assert message in run(controls)
    assert controls.explorer is before and controls.status.value == "not run" and controls.progress.value == 0
    controls.tokens.value = "1 2 3"
    assert run(controls) == "" and controls.explorer is not before


def test_what_is_typed_is_never_markup(controls):
    controls.tokens.value = "<img/src=x>"
    controls.start.click()
    assert "<img" not in controls.alert.value and "&lt;img/src=x&gt;" in controls.alert.value


def test_a_connector_is_not_made_up(controls):
    controls.name.value = "mqar/cpu/none"
    assert controls.aggregation.value == "none" and controls.size.disabled and controls.gate.disabled and controls.top_k.disabled
    controls.aggregation.value, controls.size.value = "ssc", 16
    assert not (controls.size.disabled or controls.gate.disabled or controls.top_k.disabled)
    assert "needs a connector W_u" in run(controls)
    controls.gate.value = "shared"
    assert run(controls) == "" and "gate shared" in controls.explorer.data["title"]


def test_attention_says_that_it_has_no_memories(controls):
    controls.name.value = "mqar/cpu/attention"
    assert "attention: it has no memories" in controls.alert.value
    controls.name.value = "mqar/cpu/grm"
    assert controls.alert.value == ""


def test_a_new_sequence_is_that_of_the_seed(controls):
    controls.seed.value = 4
    controls.new.click()
    batch = MQAR().sample(1, torch.Generator().manual_seed(5))
    assert controls.seed.value == 5 and controls.tokens.value.split() == [str(t) for t in batch.tokens[0].tolist()]
    assert controls.explorer.data["tokens"] == controls.tokens.value.split()
    controls.seed.value = 2026


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "mqar/cpu/models").mkdir(parents=True)
    (tmp_path / "mqar/cpu/models/grm.safetensors").write_bytes(b"not a model")
    broken = live(tmp_path)
    assert "grm.safetensors is not a complete file of ours" in broken.alert.value and broken.explorer is None


def test_a_folder_without_models_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder must hold trained models"):
        live(tmp_path)


@pytest.mark.parametrize("name", [name for name in shipped(RESULTS) if not name.endswith("attention")])
def test_every_shipped_model_runs(controls, name):
    controls.name.value = name
    assert controls.alert.value == "" and controls.explorer.data["title"].startswith(name)


@pytest.mark.parametrize("changes", [{"aggregation": "best"}, {"gate": "none"}, {"segment_size": 0}, {"top_k": 0}])
def test_rules_that_do_not_exist_are_refused(changes):
    model = LanguageModel.load(RESULTS / "mqar/cpu/models/grm.safetensors")
    with pytest.raises(ValueError, match=next(iter(changes))):
        rewired(model, **changes)


def test_a_key_that_is_written_again_is_no_question():
    found = questions(torch.tensor([[3, 9, 3, 10, 3, 3]]), 16)
    assert found.labels[0].tolist() == [-100] * 4 + [10, 10] and found.source[0].tolist() == [-1] * 4 + [3, 3]


def test_the_book_shows_the_default_and_no_dead_control(page, site):
    page.goto(f"{site}nbs/workshop/explorer_live.html")
    explorer = page.locator(".mc-routing")
    explorer.wait_for(timeout=20_000)
    assert explorer.count() == page.locator(".mc-widget").count() == 1
    assert "mqar/cpu/grm" in explorer.locator(".heading").inner_text() and page.locator("[data-ready=failed]").count() == 0
    assert "work in a live notebook only" in page.locator("article").inner_text()
