"""The parallel form, the token loop and streaming are one function: outputs, caches and gradients."""
import pytest
import torch

from cells import (C, CELLS, D, DEEP, H, MEMORIES, assert_same, call, memory_of, outcome, randn, rules_of, segments_of, tokens,
                   weights)
from mc.options import INITS

pytestmark = pytest.mark.usefixtures("poisoned")
LENGTHS = [1, C - 1, C, C + 1, 2 * C + 3, 31]


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("name, aggregation, cut, init", CELLS)
def test_parallel_equals_sequential(name, aggregation, cut, init, T):
    "Eq. 4-5 in both forms."
    for chunk in (1, 4, 16) if name in DEEP and T in (C + 1, 2 * C + 3) else (4,):
        rules, segments = rules_of(aggregation, cut, init, chunk_size=chunk), segments_of(cut, T)
        assert_same(outcome("parallel", name, rules, segments, T), outcome("sequential", name, rules, segments, T))


def test_a_failed_comparison_names_the_tensor_its_shape_the_tokens_and_the_error():
    rules = rules_of("grm", "constant", "independent")
    fast, plain = (outcome(form, "linear", rules, C, 9) for form in ("parallel", "sequential"))
    fast[0]["states.m"] = fast[0]["states.m"] * 1.001
    with pytest.raises(AssertionError, match=r"states\.m \(2, 2, 2, 4, 4\) of 9 tokens differs by 1\.0e-03"):
        assert_same(fast, plain)


GOING_ON = [(chunk, T, before) for chunk in (3, 1, 4, 16) for T, before in [(1, C - 1), (9, C), (5, 2 * C + 2), (13, 6 * C + 2)][:: 1 if chunk == 3 else 2]]


@pytest.mark.parametrize("name, aggregation, cut, init, chunk, T, before", [    # only deep memories look at the chunk
    (*cell, *rest) for cell in CELLS if cell[2] in ("constant", "fenwick") for rest in GOING_ON[: None if cell[0] in DEEP else 4]])
def test_going_on_after_a_cache(name, aggregation, cut, init, chunk, T, before):
    rules = rules_of(aggregation, cut, init, chunk_size=chunk)
    assert_same(outcome("parallel", name, rules, C, T, before), outcome("sequential", name, rules, C, T, before))


@pytest.mark.parametrize("change", [{"pool": "sum"}, {"pool": "position"}, {"softmax": "all"}, {"top_k": 1}, {"top_k": 9},
                                    {"detach_cache": True}, {"gate_scale": 0.0}], ids=str)
@pytest.mark.parametrize("name, aggregation, cut", [("swla", "ssc", "constant"), ("titans", "grm", "fenwick"), ("dla", "soup", "list")])
def test_options_are_the_same_in_both_forms(name, aggregation, cut, change):
    for init in INITS:
        rules = rules_of(aggregation, cut, init, **change)
        assert_same(outcome("parallel", name, rules, segments_of(cut, 23), 23), outcome("sequential", name, rules, segments_of(cut, 23), 23))


@pytest.mark.parametrize("name, aggregation, cut, init", [cell for cell in CELLS if cell[2] in ("constant", "fenwick")])
def test_token_by_token_equals_all_at_once(name, aggregation, cut, init):
    "Eq. 4-5, streamed."
    rules, (x, rates), cache, rows = rules_of(aggregation, cut, init, chunk_size=3), tokens(19), None, []
    with torch.no_grad():
        whole = call("parallel", name, rules, C, x, rates)
        for t in range(19):
            out = call("parallel", name, rules, C, x[:, :, t : t + 1], rates[:, :, t : t + 1], cache)
            rows.append(out.y)
            cache = out.cache
    assert torch.allclose(torch.cat(rows, 1), whole.y, rtol=1e-10, atol=1e-12)
    assert (cache.lengths, cache.running) == (whole.cache.lengths, whole.cache.running)
    for part in ("states", "online", "pending"):
        for leaf, other in zip(getattr(cache, part).values(), getattr(whole.cache, part).values(), strict=True):
            assert torch.allclose(leaf, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("segments, T", [(100, 230), (127, 300), (3, 400)])
def test_long_segments_are_cut_into_chunks(name, init, segments, T):
    "Longer than a chunk, no multiple of it, many enough for several tiles of the cached reads."
    rules = rules_of("grm", "constant", init, chunk_size=16)
    assert_same(outcome("parallel", name, rules, segments, T), outcome("sequential", name, rules, segments, T))


@pytest.mark.parametrize("name", MEMORIES)
def test_gradients_against_finite_differences(name):
    x, rates = (a.detach()[:, :1] for a in tokens(7))
    w1, w2 = (w.detach() for w in weights())
    inputs = [a.requires_grad_() for a in (x, rates, w1, w2)]

    def function(x, rates, w1, w2):
        return call("parallel", name, rules_of("soup", "constant", "independent", chunk_size=2), 3, x, rates, params=(w1, w2)).y

    assert torch.autograd.gradcheck(function, inputs, atol=1e-6)


@pytest.mark.parametrize("name", MEMORIES)
def test_detached_caches_stop_gradients_at_segment_ends(name):
    x, rates = tokens(2 * C)
    for detach in (False, True):
        y = call("parallel", name, rules_of("grm", "constant", "independent", detach_cache=detach), C, x, rates).y
        (slope,) = torch.autograd.grad(y[:, C:].sum(), x)
        assert (slope[2, :, :C].abs().max() == 0) == detach          # the values of the first segment


def test_recall_keeps_its_inputs_only():
    "What autograd keeps of N weighted reads grows as T (N + D) + N D^2, not as T N D, deep memories too."
    T, N = 600, 20
    gen = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=gen, dtype=torch.float64).requires_grad_()
    for name, leaves in {"linear": {"m": draw(1, H, N, D, D)}, "dla": {"w1": draw(1, H, N, D, 6), "w2": draw(1, H, N, 6, D)}}.items():
        q, w, kept = draw(1, H, T, D), draw(1, H, T, N), []
        tiles = [(a, min(a + 256, T), slice(None)) for a in range(0, T, 256)]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
            y = memory_of(name).recall(leaves, q, w, tiles)
        assert sum(kept) == H * T * (N + D) + sum(leaf.numel() for leaf in leaves.values())
        plain = sum(w[..., i : i + 1] * memory_of(name).read_rows({n: leaf[:, :, i] for n, leaf in leaves.items()}, q) for i in range(N))
        g = torch.randn(y.shape, generator=gen, dtype=torch.float64)
        inputs = [q, w, *leaves.values()]
        for a, b in zip(torch.autograd.grad(y, inputs, g), torch.autograd.grad(plain, inputs, g)):
            assert (a - b).norm() <= 1e-12 * b.norm()


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("cut", ["constant", "fenwick"])
def test_second_derivatives_of_cached_reads_are_those_of_the_definition(name, cut):
    (x, rates), params, found = tokens(3 * C), weights(), []
    inputs = [x, rates, *params] if name in DEEP else [x]
    for form in ("parallel", "sequential"):
        y = call(form, name, rules_of("grm", cut, "independent"), C, x, rates, params=params).y
        first = torch.autograd.grad((y * randn(*y.shape, seed=1)).sum(), inputs, create_graph=True)
        along = sum((g * randn(*g.shape, seed=i)).sum() for i, g in enumerate(first))
        found.append(torch.autograd.grad(along, inputs))
    for a, b in zip(*found):
        assert b.norm() > 0 and (a - b).norm() <= 1e-9 * b.norm()
