"""`mc results`: every kind of damage is one line that names the file; sound records are none; all runs are in the tables."""
import json
import shutil
import subprocess
import textwrap
from dataclasses import replace
from pathlib import Path, PurePosixPath

import nbformat
import pytest
from typer.testing import CliRunner

from mc.commands.base import main
from mc.evidence.measured import measure
from mc.evidence.record_files import KINDS, read_all
from mc.evidence.record_schema import Training
from mc.evidence.runs import Run
from mc.evidence.typed import check_typed, typed
from mc.evidence.variants import model_of
from mc.evidence.verify import check_seeds, verify
from mc.storage import load_json, save_json
from mc.tasks.needles import Needles

ROOT = Path(__file__).resolve().parents[1]
TASK = Needles(16, 16, 2)
COMMAND = "mc bench needle --profile cpu"
TRAINED, READ = "needle/cpu/ssc-seed0.json", "after/cpu/random-seed0.json"
WEIGHTS = "needle/cpu/weights/ssc-seed0.safetensors"


def mc(*arguments):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "Two trainings, a reading of the first, a record of speed, and a notebook."
    folder = tmp_path_factory.mktemp("whole")
    model = model_of("ssc", 16, segment_size=4)
    run = Run("ssc", 0, TASK, model, Training(steps=2, batch=2, learning_rate=0.01), (TASK,), 8)
    for one in (run, replace(run, seed=1)):
        measure(one, folder / "needle/cpu", COMMAND)
    reading = replace(run, variant="random", training=None, start="needle/ssc-seed0", router="random")
    measure(reading, folder / "after/cpu", COMMAND.replace("needle", "after"))
    (folder / "speed/cpu").mkdir(parents=True)
    shutil.copy(ROOT / "results/speed/cpu/ssc.json", folder / "speed/cpu")
    (folder / "needle/cpu.ipynb").write_text(json.dumps({"cells": [{"outputs": [{"output_type": "stream"}]}]}))
    for path in folder.rglob("*.json"):                          # this tree may have changes
        change(path.relative_to(folder), lambda r: r.update(commit=r["commit"].rstrip("+")))(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "results")
    return tmp_path / "results"


def change(path, how):
    "What changes the content of a record and seals it again."
    def damage(folder):
        content = load_json(folder / path)
        how(content)
        save_json(folder / path, content)
    return damage


def edit(path, old, new):
    def damage(folder):
        text = (folder / path).read_bytes()
        assert old in text
        (folder / path).write_bytes(text.replace(old, new, 1))
    return damage


def put(key, value):
    *way, last = key.split(".")

    def how(content):
        for name in way:
            content = content[int(name) if name.isdigit() else name]
        content[last] = value
    return how


def move(old, new, keep=False):
    return lambda folder: (shutil.copy if keep else shutil.move)(folder / old, folder / new)


def another_run(content):
    content.update(variant="again")


