"""`mc evaluate`: rows are checked, prompts are RULER's, a bundle is whole or not there, one changed byte is found, two are compared."""
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mc
from mc.commands.base import main
from mc.evidence.bundle_checks import compare, verify_bundle
from mc.evidence.bundles import FILES, SUMS
from mc.evidence.evaluations import evaluate_tasks
from mc.storage import load_json, save_tensors
from mc.tasks import niah
from mc.tasks.answerers import ModelAnswerer
from mc.tasks.niah import Niah
from mc.tasks.questions import TASKS, Questions, make_task, prepared
from mc.tasks.reading import Reading
from mc.tasks.repeats import Repeats
from mc.text import BPETokenizer, ByteTokenizer
from mc.text.rows import Row, read_rows

BYTES = ByteTokenizer()


def save_run(folder, seed=0, **options):
    "A run's folder with a model that has learned nothing."
    torch.manual_seed(seed)
    model = mc.LanguageModel(mc.LMConfig(BYTES.vocab_size, 1, mc.MCConfig(8, 2, segment_size=16, **options)))
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "model.safetensors", model.state_dict(), {"model": model.config.to_dict(), "tokenizer": BYTES.hash})
    BYTES.save(folder / "tokenizer.json")
    return model.eval()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return save_run(tmp_path / "run")


def write(name, *rows):
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def question(i, **more):
    return {"id": i, "prompt": f"What is {i} + {i}? It is", "references": [str(2 * i)], **more}


