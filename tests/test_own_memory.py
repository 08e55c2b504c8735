"""A memory of somebody else's, from three functions on; and the gated delta rule, which the package adds as one would."""
import inspect
import warnings
from itertools import product

import pytest
import torch

import mc
from cells import C, CUTS, randn, segments_of, tokens
from mc.cache_rewind import rewind
from mc.checks.calls import check_memory
from mc.memory import protocol
from mc.memory.protocol import METHODS, REQUIRED, VALUES, FastMemory, complete
from mc.options import INITS
from mc.read.ways import AGGREGATIONS


class Delta:
    "The gated delta rule from three functions, with what only a write needs beside it."

    def start(self, k, v):
        return {"m": v.new_zeros(*v.shape, k.shape[-1]), "count": k.new_zeros(*k.shape[:-1], 1)}

    def write(self, state, k, v, alpha, eta=0.25):
        kept = alpha[..., None, None] * state["m"]
        missing = v - (kept @ k[..., None])[..., 0]
        return {"m": kept + (eta[..., None] * missing)[..., None] * k[..., None, :], "count": state["count"] + 1}

    def read(self, state, q):
        return (state["m"] @ q[..., None])[..., 0]


class Steps(Delta):
    "With what a read needs by name, and the order of a gate."

    name, params, shares = "steps", ("m",), ("alpha",)


class Chunk(torch.nn.Module):
    "A memory may be a module."

    start, write, read = Delta.start, Delta.write, Delta.read


def fast(cls=Delta, **parts):
    "A class with some of the parts that `Delta` lacks."
    def scan(self, start, k, v, alpha, eta):
        online, ends = mc.GatedDeltaMemory().scan({"m": start["m"]}, k, v, alpha, eta)
        counts = torch.arange(1, k.shape[-3] + 1, dtype=k.dtype)[:, None] * k.shape[-2]
        return online, ends | {"count": start["count"].unsqueeze(-2) + counts}
    linear = mc.LinearMemory()
    own = {n: lambda self, *args, n=n: getattr(linear, n)(*args) for n in ("anchor", "read_rows", "recall", "soup")} | {"scan": scan}
    return type("Fast", (cls,), {n: own[n] for n in parts if parts[n]})


def outcome(memory, way, cut, init, T=11, before=0, **options):
    "Outputs, states and gradients after `before` tokens."
    x, rates = (a.detach().clone().requires_grad_() for a in tokens(before + T, seed=T))
    unit = torch.nn.functional.normalize(x[1], dim=-1)
    given = [x[0], unit, x[2], x[3]], {"alpha": 0.5 + 0.5 * rates[0], "eta": rates[1]}
    cache, parts = None, []
    for a, b in [(0, before), (before, before + T)] if before else [(0, T)]:
        segments = segments_of(cut, T)
        y, cache = mc.memory_caching(*(t[:, a:b] for t in given[0]), memory, coefficients={n: c[:, a:b] for n, c in given[1].items()}, aggregation=way,
                                     segmentation="constant" if cut == "list" else cut, segments=segments, init=init, top_k=1, cache=cache,
                                     return_cache=True, **options)
        parts.append(y)
    out = [torch.cat(parts, 1), cache.pools, cache.states["m"], cache.online["m"], cache.pending["m"]]
    loss = sum((a * randn(*a.shape, seed=i)).sum() for i, a in enumerate(out))
    return [*out, *torch.autograd.grad(loss, [x, rates], allow_unused=True)], cache


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape and (a - b).norm() <= 1e-9 * b.norm() + 1e-300


QUIET = pytest.mark.filterwarnings("ignore:.* has no .*the sequential form")
CELLS = list(product(AGGREGATIONS, CUTS, INITS))


@QUIET
@pytest.mark.parametrize("way, cut, init", CELLS)
def test_three_functions_are_a_memory(way, cut, init):
    "Outputs, caches and gradients of all cells, at once and going on: those of the same memory with all parts."
    before = [(0, 11), (2 * C + 1, 5)] if cut in ("constant", "fenwick") else [(0, 11)]
    for first, T in before:
        right, cache = outcome(mc.GatedDeltaMemory(), way, cut, init, T, first)
        for memory in (Delta(), Steps(), Chunk()):
            found, own = outcome(memory, way, cut, init, T, first)
            same(found, right)
            assert (own.lengths, own.running, own.about["memory"]) == (cache.lengths, cache.running, getattr(memory, "name", type(memory).__name__))


@QUIET
@pytest.mark.parametrize("parts", [["scan"], ["scan", "soup"], ["scan", "recall"], ["scan", "read_rows"], ["scan", "anchor", "read_rows", "recall", "soup"], ["recall", "soup"]], ids="-".join)
def test_each_missing_part_has_a_stand_in(parts):
    memory = fast(**dict.fromkeys(parts, True))()
    for way, cut, init in CELLS:
        same(outcome(memory, way, cut, init)[0], outcome(mc.GatedDeltaMemory(), way, cut, init)[0])


