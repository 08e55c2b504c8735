"""PyTorch's own tools on layers and models: each gives what a plain call, .backward() or a loop gives, in float64."""
import copy
import logging
import warnings
from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import functional
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, stack_module_state, vjp, vmap
from torch.utils._pytree import tree_map

import mc
from mc.nn.model import AttentionConfig, LanguageModel, LMConfig
from mc.options import INITS, SEGMENTATIONS
from mc.read.ways import AGGREGATIONS

pytestmark = pytest.mark.slow

MEMORIES = ("linear", "swla", "dla", "titans", "gated_delta")
CELLS = [(m, way, SEGMENTATIONS[(i + j) % 3], INITS[(i + j) % 2])
         for (i, m), (j, way) in product(enumerate(MEMORIES), enumerate(AGGREGATIONS))]
FEW = [("linear", "ssc", "fenwick", "independent"), ("swla", "grm", "constant", "checkpoint"), ("dla", "none", "constant", "independent"),
       ("dla", "residual", "logarithmic", "checkpoint"), ("titans", "soup", "constant", "independent"), ("gated_delta", "grm", "fenwick", "independent")]
T = 7
every, few = (pytest.mark.parametrize("cell", cells, ids="-".join) for cells in (CELLS, FEW))


@pytest.fixture(autouse=True)
def float64_and_quiet():
    logging.disable(logging.WARNING)
    torch.set_default_dtype(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_default_dtype(torch.float32)
    logging.disable(logging.NOTSET)


def layer_of(cell, seed=0):
    torch.manual_seed(seed)
    memory, way, cut, init = cell
    layer = mc.MemoryCachingLayer(mc.MCConfig(8, 2, memory, way, cut, init, segment_size=2, chunk_size=2, top_k=1))
    for p in layer.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return layer


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    assert a.shape == b.shape and (a - b).abs().max() < 1e-9 * (1 + b.abs().max())


def slopes(model, *inputs):
    "The gradients of .backward(), by name, for the parameters that play a role."
    model.zero_grad()
    model(*inputs).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def weights(model):
    return {n: p.detach() for n, p in model.named_parameters()}


def loss(model, *rest):
    return lambda p, x, *more: functional_call(model, p, (x[None], *(m[None] for m in more), *rest)).square().sum()


@every
def test_func_grad_is_backward(cell):
    layer, x = layer_of(cell), draw(1, T, 8)
    found, expected = grad(loss(layer))(weights(layer), x[0]), slopes(layer, x)
    assert expected.keys() >= {"conv.proj.weight", "out.weight"}
    for name, slope in expected.items():
        close(found[name], slope)


@every
def test_vmap_over_a_batch_and_over_an_ensemble(cell):
    x, layers = draw(3, 2, T, 8), [layer_of(cell, seed) for seed in range(3)]
    close(vmap(layers[0])(x), torch.stack([layers[0](a) for a in x]))
    stacked, _ = stack_module_state(layers)
    each = vmap(lambda p, x: functional_call(layers[0], p, (x,)), (0, None))(stacked, x[0])
    close(each, torch.stack([layer(x[0]) for layer in layers]))


@every
def test_gradients_per_sample(cell):
    layer, x = layer_of(cell), draw(2, T, 8)
    found = vmap(grad(loss(layer)), (None, 0))(weights(layer), x)
    for b in range(2):
        for name, slope in slopes(layer, x[b : b + 1]).items():
            close(found[name][b], slope)


@few
def test_padded_and_packed_inputs_under_vmap(cell):
    layer, x = layer_of(cell), draw(3, T, 8)
    mask = torch.tensor([[1] * T, [0, 1, 1, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0, 0]])
    if cell[2] == "logarithmic":
        with pytest.raises(ValueError, match="cannot be looked at in torch.export, under vmap or on the meta device"):
            vmap(lambda x, m: layer(x[None], m[None]))(x, mask)
        return
    close(vmap(lambda x, m: layer(x[None], m[None])[0])(x, mask), layer(x, mask))
    bounds = torch.tensor([[0, 2, T], [0, 4, T], [0, 1, T]])
    packed = torch.cat([layer(a[None], None, c) for a, c in zip(x, bounds)])
    close(vmap(lambda x, c: layer(x[None], None, c)[0])(x, bounds), packed)
    found = vmap(grad(loss(layer)), (None, 0, 0))(weights(layer), x, mask)
    for name, slope in slopes(layer, x[1:2], mask[1:2]).items():
        close(found[name][1], slope)


@pytest.mark.parametrize("grads", [True, False])
@few
def test_steps_under_vmap_take_and_give_caches(cell, grads):
    if cell[2] == "logarithmic":
        cell = (cell[0], cell[1], "constant", cell[3])
    layer, x = layer_of(cell), draw(2, 10, 8)
    step = vmap(lambda x, cache: layer.step(x[None], cache))
    with torch.set_grad_enabled(grads):
        _, plain = layer.forward_with_cache(x[:, :3])
        apart = tree_map(lambda leaf: leaf[:, None], plain)
        alone = layer.forward_with_cache(x[:1, :3])[1]
        shared = vmap(lambda x: layer.step(x[None], layer.step(x[None], alone)[1])[0][0])(x[:, 3])
        close(shared, torch.cat([layer.step(a[None], layer.step(a[None], alone)[1])[0] for a in x[:, 3]]))
        for t in range(3, 10):
            (y, plain), (z, apart) = layer.step(x[:, t], plain), step(x[:, t], apart)
            close(z[:, 0], y)
            assert (apart.cut, apart.running, apart.about) == (plain.cut, plain.running, plain.about)
        for a, b in zip(apart._tensors().values(), plain._tensors().values()):
            assert torch.allclose(a[:, 0], b)


@every
def test_jacobians_batched_are_those_row_by_row(cell):
    layer, x = layer_of(cell), draw(1, 5, 8)
    plain = functional.jacobian(layer, x)
    close(functional.jacobian(layer, x, vectorize=True), plain)
    if cell in CELLS[::3]:
        close(jacrev(layer)(x), plain)
        close(jacfwd(layer)(x), plain)
        v = draw(1, 5, 8, seed=2)
        close(functional.jvp(layer, x, v)[1], (plain * v).sum((-3, -2, -1)))


@every
def test_hessian_vector_products_are_differences_of_gradients(cell):
    layer, x, v = layer_of(cell), draw(1, T, 8).requires_grad_(), draw(1, T, 8, seed=2)
    f = lambda x: layer(x).square().sum()
    slope = lambda x: torch.autograd.grad(f(x), x, create_graph=True)[0]
    product = torch.autograd.grad((slope(x) * v).sum(), x)[0]
    ends = [slope((x + s * v).detach().requires_grad_()) for s in (1e-5, -1e-5)]
    assert (product - (ends[0] - ends[1]) / 2e-5).norm() < 1e-6 * product.norm()
    close(vjp(grad(f), x.detach())[1](v)[0], product)


def test_hessians_forward_over_reverse_are_reverse_over_reverse():
    for cell in (FEW[0], FEW[4]):
        layer, x = layer_of(cell), draw(1, 5, 8)
        f = lambda x: layer(x).square().sum()
        close(hessian(f)(x), functional.hessian(f, x))


@every
def test_meta_and_fake_tensors_have_the_right_shapes(cell):
    layer, x = layer_of(cell), draw(2, T, 8)
    shapes = lambda y, cache: [y.shape, *(t.shape for t in cache._tensors().values())]
    expected = shapes(*layer.forward_with_cache(x))
    ghost = copy.deepcopy(layer).to("meta")
    y, cache = ghost.forward_with_cache(x.to("meta"))
    assert shapes(y, cache) == expected and {t.device.type for t in [y, *cache._tensors().values()]} == {"meta"}
    y.sum().backward()
    assert ghost.out.weight.grad.shape == (8, 8)
    if cell[2] != "logarithmic":
        assert shapes(*ghost.step(x[:, 0].to("meta"), cache)) == shapes(*layer.step(x[:, 0], layer.forward_with_cache(x)[1]))
    with FakeTensorMode():
        assert shapes(*mc.MemoryCachingLayer(layer.config).forward_with_cache(torch.randn(2, T, 8))) == expected


@few
def test_compiled_layers_forward_backward_and_without_gradients(cell):
    torch._dynamo.reset()
    layer, x, backend = layer_of(cell), draw(2, 5, 8), "aot_eager" if cell in FEW[::2] else "eager"
    compiled, expected = torch.compile(layer, backend=backend), slopes(layer, x)
    found = slopes(compiled, x)
    for name, slope in expected.items():
        close(found["_orig_mod." + name], slope)
    for mode in (torch.no_grad, torch.inference_mode) if cell in (FEW[0], FEW[5]) else ():    # each is compiled anew, along the same path
        with mode():
            close(compiled(x), layer(x))


@pytest.mark.parametrize("cell, grads", [(FEW[0], False), (FEW[4], True)], ids=["linear", "titans"])
def test_compiled_prefill_and_steps(cell, grads):
    torch._dynamo.reset()
    layer, x = layer_of(cell), draw(2, 5, 8)
    prefill, step = (torch.compile(f, backend="eager") for f in (layer.forward_with_cache, layer.step))
    with torch.set_grad_enabled(grads):
        y, cache = prefill(x[:, :2])
        close(y, layer(x[:, :2]))
        for t in range(2, 5):
            y, cache = step(x[:, t], cache)
            close(y, layer(x)[:, t])
        assert cache.lengths == layer.forward_with_cache(x)[1].lengths


def test_compiled_with_padding_and_with_sizes_as_symbols():
    torch._dynamo.reset()
    layer = layer_of(FEW[0])
    compiled = torch.compile(layer, backend="eager", dynamic=True)
    for length in (3, 5):
        x = draw(3, length, 8)
        close(compiled(x), layer(x))
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    close(compiled(x, mask), layer(x, mask))
    prefill = torch.compile(layer.forward_with_cache, backend="eager")
    (y, cache), (z, plain) = prefill(x, None, mask), layer.forward_with_cache(x, None, mask)
    close(y, z)
    assert cache.position == plain.position == 3
    with pytest.raises(ValueError, match="attention_mask leaves no token"):
        compiled(x, 0 * mask)


@few
def test_exported_layers_run_on_other_numbers_and_other_batches(cell):
    layer, x = layer_of(cell), draw(2, T, 8)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}).module()
    for z in (x, draw(3, T, 8, seed=2)):
        close(program(z), layer(z))