DAMAGE = {
    "cut": (lambda f: (f / TRAINED).write_bytes((f / TRAINED).read_bytes()[:500]), TRAINED, "not a complete JSON file"),
    "empty": (lambda f: (f / TRAINED).write_bytes(b""), TRAINED, "not a complete JSON file"),
    "a digit": (edit(TRAINED, b'"parameters": ', b'"parameters": 1'), TRAINED, "checksum does not fit"),
    "no checksum": (lambda f: (f / TRAINED).write_text(json.dumps(load_json(f / TRAINED))), TRAINED, "has no checksum"),
    "a list": (lambda f: (f / TRAINED).write_text("[1]"), TRAINED, "must hold a JSON object"),
    "no kind": (lambda f: save_json(f / "needle/cpu/what.json", {"a": 1}), "needle/cpu/what.json", "a record of a known kind"),
    "a key fewer": (change(TRAINED, lambda r: r.pop("device")), TRAINED, "lacks device"),
    "a key more": (change(TRAINED, put("devise", "x")), TRAINED, "has no devise; did you mean device"),
    "out of range": (change(TRAINED, put("scores.0.right", 1.5)), TRAINED, "needs scores.0.right to be"),
    "parts": (change(TRAINED, put("scores.0.routing.looked_at", 0.123)), TRAINED, "a score that its parts do not make"),
    "speed": (change("speed/cpu/ssc.json", put("target", 0)), "speed/cpu/ssc.json", "expected a SpeedRecord"),
    "renamed": (move(TRAINED, "needle/cpu/ssc-seed7.json"), "needle/cpu/ssc-seed7.json", "expected ssc-seed0.json"),
    "renamed speed": (move("speed/cpu/ssc.json", "speed/cpu/fast.json"), "speed/cpu/fast.json", "expected ssc.json"),
    "no command": (change(TRAINED, put("command", " ")), TRAINED, "command is empty"),
    "another command": (change(TRAINED, put("command", "mc bench text --profile cpu")), TRAINED, f"expected '{COMMAND}'"),
    "no commit": (change(TRAINED, put("commit", "none")), TRAINED, "no commit"),
    "no time": (change(TRAINED, put("time", "yesterday")), TRAINED, "time is 'yesterday'"),
    "another hash": (change(READ, put("start_sha256", "0" * 64)), READ, "start_sha256 is 000000000000…"),
    "other weights": (move(WEIGHTS.replace("seed0", "seed1"), WEIGHTS, True), READ, "start_sha256 is"),
    "hash of nothing": (change(READ, put("start_sha256", None)), READ, "start_sha256 None; expected both or none"),
    "no such run": (change(READ, put("settings.start", "needle/grm-seed0")), READ, "starts from needle/grm-seed0, which is not recorded"),
    "another test": (change(TRAINED, put("scores.0.test_hash", "f" * 64)), TRAINED, "test_hash at 16 tokens"),
    "damaged weights": (edit(WEIGHTS, b"weight", b"wEight"), WEIGHTS, "a model that can be loaded"),
    "another model": (change(TRAINED, put("parameters", 5)), WEIGHTS, "expected 5, as needle/cpu/ssc-seed0.json says"),
    "failed notebook": (lambda f: (f / "needle/cpu.ipynb").write_text('{"cells": [{"outputs": [{"output_type": "error"}]}]}'), "needle/cpu.ipynb", "cell 1 failed"),
    "no notebook": (lambda f: (f / "needle/cpu.ipynb").write_text("[]"), "needle/cpu.ipynb", "an executed notebook"),
}


def test_whole_records_have_no_fault(folder):
    found = verify(folder)
    assert not found.faults and not found.incomplete and (found.records, found.others) == (4, 3)
    assert mc("results", "verify", folder, "--book", folder / "none")[0] == 0


@pytest.mark.parametrize("what", DAMAGE)
def test_each_damage_is_a_line_that_names_the_file(what, folder):
    damage, file, said = DAMAGE[what]
    damage(folder)
    lines = [str(fault) for fault in verify(folder).faults]
    assert any(line.startswith(f"{file}: ") and said in line for line in lines), lines
    assert not any("\n" in line or str(folder) in line for line in lines)


def test_weights_that_are_not_there_are_no_fault_but_two_hashes_of_them_are(folder):
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    assert not verify(folder).faults
    move(READ, "after/cpu/uniform-seed0.json", True)(folder)
    change("after/cpu/uniform-seed0.json", lambda r: r.update(variant="uniform", start_sha256="0" * 64, settings=r["settings"] | {"router": "fading"}))(folder)
    (fault,) = verify(folder).faults
    assert fault.file == "after/cpu/uniform-seed0.json" and f"as {READ} has it" in fault.expected


def test_one_run_under_two_names(folder):
    move(TRAINED, "needle/cpu/again-seed0.json", True)(folder)
    change("needle/cpu/again-seed0.json", another_run)(folder)
    assert [f.what for f in verify(folder).faults if "same run" in f.what] == ["is the same run as needle/cpu/again-seed0.json"]


def test_commits_are_looked_up_where_there_is_a_history(folder, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parents[1]))
    assert not verify(folder).faults
    git = lambda *a: subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *a], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "one")
    faults = verify(folder).faults
    assert len(faults) == 4 and all("is not known to git" in f.what for f in faults)
    here = git("rev-parse", "--short=12", "HEAD")
    for path in list(folder.rglob("*.json")):
        change(path.relative_to(folder), put("commit", here))(folder)
    assert not verify(folder).faults
    change(TRAINED, put("commit", here + "+"))(folder)
    found = verify(folder)
    assert not found.faults and [f.file for f in found.incomplete] == [TRAINED]


