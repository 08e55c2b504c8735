"""From text to batches: nothing lost, nothing read twice, nothing of the test set in the training set, nothing half-written."""
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from tokenizers import Tokenizer as Foreign
from tokenizers import decoders, models, pre_tokenizers
from typer.testing import CliRunner

import mc
from mc.commands.base import COMMANDS, command, main
from mc.text import BPETokenizer, ByteTokenizer, load_tokenizer, sources
from mc.text import corpus_files
from mc.text.batches import Batches, Evaluation, Rows, shuffled
from mc.text.corpora import SPLITS, Corpus, prepare
from mc.text.sources import documents
from mc.text.tokenizers import END, from_json

WORDS = "the cat and the dog and the 12 birds sat, née Müller — «again»\n\n\tand again: it's the cat's.\r\n"
BPE = BPETokenizer.train([WORDS] * 3, 320)
BOTH = pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["bytes", "bpe"])


# ---- tokenizers

@BOTH
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@example("")
@example(f"a{END}b")
@example(" \n \r\n\x00\u2028\ufeff ")
@example("🏳️‍🌈e\u0301")
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.bytes(ids) == text.encode()
    assert tokenizer.end not in ids and len(tokenizer.pieces(ids)) == len(ids)
    assert tokenizer.decode([*ids, tokenizer.end]) == text


@BOTH
def test_half_a_surrogate_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"text has half a surrogate pair, U\+DC80, at character 2;"):
        tokenizer.encode("ab\udc80")
    with pytest.raises(ValueError, match="text must be a str; got bytes"):
        tokenizer.encode(b"ab")


@BOTH
@pytest.mark.parametrize("ids", [[-1], [99999], [1.0], [True], ["a"], [[1]]], ids=str)
def test_what_is_no_id_is_named(tokenizer, ids):
    for read in (tokenizer.decode, tokenizer.pieces, tokenizer.bytes):
        with pytest.raises(ValueError, match=f"ids must be integers from 0 to {tokenizer.vocab_size - 1}; got"):
            read(ids)


def test_pieces_are_readable():
    assert ByteTokenizer().pieces(ByteTokenizer().encode("a é\n")) == ["a", "␣", "\\xc3", "\\xa9", "\\n"]
    assert BPE.pieces([*BPE.encode(" the née"), BPE.end]) == [" the", " née", END]
    assert "".join(BPE.pieces(BPE.encode("\u202e"))) == "\\xe2\\x80\\xae"


def test_the_same_texts_give_the_same_file():
    code = f"from mc.text import BPETokenizer; print(BPETokenizer.train([{WORDS!r}] * 3, 320).hash)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [BPE.hash] == other and BPE.hash == hashlib.sha256(BPE.json.encode()).hexdigest()
    assert BPETokenizer.train(iter([WORDS] * 3), 320) == BPE != BPETokenizer.train([WORDS] * 3, 300) and BPE != ByteTokenizer()


@BOTH
def test_a_file_keeps_the_hash(tokenizer, tmp_path):
    loaded = load_tokenizer(tokenizer.save(tmp_path / "deep/t.json"))
    assert loaded == tokenizer and loaded.hash == tokenizer.hash and type(loaded) is type(tokenizer)
    assert loaded.encode(WORDS) == tokenizer.encode(WORDS) and (loaded.end, loaded.vocab_size) == (tokenizer.end, tokenizer.vocab_size)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["t.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"null", b"3", BPE.json.encode()[:-20], b'{"tokenizer": "bytes"}', b"\xff\xfe", b"\x00" * 9,
                                     b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}'], ids=range(10))
