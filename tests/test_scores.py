"""Scores of answers: each equals the one that the benchmark's own code gave, and bad input is named."""
import inspect
import json
import math
from pathlib import Path

import pytest

from mc import scores
from mc.evidence import bootstrap
from mc.evidence.bootstrap import interval
from mc.scores import METRICS, bits_per_byte, perplexity

OFFICIAL = json.loads(Path(__file__).with_name("official_scores.json").read_text())
NAMES = sorted({pair[0] for pair in OFFICIAL["pairs"]})


@pytest.mark.parametrize("name", NAMES)
def test_official_scores(name):
    for metric, prediction, references, classes, official in OFFICIAL["pairs"]:
        if metric == name:
            ours = METRICS[name](prediction, references, classes)
            assert ours == official, f"{name}({prediction!r}, {references!r}, {classes!r}): {ours}, official {official}"


def test_every_metric_but_the_textbooks_has_official_pairs():
    assert set(METRICS) - {"rouge_l"} == set(NAMES)


@pytest.mark.parametrize("name", METRICS)
def test_one_signature(name):
    metric = METRICS[name]
    assert metric is getattr(scores, name) and metric.__doc__
    assert list(inspect.signature(metric).parameters) == ["prediction", "references", "all_classes"]
    assert type(metric("City", ("City",), ("City", "State"))) is float


@pytest.mark.parametrize(("prediction", "reference", "score"), [
    ("a b c d", "a c d e", 6 / 8), ("a b", "b a", 1 / 2), ("", "", 0), ("A", "a", 0), ("a.", "a", 0), ("x", "", 0)])
def test_textbook_rouge(prediction, reference, score):
    assert scores.rouge_l(prediction, [reference]) == score
    assert scores.rouge_l(prediction, ["other", reference]) == score


def test_rouge_has_no_limit_on_sentences():
    one, two = (" ".join(["same", *(f"{side}{i}" for i in range(1200))]) for side in "ab")
    assert scores.longbench_rouge(one, [two]) == pytest.approx(1 / 1201, rel=1e-4)


def test_without_references():
    for name in ("squad_em_v1", "squad_f1_v1", "contains", "ruler_match", "rouge_l"):
        with pytest.raises(ValueError, match="references must be one text at least; got \\[\\]"):
            METRICS[name]("text", [])
    for name in ("longbench_f1", "longbench_rouge", "longbench_classification", "longbench_code_sim"):
        assert METRICS[name]("text", []) == 0
    assert scores.squad_em("the", []) == scores.squad_f1("the", []) == 1


def test_unknown_metric_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'squad_f1'"):
        METRICS["squad-f1"]
    assert "squad-f1" not in METRICS and METRICS.get("squad-f1") is None


@pytest.mark.parametrize(("bad", "message"), [
    (dict(prediction=None), "prediction must be a str"), (dict(references="moon"), "references must be a list of texts"),
    (dict(references=None), "references must be a list"), (dict(references=["a", 3]), "each of references must be a text; got 3"),
    (dict(all_classes="City"), "all_classes must be a list of texts"), (dict(all_classes=None), "all_classes must be the names")])
def test_bad_input(bad, message):
    given = {"prediction": "City", "references": ["City"], "all_classes": ["City"], **bad}
    with pytest.raises(ValueError, match=message):
        scores.longbench_classification(**given)


def test_interval_is_the_bootstraps():
    values = [1.0] * 30 + [0.0] * 10
    found = interval(values, seed=3)
    assert found == interval(tuple(values), seed=3) != interval(values, seed=4)
    normal = 1.96 * math.sqrt(0.75 * 0.25 / 40)
    assert found.mean == 0.75
    assert found.low == pytest.approx(0.75 - normal, abs=0.03) and found.high == pytest.approx(0.75 + normal, abs=0.03)
    wide = interval(values, seed=3, confidence=0.99)
    assert wide.low < found.low and found.high < wide.high


def test_interval_does_not_depend_on_the_batches_it_is_drawn_in(monkeypatch):
    values = [i / 7 for i in range(30)]
    whole = interval(values)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 3000)
    assert interval(values) == whole


def test_interval_of_little():
    assert interval([0.25]) == interval([0.25] * 9) == (0.25, 0.25, 0.25)
    assert interval([0.1] * 3).mean == 0.1
    for values in ([], [math.nan], ["a"], [math.inf, 1]):
        with pytest.raises(ValueError, match="values"):
            interval(values)
    with pytest.raises(ValueError, match="confidence"):
        interval([1.0, 0.0], confidence=1)
    with pytest.raises(ValueError, match="seed"):
        interval([1.0, 0.0], seed=-1)


def test_language_modelling():
    nats = 10 * math.log(50)
    assert perplexity(nats, 10) == pytest.approx(50)
    assert bits_per_byte(nats, 20) == pytest.approx(math.log2(50) / 2)
    assert perplexity(1e6, 1) == math.inf and perplexity(0, 1) == 1 and bits_per_byte(0, 1) == 0
    for wrong in ((math.nan, 1), (-1.0, 1), (1.0, 0)):
        with pytest.raises(ValueError):
            perplexity(*wrong)
        with pytest.raises(ValueError):
            bits_per_byte(*wrong)
