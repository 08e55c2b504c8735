"""The experiment about text: what is counted, what is held out, when caches are compared."""
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from mc import figures
from mc.evidence.record_schema import TextRecord
from mc.evidence.records import read_record
from mc.evidence.schema import checked
from mc.evidence.text_report import along, fewer, gate_figure, kind_figure, place_figure
from mc.evidence.text_runs import TextExperiment, compare, gains, least_bits, measure_text, passes, text_records
from mc.evidence.variants import Sizes, model_of
from mc.nn.model import LanguageModel
from mc.tasks.language import KINDS, Language, kinds_of, read_texts, score

ROOT = Path(__file__).parents[1]
HELD_OUT = "The cat met Zuleika. Zuleika's cat met the dog;\nthe dog sat. " * 4


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text("The cat sat on the mat. The dog sat near it.\n" * 60)
    (folder / "b.txt").write_text("A dog met a cat on the mat; the cat sat.\n" * 60)
    (folder / "held.txt").write_text(HELD_OUT)
    return read_texts(folder, "held", 290)


@pytest.fixture(scope="module")
def experiment(texts):
    sizes = Sizes(num_layers=1, d_model=16, num_heads=2, segment_size=8)
    return TextExperiment(Language(16, texts), (16, 32), (0.01,), steps=2, batch=2, search_steps=1, sizes=sizes)


