"""Properties that hold for any lengths, any cut and any permutation."""
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mc
from mc.sequential import AGGREGATIONS, INITS

LINEAR = mc.LinearMemory()
cells = st.fixed_dictionaries({"aggregation": st.sampled_from(AGGREGATIONS), "init": st.sampled_from(INITS),
                               "segments": st.integers(1, 9), "implementation": st.sampled_from(["parallel", "sequential"])})
some = settings(max_examples=40, deadline=None, derandomize=True)


def tokens(T, seed):
    return torch.randn(4, 2, T, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def call(x, cell, **kwargs):
    return mc.memory_caching(*x, LINEAR, **cell, **kwargs)


@some
@given(cells, st.integers(2, 24), st.data())
def test_no_token_sees_the_future(cell, T, data):
    t, x = data.draw(st.integers(1, T - 1)), tokens(T, 0)
    moved = x.clone()
    moved[:, :, t:] += tokens(T - t, 1)
    before, after = call(x, cell), call(moved, cell)
    assert torch.allclose(before[:, :t], after[:, :t], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, t], after[:, t])


@some
@given(cells, st.integers(2, 24), st.data())
def test_a_sequence_can_be_split_anywhere(cell, T, data):
    t, x = data.draw(st.integers(1, T - 1)), tokens(T, 0)
    head, cache = call(x[:, :, :t], cell, return_cache=True)
    tail = call(x[:, :, t:], cell, cache=cache)
    assert torch.allclose(torch.cat([head, tail], 1), call(x, cell), rtol=1e-10, atol=1e-11)


@some
@given(cells, st.integers(1, 24), st.floats(-3, 3))
def test_reading_is_linear_in_the_values(cell, T, factor):
    (q, k, v, u), other = tokens(T, 0), tokens(T, 1)[2]
    mixed = call([q, k, v + factor * other, u], cell)
    assert torch.allclose(mixed, call([q, k, v, u], cell) + factor * call([q, k, other, u], cell), rtol=1e-9, atol=1e-9)


@some
@given(cells, st.integers(1, 24))
def test_batch_and_heads_do_not_mix(cell, T):
    x = tokens(T, 0)
    flipped = call(x.flip(1).flip(3), cell)
    assert torch.allclose(flipped, call(x, cell).flip(0).flip(2), rtol=1e-10, atol=1e-12)


@some
@given(cells, st.integers(1, 24))
def test_gates_sum_to_one_or_count_what_is_closed(cell, T):
    from mc.functional import run

    out = run(*tokens(T, 0), LINEAR, cell["aggregation"], cell["segments"], cell["init"], implementation=cell["implementation"])
    closed = torch.zeros(T) if cell["aggregation"] == "none" else torch.arange(T) // cell["segments"]
    expected = torch.ones(T) if cell["aggregation"] == "grm" else closed + 1.0
    assert torch.allclose(out.gates.sum(-1), expected[None, :, None].double().expand(2, T, 2))
    assert torch.equal((out.scores > -torch.inf).sum(-1)[0, :, 0], (closed + 1).long())
