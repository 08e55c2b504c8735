"""`mc train`: one line whatever happens, the same command goes on, nothing half-written."""
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

import mc
import mc.train.loop as loop
from mc.commands.base import main
from mc.storage import load_json
from mc.text import ByteTokenizer, load_tokenizer
from mc.text.corpora import prepare
from mc.train.runs import RunFolder

SMALL = "--d-model 8 --num-heads 2 --num-layers 1 --segment-size 4 --length 16 --batch-size 4 --steps 6 --warmup 2 --every 2 --no-tensorboard --no-progress"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "book.txt").write_text("".join(f"The {n}. line of a book.\n" for n in range(150)))
    return prepare([folder / "book.txt"], ByteTokenizer(), folder / "corpus").folder


@pytest.fixture
def run(corpus, tmp_path, monkeypatch):
    "A function of what is typed: exit code and output."
    def typed(more="", out="run"):
        arguments = ["train", str(corpus), "--out", str(tmp_path / out), *SMALL.split(), *more.split()]
        monkeypatch.setattr(sys, "argv", ["mc", *arguments])
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.output
    return typed


def test_a_run_is_trained_once_and_its_config_makes_another(run, tmp_path):
    code, said = run()
    assert code == 0 and said.startswith(f"{tmp_path}/run: 384 tokens in") and "bits per byte" in said and said.count("\n") == 1
    record, folder = load_json(tmp_path / "run/record.json"), tmp_path / "run"
    assert run() == (0, said) and record["command"].startswith("mc train ") and record["tokenizer"] == ByteTokenizer().hash
    assert load_tokenizer(folder / "tokenizer.json") == ByteTokenizer()
    assert mc.LanguageModel.load(folder / "model.safetensors").config.mixer.aggregation == "grm"
    again = CliRunner().invoke(main, ["train", record["command"].split()[2], "--out", str(tmp_path / "other"), "--config", str(folder / "config.yaml"), "--no-progress"])
    assert again.exit_code == 0 and (tmp_path / "other/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("more, message", [
    ("--mixer gmr", "--mixer must be one of .* did you mean 'grm'"), ("--steps 0", "steps must be an integer of at least 1"), ("--d-model 9", "--d-model must be a multiple of --num-heads"),
    ("--length 100000", "--length must be below"), ("--devices 3", "--batch-size must be a multiple of the 3 devices; got 4"), ("--backend gru", "backend"),
    ("--learning-rate nan", "needs --learning-rate to be"), ("--clip 0", "clip"), ("--model none.yaml", "none.yaml"), ("--stepps 3", "stepps")])
def test_what_cannot_be_trained_is_refused_in_one_line_and_nothing_is_written(run, tmp_path, more, message):
    code, said = run(more)
    assert code in (1, 2) and said.startswith("Error: ") and said.count("\n") == 1
    import re
    assert re.search(message, said), said
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_is_a_failure_and_says_how_to_go_on(run, tmp_path):
    code, said = run("--learning-rate 1e30 --warmup 0 --every 1")
    assert code == 1 and said.count("\n") == 1 and "the last checkpoint is kept" in said and "; to go on: mc train " in said
    assert not (tmp_path / "run/model.safetensors").exists() and list((tmp_path / "run/checkpoints").iterdir())


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(run, tmp_path, monkeypatch):
    save = loop.save_tensors

    def full(path, *rest):
        if "step-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(path, *rest)

    monkeypatch.setattr(loop, "save_tensors", full)
    code, said = run()
    assert code == 1 and said.count("\n") == 1 and "the disk is full, at step 4" in said and "step-2.safetensors is kept; to go on: mc train" in said
    monkeypatch.setattr(loop, "save_tensors", save)
    early = CliRunner().invoke(main, ["generate", str(tmp_path / "run"), "a"])
    assert early.exit_code == 2 and "not the folder of a finished run; to go on: mc train " in early.output and early.output.count("\n") == 1
    assert run()[0] == 0 and run(out="whole")[0] == 0
    losses = [[json.loads(line)["loss"] for line in open(tmp_path / name / "log.jsonl")] for name in ("run", "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_a_model_from_a_file_has_its_own_mixer_in_each_block(run, tmp_path):
    mixers = [{"kind": "MCConfig", "d_model": 8, "num_heads": 2, "aggregation": "ssc"}, {"kind": "AttentionConfig", "d_model": 8, "num_heads": 2}]
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"mixers": mixers}))
    assert run(f"--model {tmp_path}/model.yaml")[0] == 0
    model = mc.LanguageModel.load(tmp_path / "run/model.safetensors")
    assert [type(b.mixer).__name__ for b in model.blocks] == ["MemoryCachingLayer", "Attention"]
    code, said = run("--model " + str(tmp_path / "model.yaml") + " --steps 7")
    assert code == 2 and "steps = 6, this one has 7" in said


def test_a_model_file_that_is_none_is_named(run, tmp_path):
    (tmp_path / "model.yaml").write_text("num_layer: 3")
    code, said = run(f"--model {tmp_path}/model.yaml")
    assert code == 2 and said.startswith(f"Error: --model {tmp_path}/model.yaml: ") and "num_layer" in said and not (tmp_path / "run").exists()


def test_two_do_not_train_in_one_folder(run, tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "run").mkdir()
    with RunFolder(tmp_path / "run").held():
        code, said = run()
        assert code == 1 and said == f"Error: {tmp_path}/run: another process trains in this folder\n"
        assert not list((tmp_path / "run").iterdir())
    assert run()[0] == 0


@pytest.mark.parametrize("error, amount", [
    (MemoryError("Unable to allocate 3.0 GiB for an array"), ": 3.0 GiB were asked for"), (MemoryError(), ""),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes. Error code 12"), ": 800 bytes were asked for"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), ": 2.00 GiB were asked for")])
def test_memory_that_there_is_not_is_one_line(run, monkeypatch, error, amount):
    def lacking(*a, **k):
        raise error
    monkeypatch.setattr("mc.train.runs.train_text", lacking)
    assert run() == (1, f"Error: there is not enough memory{amount}; a smaller model, batch or length needs less\n")


@pytest.mark.slow
def test_a_killed_worker_ends_all_with_one_line_that_says_how_to_go_on(corpus, tmp_path):
    command = [sys.executable, "-m", "mc", "train", str(corpus), "--out", str(tmp_path / "run"), *SMALL.split(), "--steps", "400", "--devices", "2"]
    job = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = tmp_path / "run/log.jsonl"
    while not log.exists() or log.read_text().count("\n") < 5:
        assert job.poll() is None
        time.sleep(0.01)
    children = [int(p) for p in subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True).stdout.split()]
    os.kill(max(children), signal.SIGKILL)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 1 and said.count("\n") == 1 and "was killed by SIGKILL, and the others were ended" in said
    assert "safetensors is kept; to go on: mc train" in said and not any(os.path.exists(f"/proc/{pid}") for pid in children)


def test_the_help_shows_an_example():
    said = CliRunner().invoke(main, ["train", "--help"]).output
    assert "Example: mc train corpus --out run" in said and "--strategy" in said
