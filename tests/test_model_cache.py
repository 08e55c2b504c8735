"""One cache for a model, whatever its mixers; attention's cache, its window, and the logits of the last position."""
import copy
import pickle
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F

import mc
from mc.nn.attention import Attention
from mc.nn.attention_cache import AttentionCache
from mc.nn.model_cache import ModelCache
from mc.storage import load_tensors, save_tensors

pytestmark = pytest.mark.usefixtures("poisoned")

GRM, SSC = mc.MCConfig(8, 2, segment_size=4), mc.MCConfig(8, 2, "swla", "ssc", segment_size=3, top_k=1, conv_size=3)
TITANS = mc.MCConfig(8, 2, "titans", "soup", "fenwick", segment_size=4, chunk_size=3)
FULL, WINDOW, SHORT = mc.AttentionConfig(8, 2, 3), mc.AttentionConfig(8, 2, window=5), mc.AttentionConfig(8, 2, window=1)
HYBRIDS = {"attention": [FULL, FULL], "window": [WINDOW, SHORT], "grm+window": [GRM, WINDOW, GRM, WINDOW], "ssc+attention": [SSC, FULL],
           "titans+all": [TITANS, WINDOW, FULL]}
each_hybrid = pytest.mark.parametrize("mixers", HYBRIDS.values(), ids=HYBRIDS)


def model_of(mixers, dtype=torch.float64):
    torch.manual_seed(0)
    return mc.LanguageModel(mc.LMConfig(11, mixers=mixers)).to(dtype).eval()


def batch(rows=4, T=34, seed=0):
    "Tokens and a mask; row 1 begins late, row 2 ends early, row 3 has no gap."
    gen = torch.Generator().manual_seed(seed)
    tokens, mask = torch.randint(11, (rows, T), generator=gen), torch.rand(rows, T, generator=gen) < 0.6
    mask[1, : T // 2] = mask[2, T // 3 :] = False
    mask[3] = True
    return tokens.masked_fill(~mask, -100), mask


def alone(model, tokens, mask):
    return [model(row[real][None])[0] for row, real in zip(tokens, mask)]


def close(a, b, atol=1e-10):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol)


PIECES = [9, 1, 1, 2, 7, 1, 1, 1, 1, 10]


@each_hybrid
@pytest.mark.parametrize("grad", [False, True])
def test_each_row_is_the_row_alone_in_pieces_and_steps(mixers, grad):
    model, (tokens, mask), cache, parts = model_of(mixers), batch(), None, []
    with torch.set_grad_enabled(grad):
        for piece, real in zip(tokens.split(PIECES, 1), mask.split(PIECES, 1)):
            logits, cache = model.forward_with_cache(piece, cache, real)
            assert (logits[~real] == 0).all()
            parts.append(logits)
        logits = torch.cat(parts, 1)
        for y, real, right in zip(logits, mask, alone(model, tokens, mask)):
            assert close(y[real], right)
    assert cache.positions == mask.sum(1).tolist() and cache.columns == 34


@each_hybrid
def test_reorder_repeat_select_and_files_in_the_middle(mixers, tmp_path):
    "What is done to the cache is done to the texts; the cache goes through a file each time."
    model, (tokens, mask), cache = model_of(mixers), batch(), None
    texts = [[] for _ in tokens]
    changes = [lambda c: c.reorder([1, 0, 3, 3]), lambda c: c.repeat(2), lambda c: c.select(torch.tensor([7, 0, 4])), lambda c: c.repeat(1)]
    rows = [[1, 0, 3, 3], [0, 0, 1, 1, 2, 2, 3, 3], [7, 0, 4], [0, 1, 2]]
    with torch.no_grad():
        for i, (piece, real) in enumerate(zip(tokens.split([9, 1, 1, 3, 1, 1, 1, 17], 1), mask.split([9, 1, 1, 3, 1, 1, 1, 17], 1))):
            piece, real = (x.repeat(2, 1)[: len(texts)] for x in (piece, real))
            logits, cache = model.forward_with_cache(piece, cache, real, last=True)
            texts = [text + row[seen].tolist() for text, row, seen in zip(texts, piece, real)]
            for text, y, seen in zip(texts, logits, real):
                right = model(torch.tensor([text]))[0, -1] if seen.any() else torch.zeros(11, dtype=y.dtype)
                assert close(y, right)
            if i < 4:
                cache, texts = changes[i](cache), [texts[b] for b in rows[i]]
            cache.save(tmp_path / "cache")
            again = ModelCache.load(tmp_path / "cache")
            assert (again.positions, again.columns) == (cache.positions, cache.columns) == ([len(t) for t in texts], cache.columns)
            cache = again if i % 2 else cache


