"""Every cell of memory x aggregation x segmentation x init, on random numbers in float64."""
from itertools import product

import torch

import mc
from mc.functional import run
from mc.read.router import AGGREGATIONS, INITS, Rules

MEMORIES = ("linear", "swla", "dla", "titans", "gated_delta")
DEEP = ("dla", "titans")
CUTS = ("constant", "list", "logarithmic", "fenwick")
CELLS = list(product(MEMORIES, AGGREGATIONS, CUTS, INITS))
B, H, D, F, C = 2, 2, 4, 6, 4


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(seed=5):
    return [(0.3 * randn(H, D, F, seed=seed)).requires_grad_(), (0.5 * randn(H, F, D, seed=seed + 1)).requires_grad_()]


def memory_of(name, w1=None, w2=None):
    if name in DEEP:
        if w1 is None:
            w1, w2 = weights()
        return {"dla": mc.DLAMemory, "titans": mc.TitansMemory}[name](w1, w2, normalised_step=True)
    return {"linear": mc.LinearMemory, "swla": mc.SWLAMemory, "gated_delta": mc.GatedDeltaMemory}[name]()


def coefficients_of(memory, rates):
    "Of `rates` (4, B, T, H) between 0 and 1: those that the memory takes, in a sensible range."
    scaled = {"alpha": 0.5 + 0.5 * rates[0], "beta": 0.9 * rates[1], "lam": rates[2], "eta": 0.3 * rates[3]}
    return {name: scaled[name] for name in memory.coefficients}


def tokens(T, seed=0):
    "q, k, v, u (4, B, T, H, D) and rates (4, B, T, H)."
    gen = torch.Generator().manual_seed(seed)
    return (torch.randn(4, B, T, H, D, dtype=torch.float64, generator=gen).requires_grad_(),
            torch.rand(4, B, T, H, dtype=torch.float64, generator=gen).requires_grad_())


def rules_of(aggregation, cut, init, **kwargs):
    kwargs = {"top_k": 2, "gate_scale": 1.3, "chunk_size": 4} | kwargs
    return Rules(aggregation, init, "constant" if cut == "list" else cut, **kwargs)


def segments_of(cut, T):
    if cut != "list":
        return C
    return [T] if T < 7 else [2, *[1] * (T % 3), T - 3 - T % 3, 1]


def call(form, name, rules, segments, x, rates, cache=None, params=(), implementation=None):
    memory = memory_of(name, *params)
    return run(*x, memory, rules, segments, coefficients_of(memory, rates), implementation or form, cache)


def outcome(form, name, rules, segments, T, before=0):
    "All that a call gives after `before` tokens, and the gradients of everything that went in."
    (x, rates), params, cache = tokens(before + T, seed=T), weights(), None
    if before:
        cache = call(form, name, rules, segments, x[:, :, :before], rates[:, :, :before], params=params).cache
    out = call(form, name, rules, segments, x[:, :, before:], rates[:, :, before:], cache, params)
    state = [*out.cache.states.values(), *out.cache.online.values(), *out.cache.pending.values()]
    kept = [out.y, out.gates, out.cache.pools, out.cache.key_sum, *state]
    loss = sum((a * randn(*a.shape, seed=i)).sum() for i, a in enumerate(kept))
    inputs = [x, rates, *params]
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    grads = [torch.zeros_like(a) if g is None else g for a, g in zip(inputs, grads)]
    return [*kept, out.scores.masked_fill(out.scores.isinf(), 0), out.chosen.double(), *grads], out


def assert_same(fast, plain, tolerance=1e-9):
    "Every output, state and gradient within `tolerance` relative."
    for a, b in zip(fast[0], plain[0], strict=True):
        assert a.shape == b.shape and (a - b).norm() <= tolerance * b.norm() + 1e-300
    a, b = fast[1], plain[1]
    assert a.spans == b.spans
    assert (a.cache.lengths, a.cache.running, a.cache.about) == (b.cache.lengths, b.cache.running, b.cache.about)
