"""Two thousand valid calls, drawn: each is what the definition says, token by token and in float64 (Eq. 4-5)."""
import random

import numpy as np
import pytest
import torch

import mc
from mc.read.pools import POOLS
from mc.options import INITS, SOFTMAX
from mc.read.ways import AGGREGATIONS

pytestmark = pytest.mark.usefixtures("poisoned")

CALLS, BATCHES = 2000, 40
ERROR = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
MODES = (torch.no_grad, torch.enable_grad, torch.inference_mode)
NAN = float("nan")


def cut_of(rng, total):
    "Lengths that add up to `total`."
    lengths = []
    while sum(lengths) < total:
        lengths.append(rng.randint(1, min(5, total - sum(lengths))))
    return lengths


class Call:
    "One call: tokens, memory and options, and how they are handed over."

    def __init__(self, seed):
        rng, gen = random.Random(seed), torch.Generator().manual_seed(seed)
        randn = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=gen).to(self.dtype)
        self.rng, self.dtype = rng, rng.choice([torch.float64] * 3 + [torch.float32, torch.float32, torch.bfloat16, torch.float16])
        B, T, H, D = rng.randint(1, 3), rng.randint(1, 13), rng.randint(1, 2), rng.randint(1, 4)
        name, cut = rng.choice(["linear", "swla", "dla", "titans", "gated_delta"]), rng.choice(["constant", "constant", "list", "fenwick", "fenwick", "logarithmic"])
        ways = ["plain"] + ["mask"] * (cut != "logarithmic") + ["packed"] * (cut in ("constant", "fenwick")) + ["pieces", "steps"] * (cut != "logarithmic")
        self.way, width = rng.choice(ways), D if name in ("dla", "titans") else rng.randint(1, 4)
        if self.way == "packed":
            B = 1
        q, k, u = torch.nn.functional.normalize(randn(3, B, T, H, D).double(), dim=-1).to(self.dtype)
        self.tokens = [q, k, randn(B, T, H, width) / 2, u * rng.choice([0.5, 1, 4])]
        shares = torch.rand(3, B, T, H, dtype=torch.float64, generator=gen).to(self.dtype)
        self.rates = {"alpha": 0.5 + 0.5 * shares[0], "beta": 0.9 * shares[1], "lam": shares[2], "eta": 0.2 * shares[2]}
        self.rates = {n: c if rng.random() < 0.7 else 0.5 for n, c in self.rates.items()}
        F, step = rng.randint(1, 6), rng.random() < 0.5
        w1, w2 = randn(H, D, F) / 3, randn(H, F, D) / 2
        deep = {"dla": mc.DLAMemory, "titans": mc.TitansMemory}
        self.make = lambda kind: deep[name](w1.to(kind), w2.to(kind), normalised_step=step) if name in deep else {"linear": mc.LinearMemory, "swla": mc.SWLAMemory, "gated_delta": mc.GatedDeltaMemory}[name]()
        self.rates = {n: c for n, c in self.rates.items() if n in self.make(self.dtype).coefficients}
        self.size = rng.randint(1, 6)
        self.options = dict(aggregation=rng.choice(AGGREGATIONS), segmentation="constant" if cut == "list" else cut, init=rng.choice(INITS), top_k=rng.choice([1, 2, 3, 99]),
                            pool=rng.choice(POOLS), gate_scale=rng.choice([0.0, 0.5, 1, 2.0, -1.0]), softmax=rng.choice(SOFTMAX), chunk_size=rng.choice([1, 2, 3, 16]),
                            detach_cache=rng.random() < 0.3)
        self.lengths = cut_of(rng, T) if cut == "list" else None
        self.T, self.B = T, B

    def run(self, pick=lambda a: a, exact=False, segments=None, **more):
        "The call on what `pick` takes of the tokens; the definition in float64 if `exact`."
        kind = torch.float64 if exact else self.dtype
        rates = {n: pick(c).to(kind) if isinstance(c, torch.Tensor) else c for n, c in self.rates.items()}
        form = "sequential" if exact else more.pop("implementation", "parallel")
        return mc.memory_caching(*(pick(a).to(kind) for a in self.tokens), self.make(kind), coefficients=rates, implementation=form,
                                 segments=self.lengths or self.size if segments is None else segments, **self.options, **more)

    def plain(self):
        given = self.lengths or self.size
        same = self.rng.choice([np.array(given), torch.tensor(given), given])
        return self.run(segments=same), self.run(exact=True)

    def pieces(self, most=4):
        "In pieces, cut where one likes; a list of segments at their ends."
        ends = np.cumsum(self.lengths).tolist() if self.lengths else range(1, self.T + 1)
        cuts = sorted({*self.rng.sample(list(ends)[:-1], min(len(ends) - 1, self.rng.randint(0, most))), self.T})
        cache, a, parts = None, 0, []
        for b in cuts:
            some = [n for n, end in zip(self.lengths, ends) if a < end <= b] if self.lengths else None
            y, cache = self.run(lambda x: x[:, a:b], segments=some, cache=cache, return_cache=True, implementation=self.rng.choice(["parallel", "parallel", "sequential"]))
            parts, a = [*parts, y], b
        assert cache.position == self.T
        return torch.cat(parts, 1), self.run(exact=True)

    def steps(self):
        "As many pieces as there are tokens, or segments."
        return self.pieces(most=99)

    def mask(self):
        "Padding anywhere, NaN in it; each row is compared with a call of its own."
        longest = self.T + self.rng.randint(0, 3)
        counts = [self.T if b == 0 or self.lengths else self.rng.randint(1, self.T) for b in range(self.B)]
        mask = torch.zeros(self.B, longest, dtype=self.rng.choice([torch.bool, torch.int64, torch.float32]))
        for b, count in enumerate(counts):
            mask[b, sorted(self.rng.sample(range(longest), count))] = 1

        def spread(a):
            wide = a.new_full((self.B, longest, *a.shape[2:]), NAN if a.ndim == 4 else 0.5)
            for b, count in enumerate(counts):
                wide[b, mask[b].bool()] = a[b, :count]
            return wide

        y = self.run(spread, attention_mask=mask)
        assert (y[~mask.bool()] == 0).all()
        alone = [self.run(lambda a: a[b : b + 1, :count], exact=True)[0] for b, count in enumerate(counts)]
        return y[mask.bool()], torch.cat(alone)

    def packed(self):
        bounds = [0, *np.cumsum(cut_of(self.rng, self.T)).tolist()]
        alone = [self.run(lambda x: x[:, a:b], exact=True) for a, b in zip(bounds, bounds[1:])]
        return self.run(cu_seqlens=self.rng.choice([bounds, np.array(bounds), torch.tensor(bounds, dtype=torch.int32)])), torch.cat(alone, 1)




def error_of(seed):
    "How far the call is from the definition, relative to what it may be."
    call = Call(seed)
    with call.rng.choice(MODES)():
        y, right = getattr(call, call.way)()
    assert y.dtype == call.dtype and y.shape == right.shape
    return ((y.double() - right).norm() / (right.norm() + 1e-300)).item() / ERROR[call.dtype], call


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_call_is_what_the_definition_says(batch):
    for seed in range(batch, CALLS, BATCHES):
        error, call = error_of(seed)
        assert error < 1, (seed, error, call.way, call.dtype, call.size, call.lengths, call.options)
