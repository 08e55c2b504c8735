"""Programs of random calls on random models: pieces, steps, padding, and what one does with a cache in between. Each row is the row alone."""
import copy
import pickle
import random

import pytest
import torch

import mc
from mc.nn.layer import GATES
from mc.nn.model_cache import KINDS
from mc.options import INITS, SOFTMAX
from mc.read.pools import POOLS
from mc.read.ways import AGGREGATIONS

pytestmark = pytest.mark.usefixtures("poisoned")
PROGRAMS, CALLS, WORDS = 24, 7, 9
BACKENDS = ("linear", "swla", "dla", "titans", "gated_delta")
DRAWN = dict(aggregation=AGGREGATIONS, init=INITS, gate=GATES, pool=POOLS, softmax=SOFTMAX, detach_cache=(False, True), segmentation=("constant", "fenwick"),
             backend=BACKENDS, conv_size=(1, 2, 3, 4), chunk_size=(1, 2, 3, 16), segment_size=(1, 3, 4, 7), gate_scale=(0.5, 2.0, -1.0), top_k=(1, 2, 3), top_p=(0.3, 0.5, 0.9), expansion=(1, 2))


class Program:
    "A model and its rows: what each has seen, and the cache of it."

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        torch.manual_seed(seed)
        mixers = [mc.MCConfig(8, 2, **{n: rng.choice(values) for n, values in DRAWN.items()})]
        if rng.random() < 0.5:
            mixers.append(mc.AttentionConfig(8, 2, rng.randint(1, 4), window=rng.choice([None, 1, 2, 3, 5, 20])))
        self.model = mc.LanguageModel(mc.LMConfig(WORDS, mixers=rng.sample(mixers, len(mixers)))).double()
        for weight in self.model.parameters():
            weight.data.add_(0.2 * torch.randn_like(weight))
        self.rows, self.cache, self.columns, self.older, self.frozen = [[] for _ in range(rng.randint(2, 4))], None, 0, [], False

    def mode(self):
        "Autograd refuses what inference mode made."
        mode = self.rng.choice([torch.no_grad, torch.inference_mode] + [torch.enable_grad] * (not self.frozen))
        self.frozen = self.frozen or mode is torch.inference_mode
        return mode()

    def mask(self, width):
        kind = self.rng.choice(["none", "any", "any", "any", "no token", "equal"])
        if kind == "none" or (kind == "no token" and self.cache is None):
            return None
        share = self.rng.randint(1, width)
        counts = [{"no token": 0, "equal": share}.get(kind, self.rng.randint(0, width)) for _ in self.rows]
        mask = torch.zeros(len(self.rows), width, dtype=self.rng.choice([torch.bool, torch.int64, torch.float32]))
        for b, count in enumerate(counts):
            mask[b, self.rng.sample(range(width), count)] = 1
        if self.cache is None:
            mask[0, 0] = 1
        return mask

    def call(self):
        if self.cache is not None:
            self.older.append((self.rows, self.cache, self.columns))
        width, last = self.rng.choice([1, 1, 1, 2, 5, 8, 13]), self.rng.random() < 0.3
        tokens, mask = torch.randint(WORDS, (len(self.rows), width)), self.mask(width)
        with self.mode():
            y, self.cache = self.model.forward_with_cache(tokens, self.cache, mask, last=last)
        real = torch.ones_like(tokens).bool() if mask is None else mask.bool()
        before, self.columns = [len(row) for row in self.rows], self.columns + width
        self.rows = [row + some[there].tolist() for row, some, there in zip(self.rows, tokens, real)]
        for b, (row, start) in enumerate(zip(self.rows, before)):
            right = self.alone(row)[start:] if len(row) > start else torch.zeros(0, WORDS).double()
            if last:
                right = right[-1] if len(right) else torch.zeros(WORDS).double()
            assert torch.allclose(y[b] if last else y[b, real[b]], right, rtol=1e-9, atol=1e-9)
            assert last or (y[b, ~real[b]] == 0).all()

    def alone(self, row):
        with torch.no_grad():
            return self.model(torch.tensor([row]))[0]

    def edit(self, tmp_path):
        count = len(self.rows)
        some = [self.rng.randrange(count) for _ in range(self.rng.randint(1, 4))]
        verb = self.rng.choice(["reorder", "select", "repeat", "save", "each", "copy", "pickle", "older", "older"])
        with self.mode():
            if verb in ("reorder", "select"):
                self.cache, self.rows = getattr(self.cache, verb)(some), [self.rows[b] for b in some]
            elif verb == "repeat" and count < 3:
                self.cache, self.rows = self.cache.repeat(2), [row for row in self.rows for _ in range(2)]
            elif verb == "save":
                self.cache.save(tmp_path / "model")
                self.cache = mc.ModelCache.load(tmp_path / "model")
            elif verb == "each":
                for i, cache in enumerate(self.cache):
                    cache.save(tmp_path / str(i))
                self.cache = mc.ModelCache([KINDS[type(cache).__name__].load(tmp_path / str(i)) for i, cache in enumerate(self.cache)])
            elif verb == "copy":
                self.cache = copy.deepcopy(self.cache.detach())
            elif verb == "pickle":
                self.cache = pickle.loads(pickle.dumps(self.cache.detach().to(torch.float64)))
            elif verb == "older" and self.older:
                self.rows, self.cache, self.columns = self.rng.choice(self.older)

    def run(self, tmp_path):
        "Options whose rows have come unequally far."
        ragged = False
        for _ in range(CALLS):
            self.call()
            ragged = ragged or len({*self.cache.positions}) > 1
            if self.rng.random() < 0.5:
                self.edit(tmp_path)
            assert (self.cache.positions, self.cache.columns) == ([len(row) for row in self.rows], self.columns)
        config = next(mixer for mixer in self.model.config.layers if isinstance(mixer, mc.MCConfig))
        return {(name, getattr(config, name)) for name in DRAWN} if ragged else set()


def test_each_row_is_the_row_alone_whatever_the_program(tmp_path):
    seen = set().union(*(Program(seed).run(tmp_path) for seed in range(PROGRAMS)))
    assert seen == {(name, value) for name, values in DRAWN.items() for value in values}
