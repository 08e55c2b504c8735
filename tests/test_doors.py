"""Every public argument, given wrong: one sentence that names it. And what is unusual but right goes through."""
import os
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import mc
from mc import costs, figures
from mc.cache_rewind import rewind
from mc.checks import values
from mc.segments import fenwick
from mc.nn.backends import Coefficients
from mc.nn.layer import CausalConv
from mc.nn.model import Attention
from mc.nn.model_cache import ModelCache
from mc.segments.packing import Packing
from mc.read.pools import join_pools, pool
from mc.read.sparse import choose
from mc.segments.lengths import Segments
from mc.trace import Trace

warnings.filterwarnings("ignore", "The PyTorch API of nested tensors")
NAN, INF = float("nan"), float("inf")
torch.manual_seed(0)
Q = torch.randn(2, 6, 2, 4)
W1, W2 = torch.randn(2, 4, 8), torch.randn(2, 8, 4)
X, MASK, ROW = torch.randn(2, 6, 8), torch.ones(2, 6), torch.randn(1, 6, 2, 4)
CONFIG = mc.MCConfig(8, 2, segment_size=4)
LAYER, DEEP = mc.MemoryCachingLayer(CONFIG), mc.MemoryCachingLayer(replace(CONFIG, backend="titans"))
ATTENTION = Attention(mc.AttentionConfig(8, 2))
MODEL, TOKENS = mc.LanguageModel(mc.LMConfig(11, 2, CONFIG)), torch.arange(6)[None]
PLAIN = mc.LanguageModel(mc.LMConfig(11, 2, mc.AttentionConfig(8, 2)))
RATES = {"swla": {"alpha": 0.9, "beta": 0.1, "lam": 1.0}, "dla": {"alpha": 0.9, "eta": 0.1}, "titans": {"alpha": 0.9, "beta": 0.1, "eta": 0.1},
         "gated_delta": {"alpha": 0.9, "eta": 0.1}}
MEMORIES = {"swla": mc.SWLAMemory(), "dla": mc.DLAMemory(W1, W2), "titans": mc.TitansMemory(W1, W2), "gated_delta": mc.GatedDeltaMemory()}
with torch.no_grad():
    CACHE = LAYER.forward_with_cache(X)[1]
    CACHES, KEYS, PLAINS = MODEL.forward_with_cache(TOKENS)[1], ATTENTION.forward_with_cache(X)[1], PLAIN.forward_with_cache(TOKENS)[1]
    BARE = mc.memory_caching(Q, Q, Q, Q, mc.LinearMemory(), segments=4, return_cache=True)[1]
    TRACE = LAYER.inspect(X)


class Thing:
    pass


THING = Thing()
CHOICE = {"empty": "", "case": "GRM ", "none": None, "one": 1, "true": True, "list": ["grm"], "object": THING, "bytes": b"grm", "tensor": torch.zeros(5),
          "array": np.array(["grm", "ssc"]), "set": {"grm"}, "nan": NAN}
SIZE = {"zero": 0, "minus": -1, "float": 2.5, "whole": 4.0, "text": "4", "none": None, "true": True, "np-bool": np.True_, "np-float": np.float64(4), "list": [4],
        "tuple": (4,), "dict": {}, "complex": 1j, "nan": NAN, "inf": INF, "t-float": torch.tensor(4.0), "t-bool": torch.tensor(True),
        "t-row": torch.tensor([4]), "array": np.array([4]), "huge": 10**30, "object": THING, "bytes": b"4"}
NUMBER = {"text": "1", "none": None, "true": True, "nan": NAN, "inf": INF, "minus-inf": -INF, "complex": 1j, "list": [1.0], "1e39": 1e39, "10**400": 10**400,
          "tensor": torch.tensor(1.0), "row": torch.ones(3), "array": np.ones(2), "object": THING, "dict": {}, "np-nan": np.float32("nan"), "np-bool": np.True_}
FLAG = {"no": "no", "yes": "yes", "one": 1, "zero": 0, "none": None, "float": 1.0, "list": [], "tensor": torch.tensor(True), "object": THING}
DENSE = {"none": None, "number": 1.0, "text": "x", "dict": {}, "object": THING, "flag": True}


def tensors(x, width=True, **change):
    "Wrong tensors in the place of a good one, `x`."
    bad = DENSE | {"list": x.tolist(), "array": x.numpy(), "rank-1": x[0], "rank+1": x[None], "scalar": torch.tensor(1.0), "sparse": x.to_sparse(),
                   "int": x.long(), "bool": x > 0, "complex": x + 0j, "float8": x.to(torch.float8_e4m3fn), "empty": x[:, :0], "no-row": x[:0],
                   "quantised": torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "nested": torch.nested.nested_tensor(list(x)), "meta": x.to("meta"),
                   "nan": x * NAN, "inf": x / 0, "double": x.double(), "one-nan": x.clone().index_fill_(0, torch.tensor([0]), NAN)}
    return (bad | ({"width": x[..., :3]} if width else {})) | change