@pytest.fixture(scope="module")
def compared(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, compare(experiment, [2, 3], ["none", "ssc", "attention"], [0, 1], out, "test", always=True)


def test_what_is_held_out_is_neither_learned_nor_spelt(texts):
    assert "zuleika" not in texts.known and "cat" in texts.known
    assert all("uleika" not in piece for piece in texts.tokenizer.pieces(range(texts.tokenizer.vocab_size)))
    assert texts.tokenizer.decode(texts.ids["test"].tolist()) == HELD_OUT
    assert int(texts.sizes[texts.ids["test"]].sum()) == len(HELD_OUT.encode())
    both = [texts.tokenizer.decode(texts.ids[s].tolist()) for s in ("train", "validation")]
    assert len(both[1]) > 0 and sum(map(len, both)) == 60 * (45 + 41)


@pytest.mark.parametrize("length", [8, 16, 40])
def test_kinds_agree_with_a_second_reading(texts, length):
    """Letter by letter: the word that a letter belongs to, and whether its row had it before."""
    import re
    task = Language(length, texts)
    rows, kinds = task.rows(), kinds_of(task)
    ends = [0, *texts.sizes[texts.ids["test"]].cumsum(0).tolist()]   # the text is ASCII: bytes are letters
    words = [(m.start(), m.end(), m.group().lower()) for m in re.finditer("[A-Za-z]+", HELD_OUT)]
    for r in range(len(rows)):
        begin = r * length
        for c in range(length):
            n = begin + c + 1
            inside = [w for w in words if w[0] < ends[n + 1] <= w[1]]
            if not inside or inside[0][0] < ends[begin + 1]:    # no word, or one that the row's first token began
                assert kinds[r, c] == 0
                continue
            (at, _, word), = inside
            before = [w for a, b, w in words if ends[begin] < b <= at and b > ends[begin]]
            assert KINDS[kinds[r, c]] == KINDS[1 + (word in before) + 2 * (word not in texts.known)], (r, c, word)


def test_a_score_is_the_sum_of_its_tokens(texts):
    task = Language(16, texts)
    model = LanguageModel(model_of("none", task.vocab_size, Sizes(1, 16, 2, 8))).double()
    found = score(model, task)
    rows = task.rows()
    with torch.no_grad():
        logs = model(rows[:, :-1]).log_softmax(-1).gather(-1, rows[:, 1:, None])
    by_hand = -logs.sum().item() / math.log(2) / texts.sizes[rows[:, 1:]].sum().item()
    assert abs(found["bits_per_byte"] - by_hand) < 1e-4
    assert len(found["by_place"]) == 16 and len(rows) * 16 == rows[:, 1:].numel()


def test_the_future_of_a_row_changes_nothing_before_it(texts):
    """A place late in the row may be changed: the scores of the places before are the same."""
    model = LanguageModel(model_of("ssc", texts.tokenizer.vocab_size, Sizes(1, 16, 2, 4)))
    changed = texts.ids["test"].clone()
    changed[12] = (changed[12] + 1) % 250
    other = replace(texts, ids=texts.ids | {"test": changed})
    one, two = (Language(16, t).rows()[:1] for t in (texts, other))
    from mc.tasks.language import bits_of
    assert torch.allclose(bits_of(model, one)[0, :11], bits_of(model, two)[0, :11])
    assert not torch.allclose(bits_of(model, one)[0, 11:], bits_of(model, two)[0, 11:])


def test_records_are_complete_and_read_again(compared, experiment, monkeypatch):
    out, records = compared
    assert [(r["variant"], r["seed"]) for r in records] == [(v, s) for s in (0, 1) for v in ("none", "ssc", "attention")]
    monkeypatch.setattr(figures, "NAMES", dict.fromkeys(("ssc", "none", "attention"), ""))
    assert {n: [(r["variant"], r["seed"]) for r in some] for n, some in text_records(out).items()} == {2: [(v, s) for v in figures.NAMES for s in (0, 1)]}
    trials = sorted(p.name for p in (out / "search").glob("*.json"))
    assert trials == [f"{v}-rate0.01-seed1000.json" for v in ("attention", "none", "ssc")]
    trial = read_record(out / "search" / trials[0], TextRecord)
    assert trial["settings"]["split"] == "validation"
    run = experiment.run("none", 0, 0.01)
    before = (out / "steps-2/none-seed0.json").read_bytes()
    assert measure_text(run, out / "steps-2", "again")["command"] == "test"
    assert (out / "steps-2/none-seed0.json").read_bytes() == before
    with pytest.raises(ValueError, match="other settings"):
        measure_text(replace(run, lengths=(16,)), out / "steps-2", "other")


def test_a_score_that_its_parts_do_not_make_is_refused(compared):
    record = json.loads(json.dumps(compared[1][0]))
    record["scores"][0]["by_place"][3]["bits_per_byte"] += 1
    record.pop("sha256", None)
    with pytest.raises(ValueError, match="scores.0"):
        checked(TextRecord, record, "it")


def test_the_gate():
    made = lambda v, s, b: {"variant": v, "seed": s, "scores": [{"length": 16, "bits_per_byte": b}]}
    assert passes([made("none", 0, 2.3), made("attention", 0, 2.279)])
    assert not passes([made("none", 0, 2.3), made("attention", 0, 2.281)])
    assert passes([made("none", 0, 2.3), made("attention", 1, 2.0)]) is None     # not the same seed
    assert gains([made("none", 3, 2.5), made("attention", 3, 2.0), made("none", 4, 2.5)]) == {3: 0.5}


def test_the_gate_stops_or_goes_on(monkeypatch, experiment, tmp_path):
    from mc.evidence import text_runs
    small = replace(experiment, lengths=(16,))
    told = (["none", "ssc", "attention"], [0, 1])
    count = lambda out: {n: len(some) for n, some in text_records(out).items()}
    for name, opens_at, most, expected in (("shut", 99, None, {1: 2, 2: 2}), ("late", 2, None, {1: 2, 2: 6}), ("long", 2, 1, {1: 2, 2: 2}), ("first", 1, 1, {1: 6})):
        monkeypatch.setattr(text_runs, "passes", lambda records: records[0]["settings"]["training"]["steps"] >= opens_at)
        text_runs.compare(small, [1, 2], *told, tmp_path / name, "test", most=most)
        assert count(tmp_path / name) == expected, name
    monkeypatch.setattr(text_runs, "passes", lambda records: len(records) == 2 and records[0]["settings"]["training"]["steps"] == 1)
    text_runs.compare(small, [1, 2, 3], *told, tmp_path / "lucky", "test")
    assert count(tmp_path / "lucky") == {1: 6, 2: 2, 3: 2}                        # one seed had passed, both together did not


def test_half_a_pair_of_an_interrupted_run_is_left_out(compared, tmp_path):
    place = tmp_path / "steps-2"
    place.mkdir()
    for name in ("none-seed0", "ssc-seed0", "attention-seed1", "attention-seed0"):
        assert text_records(tmp_path) == {}
        (place / f"{name}.json").write_bytes((compared[0] / f"steps-2/{name}.json").read_bytes())
    assert [len(some) for some in text_records(tmp_path).values()] == [4]


def test_figures_say_what_they_show(compared):
    records = compared[1]
    assert set(fewer(records)) == {"ssc", "attention"} and set(along(records)) == {"ssc", "attention"}
    for fig in (gate_figure({2: records}), place_figure(records), place_figure(records, 32), kind_figure(records)):
        assert "attention" in fig.layout.meta["alt"]
    bits = lambda v, s: next(r["scores"][0]["bits_per_byte"] for r in records if (r["variant"], r["seed"]) == (v, s))
    by_hand = sum(bits("none", s) - bits("ssc", s) for s in (0, 1)) / 2
    assert abs(fewer(records)["ssc"].mean - by_hand) < 1e-9


def test_the_lowest_of_equal_rates():
    trial = lambda rate, b: {"settings": {"training": {"learning_rate": rate}}, "scores": [{"bits_per_byte": b}]}
    assert least_bits([trial(0.01, 2.0), trial(0.003, 2.0), trial(0.005, 1.9)]) == 0.005
    assert least_bits([trial(0.01, 2.0), trial(0.003, 2.0)]) == 0.003


@pytest.mark.parametrize("change, said", [({"held_out": "nobody"}, "held_out"), ({"folder": "nowhere"}, "source"), ({"vocab_size": 10}, "vocab_size")])
def test_texts_that_cannot_be(change, said):
    given = {"folder": ROOT / "nbs/bench/texts", "held_out": "persuasion", "vocab_size": 300} | change
    with pytest.raises(ValueError, match=said):
        read_texts(**given)


def test_rows_that_are_longer_than_the_text(texts):
    with pytest.raises(ValueError, match="length must be at most"):
        Language(10**6, texts)


def test_the_largest_profile_is_complete():
    """On the meta device, where nothing is computed: its model can be made, and has the size that the page names."""
    profile = yaml.safe_load((ROOT / "nbs/bench/language.yaml").read_text())["gpu"]
    sizes = Sizes(*(profile[n] for n in ("num_layers", "d_model", "num_heads", "segment_size")))
    with torch.device("meta"):
        for variant in profile["variants"]:
            model = LanguageModel(model_of(variant, profile["vocab_size"], sizes))
            assert 1e8 < sum(p.numel() for p in model.parameters()) < 1e9
