"""Explorers under what readers may give them: a page that a browser can read, of at most 3 MB, or one clear sentence."""
import json
import re
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import mc
from conftest import FLAGS, chromium
from mc.explorers.base import Explorer, pack, picture, sequence
from mc.explorers.by_hand import ByHandExplorer, ask, by_hand, draws
from mc.explorers.dial import Dial, dial_data, still_of
from mc.explorers.live import live, parse, questions, rewired
from mc.explorers.routing import explore
from mc.explorers.routing_data import gates_of
from mc.explorers.states import explore_states, hear
from mc.explorers.time import closeness, play, reread, sizes
from mc.tasks.mqar import IGNORE, MQAR

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
NAN, INF = float("nan"), float("inf")


def model(vocab_size=32, layers=1, width=16, heads=2, dtype=torch.float32, **options):
    torch.manual_seed(0)
    mixer = mc.MCConfig(width, heads, **{"segment_size": 4} | options)
    return mc.LanguageModel(mc.LMConfig(vocab_size, layers, mixer)).to(dtype)


def broken(weight, value, **options):
    other = model(layers=2, **options)
    other.get_parameter(weight).data.view(-1)[1] = value
    return other


def tokens(count, vocab_size=32, seed=0):
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def mqar(**sizes):
    return MQAR(**{"vocab_size": 32, "length": 32, "pairs": 4} | sizes).sample(1, torch.Generator().manual_seed(0))


def strict(word):
    raise AssertionError(f"{word} is no JSON")


def page_of(widget, folder):
    "The page that `save_html` writes, checked, and the state in it."
    widget.save_html(folder / "page.html")
    raw = (folder / "page.html").read_bytes()
    page = raw.decode("utf-8")
    assert 10_000 < len(raw) <= 3_000_000 and page.count("</script>") == 4 and page.count("<!--") == 0
    state = json.loads(re.search(r'widget-state\+json">(.*?)</script>', page, re.S).group(1), parse_constant=strict)
    data = state["state"]["explorer"]["state"]["data"]
    assert data == widget.data
    return page, data


def attention():
    return mc.LanguageModel(mc.LMConfig(32, 1, mc.AttentionConfig(16, 2)))