def test_what_is_no_tokenizer_is_named(content, tmp_path):
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.json: this is no tokenizer: ") as error:
        load_tokenizer(tmp_path / "t.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("vocab_size", [256, 0, 300.5, True, "300"])
def test_a_vocabulary_holds_all_bytes(vocab_size):
    with pytest.raises(ValueError, match="vocab_size"):
        BPETokenizer.train([WORDS], vocab_size)


@pytest.mark.parametrize("texts, said", [([], "at least one letter"), (["", ""], "at least one letter"), ("abc", "several"), (["a", "\ud800"], "surrogate"), ([1], "str")])
def test_nothing_to_learn_from(texts, said):
    with pytest.raises(ValueError, match=said):
        BPETokenizer.train(texts, 300)


def foreign(kind):
    "A tokenizer made elsewhere, which lacks characters."
    if kind == "words":
        made = Foreign(models.WordLevel({"the": 0, "cat": 1, "?": 2}, unk_token="?"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    elif kind == "letters, unknown dropped":
        made = Foreign(models.BPE({c: i for i, c in enumerate("the ca")}, []))
    else:
        made = Foreign(models.Unigram([("?", 0.0), *((c, -1.0) for c in "the ca")], unk_id=0))
        made.decoder = decoders.Fuse()
    return from_json(made.to_str())


@pytest.mark.parametrize("kind", ["words", "letters, unknown dropped", "unigram"])
def test_a_character_that_the_tokenizer_lacks_is_named(kind):
    tokenizer = foreign(kind)
    assert tokenizer.end is None and tokenizer.encode("the cat")
    for text, place in (("the cät", 5), ("ö the cat", 0)):
        with pytest.raises(ValueError, match=f"the tokenizer lacks '.*[äö].*', at character {4 if kind == 'words' and place else place} of the text"):
            tokenizer.encode(text)


def test_ends_of_other_programs_are_known():
    made = json.loads(BPE.json.replace(END, "<|endoftext|>"))
    tokenizer = from_json(json.dumps(made))
    assert tokenizer.end == BPE.end and tokenizer.pieces([tokenizer.end]) == ["<|endoftext|>"]


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"pip install 'memory-caching-companion\[text\]'"):
        from_json(BPE.json)
    assert from_json(ByteTokenizer.json).encode("a") == [97]


# ---- where text comes from

def texts_of(source, **options):
    return ["".join(d.pieces) for d in documents(str(source), **options)]


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet_of(path, **columns):
    parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture
def small(monkeypatch):
    "Blocks and pieces of a few letters, so that every bound falls somewhere."
    monkeypatch.setattr(sources, "BLOCK", 5)
    monkeypatch.setattr(sources, "PIECE", 12)


def test_the_same_documents_from_every_kind(small, tmp_path):
    found = ["ein Bär\nund\n\nnoch einer,\r\nnée —\n", "two", " three "]
    lines = put(tmp_path / "a.jsonl", "\n".join(json.dumps({"n": 1, "text": t}, ensure_ascii=bool(i)) for i, t in enumerate(found)) + "\n\n")
    assert texts_of(lines) == texts_of(parquet_of(tmp_path / "a.parquet", text=found, n=[1, 2, 3])) == found
    assert texts_of(put(tmp_path / "a.txt", "§§".join([*found, " \n", ""])), separator="§§") == found
    assert texts_of(put(tmp_path / "b.txt", "§§".join(found))) == ["§§".join(found)]
    assert texts_of(put(tmp_path / "c.txt", " \n")) == []


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.sampled_from("ab ,.\n\r\té—'s"), max_size=120))
def test_pieces_have_the_tokens_of_the_whole(text):
    with mock.patch.object(sources, "PIECE", 8):
        cut = [*sources.pieces(text[i:i + 3] for i in range(0, len(text), 3))]
    whole = all(len(piece) < 8 * 16 for piece in cut)
    assert "".join(cut) == text and (not whole or sum(BPE.encode_all(cut), []) == BPE.encode(text))


