"""variants, smoke, trace, doctor, the list of benchmarks, the other package's commands: what they print, what they refuse, how they end."""
import csv
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mc
from mc.commands import bench, doctor, smoke, variants
from mc.commands.base import COMMANDS, ELSEWHERE, main
from mc.text import ByteTokenizer

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def assert_ends(result, code, *words):
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("Error: "), result.stderr
    assert all(word in result.stderr for word in words), result.stderr


REFUSED = [                                                                         # arguments, what the line says
    (["variants", "titan-ssc"], "'titan-ssc'", "did you mean titans-ssc"), (["variants", "grm-linear"], "VARIANT must be MEMORY-WAY"),
    (["variants", "linear-none-fenwick"], "did you mean linear-"), (["variants", "--length", "0"], "--length must be", "at least 1", "0"),
    (["variants", "--lenght", "4"], "--lenght", "--length"), (["variants", "--segment-size", "1.5"], "--segment-size must be an integer"),
    (["smoke", "linear-gmr"], "'linear-gmr'", "did you mean linear-grm"), (["smoke", "grm", "--all"], "VARIANT or --all"),
    (["smoke", "grm", "--d-model", "15"], "--d-model must be a multiple of --num-heads; got 15 and 2"), (["smoke", "--steps", "-1"], "--steps must be", "-1"),
    (["smoke", "--learning-rate", "nan"], "--learning-rate must be a finite number"), (["smoke", "--device", "tpu9"], "--device 'tpu9' cannot be used"),
    (["smoke", "--length", "2"], "--length must be", "at least 3"), (["bench", "state_per_bite"], "did you mean state_per_byte"), (["doctor", "now"], "now"),
]


@pytest.mark.parametrize("arguments, words", [(a, w) for a, *w in REFUSED], ids=lambda a: " ".join(a)[:40])
def test_what_is_wrong_is_refused_in_one_line(arguments, words, monkeypatch):
    monkeypatch.setattr(smoke, "trial", lambda *_: pytest.fail("it was tried"))
    result = run(*arguments)
    assert_ends(result, 2, *words)
    assert result.stdout == ""


@pytest.mark.parametrize("command, key, words", [("variants", "lenght: 4", "did you mean length"), ("smoke", "steps: '4'", "steps must be an integer"),
                                                 ("smoke", "stesp: 4", "did you mean steps"), ("trace", "out: pdf", "table, csv, json, html")])
def test_options_from_a_file_are_checked(command, key, words, tmp_path):
    (tmp_path / "o.yaml").write_text(key)
    assert_ends(run(command, *(["run", "text"] if command == "trace" else []), "--config", tmp_path / "o.yaml"), 2, "o.yaml", words)


@pytest.mark.parametrize("old", ELSEWHERE)
def test_the_other_packages_commands_say_where_the_same_is_done(old):
    "Whatever follows on them; and what is named there exists."
    for more in ([], ["--backend", "linear", "--steps", "3"], ["--help"]):
        result = run(old, *more)
        assert_ends(result, 2, f"{old} is a command of the package memory-caching; here it is {ELSEWHERE[old]}")
    assert ELSEWHERE[old].split()[1] in COMMANDS


def test_the_list_of_variants_is_that_of_the_package():
    found = json.loads(run("variants", "--json").stdout)
    assert [v["variant"] for v in found["variants"]] == [*variants.all_variants()] and len(found["variants"]) == 80
    for one in found["variants"]:
        assert one["where"].keys() >= {"memory", "way"} and run("variants", one["variant"]).exit_code == 0
        mc.MCConfig(8, 2, **one["options"])                                        # what it prints can be made
    modules = {name: f"mc.memory.{name}" for name in ("linear", "swla", "dla", "titans")} | {"residual": "mc.read.residual", "soup": "mc.read.soup", "ssc": "mc.read.sparse"}
    for name, module in modules.items():                                           # numbers of equations, as the code itself has them
        assert (variants.MEMORIES | variants.WAYS)[name].where in inspect.getsource(importlib.import_module(module)), name
    assert variants.MEMORIES["gated_delta"].where == variants.WAYS["top_p"].where == variants.OURS
    assert run("variants", "soup", "dla").stdout.count("mc.MCConfig") == 2
    lengths = json.loads(run("variants", "--json", "--length", "37", "--segment-size", "8").stdout)["lengths"]
    assert lengths == {"constant": [8, 8, 8, 8, 5], "logarithmic": [32, 4, 1], "fenwick": [32, 5]}