WORDS = [f"w{i}" for i in range(32)]
HARD = ["</script>", "<!--", '"', "'", "\u2028", "\u2029", "שלום", "🙂", "\x00", "\x1b[31m", "&amp;", "\\", "\ufeff", "\u202e", "", " \n"]
FIRST = lambda data: data["variants"][0]
SAYS = lambda *words: lambda data: data["tokens"] == list(words)
CASES = {    # models, tokens, options; the error's words, or what holds of the page's data
    "vocabulary of one": (lambda: model(1), [0, 0, 0], {}, lambda d: [len(a) for a in FIRST(d)["answers"]] == [1] * 3),
    "vocabulary of two": (lambda: model(2), [0, 1, 1], {}, lambda d: [len(a) for a in FIRST(d)["answers"]] == [2] * 3),
    "vocabulary of three": (lambda: model(3), [0, 2, 1], {}, lambda d: [len(a) for a in FIRST(d)["answers"]] == [3] * 3),
    "words that are numbers": (lambda: model(3), [0, 2, 1], {"vocabulary": [1, 2.5, np.int64(7)]}, SAYS("1", "7", "2.5")),
    "words in an array": (lambda: model(3), [0, 2, 1], {"vocabulary": np.array(["a", "b", "c"])}, SAYS("a", "c", "b")),
    "words in a range": (lambda: model(3), [0, 2, 1], {"vocabulary": range(10, 13)}, SAYS("10", "12", "11")),
    "a word that is None": (model, [0, 1], {"vocabulary": [*WORDS[:7], None, *WORDS[8:]]}, r"vocabulary\[7\] must be text or a number; got None"),
    "words that are bytes": (model, [0, 1], {"vocabulary": [b"w"] * 32}, r"vocabulary\[0\] must be text or a number; got b'w'"),
    "too few words": (model, [0, 1], {"vocabulary": WORDS[:31]}, "vocabulary must name all 32 tokens; got 31 names"),
    "more words than tokens": (model, [0, 1], {"vocabulary": [*WORDS, "more"]}, SAYS("w0", "w1")),
    "one text as vocabulary": (model, [0, 1], {"vocabulary": "x" * 32}, "vocabulary must be a list of words .* got a str"),
    "a set as vocabulary": (model, [0, 1], {"vocabulary": set(WORDS)}, "vocabulary must be a list of words .* got a set"),
    "a dict as vocabulary": (model, [0, 1], {"vocabulary": dict.fromkeys(WORDS)}, "vocabulary must be a list of words .* got a dict"),
    "a number as vocabulary": (model, [0, 1], {"vocabulary": 32}, "vocabulary must be a list of words .* got a int"),
    "words twice": (lambda: model(2), [0, 1], {"vocabulary": ["a", "a"]}, SAYS("a", "a")),
    "hard words": (lambda: model(16), range(16), {"vocabulary": HARD}, SAYS(*HARD)),
    "a lone surrogate in a word": (lambda: model(2), [0, 1], {"vocabulary": ["\ud800", "b"]}, SAYS(r"\ud800", "b")),
    "very long words": (model, tokens(64), {"vocabulary": ["🙂" * 100_000] * 32}, lambda d: {len(t) for t in d["tokens"]} == {201}),
    "a title that is a number": (model, [0, 1], {"title": 7}, lambda d: d["title"] == "7"),
    "a title that is None": (model, [0, 1], {"title": None}, "title must be text or a number; got None"),
    "a title that is bytes": (model, [0, 1], {"title": b"x"}, "title must be text or a number; got b'x'"),
    "a title of a million letters": (model, [0, 1], {"title": "x" * 1_000_000}, lambda d: d["title"] == "x" * 200 + "…"),
    "a hostile title": (model, [0, 1], {"title": "</script><!--\u2028'\"&"}, lambda d: d["title"] == "</script><!--\u2028'\"&"),
    "a lone surrogate in the title": (model, [0, 1], {"title": "a\udfff"}, lambda d: d["title"] == r"a\udfff"),
    "a lone surrogate in a name": (lambda: {"\ud800": model()}, [0, 1], {}, lambda d: FIRST(d)["name"] == r"\ud800"),
    "names that are numbers": (lambda: {1: model(), 2: model()}, [0, 1], {}, lambda d: [v["name"] for v in d["variants"]] == ["1", "2"]),
    "names that are the same": (lambda: {1: model(), "1": model()}, [0, 1], {}, "models must have different names"),
    "a name that is None": (lambda: {None: model()}, [0, 1], {}, "a model's name must be text or a number; got None"),
    "no model": (lambda: {}, [0, 1], {}, "models must be one or more"),
    "models in a list": (lambda: [model()], [0, 1], {}, "models must be a LanguageModel or a dict .* got list"),
    "attention": (attention, [0, 1], {}, "models must have Memory Caching layers"),
    "a model without weights": (lambda: model().to("meta"), [0, 1], {}, "models must have weights; 'model' is on the meta device"),
    "a token too large": (model, [0, 32], {}, "tokens must lie between 0 and 31, the vocabulary of 'model'; got 0 to 32"),
    "a token below zero": (model, [0, -1], {}, "tokens must lie between 0 and 31, .* got -1 to 0"),
    "tokens with a point": (model, [0.0, 1.0], {}, r"tokens must be one sequence.*got \[0.0, 1.0\]"),
    "tokens that are true or false": (model, torch.ones(3) > 0, {}, "tokens must be one sequence.*got torch.bool"),
    "complex tokens": (model, torch.ones(3) * 1j, {}, "tokens must be one sequence.*got torch.complex64"),
    "no token": (model, [], {}, r"tokens must be one sequence.*got \[\]"),
    "no token in a tensor": (model, torch.zeros(1, 0).long(), {}, r"tokens must be one sequence.*got torch.int64 \(1, 0\)"),
    "tokens without data": (model, torch.zeros(3, dtype=torch.long, device="meta"), {}, "tokens must be one sequence.*on meta"),
    "sparse tokens": (model, torch.ones(3).long().to_sparse(), {}, "tokens must be one sequence"),
    "two sequences": (model, torch.ones(2, 3).long(), {}, r"tokens must be one sequence.*\(2, 3\)"),
    "a number": (model, torch.tensor(3), {}, "tokens must be one sequence"),
    "a text": (model, "0 1", {}, "tokens must be one sequence.*got '0 1'"),
    "nothing": (model, None, {}, "tokens must be one sequence.*got None"),
    "tokens of other lengths": (model, [[0, 1], [2]], {}, "tokens must be one sequence"),
    "tokens in an array": (model, np.array([3, 1], dtype=np.uint8), {}, SAYS("3", "1")),
    "tokens of 32 bits": (model, torch.tensor([[3, 1]], dtype=torch.int32), {}, SAYS("3", "1")),
    "one token": (model, [3], {}, SAYS("3")),
    "a label that the model lacks": (model, mqar()._replace(labels=torch.full((1, 32), 99)), {}, "labels must lie between 0 and 31, .* got 99"),
    "labels of another length": (model, mqar()._replace(labels=torch.full((1, 31), IGNORE)), {}, "batch.labels must have 32 entries.*got 31"),
    "a source after its question": (model, mqar()._replace(source=torch.full((1, 32), 40)), {}, "batch.source must be -1, or the position of a value"),
    "vocabularies that differ": (lambda: {"a": model(32), "b": model(20)}, [0, 19], {}, SAYS("0", "19")),
    "a token that one model lacks": (lambda: {"a": model(32), "b": model(20)}, [0, 25], {}, "the vocabulary of 'b'"),
    "segments that differ": (lambda: {"a": model(), "b": model(segment_size=8)}, tokens(20), {}, "models must cut the sequence into the same segments"),
    "bfloat16": (lambda: model(dtype=torch.bfloat16), tokens(20), {}, lambda d: len(FIRST(d)["memories"]) == 4),
    "float64 with gradients": (lambda: model(dtype=torch.float64).train(), tokens(20), {}, lambda d: len(FIRST(d)["memories"]) == 4),
    "a width of one": (lambda: model(width=1, heads=1), tokens(20), {}, lambda d: FIRST(d)["heads"] == 1),
    "segments longer than the text": (lambda: model(segment_size=4096), tokens(20), {}, lambda d: d["lengths"] == [20]),
    "no caching": (lambda: model(aggregation="none"), tokens(20), {}, lambda d: "gates" not in FIRST(d)),
    "until too late": (model, [0, 1], {"until": 3}, "until must be at most 2, the tokens; got 3"),
    "until that is no number": (model, [0, 1], {"until": True}, "until must be an integer >= 1; got True"),
    "NaN in the last norm": (lambda: broken("norm.weight", NAN), tokens(9), {}, lambda d: "1 of the 16 numbers of norm.weight" in d["notes"][0]),
    "infinity in a gate": (lambda: broken("blocks.0.mixer.connector.weight", INF), tokens(9), {}, lambda d: "blocks.0.mixer.connector.weight" in d["notes"][0]),
    "NaN in an embedding": (lambda: broken("embedding.weight", NAN, aggregation="ssc"), tokens(9), {}, lambda d: "embedding.weight" in d["notes"][0]),
    "numbers that overflow": (lambda: broken("blocks.1.mlp_norm.weight", 3e38), tokens(9), {}, lambda d: "layer 2 are NaN or infinite from token 1 on" in d["notes"][0]),
    "10,000 tokens": (lambda: model(layers=2, heads=4, segment_size=16), tokens(10_000), {}, lambda d: d["window"]["of"] == 10_000),
    "the end of 10,000 tokens": (lambda: model(segment_size=16), tokens(10_000), {"until": 10_000}, lambda d: d["window"]["before"] + len(d["tokens"]) == 10_000),
    "100,000 tokens": (lambda: model(segment_size=16), tokens(100_000), {}, lambda d: "of 100,000." in d["notes"][0]),
    "24 layers of 16 heads": (lambda: model(layers=24, heads=16), tokens(900), {}, lambda d: 32 <= len(d["tokens"]) < 900),
    "a memory for every token": (lambda: model(layers=2, heads=4, segment_size=1), tokens(2_000), {"until": 2_000}, lambda d: 200 < len(d["tokens"]) < 900),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_input_gives_a_page_or_a_sentence(name, tmp_path):
    make, given, options, expected = CASES[name]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f"(?s){expected}"):
            explore(make(), given, **options)
        return
    start = time.process_time()
    widget = explore(make(), given, **options)
    assert time.process_time() - start < 10
    page, data = page_of(widget, tmp_path)
    assert expected(data) and len(data["tokens"]) == sum(data["lengths"]) == len(data["variants"][0]["answers"])
    for note in data.get("notes", []):
        assert note in widget.still["alt"]
    if "window" not in data and "notes" not in data:
        assert len(data["tokens"]) == torch.as_tensor(given).numel()


