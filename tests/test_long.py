"""Long texts: pieces where nobody differentiates, choices without a tensor for all pairs, sums of matrices."""
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import mc
from cells import B, C, CELLS, D, H, assert_same, coefficients_of, memory_of, outcome, randn, rules_of, tokens
from mc.forms import parallel, parallel_routes, pieces
from mc.functional import IMPLEMENTATIONS, one_pass
from mc.nn.attention import AttentionConfig
from mc.read.highest import highest
from mc.read.sparse import choose

WHOLE = 10**9


@pytest.fixture
def short(monkeypatch):
    "Pieces of seven tokens, scores of three at a time."
    monkeypatch.setattr(pieces, "PIECE", 7)
    monkeypatch.setattr(parallel_routes, "ROUTED", 3)


def layer_of(backend="linear", aggregation="ssc", **options):
    torch.manual_seed(0)
    options = dict(segment_size=C, top_k=2, chunk_size=3) | options
    return mc.MemoryCachingLayer(mc.MCConfig(8, 2, backend, aggregation, **options)).double()


def in_both(monkeypatch, function):
    "What `function` gives in pieces and in one call."
    found = []
    for size in (7, WHOLE):
        monkeypatch.setattr(pieces, "PIECE", size)
        found.append(function())
    return found


def kept(cache):
    "The tensors of each row alone: what stands behind a row's last memory means nothing."
    return [leaf for b in range(len(cache.key_sum)) for leaf in cache.row(b)._tensors().values()]


def counted(monkeypatch):
    "The lengths of the calls that reach the parallel form from now on."
    lengths, form = [], parallel.parallel

    def noted(tokens, *rest, **named):
        lengths.append(tokens.k.shape[1])
        return form(tokens, *rest, **named)

    monkeypatch.setattr("mc.functional.parallel", noted)
    monkeypatch.setitem(IMPLEMENTATIONS, "parallel", noted)
    return lengths


@pytest.mark.parametrize("name, aggregation, cut, init", CELLS[::7])    # 7: every memory, way, cut and initialisation
def test_pieces_are_one_call(monkeypatch, name, aggregation, cut, init):
    (x, rates), memory = tokens(29), memory_of(name)
    segments = [3, 9, 1, 4, 12] if cut == "list" else C
    options = vars(rules_of(aggregation, cut, init)) | {"coefficients": coefficients_of(memory, rates), "segments": segments}
    options.pop("size")

    def run():
        with torch.no_grad():
            y, cache = mc.memory_caching(*x, memory, return_cache=True, **options)
            return [y, *cache._tensors().values()], (cache.lengths, cache.running, cache.about)

    (a, one), (b, other) = in_both(monkeypatch, run)
    assert one == other
    for left, right in zip(a, b, strict=True):
        assert (left - right).norm() <= 1e-9 * right.norm() + 1e-300


@pytest.mark.parametrize("backend", ["linear", "titans"])
@pytest.mark.parametrize("aggregation, cut", [("none", "constant"), ("residual", "constant"), ("ssc", "constant"), ("top_p", "fenwick"), ("grm", "fenwick")])
def test_rows_of_different_lengths_in_pieces(monkeypatch, backend, aggregation, cut):
    "Padding left, right and inside; rows that end in different pieces go on, with and without a mask."
    layer, x, mask = layer_of(backend, aggregation, segmentation=cut), randn(3, 30, 8), torch.ones(3, 30)
    mask[0, :9], mask[1, 5:], mask[2, [1, 8, 20]] = 0, 0, 0

    def run():
        with torch.no_grad():
            y, cache = layer.forward_with_cache(x, attention_mask=mask)
            z, then = layer.forward_with_cache(x[:, :17], cache, attention_mask=mask[:, :17])
            last, after = layer.forward_with_cache(x[:, :10], then)
            outs = [y, z, last, layer(x, attention_mask=mask), layer(x[:1], cu_seqlens=[0, 11, 30]), *kept(after)]
            return outs, [(c.lengths, c.running, c.padded) for c in (cache, then, after)]

    (a, one), (b, other) = in_both(monkeypatch, run)
    assert one == other
    for left, right in zip(a, b, strict=True):
        assert left.shape == right.shape and (left - right).norm() <= 1e-9 * right.norm()