def test_seeds_are_those_of_the_profile(folder):
    book = folder.parent / "nbs"
    (book / "bench").mkdir(parents=True)
    (book / "bench/needle.yaml").write_text("cpu: {seeds: [0, 1, 2], variants: [ssc, grm]}\nsmoke: {seeds: [0], variants: [ssc]}\n")
    said = [str(f) for f in verify(folder, book).incomplete]
    assert said == ["needle/cpu/grm: has seeds none; expected 0, 1, 2, as needle.yaml names them",
                    "needle/cpu/ssc: has seeds 0, 1; expected 0, 1, 2, as needle.yaml names them"]
    code, out, _ = mc("results", "verify", folder, "--book", book)
    assert code == 0 and "0 faults, 2 not complete" in out
    assert mc("results", "verify", folder, "--book", book, "--complete")[0] == 1
    (book / "bench/other.yaml").write_text("cpu: {seeds: [0]}\n")                        # nothing of it is recorded
    assert "other/cpu/*: has seeds none; expected 0, as other.yaml names them" in map(str, verify(folder, book).incomplete)
    (book / "bench/other.yaml").unlink()
    (book / "bench/needle.yaml").write_text("cpu: {seeds: [0], variants: [ssc]}\n")
    assert [f.what for f in verify(folder, book).incomplete] == ["has seeds 0, 1"]      # one too many
    (book / "bench/needle.yaml").write_text("cpu: {seeds: [0, 1], variants: [ssc]}\n")
    assert mc("results", "verify", folder, "--book", book, "--complete")[0] == 0


def test_the_runs_that_a_notebook_declares_are_the_wanted_ones(folder):
    bench = folder.parent / "nbs/bench"
    bench.mkdir(parents=True)
    (bench / "needle.yaml").write_text("cpu: {seeds: [0, 1]}\n")
    declares = """
        from mc.evidence.experiments import Experiment
        from mc.evidence.variants import Sizes
        from mc.tasks.needles import Needles

        task, variants = Needles(16, 16, 2), []
        experiment = Experiment(task, (task,), (0.01,), 2, 2, 2, Sizes(1, 16, 2, 4))
        runs = lambda rates: [experiment.run(v, seed, 0.01) for v in ("ssc", "grm") for seed in seeds if (v, seed) != ("ssc", 1)]
    """
    cell = lambda source, tag: nbformat.v4.new_code_cell(textwrap.dedent(source), metadata={"tags": [tag]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell("seeds = [0]", "parameters"), cell(declares, "runs")]), bench / "needle.ipynb")
    assert [str(f) for f in verify(folder, bench.parent).incomplete] == ["needle/cpu/grm: has seeds none; expected 0, 1, as needle.yaml names them",
                                                                         "needle/cpu/ssc: has seeds 0, 1; expected 0, as needle.yaml names them"]


def test_of_a_ladder_a_pair_is_wanted_until_the_gate_opens(folder):
    bench = folder.parent / "nbs/bench"
    bench.mkdir(parents=True)
    (bench / "text.yaml").write_text("cpu: {seeds: [0, 1], variants: [none, grm, attention], steps: [5, 20, 80], compare_up_to: 5, always: false}\n")
    kind = next(r for r in read_all(folder)[0] if r.run)
    def record(steps, variant, seed, bits):
        content = {"variant": variant, "seed": seed, "scores": [{"length": 8, "bits_per_byte": bits}]}
        return kind._replace(path=PurePosixPath(f"text/cpu/steps-{steps}/{variant}-seed{seed}.json"), content=content)
    lacks = lambda *records: [str(f).removesuffix(", as text.yaml names them") for f in check_seeds(bench.parent, list(records))]
    none = lambda steps, *variants: [f"text/cpu/steps-{steps}/{v}: has seeds none; expected 0" for v in variants]
    assert lacks() == none(5, "attention", "none") + none(20, "attention", "none") + none(80, "attention", "none")
    first = [record(5, "none", 0, 2.0), record(5, "attention", 0, 1.9)]                         # opens for the first seed, then not for both
    whole = first + [record(5, v, 1, 2.0) for v in ("none", "attention")] + [record(5, "grm", seed, 2.0) for seed in (0, 1)]
    assert lacks(*first) == [f"text/cpu/steps-5/{v}: has seeds {h}; expected 0, 1" for v, h in (("attention", "0"), ("grm", "none"), ("none", "0"))]
    assert lacks(*whole) == []                                                                  # .05 in the mean
    whole[3] = record(5, "attention", 1, 2.09)
    assert lacks(*whole) == none(20, "attention", "none") + none(80, "attention", "none")
    assert lacks(*whole, record(20, "none", 0, 2.0), record(20, "attention", 0, 1.9)) == []