def test_variants_are_listed_before_torch_is_there():
    code = "import sys; sys.modules['torch'] = None; from mc.commands.base import main; main(['variants', '--all'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.count("\n") == 80, result.stderr


def test_smoke_trains_and_streams_what_is_asked():
    found = json.loads(run("smoke", "linear-grm", "titans-soup-logarithmic", "swla-none", "--json").stdout)
    assert found["ok"] and [v["variant"] for v in found["variants"]] == ["linear-grm", "titans-soup-logarithmic", "swla-none"]
    assert all(v["ok"] and v["loss_after"] < v["loss_before"] and v["seconds"] > 0 for v in found["variants"])
    assert ["streamed" in v for v in found["variants"]] == [True, False, True]
    only = json.loads(run("smoke", "dla", "--steps", "0", "--json").stdout)["variants"][0]
    assert only["loss_before"] == only["loss_after"] and only["variant"] == "dla-grm"


@pytest.mark.slow
def test_every_variant_is_well():
    result = run("smoke", "--all", "--steps", "1", "--length", "12", "--segment-size", "4", "--batch-size", "2")
    assert result.exit_code == 0 and "80 of 80 variants are ok" in result.stdout, result.output


@pytest.mark.parametrize("break_it, said", [
    (lambda patch: patch.setattr(mc.LanguageModel, "forward_with_cache", lambda self, t, cache=None, f=mc.LanguageModel.forward: (f(self, t), None)), "streamed logits differ"),
    (lambda patch: patch.setattr(torch.optim.AdamW, "step", lambda self: [p.data.neg_() for g in self.param_groups for p in g["params"]][:0]), "FAILED"),
    (lambda patch: patch.setattr(mc.MemoryCachingLayer, "_finish", lambda self, read, x: x.detach() * 0), "the gradient of "),
    (lambda patch: patch.setattr(mc.MemoryCachingLayer, "_made", lambda *_: 1 / 0), "ZeroDivisionError"),
])
def test_smoke_finds_what_is_broken_and_goes_on(break_it, said, monkeypatch):
    break_it(monkeypatch)
    result = run("smoke", "linear-grm", "linear-ssc")
    assert_ends(result, 1, "2 of 2 variants failed: linear-grm, linear-ssc")
    assert result.stdout.count(said) == 2 and "0 of 2 variants are ok" in result.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A folder with an untrained model of two caching blocks around one of attention, and its tokenizer."
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    mixers = [mc.MCConfig(16, 2, segment_size=4), mc.AttentionConfig(16, 2), mc.MCConfig(16, 2, segment_size=4)]
    mc.LanguageModel(mc.LMConfig(257, mixers=mixers)).save(folder / "model.safetensors")
    ByteTokenizer().save(folder / "tokenizer.json")
    return folder


TEXT = "to be, or not\n"


