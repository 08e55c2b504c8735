"""Properties that hold for any lengths, any cut and any permutation."""
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cells import B, H, MEMORIES, call, rules_of, tokens
from mc.options import INITS
from mc.read.ways import AGGREGATIONS

cells = st.fixed_dictionaries({
    "name": st.sampled_from(MEMORIES), "aggregation": st.sampled_from(AGGREGATIONS), "init": st.sampled_from(INITS),
    "cut": st.sampled_from(["constant", "fenwick"]), "segments": st.integers(1, 9), "chunk_size": st.integers(1, 7),
    "pool": st.sampled_from(["mean", "sum", "position"]), "softmax": st.sampled_from(["chosen", "all"]),
    "implementation": st.sampled_from(["parallel", "parallel", "sequential"])})
some = settings(max_examples=60, deadline=None, derandomize=True)


def drawn(T, seed):
    x, rates = tokens(T, seed)
    return x.detach(), rates.detach()


def run(cell, x, rates, cache=None):
    options = {n: cell[n] for n in ("chunk_size", "pool", "softmax")}
    rules = rules_of(cell["aggregation"], cell["cut"], cell["init"], **options)
    with torch.no_grad():
        return call(cell["implementation"], cell["name"], rules, cell["segments"], x, rates, cache)


@some
@given(cells, st.integers(2, 24), st.data())
def test_no_token_sees_the_future(cell, T, data):
    "Eq. 5."
    t, (x, rates), (other, others) = data.draw(st.integers(1, T - 1)), drawn(T, 0), drawn(T, 1)
    moved, changed = torch.cat([x[:, :, :t], other[:, :, t:]], 2), torch.cat([rates[:, :, :t], others[:, :, t:]], 2)
    before, after = run(cell, x, rates).y, run(cell, moved, changed).y
    assert torch.allclose(before[:, :t], after[:, :t], rtol=0, atol=1e-12)
    assert not torch.allclose(before[:, t], after[:, t])


@some
@given(cells, st.integers(2, 24), st.data())
def test_a_sequence_can_be_split_anywhere(cell, T, data):
    "Eq. 4-5 across calls."
    t, (x, rates) = data.draw(st.integers(1, T - 1)), drawn(T, 0)
    head = run(cell, x[:, :, :t], rates[:, :, :t])
    tail = run(cell, x[:, :, t:], rates[:, :, t:], head.cache)
    whole = run(cell, x, rates)
    assert torch.allclose(torch.cat([head.y, tail.y], 1), whole.y, rtol=1e-10, atol=1e-11)
    assert tail.cache.lengths == whole.cache.lengths


@some
@given(cells.filter(lambda cell: cell["name"] in ("linear", "swla", "gated_delta")), st.integers(1, 24), st.floats(-3, 3))
def test_reading_a_matrix_is_linear_in_the_values(cell, T, factor):
    ((q, k, v, u), rates), (other, _) = drawn(T, 0), drawn(T, 1)
    read = lambda v: run(cell, torch.stack([q, k, v, u]), rates).y
    assert torch.allclose(read(v + factor * other[2]), read(v) + factor * read(other[2]), rtol=1e-9, atol=1e-9)


@some
@given(cells.filter(lambda cell: cell["name"] in ("linear", "swla", "gated_delta")), st.integers(1, 24))
def test_batch_and_heads_do_not_mix(cell, T):
    x, rates = drawn(T, 0)
    flipped = run(cell, x.flip(1).flip(3), rates.flip(1).flip(3)).y
    assert torch.allclose(flipped, run(cell, x, rates).y.flip(0).flip(2), rtol=1e-10, atol=1e-12)


@some
@given(cells, st.integers(1, 24))
def test_sequences_of_a_batch_do_not_mix(cell, T):
    x, rates = drawn(T, 0)
    assert torch.allclose(run(cell, x[:, 1:], rates[:, 1:]).y, run(cell, x, rates).y[1:], rtol=1e-10, atol=1e-12)


@some
@given(cells, st.integers(1, 24))
def test_gates_sum_to_one_and_follow_the_choice(cell, T):
    out = run(cell, *drawn(T, 0))
    seen = (out.scores > -torch.inf).sum(-1)
    blocks = torch.zeros(T, dtype=int) if cell["aggregation"] == "none" else torch.arange(T) // cell["segments"]
    groups = torch.tensor([int(n).bit_count() for n in blocks]) if cell["cut"] == "fenwick" else blocks
    assert torch.equal(seen, (groups + 1)[None, :, None].expand(B, T, H))
    assert ((out.gates > 0) <= out.chosen).all() and (out.chosen <= (out.scores > -torch.inf)).all()
    assert out.chosen[..., -1].all()
    if cell["aggregation"] in ("grm", "soup") or (cell["aggregation"] == "ssc" and cell["softmax"] == "chosen"):
        assert torch.allclose(out.gates.sum(-1), torch.ones(()).double())
    if cell["aggregation"] == "ssc":
        assert torch.equal(out.chosen.sum(-1), (groups.clamp(max=2) + 1)[None, :, None].expand(B, T, H))
