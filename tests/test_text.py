"""From text to batches: nothing lost, nothing read twice, nothing of the test set in the training set, nothing half-written."""
import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Foreign
from tokenizers import decoders, models, pre_tokenizers

from mc.text import BPETokenizer, ByteTokenizer, load_tokenizer
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