@pytest.mark.parametrize("options", [{}, {"aggregation": "ssc", "top_k": 2}, {"aggregation": "soup"}, {"init": "checkpoint"}, {"backend": "titans"}, {"backend": "gated_delta"},
                                     {"segmentation": "fenwick"}, {"segmentation": "logarithmic"}, {"segment_size": 300}])
@pytest.mark.parametrize("until", [203, 340, 400])
def test_a_window_shows_the_gates_of_the_whole(options, until):
    "With room for 64 tokens: those of the full trace, and one column for all memories that were closed before."
    one, given = model(layers=2, **options), tokens(400)
    size, cut = one.config.mixer.segment_size, one.config.mixer.segmentation
    with mock.patch("mc.explorers.window.LONGEST", 64):
        data = explore(one, given, until=until).data
    logits, traces = one.inspect(given[None, :until] if cut != "logarithmic" else given[None])
    start = data["window"]["before"]
    assert start + len(data["tokens"]) == until and len(data["tokens"]) <= 64 and data["tokens"] == [str(t) for t in given[start:until].tolist()]
    assert start % size == 0 or size > 64 or cut == "logarithmic"
    full = torch.stack([t.gates[0, start:until] for t in traces])
    got = gates_of(data["variants"][0], len(data["tokens"]))
    assert torch.allclose(got.sum(-1), torch.ones(got.shape[:-1]), atol=2e-3)
    memories = data["variants"][0]["memories"]
    for i, memory in enumerate(memories):
        first, end = memory[0] + start, memory[1] + start
        columns = [j for j, (a, b) in enumerate(traces[0].bounds) if (b <= start if end <= start else (a, b) == (first, end))]
        assert len(columns) >= 1 and torch.allclose(got[..., i], full[..., columns].sum(-1), atol=2e-4)
        assert (memory[0] < 0) == (len(memory) == 5)
    assert torch.allclose(got[..., -1], full[..., -1], atol=2e-4)
    best = logits[0, start:until].argmax(-1).tolist()
    assert [row[0][0] for row in data["variants"][0]["answers"]] == [str(b) for b in best]
    if cut == "constant" and size == 4:
        assert data["window"]["segments"] == start // 4 and memories[0][4] == f"1–{start // 4}" and memories[0][1] == 0