LENGTHS = {n: a for n, a in SIZE.items() if n not in ("list", "tuple", "t-row", "array")} | {
    "nested": [[4], [2]], "none-in": [4, None], "minus-in": [7, -1], "zero-in": [6, 0], "bool-in": [5, True], "float-in": [4.0, 2.0], "sum": [4, 4], "empty": [],
    "text-in": ["4", "2"], "np-float": np.array([4.0, 2.0]), "np-2d": np.array([[4, 2]]), "t-float-row": torch.tensor([4.0, 2.0]), "t-2d": torch.tensor([[4, 2]]),
    "generator": iter([4, 2]), "set": {4, 2}, "mapping": {4: 2}, "bytes-row": b"\x04\x02"}
BOUNDS = {"text": "0,6", "texts": ["0", "6"], "nested": [[0, 6]], "floats": [0.0, 6.0], "none-in": [0, None, 6], "number": 6, "one": [6], "empty": [], "late": [1, 6],
          "short": [0, 5], "long": [0, 7], "huge": [0, 10**30], "falls": [0, 4, 2, 6], "twice": [0, 3, 3, 6], "minus": [0, -3, 6], "bools": [False, True], "dict": {0: 6},
          "t-float": torch.tensor([0.0, 6.0]), "t-2d": torch.tensor([[0, 6]]), "t-bool": torch.tensor([False, True]), "t-complex": torch.tensor([0, 6]) + 0j,
          "t-meta": torch.tensor([0, 6]).to("meta"), "t-sparse": torch.tensor([0, 6]).to_sparse(), "np-float": np.array([0.0, 6.0]), "np-2d": np.array([[0, 6]]),
          "np-text": np.array(["0", "6"]), "object": THING, "generator": iter([0, 6])}
MASKS = DENSE | {"list": MASK.tolist(), "array": MASK.numpy(), "short": MASK[:, :5], "rank": MASK[0], "deep": MASK[..., None], "two": 2 * MASK, "minus": -MASK, "half": MASK / 2,
                 "nan": MASK * NAN, "none-left": 0 * MASK, "sparse": MASK.to_sparse(), "complex": MASK + 0j, "meta": MASK.to("meta")}
RATE = {"text": "1", "none": None, "true": True, "nan": NAN, "inf": INF, "minus-inf": -INF, "1e39": 1e39, "10**400": 10**400, "complex": 1j, "list": [1.0] * 6, "array": np.ones((2, 6, 2)),
        "object": THING, "dict": {}, "shape": torch.ones(2, 6), "broadcast": torch.ones(2, 1, 2), "wide": torch.ones(2, 6, 2, 1), "t-int": torch.ones(2, 6, 2).long(),
        "t-bool": torch.ones(2, 6, 2).bool(), "t-complex": torch.ones(2, 6, 2) + 0j, "t-nan": torch.full((2, 6, 2), NAN), "t-inf": torch.full((2, 6, 2), INF),
        "t-meta": torch.ones(2, 6, 2, device="meta"), "t-sparse": torch.ones(2, 6, 2).to_sparse(), "scalar-int": torch.tensor(1), "scalar-meta": torch.tensor(1.0, device="meta")}
SHARE = RATE | {"above": 1.5, "below": -0.1, "t-above": torch.full((2, 6, 2), 1.01)}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")                                        # PyTorch makes such tensors still, and says that it will not
    QUANTISED = torch.quantize_per_tensor(W1, 0.1, 0, torch.qint8)
WEIGHTS = DENSE | {"list": W1.tolist(), "array": W1.numpy(), "int": W1.long(), "complex": W1 + 0j, "bool": W1 > 0, "sparse": W1.to_sparse(), "rank": W1[0], "deep": W1[None],
                   "no-head": W1[:0], "no-hidden": W1[..., :0], "meta": W1.to("meta"), "float8": W1.to(torch.float8_e4m3fn), "turned": W1.mT, "wide": W1[..., :7],
                   "quantised": QUANTISED, "nested": torch.nested.nested_tensor(list(W1))}
CONSTANTS = {"text": "alpha", "list": [("alpha", 1.0)], "number": 1.0, "true": True, "object": THING, "key": {1: 0.5}, "value": {"alpha": "high"}, "none-in": {"alpha": None},
             "nan-in": {"alpha": NAN}, "flag-in": {"alpha": True}, "complex-in": {"alpha": 1j}, "tensor-in": {"alpha": torch.ones(3)}, "list-in": {"alpha": [0.5]}}
KINDS = {"none": None, "dict": {"d_model": 8}, "text": "MCConfig", "number": 8, "class": mc.MCConfig, "object": THING, "list": [8, 2]}
INDEX = {"high": torch.tensor([0, 2]), "minus": torch.tensor([-1]), "float": torch.tensor([0.0, 1.0]), "bool": torch.tensor([True, False]), "rank": torch.tensor([[0, 1]]),
         "scalar": torch.tensor(0), "number": 1, "none": None, "text": "01", "texts": ["0"], "floats": [0.0], "bools": [True], "empty": [], "far": [0, 10**30], "list-high": [0, 2],
         "np-float": np.array([0.0]), "np-2d": np.array([[0]]), "complex": torch.tensor([0]) + 0j, "object": THING, "dict": {0: 1}, "sparse": torch.tensor([0, 1]).to_sparse()}


class Half(mc.LinearMemory):
    "A memory with one part replaced."

    def __init__(self, **parts):
        vars(self).update(parts)


class Backend(torch.nn.Module):
    "A backend that returns what it was given."

    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, x):
        return self.made


