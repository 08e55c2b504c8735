"""Cloze retrieval and LongBench: prompts are the official ones, bad data is named, and every task runs from a wheel."""
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mc.tasks.cloze import SETS, Cloze
from mc.tasks.longbench import DATASETS, NAMES, PROMPTS, LongBench
from mc.tasks.questions import TASKS, Answer, evaluate, make_task, prepared
from mc.text import ByteTokenizer

ROOT = Path(__file__).resolve().parents[1]
OFFICIAL = json.loads(Path(__file__).with_name("official_prompts.json").read_text())["prompts"]
BYTES = ByteTokenizer()


class Told:
    "Says, for each prompt, what it was told."

    tokenizer, limit = BYTES, None

    def __init__(self, say=" x"):
        self.say = say

    def answers(self, prompts, new_tokens, stop=(), least=0):
        return [self.say] * len(prompts)


def file_with(folder, *rows, name="some.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines_of(task, model):
    return [line for some in evaluate(task, model, prepared(task, model)[0]) for line in some]


# ---- cloze

@pytest.mark.parametrize("name", SETS)
def test_cloze_prompts_are_the_official_ones(name, tmp_path):
    some = [row for row in OFFICIAL if row[0] == name]
    assert len(some) > 8 and any(row[3] is None for row in some) == (name not in ("cloze-drop", "cloze-triviaqa"))
    for _, length, document, prompt in some:
        task = Cloze(name=name, context_length=length, data=file_with(tmp_path, document))
        rows = task.rows(BYTES)
        assert len(rows) + sum(rows.dropped.values()) == 1
        assert [task.prompt(row, BYTES) for row in rows] == ([] if prompt is None else [prompt]), document


def test_cloze_keeps_the_end_of_a_long_prompt(tmp_path):
    data = file_with(tmp_path, {"context": "c" * 3000, "question": "q is", "answers": ["a"]})
    prompt = lambda **given: Cloze(name="cloze-drop", data=data, **given)
    for task, most in ((prompt(), 2000), (prompt(sequence_length=100), 52), (prompt(context_length=3100), 3006)):
        found = prepared(task, Told())[0][0]
        assert found.tokens == most and found.prompt.endswith("c. q is")
    assert len(prepared(prompt(cut=False, sequence_length=9000), Told())[0][0].prompt) == 3006


def test_cloze_scores_and_says_whether_the_prompt_held_the_answer(tmp_path):
    rows = [{"id": n, "context": context, "question": "it is", "answers": ["Moon", "sun"]}
            for n, context in enumerate(("the MOON is far", "x" * 300 + " moon"))]
    task = Cloze(name="cloze-drop", data=file_with(tmp_path, *rows), context_length=150)
    lines = sorted(lines_of(task, Told(" the Sun")), key=lambda line: line["number"])
    assert [line["score"] for line in lines] == [1, 1] and [line["answer_in_prompt"] for line in lines] == [True, False]
    assert task.details(lines) == {"answer_in_prompt": 0.5} and lines[0]["references"] == ["Moon", "sun"]


def test_cloze_counts_what_it_leaves_out(tmp_path):
    rows = [{"text": "k is v", "key": key, "value": value} for key, value in (("key", "val"), ("k", "val"), ("key", ""))]
    data = file_with(tmp_path, *rows)
    found = Cloze(name="cloze-fda", data=data).rows(BYTES)
    assert [row.id for row in found] == ["0"] and list(found.dropped.values()) == [2]
    assert len(Cloze(name="cloze-fda", data=data, cut=False).rows(BYTES)) == 3
    with pytest.raises(ValueError, match="has no rows: 1 with a key or answer of one character or none"):
        prepared(Cloze(name="cloze-fda", data=file_with(tmp_path, rows[1])), Told())


@pytest.mark.parametrize(("row", "message"), [
    ({"context": "c", "question": "q"}, "line 1: field 'answers' is missing"),
    ({"context": "c", "question": " ", "answers": ["a"]}, "line 1: field 'question' must not be blank"),
    ({"context": "c", "question": "q", "answers": []}, "line 1: field 'answers'"),
    ({"context": "c", "question": "q", "answers": "a"}, "line 1: field 'answers' must be a list"),
    ({"context": "c", "question": "q", "answers": ["a"], "tok_pos": -1}, "line 1: field 'tok_pos'")])
def test_bad_documents_are_named(row, message, tmp_path):
    data = file_with(tmp_path, row)
    with pytest.raises(ValueError, match=message):
        Cloze(name="cloze-nq", data=data).rows(BYTES)
    good = {"context": "c", "question": "q", "answers": ["aa"]}
    found = Cloze(name="cloze-nq", data=file_with(tmp_path, row, good), skip_bad=True).rows(BYTES)
    assert len(found) == 1 and len(found.bad) == 1


@pytest.mark.parametrize(("options", "message"), [
    (dict(name="cloze-squat"), "did you mean 'cloze-squad'"), (dict(context_length=50), "context_length must be"),
    (dict(sequence_length=48), "sequence_length must be"), (dict(cut=1), "cut must be True or False")])
def test_bad_cloze_options(options, message):
    with pytest.raises(ValueError, match=message):
        Cloze(**{"name": "cloze-squad", **options})


# ---- LongBench

@pytest.mark.parametrize("name", DATASETS)
def test_longbench_fills_and_cuts_as_the_official_code(name, tmp_path):
    template = "Do.\n{context}\n{input}{{}} " + name
    (tmp_path / "dataset2prompt.json").write_text(json.dumps({name: template}))
    (tmp_path / "dataset2maxlen.json").write_text(json.dumps({name: 17}))
    row = {"_id": "q", "input": "{é}?", "context": "word {0} " * 40, "answers": ["x"], "length": 3, "dataset": name,
           "language": "en", "all_classes": ["x"]}
    file_with(tmp_path, row, name=f"{name}.jsonl")
    given = dict(prompts=tmp_path / "dataset2prompt.json", limits=tmp_path / "dataset2maxlen.json", data=tmp_path)
    for most in (2, 81, 3500):
        task = LongBench(name=f"longbench-{name}", max_length=most, **given)
        prompt = template.format(**row)
        if len(prompt.encode()) > most:
            ids = list(prompt.encode())
            prompt = BYTES.decode(ids[: int(most / 2)]) + BYTES.decode(ids[-int(most / 2):])
        asked, = prepared(task, Told())[0]
        assert asked.prompt == prompt and asked.row.id == "q" and task.new_tokens == 17


def test_our_own_prompts_use_what_a_row_has():
    assert set(PROMPTS) == set(DATASETS) and all("{context}" in prompt for prompt in PROMPTS.values())
    without = {name for name, prompt in PROMPTS.items() if "{input}" not in prompt}
    assert without == {"gov_report", "multi_news", "lcc"}
    assert all(PROMPTS[name].endswith("\n") for name in ("lcc", "repobench-p"))
    assert "{context}{input}" in PROMPTS["repobench-p"]


def test_longbench_cuts_answers_to_their_first_line():
    said = "\n\nCity \nType: Date"
    task = LongBench(name="longbench-trec")
    lines = lines_of(task, Told(said))
    assert {line["prediction"] for line in lines} == {"City "} and {line["generated"] for line in lines} == {said}
    assert sorted(line["score"] for line in lines) == [0, 1] and "City" in lines[0]["classes"]
    assert LongBench(name="longbench-hotpotqa").post(said) == said
    samsum = LongBench(name="longbench-samsum")
    assert (samsum.stop, samsum.least, samsum.first_line) == (("\n",), 1, True)
    assert {n for n in DATASETS if DATASETS[n].first_line} == {"trec", "triviaqa", "samsum"}


def test_longbench_refuses_what_it_cannot_use(tmp_path):
    row = {"_id": 1, "input": "", "context": "", "answers": ["City"]}
    for content, message in (({**row, "dataset": "qasper"}, "row '1': it is of qasper, not of trec"),
                             (row, "row '1': field 'all_classes' is missing"),
                             ({**row, "answers": "City"}, "line 1: field 'answers' must be a list of texts"),
                             ({k: row[k] for k in ("input", "context", "answers")}, "field '_id' is missing")):
        with pytest.raises(ValueError, match=message):
            LongBench(name="longbench-trec", data=file_with(tmp_path, content)).rows(BYTES)
    with pytest.raises(ValueError, match="did you mean 'longbench-musique'"):
        LongBench(name="longbench-music")
    with pytest.raises(ValueError, match="max_length"):
        LongBench(name="longbench-trec", max_length=1)
    with pytest.raises(FileNotFoundError):
        LongBench(name="longbench-trec", prompts=tmp_path / "none.json")
    limits = tmp_path / "limits.json"
    for content in ('{"trec": "64"}', '{"trec": true}', '{"trec": -1}', "{}"):
        limits.write_text(content)
        with pytest.raises(ValueError, match="limits|new_tokens"):
            LongBench(name="longbench-trec", limits=limits)


def test_no_answers_score_0(tmp_path):
    row = {"_id": 1, "input": "", "context": "", "answers": [], "all_classes": ["City"]}
    for name in NAMES:
        line, = lines_of(LongBench(name=name, data=file_with(tmp_path, row)), Told("City"))
        assert line["score"] == 0


# ---- all of them

TEXT_TASKS = [*SETS, *NAMES]


@pytest.mark.parametrize("name", TEXT_TASKS)
def test_a_record_says_what_was_followed(name):
    record = make_task(name).record()
    assert record["protocol"] and record["data_set"] and record["decoding"] == "greedy"
    assert "the package's own few rows, not the data set" in record["departures"]
    assert "the package's own few rows, not the data set" not in make_task(name, data=ROOT).record()["departures"]
    json.dumps(record)


def test_the_registry_has_them():
    assert set(TEXT_TASKS) <= set(TASKS) and Answer("a", "a", 1.0).weight == 1
    assert not [name for name in TASKS if name.startswith(("cloze-", "longbench-")) and name not in TEXT_TASKS]


RUN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import mc
from mc.tasks.questions import evaluate, make_task, prepared
from mc.text import ByteTokenizer
assert Path(mc.__file__).is_relative_to(sys.argv[1])
class Parrot:
    tokenizer, limit = ByteTokenizer(), None
    def answers(self, prompts, new_tokens, stop=(), least=0):
        return [prompt[-40:] for prompt in prompts]
found = {}
for name in sys.argv[2:]:
    task, model = make_task(name), Parrot()
    found[name] = sum(len(some) for some in evaluate(task, model, prepared(task, model)[0]))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_task_runs_on_its_sample_rows_from_a_wheel(tmp_path):
    source, place = tmp_path / "source", tmp_path / "place"
    shutil.copytree(ROOT / "mc", source / "mc", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    wheel, = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(place)
    assert (place / "mc/tasks/samples/LICENSES.txt").exists()
    run = subprocess.run([sys.executable, "-I", "-c", RUN, place, *TEXT_TASKS], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert set(found) == set(TEXT_TASKS) and min(found.values()) >= 2