def told(memory, way="grm", T=6, **options):
    "What a call warns of."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome(memory, way, "constant", "independent", T, **options)
    return [str(w.message) for w in caught]


def test_a_slow_call_says_so_once_for_each_class():
    one, other = fast(), fast()
    assert told(one(), implementation="sequential") == [] == told(one(), T=1)                  # asked for; nothing to gain
    (message,) = told(one())
    assert "Fast has no scan and no soup: calls of several tokens take the sequential form" in message
    assert told(one()) == told(one(), "soup") == told(one(), "soup", T=1) == []
    assert len(told(other())) == 1                                                             # another class of that name
    with_scan = fast(scan=True)
    assert told(with_scan()) == []
    (message,) = told(with_scan(), "soup")
    assert "Fast has no soup: Memory Soup takes the sequential form" in message
    whole = fast(scan=True, soup=True)
    assert told(whole()) == told(whole(), "soup") == []


def test_a_memory_with_a_scan_is_not_written_token_by_token():
    def write(self, *args, **rates):
        raise AssertionError("a token was written")
    memory = type("Once", (fast(scan=True),), {"write": write, "coefficients": {"alpha": 1.0, "eta": None}})()
    for way in set(AGGREGATIONS) - {"soup"}:
        outcome(memory, way, "constant", "independent")


@pytest.mark.parametrize("missing", REQUIRED)
def test_what_is_required_is_named(missing):
    class Half:
        pass
    for name in set(REQUIRED) - {missing}:
        setattr(Half, name, getattr(Delta, name))
    q = torch.zeros(1, 2, 1, 3)
    assert not isinstance(Half(), mc.Memory) and isinstance(Delta(), mc.Memory)
    with pytest.raises(ValueError, match=f"memory must have start, write, read; Half lacks {missing}$"):
        mc.memory_caching(q, q, q, q, Half())
    backend = torch.nn.Identity()
    backend.forward = lambda x: (Half(), {})
    layer = mc.MemoryCachingLayer(mc.MCConfig(4, 2), backend=backend)
    with pytest.raises(ValueError, match=f"Half lacks {missing}$"):
        layer(torch.zeros(1, 2, 4))
    cache = mc.memory_caching(q, q, q, q, mc.LinearMemory(), return_cache=True)[1]
    with pytest.raises(ValueError, match=f"Half lacks {missing}$"):
        rewind(cache, 0, Half())


@pytest.mark.parametrize("name, bad", [("name", 1), ("params", ["m"]), ("coefficients", ["alpha"]), ("shares", "alpha"), ("chunked", 1), *((m, 1) for m in METHODS)])
def test_optional_parts_of_the_wrong_kind_are_named(name, bad):
    with pytest.raises(ValueError, match=f"{name} of the memory must be"):
        check_memory(type("Odd", (Delta,), {name: bad})())


def test_what_is_there_is_kept_and_the_rest_filled_in():
    for memory in (mc.LinearMemory(), mc.SWLAMemory(), mc.GatedDeltaMemory(), mc.DLAMemory(torch.zeros(1, 2, 3), torch.ones(1, 3, 2))):
        assert complete(memory) is memory
    whole = complete(Steps())
    assert (whole.name, whole.params, whole.shares, whole.chunked) == ("steps", ("m",), ("alpha",), False)
    assert whole.coefficients == {"alpha": None, "eta": 0.25} and check_memory(whole) is whole
    assert (type(whole).__name__, type(whole).__module__) == ("Steps", __name__)               # in messages
    assert complete(Delta()).name == "Delta" and complete(Delta()).params == ()


def test_the_protocol_names_every_part_and_its_stand_in():
    assert set(REQUIRED) == protocol.Memory.__protocol_attrs__ if hasattr(protocol.Memory, "__protocol_attrs__") else True
    for name in METHODS:
        assert "tand-in" in inspect.getdoc(getattr(FastMemory, name))
    assert set(VALUES) == set(FastMemory.__annotations__)


@QUIET
def test_defaults_and_ranges_of_coefficients_are_those_of_write():
    x, _ = tokens(5)
    call = lambda memory, **rates: mc.memory_caching(*x, memory, segments=2, coefficients=rates)
    assert torch.equal(call(Delta(), alpha=0.9), call(Delta(), alpha=0.9, eta=0.25))
    with pytest.raises(ValueError, match="coefficients of a Delta memory must include alpha"):
        call(Delta())
    with pytest.raises(ValueError, match=r"coefficients of a Delta memory are \['alpha', 'eta'\]; got beta"):
        call(Delta(), alpha=1.0, beta=1.0)
    assert call(Delta(), alpha=1.5).isfinite().all()
    with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
        call(Steps(), alpha=1.5)