def test_the_window_ends_with_the_last_question():
    batch = mqar(vocab_size=64, length=3000, pairs=20)
    last = int((batch.labels[0] != IGNORE).nonzero()[-1])
    with mock.patch("mc.explorers.window.LONGEST", 64):
        data = explore(model(64), batch).data
    start = data["window"]["before"]
    assert start + len(data["tokens"]) == last + 1 and data["roles"][-1] == "query"
    assert data["source"][-1] == int(batch.source[0, last]) - start < 0 and data["target"][-1] == str(int(batch.labels[0, last]))
    assert sum(role == "query" for role in data["roles"]) == int((batch.labels[0, start : last + 1] != IGNORE).sum())


def test_what_fits_is_whole_and_as_exact_as_before():
    one, given = model(layers=2, heads=4), tokens(512)
    data = explore(one, given).data
    computed = torch.stack([t.gates[0] for t in one.inspect(given[None])[1]])
    assert not {"window", "notes"} & data.keys()
    assert (gates_of(data["variants"][0], 512) - computed).abs().max() < 1e-5


def test_a_diverged_model_does_not_hide_the_others():
    good = model(layers=2)
    alone = explore({"good": good}, mqar()).data
    data = explore({"bad": broken("blocks.1.down.weight", NAN), "good": good}, mqar()).data
    assert data["variants"][1] == alone["variants"][0] and data["lengths"] == alone["lengths"]
    assert data["variants"][0]["answers"] == [None] * 32 and data["variants"][0]["diverged"]
    assert data["notes"] == ["bad has diverged: 1 of the 512 numbers of blocks.1.down.weight are NaN or infinite."]


def test_another_token_with_the_same_word_is_no_right_answer():
    one, batch = model(), mqar()
    asked = batch.labels[0] != IGNORE
    row = explore(one, batch, vocabulary=["same"] * 32).data["variants"][0]["answers"]
    with torch.no_grad():
        best = one(batch.tokens)[0].argmax(-1)
    for t in asked.nonzero().flatten().tolist():
        expected = "same" if best[t] == batch.labels[0, t] else f"same (token {int(best[t])})"
        assert row[t][0][0] == expected


def test_many_models_and_a_large_vocabulary_stay_within_a_page(tmp_path):
    many = {f"model {i} " + "🙂" * 150: model(20_000, layers=2, segment_size=8) for i in range(6)}
    start = time.process_time()
    widget = explore(many, tokens(3_000, 20_000), vocabulary=[f"{i} " + "語" * 60 for i in range(20_000)])
    assert time.process_time() - start < 20
    page_of(widget, tmp_path)
    assert len(widget.data["tokens"]) >= 64 and len(widget.data["variants"]) == 6


