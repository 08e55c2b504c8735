"""Rows of different lengths with a cache: each row is what it would be alone, whatever the others do."""
from dataclasses import replace
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
    y, others = torch.cat(reads, 1), []
    assert cache.columns == sum(pieces) and cache.positions == mask.sum(1).tolist()
    there = [b for b in range(B) if mask[b].any()]
    for b in there:
        pick = lambda a: a[:, b:b + 1, mask[b]]
        alone, own = run(memory, pick(x), pick(rates), **options)
        assert torch.allclose(y[b, mask[b]], alone[0], atol=1e-9)
        same_cache(cache.row(b), own)
        others.append(alone)
    if grad:
        assert len(there) == B
        last = lambda c: sum(leaf.square().sum() for leaf in c.online.values())
        ours = torch.autograd.grad(y.square().sum() + last(cache), [x, rates], retain_graph=True, allow_unused=True)
        alone = sum(a.square().sum() for a in others) + sum(last(run(memory, x[:, b:b+1, mask[b]], rates[:, b:b+1, mask[b]], **options)[1])
                                                            for b in there)
        for one, other in zip(ours, torch.autograd.grad(alone, [x, rates], allow_unused=True)):
            assert (one is None) == (other is None) and (one is None or torch.allclose(one, other, atol=1e-8))


@pytest.mark.filterwarnings("ignore:Own has no scan")
@pytest.mark.filterwarnings("ignore:OwnWithScan has no soup")
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("cut", ["constant", "fenwick"])
@pytest.mark.parametrize("name", [*MEMORIES, "own", "own_scan"])
def test_each_row_is_the_row_alone(name, cut, init):
    for i, aggregation in enumerate(AGGREGATIONS):
        with torch.no_grad():
            check(memory(name), i, aggregation=aggregation, segmentation=cut, init=init)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", [*MEMORIES, "own_scan"])
@pytest.mark.filterwarnings("ignore:OwnWithScan has no soup")
def test_gradients_are_those_of_the_rows_alone(name, init):
    for aggregation, detach in [("grm", False), ("grm", True), ("soup", False), ("ssc", False)]:
        check(memory(name), 3, grad=True, pieces=(8, 1, 6), aggregation=aggregation, init=init, detach_cache=detach)


@pytest.mark.parametrize("name", ["linear", "titans"])
@pytest.mark.parametrize("segments, chunk", [(6, 3), (8, 8), (7, 2), (1, 1), (4, 16), (130, 4)])
def test_every_length_of_segments_and_chunks(name, segments, chunk):
    "Also segments that are no whole number of chunks, one token long, and longer than a block of the scan."
    for init, pool, detach in [("independent", "sum", False), ("checkpoint", "position", False), ("checkpoint", "mean", True)]:
        with torch.no_grad():
            pieces = (90, 1, 170) if segments == 130 else PIECES
            check(memory(name), 5, segments=segments, chunk_size=chunk, init=init, pool=pool, detach_cache=detach, pieces=pieces)


def test_a_single_step_and_the_sequential_form():
    with torch.no_grad():
        check(memory("dla"), 6, pieces=(1,) * 14, init="checkpoint")
        check(memory("swla"), 7, implementation="sequential", pieces=(6, 1, 3))


def layer_of(**options):
    torch.manual_seed(0)
    return mc.MemoryCachingLayer(mc.MCConfig(8, 2, **{"segment_size": 4, "chunk_size": 3, "top_k": 1, "conv_size": 3} | options)).double()


@pytest.mark.parametrize("backend, cut", [("linear", "constant"), ("titans", "constant"), ("swla", "fenwick")])
def test_the_layer_goes_on_from_each_row(backend, cut):
    "Its convolution and the inputs at segment ends too; back to a segment's end; padding holds NaN."
    layer, found = layer_of(backend=backend, segmentation=cut), masks(1)
    mask = torch.cat(found, 1)
    x = torch.randn(B, mask.shape[1], 8, dtype=torch.float64).masked_fill(~mask[..., None], torch.nan)
    cache, reads, a = None, [], 0
    with torch.no_grad():
        for some in found:
            y, cache = layer.forward_with_cache(x[:, a:a + some.shape[1]], cache, some)
            reads.append(y)
            a += some.shape[1]
        y, alone = torch.cat(reads, 1), []
        for b in range(B):
            one, own = layer.forward_with_cache(x[b, mask[b]][None])
            assert torch.allclose(y[b, mask[b]], one[0], atol=1e-9)
            same_cache(cache.row(b), own)
            alone.append(own)
        new = torch.randn(B, 9, 8, dtype=torch.float64)
        for call in (lambda c, b: layer.step(new[b, 0], c), lambda c, b: layer.forward_with_cache(new[b], c)):
            out = call(cache, slice(None))[0]    # no mask: each row has all tokens
            assert torch.allclose(out, torch.cat([call(c, slice(b, b + 1))[0] for b, c in enumerate(alone)]), atol=1e-9)
        if cut == "constant":
            n = min(cache.counts)
            back = layer.rewind(cache, n)
            assert not back.ragged and back.position == 4 * n
            for b, own in enumerate(alone):
                same_cache(back.row(b), layer.rewind(own, n))
            with pytest.raises(ValueError, match=f"segments must be at most the {n} that every row"):
                layer.rewind(cache, n + 1)
        with pytest.raises(ValueError, match="position is for rows that have come equally far"):
            layer.inspect(new, cache)


