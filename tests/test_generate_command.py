"""`mc generate`: text as it comes, JSON for programs, one clear line for what cannot be."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

import mc
from mc.commands.base import main
from mc.storage import save_tensors
from mc.text import BPETokenizer, ByteTokenizer
from mc.text.stream import TextStream

BYTES = ByteTokenizer()


def save_run(folder, tokenizer=BYTES, stamp=None):
    "A run's folder with a model that has learned nothing."
    torch.manual_seed(0)
    model = mc.LanguageModel(mc.LMConfig(tokenizer.vocab_size, 1, mc.MCConfig(8, 2, segment_size=4)))
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "model.safetensors", model.state_dict(), {"model": model.config.to_dict(), "tokenizer": stamp or tokenizer.hash})
    tokenizer.save(folder / "tokenizer.json")
    return model


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_run(tmp_path / "run").eval()


def call(*arguments, **options):
    return CliRunner().invoke(main, ["generate", *map(str, arguments)], **options)


def text_of(model, prompt, seed=3, n=12, **options):
    "What the model makes of `prompt`, all at once."
    row = model.generate([BYTES.encode(prompt)], n, seed=seed, stop=BYTES.end, **options).all()[0]
    return BYTES.decode(row)


def test_one_prompt_is_printed_with_its_continuation(run):
    said = call("run", "née ", "--seed", 3, "--max-new-tokens", 12)
    assert (said.exit_code, said.stderr) == (0, "") and said.stdout == "née " + text_of(run, "née ") + "\n"
    assert call("run/model.safetensors", "née ", "--seed", 3, "--max-new-tokens", 12).stdout == said.stdout
    assert call("run", "née ", "--seed", 3, "--max-new-tokens", 12, "--no-echo").stdout == text_of(run, "née ") + "\n"


def test_several_prompts_stand_one_after_the_other_and_are_what_generate_gives(run):
    said = call("run", "a", "bcd", "--seed", 3, "--max-new-tokens", 8, "--top-k", 5)
    a, b = run.generate([BYTES.encode("a"), BYTES.encode("bcd")], 8, seed=3, top_k=5, stop=BYTES.end).all()
    assert said.stdout == f"a{BYTES.decode(a)}\n---\nbcd{BYTES.decode(b)}\n"


def test_json_has_a_line_for_each_prompt_and_the_seed_that_repeats_it(run):
    lines = [json.loads(line) for line in call("run", "a", "bcd", "--max-new-tokens", 5, "--json").stdout.splitlines()]
    assert sorted(line["row"] for line in lines) == [0, 1] and {line["prompt"] for line in lines} == {"a", "bcd"}
    again = call("run", "a", "bcd", "--max-new-tokens", 5, "--json", "--seed", lines[0]["seed"]).stdout
    assert [json.loads(line) for line in again.splitlines()] == lines
    assert all(line["ended"] in ("length", "stop") and line["tokens"] <= 5 for line in lines)


def test_text_stops_are_not_printed_and_end_their_row(run):
    free = text_of(run, "a", n=30)
    stop = free[4:6]
    line = json.loads(call("run", "a", "--seed", 3, "--max-new-tokens", 30, "--stop", stop, "--json").stdout)
    assert line["text"] == free[:free.index(stop)] and line["ended"] == "stop" and line["tokens"] < 30


def test_prompts_come_from_files_and_standard_input(run, tmp_path):
    options = ("--seed", 3, "--max-new-tokens", 12)
    want = call("run", "ab\nc", *options).stdout
    (tmp_path / "one.txt").write_bytes(b"ab\r\nc\r\n")
    (tmp_path / "some.jsonl").write_text('"ab\\nc"\n\n{"prompt": "d", "id": 7}\n')
    assert call("run", "--file", "one.txt", *options).stdout == want
    assert call("run", *options, input="ab\nc\n").stdout == call("run", "--file", "-", *options, input="ab\nc").stdout == want
    assert call("run", "--file", "some.jsonl", *options).stdout == call("run", "ab\nc", "d", *options).stdout
    (tmp_path / "g.yaml").write_text("model: run\nprompts: [ab, d]\nseed: 3\nmax-new-tokens: 12\nstop: [zzz]\n")
    assert call("--config", "g.yaml").stdout == call("run", "ab", "d", *options).stdout


def refused(said, *words, code=2):
    assert said.exit_code == code and said.stdout == "", said.output
    assert said.stderr.count("\n") == 1 and said.stderr.startswith("Error: ") and "Traceback" not in said.stderr
    for word in words:
        assert word in said.stderr, said.stderr


TYPED = {
    "no model": ([], "MODEL"),
    "a folder without a model": (["."], "model.safetensors"),
    "an empty prompt": (["run", ""], "the prompt is empty"),
    "an empty one of two": (["run", "a", ""], "prompt 2 is empty"),
    "two sources": (["run", "a", "--file", "x"], "not both"),
    "max-new-tokens": (["run", "a", "--max-new-tokens", "0"], "--max-new-tokens"),
    "cold": (["run", "a", "--temperature", "-1"], "--temperature"),
    "nan": (["run", "a", "--temperature", "nan"], "--temperature"),
    "top-k": (["run", "a", "--top-k", "0"], "--top-k"),
    "top-p": (["run", "a", "--top-p", "0"], "--top-p must be above 0"),
    "min-p": (["run", "a", "--min-p", "2"], "--min-p must be between 0 and 1"),
    "an empty stop": (["run", "a", "--stop", ""], "stop must be"),
    "a device": (["run", "a", "--device", "tpu9"], "--device 'tpu9'"),
    "an option": (["run", "a", "--tempratur", "1"], "--tempratur", "--temperature"),
}


@pytest.mark.parametrize("arguments, words", [(a, w) for a, *w in TYPED.values()], ids=TYPED)
def test_what_cannot_be_typed_is_refused_in_one_line(run, arguments, words):
    refused(call(*arguments), *words)


def test_files_that_cannot_be_used_are_named_in_one_line(run, tmp_path):
    refused(call("nowhere", "a"), "nowhere", code=1)
    refused(call("run", "--file", "none.txt"), "none.txt", code=1)
    refused(call("run", input=""), "the prompt is empty")
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    refused(call("run", "--file", "bad.txt"), "bad.txt must be UTF-8; byte 2 is not")
    (tmp_path / "bad.jsonl").write_text('"a"\n{"text": 1}\n')
    refused(call("run", "--file", "bad.jsonl"), "bad.jsonl, line 2")
    (tmp_path / "no.jsonl").write_text('"a"\nb\n')
    refused(call("run", "--file", "no.jsonl"), "no.jsonl, line 2 is not JSON")
    (tmp_path / "empty.jsonl").write_text("\n")
    refused(call("run", "--file", "empty.jsonl"), "no prompt")
    (tmp_path / "run/model.safetensors").write_bytes(b"abc")
    refused(call("run", "a"), "run/model.safetensors is not a complete file")
    (tmp_path / "run/tokenizer.json").unlink()
    refused(call("run", "a"), "no tokenizer.json beside run/model.safetensors", "--tokenizer")


def test_a_tokenizer_of_another_model_is_refused(run, tmp_path):
    other = BPETokenizer.train(["to be or not to be"], 260)
    other.save(tmp_path / "other.json")
    refused(call("run", "a", "--tokenizer", "other.json"), "another tokenizer than other.json", BYTES.hash[:12], other.hash[:12])
    save_run(tmp_path / "alike", stamp="0" * 64)
    refused(call("alike", "a"), "another tokenizer")


def test_characters_that_the_tokenizer_lacks_are_refused(tmp_path, monkeypatch):
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"to": 0, "be": 1, "[UNK]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    save_run(tmp_path / "run", BPETokenizer(words.to_str()))
    refused(call("run", "to bee"), "the prompt", "bee")
    assert call("run", "to be", "--max-new-tokens", 3).exit_code == 0


def test_letters_are_printed_whole(monkeypatch):
    "What is printed after each byte is text that no later byte changes."
    stream, said = TextStream(BYTES), []
    for byte in "aé€🜂b".encode():
        said.append(stream.push(byte))
    assert said == ["a", "", "é", "", "", "€", "", "", "", "🜂", "b"]


class Letters:
    "A tokenizer that writes a space before a word unless it comes first, as those of words do."
    decode = staticmethod(lambda tokens: " ".join(["to", "be", "or"][t] for t in tokens))


def test_spaces_between_words_are_kept():
    stream = TextStream(Letters, after=[0, 1])
    assert [stream.push(t) for t in (2, 0, 1)] == [" or", " to", " be"] and stream.end() == ""


def test_a_stop_that_comes_in_parts_is_held_back_and_given_back():
    stream = TextStream(BYTES, ["\nB:", "END"])
    assert [stream.push(b) for b in b"a\nBx E"] == ["a", "", "", "\nBx", " ", ""] and stream.end() == "E" and not stream.stopped


def test_a_terminal_is_shown_nothing_that_it_would_obey(run, monkeypatch):
    from mc.commands import generate
    shown = []
    monkeypatch.setattr("builtins.print", lambda text, end="\n": shown.append(text + end))
    monkeypatch.setattr(generate.sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    rows = generate.Rows(["a"])
    rows.add(0, "\x1b[31m\n", True)
    assert "".join(shown) == "a\\x1b[31m\n\n"


# ---- a process of its own

def start(*arguments, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-m", "mc", "generate", *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), **options)    # a shell may start its background jobs without


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interruption_ends_in_one_line_and_says_how_to_repeat(run):
    job = start("run", "a", "--max-new-tokens", "1000000", "--seed", "5")
    assert len(job.stdout.read(20)) == 20    # it comes while it is made
    job.send_signal(signal.SIGINT)
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130 and said.decode() == "interrupted; the same text again: --seed 5\n"


@pytest.mark.slow
def test_a_reader_that_went_away_ends_it_in_one_line(run):
    job = start("run", "a", "--max-new-tokens", "1000000")
    job.stdout.read(5)
    job.stdout.close()
    began = time.monotonic()
    said = job.stderr.read().decode()
    assert job.wait(60) == 1 and time.monotonic() - began < 30
    assert said.startswith("Error: standard output cannot be written") and said.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="file descriptors of POSIX")
def test_a_standard_input_that_is_closed_is_an_empty_one(run):
    job = subprocess.run(["sh", "-c", 'exec "$0" -m mc generate run <&-', sys.executable], capture_output=True, text=True)
    assert job.returncode == 2 and job.stderr.startswith("Error: the prompt is empty") and job.stderr.count("\n") == 1, job.stderr
