"""Half precision, long sequences and ties."""
import copy
import warnings

import pytest
import torch

import mc
from mc.nn.backends import BACKENDS
from mc.read.pools import code
from mc.read.sparse import choose

pytestmark = pytest.mark.usefixtures("poisoned")

T = 4096


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("aggregation", ["none", "residual", "grm", "soup", "ssc"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_close_and_keeps_states_in_float32(backend, aggregation, dtype):
    torch.manual_seed(0)
    layer = mc.MemoryCachingLayer(mc.MCConfig(16, 2, backend=backend, aggregation=aggregation, segment_size=256))
    memory, coefficients = layer.backend(draw(1, T, 16))
    x = torch.nn.functional.normalize(draw(4, 1, T, 2, 8), dim=-1)
    options = dict(memory=memory, aggregation=aggregation, segments=256)
    with torch.no_grad():
        half = {name: c.to(dtype) for name, c in coefficients.items()}
        same = {name: c.float() for name, c in half.items()}               # what rounding the inputs costs is not ours
        exact = mc.memory_caching(*x.to(dtype).float(), coefficients=same, **options)
        y, cache = mc.memory_caching(*x.to(dtype), coefficients=half, return_cache=True, **options)
    assert y.dtype == dtype and all(leaf.dtype == torch.float32 for leaf in cache.online.values())
    assert y.isfinite().all() and (y - exact).norm() < 2e-2 * exact.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_leaves_the_mechanism_in_float32(backend):
    torch.manual_seed(0)
    layer = mc.MemoryCachingLayer(mc.MCConfig(16, 2, backend=backend, segment_size=16))
    x = draw(1, 64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, cache = layer.forward_with_cache(x)
    assert all(leaf.dtype == torch.float32 for leaf in cache.online.values())
    assert (y - layer(x)).norm() < 5e-2 * layer(x).norm()


@pytest.mark.parametrize("mixer", [mc.MCConfig(16, 2, segment_size=16), mc.AttentionConfig(16, 2)], ids=str)
def test_autocast_gives_no_warning(mixer, request):
    request.addfinalizer(lambda: torch.set_warn_always(False))
    torch.set_warn_always(True)                                            # else PyTorch warns once in a process
    model = mc.LanguageModel(mc.LMConfig(32, 1, mixer))
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        model(torch.arange(32)[None])


@pytest.mark.parametrize("backend", ["dla", "titans"])
@pytest.mark.parametrize("aggregation", ["none", "grm"])
def test_deep_memories_stay_bounded_over_8192_tokens(backend, aggregation):
    torch.manual_seed(0)
    layer = mc.MemoryCachingLayer(mc.MCConfig(8, 1, backend=backend, aggregation=aggregation, segment_size=512))
    for x in (draw(1, 8192, 8), draw(1, 1, 8).expand(1, 8192, 8)):         # all different, and all the same
        with torch.no_grad():
            memory = layer.inspect(x).cache.online
        assert all(leaf.isfinite().all() and leaf.norm() < 1e3 for leaf in memory.values())


@pytest.mark.parametrize("aggregation", ["grm", "ssc"])
def test_autocast_changes_nothing_in_the_mechanism(aggregation):
    x = draw(4, 1, 64, 2, 8)
    read = lambda: mc.memory_caching(*x, mc.LinearMemory(), aggregation=aggregation, segments=16)
    with torch.autocast("cpu", torch.bfloat16):
        y = read()
    assert torch.equal(y, read())


def test_strong_forgetting_is_finite_and_exact():
    "Products of 512 shares of 1e-3: ratios of cumulative products would be 0 / 0."
    q, k, v, u = draw(4, 1, 512, 1, 4).double()
    options = dict(memory=mc.SWLAMemory(), aggregation="none", coefficients={"alpha": 1e-3, "beta": 0.5, "lam": 1.0})
    fast, plain = (mc.memory_caching(q, k, v, u, implementation=form, **options) for form in ("parallel", "sequential"))
    assert (fast - plain).norm() < 1e-12 * plain.norm()
    single = mc.memory_caching(*(a.float() for a in (q, k, v, u)), **options)
    assert (single - plain).norm() < 1e-5 * plain.norm()


def test_forgetting_everything_has_the_right_gradient():
    q, k, v, u = draw(4, 1, 9, 1, 4).double()
    for alpha in (0.0, 1.0):
        share = torch.full((1, 9, 1), alpha, dtype=torch.float64, requires_grad=True)
        grads = []
        for form in ("parallel", "sequential"):
            y = mc.memory_caching(q, k, v, u, mc.SWLAMemory(), aggregation="none", implementation=form,
                                  coefficients={"alpha": share, "beta": 0.5, "lam": 1.0})
            grads.append(torch.autograd.grad(y.square().sum(), share)[0])
        assert (grads[0] - grads[1]).norm() < 1e-9 * grads[1].norm()


def test_of_equal_scores_the_earlier_wins():
    r = torch.tensor([[1.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0], [float("-inf"), 3.0, float("-inf"), float("-inf")]])
    assert choose(r, 2).tolist() == [[1, 2], [0, 1], [1, -1]] and choose(r, 9).shape == (3, 4)
    assert torch.equal(choose(r, 2), choose(r.bfloat16().float(), 2))


HALVES = [torch.float16, torch.bfloat16]
CELLS = [(b, a, i) for b in BACKENDS for a in ("none", "residual", "grm", "soup", "ssc") for i in ("independent", "checkpoint")]


def layers_of(backend, aggregation, init, kind, **options):
    torch.manual_seed(0)
    config = mc.MCConfig(16, 2, backend=backend, aggregation=aggregation, init=init, segment_size=4, chunk_size=3, **options)
    layer = mc.MemoryCachingLayer(config)
    return layer, copy.deepcopy(layer).to(kind)


def close(y, right, kind):
    return y.isfinite().all() and (y.float() - right).abs().max() < (0.01 if kind == torch.float16 else 0.08)


@pytest.mark.parametrize("kind", HALVES, ids=str)
@pytest.mark.parametrize("backend, aggregation, init", CELLS)
def test_padding_and_zero_tokens_in_half_precision(backend, aggregation, init, kind):
    "Padding anywhere, whatever stands in it, and tokens of zeros: module and autocast, outputs and gradients."
    layer, half = layers_of(backend, aggregation, init, kind)
    x, mask = draw(3, 12, 16), torch.ones(3, 12, dtype=torch.bool)
    mask[1, 5:], mask[2, [0, 1, 7]] = False, False
    x[0, [0, 3, 4]] = 0                                                    # of a convolution of two tokens: q = k = 0 at 0 and 4
    x[~mask] = torch.tensor([float("nan"), 6e4, 0.0, 1.0]).repeat(3)[: int((~mask).sum()), None]
    right = layer(x, attention_mask=mask)
    with torch.autocast("cpu", kind):
        cast = layer(x, attention_mask=mask)
    small = half(x.to(kind), attention_mask=mask)
    for y in (small, cast):
        assert close(y, right, kind) and (y[~mask] == 0).all()
    given = x.to(kind).requires_grad_()
    half(given, attention_mask=mask).float().square().sum().backward()
    assert given.grad.isfinite().all() and (given.grad[~mask] == 0).all() and all(p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("kind", HALVES, ids=str)
@pytest.mark.parametrize("aggregation", ["residual", "none", "grm"])
def test_large_reads_do_not_overflow_before_the_norm(aggregation, kind):
    "Reads of 1,024 checkpoints pass 65,504, float16's largest number, before they are normalised."
    layer, half = layers_of("linear", aggregation, "checkpoint", kind)
    x = draw(1, 2048, 16) + 1
    with torch.no_grad():
        assert layer.inspect(x).cache.online["m"].abs().max() > 100
        assert close(half(x.to(kind)), layer(x.to(kind).float()), kind)


@pytest.mark.parametrize("mixer", [mc.MCConfig(16, 2, segment_size=4), mc.MCConfig(16, 2, backend="titans", segment_size=4), mc.AttentionConfig(16, 2)],
                         ids=lambda m: getattr(m, "backend", "attention"))
def test_zero_inputs_have_moderate_gradients(mixer):
    torch.manual_seed(0)
    layer = mc.LanguageModel(mc.LMConfig(8, 1, mixer)).blocks[0].mixer
    for zeros in ([0], [4, 5], list(range(9))):
        x = draw(1, 9, 16)
        x[0, zeros] = 0
        x.requires_grad_()
        layer(x).sum().backward()
        assert x.grad.abs().max() < 1e3                                    # 1e11 with a length guarded by 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_and_float64_are_the_same_function(backend):
    "Also where reads are small: PyTorch's own norm guards with the spacing of the type."
    layer, fine = layers_of(backend, "grm", "independent", torch.float64)
    for scale in (1.0, 1e-2, 1e-3, 1e-4):
        x = scale * draw(2, 11, 16)
        assert (layer(x) - fine(x.double())).norm() < 1e-5 * fine(x.double()).norm()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_place_codes_have_length_one(width):
    places = code(torch.arange(2000.0, dtype=torch.float64), width)
    assert torch.allclose(places.norm(dim=-1), torch.ones(2000).double())
    x = draw(4, 1, 12, 2, width)
    assert mc.memory_caching(*x, mc.LinearMemory(), segments=4, pool="position").isfinite().all()
    assert mc.MemoryCachingLayer(mc.MCConfig(2 * width, 2, gate="position", segment_size=4))(draw(1, 12, 2 * width)).isfinite().all()
