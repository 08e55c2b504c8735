"""What the fast passes are made of, each against its definition: values, gradients, gradients of gradients."""
import pytest
import torch
from torch.nn import functional as F

import mc
from cells import randn
from mc.forms.online import every, in_turn, last
from mc.forms.sequential import Tokens
from mc.memory.decay import added_up, joined, plus_product, products
from mc.memory.recall import Recall, mixed, mixed_gradients
from mc.nn.parts import SHORT, CausalConv, unit


def same(ours, theirs, *inputs):
    "Both functions of `inputs` agree, and so do their gradients and second derivatives."
    inputs = [x.requires_grad_() for x in inputs]
    some = []
    for function in (ours, theirs):
        y = function(*inputs)
        first = torch.autograd.grad((y * randn(*y.shape, seed=7)).sum(), inputs, create_graph=True)
        loss = sum((g * randn(*g.shape, seed=8 + i)).sum() for i, g in enumerate(first) if g.requires_grad)
        second = torch.autograd.grad(loss, inputs, allow_unused=True) if isinstance(loss, torch.Tensor) else []
        some.append([y, *first, *(g for g in second if g is not None)])
    for a, b in zip(*some, strict=True):
        assert (a - b).norm() <= 1e-9 * max(1, b.norm())


def test_unit_vectors_are_those_of_the_library():
    x = randn(5, 3, 8)
    x[0], x[1] = x[0] / x[0].norm(dim=-1, keepdim=True) * SHORT / 2, 1e3 * x[1]
    same(unit, lambda x: F.normalize(x, dim=-1, eps=SHORT), x)
    zero = torch.zeros(2, 8, requires_grad=True)
    unit(zero).sum().backward()
    assert (unit(zero) == 0).all() and torch.allclose(zero.grad * SHORT, torch.ones(2, 8))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("T", [1, 2, 9])
def test_the_convolution_is_its_sum_with_the_weights_as_they_are_stored(width, T):
    conv = CausalConv(3, 5, width).double()
    weight = conv.proj.weight.detach().unflatten(1, (3, width))    # (d_out, d_in, oldest first)

    def convolve(x, before, weight):
        with torch.nn.utils.stateless._reparametrize_module(conv, {"proj.weight": weight.flatten(1)}):
            return conv(x, before)[0]

    def definition(x, before, weight):
        x = torch.cat([before, x], 1)
        return sum(x[:, j : j + T] @ weight[..., j].T for j in range(width))

    before = randn(2, width - 1, 3, seed=1)
    same(convolve, definition, randn(2, T, 3), before, weight)
    y, after = conv(randn(2, T, 3), before)
    assert torch.equal(after, torch.cat([before, randn(2, T, 3)], 1)[:, T:])


def test_a_sum_and_a_product_in_one_kernel():
    for lead in ((), (2,), (2, 3)):
        same(lambda x, a, b: plus_product(x, a, b, -2.0), lambda x, a, b: x - 2 * a @ b,
             randn(*lead, 4, 5), randn(*lead, 4, 3, seed=1), randn(*lead, 3, 5, seed=2))


@pytest.mark.parametrize("N", [1, 3, 150])
def test_running_sums_are_the_loop_over_them(N):
    def loop(start, written):
        ends = [start]
        for new in written.unbind(-3):
            ends.append(ends[-1] + new)
        return torch.stack(ends[1:], -3)

    same(added_up, loop, randn(2, 2, 3), randn(2, N, 2, 3, seed=1))


def test_products_of_decays_are_products():
    def one_by_one(a):
        rows = [[a[:, j:t].prod(-1) if j <= t else torch.zeros_like(a[:, 0]) for j in range(7)] for t in range(7)]
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    same(products, one_by_one, torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))


def test_only_the_end_states_that_are_wanted_are_put_together():
    memory = mc.DLAMemory(0.3 * randn(2, 4, 6), 0.5 * randn(2, 6, 4, seed=1))
    q, k, v = (randn(1, 2, 24, 4, seed=i) for i in range(3))
    rates = {"alpha": torch.ones(1, 2, 24, 1).double(), "eta": torch.full((1, 2, 24, 1), 0.1).double()}
    start, tokens = memory.start(k[:, :, 0], v[:, :, 0]), Tokens(q, k, v, q, rates)
    chunks = {name: rate.unflatten(2, (6, 4))[..., 0] for name, rate in rates.items()}
    _, ends = memory.scan(memory.anchor(start), k.unflatten(2, (6, 4)), v.unflatten(2, (6, 4)), **chunks)
    assert isinstance(ends, list) and len(ends) == 6
    _, picked = in_turn(memory, start, tokens, 8, 4)
    for name in memory.params:
        assert torch.equal(picked[name], torch.stack([ends[i][name] for i in (1, 3, 5)], 2))
        assert torch.equal(every(every(ends, 1, 2), 2, 2)[name], picked[name])
        assert torch.equal(last(ends, 2)[name], last(every(ends, 1, 2), 2)[name])


def test_gradients_of_tiles_add_up_whatever_each_of_them_sees():
    tiles = [(0, 3, slice(0, 1)), (3, 7, torch.tensor([0, 2])), (7, 9, slice(0, 4)), (9, 12, torch.tensor([1, 3]))]
    seen = torch.zeros(12, 4, dtype=torch.float64)
    for a, b, some in tiles:
        seen[a:b, some] = 1
    same(lambda q, w, m: Recall.apply(mixed, mixed_gradients, tiles, q, w, m), lambda q, w, m: mixed(q, w * seen, m),
         randn(1, 2, 12, 4), randn(1, 2, 12, 4, seed=1), randn(1, 2, 4, 3, 4, seed=2))


def test_a_single_part_is_not_copied():
    x = randn(2, 3)
    assert joined([x], 0) is x and torch.equal(joined([x, x], 0), torch.cat([x, x]))