def test_nobody_is_cut_who_differentiates_records_or_needs_the_whole(monkeypatch, short):
    layer, x = layer_of(), randn(1, 20, 8)
    lengths = counted(monkeypatch)

    def calls(function):
        lengths.clear()
        function()
        return lengths[:]

    layer.requires_grad_(False)
    assert calls(lambda: layer(x)) == [7, 7, 6]
    assert calls(lambda: layer(x.clone().requires_grad_())) == [20]
    layer.out.weight.requires_grad_(True)
    assert calls(lambda: layer(x)) == [20]
    with torch.no_grad():
        assert calls(lambda: layer(x)) == [7, 7, 6]
        assert calls(lambda: layer.inspect(x)) == [20]
        asked = []
        torch.func.vmap(lambda x: (asked.append(pieces.only_computed(x)), x)[1])(x)
        assert asked == [False] and pieces.only_computed(x)
        assert calls(lambda: layer_of(segmentation="logarithmic")(x)) == [20]
        assert calls(lambda: layer_of(aggregation="none", segmentation="logarithmic")(x)) == [7, 7, 6]
        with forward_ad.dual_level():
            assert calls(lambda: layer(forward_ad.make_dual(x, x))) == [20]


def test_a_gradient_of_the_memory_keeps_a_call_whole(monkeypatch, short):
    (x, _), lengths = (a.detach() for a in tokens(20)), counted(monkeypatch)
    for trained, expected in ((True, [20]), (False, [7, 7, 6])):
        lengths.clear()
        w1, w2 = (0.3 * randn(H, *shape) for shape in ((D, 6), (6, D)))
        memory = mc.DLAMemory(w1.requires_grad_(trained), w2)
        y = mc.memory_caching(*x, memory, coefficients={"eta": 0.1}, segments=C)
        assert lengths == expected and y.requires_grad == trained


def test_a_gradient_of_the_cache_keeps_a_call_whole(monkeypatch, short):
    layer, lengths = layer_of().requires_grad_(False), counted(monkeypatch)
    _, cache = layer.forward_with_cache(randn(1, 9, 8))
    for differentiated, expected in ((False, [7, 7, 6]), (True, [20])):
        lengths.clear()
        sums = cache.key_sum.clone().requires_grad_(differentiated)
        y, _ = layer.forward_with_cache(randn(1, 20, 8), replace(cache, key_sum=sums))
        assert lengths == expected and y.requires_grad == differentiated


@pytest.mark.parametrize("segments, sizes", [([3, 3, 3, 3], [6, 6]), ([9, 1, 6, 2, 5], [9, 7, 7]), ([1] * 15, [7, 7, 1]), ([20], [20])])
def test_pieces_of_listed_segments_end_with_one_and_are_no_longer_than_they_must_be(short, segments, sizes):
    found = pieces.pieces_of(sum(segments), segments, mc.options.Rules("grm"))
    assert [b - a for a, b, _ in found] == sizes and [n for *_, some in found for n in some] == segments
    assert all(sum(some) == b - a for a, b, some in found)


def test_what_does_not_fit_is_refused_as_a_whole(short):
    (x, rates), memory = (a.detach() for a in tokens(20)), mc.SWLAMemory()
    rates = {"alpha": 1.0, "beta": 0.0, "lam": rates[0][:, :19]}
    with pytest.raises(ValueError, match=rf"lam must be .* \({B}, 20, {H}\)"):
        mc.memory_caching(*x, memory, coefficients=rates)
    with pytest.raises(ValueError, match="add up to 19 tokens, but q has 20"):
        mc.memory_caching(*x, mc.LinearMemory(), segments=[10, 9])
    with pytest.raises(ValueError, match="cache"), torch.no_grad():
        layer_of()(randn(1, 20, 8), cache="none")


MIXERS = {
    "one way": [mc.MCConfig(8, 2, segment_size=C)] * 2,
    "two": [mc.MCConfig(8, 2, "dla", "ssc", segment_size=5, chunk_size=3), mc.MCConfig(8, 2, aggregation="residual", segment_size=C)],
    "window": [AttentionConfig(8, 2, window=5), mc.MCConfig(8, 2, aggregation="none")],
    "attention": [AttentionConfig(8, 2), mc.MCConfig(8, 2, segment_size=C)],
}