MEMORY = {"none": None, "text": "linear", "dict": {}, "number": 1, "class": mc.LinearMemory, "backend": LAYER.backend, "object": THING, "name": Half(name=1), "params": Half(params="m"),
          "coefficients": Half(coefficients=[]), "chunked": Half(chunked="no"), "shares": Half(shares=None), "options": Half(options=[1]), "write": Half(write=1), "scan": Half(scan=None),
          "start-list": Half(start=lambda k, v: [k]), "start-none": Half(start=lambda k, v: None), "start-name": Half(start=lambda k, v: {"w": k}),
          "start-shape": Half(start=lambda k, v: {"m": k[0]}), "start-number": Half(start=lambda k, v: {"m": 0.0}),
          "scans": Half(scan=lambda *a: None), "recalls": Half(recall=lambda *a: None), "recall-shape": Half(recall=lambda *a: torch.zeros(3)), "scan-key": Half(scan=lambda *a: {}["m"])}
BACKEND = {"none-made": Backend(None), "one": Backend(mc.LinearMemory()), "three": Backend((mc.LinearMemory(), {}, 1)), "text": Backend(("linear", {})), "swapped": Backend(({}, mc.LinearMemory())),
           "rates": Backend((mc.LinearMemory(), [1])), "names": Backend((mc.LinearMemory(), {"eta": 1.0})), "lacks": Backend((mc.SWLAMemory(), {})),
           "shape": Backend((mc.SWLAMemory(), RATES["swla"] | {"alpha": torch.ones(2, 5, 2)})), "class": Backend((mc.LinearMemory, {})), "tensor": Backend(X)}


def damaged(cache, layer=True):
    "Caches with one field changed, and caches of others."
    m, other = cache.online["m"], mc.MemoryCachingLayer(replace(CONFIG, backend="swla"))
    bad = {"dict": {}, "list": [cache], "text": "cache", "number": 0, "object": THING, "true": True, "tensor": X, "keys": KEYS, "class": mc.SegmentCache,
           "batch": cache.reorder(torch.tensor([0])), "three": cache.reorder(torch.tensor([0, 1, 1])),
           "meta": cache.to("meta"), "swla": other.forward_with_cache(X)[1]}
    fields = {"states": [None, {}, {"w": m}, {"m": m}, {"m": None}, {"m": cache.states["m"][:, :, :1]}, {"m": cache.states["m"].to_sparse()}],
              "pools": [None, cache.pools[:, :0], cache.pools[..., :3], cache.pools.numpy(), cache.pools.long()],
              "cut": [(), (4, 4), (3,), (0,), ("4",), (4.0,) * 2, [4], 4], "online": [None, {}, {"m": m[:1]}, {"m": m.long()}, {"m": m.numpy()}, {"m": m, "k": m}],
              "key_sum": [None, cache.key_sum[:1], cache.key_sum.double(), 0.0], "running": [None, -1, 4, 99, "2", 2.0, True], "pending": [None, {}, {"m": cache.states["m"]}],
              "about": [None, {}, "about", cache.about | {"memory": "swla"}, cache.about | {"top_k": 9}, cache.about | {"new": 1}]}
    if layer:
        fields |= {"inputs": [None, cache.inputs[:, :0], cache.inputs[..., :3], cache.inputs.numpy(), cache.inputs.to("meta")], "edges": [None, cache.edges[:, :0], [cache.edges], cache.edges[..., :3]]}
    return bad | {f"{name}-{i}": replace(cache, **{name: a}) for name, some in fields.items() for i, a in enumerate(some)}


def call(**change):
    return mc.memory_caching(**dict(q=Q, k=Q, v=Q, u=Q, memory=mc.LinearMemory(), segments=4) | change)


def row(**change):
    return mc.memory_caching(**dict(q=ROW, k=ROW, v=ROW, u=ROW, memory=mc.LinearMemory(), segments=4) | change)


def rate(memory, name):
    return lambda **given: call(memory=MEMORIES[memory], coefficients=RATES[memory] | {name: given[name]})


def spoilt(part):
    "A layer, a model or attention with NaN in one of its weights."
    def make(module, *inputs):
        module = type(module)(module.config)
        with torch.no_grad():
            module.get_parameter(part).view(-1)[0] = NAN
        return module(*inputs)
    return make


config = lambda **change: mc.MCConfig(**dict(d_model=8, num_heads=2) | change)
lm = lambda **change: mc.LMConfig(**dict(vocab_size=11, num_layers=1, mixer=CONFIG) | change)
price = lambda **change: costs.costs(**dict(way="grm", tokens=64) | change)
fewer = lambda kinds, *names: {n: a for n, a in kinds.items() if n not in names}
WIDTH, POSITIVE, FREE = fewer(SIZE), SIZE, fewer(SIZE, "zero")

