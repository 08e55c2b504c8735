"""The parallel form, the token loop and streaming are one function: outputs, caches and gradients."""
from itertools import product

import pytest
import torch

import mc
from mc.functional import run
from mc.sequential import AGGREGATIONS, INITS

C = 4
LENGTHS = [1, C - 1, C, C + 1, 2 * C + 3, 63]
LINEAR = mc.LinearMemory()


def tokens(T, seed=0):
    return torch.randn(4, 2, T, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def outcome(implementation, aggregation, init, segments, T, before):
    "All that a call gives and the gradients of all its inputs, in a call that goes on after `before` tokens."
    x, cache = tokens(before + T, seed=T), None
    if before:
        cache = run(*x[:, :, :before], LINEAR, aggregation, segments, init, 1.3, implementation).cache
    out = run(*x[:, :, before:], LINEAR, aggregation, segments, init, 1.3, implementation, cache)
    gen = torch.Generator().manual_seed(1)
    kept = [out.y, out.gates, out.cache.states["m"], out.cache.online["m"], out.cache.pools, out.cache.key_sum]
    loss = sum((t * torch.randn(t.shape, dtype=t.dtype, generator=gen)).sum() for t in kept)
    return [*kept, out.scores.masked_fill(out.scores.isinf(), 0), *torch.autograd.grad(loss, [x])], out.cache


@pytest.mark.parametrize("aggregation, init", list(product(AGGREGATIONS, INITS)))
@pytest.mark.parametrize("T, before", [*product(LENGTHS, [0]), (1, C - 1), (5, 2), (9, C), (2, C + 1)])
def test_parallel_equals_sequential(aggregation, init, T, before):
    fast, fast_cache = outcome("parallel", aggregation, init, C, T, before)
    plain, plain_cache = outcome("sequential", aggregation, init, C, T, before)
    for a, b in zip(fast, plain, strict=True):
        assert a.shape == b.shape and (a - b).norm() <= 1e-9 * b.norm()
    assert (fast_cache.lengths, fast_cache.running, fast_cache.about) == (plain_cache.lengths, plain_cache.running, plain_cache.about)


@pytest.mark.parametrize("aggregation, init", list(product(AGGREGATIONS, INITS)))
def test_parallel_equals_sequential_for_any_lengths(aggregation, init):
    for lengths in ([7], [1, 1, 5], [5, 1, 1], [2, 70, 3]):
        fast, _ = outcome("parallel", aggregation, init, lengths, sum(lengths), 0)
        plain, _ = outcome("sequential", aggregation, init, lengths, sum(lengths), 0)
        assert all((a - b).norm() <= 1e-9 * b.norm() for a, b in zip(fast, plain, strict=True))


@pytest.mark.parametrize("implementation", ["parallel", "sequential"])
def test_gradients_against_finite_differences(implementation):
    x = torch.randn(4, 1, 6, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: mc.memory_caching(*x, LINEAR, segments=3, implementation=implementation), x)


@pytest.mark.parametrize("aggregation, init", list(product(AGGREGATIONS, INITS)))
def test_token_by_token_equals_all_at_once(aggregation, init):
    x, cache, rows = tokens(2 * C + 3), None, []
    kwargs = dict(memory=LINEAR, aggregation=aggregation, init=init, segments=C)
    whole, end = mc.memory_caching(*x, **kwargs, return_cache=True)
    for t in range(2 * C + 3):
        y, cache = mc.memory_caching(*x[:, :, t : t + 1], **kwargs, cache=cache, return_cache=True)
        rows.append(y)
    assert torch.allclose(torch.cat(rows, 1), whole, rtol=1e-10, atol=1e-12)
    assert cache.lengths == end.lengths and torch.allclose(cache.online["m"], end.online["m"], atol=1e-12)


def test_long_segments_are_cut_into_blocks():
    "Segments longer than a block of the parallel form, and no multiple of it."
    for init in INITS:
        fast, _ = outcome("parallel", "grm", init, 100, 230, 0)
        plain, _ = outcome("sequential", "grm", init, 100, 230, 0)
        assert all((a - b).norm() <= 1e-9 * b.norm() for a, b in zip(fast, plain, strict=True))


def test_recall_keeps_its_inputs_only():
    "What autograd keeps of N weighted reads grows as T (N + D) + N D^2, not as T N D."
    from mc.memory.linear import Recall

    T, N, D = 600, 20, 16
    gen = torch.Generator().manual_seed(0)
    m, q, w = (torch.randn(*shape, generator=gen, dtype=torch.float64).requires_grad_() for shape in [(N, D, D), (T, D), (T, N)])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        y = Recall.apply(m, q, w)
    assert sum(kept) == T * (N + D) + N * D * D < T * N * D / 4
    plain = torch.einsum("tn,nvk,tk->tv", w, m, q)
    g = torch.randn(T, D, generator=gen, dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(y, [m, q, w], g), torch.autograd.grad(plain, [m, q, w], g)):
        assert (a - b).norm() <= 1e-12 * b.norm()