@QUIET
@pytest.mark.parametrize("start, words", [(lambda k, v: {}, "with any names; Odd.start made"), (lambda k, v: [v], "Odd.start made"), (lambda k, v: {"m": v[0]}, "Odd.start made")])
def test_a_bad_beginning_is_named(start, words):
    memory, x = type("Odd", (Delta,), {"start": lambda self, k, v: start(k, v)})(), tokens(3)[0]
    with pytest.raises(ValueError, match=words):
        mc.memory_caching(*x, memory, coefficients={"alpha": 1.0})


@QUIET
def test_what_breaks_in_it_is_told_as_its_fault():
    memory, x = type("Odd", (Delta,), {"read": lambda self, state, q: state["w"]})(), tokens(3)[0]
    with pytest.raises(ValueError, match=r"memory: Odd does not do what a memory must \(KeyError: 'w'\)"):
        mc.memory_caching(*x, memory, coefficients={"alpha": 1.0})


class Backend(torch.nn.Module):
    "Of three functions; its step is learned."

    def __init__(self, memory):
        super().__init__()
        self.memory, self.step = memory, torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return self.memory, {"alpha": 0.9, "eta": self.step.sigmoid().expand(*x.shape[:2], -1)}


@QUIET
@pytest.mark.parametrize("way, cut, init", [cell for cell in CELLS if cell[1] in ("constant", "fenwick")])
def test_a_layer_takes_it_from_a_backend(way, cut, init, tmp_path):
    torch.manual_seed(0)
    config = mc.MCConfig(8, 2, aggregation=way, segmentation=cut, segment_size=C, init=init, top_k=1)
    layer = mc.MemoryCachingLayer(config, backend=Backend(Delta())).double()
    twin = mc.MemoryCachingLayer(config, backend=Backend(mc.GatedDeltaMemory())).double()
    twin.load_state_dict(layer.state_dict())
    x, cache, steps = randn(2, 3 * C + 1, 8), None, []
    y, right = layer(x), twin(x)
    assert (y - right).norm() < 1e-9 * right.norm()
    found, grads = (torch.autograd.grad(a.square().sum(), list(model.parameters()), materialize_grads=True) for a, model in ((y, layer), (right, twin)))
    same(found, grads)
    for t in range(x.shape[1]):
        out, cache = layer.step(x[:, t], cache)
        steps.append(out)
        cache.save(tmp_path / "cache")
        cache = mc.SegmentCache.load(tmp_path / "cache")
    assert torch.allclose(torch.stack(steps, 1), y, atol=1e-12)
    mask = torch.ones(2, 3 * C + 1)
    mask[1, [0, 5, 6]] = 0
    assert torch.allclose(layer(x, attention_mask=mask), twin(x, attention_mask=mask), atol=1e-12)
    assert layer.inspect(x).gates.shape == twin.inspect(x).gates.shape
    if way != "none" and cut == "constant":
        held = layer.forward_with_cache(x)[1]
        again = layer.forward_with_cache(x[:, C:], layer.rewind(held, 1))[0] if init == "independent" or len(held.states) == len(held.online) else y[:, C:]
        assert torch.allclose(again, y[:, C:], atol=1e-12)


@QUIET
@pytest.mark.slow
def test_it_can_be_compiled_and_mapped():
    torch.manual_seed(0)
    layer = mc.MemoryCachingLayer(mc.MCConfig(8, 2, segment_size=2), backend=Backend(Delta())).double()
    x = randn(3, 1, 5, 8)
    assert torch.allclose(torch.vmap(layer)(x), torch.stack([layer(a) for a in x]), atol=1e-12)
    compiled = torch.compile(layer, backend="eager")
    assert torch.allclose(compiled(x[0]), layer(x[0]), atol=1e-12)


# ---- the gated delta rule

def by_hand(q, k, v, alpha, eta):
    "Reads (T, D_v): the rule written out as a product of matrices."
    m, rows, one = v.new_zeros(v.shape[-1], k.shape[-1]), [], torch.eye(k.shape[-1], dtype=k.dtype)
    for t in range(len(q)):
        m = alpha[t] * m @ (one - eta[t] * torch.outer(k[t], k[t])) + eta[t] * torch.outer(v[t], k[t])
        rows.append(m @ q[t])
    return torch.stack(rows)