# door, argument, wrong values, and what the message says instead of the argument's name
DOORS = [
    *[(f"call {n}", call, n, tensors(Q, width=n in "qku"), None) for n in ("k", "u")],
    ("call q", call, "q", fewer(tensors(Q), "meta", "double", "float8") | {"double": Q.double()}, None),
    ("call v", call, "v", tensors(Q, width=False, heads=Q[:, :, :1], batch=Q[:1]), None),
    *[(f"call {n}", call, n, CHOICE, None) for n in ("aggregation", "segmentation", "init", "pool", "softmax", "implementation")],
    *[(f"call {n}", call, n, SIZE, None) for n in ("top_k", "chunk_size")],
    ("call segments", call, "segments", LENGTHS, None), ("call none segments", lambda segments: call(segments=segments, aggregation="none"), "segments", fewer(LENGTHS, "sum"), None),
    ("call gate_scale", call, "gate_scale", NUMBER, None),
    *[(f"call {n}", call, n, FLAG, None) for n in ("detach_cache", "return_cache")], ("layer return_cache", lambda return_cache: LAYER(X, return_cache=return_cache), "return_cache", FLAG, None),
    ("attention return_cache", lambda return_cache: ATTENTION(X, return_cache=return_cache), "return_cache", FLAG, None), ("forward cache", lambda cache: LAYER(X, cache=cache), "cache", damaged(CACHE), None),
    ("call memory", call, "memory", MEMORY, None), ("call cache", call, "cache", damaged(BARE, layer=False), None),
    ("call mask", call, "attention_mask", fewer(MASKS, "none"), None), ("call bounds", row, "cu_seqlens", BOUNDS, None),
    ("call rates", call, "coefficients", {"list": [1.0], "text": "eta", "number": 0.5, "unknown": {"eta": 1.0}, "key": {1: 1.0}, "object": THING, "set": {"eta"}, "true": True}, None),
    *[(f"call {m} {n}", rate(m, n), n, SHARE if n == "alpha" or (m, n) == ("titans", "beta") else RATE, None) for m in RATES for n in RATES[m]],
    ("call padded rate", lambda alpha: call(memory=MEMORIES["swla"], coefficients=RATES["swla"] | {"alpha": alpha}, attention_mask=MASK), "alpha", SHARE, None),
    ("dla w1", lambda w1: mc.DLAMemory(w1, W2), "w1", WEIGHTS, "w[12]"), ("titans w2", lambda w2: mc.TitansMemory(W1, w2), "w2", fewer(WEIGHTS, "turned", "wide") | {"same": W1}, "w[12]"),
    ("dla step", lambda normalised_step: mc.DLAMemory(W1, W2, normalised_step), "normalised_step", FLAG, None),
    ("titans update", lambda update: mc.TitansMemory(W1, W2, update), "update", CHOICE, None),
    ("call meta weights", lambda memory: call(memory=memory, coefficients={"eta": 0.1}), "memory", {"meta": mc.DLAMemory(W1.to("meta"), W2.to("meta")), "heads": mc.DLAMemory(W1[:1], W2[:1])}, "w1"),
    *[(f"MCConfig {n}", config, n, SIZE | {"odd": 2**70}, None) for n in ("d_model", "num_heads", "segment_size", "top_k", "chunk_size", "expansion", "conv_size")],
    *[(f"MCConfig {n}", config, n, CHOICE, None) for n in ("backend", "aggregation", "segmentation", "init", "gate", "pool", "softmax")],
    ("MCConfig heads", config, "num_heads", {"three": 3, "sixteen": 16}, None), ("MCConfig scale", config, "gate_scale", NUMBER, None),
    *[(f"MCConfig {n}", config, n, FLAG, None) for n in ("detach_cache", "normalised_step")], ("MCConfig constants", config, "constants", CONSTANTS, None),
    ("backend constants", lambda constants: mc.MemoryCachingLayer(config(backend="swla", constants=constants)), "constants", {"name": {"eta": 0.1}, "above": {"alpha": 1.5}, "below": {"alpha": -1}}, None),
    ("linear constants", lambda constants: mc.MemoryCachingLayer(config(constants=constants)), "constants", {"any": {"alpha": 0.1}}, None),
    *[(f"AttentionConfig {n}", lambda **c: mc.AttentionConfig(**dict(d_model=8, num_heads=2) | c), n, SIZE, None) for n in ("d_model", "num_heads", "conv_size")],
    *[(f"LMConfig {n}", lm, n, SIZE, None) for n in ("vocab_size", "num_layers", "expansion")], ("LMConfig mixer", lm, "mixer", KINDS | {"layer": LAYER, "lm": MODEL.config}, None),
    ("from_dict", mc.LMConfig.from_dict, "content", {"none": None, "list": [1], "empty": {}, "text": "a", "newer": MODEL.config.to_dict() | {"windows": 2}, "key": MODEL.config.to_dict() | {1: 2}}, None),
    ("from_dict mixer", lambda mixer: mc.LMConfig.from_dict(MODEL.config.to_dict() | {"mixer": mixer}), "mixer", {"none": None, "text": "MCConfig", "empty": {}, "kind": {"kind": "RNN", "d_model": 8}, "no-kind": {"d_model": 8, "num_heads": 2},
     "newer": {"kind": "MCConfig", "d_model": 8, "num_heads": 2, "windows": 1}, "lacks": {"kind": "AttentionConfig", "d_model": 8}, "list-kind": {"kind": ["MCConfig"]}}, None),
    ("layer config", lambda config: mc.MemoryCachingLayer(config), "config", KINDS | {"lm": MODEL.config, "attention": ATTENTION.config}, None),
    ("attention config", lambda config: Attention(config), "config", KINDS | {"mc": CONFIG, "lm": MODEL.config}, None),
    ("model config", lambda config: mc.LanguageModel(config), "config", KINDS | {"mc": CONFIG, "attention": ATTENTION.config}, None),
    *[(f"{b.__name__} config", lambda config, b=b: b(config), "config", KINDS, None) for b in (mc.LinearMemoryBackend, mc.SWLABackend, mc.DLABackend, mc.TitansBackend, mc.GatedDeltaBackend)],
    ("layer backend", lambda backend: mc.MemoryCachingLayer(CONFIG, backend), "backend", fewer(KINDS, "none") | {"memory": mc.LinearMemory(), "module": mc.LinearMemoryBackend}, None),
    ("layer backend's", lambda backend: mc.MemoryCachingLayer(CONFIG, backend)(X), "backend", BACKEND, "backend|memory|coefficients"),
    *[(f"{n} x", f, "x", tensors(X), None) for n, f in (("layer", LAYER), ("forward_with_cache", LAYER.forward_with_cache), ("inspect", LAYER.inspect), ("attention", ATTENTION), ("deep", DEEP))],
    ("step x", LAYER.step, "x", fewer(tensors(X[:, 0]), "empty"), None),
    ("layer mask", lambda attention_mask: LAYER(X, attention_mask), "attention_mask", fewer(MASKS, "none"), None),
    ("layer bounds", lambda cu_seqlens: LAYER(X[:1], cu_seqlens=cu_seqlens), "cu_seqlens", BOUNDS, None),
    ("layer cache", lambda cache: LAYER.forward_with_cache(X, cache), "cache", damaged(CACHE) | {"bare": BARE, "attention": KEYS}, None),
    ("step cache", lambda cache: LAYER.step(X[:, 0], cache), "cache", damaged(CACHE), None), ("inspect cache", lambda cache: LAYER.inspect(X, cache), "cache", damaged(CACHE), None),
    ("cut cache", lambda cache: LAYER.rewind(cache, 0), "cache", fewer(damaged(CACHE), "batch", "three") | {"none": None}, None),
    ("cut segments", lambda segments: LAYER.rewind(CACHE, segments), "segments", fewer(SIZE, "zero") | {"two": 2}, None),
    ("rewind segments", lambda segments: rewind(BARE, segments, mc.LinearMemory()), "segments", fewer(SIZE, "zero") | {"two": 2}, None),
    ("rewind cache", lambda cache: rewind(cache, 0, mc.LinearMemory()), "cache", {"none": None, "dict": {}, "keys": KEYS, "lengths": replace(BARE, cut=[4, 4]), "about": replace(BARE, about=None)}, None),
    ("rewind memory", lambda memory: rewind(BARE, 0, memory), "memory", {"none": None, "other": mc.SWLAMemory(), "class": mc.LinearMemory, "text": "linear"}, None),
    ("attention cache", lambda cache: ATTENTION.forward_with_cache(X, cache), "cache",
     {"dict": {}, "empty": (), "tuple": (KEYS.keys, KEYS.values, KEYS.inputs), "segment": CACHE, "text": "abc", "number": 1, "meta": KEYS.to("meta"), "batch": KEYS.select([0])}
     | {n: replace(KEYS, **change) for n, change in {
         "nones": {"keys": None, "values": None}, "numbers": {"inputs": 3}, "long": {"keys": KEYS.keys.long()}, "values": {"values": KEYS.values[:, :, :1]}, "rank": {"keys": KEYS.keys[0]},
         "arrays": {"keys": KEYS.keys.numpy()}, "inputs": {"inputs": KEYS.inputs[:, :0]}, "heads": {"keys": KEYS.keys[:, :1], "values": KEYS.values[:, :1]}, "nan": {"keys": KEYS.keys * NAN},
         "kept": {"kept": (1, 1)}, "kept none": {"kept": None}, "seen": {"seen": (9, 9)}, "rows": {"seen": (6,), "kept": (6,)}, "columns": {"columns": 2}, "window": {"window": 3}, "window text": {"window": "a"}}.items()}, None),
    *[(f"{n} tokens", f, "tokens", {"none": None, "list": [[1]], "text": "a", "float": TOKENS.float(), "int32": TOKENS.int(), "bool": TOKENS > 0, "rank": TOKENS[0], "high": TOKENS + 6,
      "minus": TOKENS - 1, "empty": TOKENS[:, :0], "array": TOKENS.numpy(), "sparse": TOKENS.to_sparse(), "meta": TOKENS.to("meta"), "complex": TOKENS + 0j, "object": THING, "deep": TOKENS[None]}, None)
      for n, f in (("model", MODEL), ("model.forward_with_cache", MODEL.forward_with_cache), ("model.inspect", MODEL.inspect), ("plain", PLAIN))],
    ("model mask", lambda attention_mask: MODEL(TOKENS.repeat(2, 1), attention_mask), "attention_mask", fewer(MASKS, "none"), None),
    ("model bounds", lambda cu_seqlens: MODEL(TOKENS, cu_seqlens=cu_seqlens), "cu_seqlens", BOUNDS, None),
    *[(f"{n} caches", lambda caches, m=m: m.forward_with_cache(TOKENS, caches), "caches", {"dict": {}, "one": own[:1], "three": [*own, own[0]], "number": 2, "text": "ab", "cache": own[0], "empty": [],
      "other": other, "mixed": [own[0], None], "texts": ["a", "b"], "numbers": [1, 2], "dicts": [{}, {}], "empties": [(), ()], "behind": [own[0], m.forward_with_cache(TOKENS[:, :3])[1][1]]}, "caches?")
      for n, m, own, other in (("model", MODEL, CACHES, PLAINS), ("plain", PLAIN, PLAINS, CACHES))],
    ("inspect attention", lambda model: model.inspect(TOKENS), "model", {"attention": PLAIN}, "inspect"),
    ("reorder", CACHE.reorder, "index", INDEX, None), ("cache[i]", CACHE.__getitem__, "i", fewer(SIZE, "zero", "minus", "huge") | {"slice": slice(1)}, "segment"),
    ("to", CACHE.to, "dtype", {"text": "bf16", "int": torch.int64, "bool": torch.bool, "complex": torch.complex64, "number": 1.5, "object": THING, "device": "cuda:99", "quantised": torch.qint8, "float8": torch.float8_e4m3fn}, "to|dtype"),
    ("model cache", ModelCache, "layers", {"none": None, "dict": {}, "number": 1, "texts": ["a"], "nones": [None], "empty": [], "behind": [CACHE, KEYS.select([0])]}, "cache"),
    *[(f"{n} {verb}", getattr(c, verb), "index", INDEX, None) for n, c in (("model cache", CACHES), ("attention cache", KEYS)) for verb in ("reorder", "select")],
    *[(f"{n} repeat", c.repeat, "n", SIZE, None) for n, c in (("model cache", CACHES), ("attention cache", KEYS))],
    ("Segments", Segments, "lengths", fewer(LENGTHS, "sum", "empty") | {"empty": [], "number": 4, "array": np.array(4)}, "segments"),
    *[(f"Segments.constant {n}", lambda **c: Segments.constant(**dict(tokens=9, size=4) | c), n, SIZE if n != "running" else fewer(SIZE, "zero") | {"four": 4}, None) for n in ("tokens", "size", "running")],
    ("Segments.logarithmic", Segments.logarithmic, "tokens", SIZE, None), ("Segments.alike", Segments((4, 2)).alike, "alone", FLAG, None),
    ("powers", fenwick.powers, "n", fewer(SIZE, "zero"), None), ("group", fenwick.group, "n", SIZE, None), ("visible", fenwick.visible, "n", fewer(SIZE, "zero"), None),
    ("reach", fenwick.reach, "first", fewer(SIZE, "zero"), None), ("growing", fenwick.growing, "n", fewer(SIZE, "zero"), None),
    ("pool", lambda kind: pool(torch.ones(4), torch.ones(1), torch.tensor(0.0), kind), "kind", CHOICE, None),
    ("join_pools", lambda kind: join_pools(torch.ones(2, 4), torch.ones(2), kind), "kind", CHOICE, None), ("choose", lambda k: choose(torch.ones(3), k), "k", SIZE, None),
    ("of_mask", lambda mask: Packing.of_mask(mask, (2, 6)), "mask", fewer(MASKS, "meta"), "attention_mask"), ("of_bounds", lambda bounds: Packing.of_bounds(bounds, (1, 6)), "bounds", fewer(BOUNDS, "t-meta"), "cu_seqlens"),
    ("trace", lambda scores: Trace(scores, TRACE.gates, TRACE.chosen, (), CACHE, 0), "scores", DENSE | {"rank": Q[0], "shape": Q}, "scores|gates"), ("trace.of", Trace.of, "passed", {"none": None, "tuple": (), "trace": TRACE}, None),
    ("trace before", lambda before: replace(TRACE, before=before), "before", fewer(SIZE, "zero"), None), ("trace cache", lambda cache: replace(TRACE, cache=cache), "cache", {"none": None, "dict": {}, "keys": KEYS}, None),
    ("costs way", price, "way", CHOICE, None), ("costs memory", price, "memory", CHOICE, None), *[(f"costs {n}", price, n, SIZE, None) for n in ("tokens", "segment_size", "head_size", "top_k")],
    ("break_even", costs.break_even, "head_size", SIZE, None), ("seen", lambda most: costs.seen(9, 4, most), "most", fewer(SIZE, "zero"), None), ("memory_sizes", lambda memory: costs.memory_sizes(memory, 4), "memory", CHOICE, None),
    ("heatmap", lambda z: figures.heatmap(z, "a", "b", "c", "d"), "z", DENSE | {"row": [1.0], "ragged": [[1.0], [1.0, 2.0]], "texts": [["a"]], "empty": [], "no-column": [[]], "deep": Q, "meta": Q[0, 0].to("meta"), "complex": np.ones((2, 2)) + 1j}, None),
    ("heatmap title", lambda title: figures.heatmap([[1.0]], title, "b", "c", "d"), "title", {"none": None, "number": 1, "list": ["a"]}, None),
    ("heatmap centre", lambda centre: figures.heatmap([[1.0]], "a", "b", "c", "d", centre), "centre", fewer(NUMBER, "none"), None),
    ("describe", lambda text: figures.describe(figures.heatmap([[1.0]], "a", "b", "c", "d"), text), "text", {"none": None, "empty": "", "blank": "  ", "number": 1, "list": ["a"]}, None),
    ("describe figure", lambda figure: figures.describe(figure, "a"), "figure", {"none": None, "dict": {}, "text": "a"}, None),
    *[(f"conv {n}", lambda **c: CausalConv(**dict(d_in=4, d_out=4, width=2) | c), n, SIZE, None) for n in ("d_in", "d_out", "width")],
    *[(f"coefficients {n}", lambda **c: Coefficients(**dict(d_model=8, num_heads=2, biases={"alpha": 0.0}, constants=None) | c), n, SIZE, None) for n in ("d_model", "num_heads")],
    ("coefficients x", Coefficients(8, 2, {"alpha": 0.0}, None), "x", fewer(tensors(X), "nan", "inf", "one-nan", "double", "meta"), None),
    ("weights", lambda part: spoilt(part)(LAYER, X), "part", {n: n for n, _ in LAYER.named_parameters()}, "contains NaN"),
    ("deep weights", lambda part: spoilt(part)(DEEP, X), "part", {n: n for n, _ in DEEP.named_parameters()}, "contains NaN|must be"),
    ("attention weights", lambda part: spoilt(part)(ATTENTION, X), "part", {n: n for n, _ in ATTENTION.named_parameters()}, "contains NaN"),
    ("model weights", lambda part: spoilt(part)(MODEL, TOKENS), "part", {n: n for n, _ in MODEL.named_parameters()}, "contains NaN"),
    ("large", call, "k", {"2e37": 2e37 * Q}, "too large"), ("half", lambda k: call(q=Q.half(), k=k, v=Q.half(), u=Q.half(), aggregation="none"), "k", {"6e4": (3e4 * Q.sign()).half()}, "too large for torch.float16"),
    ("scale", lambda gate_scale: call(gate_scale=gate_scale, u=100 * Q), "gate_scale", {"3e38": 3e38}, "too large"),
    ("cache nan", lambda cache: call(cache=cache), "cache", {"states": replace(BARE, states={"m": BARE.states["m"] * NAN}), "online": replace(BARE, online={"m": BARE.online["m"] / 0})}, "cache.* contains NaN"),
    ("layer cache nan", lambda cache: LAYER.forward_with_cache(X, cache), "cache", {n: replace(CACHE, **{n: getattr(CACHE, n) * NAN}) for n in ("inputs", "pools", "key_sum")}, "cache.* contains NaN"),
    ("weight nan", lambda memory: call(memory=memory, coefficients={"eta": 0.1}), "memory", {"w1": mc.DLAMemory(W1 * NAN, W2), "w2": mc.DLAMemory(W1, W2 / 0)}, "memory.w. .*contains NaN|memory.w. contains"),
]