@pytest.mark.parametrize("name", MIXERS)
def test_a_model_takes_pieces_through_all_blocks(monkeypatch, name):
    torch.manual_seed(0)
    model, ids, mask = mc.LanguageModel(mc.LMConfig(11, mixers=MIXERS[name])).double(), torch.randint(11, (3, 30)), torch.ones(3, 30)
    mask[0, :9], mask[1, 5:] = 0, 0
    widths = []
    model.blocks[0].register_forward_hook(lambda block, given, out: widths.append(given[0].shape[1]))

    def run():
        with torch.no_grad():
            y, cache = model.forward_with_cache(ids, attention_mask=mask)
            z, then = model.forward_with_cache(ids[:, :17], cache, attention_mask=1 - mask[:, :17], last=True)
            calls = [model(ids), model(ids, last=True), model(ids, attention_mask=mask), model(ids, mask, last=True),
                     model(ids[:1], cu_seqlens=[0, 9, 30], last=True), model.forward_with_cache(ids, last=True)[0]]
            return [y, z, *calls], (cache.positions, cache.columns, then.positions, then.columns)

    (a, one), (b, other) = in_both(monkeypatch, run)
    assert one == other and (max(widths[: len(widths) // 3]) == 7) == (name != "attention")
    for left, right in zip(a, b, strict=True):
        assert left.shape == right.shape and (left - right).norm() <= 1e-9 * right.norm()


PEAK = """
import re, torch, mc
from mc.forms import pieces
torch.set_num_threads(1)
torch.manual_seed(0)
ids = torch.zeros(1, 2**15, dtype=torch.int64)
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
for way, size in (("none", 1024), ("ssc", 1024), ("none", 2**15)):
    pieces.PIECE = size
    model = mc.LanguageModel(mc.LMConfig(8, 1, mc.MCConfig(32, 1, aggregation=way, segment_size=32)))
    with torch.no_grad():
        model.forward_with_cache(ids[:, :1024], last=True)
        before = peak()
        _, cache = model.forward_with_cache(ids, last=True)
    print(peak() - before, cache.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_prefill_takes_the_memory_of_its_cache():
    "32,768 tokens take less than four caches and 8 MB; in one call more, even where the cache is one memory."
    out = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout
    took, caches = zip(*(map(int, line.split()) for line in out.splitlines()))
    fits = [peak < 4 * nbytes + 2**23 for peak, nbytes in zip(took, caches)]
    assert fits == [True, True, False], (took, caches)


class Largest(TorchDispatchMode):
    "Numbers of the largest tensor that is made."
    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.numbers = max(self.numbers, *(a.numel() for a in torch.utils._pytree.tree_leaves(out) if isinstance(a, torch.Tensor)), 0)
        return out


@pytest.mark.parametrize("aggregation", ["ssc", "top_p", "residual"])
def test_no_tensor_has_a_place_for_every_token_and_memory(monkeypatch, aggregation):
    "Forward and backward; top_p reads one or two memories here."
    monkeypatch.setattr(parallel_routes, "ROUTED", 16)
    T, small = 1024, 2
    memory, rules = mc.LinearMemory(), rules_of(aggregation, "constant", "independent", top_p=0.01)
    x = randn(4, 1, T, 1, small).requires_grad_()
    with Largest() as made:
        one_pass(*x, memory, rules, C, traced=False).y.sum().backward()
    assert made.numbers < T * (T // C) / 2


@pytest.mark.parametrize("cut", ["constant", "list", "fenwick"])
@pytest.mark.parametrize("aggregation", ["ssc", "top_p", "residual"])
@pytest.mark.parametrize("change", [{}, {"softmax": "all"}, {"top_k": 9}, {"gate_scale": -0.7}, {"pool": "position"}], ids=str)
def test_untraced_is_traced(short, cut, aggregation, change):
    "Outputs and gradients, for one more call after a cache."
    (x, _), found = tokens(50), []
    rules, segments = rules_of(aggregation, cut, "independent", **change), [3, 9, 1, 4, 3] if cut == "list" else C
    for traced in (True, False):
        first = one_pass(*x[:, :, :30], mc.LinearMemory(), rules, [3, 9, 1, 4, 13] if cut == "list" else C, traced=traced)
        out = one_pass(*x[:, :, 30:], mc.LinearMemory(), rules, segments, cache=first.cache, traced=traced)
        assert (out.gates is None) == (not traced)
        y = torch.cat([first.y, out.y], 1)
        found.append((y, *torch.autograd.grad((y * randn(*y.shape, seed=3)).sum(), x)))
    for a, b in zip(*found):
        assert b.norm() > 0 and (a - b).norm() <= 1e-9 * b.norm()


@pytest.mark.parametrize("name", ["linear", "swla", "gated_delta", "dla"])
@pytest.mark.parametrize("before", [0, 2 * C + 1])
def test_residual_reading_of_sums_is_the_definition(name, before):
    for cut in ("constant", "fenwick"):
        rules = rules_of("residual", cut, "checkpoint")
        assert_same(outcome("parallel", name, rules, C, 41, before), outcome("sequential", name, rules, C, 41, before))


def test_the_highest_in_two_rounds_are_the_highest():
    gen = torch.Generator().manual_seed(0)
    for N in (16, 511, 512, 513, 530, 1500):
        for k in (1, 2, 4, 5):
            r = torch.randn(3, 40, N, generator=gen)
            r[0], r[1, :20] = r[0].round(), 0.0
            r[1, 20:30, 3:], r[1, 30], r[2, :, ::5] = (float("-inf"),) * 3
            assert torch.equal(highest(r, k), choose(r, k))
