"""Rows of different lengths with a cache: each row is what it would be alone, whatever the others do."""
from itertools import product

import pytest
import torch

import mc
from cells import MEMORIES, coefficients_of, memory_of
from mc.options import INITS
from mc.read.ways import AGGREGATIONS

pytestmark = pytest.mark.usefixtures("poisoned")
B, H, D, C = 4, 2, 4, 5
PIECES = (7, 1, 9, 1, 1, 4, 12)


class Own:
    "A memory of one's own: three functions, and a scan that goes token by token."

    def start(self, k, v):
        return {"m": v.new_zeros(*v.shape, k.shape[-1]), "n": v.new_ones(v.shape[:-1])}

    def write(self, state, k, v, rate):
        fresh = v[..., :, None] * k[..., None, :] / k.square().sum(-1)[..., None, None]    # NaN for a key of zeros
        return {"m": state["m"] + rate[..., None, None] * (fresh - state["m"]), "n": state["n"] + 1}

    def read(self, state, q):
        return (state["m"] @ q[..., None])[..., 0] / state["n"][..., None]


class OwnWithScan(Own):
    def scan(self, start, k, v, rate):
        state, states, axis = start, [], k.ndim - 3
        for n, t in product(range(k.shape[-3]), range(k.shape[-2])):
            state = self.write(state, k[..., n, t, :], v[..., n, t, :], rate[..., n, t])
            states.append(state)
        each = {name: torch.stack([s[name] for s in states], axis).unflatten(axis, k.shape[-3:-1]) for name in state}
        return (lambda q: self.read(each, q)), {name: leaf.select(axis + 1, -1) for name, leaf in each.items()}


def memory(name):
    return {"own": Own, "own_scan": OwnWithScan}[name]() if name.startswith("own") else memory_of(name)


def rates_of(memory, rates):
    return {"rate": rates[0]} if isinstance(memory, Own) else coefficients_of(memory, rates)


def masks(seed, pieces=PIECES):
    "Which places hold tokens: at random; row 0 has none in the second half of the pieces, row 1 none in the first."
    gen = torch.Generator().manual_seed(seed)
    found = []
    for i, width in enumerate(pieces):
        share = torch.tensor([0.8, 0.5, 0.9, 0.3])[:, None]
        mask = torch.rand(B, width, generator=gen) < share
        mask[0] &= i < len(pieces) // 2
        mask[1] &= i > 0
        mask[2, 0] = True
        found.append(mask)
    return found


def run(memory, x, rates, cache=None, mask=None, rows=slice(None), **options):
    options = {"segments": C, "top_k": 1, "top_p": 0.5, "chunk_size": 3, "gate_scale": 2.0} | options
    rates = {n: c[rows] for n, c in rates_of(memory, rates).items()}
    return mc.memory_caching(*x[:, rows], memory, coefficients=rates, cache=cache, attention_mask=mask, return_cache=True, **options)


def tokens(width, seed):
    gen = torch.Generator().manual_seed(seed)
    x = torch.randn(4, B, width, H, D, generator=gen, dtype=torch.float64)
    x[1] = torch.nn.functional.normalize(x[1], dim=-1)
    return x, torch.rand(4, B, width, H, generator=gen, dtype=torch.float64)


def same_cache(a, b, tolerance=1e-9):
    assert (a.lengths, a.running, a.about) == (b.lengths, b.running, b.about)
    ours, theirs = a._tensors(), b._tensors()
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert ours[name].shape == leaf.shape, name
        assert torch.allclose(ours[name], leaf, atol=tolerance), name


def check(memory, seed, grad=False, pieces=PIECES, **options):
    "The pieces of a ragged batch against each row alone; gradients too."
    x, rates = tokens(sum(pieces), seed)
    found = masks(seed, pieces)
    mask = torch.cat(found, 1)
    x[:, ~mask] = torch.nan
    rates[:, ~mask] = 0.5
    x.requires_grad_(grad), rates.requires_grad_(grad)
    cache, reads, a = None, [], 0
    for some in found:
        b = a + some.shape[1]
        y, cache = run(memory, x[:, :, a:b], rates[:, :, a:b], cache, some, **options)
        assert (y[~some] == 0).all()
        reads.append(y)
        a = b
    y, loss, others = torch.cat(reads, 1), 0, []
    assert cache.columns == sum(pieces) and cache.positions == mask.sum(1).tolist()
    for b in range(B):
        pick = lambda a: a[:, b:b + 1, mask[b]]
        alone, own = run(memory, pick(x), pick(rates), **options)
        assert torch.allclose(y[b, mask[b]], alone[0], atol=1e-9)
        same_cache(cache.row(b), own)
        others.append(alone)
    if grad:
        last = lambda c: sum(leaf.square().sum() for leaf in c.online.values())
        ours = torch.autograd.grad(y.square().sum() + last(cache), [x, rates], retain_graph=True)
        alone = sum(a.square().sum() for a in others) + sum(last(run(memory, x[:, b:b+1, mask[b]], rates[:, b:b+1, mask[b]], **options)[1])
                                                            for b in range(B))
        for one, other in zip(ours, torch.autograd.grad(alone, [x, rates])):
            assert torch.allclose(one, other, atol=1e-8)


@pytest.mark.filterwarnings("ignore:Own has no scan")
@pytest.mark.filterwarnings("ignore:OwnWithScan has no soup")
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("cut", ["constant", "fenwick"])
@pytest.mark.parametrize("name", [*MEMORIES, "own", "own_scan"])
def test_each_row_is_the_row_alone(name, cut, init):
    for i, aggregation in enumerate(AGGREGATIONS):
        with torch.no_grad():
            check(memory(name), i, aggregation=aggregation, segmentation=cut, init=init)