def fault(function, given, said):
    "What is wrong with the way in which a call is refused; None if nothing is."
    try:
        function(*given.values()) if not hasattr(function, "__code__") else function(**given)
    except Exception as error:
        message, frame = str(error), error.__traceback__
        while frame.tb_next:
            frame = frame.tb_next
        ours = f"{os.sep}mc{os.sep}" in frame.tb_frame.f_code.co_filename
        named = isinstance(error, ValueError) and re.search(said, message) and "\n" not in message and len(message) < 400
        return None if ours and named else f"{type(error).__name__}: {message}"
    return "accepted"


def test_there_are_enough_of_them():
    assert sum(len(wrong) for _, _, _, wrong, _ in DOORS) >= 781 and len({door for door, *_ in DOORS}) == len(DOORS)


@pytest.mark.parametrize("function, name, wrong, said", [pytest.param(*door, id=label) for label, *door in DOORS])
def test_bad_input_is_named(function, name, wrong, said):
    "By us, in one line, as a `ValueError`."
    faults = {kind: fault(function, {name: a}, said or rf"\b{name}\b") for kind, a in wrong.items()}
    assert not {kind: what for kind, what in faults.items() if what}


@pytest.mark.parametrize("function", [call, config, lm, LAYER, MODEL], ids=["call", "MCConfig", "LMConfig", "layer", "model"])
def test_unknown_keywords_are_python_s(function):
    given = {LAYER: [X], MODEL: [TOKENS]}.get(function, [])
    with pytest.raises(TypeError, match="unexpected keyword argument 'windows'"):
        function(*given, windows=2)