def ragged_cache(lengths=(9, 3, 6, 0), width=9, **options):
    "A layer, and its cache of rows of these lengths."
    layer = layer_of(**options)
    x = torch.randn(len(lengths), width, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return layer, layer.forward_with_cache(x, None, mask)[1]


@pytest.mark.parametrize("cut", ["constant", "fenwick"])
def test_rows_of_a_cache(cut):
    with torch.no_grad():
        layer, cache = ragged_cache(segmentation=cut)
        assert cache.ragged and cache.counts == [2 if cut == "constant" else 1, 0, 1, 0] and cache.positions == [9, 3, 6, 0]
        assert (cache.columns, len(cache)) == (9, max(cache.counts)) and cache.bounds[2] == ((0, 4),)
        assert cache.reorder(range(4)) is cache and cache.select(torch.arange(4)) is cache
        short = cache.select([1, 3])
        assert short.positions == [3, 0] and short.columns == 9 and len(short) == 0 and short.pools.shape[1] == 0
        alone = cache.row(2)
        assert not alone.ragged and (alone.position, alone.columns, len(alone)) == (6, 9, 1)
        twice = cache.repeat(2)
        assert twice.positions == [9, 9, 3, 3, 6, 6, 0, 0] and not cache.row(0).repeat(3).ragged
        new = torch.randn(8, 7, 8, dtype=torch.float64)
        index = [2, 0, 0, 1]
        y, _ = layer.forward_with_cache(new[:4], cache.reorder(index))
        for b, i in enumerate(index):
            assert torch.allclose(y[b], layer.forward_with_cache(new[b:b + 1], cache.row(i))[0][0], atol=1e-9)
        for wrong in ([4], [], [-1], 2, [0.5]):
            with pytest.raises(ValueError, match="index must be a row of integers from 0 to 3"):
                cache.select(wrong)
        with pytest.raises(ValueError, match="b must be an integer"):
            cache.row(4)
        with pytest.raises(ValueError, match="n must be an integer >= 1"):
            cache.repeat(0)
        with pytest.raises(ValueError, match=r"cache\[i\] is for rows that have come equally far"):
            cache[0]


def test_rows_that_catch_up_are_a_plain_cache():
    with torch.no_grad():
        layer, cache = ragged_cache((9, 3), 9)
        x = torch.randn(2, 6, 8, dtype=torch.float64)
        _, cache = layer.forward_with_cache(x, cache, torch.tensor([[0] * 6, [1] * 6]))
        assert (cache.lengths, cache.running, cache.position, cache.columns) == ((4, 4), 1, 9, 15)
        assert len(layer.inspect(x, cache).bounds) == 3


def test_a_call_without_a_token_changes_nothing_but_the_columns():
    layer, cache = ragged_cache()
    for width in (1, 3):
        y, after = layer.forward_with_cache(torch.full((4, width, 8), torch.nan, dtype=torch.float64), cache, torch.zeros(4, width))
        assert not y.any() and after.columns == 9 + width and after.positions == cache.positions
        assert all(torch.equal(a, b) for a, b in zip(after._tensors().values(), cache._tensors().values()))


@pytest.mark.parametrize("cut", ["constant", "fenwick"])
def test_a_ragged_cache_comes_back_from_the_disk(cut, tmp_path):
    layer, cache = ragged_cache(segmentation=cut)
    cache.save(path := tmp_path / "cache.safetensors")
    again = mc.SegmentCache.load(path)
    assert (again.lengths, again.running, again.padded, again.columns) == (cache.lengths, cache.running, cache.padded, 9)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    assert torch.equal(layer.forward_with_cache(x, again)[0], layer.forward_with_cache(x, cache)[0])


@pytest.mark.parametrize("change", [dict(running=[1, 3, 2]), dict(running=[1, 3, 9, 0]), dict(lengths=[[4, 4], [], [4, 5], []]), dict(lengths=[4, 4]),
                                    dict(running=[1, 3, 2, True]), dict(padded=-1), dict(padded="3"), dict(lengths=[[4] * 5, [], [4], []])], ids=str)
def test_a_file_that_no_ragged_pass_leaves_is_refused(change, tmp_path):
    from mc.cache_files import write_cache
    _, cache = ragged_cache()
    about = {"lengths": cache.lengths, "running": cache.running, "about": cache.about}
    write_cache(path := tmp_path / "cache.safetensors", cache._tensors(), about | change)
    with pytest.raises(ValueError, match=str(path)):
        mc.SegmentCache.load(path)


def test_growing_in_place_changes_no_older_cache():
    "Two continuations of one ragged cache, in turn; the first writes behind rows that the older cache shows."
    with torch.inference_mode():
        layer, cache = ragged_cache(segment_size=2)
        x, beams, seen = torch.randn(2, 12, 4, 8, dtype=torch.float64), [cache, cache], []
        for t in range(12):
            for i in range(2):
                y, beams[i] = layer.step(x[i, t], beams[i])
                seen.append((i, t, y, beams[i]))
        places = {c.states["m"].untyped_storage().data_ptr() for i, _, _, c in seen if i == 0}
        assert len(places) <= 3    # six segments more of each row
        for i, t, y, c in seen[::5]:    # what was kept on the way goes on as if nothing had been written since
            whole, _ = layer.forward_with_cache(x[i].transpose(0, 1), cache)
            assert torch.allclose(whole[:, t], y, atol=1e-9)
            if t < 11:
                assert torch.allclose(layer.step(x[i, t + 1], c)[0], whole[:, t + 1], atol=1e-9)


def test_a_reordered_cache_keeps_its_room():
    with torch.inference_mode():
        layer, cache = ragged_cache((9, 3), segment_size=2)
        _, cache = layer.step(torch.randn(2, 8, dtype=torch.float64), cache)
        swapped = cache.reorder([1, 0])
        room = len(cache.states["m"].room)
        assert len(swapped.states["m"].room) == room > len(cache)
        place = swapped.states["m"].untyped_storage().data_ptr()
        after = layer.forward_with_cache(torch.randn(2, 3, 8, dtype=torch.float64), swapped)[1]
        assert after.states["m"].untyped_storage().data_ptr() == place and len(after) > len(cache)


@pytest.mark.parametrize("call, message", {
    "another batch": (lambda layer, cache, x: layer.forward_with_cache(x[:3], cache, torch.ones(3, 5)), "cache must come from a layer like this one"),
    "shape of the mask": (lambda layer, cache, x: layer.forward_with_cache(x, cache, torch.ones(4, 4)), r"attention_mask must be a tensor \(B, T\) = \(4, 5\)"),
    "values of the mask": (lambda layer, cache, x: layer.forward_with_cache(x, cache, torch.full((4, 5), 2)), "attention_mask must hold 1 or True"),
    "no token at all": (lambda layer, cache, x: layer.forward_with_cache(x, None, torch.zeros(4, 5)), "attention_mask leaves no token"),
    "packed": (lambda layer, cache, x: layer(x[:1], cu_seqlens=[0, 2, 5], cache=cache.row(0)), "cu_seqlens holds several sequences in one row"),
    "another cut": (lambda layer, cache, x: layer_of(segment_size=8).step(x[:, 0], cache), "cache comes from another configuration"),
    "no cache": (lambda layer, cache, x: layer.forward_with_cache(x, [cache], torch.ones(4, 5)), "cache must be a SegmentCache"),
    "logarithmic": (lambda layer, cache, x: layer_of(segmentation="logarithmic").forward_with_cache(x, None, torch.ones(4, 5).tril()),
                    "'logarithmic' cuts by the length of a sequence; got"),
    "too few rows": (lambda layer, cache, x: layer.step(x[:, 0], replace(cache, running=cache.running[:3])), "cache.running must be of 4 rows"),
    "a full segment": (lambda layer, cache, x: layer.step(x[:, 0], replace(cache, running=(4, 0, 0, 0))), "cache.running must be below the 4 tokens"),
}.values(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_refused(call, message):
    layer, cache = ragged_cache()
    with pytest.raises(ValueError, match=message):
        call(layer, cache, torch.randn(4, 5, 8, dtype=torch.float64))