BATCH = mqar()
UNANSWERED = BATCH._replace(source=torch.full_like(BATCH.source, -1))
LONG = MQAR(vocab_size=32, length=10_000, pairs=4).sample(1, torch.Generator().manual_seed(0))
TINY = torch.zeros(1, 2, 4, 3)
DOORS = {    # what is called, and the words of the error
    "states of nothing": (lambda: explore_states({}, BATCH), "models must be one or more"),
    "states of attention": (lambda: explore_states({"a": attention()}, BATCH), "models must have Memory Caching layers"),
    "states of plain tokens": (lambda: explore_states({"a": model()}, tokens(20)), "batch must ask for at least one pair"),
    "states of text": (lambda: explore_states({"a": model()}, "abc"), "tokens must be one sequence"),
    "states without a title": (lambda: explore_states({"a": model()}, BATCH, title=None), "title must be text"),
    "states of layer 0.5": (lambda: explore_states({"a": model()}, BATCH, layer=0.5), "layer must be 0 to 0; got 0.5"),
    "states of layer True": (lambda: explore_states({"a": model()}, BATCH, layer=True), "layer must be 0 to 0; got True"),
    "states of head 2": (lambda: explore_states({"a": model()}, BATCH, heads=2), "heads must be some of 0 to 1; got 2"),
    "states of heads 'a'": (lambda: explore_states({"a": model()}, BATCH, heads=["a"]), r"heads must be some of 0 to 1; got \['a'\]"),
    "states of head True": (lambda: explore_states({"a": model()}, BATCH, heads=[True]), r"heads must be some of 0 to 1; got \[True\]"),
    "states of a token too large": (lambda: explore_states({"a": model(20)}, BATCH), "must lie between 0 and 19, the vocabulary of 'a'"),
    "states of NaN": (lambda: explore_states({"a": broken("norm.weight", NAN)}, BATCH), "has diverged: 1 of the 16 numbers of norm.weight"),
    "states of 10,000 tokens": (lambda: explore_states({"a": model()}, LONG), "batch must have at most 2,048 tokens; got 10,000"),
    "states of too many numbers": (lambda: explore_states({"a": model(width=128)}, mqar(length=2000)), "a page holds 825,000 numbers; these .* are 4,"),
    "what nobody hears": (lambda: hear("model", BATCH.tokens), "models must be a LanguageModel"),
    "time of text": (lambda: play("model", BATCH, 0, "t"), "model must be a LanguageModel on the CPU; got a str"),
    "time of attention": (lambda: play(attention(), BATCH, 0, "t"), "model must be linear GRM"),
    "time of fenwick": (lambda: play(model(segmentation="fenwick"), BATCH, 0, "t"), "model must be linear GRM"),
    "time of plain tokens": (lambda: play(model(), tokens(20), 0, "t"), "batch must ask at least one question"),
    "time without answers": (lambda: play(model(), UNANSWERED, 0, "t"), "batch must say where the answer to each question stands"),
    "time of head True": (lambda: play(model(), BATCH, True, "t"), "head must be 0 to 1; got True"),
    "time of head 0.0": (lambda: play(model(), BATCH, 0.0, "t"), "head must be 0 to 1; got 0.0"),
    "time without a title": (lambda: play(model(), BATCH, 0, None), "title must be text"),
    "time of NaN": (lambda: play(broken("norm.weight", NAN), BATCH, 0, "t"), "has diverged"),
    "time of a token too large": (lambda: play(model(20), BATCH, 0, "t"), "must lie between 0 and 19"),
    "time of 10,000 tokens": (lambda: play(model(), LONG, 0, "t"), "batch must have at most 2,048 tokens, .* got 10,000"),
    "sizes of half a token": (lambda: sizes(0.5), "tokens must be an integer >= 1; got 0.5"),
    "a dial of no folder": (lambda: dial_data(None, "t"), "folder must be the path of a folder; got None"),
    "a dial of nothing": (lambda: dial_data("/nowhere", "t"), "no records of the dial in /nowhere"),
    "a dial without a title": (lambda: dial_data(ROOT / "results/dial/cpu", None), "title must be text"),
    "a dial set to text": (lambda: Dial(setting={"head_size": "64"}), "head_size must be a power of two between 8 and 256; got '64'"),
    "a dial set to True": (lambda: Dial(setting={"num_heads": True}), "num_heads must be a power of two between 1 and 32; got True"),
    "a dial set to 16.0": (lambda: Dial(setting={"segment_size": 16.0}), "segment_size must be a power of two .* got 16.0"),
    "a dial that reads a list": (lambda: Dial(setting={"way": ["grm"]}), r"way must be one of .* got \['grm'\]"),
    "a dial of NaN": (lambda: Dial(data={"points": [NAN]}), "data must be what JSON can hold"),
    "a still of size 0": (lambda: still_of(0, 8), "segment_size must be an integer >= 1; got 0"),
    "a still of size '8'": (lambda: still_of(8, "8"), "head_size must be an integer >= 1; got '8'"),
    "no draw": (lambda: draws(0, 1), "count must be an integer >= 1; got 0"),
    "a draw of seed None": (lambda: draws(1, None), "seed must be an integer >= 0; got None"),
    "by hand of text": (lambda: by_hand("stories"), "stories must be a tensor .* got str"),
    "by hand of nothing": (lambda: by_hand(torch.zeros(0, 2, 4, 3)), r"stories must be a tensor .* got \(0, 2, 4, 3\)"),
    "by hand of 101 stories": (lambda: by_hand(draws(101, 0)), "stories must be at most 100; got 101"),
    "by hand of whole numbers": (lambda: by_hand(TINY.long()), "stories must hold numbers with a point; got torch.int64"),
    "by hand of NaN": (lambda: by_hand(TINY + NAN), "stories must be finite and between -100 and 100"),
    "by hand of large numbers": (lambda: by_hand(TINY + 1e30), "stories must be finite and between -100 and 100"),
    "by hand without data": (lambda: by_hand(TINY.to("meta")), "stories must hold"),
    "by hand without a title": (lambda: by_hand(draws(1, 0), None), "title must be text"),
    "by hand of scale True": (lambda: ByHandExplorer(data=by_hand(draws(1, 0)).data, settings={"scale": True}), "scale must be a number between 0 and 4; got True"),
    "by hand of scale NaN": (lambda: ByHandExplorer(data=by_hand(draws(1, 0)).data, settings={"scale": NAN}), "scale must be a number between 0 and 4; got nan"),
    "asked by hand with text": (lambda: ask(draws(1, 0), "settings"), "settings must be among .* got 'settings'"),
    "asked by hand at 99": (lambda: ask(draws(1, 0), {"position": 99}), "position must be at most 22; got 99"),
    "closeness of plain tokens": (lambda: closeness(model(), tokens(20), 4), "batch must be a Batch; got a Tensor"),
    "closeness without answers": (lambda: closeness(model(), UNANSWERED, 4), "batch must say where the answer to each question stands"),
    "closeness in segments of 0": (lambda: closeness(model(), BATCH, 0), "size must be an integer >= 1; got 0"),
    "a reread text": (lambda: reread("model", 4), "models must be a LanguageModel"),
    "a picture of nothing": (lambda: picture(torch.zeros(0, 3), ""), r"values must be a matrix of finite numbers; got \(0, 3\)"),
    "a picture of NaN": (lambda: picture(torch.full((2, 3), NAN), ""), "values must be a matrix of finite numbers"),
    "a packed list": (lambda: pack([0.0]), r"values must be a dense tensor; got \[0.0\]"),
    "a page in no file": (lambda: Explorer().save_html(None), "path must be the path of a file; got None"),
    "half a segment": (lambda: sequence(BATCH, [31.5, 0.5]), "lengths must be an integer >= 1; got 31.5"),
    "live in no folder": (lambda: live(None), "folder must be the path of a folder; got None"),
    "live tokens that are a list": (lambda: parse([1, 2], 8), r"text must be text; got \[1, 2\]"),
    "live vocabulary of 0": (lambda: parse("1", 0), "vocab_size must be an integer >= 1; got 0"),
    "live questions to two rows": (lambda: questions(torch.ones(2, 3).long(), 8), "tokens must be one sequence"),
    "rules for text": (lambda: rewired("model", top_k=2), "model must be a LanguageModel; got a str"),
    "rules that nobody knows": (lambda: rewired(model(), colour="red"), r"changes must be to options of MCConfig; got \['colour'\]"),
    "rules for another width": (lambda: rewired(model(), d_model=32), "changes need other weights than the model has"),
    "a sequence of two rows": (lambda: sequence(MQAR().sample(2, torch.Generator()), [256]), "one sequence"),
    "packed NaN": (lambda: pack(torch.tensor([0.0, NAN, INF])), "values must be finite; 2 of 3 are NaN or infinite"),
    "data of NaN": (lambda: Explorer(data={"tokens": [NAN]}), "data must be what JSON can hold"),
    "data of tensors": (lambda: Explorer(data={"tokens": torch.ones(1)}), "data must be what JSON can hold"),
}