SAME = {
    "np size": lambda: call(segments=np.int64(4)), "tensor size": lambda: call(segments=torch.tensor(4)), "lengths": lambda: call(segments=[4, 2]), "tuple": lambda: call(segments=(4, 2)),
    "np lengths": lambda: call(segments=np.array([4, 2])), "np items": lambda: call(segments=list(np.array([4, 2]))), "tensor lengths": lambda: call(segments=torch.tensor([4, 2], dtype=torch.int32)),
    "many": lambda: call(top_k=10**6, aggregation="ssc"), "long chunk": lambda: call(chunk_size=10**9), "np options": lambda: call(top_k=np.int8(4), chunk_size=np.uint64(3), gate_scale=np.float16(1)),
    "np flags": lambda: call(detach_cache=np.False_, return_cache=np.bool_(False)), "int scale": lambda: call(gate_scale=1), "str": lambda: call(aggregation=np.str_("grm")),
    "empty rates": lambda: call(coefficients={}), "mask": lambda: call(attention_mask=MASK), "bool mask": lambda: call(attention_mask=MASK.bool()), "int mask": lambda: call(attention_mask=MASK.int()),
    "empty cache": lambda: call(cache=mc.SegmentCache.empty(mc.LinearMemory(), Q[:, 0], Q[:, 0], BARE.about)), "sequential": lambda: call(implementation="sequential"),
}


