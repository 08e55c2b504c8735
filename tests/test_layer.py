"""The layer and the model as an engineer uses them: streaming, caches on disk, types, and what they refuse."""
from dataclasses import replace
from itertools import product

import pytest
import torch

import mc
from mc.nn.backends import BACKENDS
from mc.nn.model import Attention
from mc.options import INITS
from mc.read.ways import AGGREGATIONS

CONFIGS = [mc.MCConfig(16, 2, backend=b, aggregation=a, segmentation=g, init=i, segment_size=4, chunk_size=3, top_k=2, conv_size=w)
           for n, (b, a, g, i) in enumerate(product(BACKENDS, AGGREGATIONS, ("constant", "fenwick"), INITS))
           for w in ((1, 3) if b == "linear" else (1 + n % 3,))]


def layer_of(config, seed=0):
    torch.manual_seed(seed)
    layer = (mc.MemoryCachingLayer if isinstance(config, mc.MCConfig) else Attention)(config).double()
    if hasattr(getattr(layer, "backend", None), "w1"):
        torch.nn.init.normal_(layer.backend.w1, std=0.1)               # zero at first: both layers at work
    return layer


def inputs(T, B=2, width=16, seed=0):
    return torch.randn(B, T, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", [*CONFIGS, mc.AttentionConfig(16, 2, 3)], ids=str)
def test_prefill_and_steps_equal_one_pass(config):
    layer, x = layer_of(config), inputs(18)
    whole = layer(x)
    for cut in (0, 1, 9):
        y, cache = layer.forward_with_cache(x[:, :cut]) if cut else (x[:, :0], None)
        rows = [y]
        for t in range(cut, 18):
            y, cache = layer.forward_with_cache(x[:, t : t + 1], cache)
            rows.append(y)
        assert torch.allclose(torch.cat(rows, 1), whole, rtol=1e-9, atol=1e-11)


def test_step_is_forward_with_one_token():
    layer, x = layer_of(CONFIGS[2]), inputs(6)
    _, cache = layer.forward_with_cache(x[:, :5])
    y, after = layer.step(x[:, 5], cache)
    assert torch.allclose(y, layer(x)[:, 5]) and after.position == 6


@pytest.mark.parametrize("config", [*CONFIGS[::3], mc.AttentionConfig(16, 2)], ids=str)
def test_no_output_depends_on_a_later_token(config):
    layer, x = layer_of(config), inputs(11)
    y = layer(x)
    for t in range(1, 11):
        moved = x.clone()
        moved[:, t:] = inputs(11 - t, seed=1)
        after = layer(moved)
        assert torch.allclose(after[:, :t], y[:, :t], rtol=0, atol=1e-12) and not torch.allclose(after[:, t], y[:, t])


@pytest.mark.parametrize("config", CONFIGS[::2], ids=str)
def test_padding_changes_nothing(config):
    "Left, right and inner padding that holds NaN, sequences of different lengths, and packed ones."
    layer, x = layer_of(config), inputs(18)
    y, lengths = layer(x), (18, 13)
    for places in ([range(30 - n, 30) for n in lengths], [range(n) for n in lengths], [range(1, 1 + 2 * n, 2) for n in lengths]):
        padded, mask = torch.full((2, 40, 16), float("nan")).double(), torch.zeros(2, 40)
        for b, place in enumerate(places):
            padded[b, list(place)], mask[b, list(place)] = x[b, : lengths[b]], 1
        out = layer(padded, attention_mask=mask)
        for b, place in enumerate(places):
            assert torch.allclose(out[b, list(place)], y[b, : lengths[b]], rtol=1e-9, atol=1e-11)
        assert (out[mask == 0] == 0).all()
    packed = layer(torch.cat([x[0, :5], x[1]])[None], cu_seqlens=torch.tensor([0, 5, 23]))
    assert torch.allclose(packed[0, :5], y[0, :5], atol=1e-11) and torch.allclose(packed[0, 5:], y[1], atol=1e-11)


@pytest.mark.parametrize("config", CONFIGS[::2], ids=str)
def test_beams_are_reordered(config):
    layer, x = layer_of(config), inputs(14)
    _, cache = layer.forward_with_cache(x[:, :9])
    beams, order = inputs(5, B=3, seed=1), torch.tensor([1, 0, 1])
    y, _ = layer.forward_with_cache(beams, cache.reorder(order))
    for i, b in enumerate(order):
        alone = layer(torch.cat([x[b, :9], beams[i]])[None])[0, 9:]
        assert torch.allclose(y[i], alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_cache_can_go_back_to_a_segment_end(config):
    layer, x = layer_of(config), inputs(18)
    whole, cache = layer.forward_with_cache(x)
    if config.segmentation == "fenwick" and config.aggregation != "none":
        with pytest.raises(ValueError, match="cannot go back: its groups"):
            layer.rewind(cache, 1)
    elif config.init == "checkpoint" and config.backend in ("swla", "titans") and config.aggregation != "none":
        with pytest.raises(ValueError, match="cannot go back: it keeps no"):
            layer.rewind(cache, 1)
    else:
        for segments in range(len(cache) + 1):
            y, _ = layer.forward_with_cache(x[:, 4 * segments :], layer.rewind(cache, segments))
            assert torch.allclose(y, whole[:, 4 * segments :], rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="segments"):
        layer.rewind(cache, len(cache) + 1)


@pytest.mark.parametrize("first", [3, 8, 9])                           # inside a segment, at its end, one token after it
def test_a_cache_of_two_calls_can_go_back(first):
    layer, x = layer_of(mc.MCConfig(16, 2, segment_size=4, conv_size=3)), inputs(18)
    whole = layer(x)
    _, cache = layer.forward_with_cache(x[:, first:], layer.forward_with_cache(x[:, :first])[1])
    for segments in range(5):
        y, _ = layer.forward_with_cache(x[:, 4 * segments :], layer.rewind(cache, segments))
        assert torch.allclose(y, whole[:, 4 * segments :], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["linear", "titans"])              # per-head norms hide a longer q from a matrix only
def test_queries_and_keys_have_length_one(backend):
    layer, x = layer_of(mc.MCConfig(16, 2, backend=backend, segment_size=4)), inputs(11)
    y = layer(x)
    with torch.no_grad():
        layer.conv.proj.weight[:32] *= 3                           # the rows that make q and k
    assert torch.allclose(layer(x), y, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gate", ["context", "shared", "position", "uniform"])
def test_every_parameter_learns(backend, gate):
    layer = layer_of(mc.MCConfig(16, 2, backend=backend, gate=gate, segment_size=4, chunk_size=2))
    layer(inputs(11)).square().sum().backward()
    assert all(p.grad.norm() > 0 for p in layer.parameters())
    assert (layer.connector is not None) == (gate in ("context", "position"))


def test_gates_see_what_they_are_meant_to_see():
    x, shift = inputs(12), inputs(4, seed=1)
    moved = torch.cat([x[:, :4] + shift, x[:, 4:]], 1)                 # another first segment
    for gate, same in {"context": False, "shared": False, "position": True, "uniform": True}.items():
        layer = layer_of(mc.MCConfig(16, 2, gate=gate, segment_size=4, conv_size=1))
        a, b = (layer.inspect(x).gates[:, 8:] for x in (x, moved))
        assert torch.allclose(a, b) == same
        if gate == "uniform":
            assert torch.allclose(a, torch.full_like(a, 1 / 3))


def test_constants_replace_what_is_learned():
    layer = layer_of(mc.MCConfig(16, 2, backend="titans", constants={"alpha": 1.0, "eta": 0.05}))
    memory, coefficients = layer.backend(inputs(3))
    assert (coefficients["alpha"] == 1).all() and (coefficients["eta"] == 0.05).all() and coefficients["beta"].std() > 0
    for backend, constants, message in [("linear", {"alpha": 1.0}, "no coefficients"), ("dla", {"beta": 1.0}, "constants may set")]:
        with pytest.raises(ValueError, match=message):
            mc.MemoryCachingLayer(mc.MCConfig(16, 2, backend=backend, constants=constants))


@pytest.mark.parametrize("config", CONFIGS[::2], ids=str)
def test_cache_survives_the_disk(config, tmp_path):
    layer, x = layer_of(config), inputs(18)
    _, cache = layer.forward_with_cache(x[:, :15])
    cache.save(tmp_path / "cache.safetensors")
    again = mc.SegmentCache.load(tmp_path / "cache.safetensors")
    assert torch.equal(layer.forward_with_cache(x[:, 15:], again)[0], layer.forward_with_cache(x[:, 15:], cache)[0])
    assert again.nbytes == cache.nbytes and len(again) == len(cache) and again.bounds == cache.bounds


@pytest.mark.parametrize("backend", BACKENDS)
def test_nbytes_is_the_formula_of_the_book(backend):
    B, N, H, D, F, T = 2, 3, 3, 8, 16, 50
    layer = layer_of(mc.MCConfig(H * D, H, backend=backend, segment_size=16, expansion=2, conv_size=3)).float()
    _, cache = layer.forward_with_cache(torch.randn(B, T, H * D))
    read = {"linear": D * D, "swla": D * D, "dla": 2 * D * F, "titans": 2 * D * F, "gated_delta": D * D}[backend]      # a memory's parameters
    more = {"linear": 0, "swla": 2 * D, "dla": 2 * D * F, "titans": 4 * D * F, "gated_delta": 0}[backend]          # what only its writes need
    assert cache.nbytes == 4 * B * ((N + 1) * H * (read + D) + H * more + (N + 1) * 2 * H * D)


def test_detach_cuts_and_to_casts():
    x = inputs(9).requires_grad_()
    layer = layer_of(mc.MCConfig(16, 2, segment_size=4))
    _, cache = layer.forward_with_cache(x)
    assert cache.states["m"].requires_grad and not cache.detach().states["m"].requires_grad
    assert cache.to(torch.float32).inputs.dtype == torch.float32


def test_inspect_shows_what_forward_used():
    layer, x = layer_of(mc.MCConfig(16, 2, segment_size=4)), inputs(10)
    trace = layer.inspect(x)
    assert trace.gates.shape == (2, 10, 2, 3) and trace.cache.lengths == (4, 4)
    frame = trace.to_frame()
    assert len(frame) == 2 * 2 * (4 * 1 + 4 * 2 + 2 * 3)
    row = frame[(frame.batch == 1) & (frame.token == 9) & (frame["head"] == 1) & (frame.memory == 1)].iloc[0]
    assert row.gate == trace.gates[1, 9, 1, 1].item() and row.score == trace.scores[1, 9, 1, 1].item()


LAYER = layer_of(mc.MCConfig(16, 2, segment_size=4))
X = inputs(6)
BAD_INPUTS = {
    "rank": (X[0], r"x must be a tensor \(B, T, d_model\).*got \(6, 16\)"),
    "width": (X[..., :15], "d_model = 16"),
    "type": (X.float(), "x must be torch.float64 on cpu.*got torch.float32"),
    "device": (X.to("meta"), "got torch.float64 on meta"),
    "empty": (X[:, :0], r"no empty axis; got \(2, 0, 16\)"),
    "nan": (X * float("nan"), "x contains NaN or infinity"),
    "infinity": (X / 0, "x contains NaN or infinity"),
    "list": ([1.0], "got list"),
}


@pytest.mark.parametrize("x, message", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_inputs_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        LAYER(x)
    with pytest.raises(ValueError, match=message):
        LAYER.inspect(x)


def test_step_wants_one_token():
    with pytest.raises(ValueError, match=r"x must be a tensor \(B, d_model\)"):
        LAYER.step(X)


@pytest.mark.parametrize("change, message", [
    ({"segment_size": 8}, r"segment_size\) is 4 there and 8 here"), ({"init": "checkpoint"}, "init is 'independent' there"),
    ({"gate_scale": 2.0}, "gate_scale is 1.0 there and 2.0 here"),
    ({"aggregation": "residual"}, "aggregation is 'grm' there and 'residual' here"),
    ({"backend": "swla"}, "memory is 'linear' there and 'swla' here"), ({"gate": "position"}, "pool is 'mean' there and 'position' here"),
    ({"backend": "titans", "normalised_step": False}, "memory is 'linear' there"), ({"segmentation": "fenwick"}, "segmentation is 'constant' there"), ({"top_k": 9}, "top_k is 4 there and 9 here"),
    ({"num_heads": 4}, r"cache holds a memory \(2, 2, 8, 8\)"), ({"conv_size": 3}, r"inputs \(2, 2, 16\)"),
])
def test_caches_of_another_configuration_are_refused(change, message):
    _, cache = LAYER.forward_with_cache(X)
    with pytest.raises(ValueError, match=message):
        layer_of(replace(LAYER.config, **change)).forward_with_cache(X, cache)


def test_caches_of_another_kind_are_refused():
    q = X[..., None, :].unflatten(-1, (2, 8))[:, :, 0]
    _, cache = mc.memory_caching(q, q, q, q, mc.LinearMemory(), segments=4, return_cache=True)
    with pytest.raises(ValueError, match="cache must come from a layer"):
        LAYER.forward_with_cache(X, cache)
    with pytest.raises(ValueError, match="cache must be a SegmentCache"):
        mc.memory_caching(q, q, q, q, mc.LinearMemory(), segments=4, cache={"m": q})
    with pytest.raises(ValueError, match="running one of 2 tokens"):
        mc.memory_caching(q, q, q, q, mc.LinearMemory(), segments=[6], cache=replace(cache, cut=cache.lengths, about=cache.about | {"size": None}))


@pytest.mark.parametrize("change, message", [
    ({"segment_size": 0}, "segment_size must be an integer >= 1; got 0"), ({"segment_size": 2.5}, "segment_size"),
    ({"num_heads": 3}, "multiple of num_heads; got 16 and 3"), ({"aggregation": "mean"}, "aggregation must be one of 'none'"),
    ({"backend": "titan"}, "backend must be one of 'linear', 'swla', 'dla', 'titans', 'gated_delta'; got 'titan'"),
    ({"top_k": 0}, "top_k must be an integer >= 1; got 0"), ({"chunk_size": 0}, "chunk_size"), ({"expansion": 0}, "expansion"),
    ({"gate": "soft"}, "gate must be one of 'context', 'shared', 'position', 'uniform'"), ({"pool": "max"}, "pool must be one of"),
    ({"segmentation": "log"}, "segmentation must be one of"), ({"softmax": "none"}, "softmax must be one of 'chosen', 'all'"), ({"init": "fresh"}, "init must be one of"),
    ({"conv_size": 0}, "conv_size"), ({"gate_scale": float("nan")}, "gate_scale"), ({"d_model": -16}, "d_model"),
])
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mc.MCConfig(**{"d_model": 16, "num_heads": 2} | change)


Q = torch.randn(2, 6, 2, 8)
W1, W2 = torch.zeros(2, 8, 16), torch.randn(2, 16, 8)
MASK = torch.ones(2, 6)
BAD_CALLS = {
    "rank": (dict(k=Q[0]), "k must be a tensor of shape"), "type": (dict(v=Q.double()), "v is torch.float64"),
    "integers": (dict(q=Q.long()), "q is torch.int64"), "tokens": (dict(v=Q[:, :5]), "v .* does not fit q"),
    "width": (dict(u=Q[..., :7]), "u .* does not fit q"), "nan": (dict(k=Q * float("nan")), "k contains NaN"),
    "aggregation": (dict(aggregation="mean"), "aggregation must be one of"), "init": (dict(init=""), "init must be one of"),
    "implementation": (dict(implementation="fast"), "implementation must be one of 'parallel', 'sequential'"),
    "scale": (dict(gate_scale=float("inf")), "gate_scale must be a finite number; got inf"),
    "memory": (dict(memory=None), "NoneType lacks start, write, read"), "k": (dict(top_k=0), "top_k must be an integer >= 1; got 0"),
    "size": (dict(segments=0), "segments must be an integer >= 1; got 0"), "sum": (dict(segments=[4, 4]), "add up to 8 tokens"),
    "length": (dict(segments=[6, 0]), "integers >= 1"), "none": (dict(segments=None), "segments must be a length or a list"),
    "blocks": (dict(segments=[4, 2], segmentation="fenwick"), "'fenwick' groups blocks of one length"),
    "missing": (dict(memory=mc.SWLAMemory(), coefficients={"alpha": 1.0, "lam": 1.0}), "must include beta"),
    "unknown": (dict(coefficients={"alpha": 1.0}), r"coefficients of a linear memory are \[\]; got alpha"),
    "range": (dict(memory=mc.SWLAMemory(), coefficients={"alpha": 1.5, "beta": 0.0, "lam": 1.0}), "alpha must be between 0 and 1; got 1.5"),
    "finite": (dict(memory=mc.DLAMemory(W1, W2), coefficients={"eta": float("nan")}), "eta must be finite"),
    "shape": (dict(memory=mc.DLAMemory(W1, W2), coefficients={"eta": torch.ones(2, 6)}), r"eta must be a number or a tensor \(B, T, H\) = \(2, 6, 2\)"),
    "heads": (dict(memory=mc.DLAMemory(W1[:1], W2[:1]), coefficients={"eta": 1.0}), "must have 1 heads of width 8; got"),
    "mask shape": (dict(attention_mask=MASK[:, :5]), r"attention_mask must be a tensor \(B, T\) = \(2, 6\); got \(2, 5\)"),
    "mask values": (dict(attention_mask=2 * MASK), "must hold 1 or True"), "mask empty": (dict(attention_mask=0 * MASK), "leaves no token"),
    "both": (dict(attention_mask=MASK, cu_seqlens=[0, 6]), "attention_mask or cu_seqlens, not both"),
    "packed batch": (dict(cu_seqlens=[0, 6]), "cu_seqlens needs a batch of 1"),
    "ragged cache of a list": (dict(attention_mask=MASK.tril(4), return_cache=True, segments=[2, 4]), "segments must be one length, where rows of different lengths leave a cache"),
    "ragged logarithmic": (dict(attention_mask=MASK.tril(4), segmentation="logarithmic"), "'logarithmic' cuts by the length of a sequence; got"),
}


@pytest.mark.parametrize("change, message", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mc.memory_caching(**dict(q=Q, k=Q, v=Q, u=Q, memory=mc.LinearMemory(), segments=4) | change)


@pytest.mark.parametrize("bounds", [[0, 5], [1, 6], [0, 4, 4, 6], [0.0, 6.0], [6]])
def test_bad_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="cu_seqlens must"):
        mc.memory_caching(Q[:1], Q[:1], Q[:1], Q[:1], mc.LinearMemory(), cu_seqlens=torch.tensor(bounds))


def test_a_logarithmic_cut_has_no_next_token():
    layer, x = layer_of(mc.MCConfig(16, 2, segmentation="logarithmic")), inputs(6)
    with pytest.raises(ValueError, match="only 'constant' and 'fenwick' have a meaning"):
        layer.step(x[:, 0])
    _, cache = layer.forward_with_cache(x)
    with pytest.raises(ValueError, match="'fenwick' can go on"):
        layer.forward_with_cache(x, cache)


@pytest.mark.parametrize("shapes", [((2, 8, 16), (2, 8, 16)), ((8, 16), (16, 8))])
def test_bad_memory_weights_are_refused(shapes):
    with pytest.raises(ValueError, match=r"w1 must be \(H, D, F\) and w2 \(H, F, D\)"):
        mc.DLAMemory(*map(torch.zeros, shapes))


def test_a_cache_of_another_step_is_refused():
    steps = [mc.DLAMemory(W1, W2, normalised_step=n) for n in (True, False)]
    _, cache = mc.memory_caching(Q, Q, Q, Q, steps[0], coefficients={"eta": 0.1}, return_cache=True)
    with pytest.raises(ValueError, match="normalised_step is True there and False here"):
        mc.memory_caching(Q, Q, Q, Q, steps[1], coefficients={"eta": 0.1}, cache=cache)


def test_titans_knows_two_updates():
    with pytest.raises(ValueError, match="update must be one of"):
        mc.TitansMemory(W1, W2, update="up")
