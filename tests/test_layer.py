"""The layer and the model as an engineer uses them: streaming, caches on disk, types, and what they refuse."""
from dataclasses import replace

import pytest
import torch

import mc
from mc.model import Attention

CONFIGS = [mc.MCConfig(16, 2, aggregation=a, init=i, segment_size=4, conv_size=w)
           for a in ("none", "residual", "grm") for i in ("independent", "checkpoint") for w in (1, 3)]


def layer_of(config, seed=0):
    torch.manual_seed(seed)
    return (mc.MemoryCachingLayer if isinstance(config, mc.MCConfig) else Attention)(config).double()


def inputs(T, B=2, width=16, seed=0):
    return torch.randn(B, T, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", [*CONFIGS, mc.AttentionConfig(16, 2, 3)], ids=str)
@pytest.mark.parametrize("T", [1, 3, 4, 5, 11])
def test_prefill_and_steps_equal_one_pass(config, T):
    layer, x = layer_of(config), inputs(T)
    whole = layer(x)
    for cut in {0, 1, T // 2, T - 1} & set(range(T)):
        y, cache = layer.forward_with_cache(x[:, :cut]) if cut else (x[:, :0], None)
        rows = [y]
        for t in range(cut, T):
            y, cache = layer.forward_with_cache(x[:, t : t + 1], cache)
            rows.append(y)
        assert torch.allclose(torch.cat(rows, 1), whole, rtol=1e-9, atol=1e-11)


def test_step_is_forward_with_one_token():
    layer, x = layer_of(CONFIGS[-1]), inputs(6)
    _, cache = layer.forward_with_cache(x[:, :5])
    y, after = layer.step(x[:, 5], cache)
    assert torch.allclose(y, layer(x)[:, 5]) and after.position == 6


@pytest.mark.parametrize("config", [*CONFIGS, mc.AttentionConfig(16, 2)], ids=str)
def test_no_output_depends_on_a_later_token(config):
    layer, x = layer_of(config), inputs(11)
    y = layer(x)
    for t in range(1, 11):
        moved = x.clone()
        moved[:, t:] = inputs(11 - t, seed=1)
        after = layer(moved)
        assert torch.allclose(after[:, :t], y[:, :t], rtol=0, atol=1e-12) and not torch.allclose(after[:, t], y[:, t])


def test_queries_and_keys_have_length_one():
    layer, x = layer_of(mc.MCConfig(16, 2, segment_size=4)), inputs(11)
    y = layer(x)
    with torch.no_grad():
        layer.conv.proj.weight[:32] *= 3                           # the rows that make q and k
    assert torch.allclose(layer(x), y, atol=1e-12)


def test_every_parameter_learns():
    layer = layer_of(mc.MCConfig(16, 2, segment_size=4))
    layer(inputs(11)).square().sum().backward()
    assert all(p.grad.norm() > 0 for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_and_keeps_states_in_float32(dtype):
    q, k, v, u = torch.randn(4, 1, 300, 2, 16, generator=torch.Generator().manual_seed(0))
    k = torch.nn.functional.normalize(k, dim=-1)
    exact = mc.memory_caching(q, k, v, u, mc.LinearMemory(), segments=32)
    y, cache = mc.memory_caching(*(a.to(dtype) for a in (q, k, v, u)), mc.LinearMemory(), segments=32, return_cache=True)
    assert y.dtype == dtype and cache.online["m"].dtype == torch.float32
    assert (y - exact).norm() < 2e-2 * exact.norm()


def test_cache_survives_the_disk(tmp_path):
    layer, x = layer_of(CONFIGS[-1]), inputs(11)
    _, cache = layer.forward_with_cache(x[:, :7])
    cache.save(tmp_path / "cache.safetensors")
    again = mc.SegmentCache.load(tmp_path / "cache.safetensors")
    assert torch.equal(layer.forward_with_cache(x[:, 7:], again)[0], layer.forward_with_cache(x[:, 7:], cache)[0])
    assert again.nbytes == cache.nbytes and len(again) == 1


def test_nbytes_is_the_formula_of_the_book():
    _, cache = mc.memory_caching(*torch.randn(4, 2, 50, 3, 8), mc.LinearMemory(), segments=16, return_cache=True)
    B, N, H, D = 2, 3, 3, 8
    assert cache.nbytes == (N + 1) * B * H * (D * D + D) * 4


def test_detach_cuts_and_to_casts():
    x = inputs(9).requires_grad_()
    layer = layer_of(CONFIGS[-1])
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
    ({"segment_size": 8}, "segments is 4 there and 8 here"), ({"init": "checkpoint"}, "init is 'independent' there"),
    ({"gate_scale": 2.0}, "gate_scale is 1.0 there and 2.0 here"),
    ({"aggregation": "residual"}, "aggregation is 'grm' there and 'residual' here"),
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
        mc.memory_caching(q, q, q, q, mc.LinearMemory(), segments=[6], cache=replace(cache, about=cache.about | {"segments": "list"}))


@pytest.mark.parametrize("change, message", [
    ({"segment_size": 0}, "segment_size must be an integer >= 1; got 0"), ({"segment_size": 2.5}, "segment_size"),
    ({"num_heads": 3}, "multiple of num_heads; got 16 and 3"), ({"aggregation": "mean"}, "aggregation must be one of 'none'"),
    ({"backend": "titan"}, "backend must be one of 'linear'; got 'titan'"), ({"init": "fresh"}, "init must be one of"),
    ({"conv_size": 0}, "conv_size"), ({"gate_scale": float("nan")}, "gate_scale"), ({"d_model": -16}, "d_model"),
])
def test_bad_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mc.MCConfig(**{"d_model": 16, "num_heads": 2} | change)


Q = torch.randn(2, 6, 2, 8)
BAD_CALLS = {
    "rank": (dict(k=Q[0]), "k must be a tensor of shape"), "type": (dict(v=Q.double()), "v is torch.float64"),
    "integers": (dict(q=Q.long()), "q is torch.int64"), "tokens": (dict(v=Q[:, :5]), "v .* does not fit q"),
    "width": (dict(u=Q[..., :7]), "u .* does not fit q"), "nan": (dict(k=Q * float("nan")), "k contains NaN"),
    "aggregation": (dict(aggregation="soup"), "aggregation must be one of"), "init": (dict(init=""), "init must be one of"),
    "implementation": (dict(implementation="fast"), "implementation must be one of 'parallel', 'sequential'"),
    "scale": (dict(gate_scale=float("inf")), "gate_scale must be a finite number; got inf"),
    "memory": (dict(memory=None), "NoneType lacks name, start"),
    "size": (dict(segments=0), "segment_size must be an integer >= 1, got 0"), "sum": (dict(segments=[4, 4]), "add up to 8 tokens"),
    "length": (dict(segments=[6, 0]), "integers >= 1"), "none": (dict(segments=None), "segments must be a length or a list"),
}


@pytest.mark.parametrize("change, message", BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mc.memory_caching(**dict(q=Q, k=Q, v=Q, u=Q, memory=mc.LinearMemory(), segments=4) | change)
