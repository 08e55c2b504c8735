"""lm-evaluation-harness on our models: log-likelihoods are those of one pass, whatever the batch; tasks from files, offline."""
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mc
from mc.text.tokenizers import BPETokenizer, ByteTokenizer

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")
os.environ["TQDM_DISABLE"] = "1"
pytest.importorskip("lm_eval")
import mc.lm_eval as door  # noqa: E402
from mc.hf import from_mc  # noqa: E402

door.quiet()
EXAMPLES = Path(__file__).resolve().parents[1] / "examples/lm_eval"
TASKS = [EXAMPLES / "jack.yaml", EXAMPLES / "jack_goes_on.yaml"]
MIXERS = {
    "grm": dict(segment_size=8),
    "fenwick": dict(segmentation="fenwick", segment_size=4),
    "ssc": dict(aggregation="ssc", segment_size=4, top_k=1),
    "logarithmic": dict(segmentation="logarithmic"),
}


def model_of(name="grm", tokenizer=ByteTokenizer()):
    torch.manual_seed(0)
    lm = mc.LMConfig(tokenizer.vocab_size, 1, mc.MCConfig(16, 2, **MIXERS[name]))
    return from_mc(mc.LanguageModel(lm).double().eval(), tokenizer)


def answers(found):
    return [answer for task in found["samples"].values() for sample in task for answer in sample["filtered_resps"]]


@pytest.mark.parametrize("name", ["grm", "fenwick", "ssc"])
def test_one_row_at_a_time_or_six(name):
    one, six = (answers(door.evaluate(door.MCLM(*model_of(name), size), TASKS, bootstrap=0)) for size in (1, 6))
    assert len(one) == len(six) == 30
    for a, b in zip(one, six):
        assert a == b if isinstance(a, str) else abs(a[0] - b[0]) < 1e-4 and a[1] == b[1]


@pytest.mark.parametrize("name", ["grm", "logarithmic"])
def test_log_likelihoods_are_those_of_one_pass(name):
    model, words = model_of(name)
    found = door.evaluate(door.MCLM(model, words), TASKS[:1], bootstrap=0)
    for sample in found["samples"]["jack"]:
        for choice, (likelihood, greedy) in zip(sample["doc"]["choices"], sample["filtered_resps"]):
            ids = torch.tensor([words.encode(f"{sample['doc']['line']} {choice}")])
            p = model.model(ids[:, :-1]).detach().log_softmax(-1)
            more = len(choice) + 1
            of_choice = p.gather(-1, ids[:, 1:, None])[0, -more:].sum()
            assert abs(float(of_choice) - likelihood) < 1e-4
            assert greedy == bool((p.argmax(-1) == ids[:, 1:])[0, -more:].all())


def test_texts_are_ours():
    model, words = model_of()
    found = door.evaluate(door.MCLM(model, words, 6), TASKS[1:], bootstrap=0)
    for sample in found["samples"]["jack_goes_on"]:
        ours = model.model.generate([words.encode(sample["doc"]["line"])], 24, temperature=0, stop=256).all()[0]
        text = words.decode([token for token in ours if token != 256])
        assert sample["resps"][0][0] == text.split("\n")[0].split(".")[0]


def test_a_cut_by_the_length_of_the_row_is_not_batched():
    with pytest.raises(ValueError, match="batch_size must be 1 for segmentation 'logarithmic'"):
        door.MCLM(*model_of("logarithmic"), 6)
    with pytest.raises(ValueError, match="'fenwick' and 'constant' can generate"):
        door.evaluate(door.MCLM(*model_of("logarithmic")), TASKS[1:])


def test_context_length_from_the_configuration_or_given():
    model, words = model_of()
    assert door.MCLM(model, words).max_length == 2048
    assert door.MCLM(model, words, max_length=40).max_length == 40
    model.config.max_position_embeddings = 64
    assert door.MCLM(model, words).max_length == 64
    found = door.evaluate(door.MCLM(model, words, max_length=30), TASKS[:1], bootstrap=0)
    sample = found["samples"]["jack"][0]  # cut on the left
    ids = torch.tensor([words.encode("This is the cat,\nThat killed the rat,")[-31:]])
    with torch.no_grad():
        expected = model.model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[0, -5:].sum()
    assert abs(sample["filtered_resps"][0][0] - float(expected)) < 1e-4


def test_paths_in_a_task_start_beside_it(tmp_path, monkeypatch):
    for file in ("jack.yaml", "jack.jsonl"):
        shutil.copy(EXAMPLES / file, tmp_path / file)
    (tmp_path / "jack.jsonl").write_text((EXAMPLES / "jack.jsonl").read_text().splitlines()[0] + "\n")
    assert len(door.load_tasks([tmp_path / "jack.yaml"])["tasks"]["jack"].eval_docs) == 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "jack.yaml").rename(tmp_path / "tasks/jack.yaml")  # or else here
    assert len(door.load_tasks(["tasks/jack.yaml"])["tasks"]["jack"].eval_docs) == 1


@pytest.mark.slow
def test_a_name_with_a_slip_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="lambada_openai"):
        door.load_tasks(["lambada_opnai"])


def test_a_tokenizer_without_an_end_is_refused():
    about = json.loads(BPETokenizer.train(["ab ab"], 258).json)
    about["added_tokens"] = []
    about["model"]["vocab"] = {token: i - 1 for token, i in about["model"]["vocab"].items() if i}
    tokenizer = BPETokenizer(json.dumps(about))
    assert tokenizer.end is None
    with pytest.raises(ValueError, match="end of a document"):
        door.MCLM(*model_of(tokenizer=tokenizer))


@pytest.fixture
def run(tmp_path):
    model, _ = model_of()
    model.model.save(tmp_path / "run/model.safetensors")
    ByteTokenizer().save(tmp_path / "run/tokenizer.json")
    return tmp_path / "run"


def said(*arguments):
    from mc.commands.base import main

    return CliRunner().invoke(main, ["lm-eval", *map(str, arguments)], prog_name="mc")


def test_the_command_scores_a_run_and_a_folder_of_transformers(run, tmp_path):
    from mc.hf import export

    folder = export(run, tmp_path / "folder")
    scores = []
    for model in (run, folder):
        done = said(model, TASKS[0], "--batch-size", 6, "--json", "--output", tmp_path / "kept.json")
        assert done.exit_code == 0, done.output
        scores.append(json.loads(done.stdout))
    assert scores[0] == scores[1]
    assert {row["metric"] for row in scores[0]["scores"]} == {"acc", "acc_norm"}
    from mc.storage import load_json

    kept = load_json(tmp_path / "kept.json")
    assert kept["scores"] == scores[0]["scores"] and len(kept["samples"]["jack"]) == 6


def test_bad_input_is_one_line(run, tmp_path):
    (tmp_path / "bad.yaml").write_text("task: [\n")
    (tmp_path / "rows.yaml").write_text((EXAMPLES / "jack.yaml").read_text())  # its rows are not beside it
    for code, *arguments in (
        (1, tmp_path / "none", TASKS[0]),
        (1, run, "none.yaml"),
        (2, run, tmp_path / "bad.yaml"),
        (1, run, tmp_path / "rows.yaml"),
        (2, run),
        (2, run, TASKS[0], "--batch-size", "0"),
        (2, run, TASKS[0], "--device", "nowhere"),
        (2, run, TASKS[0], "--output", tmp_path),
    ):
        done = said(*arguments)
        assert done.exit_code == code, (arguments, done.output)
        assert not done.stdout and "Error" in done.stderr.splitlines()[-1]