@pytest.mark.parametrize("name", DOORS)
def test_every_explorer_refuses_by_name(name):
    call, words = DOORS[name]
    with pytest.raises(ValueError, match=f"(?s){words}"):
        call()


@pytest.mark.parametrize("options", [{}, {"backend": "swla"}, {"backend": "dla"}, {"backend": "titans"}, {"backend": "gated_delta"}, {"segmentation": "fenwick"}, {"init": "checkpoint"},
                                     {"width": 1, "heads": 1}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}, {"segment_size": 1}])
def test_states_and_time_of_any_model_are_a_page(options, tmp_path):
    one = model(**options).train()
    _, data = page_of(explore_states(one, BATCH, "</script>\ud800", heads=[0]), tmp_path)
    assert data["title"] == r"</script>\ud800" and len(data["asks"]) == 8
    if not {"backend", "segmentation"} & options.keys():
        _, data = page_of(play(one, BATCH, 0, 7), tmp_path)
        assert data["title"] == "7" and len(data["answers"]) == len(data["sizes"])


def test_the_weights_keep_their_type_when_they_are_reread():
    "In float32 the answers of a float64 model would be those of other weights."
    one = model(dtype=torch.float64)
    one.embedding.weight.data += 1e-9
    for other in (reread(one, 4), rewired(one, segment_size=4)):
        assert other.embedding.weight.dtype == torch.float64 and torch.equal(other(BATCH.tokens), one(BATCH.tokens))


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    path, widget = tmp_path / "page.html", explore(model(), [0, 1, 2])
    widget.save_html(path)
    old = path.read_bytes()
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")), pytest.raises(OSError, match="No space left"):
        explore(model(), [3, 4, 5]).save_html(path)
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["page.html"]
    surrogate = Explorer(data={"title": "a\ud800"}, still={"alt": "b\udfff"})
    surrogate._esm = surrogate._css = ""
    surrogate.save_html(path)
    assert rb"<title>a\ud800</title>" in path.read_bytes() and rb"b\udfff" in path.read_bytes()