def places(cache):
    return cache.keys.untyped_storage().data_ptr(), cache.keys.untyped_storage().nbytes()


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_step_of_attention_copies_nothing(window, ragged):
    "Storage moves as often as it doubles; what a step writes elsewhere is no more after 300 tokens than after 3."
    layer, x = Attention(mc.AttentionConfig(8, 2, window=window)), torch.randn(2, 300, 8)
    mask, one, cache, homes, held = torch.tensor([[1, 1], [1, int(not ragged)]]), torch.ones(2, 1), None, [], []
    with torch.no_grad():
        _, cache = layer.forward_with_cache(x[:, :2], None, mask)
        for t in range(2, 300):
            _, cache = layer.forward_with_cache(x[:, t : t + 1], cache, one)
            home, size = places(cache)
            homes += [home] if not homes or homes[-1] != home else []
            held.append(size / (2 * 8 * 4))                                              # places of keys
    assert len(homes) <= (8 if window is None else 60)                                   # 8 doublings; or once per window's length
    assert max(held) <= (2 * 300 + 8 if window is None else 40)
    assert cache.positions == [300, 300 - ragged] and cache.nbytes <= (2 * 2 * 8 * 4 * 300 + 64 if window is None else 2 * 2 * 8 * 4 * 13 + 64)


@pytest.mark.parametrize("config", [FULL, WINDOW], ids=["full", "window"])
def test_beams_do_not_write_into_each_other(config):
    layer, x = Attention(config).double(), torch.randn(3, 40, 8, dtype=torch.float64)
    with torch.no_grad():
        _, start = layer.forward_with_cache(x[:, :4])
        _, start = layer.step(x[:, 4], start)                                            # now it has room
        kept = {n: t.clone() for n, t in start._tensors().items()}
        first, second = start, start
        for t in range(5, 20):                                                           # two branches of one prefix, in turn
            y, first = layer.step(x[:, t], first)
            z, second = layer.step(x[:, t + 20], second)
        assert close(y, layer(x[:, :20])[:, -1]) and close(z, layer(torch.cat([x[:, :5], x[:, 25:40]], 1))[:, -1])
        assert all(torch.equal(t, kept[n]) for n, t in start._tensors().items())
        for copied in (copy.deepcopy(start), pickle.loads(pickle.dumps(start)), start.to(torch.float64), start.detach(), replace(start)):
            assert close(layer.step(x[:, 5], copied)[0], layer(x[:, :6])[:, -1])


def test_the_identity_copies_nothing_and_room_survives_a_reorder():
    model, tokens = model_of([GRM, FULL]), batch()[0].clamp(min=0)
    with torch.no_grad():
        _, cache = model.forward_with_cache(tokens[:, :9])
        _, cache = model.forward_with_cache(tokens[:, 9:10], cache)
        assert cache.reorder([0, 1, 2, 3]) is cache and cache.repeat(1) is cache and cache.select(torch.arange(4)) is cache
        assert cache[0].reorder([0, 1, 2, 3]) is cache[0] and cache[1].reorder(range(4)) is cache[1]
        cache = cache.reorder([3, 3, 0, 0])
        home = places(cache[1])
        for t in range(10, 15):
            _, cache = model.forward_with_cache(tokens[:, t : t + 1], cache)
            assert places(cache[1]) == home