def test_trace_gives_the_rows_of_inspect_in_every_form(model, tmp_path):
    network = mc.LanguageModel.load(model / "model.safetensors")
    _, traces = network.inspect(torch.tensor([list(TEXT.encode())]))
    asked = [(i, row) for i in (0, 2) for row in traces[i].rows]
    rows = json.loads(run("trace", model, TEXT, "--json").stdout)["rows"]
    same = lambda mine: [(r["layer"], r["token"], r["head"], r["memory"]) for r in mine] == [(i, r["token"], r["head"], r["memory"]) for i, r in asked]
    assert same(rows) and all(abs(r["gate"] - other["gate"]) < 1e-6 for r, (_, other) in zip(rows, asked))
    assert all(r["text"] == ByteTokenizer().pieces([TEXT.encode()[r["token"]]])[0] for r in rows)
    cached = [r for r in rows if r["memory"] != "online"]
    assert cached and all((r["first"], r["end"]) == traces[r["layer"]].bounds[r["memory"]] for r in cached)
    assert all((r["first"], r["end"]) == (r["token"] // 4 * 4, r["token"] + 1) for r in rows if r["memory"] == "online")
    assert run("trace", model, TEXT, "--out", "csv", "--save", tmp_path / "t.csv").stdout == f"csv: {tmp_path / 't.csv'}, {len(rows)} rows\n"
    with open(tmp_path / "t.csv", newline="") as file:
        assert [(int(r["token"]), float(r["gate"])) for r in csv.DictReader(file)] == [(r["token"], r["gate"]) for r in rows]
    lines = run("trace", model, TEXT, "--layer", 2, "--head", 1).stdout.splitlines()
    assert len(lines) == 1 + len(TEXT) and lines[1].split() == ["0", "t", "2", "online", "1.00"]
    last = [r for r in rows if (r["layer"], r["head"], r["token"]) == (2, 1, len(TEXT) - 1)]
    best = max(last, key=lambda r: r["gate"])
    name = "online" if best["memory"] == "online" else f"{best['first']}-{best['end'] - 1}"
    assert f"  2      {name} {best['gate']:.2f}, " in lines[-1]


def test_trace_writes_a_page_that_needs_nothing_else(model, tmp_path):
    assert run("trace", model, TEXT, "--out", "html", "--save", tmp_path / "t.html").exit_code == 0
    page = (tmp_path / "t.html").read_text()
    assert page.startswith("<!doctype html>") and "AnyModel" in page and "src=\"http" not in page


def test_trace_reads_files_and_standard_input(model, tmp_path):
    (tmp_path / "a.txt").write_text("abc\n")
    tokens = lambda result: json.loads(result.stdout)["tokens"]
    assert tokens(run("trace", model, "--file", tmp_path / "a.txt", "--json")) == [97, 98, 99]
    assert tokens(CliRunner().invoke(main, ["trace", str(model), "--json"], input="abc")) == [97, 98, 99]


@pytest.mark.parametrize("arguments, code, words", [
    (["nowhere", "x"], 1, ["nowhere", "no such file"]), (["{m}", ""], 2, ["TEXT is empty"]), (["{m}", "x", "--out", "htm"], 2, ["--out", "'htm'", "table, csv, json, html"]),
    (["{m}", "x", "--layer", "1"], 2, ["--layer must be one of 0, 2", "got 1"]), (["{m}", "x", "--head", "2"], 2, ["--head must be from 0 to 1", "got 2"]),
    (["{m}", "x", "--out", "html"], 2, ["--save"]), (["{m}", "x", "--out", "html", "--save", "t", "--layer", "0"], 2, ["--layer"]),
    (["{m}", "x", "--file", "a.txt"], 2, ["not both"]), (["{m}", "--file", "gone.txt"], 1, ["gone.txt"]), (["{m}", "--file", "a.jsonl"], 2, ["one text"]),
    (["{m}", "x", "--tokenizer", "gone.json"], 1, ["gone.json"]), (["{m}", "x", "--out", "csv", "--save", "/proc/nowhere/t.csv"], 1, ["/proc/nowhere"]),
    (["{m}", "x", "--device", "tpu9"], 2, ["--device 'tpu9'"]), (["{m}", "x", "--hed", "1"], 2, ["--hed", "--head"]),
])
def test_trace_refuses_and_writes_nothing(arguments, code, words, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_ends(run("trace", *(str(model) if a == "{m}" else a for a in arguments)), code, *words)
    assert [*tmp_path.iterdir()] == []


def test_trace_says_what_a_page_needs(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    for name in [n for n in sys.modules if n.startswith("mc.explorers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(mc.explorers, "routing", raising=False) if "explorers" in vars(mc) else None
    assert_ends(run("trace", model, TEXT, "--out", "html", "--save", tmp_path / "t.html"), 2, "pip install 'memory-caching-companion[explore]'")
    assert [*tmp_path.iterdir()] == []


def test_doctor_knows_every_extra_and_what_is_missing(monkeypatch):
    import tomllib
    from importlib import metadata

    found = json.loads(run("doctor", "--json").stdout)
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [e["extra"] for e in found["extras"]] == [*asked["optional-dependencies"]]
    assert [p["package"] for p in found["required"]["packages"]] == [d.split(">=")[0] for d in asked["dependencies"]]
    assert found["mc"]["version"] == asked["version"] == mc.__version__ and found["torch"]["version"] == torch.__version__
    known = metadata.version

    def gone(name):
        if name in ("anywidget", "papermill"):
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "tokenizers" else known(name)

    monkeypatch.setattr(metadata, "version", gone)
    text = run("doctor").stdout
    assert "extra explore: anywidget is missing: pip install 'memory-caching-companion[explore]'\n" in text
    assert "tokenizers 0.1 is not >=" in text and "extra bench: papermill is missing: pip install" in text
    monkeypatch.setattr(metadata, "version", lambda name: "1.0" if name == "torch" else known(name))
    assert_ends(run("doctor"), 1, "not complete")


@pytest.mark.parametrize("text, of, said", [("#!/bin/sh\nfrom mc.__main__ import run", "ours", "is this program"), ("import memory_caching.cli", "memory-caching", "python -m mc"),
                                            ("\x7fELF", "another", "is another program"), (None, "none", "there is no mc on the path")])
def test_doctor_says_whose_the_command_is(text, of, said, tmp_path, monkeypatch):
    if text:
        (tmp_path / "mc").write_text(text)
        (tmp_path / "mc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CHROMIUM", "")
    found = doctor.look()
    assert found["command"]["of"] == of and found["chromium"] is None
    assert any(said in line for line in doctor.lines_of(found) if line.startswith("command: "))


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "--list"], ["bench", "list"]])
def test_benchmarks_are_listed_wherever_one_stands(arguments, tmp_path, monkeypatch):
    names = {f.stem for f in (ROOT / "nbs/bench").glob("*.yaml")}
    for place, folder in ((ROOT, "nbs/bench"), (tmp_path, str(ROOT / "nbs/bench"))):
        monkeypatch.chdir(place)
        result = run(*arguments)
        *rows, last = result.stdout.splitlines()
        assert result.exit_code == 0 and {row.split()[0] for row in rows} == names and f"{len(names)} benchmarks in {folder};" in last
        assert all("(smoke" in row for row in rows)


def test_folders_of_a_profile_are_those_where_one_stands_when_there_is_no_checkout(tmp_path, monkeypatch):
    given = {"source": "../../_build/austen", "packages": "", "texts": "texts", "steps": 3}
    assert bench.placed(given, "nbs/bench") == given
    (tmp_path / "site/mc/benchmarks").mkdir(parents=True), (tmp_path / "here").mkdir()
    monkeypatch.setattr(mc, "__path__", [str(tmp_path / "site/mc")])
    monkeypatch.chdir(tmp_path / "here")
    assert bench.shipped() == str(tmp_path / "site/mc/benchmarks")
    assert bench.placed(given, bench.shipped()) == given | {"source": "../../../here/_build/austen"}


def test_a_class_of_records_refuses_nonsense_in_one_line():
    from mc.evidence.record_schema import Training
    from mc.evidence.schema import checked

    sound = {"steps": 4, "batch": 2, "learning_rate": 0.01}
    assert Training(**sound) == checked(Training, sound, "it")
    for wrong, said in [({"steps": -1}, "Training needs steps to be an integer of at least 1; got -1"), ({"stesp": 1}, "Training has no stesp; did you mean steps")]:
        with pytest.raises(ValueError, match=said) as caught:
            Training(**sound | wrong)
        assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)
    with pytest.raises(ValueError, match="^Training lacks batch, learning_rate$"):
        Training(steps=1)


def test_the_version_is_that_of_the_checkout_or_of_what_is_installed(tmp_path):
    assert mc.__version__ and not hasattr(mc, "__nothing__")
    code = "import mc; print(mc.__version__)"
    there = tmp_path / "mc"                                                        # a copy beside no pyproject.toml, or beside another's
    there.mkdir()
    (there / "__init__.py").write_text((ROOT / "mc/__init__.py").read_text())
    said = lambda *flags: subprocess.run([sys.executable, *flags, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                                         capture_output=True, text=True).stdout.strip()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "9.9"\n')
    assert said() == __import__("importlib.metadata").metadata.version("memory-caching-companion")
    assert said("-S") == "0+unknown"                                               # no distribution is found
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "memory-caching-companion"\nversion = "9.9"\n')
    assert said() == "9.9"