def test_a_large_still_is_drawn_from_means(tmp_path):
    import base64
    import io

    from PIL import Image

    values = torch.rand(700, 900, generator=torch.Generator().manual_seed(0))
    values[:, 450:] += 3
    still = picture(values, "noise.")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(still["image"].split(",")[1]))).convert("L")).astype(float)
    assert len(still["image"]) < 300_000 and still["alt"] == "noise. Drawn from means of neighbours."
    assert image[:, : image.shape[1] // 2].mean() > 2 * image[:, image.shape[1] // 2 :].mean()
    assert picture(values[:16, :16], "small.")["alt"] == "small."


def test_live_takes_only_what_a_page_can_run(tmp_path):
    folder = tmp_path / "state_per_byte/cpu/models"
    folder.mkdir(parents=True)
    lm = lambda **options: mc.LanguageModel(mc.LMConfig(256, 1, mc.MCConfig(16, 2, **options)))
    for name, options in {"dla": {"backend": "dla"}, "fenwick": {"segmentation": "fenwick"}, "sum": {"pool": "sum"}, "position": {"gate": "position"}, "all": {"softmax": "all"}}.items():
        lm(**options).save(folder / f"{name}.safetensors")
    with pytest.raises(ValueError, match="folder must hold trained models that a page can run"):
        live(tmp_path)
    lm(aggregation="soup").save(folder / "soup.safetensors")
    assert list(live(tmp_path).models) == ["state_per_byte/cpu/soup"]


@pytest.fixture(scope="module")
def browser():
    path, sync_api = chromium(), pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def opened(browser, widget, folder, width=1280):
    "The page of a widget in a browser, with what went wrong in it."
    widget.save_html(folder / "page.html")
    page, troubles = browser.new_page(viewport={"width": width, "height": 900}), []
    page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: troubles.append(str(e)))
    page.on("request", lambda r: troubles.append(r.url) if not r.url.startswith(("file:", "blob:", "data:")) else None)
    page.goto((folder / "page.html").as_uri())
    page.locator(".mc-explorer .heading").wait_for(timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width and not troubles
    return page, troubles


@pytest.mark.parametrize("width", [1280, 380])
def test_a_window_in_a_browser(browser, tmp_path, width):
    batch = mqar(vocab_size=64, length=3000, pairs=20)
    models = {"GRM": model(64, layers=2), "SSC": model(64, layers=2, aggregation="ssc"), "none": model(64, aggregation="none")}
    with mock.patch("mc.explorers.window.LONGEST", 64):
        widget = explore(models, batch)
    page, troubles = opened(browser, widget, tmp_path, width)
    data, start = widget.data, widget.data["window"]["before"]
    assert page.locator(".leftout").all_inner_texts() == data["notes"]
    boxes = page.locator(".strip .segment")
    assert boxes.count() == 1 + len(data["lengths"]) and f"{start // 4} earlier segments" in boxes.first.inner_text()
    last = len(data["tokens"]) - 1
    page.locator(f".token[data-index='{last}']").click()
    assert page.locator(".status").inner_text().startswith(f"token {start + last + 1} of 3000 · segment {(start + last) // 4 + 1} is running "
                                                            f"({(start + last) % 4 + 1} token")
    assert "so far" in page.locator(".status").inner_text()
    assert "one of the" in page.locator(".story").inner_text() and "true" in boxes.first.get_attribute("class")
    gates = gates_of(data["variants"][0], last + 1)[:, last]
    for layer, head, slot, value in page.locator(".gate[data-layer]").evaluate_all(
            "all => all.map(e => [e.dataset.layer, e.dataset.head, e.dataset.slot, e.dataset.value].map(Number))"):
        assert value == pytest.approx(gates[int(layer), int(head), int(slot)].item(), abs=1e-4)
    for key in ("2", "3", "1", "Home", "ArrowDown", "ArrowUp", "p", "End"):
        page.keyboard.press(key)
    assert int(page.locator(".mc-routing").get_attribute("data-token")) == last and not troubles
    page.close()


def test_a_diverged_model_in_a_browser(browser, tmp_path):
    bad = broken("norm.weight", NAN)
    page, troubles = opened(browser, explore({"bad": bad, "good": model(layers=2)}, mqar()), tmp_path)
    assert "bad has diverged: 1 of the 16 numbers of norm.weight" in page.locator(".leftout").inner_text()
    page.locator(".variant[role=radio]").nth(0).click()
    assert page.locator(".gates > .note").inner_text() == "This model has diverged: it has no gates and no answers."
    assert page.locator(".verdict").inner_text() == "No answer: this model has diverged."
    assert page.locator(".variant[role=radio]").nth(0).locator(".said").inner_text() == "diverged" and page.locator(".answer li").count() == 0
    page.locator(".variant[role=radio]").nth(1).click()
    assert page.locator(".gates .grid").count() == 1 and not troubles
    page.close()
    page, troubles = opened(browser, explore(bad, tokens(9)), tmp_path)
    assert page.locator(".token[data-index]").count() == 9 and not page.locator(".layers").is_visible() and not troubles
    page.close()


EVERY = {
    "routing": lambda: explore({"GRM": model(), "SSC": model(aggregation="ssc")}, mqar()),
    "states": lambda: explore_states(model(), mqar(), "states", heads=[0]),
    "time": lambda: play(model(), mqar(), 0, "time"),
    "by hand": lambda: by_hand(draws(1, 1)),
    "dial": lambda: Dial(data=dial_data(ROOT / "results/dial/cpu", "dial"), still=still_of(segment_size=64, head_size=32)),
}


@pytest.mark.parametrize("name", EVERY)
def test_on_a_phone_the_read_out_stays_in_sight_and_no_key_is_named(browser, tmp_path, name):
    widget = EVERY[name]()
    widget.save_html(tmp_path / "page.html")
    phone = browser.new_context(viewport={"width": 380, "height": 500}, has_touch=True, is_mobile=True)
    page = phone.new_page()
    page.goto((tmp_path / "page.html").as_uri())
    said = page.locator(".mc-explorer .spoken")
    said.wait_for(timeout=20_000)
    assert said.count() == 1 and said.inner_text() and page.evaluate("document.documentElement.scrollWidth") <= 380
    page.evaluate("scrollTo(0, 400)")
    page.wait_for_timeout(100)
    box = said.bounding_box()
    assert page.evaluate("scrollY") > 300 and 0 <= box["y"] < 60 and 15 < box["height"] < 120
    assert page.locator(".keys, kbd").evaluate_all("all => all.every(e => !e.checkVisibility())")
    phone.close()


def test_a_variant_has_the_colour_it_has_in_every_figure():
    from mc.explorers.base import parts
    from mc.figures import COLOURS

    named = dict(re.findall(r"--(\w+): (#\w{6});", parts("css", "common").split("@media")[0]))
    for variant in ("attention", "none", "residual", "grm", "soup", "ssc"):
        assert named[variant].lower() == COLOURS[variant].lower()
    own = parts("css", "dial", "time", "live")
    assert not any(colour.lower() in own.lower() for colour in COLOURS.values())


def test_hard_words_in_a_browser(browser, tmp_path):
    page, troubles = opened(browser, explore({HARD[0]: model(16), "\ud800": model(16)}, range(16), "</script><img src=x>", HARD), tmp_path)
    shown = page.locator(".token[data-index]").evaluate_all("all => all.map(e => e.textContent)")
    blank = {"": "∅", " \n": "␣↵", "\u2028": "␣", "\u2029": "␣", "\ufeff": "␣", "\x00": "\\x00", "\x1b[31m": "\\x1b[31m"}
    assert shown == [blank.get(text, text) for text in HARD]
    assert page.locator(".heading").inner_text() == "</script><img src=x>" == page.title() and page.locator("img").count() == 0
    for t in range(16):
        page.locator(f".token[data-index='{t}']").click()
    assert not troubles
    page.close()