def test_exported_with_padding_with_a_cache_and_strictly():
    layer, x = layer_of(FEW[0]), draw(2, T, 8)
    close(torch.export.export(layer, (x,), strict=True).module()(x), layer(x))
    mask = torch.tensor([[1] * T, [0, 1, 1, 0, 1, 1, 0]])
    program = torch.export.export(layer, (x, mask)).module()
    for given in (mask, mask.flip(1)):
        close(program(x, given), layer(x, given))

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, cache):
            return self.layer.step(x, cache)

    _, cache = layer.forward_with_cache(x[:, :3])
    _, other = layer.forward_with_cache(x[:, 3:6])
    program = torch.export.export(Step(), (x[:, 6], cache)).module()
    for given in (cache, other):
        (y, after), (z, plain) = program(x[:, 6], given), layer.step(x[:, 6], given)
        close(y, z)
        assert (after.lengths, after.running, after.about) == (plain.lengths, plain.running, plain.about)
        for a, b in zip(after._tensors().values(), plain._tensors().values()):
            close(a, b)


MIXERS = {"ssc": mc.MCConfig(8, 2, aggregation="ssc", segment_size=2, top_k=1), "attention": AttentionConfig(8, 2)}


@pytest.mark.parametrize("mixer", MIXERS)
def test_language_models(mixer):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, tokens = LanguageModel(LMConfig(11, 1, MIXERS[mixer])), torch.randint(0, 11, (2, T))
    y, expected = model(tokens), slopes(model, tokens)
    close(torch.export.export(model, (tokens,)).module()(tokens), y)
    close(torch.compile(model, backend="eager")(tokens), y)
    close(vmap(lambda row: model(row[None])[0])(tokens), y)
    assert copy.deepcopy(model).to("meta")(tokens.to("meta")).shape == y.shape
    found = vmap(grad(loss(model)), (None, 0))(weights(model), tokens)
    for name, slope in expected.items():
        close(found[name].sum(0), slope)
    with pytest.raises(ValueError, match="tokens must lie between 0 and vocab_size - 1 = 10; got"):
        model(tokens + 11)


def test_both_forms_of_the_function_under_transformations():
    x, options = draw(3, 4, 1, 6, 2, 4), dict(memory=mc.LinearMemory(), segments=2, aggregation="soup")
    for form in ("parallel", "sequential"):
        call = lambda x: mc.memory_caching(*x, **options, implementation=form)
        close(vmap(call)(x), torch.stack([call(a) for a in x]))
        close(jacrev(call)(x[0]), functional.jacobian(call, x[0]))
        close(vmap(lambda a: torch.func.jvp(call, (a,), (a,))[1])(x), torch.stack([torch.func.jvp(call, (a,), (a,))[1] for a in x]))


def test_what_is_no_number_is_still_refused():
    layer, x = layer_of(FEW[1]), draw(2, T, 8)
    for call in (vmap(layer), lambda x: copy.deepcopy(layer).to("meta")(x[0].to("meta"))):
        with pytest.raises(ValueError, match="d_model = 8"):
            call(x[None, ..., :7])
    assert vmap(layer)(torch.full_like(x, float("nan"))[None]).isnan().all()
    with pytest.raises(ValueError, match="NaN"):
        layer(torch.full_like(x, float("nan")))