def call(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(said, *words, code=2):
    assert said.exit_code == code and said.stdout == "", said.output
    assert said.stderr.count("\n") == 1 and said.stderr.startswith("Error: "), said.stderr
    for word in words:
        assert word in said.stderr, said.stderr


class Knows:
    "Answers a share of what it is asked; whoever is interrupted is so at a batch."

    tokenizer, limit = BYTES, None

    def __init__(self, right, stop_at=math.inf):
        self.right, self.stop_at, self.batches, self.asked = right, stop_at, 0, []

    def answers(self, prompts, new_tokens, stop=(), least=0):
        self.batches += 1
        if self.batches > self.stop_at:
            raise KeyboardInterrupt
        self.asked += prompts
        numbers = [int(prompt.split()[2]) for prompt in prompts]
        return [f" {2 * n if n in self.right else 'none'}." for n in numbers]

    def about(self):
        return {"name": "knows", "right": sorted(self.right), "tokenizer_sha256": BYTES.hash}


# ---- rows

def test_rows_end_at_line_feeds_only_and_a_mark_crlf_and_blank_lines_are_read(tmp_path):
    one = json.dumps(question(1, level="é")).replace("What", "What\u2028\u0085")
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{one}\r\n\n{json.dumps(question(2))}".encode())
    rows = read_rows(path)
    assert [row.id for row in rows] == ["1", "2"] and "\u2028\u0085" in rows.rows[0].prompt
    assert rows.rows[0].model_extra == {"level": "é"} and rows.source[0]["bytes"] == path.stat().st_size


BAD = {
    "a missing field": ({"id": 2, "prompt": "x"}, "field 'references' is missing"),
    "one text": (question(2) | {"references": "4"}, "field 'references' must be a list"),
    "none": (question(2) | {"references": []}, "field 'references' must be a list of one or more texts"),
    "a number": (question(2) | {"references": [4]}, "field 'references'"),
    "twice": (question(1), "field 'id' is '1', as in line 1"),
    "no object": (["x"], "must hold an object"),
    "no id": (question(True), "field 'id'"),
}


@pytest.mark.parametrize("row, words", BAD.values(), ids=BAD)
def test_a_bad_row_is_named_by_file_line_and_field_and_left_out_only_if_asked(tmp_path, row, words):
    path = write(tmp_path / "a.jsonl", question(1), row)
    with pytest.raises(ValueError, match="a.jsonl, line 2") as error:
        read_rows(path)
    assert words in str(error.value) and "1 of 2 rows are bad" in str(error.value)
    rows = read_rows(path, skip=True)
    assert len(rows) == 1 and rows.bad[0].line == 2 and rows.source[0]["bad"] == 1


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xff\xfe{\0", b'{"id": NaN}', b"[" * 100_000])
def test_a_file_without_a_good_row_is_refused(tmp_path, data):
    (tmp_path / "a.jsonl").write_bytes(data)
    for skip in (False, True):
        with pytest.raises(ValueError, match="a.jsonl, line 1" if data.strip() else "a.jsonl has no rows"):
            read_rows(tmp_path / "a.jsonl", skip=skip)


# ---- S-NIAH

def test_the_wording_is_the_official_one():
    where = importlib.util.find_spec("lm_eval")
    if where is None:
        pytest.skip("lm_eval is not installed: pip install 'memory-caching-companion[eval]'")
    ruler = Path(where.origin).parent / "tasks/ruler"
    utils, prepare = ((ruler / f"{name}.py").read_text() for name in ("niah_utils", "prepare_niah"))
    template = utils.split('TEMPLATE = """')[1].split('"""')[0].replace("\\n", "\n")
    for several, one in (("Some", "A"), ("are all", "is"), ("are", "is")):
        template = template.replace(several, one)
    template = template.replace("{type_needle_v}", "{kind}").replace("{context}", "{text}").replace("{query}", "{key}")
    begun = prepare.split('f"The special magic {type_needle_v[:-1]} for {query}')[1].split('"')[0]
    assert niah.PROMPT == template + " The special magic {kind} for {key}" + begun
    assert niah.BLOCK in prepare and niah.NEEDLE.replace("{kind}s", "{type_needle_v}") in prepare


def test_keys_are_drawn_from_the_pairs_that_ruler_draws_from():
    from wonderwords import RandomWord

    lists, theirs = niah.word_lists(), RandomWord()._categories
    assert set(lists.adjectives) == set(theirs["adjectives"]) and set(lists.nouns) == set(theirs["nouns"])
    hyphens = {w for w in lists.adjectives if "-" in w}, {w for w in lists.nouns if "-" in w}
    pairs = [f"{a}-{n}" for a in lists.adjectives for n in hyphens[1]] + [f"{a}-{n}" for a in hyphens[0] for n in set(lists.nouns) - hyphens[1]]
    assert len(set(pairs)) == len(pairs)                 # so that each pair of a set of texts is one pair of words


def test_essays_of_a_folder_in_order_of_names_without_anything_between_them(tmp_path):
    (tmp_path / "b.txt").write_text("four five. Six")
    (tmp_path / "a.txt").write_text("one  two.\nThree")
    (tmp_path / "c.md").write_text("no")
    words, about = niah.read_essays(tmp_path)
    assert words == ["one", "two.", "Threefour", "five.", "Six"] and [one["name"] for one in about] == ["a.txt", "b.txt"]
    hay = niah.Essays(words, niah.split_sentences)
    assert hay.sentences(7) == ["one two.", "Threefour five.", "Six one two."]      # they begin again
    needle = lambda place: niah.Needle("number", "a-b", "1", place)
    text, depth = hay.place(5, needle(0.0))
    assert (text, depth) == (" One of the special magic numbers for a-b is: 1. one two. Threefour five. Six", 0)
    text, depth = hay.place(5, needle(0.999))
    assert depth == 100 and text == "one two. Threefour five. Six One of the special magic numbers for a-b is: 1. "


def test_depths_are_the_forty_of_ruler():
    import numpy as np

    assert list(niah.DEPTHS) == np.round(np.linspace(0, 100, 40)).astype(int).tolist()


@pytest.mark.parametrize("name, length", [("niah-1", 700), ("niah-2", 1024), ("niah-3", 1500)])
def test_every_prompt_fits_and_ends_with_the_beginning_of_its_answer(name, length):
    task = Niah(name=name, lengths=(length,), samples=25)
    rows = task.rows(BYTES).rows
    sizes = [len(BYTES.encode(row.prompt)) + 128 for row in rows]
    assert max(sizes) <= length and sizes == [row.length for row in rows]
    largest, least = task.largest(BYTES, length), 10**9
    for number, row in enumerate(rows):
        needle = niah.draw(niah.KINDS[name], task.random(length, number))
        assert row.references == [needle.value] and row.prompt.count(needle.value) == 1
        assert row.prompt.endswith(f"for {needle.key} mentioned in the provided text is") and f"{needle.key} is: {needle.value}." in row.prompt
        if row.size < largest:                           # shortened, and by no more than it has to be
            assert len(BYTES.encode(task.text(row.size + 1, needle)[0])) + 128 > length
        least = min(least, row.size)
    assert (least < largest or name == "niah-1") and largest == max(row.size for row in rows) and len({row.depth for row in rows}) > 1
    if name == "niah-3":
        assert all(len(row.references[0]) == 36 and row.references[0][14] == "4" for row in rows)
    else:
        assert all(len(row.references[0]) == 7 for row in rows)


def test_wonderwords_that_is_missing_is_one_line_with_the_command(run, monkeypatch):
    niah.word_lists.cache_clear()
    monkeypatch.setitem(sys.modules, "wonderwords", None)
    refused(call("evaluate", "run", "niah-1", "--length", 800, "--out", "o"), "pip install 'memory-caching-companion[eval]'")
    niah.word_lists.cache_clear()


# ---- reading

def test_bits_of_every_token_are_those_of_the_models_loss(run, tmp_path):
    text = "Näher am Text, and nearer still. " * 5
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pair = BPETokenizer.train([text], 270)
    torch.manual_seed(0)
    model = mc.LanguageModel(mc.LMConfig(pair.vocab_size, 1, mc.MCConfig(8, 2, segment_size=4))).eval()
    found = evaluate_tasks([Reading(data=tmp_path / "a.txt", length=20)], ModelAnswerer(model, pair, piece=7), tmp_path / "o")
    ids = torch.tensor([pair.end, *pair.encode(text)])
    with torch.no_grad():
        losses = [torch.nn.functional.cross_entropy(model(ids[None, i : i + 20])[0][: len(ids) - 1 - i], ids[i + 1 : i + 21], reduction="sum").item()
                  for i in range(0, len(ids) - 1, 20)]
    bits = sum(losses) / math.log(2)
    row = found.summary[0]
    assert row["score"] == pytest.approx(bits / len(text.encode()), abs=1e-5) and row["low"] <= row["score"] <= row["high"]
    assert row["official"] is None and row["details"]["perplexity"] == pytest.approx(math.exp(sum(losses) / (len(ids) - 1)), rel=1e-5)
    assert sum(part["tokens"] for part in row["details"]["by_position"]) == len(ids) - 1


# ---- a passage that comes again

def test_what_is_saved_is_the_difference_of_two_losses(run, tmp_path):
    (tmp_path / "a.txt").write_text("Nearer to the text, and then away from it again. " * 9)
    ours, task = ModelAnswerer(run, BYTES), Repeats(data=tmp_path / "a.txt", distances=(20, 41), passage=12, cue=5, samples=3)
    found = evaluate_tasks([task], ours, tmp_path / "o")
    assert [(row["group"], row["rows"]) for row in found.summary] == [("20", 3), ("41", 3)]
    line, row = json.loads((tmp_path / "o/rows.jsonl").read_text().splitlines()[3]), task.rows(BYTES).rows[3]
    assert row.seen[41:] == row.seen[:12] == row.new[41:] and row.seen[12:41] == row.new[12:41] and len(row.new) == 53

    def bits(tokens):
        ids = torch.tensor([tokens])
        with torch.no_grad():
            return torch.nn.functional.cross_entropy(run(ids[:, :-1])[0, -7:], ids[0, -7:], reduction="sum").item() / math.log(2)

    assert line["score"] == pytest.approx((bits(row.new) - bits(row.seen)) / 7, abs=1e-4) and line["weight"] == line["bytes"] == 7
    details = found.summary[1]["details"]
    assert details["bits_per_byte_new"] - details["bits_per_byte_seen"] == pytest.approx(found.summary[1]["score"], abs=1e-4)
    assert verify_bundle(tmp_path / "o") == []


def test_the_other_passage_is_from_outside_of_the_row(tmp_path):
    (tmp_path / "a.txt").write_text("".join(map(chr, range(33, 97))))               # no letter twice
    rows = Repeats(data=tmp_path / "a.txt", distances=(20, 30), passage=12, cue=5, samples=40).rows(BYTES).rows
    assert all(not set(row.new[:12]) & set(row.seen) for row in rows) and len({row.new[0] for row in rows}) > 20


@pytest.mark.parametrize("options, word", [({"cue": 12}, "cue"), ({"distances": (11,)}, "distances"), ({"distances": (9, 9)}, "distances"),
                                           ({"distances": (500,)}, "441"), ({"samples": 0}, "samples"), ({"metric": "contains"}, "bits_saved")])
def test_passages_that_cannot_be_had_are_refused(tmp_path, options, word):
    (tmp_path / "a.txt").write_text("Nearer to the text, and then away from it again. " * 9)
    with pytest.raises(ValueError, match=word):
        make_task("repeats", **{"data": tmp_path / "a.txt", "passage": 12, "cue": 5, "distances": (20,)} | options).rows(BYTES)


# ---- a model of ours

def test_answers_are_what_generate_gives_and_end_at_stops(run):
    ours, prompts = ModelAnswerer(run, BYTES), ["a", "when the memory grows, née"]
    texts = ours.answers(prompts, 9)
    rows = run.generate([BYTES.encode(p) for p in prompts], 9, 0.0, stop=BYTES.end).all()
    assert texts[0].startswith(BYTES.decode(rows[0]).rstrip("\ufffd")[:3]) and len(texts) == 2
    stop = texts[0][1]
    assert ours.answers(prompts, 9, [stop])[0] == texts[0][: texts[0].index(stop)]
    assert ours.answers(prompts[:1], 9, [texts[0][0]]) == [""] != ours.answers(prompts[:1], 9, [texts[0][0]], least=1)


def test_likelihoods_do_not_depend_on_the_batch_and_logarithmic_models_have_them(tmp_path):
    for options in ({}, {"segmentation": "logarithmic"}):
        ours = ModelAnswerer(save_run(tmp_path / "r", **options), BYTES, piece=4)
        pairs = [("the memory ", "grows"), ("a", " b"), ("", "c"), ("the", " same length")]
        one = [ours.log_likelihoods([pair])[0] for pair in pairs]
        for (x, best), (y, alike) in zip(ours.log_likelihoods(pairs), one):
            assert x == pytest.approx(y, abs=1e-4) and best == alike
        ids = torch.tensor([BYTES.encode("the memory grows")])
        with torch.no_grad():
            ln = ours.model(ids[:, :-1]).log_softmax(-1)[0].gather(-1, ids[0, 1:, None])[-6:].sum().item()
        assert one[0][0] == pytest.approx(ln, abs=1e-4)


# ---- the bundle

def test_a_bundle_holds_every_answer_what_decided_it_and_is_sound(run):
    write("own.jsonl", *(question(i, classes=["a"]) for i in range(5)))
    said = call("evaluate", "run", "questions", "niah-1", "--data", "own.jsonl", "--length", 800, "--samples", 3, "--new-tokens", 4, "--out", "o", "--keep-prompts", "--json")
    assert (said.exit_code, said.stderr) == (0, ""), said.output
    summary = json.loads(said.stdout)["summary"]
    assert [(row["task"], row["group"], row["rows"]) for row in summary] == [("questions", "", 5), ("niah-1", "800", 3)]
    assert sorted(path.name for path in Path("o").iterdir()) == sorted(FILES)
    lines = [json.loads(line) for line in Path("o/rows.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [*"01234", "800-0", "800-1", "800-2"]
    assert lines[0].keys() >= {"prompt", "prompt_sha256", "prediction", "references", "score", "metric"} and lines[5]["depth"] >= 0
    assert lines[1]["generated"] == ModelAnswerer(run, BYTES).answers([lines[1]["prompt"]], 4)[0]
    manifest = load_json("o/manifest.json")
    assert manifest["model"]["tokenizer_sha256"] == BYTES.hash and len(manifest["model"]["model_sha256"]) == 64
    assert manifest["tasks"]["questions"]["source"][0]["rows"] == 5 and manifest["tasks"]["niah-1"]["words"]["wonderwords"]
    assert "new_tokens is 4, which is not the task's own" in manifest["tasks"]["niah-1"]["departures"]
    assert manifest["files"].keys() == {"rows.jsonl", "summary.csv", "summary.json", "report.md"} and "torch" in manifest["versions"]
    assert verify_bundle("o") == [] and "niah-1,800,ruler_match,3" in Path("o/summary.csv").read_text()
    assert "Departs: samples are drawn by our own generator" in Path("o/report.md").read_text()


def test_one_changed_byte_is_found_by_the_command_also_below_results(run, tmp_path):
    evaluate_tasks([Questions(data=write("own.jsonl", *map(question, range(4))))], Knows({1, 2}), tmp_path / "all/o")
    assert call("results", "verify", "all/o").exit_code == call("results", "verify", "all", "--book", "none").exit_code == 0
    for name in FILES:
        path = tmp_path / "all/o" / name
        data = path.read_bytes()
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        said = call("results", "verify", "all/o")
        assert said.exit_code == 1 and said.stdout.startswith(name if name != SUMS else "manifest.json: has"), said.output
        assert f"o/{said.stdout[:8]}" in call("results", "verify", "all", "--book", "none").stdout
        path.unlink()
        assert f"{name}: is not there" in call("results", "verify", "all/o").stdout
        path.write_bytes(data)
    (tmp_path / "all/o/more.txt").write_text("x")
    assert "more.txt: does not belong here" in call("results", "verify", "all/o").stdout


def test_an_interrupted_evaluation_goes_on_and_another_one_is_refused(tmp_path):
    task = Questions(data=write(tmp_path / "own.jsonl", *map(question, range(10))))
    first = Knows({1}, stop_at=2)
    with pytest.raises(KeyboardInterrupt) as stop:
        evaluate_tasks([task], first, tmp_path / "o", batch=3)
    assert "o.part" in stop.value.__notes__[0] and not (tmp_path / "o").exists() and len(first.asked) == 6
    with pytest.raises(ValueError, match="o.part holds the beginning of another evaluation; --overwrite"):
        evaluate_tasks([task], Knows({2}), tmp_path / "o")
    again = Knows({1})
    result = evaluate_tasks([task], again, tmp_path / "o", batch=4)
    assert len(again.asked) == 4 and result.summary[0]["score"] == 0.1 and not (tmp_path / "o.part").exists()
    whole = evaluate_tasks([task], Knows({1}), tmp_path / "whole").summary
    assert whole == result.summary and (tmp_path / "o/rows.jsonl").read_bytes() == (tmp_path / "whole/rows.jsonl").read_bytes()
    assert not evaluate_tasks([task], again, tmp_path / "o").new and len(again.asked) == 4
    with pytest.raises(ValueError, match="is another evaluation"):
        evaluate_tasks([task], Knows({2}), tmp_path / "o")
    evaluate_tasks([task], Knows({2, 3}), tmp_path / "o", overwrite=True)
    assert load_json(tmp_path / "o/summary.json")["summary"][0]["score"] == 0.2 and sorted(p.name for p in tmp_path.iterdir()) == ["o", "own.jsonl", "whole"]


def test_what_fails_before_its_first_answer_leaves_nothing(tmp_path):
    class Fails(Knows):
        def answers(self, *rest):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        evaluate_tasks([Questions(data=write(tmp_path / "own.jsonl", question(1)))], Fails({1}), tmp_path / "o")
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


# ---- compare

def test_two_evaluations_are_compared_row_by_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = Questions(data=write("own.jsonl", *map(question, range(40))))
    for name, right in (("a", range(0, 20)), ("b", range(0, 32)), ("c", range(0, 32))):
        evaluate_tasks([task], Knows(set(right)), name)
    row = compare("a", "b")[0]
    assert (row["rows"], row["a"], row["b"], row["difference"]) == (40, 0.5, 0.8, pytest.approx(0.3)) and row["better"] == "b"
    assert row["low"] > 0.15 and row["high"] < 0.46                     # unpaired it would be 0.1 to 0.5
    assert compare("b", "a")[0]["better"] == "a" and compare("b", "c")[0]["better"] is None
    said = call("results", "compare", "a", "b")
    assert said.exit_code == 0 and "+0.3000" in said.stdout
    assert json.loads(call("results", "compare", "a", "b", "--json").stdout)["rows"][0]["rows"] == 40


def test_what_was_asked_differently_is_counted_and_not_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [question(i) for i in range(6)]
    evaluate_tasks([Questions(data=write("one.jsonl", *rows))], Knows({1}), "a")
    rows[2]["prompt"] = "What is 2 + 2, please? It is"
    evaluate_tasks([Questions(data=write("two.jsonl", *rows[1:], question(9)))], Knows({1}), "b")
    row = compare("a", "b")[0]
    assert (row["rows"], row["only_a"], row["only_b"], row["asked_differently"]) == (4, 1, 1, 1)
    evaluate_tasks([Questions(data=write("three.jsonl", question(11)))], Knows({1}), "c")
    refused(call("results", "compare", "a", "c"), "share no row")
    Path("b/rows.jsonl").write_bytes(Path("b/rows.jsonl").read_bytes()[1:])
    refused(call("results", "compare", "a", "b"), "b is not as it was written", "rows.jsonl")
    refused(call("results", "compare", "a", "nowhere"), "nowhere")


# ---- what is refused

def test_what_cannot_be_is_one_line_and_nothing_is_written(run):
    write("own.jsonl", question(1))
    write("bad.jsonl", question(1), {"id": 2, "prompt": "x"})
    save_run(Path("log"), segmentation="logarithmic")
    out = ("--out", "o")
    ask = lambda *rest: call("evaluate", "run", *rest, *out)
    refused(ask("niah1"), "'niah-1'")
    refused(ask("questions"), "--data is needed")
    refused(ask("questions", "questions", "--data", "own.jsonl"), "twice")
    refused(ask("questions", "--data", "own.jsonl", "--metric", "rouge"), "did you mean 'rouge_l'")
    refused(ask("questions", "--data", "own.jsonl", "--set", "limt=3"), "limt", "did you mean limit")
    refused(ask("questions", "--data", "own.jsonl", "--set", "limit"), "NAME=VALUE")
    refused(ask("questions", "--data", "own.jsonl", "--length", 5), "--length")
    refused(ask("questions", "--data", "own.jsonl", "--set", "skip_bad=3"), "--skip-bad must be True or False")
    refused(ask("questions", "--set", "data=5"), "--data must name a file or folder")
    refused(ask("reading", "--set", "length=abc"), "--length must be an integer")
    refused(ask("reading", "--length", 5, "--length", 6), "--length may be given once only")
    refused(ask("niah-1", "--set", "lengths=700"), "lengths must be one or more")
    refused(ask("questions", "--data", "own.jsonl", "--set", "limit=30"), "row '1'", "the task allows 30")
    refused(ask("questions", "--data", "bad.jsonl"), "bad.jsonl, line 2", "'references' is missing")
    refused(ask("questions", "--data", "none.jsonl"), "none.jsonl", code=1)
    refused(ask("niah-1", "--length", 300), "no prompt of 300 tokens")
    refused(ask("niah-2", "--length", 1000, "--essays", "none"), "none: no such folder", code=1)
    refused(ask("niah-2", "--length", 1000, "--essays", "."), "has none")
    refused(call("evaluate", "nowhere", "niah-1", *out), "nowhere", code=1)
    refused(call("evaluate", "log", "questions", "--data", "own.jsonl", *out), "logarithmic")
    refused(call("evaluate", "run", "questions", "--data", "own.jsonl", "--out", "run"), "something else")
    assert not Path("o").exists() and not Path("o.part").exists()


def test_bad_rows_are_left_out_if_asked_and_counted_and_options_come_from_a_file(run):
    write("bad.jsonl", question(1), {"id": 2, "prompt": "x"})
    Path("e.yaml").write_text("model: run\ntasks: [questions]\ndata: bad.jsonl\nskip-bad: true\nout: o\nnew-tokens: 3\n")
    said = call("evaluate", "--config", "e.yaml")
    assert said.exit_code == 0, said.output
    about = load_json("o/manifest.json")["tasks"]["questions"]
    assert about["rows"] == about["asked"] == 1 and about["bad"] == ["bad.jsonl, line 2: field 'references' is missing"]
    assert "Bad rows left out: 1" in Path("o/report.md").read_text()
    assert "nothing was asked" in call("evaluate", "--config", "e.yaml").stdout


def test_a_prompt_longer_than_the_model_is_refused_and_every_task_is_listed(tmp_path):
    short = Knows({1})
    short.limit = 80
    with pytest.raises(ValueError, match=r"row '1': the prompt has 20 tokens and the answer up to 64; the model allows 80"):
        prepared(make_task("questions", data=write(tmp_path / "own.jsonl", question(1))), short)
    said = call("evaluate", "--list")
    assert said.exit_code == 0 and [line.split()[0] for line in said.stdout.splitlines()] == list(TASKS)
    assert Row(id=3, prompt="", references=[""]).id == "3"