def test_exit_codes_and_json(folder):
    (folder / TRAINED).write_text("{")
    code, out, _ = mc("results", "verify", folder, "--book", "none", "--json")
    found = json.loads(out)
    assert code == 1 and found["records"] == 3 and {f["file"] for f in found["faults"]} == {TRAINED, READ}
    code, out, _ = mc("results", "report", folder)
    assert code == 0 and "1 record cannot be read: mc results verify" in out
    (folder / "empty").mkdir()
    for arguments in (["verify", "nowhere"], ["report", "nowhere"], ["verify", folder / "empty"], ["verify", folder, "--jsn"]):
        code, out, err = mc("results", *arguments)
        assert code == 2 and not out and err.count("\n") == 1, err


def test_report_has_a_row_for_each_variant(folder):
    code, out, _ = mc("results", "report", folder, "--json")
    found = json.loads(out)
    rows = {row["experiment"] + "/" + row["variant"]: row for row in found["rows"]}
    assert code == 0 and list(rows) == ["after/cpu/random", "needle/cpu/ssc"] and found["records"] == 4
    records = [load_json(folder / f"needle/cpu/ssc-seed{seed}.json") for seed in (0, 1)]
    score = rows["needle/cpu/ssc"]["scores"]["2 pairs in 16"]
    assert rows["needle/cpu/ssc"]["seeds"] == [0, 1] and rows["needle/cpu/ssc"]["bytes"] == records[0]["scores"][0]["state_bytes"]
    assert score["mean"] == pytest.approx(sum(r["scores"][0]["right"] for r in records) / 2) and 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
    assert "low" not in rows["after/cpu/random"]["scores"]["2 pairs in 16"]             # one seed has no interval
    code, text, _ = mc("results", "report", folder)
    assert code == 0 and "0-1" in text and text.count("\n\n") == 2 and f"4 records, {found['cpu_hours']:.1f} CPU hours" in text


# ---- this repository

def test_the_records_of_this_repository():
    found, (faults, _) = verify(ROOT / "results", ROOT / "nbs"), check_typed(ROOT / "nbs")
    assert not found.faults, "\n".join(map(str, found.faults))
    assert not faults, "a measured number belongs in a cell; others in nbs/typed_numbers.yaml:\n" + "\n".join(map(str, faults))


def test_every_kind_is_told_from_the_others():
    for key, kind in KINDS.items():
        settings = kind.model_fields.get("settings")
        inner = getattr(settings.annotation, "model_fields", {}) if settings else {}
        fields = {*kind.model_fields, *(f"settings.{name}" for name in inner)}
        assert [k for k in KINDS if k in fields][0] == key
    records, _, _ = read_all(ROOT / "results")
    assert {r.kind for r in records} <= set(KINDS.values()) and len(records) > 20


@pytest.mark.parametrize("text, found", {
    "It answers .97 of them.": [".97"], "1.4 times": ["1.4"], "(0.93 to 0.95)": ["0.93", "0.95"], "**.5**": [".5"], "| .25 |": [".25"],
    "Sec. 4.3, Eq. 3.1 and 3.2, Tables 1.2": [], "`x = 0.5`": [], "$0.5\\,x$ and [a](b0.5.md)": [], "$$\n0.5\n$$": [], "```python\n0.5\n```": [],
    "```{code-cell} ipython3\n0.5\n```\n.6": [".6"], "```{note}\n.7\n```": [".7"], ":::{dropdown} A\n```{math}\n0.1\n```\n.8\n:::\n.9": [".8", ".9"],
    "````{note}\n```{code-cell}\n.1\n```\n.2\n````": [".2"], "<svg x='0.5'><text>0.6</text></svg>": [], "version 3.11.7 and 1.2.3": [], "---\na: 0.5\n---\n.1": [".1"],
}.items())
def test_what_counts_as_typed(text, found):
    assert [digits for _, digits in typed(text)] == found


def test_a_typed_number_is_a_fault_with_its_line(folder):
    book = folder.parent / "nbs"
    (book / "see").mkdir(parents=True)
    (book / "see/a.md").write_text("# A\n\nIt is .97, not 00.0.\n")
    (book / "typed_numbers.yaml").write_text("see/a.md: {'the paper, Table 5': '00.0 1.1'}\n")
    code, out, _ = mc("results", "verify", folder, "--book", book)
    assert code == 1 and "see/a.md:3: .97 is typed; expected a cell" in out and "00.0 is typed" not in out and "see/a.md has no 1.1" in out
    (book / "typed_numbers.yaml").write_text("see/a.md: {'the paper': 0.97}\n")         # a number, which would lose its zeros
    assert mc("results", "verify", folder, "--book", book)[0] == 2
