"""Every cell of memory x aggregation x segmentation x init, on random numbers in float64."""
from itertools import product

import torch

import mc
from mc.functional import one_pass
from mc.options import INITS, Rules
from mc.read.ways import AGGREGATIONS

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
    return Rules(aggregation, "constant" if cut == "list" else cut, init, **kwargs)


def segments_of(cut, T):
    if cut != "list":
        return C
    return [T] if T < 7 else [2, *[1] * (T % 3), T - 3 - T % 3, 1]


def call(form, name, rules, segments, x, rates, cache=None, params=(), implementation=None):
    memory = memory_of(name, *params)
    return one_pass(*x, memory, rules, segments, coefficients_of(memory, rates), implementation or form, cache)


def outcome(form, name, rules, segments, T, before=0, device="cpu"):
    "By name all that a call on `device` gives after `before` tokens, and the gradients of everything that went in, on the CPU; and the pass."
    on = lambda some: [a.detach().to(device).requires_grad_() for a in some]
    (x, rates), params, cache = on(tokens(before + T, seed=T)), on(weights()), None
    if before:
        cache = call(form, name, rules, segments, x[:, :, :before], rates[:, :, :before], params=params).cache
    out = call(form, name, rules, segments, x[:, :, before:], rates[:, :, before:], cache, params)
    kept = {"y": out.y, "gates": out.gates, "pools": out.cache.pools, "key_sum": out.cache.key_sum}
    for part in ("states", "online", "pending"):
        kept |= {f"{part}.{leaf}": a for leaf, a in getattr(out.cache, part).items()}
    loss = sum((a * randn(*a.shape, seed=i).to(device)).sum() for i, a in enumerate(kept.values()))
    inputs = {"q, k, v, u": x, "coefficients": rates, "w1": params[0], "w2": params[1]}
    grads = torch.autograd.grad(loss, inputs.values(), allow_unused=True)
    grads = {f"gradient of {n}": torch.zeros_like(a) if g is None else g for (n, a), g in zip(inputs.items(), grads)}
    routes = {"scores": out.scores.masked_fill(out.scores.isinf(), 0), "chosen": out.chosen.double()}
    return {n: a.cpu() for n, a in (kept | routes | grads).items()}, out


def assert_same(fast, plain, tolerance=1e-9):
    "Every output, state and gradient within `tolerance` relative; a failure names the tensor, its shape and the error."
    assert fast[0].keys() == plain[0].keys()
    for name, b in plain[0].items():
        a, T = fast[0][name], plain[1].y.shape[1]
        assert a.shape == b.shape, f"{name} of {T} tokens has the shape {tuple(a.shape)}, not {tuple(b.shape)}"
        error = ((a - b).norm() / (b.norm() + 1e-300)).item()
        assert (a - b).norm() <= tolerance * b.norm() + 1e-300, f"{name} {tuple(a.shape)} of {T} tokens differs by {error:.1e} of its norm"
    a, b = fast[1], plain[1]
    assert a.bounds == b.bounds
    assert (a.cache.lengths, a.cache.running, a.cache.about) == (b.cache.lengths, b.cache.running, b.cache.about)