@pytest.mark.parametrize("T", [1, 15, 64, 65, 130, 200])
@pytest.mark.parametrize("width", [1, 3, 7])
def test_gated_delta_is_its_rule(T, width):
    (q, k, _, u), v = (randn(4, 1, T, 1, 5, seed=T), randn(1, T, 1, width, seed=T + 1))
    k = torch.nn.functional.normalize(k, dim=-1)
    alpha, eta = 0.8 + 0.2 * torch.rand(1, T, 1, dtype=torch.float64), 1.5 * torch.rand(1, T, 1, dtype=torch.float64)
    right = by_hand(*(a[0, :, 0] for a in (q, k, v, alpha, eta)))
    for form in ("parallel", "sequential"):
        y = mc.memory_caching(q, k, v, u, mc.GatedDeltaMemory(), aggregation="none", coefficients={"alpha": alpha, "eta": eta}, implementation=form)
        assert (y[0, :, 0] - right).norm() <= 1e-12 * right.norm()


def test_delta_rule_without_a_gate_is_the_default():
    (q, k, v, u), rates = tokens(9)
    call = lambda **c: mc.memory_caching(q, k, v, u, mc.GatedDeltaMemory(), segments=3, coefficients=c)
    assert torch.equal(call(eta=0.1), call(alpha=1.0, eta=0.1))
    with pytest.raises(ValueError, match="gated_delta memory must include eta"):
        call(alpha=0.9)


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("init", INITS)
def test_gated_delta_is_exact_and_finite_whatever_it_forgets(alpha, init):
    "512 tokens: ratios of cumulative products would be 0 / 0. Unit keys; steps up to 2, where no error shrinks."
    q, k, v, u = randn(4, 1, 512, 1, 4)
    k = torch.nn.functional.normalize(k, dim=-1)
    eta = 2 * torch.rand(1, 512, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    share, grads, outs = torch.full((1, 512, 1), alpha, dtype=torch.float64, requires_grad=True), [], []
    options = dict(memory=mc.GatedDeltaMemory(), aggregation="grm", segments=128, init=init)
    for form in ("parallel", "sequential"):
        outs.append(mc.memory_caching(q, k, v, u, coefficients={"alpha": share, "eta": eta}, implementation=form, **options))
        grads.append(torch.autograd.grad(outs[-1].square().sum(), share)[0])
    assert (outs[0] - outs[1]).norm() < 1e-12 * outs[1].norm() and (grads[0] - grads[1]).norm() < 1e-9 * grads[1].norm()
    single = mc.memory_caching(*(a.float() for a in (q, k, v, u)), coefficients={"alpha": alpha, "eta": eta.float()}, **options)
    assert (single - outs[1]).norm() < 2e-5 * outs[1].norm()


def test_soup_of_gated_delta_memories_is_their_gated_read():
    "Eq. 15 against Eq. 9: the read is linear in the parameters."
    for init in INITS:
        soup, grm = (outcome(mc.GatedDeltaMemory(), way, "constant", init)[0] for way in ("soup", "grm"))
        same(soup, grm)


def test_a_key_written_again_is_replaced():
    gen = torch.Generator().manual_seed(0)
    keys = torch.linalg.qr(torch.randn(4, 4, generator=gen, dtype=torch.float64))[0]
    old, new = torch.randn(2, 4, 3, generator=gen, dtype=torch.float64)
    k, v = torch.cat([keys, keys])[None, :, None], torch.cat([old, new])[None, :, None]
    one = torch.ones(1, 8, 1, dtype=torch.float64)
    memory, kept = mc.GatedDeltaMemory(), {}
    for name, some in (("delta", memory), ("linear", mc.LinearMemory())):
        rates = {"eta": one} if name == "delta" else {}
        kept[name] = mc.memory_caching(k, k, v, k, some, aggregation="none", coefficients=rates, return_cache=True)[1].online
    assert torch.allclose(memory.read_rows(kept["delta"], keys[None, None])[0, 0], new, atol=1e-12)
    assert torch.allclose(memory.read_rows(kept["linear"], keys[None, None])[0, 0], old + new, atol=1e-12)


def test_gated_delta_in_a_layer_learns_and_names_its_coefficients():
    torch.manual_seed(0)
    layer = mc.MemoryCachingLayer(mc.MCConfig(16, 2, backend="gated_delta", segment_size=4))
    _, rates = layer.backend(100 * torch.randn(1, 50, 16))
    assert set(rates) == {"alpha", "eta"} and all(((0 <= c) & (c <= 1)).all() for c in rates.values())
    layer(torch.randn(2, 9, 16)).square().sum().backward()
    assert all(p.grad.norm() > 0 for p in layer.parameters())
    fixed = mc.MemoryCachingLayer(mc.MCConfig(16, 2, backend="gated_delta", constants={"alpha": 1.0}))
    assert fixed.backend.coefficients.names == ["eta"]
    for constants, words in (({"alpha": 1.5}, "alpha"), ({"beta": 0.1}, r"\['alpha', 'eta'\] of this backend; got \['beta'\]")):
        with pytest.raises(ValueError, match=words):
            mc.MemoryCachingLayer(mc.MCConfig(16, 2, backend="gated_delta", constants=constants))