@pytest.mark.parametrize("unusual", SAME.values(), ids=SAME)
def test_other_words_for_the_same_are_the_same(unusual):
    assert torch.allclose(unusual(), call(), atol=1e-6)


def test_numbers_of_numpy_make_the_same_configuration():
    other = mc.MCConfig(np.int64(8), np.int32(2), segment_size=np.int16(4), top_k=np.uint8(4), gate_scale=np.float64(1.0), chunk_size=torch.tensor(16), detach_cache=np.False_)
    assert other == CONFIG and hash(other) == hash(CONFIG) and all(type(a) in (int, float, bool, str, type(None)) for a in vars(other).values())
    assert len({config(backend="dla", constants={"alpha": n}) for n in (1, np.int64(1), 1.0)}) == 1
    assert mc.LMConfig(np.int64(11), np.int64(2), other) == MODEL.config
    _, cache = mc.MemoryCachingLayer(other).forward_with_cache(X)
    assert cache.about == CACHE.about


GOOD = {
    "one head": lambda: config(d_model=8, num_heads=8), "one wide": lambda: config(d_model=1, num_heads=1), "no conv": lambda: config(conv_size=1), "constants": lambda: config(backend="dla", constants={"alpha": 1, "eta": np.float32(0.1)}),
    "one token": lambda: LAYER(X[:, :1]), "one row": lambda: LAYER(X[:1]), "view": lambda: LAYER(X.transpose(0, 1).contiguous().transpose(0, 1)), "parameter": lambda: LAYER(torch.nn.Parameter(X)), "large": lambda: LAYER(1e10 * X),
    "zeros": lambda: LAYER(0 * X), "empty row": lambda: LAYER(X, torch.tensor([[1] * 6, [0] * 6])), "short rates": lambda: call(memory=MEMORIES["titans"], coefficients={"alpha": 0, "beta": 1, "eta": -2}),
    "scalar rates": lambda: call(memory=MEMORIES["dla"], coefficients={"eta": torch.tensor(0.1).double()}), "wider rates": lambda: call(memory=MEMORIES["dla"], coefficients={"eta": torch.ones(2, 6, 2).double()}),
    "values": lambda: call(v=Q[..., :3]), "bounds": lambda: row(cu_seqlens=np.array([0, 1, 6], dtype=np.uint8)), "wider weights": lambda: mc.DLAMemory(W1, W2.double()), "step again": lambda: LAYER.step(X[:, 0], CACHE),
    "other caches": lambda: [LAYER.step(X[:, 0], CACHE.to(kind)) for kind in (torch.float64, torch.float16)], "tuple of caches": lambda: MODEL.forward_with_cache(TOKENS, tuple(CACHES)), "nones": lambda: MODEL.forward_with_cache(TOKENS, [None, None]),
    "reorder": lambda: [CACHE.reorder(i) for i in ([0, 1, 1], np.array([1]), torch.tensor([0], dtype=torch.int32), (1, 0), range(2))], "to": lambda: [CACHE.to(torch.bfloat16), CACHE.to("cpu", torch.float64), CACHE.to(X), CACHE.to(device="meta")],
    "items": lambda: [CACHE[0], CACHE[-1], CACHE[np.int64(0)]], "cut": lambda: [LAYER.rewind(CACHE, np.int64(1)), LAYER.rewind(CACHE, 0)], "none": lambda: call(aggregation="none", segments=[3, 3]), "nan in scores": lambda: figures.heatmap([[NAN, 1]], "a", "b", "c", "d"),
    "array map": lambda: figures.heatmap(np.eye(2), "a", "b", "c", "d", centre=np.float32(0)), "costs": lambda: price(tokens=np.int64(100), segment_size=1000), "blocks": lambda: [fenwick.powers(0), fenwick.reach(0), fenwick.growing(np.int64(5))],
    "one word": lambda: mc.LanguageModel(lm(vocab_size=1))(torch.zeros(1, 3).long()), "checkpoint": lambda: torch.utils.checkpoint.checkpoint(LAYER, X, use_reentrant=False), "inference": lambda: torch.inference_mode()(LAYER)(X),
}


@pytest.mark.parametrize("use", GOOD.values(), ids=GOOD)
def test_the_unusual_is_accepted(use):
    use()


def test_an_item_that_is_not_there_ends_a_loop():
    assert len(list(CACHE)) == len(CACHE) == 1
    with pytest.raises(IndexError, match="segment 1 of a cache that holds 1"):
        CACHE[1]


def test_the_nearest_name_is_offered():
    with pytest.raises(ValueError, match="got 'GRM'; did you mean 'grm'?"):
        config(aggregation="GRM")
    with pytest.raises(ValueError, match="one of 'linear', 'swla', 'dla', 'titans', 'gated_delta'; got 'Titan'; did you mean 'titans'?"):
        config(backend="Titan")


def test_a_message_is_short_whatever_was_given():
    for given in (torch.randn(50, 50), ["x" * 1000], {i: "long\nlines" for i in range(99)}, LAYER, type("Odd", (), {"__repr__": lambda self: "a\nb"})()):
        assert len(values.said(given)) <= 80 and "\n" not in values.said(given)
