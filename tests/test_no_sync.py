"""On a layer's path nothing waits for the device and nothing is copied to it: all ways on the meta device, which has no numbers to look at."""
import copy

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mc
from mc.checks.values import NotFinite
from mc.nn.model import LMConfig
from mc.read.ways import AGGREGATIONS
from mc.segments.packing import Packing
from mc.torch_tools import checking, index_on, look

MEMORIES = ("linear", "swla", "dla", "titans", "gated_delta")
LOOKS = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_consecutive", "repeat_interleave.Tensor")
CUTS = [("constant", "independent"), ("constant", "checkpoint"), ("fenwick", "independent"), ("fenwick", "checkpoint"), ("logarithmic", "independent")]


class Waits(TorchDispatchMode):
    "Notes what looks at numbers and what touches a tensor of the CPU."

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if name.startswith(LOOKS):
            self.found.append(name)
            raise AssertionError(f"{name} looks at numbers")
        out = func(*args, **(kwargs or {}))
        tensors = [a for a in tree_leaves((args, kwargs, out)) if isinstance(a, torch.Tensor)]
        if any(a.device.type == "cpu" for a in tensors):
            self.found.append(name)
        return out


class Lists(TorchFunctionMode):
    "Notes lists that become tensors on the way to an operation, which `Waits` does not see."

    def __init__(self, found):
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        indexed = func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
        index = args[1] if indexed and isinstance(args[1], tuple) else args[1:2] * indexed
        if func is torch.Tensor.new_tensor or any(isinstance(i, list) for i in index):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def waits(call):
    "What a call waits for that has been made before: a layout is made once."
    call()
    with Waits() as mode, Lists(mode.found):
        call()
    return mode.found


def ghost(memory="linear", way="grm", cut="constant", init="independent", **rest):
    return mc.MemoryCachingLayer(mc.MCConfig(8, 2, memory, way, cut, init, segment_size=4, chunk_size=4, top_k=2, **rest)).to("meta")


def draw(*shape):
    return torch.empty(*shape, device="meta")


def learn(layer, x):
    return lambda: layer(x).sum().backward()


@pytest.mark.parametrize("way", AGGREGATIONS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_nothing_is_waited_for_in_a_pass_and_its_gradient(memory, way):
    assert waits(learn(ghost(memory, way), draw(2, 11, 8))) == []


@pytest.mark.parametrize("way", AGGREGATIONS)
@pytest.mark.parametrize("cut, init", CUTS, ids=map("-".join, CUTS))
def test_nor_with_another_cut_or_another_initialisation(cut, init, way):
    memory = ("linear", "dla")[way in ("none", "soup")]
    assert waits(learn(ghost(memory, way, cut, init), draw(2, 11, 8))) == []


@pytest.mark.parametrize("way", AGGREGATIONS)
@pytest.mark.parametrize("cut", ["constant", "fenwick"])
def test_nor_when_a_call_goes_on_from_a_cache_token_by_token_too(cut, way):
    layer = ghost("titans" if way in ("residual", "top_p") else "linear", way, cut)

    def decode():
        with torch.no_grad():
            _, cache = layer.forward_with_cache(draw(2, 10, 8))
            _, cache = layer.forward_with_cache(draw(2, 4, 8), cache)
            for _ in range(3):                                                      # over a segment's end
                _, cache = layer.step(draw(2, 8), cache)

    assert waits(decode) == []


@pytest.mark.parametrize("options", [dict(pool_blocks=2), dict(pool="position"), dict(pool="sum"), dict(detach_cache=True), dict(softmax="all", way="ssc"),
                                     dict(gate="uniform"), dict(conv_size=1), dict(share=True, init="checkpoint"), dict(memory="dla", constants={"alpha": 0.9})], ids=str)
def test_nor_with_any_option(options):
    layer = ghost(**options)
    assert waits(learn(layer, draw(2, 19, 8))) == []
    assert waits(lambda: layer.step(draw(2, 8), layer.forward_with_cache(draw(2, 10, 8))[1])) == []


def test_nor_in_a_model():
    model = mc.LanguageModel(LMConfig(11, 2, mc.MCConfig(8, 2, aggregation="ssc", segment_size=4))).to("meta")
    tokens = torch.empty(2, 19, dtype=torch.int64, device="meta")
    assert waits(lambda: model(tokens).sum().backward()) == []


def test_the_mode_sees_what_it_is_there_to_see():
    x = draw(3)
    for bad in (lambda: x + torch.tensor([1.0, 2, 3]).to("meta"), lambda: x[[0, 2]], lambda: x.new_tensor([1.0])):
        assert waits(bad) != []
    for bad in (lambda: x.nonzero(), lambda: bool((x == x).all()), lambda: torch.equal(x, x)):
        with pytest.raises(AssertionError, match="looks at numbers"), Waits():
            bad()


def test_rows_of_different_lengths_are_looked_at_once_for_a_batch(monkeypatch):
    looks = []
    for name in ("tolist", "item", "__int__", "__bool__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda a, plain=plain, name=name: looks.append(name) or plain(a))
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]])
    model = mc.LanguageModel(LMConfig(11, 2, mc.MCConfig(8, 2, segment_size=2)))
    with checking(False):
        rows = Packing.of_mask(mask, (2, 4))
        assert looks == ["tolist"] and rows.counts == rows.lengths == [3, 2]
        looks.clear()
        model(torch.zeros(2, 4, dtype=torch.int64), mask)
        assert looks == ["tolist"]


def test_checks_are_an_option():
    layer, nan = mc.MemoryCachingLayer(mc.MCConfig(8, 2, segment_size=4)), torch.full((1, 9, 8), torch.nan)
    for on in (True, None):
        with pytest.raises(ValueError, match="x contains NaN"), checking(on) if on else torch.no_grad():
            layer(nan)
    with checking(False):
        assert layer(nan).isnan().all()
        with checking(True), pytest.raises(ValueError, match="x contains NaN"):
            layer(nan)
        assert layer(nan).isnan().all()
        with pytest.raises(ValueError, match="d_model = 8"):                       # a shape is no number
            layer(nan[..., :7])
    layer.out.weight.data.fill_(torch.inf)
    with pytest.raises(NotFinite, match="out.weight"):
        layer(torch.randn(1, 9, 8))


def test_a_size_on_an_accelerator_is_not_waited_for_unless_it_must_be():
    class There(torch.Tensor):
        device = torch.device("cuda")

    size, truth = torch.tensor(3).as_subclass(There), torch.tensor(False).as_subclass(There)
    assert (look(size, 9), look(size, 9, stop=True), look(truth), look(truth, stop=True)) == (9, 3, True, False)
    with checking(True):
        assert look(truth) is False and look(size, 9) == 9


def test_what_is_made_once_serves_other_modes():
    cut = mc.segments.lengths.Segments.constant(7, 3)
    device = torch.device("cpu")
    with torch.inference_mode():
        layout, index = cut.layout(device, 1), index_on((0, 2), device)
    assert layout is cut.layout(device, 1) and not layout.owner.is_inference() and not index.is_inference()
    with torch._subclasses.FakeTensorMode():
        fake = mc.segments.lengths.Segments.constant(8, 3).layout(device).owner
    assert type(fake) is not torch.Tensor and type(mc.segments.lengths.Segments.constant(8, 3).layout(device).owner) is torch.Tensor
    layer, x = mc.MemoryCachingLayer(mc.MCConfig(8, 2, segment_size=3)), torch.randn(1, 7, 8)
    with torch.inference_mode():
        y = layer(x)
    learned = copy.deepcopy(layer)(x)
    learned.sum().backward()
    assert torch.equal(y, learned)