BAD = {                                                                              # file, content, what the line says
    "latin-1": ("a.txt", "käse".encode("latin-1"), r"a\.txt is not UTF-8: byte 0xe4 at position 1"), "late": ("a.txt", b"0123456789\n\xff", "byte 0xff at position 11"),
    "cut short": ("a.txt", "0123456é".encode()[:-1], "byte 0xc3 at position 7"), "utf-16": ("a.txt", "ab".encode("utf-16"), "byte 0xff at position 0"),
    "surrogate": ("a.txt", b"abcd\xed\xa0\x80", "byte 0xed at position 4"),
    "line": ("a.jsonl", b'{"text": "a"}\n{"text": "b\xff"}', r"byte 0xff at position 25 \(line 2\)"), "no JSON": ("a.jsonl", '{"text": "a"}\n{"text": ', "a.jsonl, line 2 is no JSON"),
    "deep": ("a.jsonl", "[" * 100_000, "a.jsonl, line 1 is no JSON"), "list": ("a.jsonl", "[1]", "line 1 must hold an object; it holds a list"), "null": ("a.jsonl", "null", "line 1 must hold"),
    "no field": ("a.jsonl", '\n{"body": "a", "n": 1}', "line 2 has no field 'text'; it has 'body', 'n'"), "number": ("a.jsonl", '{"text": 3}', "line 1: 'text' must be text; it is a int"),
    "half": ("a.jsonl", r'{"text": "a\ud800"}', "line 1: 'text' has half a surrogate pair"), "parquet": ("a.parquet", b"PAR1 and no more", "a.parquet is no complete parquet file"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_in_a_file_has_a_place(what, small, tmp_path):
    name, content, said = BAD[what]
    with pytest.raises(ValueError, match=said) as error:
        texts_of(put(tmp_path / name, content))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_parquet_without_the_column(tmp_path):
    with pytest.raises(ValueError, match="a.parquet has no column 'text'; it has body"):
        texts_of(parquet_of(tmp_path / "a.parquet", body=["a"]))
    with pytest.raises(ValueError, match="a.parquet, row 2: 'text' must be text; it is a NoneType"):
        texts_of(parquet_of(tmp_path / "a.parquet", text=["a", None]))


def test_the_hub_streams_and_says_in_one_line_what_is_wrong(monkeypatch, tmp_path):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: asked.append((a, o)) or [{"text": "a"}, {"text": "b"}])
    assert texts_of("hub:owner/name:en:test", cache=str(tmp_path)) == ["a", "b"]
    assert asked == [(("owner/name", "en"), {"split": "test", "streaming": True, "cache_dir": str(tmp_path)})]
    with pytest.raises(ValueError, match="row 1 has no field 'body'"):
        texts_of("hub:name", name="body")

    def gone(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", gone)
    with pytest.raises(OSError, match="^hub:name cannot be read from the Hub: no route to host$"):
        texts_of("hub:name")
    for wrong in ("hub:", "hub:a b", "hub:a/b/c", "hub:a:b:c:d"):
        with pytest.raises(ValueError, match="must be hub:owner/name"):
            texts_of(wrong)
    assert not [name for name in os.environ if name.startswith("HF_") and "mc-hub-" in os.environ[name]]


# ---- corpora

TEXTS = [f"document {i} speaks of {word}, née —" for i in range(40) for word in ("gates", "pools")]


def lines_of(path, texts):
    return put(path, "".join(json.dumps({"text": t}) + "\n" for t in texts))


def tree(folder):
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in folder.rglob("*")}


@pytest.fixture
def corpus(tmp_path):
    return prepare([lines_of(tmp_path / "a.jsonl", TEXTS)], BPE, tmp_path / "corpus", 0.1, 0.2)


@BOTH
def test_no_text_of_the_test_set_is_in_the_training_set(tokenizer, tmp_path):
    "Whatever comes twice, in whichever file and order; and nothing is lost."
    first, second = lines_of(tmp_path / "a.jsonl", [*TEXTS, *TEXTS[:30]]), lines_of(tmp_path / "b.jsonl", TEXTS[::-1][:50])
    corpora = [prepare(files, tokenizer, tmp_path / f"c{i}", 0.1, 0.2) for i, files in enumerate(([first, second], [second, first]))]
    found = [{name: [*one.texts(name)] for name in SPLITS} for one in corpora]
    for one, texts in zip(corpora, found, strict=True):
        one.check()
        assert sorted(sum(texts.values(), [])) == sorted([*TEXTS, *TEXTS[:30], *TEXTS[::-1][:50]])
        for a, b in itertools.combinations(SPLITS, 2):
            assert texts[a] and texts[b] and not {*texts[a]} & {*texts[b]}
        for name in SPLITS:
            assert one.bytes(name) == sum(len(t.encode()) for t in texts[name])
            assert one.about["splits"][name]["documents"] == len(texts[name])
        ends = one.rows("test").tokens[np.asarray(one.rows("test").ends) - one.rows("test").start - 1]
        assert (ends == tokenizer.end).all() and one.tokens.dtype == np.uint16
    assert {n: sorted(t) for n, t in found[0].items()} == {n: sorted(t) for n, t in found[1].items()}
    assert 0.05 < len({*found[0]["test"]}) / len(TEXTS) < 0.4


def test_another_seed_splits_differently_and_more_documents_move_none(corpus, tmp_path):
    more = prepare([lines_of(tmp_path / "b.jsonl", [*TEXTS, "one", "two", "three"])], BPE, tmp_path / "more", 0.1, 0.2)
    other = prepare([tmp_path / "a.jsonl"], BPE, tmp_path / "other", 0.1, 0.2, seed=1)
    test = {*corpus.texts("test")}
    assert test <= {*more.texts("test")} and test != {*other.texts("test")} and corpus.hash != other.hash


def test_a_text_that_stands_alone_is_cut_once_at_line_bounds(tmp_path):
    text = "".join(f"line {i} née\r\n" for i in range(300))
    one = prepare(put(tmp_path / "a.txt", text), BPE, tmp_path / "c", 0.1, 0.2)
    train, validation, test = ("".join(one.texts(name)) for name in SPLITS)
    assert train + validation + test == text and all(t.endswith("\n") for t in (train, validation, test))
    assert abs(len(train) / len(text) - 0.7) < 0.01 and abs(len(test) / len(text) - 0.2) < 0.01
    assert [one.about["splits"][n]["documents"] for n in SPLITS] == [1, 1, 1] and one.about["cut"]
    whole = prepare(tmp_path / "a.txt", BPE, tmp_path / "d", 0, 0)
    assert [*whole.texts("train")] == [text] and not [*whole.texts("test")]


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    words = {f"w{i}": i for i in range(70_000)}
    made = Foreign(models.WordLevel(words | {"?": 70_000}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    one = prepare(put(tmp_path / "a.txt", "w1 w69999\n" * 50), from_json(made.to_str()), tmp_path / "c")
    assert one.tokens.dtype == np.uint32 and one.tokens[:4].tolist() == [1, 69_999, 1, 69_999]
    with pytest.raises(ValueError, match="the tokenizer lacks 'née', at character 3 of the text"):
        prepare(put(tmp_path / "b.txt", "w1 née\n" * 50), from_json(made.to_str()), tmp_path / "d")
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", "b.txt", "c"}


def test_the_same_again_is_opened_and_another_refused(corpus, tmp_path):
    source, before = tmp_path / "a.jsonl", tree(corpus.folder)
    assert prepare([source], BPE, corpus.folder, 0.1, 0.2).hash == corpus.hash and tree(corpus.folder) == before
    for options, said in (({"seed": 3}, "seed"), ({"test": 0.3}, "test"), ({"tokenizer": ByteTokenizer()}, "tokenizer_hash"), ({"sources": [lines_of(tmp_path / "b.jsonl", TEXTS[1:])]}, "sources")):
        asked = {"sources": [source], "tokenizer": BPE, "validation": 0.1, "test": 0.2} | options
        with pytest.raises(ValueError, match=f"corpus is a corpus already with other {said}; --overwrite replaces it"):
            prepare(out=corpus.folder, **asked)
    assert tree(corpus.folder) == before
    other = prepare([source], ByteTokenizer(), corpus.folder, 0.1, 0.2, overwrite=True)
    assert Corpus.open(corpus.folder).hash == other.hash != corpus.hash and {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl", "corpus"}


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    source = lines_of(tmp_path / "a.jsonl", TEXTS)
    put(tmp_path / "mine/thesis.txt", "years"), put(tmp_path / "new.part/thesis.txt", "years"), put(tmp_path / "file", "")
    before = tree(tmp_path)
    for out, said in (("mine", "mine is something else"), ("file", "file is something else"), ("new", r"new\.part is in the way")):
        with pytest.raises(ValueError, match=said):
            prepare([source], BPE, tmp_path / out, overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
@pytest.mark.parametrize("there", [False, True])
def test_what_is_interrupted_leaves_what_was_there(error, there, tmp_path, monkeypatch):
    source, out = lines_of(tmp_path / "a.jsonl", TEXTS), tmp_path / "corpus"
    old = prepare([source], ByteTokenizer(), out) if there else None
    before = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(corpus_files.os, "fsync", mock.Mock(side_effect=error))
        with pytest.raises(type(error)) as found:
            prepare([source], BPE, out, overwrite=True)
    assert {n: (t, c) for n, (t, c) in tree(tmp_path).items()} == before and (old is None or Corpus.open(out).hash == old.hash)
    if isinstance(error, OSError):
        assert found.value.filename == str(out)
    assert prepare([source], BPE, out, overwrite=True).tokenizer == BPE


def test_a_folder_that_cannot_be_renamed_comes_back(tmp_path, monkeypatch):
    source, out, rename = lines_of(tmp_path / "a.jsonl", TEXTS), tmp_path / "corpus", os.rename
    old = prepare([source], ByteTokenizer(), out)

    def fail(a, b):
        if str(a).endswith(".part"):
            raise KeyboardInterrupt
        rename(a, b)

    monkeypatch.setattr(corpus_files.os, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], BPE, out, overwrite=True)
    assert Corpus.open(out).hash == old.hash and {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "corpus"}


KILLED = """
import os, signal, sys
from mc.text import ByteTokenizer, corpora, corpus_files
written = corpus_files.Writer.flush
def flush(self):
    written(self)
    os.kill(os.getpid(), signal.SIGKILL)
corpus_files.Writer.flush = flush
corpora.prepare([sys.argv[1]], ByteTokenizer(), sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_one_begins_anew(tmp_path):
    source, out = lines_of(tmp_path / "a.jsonl", TEXTS), tmp_path / "corpus"
    assert subprocess.run([sys.executable, "-c", KILLED, source, out]).returncode == -9
    assert not out.exists() and (tmp_path / "corpus.part").exists()
    with pytest.raises(ValueError, match="is no corpus"):
        Corpus.open(tmp_path / "corpus.part")
    prepare([source], ByteTokenizer(), out).check()
    assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "corpus"} and {p.name for p in out.iterdir()} == {"corpus.json", "documents.bin", "tokens.bin"}


GROWN = """
import json, resource, sys
from mc.text import ByteTokenizer, corpora, corpus_files
rss = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
source, out, mb = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(source, "w") as file:
    for i in range(mb * 1000):
        file.write(json.dumps({"text": f"{i} " + "memory " * 142}) + "\\n")
before = rss()
corpus = corpora.prepare([source], ByteTokenizer(), out)
for step in range(20):
    corpus.batches("train", 512, 8).batch(step)
print(rss() - before, len(corpus.tokens) / 1e6)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    out = subprocess.run([sys.executable, "-c", GROWN, tmp_path / "a.jsonl", tmp_path / "c", "12"], capture_output=True, text=True)
    grown, tokens = map(float, out.stdout.split())
    assert tokens > 11.9 and grown < 60, (grown, tokens)                               # MB; its tokens as Python's integers are 96 MB


@pytest.mark.parametrize("sources, options, said", [
    ([], {}, "sources must be one or more"), ([""], {}, "sources must be"), ([3], {}, "sources must be"), (["empty.txt"], {}, "the corpus is empty"), (["blank.txt"], {"separator": "\n"}, "the corpus is empty"),
    (["a.jsonl"], {"validation": -0.1}, "validation"), (["a.jsonl"], {"test": 2}, "test"), (["a.jsonl"], {"test": 0.6, "validation": 0.5}, r"validation \+ test"), (["a.jsonl"], {"test": 1, "validation": 0}, "below 1"), (["a.jsonl"], {"seed": -1}, "seed"),
    (["a.jsonl"], {"separator": ""}, "separator"), (["a.jsonl"], {"tokenizer": "bytes"}, "tokenizer must be"), (["few.jsonl"], {}, "none of 2 documents fell into"), (["line.txt"], {}, "too few lines to be cut into train, validation, test"),
    (["."], {}, "is a folder; name the files in it"),
])
def test_what_makes_no_corpus_is_named(sources, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "empty.txt", ""), put(tmp_path / "blank.txt", "\n \n\n"), lines_of(tmp_path / "a.jsonl", TEXTS), lines_of(tmp_path / "few.jsonl", TEXTS[:2]), put(tmp_path / "line.txt", "one line")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=said):
        prepare(**{"sources": sources, "tokenizer": BPE, "out": "corpus"} | options)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("spoil, said", [
    (lambda f: (f / "tokens.bin").write_bytes((f / "tokens.bin").read_bytes()[:-2]), "tokens.bin is damaged: it must have"), (lambda f: (f / "documents.bin").unlink(), "documents.bin is damaged"),
    (lambda f: (f / "corpus.json").write_text((f / "corpus.json").read_text().replace('"seed": 0', '"seed": 1')), "checksum"), (lambda f: (f / "corpus.json").unlink(), "is no corpus"),
], ids=["short", "missing", "edited", "none"])
def test_a_damaged_corpus_is_named(spoil, said, corpus):
    spoil(corpus.folder)
    with pytest.raises(ValueError, match=said):
        Corpus.open(corpus.folder)


def test_a_flipped_bit_is_found(corpus):
    data = bytearray((corpus.folder / "tokens.bin").read_bytes())
    data[7] ^= 1
    (corpus.folder / "tokens.bin").write_bytes(data)
    with pytest.raises(ValueError, match="tokens.bin is damaged: it is not what was written"):
        Corpus.open(corpus.folder).check()


# ---- batches

def rows_of(ends, start=0):
    "A split whose tokens are their own places."
    return Rows("train", np.arange(start, start + ends[-1], dtype=np.uint32), np.array(ends) + start, start)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=12), length=st.integers(1, 9), ranks=st.sampled_from([1, 2, 3]), seed=st.integers(0, 5), start=st.sampled_from([0, 1000]))
def test_an_epoch_reads_each_token_once_on_one_rank(sizes, length, ranks, seed, start):
    ends = [*itertools.accumulate(sizes)]
    if ends[-1] <= length:
        return
    batches = Batches(rows_of(ends, start), length, 6, seed, False, "")
    packed = replace(batches, packed=True)
    whole, seen = [], batches.count // 6 + 2
    for step in range(seen):
        tokens, labels, bounds = batches.batch(step)
        assert tokens.shape == labels.shape == (6, length) and labels.equal(tokens + 1) and bounds is None
        shares = [batches.batch(step, rank, ranks)[0] for rank in range(ranks)]
        assert sorted(torch.cat(shares).tolist()) == sorted(tokens.tolist())
        whole += tokens.tolist()
        one, after, bounds = packed.batch(step)
        assert one.flatten().equal(tokens.flatten()) and one.shape == (1, 6 * length)
        last = {start + end - 1 for end in ends}                                          # the last token of each document
        assert [t for t, a in zip(one[0].tolist(), after[0].tolist()) if a == -100] == [t for t in one[0].tolist() if t in last]
        kept = after != -100
        assert after[kept].equal(one[kept] + 1)
        assert bounds.tolist() == [0, *(i + 1 for i, t in enumerate(one[0].tolist()) if t in last or (i + 1) % length == 0)]
    for epoch in range(len(whole) // batches.count):
        read = sum(whole[epoch * batches.count:(epoch + 1) * batches.count], [])
        assert len({*read}) == len(read) == batches.count * length


def test_a_batch_is_a_function_of_seed_and_step(corpus):
    one, other = corpus.batches("train", 16, 4, seed=3), Corpus.open(corpus.folder).batches("train", 16, 4, seed=3)
    assert other.batch(17)[0].equal(one.batch(17)[0]) and one.describe() == other.describe()
    assert not corpus.batches("train", 16, 4, seed=4).batch(17)[0].equal(one.batch(17)[0])
    first = [b for s in range(math.ceil(one.steps)) for b in one.batch(s)[0].tolist()][:one.count]
    second = [one.batch(i // 4)[0].tolist()[i % 4] for i in range(one.count, 2 * one.count)]
    assert first != second and one.batch(0)[0].dtype == torch.int64


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64, 65, 1000])
def test_the_shuffle_is_a_permutation(count):
    assert sorted(shuffled(i, count, "a") for i in range(count)) == [*range(count)]
    assert count < 5 or [shuffled(i, count, "a") for i in range(count)] != [shuffled(i, count, "b") for i in range(count)]


def test_what_makes_no_batches_is_named(corpus):
    tokens = len(corpus.rows("validation").tokens)
    with pytest.raises(ValueError, match=f"length must be below {tokens}, the tokens of split 'validation'; got {tokens}"):
        corpus.batches("validation", tokens, 2)
    for wrong, said in (((("tests", 4, 2)), "split must be one of"), (("train", 0, 2), "length"), (("train", 4, 0), "batch_size"), (("train", 4, 2, -1), "seed"), (("train", 4, 2, 0, "yes"), "packed")):
        with pytest.raises(ValueError, match=said):
            corpus.batches(*wrong)
    for wrong, said in (((-1,), "step"), ((0, 2, 2), "rank"), ((0, 0, 3), "batch_size must be a multiple of the 3 ranks; got 4")):
        with pytest.raises(ValueError, match=said):
            corpus.batches("train", 4, 4).batch(*wrong)


@pytest.mark.parametrize("length, batch_size", [(1, 1), (7, 3), (8, 4), (500, 2)])
def test_evaluation_reads_a_split_once(length, batch_size):
    rows = rows_of([30, 41, 97], 50)
    plain, packed = Evaluation(rows, length, batch_size, False), Evaluation(rows, length, batch_size, True)
    assert torch.cat([labels.flatten() for _, labels, _ in plain]).tolist() == [*range(51, 147)] and len([*plain]) == len(plain) == len(packed)
    labels = torch.cat([labels.flatten() for _, labels, _ in packed]).tolist()
    assert [t for t in labels if t != -100] == [t for t in range(51, 147) if t not in (80, 91)]
    assert all(bounds[-1] == tokens.shape[1] for tokens, _, bounds in packed)
    with pytest.raises(IndexError):
        plain[len(plain)]


def test_a_packed_batch_goes_through_a_model(corpus):
    model = mc.LanguageModel(mc.LMConfig(BPE.vocab_size, 1, mc.MCConfig(8, 2, segment_size=4)))
    tokens, labels, bounds = corpus.batches("train", 24, 2, packed=True).batch(0)
    logits = model(tokens, cu_seqlens=bounds)
    assert torch.nn.functional.cross_entropy(logits[0], labels[0]).isfinite() and (labels == -100).any()


# ---- the commands

def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_commands_in_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.txt", "".join(f"{t}\n\n" for t in TEXTS))
    put(tmp_path / "run.yaml", "sources: [a.txt]\ntokenizer: t.json\nseparator: '\\n\\n'\nout: c\nvalidation: 0.1\ntest: 0.2\n")
    made = run("tokenizer", "train", "a.txt", "--vocab-size", 300, "--out", "t.json")
    assert made.exit_code == 0 and made.output.startswith(f"tokenizer: t.json, 300 tokens, hash {load_tokenizer('t.json').hash[:12]}"), made.output
    assert run("data", "prepare", "--config", "run.yaml").exit_code == 0
    one = Corpus.open("c")
    assert one.tokenizer == load_tokenizer("t.json") and {*one.texts("test"), *one.texts("train"), *one.texts("validation")} == {*TEXTS}
    assert run("data", "prepare", "a.txt", "--config", "run.yaml", "--out", "d", "--tokenizer", "bytes").exit_code == 0     # what is typed wins
    assert Corpus.open("d").tokenizer == ByteTokenizer()
    assert run("tokenizer", "train", "--help").output.count("Example: mc tokenizer train") == run("data", "prepare", "--help").output.count("Example: mc data prepare") == 1


D, T = ("data", "prepare"), ("tokenizer", "train")
REFUSED = [                                                                          # arguments, exit code, what the line says
    (("data",), 2, "Missing command"), (("dat",), 2, "'dat'", "data"), ((*D[:1], "prepar"), 2, "'prepar'", "prepare"), (D, 2, "SOURCES"), (T, 2, "SOURCES"), ((*D, "none.txt"), 1, "none.txt: No such file"), ((*T, "none.txt"), 1, "none.txt"),
    ((*T, "a.txt", "--vocab-size", "256"), 2, "--vocab-size must be an integer of at least 257; got '256'"), ((*T, "latin.txt"), 2, "latin.txt is not UTF-8: byte 0xe4 at position 1"), ((*T, "empty.txt"), 2, "at least one letter"),
    ((*D, "empty.txt"), 2, "the corpus is empty"), ((*D, "a.txt", "--tokenizer", "a.txt"), 2, "a.txt: this is no tokenizer"), ((*D, "a.txt", "--tokenizer", "none"), 1, "none: No such file"), ((*D, "a.txt", "--out", "a.txt/x"), 1, "a.txt/x", "Not a directory"),
    ((*D, "a.txt", "--test", "many"), 2, "--test must be a finite number from 0 to 1; got 'many'"), ((*D, "b.jsonl"), 2, "b.jsonl, line 1 has no field 'text'; it has 'body'"), ((*D, "b\udcff.txt"), 1, "No such file"),
]


@pytest.mark.parametrize("arguments, code, words", [(a, c, w) for a, c, *w in REFUSED], ids=[" ".join(a)[:50].encode("ascii", "replace").decode() for a, *_ in REFUSED])
def test_one_line_and_the_right_code(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.txt", "a\n" * 100), put(tmp_path / "latin.txt", "käse".encode("latin-1")), put(tmp_path / "empty.txt", ""), put(tmp_path / "b.jsonl", '{"body": "a"}\n')
    before, result = tree(tmp_path), run(*arguments)
    assert result.exit_code == code and result.stdout == "" and result.stderr.count("\n") == 1, result.output
    assert all(word in result.stderr for word in words), result.stderr
    assert tree(tmp_path) == before


CONFIGS = [                                                                          # the file, what the line says
    ("vocab: 300", "unknown key 'vocab'; did you mean vocab-size?"), ("zzz: 1", "unknown key 'zzz'"), ("1: 2", "unknown key 1"), ("config: a", "unknown key 'config'"), ("help: true", "unknown key 'help'"),
    ("vocab-size: '300'", "vocab-size must be an integer of at least 257; got '300'"), ("vocab_size: 300.5", "got 300.5"), ("vocab-size: true", "got True"), ("vocab-size: 256", "at least 257; got 256"), ("vocab-size: null", "got None"), ("vocab-size: .nan", "got nan"),
    ("out: 3", "out must be text; got 3"), ("out: [a]", "got ['a']"), ("sources: a.txt", "sources must be a list, each text; got 'a.txt'"), ("sources: []", "got []"), ("sources: [1]", "got [1]"),
    ("vocab-size: 300\nvocab-size: 301", "vocab-size twice"), ("vocab-size: 300\nvocab_size: 301", "vocab-size twice"), ("- a", "must hold options by name; it holds a list"), ("a", "holds a str"), ("", "is empty"), ("out: {", "line 1"),
    ("out: fär".encode("latin-1"), "is not UTF-8"), ("out: a".encode("utf-16"), "is not UTF-8"), ("out: !!python/name:os.getcwd", "line 1"),
]


@pytest.mark.parametrize("content, said", CONFIGS, ids=range(len(CONFIGS)))
def test_a_file_of_options_is_checked(content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.txt", "a b c\n" * 9), put(tmp_path / "o.yaml", content)
    before, result = tree(tmp_path), run("tokenizer", "train", "a.txt", "--config", "o.yaml")
    assert result.exit_code == 2 and result.stderr.startswith("Error: o.yaml") and result.stderr.count("\n") == 1 and said in result.stderr, result.output
    assert tree(tmp_path) == before


def test_options_from_a_file_and_what_is_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "-a.txt", "a b c a b c\n" * 9), put(tmp_path / "o.yaml", "sources: [-a.txt]\nvocab_size: 258\nseparator: null\nout: x.json\n")
    assert run("tokenizer", "train", "--config", "o.yaml").exit_code == 0 and load_tokenizer("x.json").vocab_size == 258
    assert run("tokenizer", "train", "--vocab-size", 259, "--config", "o.yaml").exit_code == 0 and load_tokenizer("x.json").vocab_size == 259
    assert run("tokenizer", "train", "--config", "none.yaml").stderr == "Error: none.yaml cannot be read: No such file or directory\n"
    assert "--out" in run("tokenizer", "train", "--config", "none.yaml", "--help").output


@pytest.mark.parametrize("content, said", [("seed: true", "seed must be an integer of at least 0; got True"), ("test: true", "test must be a finite number from 0 to 1; got True"), ("overwrite: 1", "overwrite must be true or false; got 1"), ("overwrite: 'true'", "got 'true'")])
def test_truth_values_are_no_numbers(content, said, tmp_path):
    put(tmp_path / "o.yaml", content)
    assert said in run("data", "prepare", "a.txt", "--config", tmp_path / "o.yaml").stderr


def test_the_table_of_commands_says_what_the_commands_say():
    for words, (place, help) in COMMANDS.items():
        said = run(*words.split(), "--help").output
        assert help in said and f"Usage: root {words}" in said, place
        assert f"{words}  " in run("--help").output


def test_help_imports_no_command():
    code = "import sys\nfrom mc.commands.base import main\ntry: main(['--help'])\nexcept SystemExit: print(sorted({'torch', 'numpy', 'pydantic', 'yaml', 'rich', 'click', 'mc.commands.text', 'mc.commands.bench'} & {*sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n"), out


def test_a_text_is_not_replaced_by_a_tokenizer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.txt", "a b c a b c\n" * 9)
    before, result = tree(tmp_path), run("tokenizer", "train", "a.txt", "--vocab-size", 258, "--out", "a.txt")
    assert result.exit_code == 2 and result.stderr == "Error: --out must name a file that is new or a tokenizer; a.txt is something else\n"
    assert run("tokenizer", "train", "a.txt", "--out", ".").stderr == "Error: --out must name a file; . is a folder\n" and tree(tmp_path) == before
    assert [run("tokenizer", "train", "a.txt", "--vocab-size", n, "--out", "t.json").exit_code for n in (258, 259)] == [0, 0]


def test_options_are_named_as_they_are_typed():
    from mc.commands.options import as_typed

    params = command("train", COMMANDS["train"][0]).params
    for said, wanted in [("top_k must be below num_heads_2; got 'top_k'", "--top-k must be below num_heads_2; got 'top_k'"), ("seed must be 0", "--seed must be 0"), ("nodes: 2", "--nodes: 2"),
                         ("my/batch_size/top_k.txt: seed must be 0", "my/batch_size/top_k.txt: seed must be 0"), ("corpus is none", "corpus is none"), ("the training needs seed to be 1", "the training needs --seed to be 1")]:
        assert as_typed(said, params) == wanted