def banded(layer, x, window):
    "Attention with a window as a mask over all pairs of tokens."
    heads = layer.conv(x)[0].unflatten(-1, (3, layer.config.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = F.normalize(heads[0], dim=-1) * layer.log_scale.exp(), F.normalize(heads[1], dim=-1)
    i = torch.arange(x.shape[1])
    seen = (i <= i[:, None]) & (i > i[:, None] - window)
    y = (q @ k.mT).masked_fill(~seen, float("-inf")).softmax(-1) @ heads[2]
    return layer.out(layer.norm(y).transpose(1, 2).flatten(2) * F.silu(layer.gate(x)))


@pytest.mark.parametrize("T", [1, 4, 5, 6, 10, 23])
@pytest.mark.parametrize("window", [1, 2, 5, 22, 40])
def test_a_window_is_a_band_forward_and_backward(T, window):
    torch.manual_seed(0)
    layer, x = Attention(mc.AttentionConfig(8, 2, window=window)).double(), torch.randn(2, T, 8, dtype=torch.float64, requires_grad=True)
    y, right = layer(x), banded(layer, x, window)
    assert close(y, right)
    slope = torch.randn_like(y)
    for mine, theirs in zip(torch.autograd.grad(y, [x, *layer.parameters()], slope), torch.autograd.grad(right, [x, *layer.parameters()], slope)):
        assert close(mine, theirs)


def test_a_long_text_with_a_window_has_no_square(monkeypatch):
    "Pairs of query and key, in the first call and after a cache with unequal rows: linear in the tokens."
    pairs, real = [], F.scaled_dot_product_attention
    def counted(q, k, v, **rest):
        pairs.append(q.shape[:-1].numel() * k.shape[-2])
        return real(q, k, v, **rest)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    layer, x = Attention(mc.AttentionConfig(8, 2, window=16)), torch.randn(2, 1024, 8)
    with torch.no_grad():
        _, cache = layer.forward_with_cache(x[:, :20], None, torch.ones(2, 20).tril(3))
        layer.forward_with_cache(x, cache, torch.ones(2, 1024))
        layer(x)
    assert max(pairs) <= 2 * 2 * 1024 * 2 * 16 and sum(pairs) < 0.1 * 2 * 2 * 2 * 1024**2


@pytest.mark.parametrize("call", ["forward", "packed", "cached"])
def test_the_logits_of_the_last_position_are_never_more(call):
    model, (tokens, mask), made = model_of([GRM, WINDOW]), batch(), []
    ends = torch.stack([y[-1] for y in alone(model, tokens, mask)])
    model.embedding.register_forward_hook(lambda _, __, y: made.append(y.shape))
    if call == "packed":
        text, bounds = torch.cat([row[real] for row, real in zip(tokens, mask)])[None], [0, *mask.sum(1).cumsum(0).tolist()]
        y = model(text, cu_seqlens=bounds, last=True)
    elif call == "forward":
        y = model(tokens, mask, last=True)
        assert close(model(tokens[3:], last=True), ends[3:])
    else:
        y, cache = model.forward_with_cache(tokens, attention_mask=mask, last=True)
        nothing, _ = model.forward_with_cache(tokens, cache, mask & (torch.arange(4) != 1)[:, None], last=True)
        assert (nothing[1] == 0).all() and nothing[0].any()
    assert close(y, ends) and all(len(shape) == 2 or shape[-1] == 8 for shape in made)


def test_mixers_that_are_all_alike_are_one_mixer():
    assert mc.LMConfig(11, mixers=[GRM, GRM]) == mc.LMConfig(11, 2, GRM) and mc.LMConfig(11, 2, GRM).mixers is None
    config = mc.LMConfig(11, mixers=(GRM, WINDOW), expansion=3)
    assert (config.num_layers, config.mixer, config.layers, config.d_model) == (2, None, (GRM, WINDOW), 8)
    assert mc.LMConfig.from_dict(config.to_dict()) == config == replace(config) and hash(config) == hash(replace(config))
    assert mc.LMConfig(11, 2, GRM).layers == (GRM, GRM)
    assert "mixers" not in mc.LMConfig(11, 2, FULL).to_dict() and "window" not in mc.LMConfig(11, 2, FULL).to_dict()["mixer"]


@pytest.mark.parametrize("options, message", [
    ({"mixers": []}, "mixers must hold one for each block; got none"), ({"mixers": 3}, "mixers must be"), ({"mixers": [GRM, "grm"]}, "mixers, each of them, must be an MCConfig or an AttentionConfig"),
    ({"mixers": [GRM, mc.AttentionConfig(16, 2)]}, r"mixers must share one d_model; got \[8, 16\]"), ({"mixers": [GRM], "mixer": GRM}, "give mixer, .* or mixers, not both"),
    ({"mixers": [GRM, FULL], "num_layers": 3}, "mixers must hold one for each of 3 blocks; got 2"), ({}, "mixer must be"), ({"mixer": GRM}, "num_layers must be"),
], ids=lambda o: str(o)[:40] if isinstance(o, str) else "")
def test_mixers_that_make_no_model_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mc.LMConfig(11, **options)


@pytest.mark.parametrize("window", [0, -1, 2.5, "4", True])
def test_a_window_is_a_number_of_tokens(window):
    with pytest.raises(ValueError, match="window must be an integer"):
        mc.AttentionConfig(8, 2, window=window)


def test_a_cache_of_another_model_is_refused_by_name():
    tokens = batch()[0].clamp(min=0)[:, :6]
    others = {"kinds": [FULL, GRM], "three": [GRM, FULL, FULL], "heads": [GRM, mc.AttentionConfig(8, 4, 3)], "window": [GRM, mc.AttentionConfig(8, 2, 3, window=4)],
              "conv": [GRM, mc.AttentionConfig(8, 2, 2)], "segments": [replace(GRM, segment_size=5), FULL]}
    model = model_of([GRM, FULL])
    for mixers in others.values():
        _, cache = model_of(mixers).forward_with_cache(tokens)
        with pytest.raises(ValueError, match="cache"):
            model.forward_with_cache(tokens[:, :1], cache)
    _, cache = model.forward_with_cache(tokens)
    for bad in (cache[:1], [cache[0], None], [cache[0], cache[1].select([0])], cache.select([0, 1])):
        with pytest.raises(ValueError, match="cache"):
            model.forward_with_cache(tokens[:, :1], bad)
    model.forward_with_cache(tokens[:, :1], list(cache))                                  # a list is as good
    with pytest.raises(ValueError, match="position is for rows that have come equally far; these have seen"):
        getattr(model.forward_with_cache(tokens, cache, torch.ones(4, 6).tril(2))[1], "position")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "model cache"
    tokens, mask = batch()
    model_of([GRM, WINDOW]).forward_with_cache(tokens, None, mask)[1].save(path)
    return path


def kinds_of_damage():
    nan = lambda t: torch.full_like(t, float("nan"))
    tensors = {f"nan {n}": (n, nan) for n in ("0.pools", "0.online.m", "1.keys", "1.inputs")}
    tensors |= {f"half {n}": (n, lambda t: t[: len(t) // 2]) for n in ("0.states.m", "0.key_sum", "1.keys", "1.values", "1.inputs")}
    tensors |= {f"whole numbers {n}": (n, lambda t: t.long()) for n in ("0.pools", "1.values")}
    tensors |= {f"without {n}": (n, None) for n in ("0.pools", "1.keys")} | {"one more": ("2.keys", nan), "nested": ("1.other", nan)}
    for name, (tensor, change) in tensors.items():
        def damage(t, about, tensor=tensor, change=change):
            old = t.pop(tensor, torch.zeros(2))
            t.update({} if change is None else {tensor: change(old)})
        yield name, damage
    for name, value in {"kept": [1, 2, 3, 4], "seen": [1, 1, 1, 1], "columns": -3, "window": 99, "kept none": None}.items():
        yield f"attention {name}", lambda t, about, n=name.split()[0], v=value: about["caches"][1]["rest"].update({n: v})
    yield "running", lambda t, about: about["caches"][0]["rest"].update(running=[9, 9, 9, 9])
    yield "kind", lambda t, about: about["caches"][0].update(kind="Cache")
    yield "kinds exchanged", lambda t, about: [c.update(kind=k) for c, k in zip(about["caches"], ("AttentionCache", "SegmentCache"))]
    yield "no blocks", lambda t, about: about.update(caches=[])
    yield "a block less", lambda t, about: about["caches"].pop()
    yield "text", lambda t, about: about.update(caches="none")
    yield "another header", lambda t, about: about.update(other=1)
    yield "rows", lambda t, about: t.update({n: a[:1] for n, a in t.items() if n.startswith("1.")}) or about["caches"][1]["rest"].update(kept=[4], seen=[20])


@pytest.mark.parametrize("damage", [d for _, d in kinds_of_damage()], ids=[n for n, _ in kinds_of_damage()])
def test_a_damaged_cache_is_refused_by_name(damage, file, tmp_path):
    tensors, about = load_tensors(file)
    damage(tensors, about)
    save_tensors(tmp_path / "damaged", tensors, about)
    with pytest.raises(ValueError, match="damaged is not the cache of a model"):
        ModelCache.load(tmp_path / "damaged")


def test_files_of_others_are_refused_by_name(file, tmp_path):
    whole, model = file.read_bytes(), model_of([GRM, FULL])
    _, cache = model.forward_with_cache(torch.zeros(1, 3).long())
    for load, save in [(ModelCache.load, model.save), (ModelCache.load, cache[0].save), (ModelCache.load, cache[1].save), (AttentionCache.load, cache.save),
                       (mc.SegmentCache.load, cache.save), (AttentionCache.load, cache[0].save), (mc.LanguageModel.load, cache.save)]:
        save(tmp_path / "other")
        with pytest.raises(ValueError, match="other is not"):
            load(tmp_path / "other")
    for bad in (b"", b"{}", whole[:-3], whole[:90] + bytes([whole[90] ^ 1]) + whole[91:], safetensors.torch.save({"1.keys": torch.zeros(2)})):
        (tmp_path / "cut").write_bytes(bad)
        with pytest.raises(ValueError, match="cut is not a complete file"):
            ModelCache.load(tmp_path / "cut")
    cache[1].save(tmp_path / "own")
    again = AttentionCache.load(tmp_path / "own")
    assert torch.equal(again.keys, cache[1].keys) and again.seen == cache[1].seen


@pytest.mark.parametrize("mixer", [WINDOW, GRM])
def test_a_model_of_an_earlier_version_loads_with_what_its_layer_did(tmp_path, mixer):
    model = model_of([mixer])
    model.save(tmp_path / "model")
    state, about = load_tensors(tmp_path / "model")
    plain = type(mixer)(mixer.d_model, mixer.num_heads)
    options = about["model"]["mixer"]
    about["model"]["mixer"] = {n: a for n, a in options.items() if n in ("kind", "d_model", "num_heads") or a != getattr(plain, n)}
    assert len(about["model"]["mixer"]) < len(options)
    save_tensors(tmp_path / "old", state, about)
    assert mc.LanguageModel.load(tmp_path / "old").config == model.config


def test_a_hybrid_is_inspected_saved_and_loaded(tmp_path):
    model, tokens = model_of([WINDOW, GRM, FULL]), torch.arange(10)[None]
    logits, traces = model.inspect(tokens)
    assert torch.equal(logits, model(tokens)) and [t is None for t in traces] == [True, False, True] and traces[1].gates.shape == (1, 10, 2, 3)
    model.save(tmp_path / "model")
    again = mc.LanguageModel.load(tmp_path / "model")
    assert again.config == model.config and torch.equal(again(tokens), logits)
    with pytest.raises(ValueError, match="inspect needs Memory Caching layers"):
        model_of([WINDOW, FULL]).inspect(tokens)


@pytest.mark.slow
def test_torch_s_own_tools_go_through_a_hybrid():
    torch._dynamo.reset()
    model, tokens = model_of([GRM, FULL, WINDOW], torch.float32), torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = model(tokens)
    with torch.no_grad():
        prefill = torch.compile(model.forward_with_cache, backend="eager")
        _, cache = prefill(tokens[:, :8])
        assert close(prefill(tokens[:, 8:], cache)[0][:, 0], whole[:, -1], 1e-5)
    assert close(torch.vmap(lambda row: model.forward_with_cache(row[None])[0][0])(tokens), whole, 1e-5)
    _, cache = model.forward_with_cache(tokens[:, :8])
    leaves, spec = torch.utils._pytree.tree_flatten(cache)
    again = torch.utils._pytree.tree_unflatten(leaves, spec)
    assert isinstance(again, ModelCache) and close(model.forward_with_cache(tokens[:, 8:], again)[0][:, 0], whole[:, -1], 1e-5)
    for kind in (torch.bfloat16, torch.float64):
        y, _ = copy.deepcopy(model).to(kind).forward_with_cache(tokens[:, 8:], cache.to(kind))
        assert y.dtype == kind and close(y[:, 0].float(), whole[:, -1], 0.1 if kind == torch.bfloat16 else 1e-5)


def test_training_through_caches_is_training_on_the_whole():
    model, tokens = model_of([GRM, WINDOW, FULL]), batch()[0].clamp(min=0)
    right = torch.autograd.grad(model(tokens).square().sum(), model.parameters())
    head, cache = model.forward_with_cache(tokens[:, :13])
    tail, _ = model.forward_with_cache(tokens[:, 13:], cache)
    for a, b in zip(torch.autograd.grad(head.square().sum() + tail.square().sum(), model.parameters()), right):
        assert (a - b).norm() < 1e-9 * b.norm()
    _, cut = model.forward_with_cache(tokens[:, 13:], cache.detach())
    assert not any(t.requires_grad for layer in cache.detach() for t in layer._tensors().values()) and cut.columns == 34


def test_the_explorer_shows_the_memory_caching_layers_of_a_hybrid():
    from mc.explorers.routing_data import gates_of, routing_data

    model, tokens = model_of([FULL, GRM, WINDOW, GRM], torch.float32), torch.randint(11, (30,), generator=torch.Generator().manual_seed(0))
    (variant,) = routing_data(model, tokens, "a hybrid")["variants"]
    assert (variant["layers"], variant["blocks"]) == (2, [2, 4])
    computed = torch.stack([t.gates[0] for t in model.inspect(tokens[None])[1] if t])
    assert (gates_of(variant, 30) - computed).abs().max() < 1e-5
    with pytest.raises(ValueError, match="models must have Memory Caching layers that are configured alike; those of 'a' differ"):
        mc.explore({"a": model_of([GRM, SSC])}, tokens)
