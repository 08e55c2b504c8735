"""The language model: streaming through all blocks, files, and tokens that it refuses."""
import pytest
import torch

import mc

MIXERS = [mc.MCConfig(16, 2, segment_size=4), mc.MCConfig(16, 2, aggregation="none"), mc.AttentionConfig(16, 2)]


def model_of(mixer):
    torch.manual_seed(0)
    return mc.LanguageModel(mc.LMConfig(32, 2, mixer)).double()


def tokens(T=11):
    return torch.randint(32, (2, T), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_tokens_one_by_one_equal_all_at_once(mixer):
    model, caches, rows = model_of(mixer), None, []
    for t in range(11):
        logits, caches = model.forward_with_cache(tokens()[:, t : t + 1], caches)
        rows.append(logits)
    assert torch.allclose(torch.cat(rows, 1), model(tokens()), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mixer", MIXERS, ids=str)
def test_a_saved_model_is_the_same_model(mixer, tmp_path):
    model = model_of(mixer)
    model.save(tmp_path / "model.safetensors")
    again = mc.LanguageModel.load(tmp_path / "model.safetensors")
    assert again.config == model.config and torch.equal(again(tokens()), model(tokens()))


def test_models_differ_in_the_mixer_only():
    "Equal but for W_u of gated models and the temperature of attention."
    count = lambda mixer: sum(p.numel() for p in model_of(mixer).parameters())
    assert count(MIXERS[0]) - count(MIXERS[1]) == 2 * 16 * 16 and count(MIXERS[2]) - count(MIXERS[1]) == 2 * 2


@pytest.mark.parametrize("bad", [b"", b"not safetensors", "cut", "flipped"])
def test_damaged_files_are_refused(bad, tmp_path):
    path = tmp_path / "model.safetensors"
    model_of(MIXERS[0]).save(path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "flipped": b"\xff" + whole[1:]}.get(bad, bad))
    with pytest.raises(ValueError, match="model.safetensors is not a complete file"):
        mc.LanguageModel.load(path)


def test_a_cache_is_not_a_model(tmp_path):
    _, caches = model_of(MIXERS[0]).forward_with_cache(tokens())
    caches[0].save(tmp_path / "cache.safetensors")
    with pytest.raises(ValueError, match="not a saved model"):
        mc.LanguageModel.load(tmp_path / "cache.safetensors")
    model_of(MIXERS[0]).save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not a segment cache"):
        mc.SegmentCache.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("bad, message", [
    (tokens()[0], r"\(11,\)"), (tokens().float(), "float32"), (tokens()[:, :0], r"\(2, 0\)"),
    (tokens() - 40, "between 0 and vocab_size - 1 = 31"), (tokens() + 30, "between 0 and vocab_size - 1 = 31"), ([1, 2], "got list"),
])
def test_bad_tokens_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        model_of(MIXERS[0])(bad)


def test_caches_that_do_not_fit_are_refused():
    model = model_of(MIXERS[2])
    _, caches = model.forward_with_cache(tokens())
    with pytest.raises(ValueError, match="cache must hold one for each of 2 blocks; got 1"):
        model.forward_with_cache(tokens(), caches[:1])
    with pytest.raises(ValueError, match="cache is of another layer or batch"):
        model.forward_with_cache(tokens()[:1], caches)
    with pytest.raises(ValueError, match="cache is of another layer or batch"):
        model_of(mc.AttentionConfig(16, 4)).forward_with_cache(tokens(), caches)


def test_attention_has_no_routing_to_inspect():
    with pytest.raises(ValueError, match="inspect needs Memory Caching layers"):
        model_of(MIXERS[2]).inspect(tokens())


@pytest.mark.parametrize("mixer", [mc.MCConfig(16, 2, backend="dla", segment_size=4), mc.AttentionConfig(16, 2)], ids=["dla", "attention"])
def test_padding_and_packing_change_nothing(mixer):
    torch.manual_seed(0)
    model = mc.LanguageModel(mc.LMConfig(12, 2, mixer)).double()
    tokens = torch.randint(12, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 9, [0, 1, 1, 0, 0, 1, 1, 1, 0]])
    logits = model(tokens, attention_mask=mask)
    assert torch.allclose(logits[0], model(tokens[:1])[0]) and (logits[mask == 0] == 0).all()
    assert torch.allclose(logits[1, mask[1] == 1], model(tokens[1:, mask[1] == 1])[0])
    packed = model(tokens.reshape(1, 18), cu_seqlens=torch.tensor([0, 5, 18]))
    assert torch.allclose(packed[0, 5:], model(tokens.reshape(1, 18)[:, 5:])[0])


def test_a_logarithmic_cut_refuses_different_lengths():
    model = mc.LanguageModel(mc.LMConfig(12, 1, mc.MCConfig(16, 2, segmentation="logarithmic")))
    with pytest.raises(ValueError, match="'logarithmic' cuts by the length of a sequence"):
        model(torch.zeros(2, 4, dtype=torch.int64), attention_mask=torch.ones(2, 4).tril(2))
