"""What the paper's algebra promises, on random numbers in float64."""
import pytest
import torch

import mc
from mc.segments import Segments

LINEAR = mc.LinearMemory()


def tokens(T=19, B=2, H=3, D=5, seed=0):
    "q, k, v, u: (B, T, H, D)."
    return torch.randn(4, B, T, H, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weighted(q, k, v, weight):
    "y_t = sum of weight_tj (q_t . k_j) v_j over j <= t, the mask as an oracle."
    return torch.einsum("bhtj,bjhd->bthd", torch.einsum("bthd,bjhd->bhtj", q, k).tril() * weight, v)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def test_uncached_memory_is_linear_attention():
    q, k, v, u = tokens(T=150)                                     # more than two blocks of the parallel form
    assert close(mc.memory_caching(q, k, v, u, LINEAR, aggregation="none"), weighted(q, k, v, 1.0))


def test_residual_of_independent_segments_is_linear_attention():
    q, k, v, u = tokens()
    assert close(mc.memory_caching(q, k, v, u, LINEAR, aggregation="residual", segments=4), weighted(q, k, v, 1.0))


def test_residual_of_checkpoints_counts_a_token_once_per_segment_since():
    q, k, v, u = tokens()
    owner = Segments.constant(19, 4).owner
    y = mc.memory_caching(q, k, v, u, LINEAR, aggregation="residual", segments=4, init="checkpoint")
    assert close(y, weighted(q, k, v, owner[:, None] - owner + 1))


@pytest.mark.parametrize("init", ["independent", "checkpoint"])
def test_grm_with_equal_scores_is_residual_over_the_number_of_memories(init):
    q, k, v, u = tokens()
    gated = mc.memory_caching(q, k, v, u, LINEAR, segments=4, init=init, gate_scale=0.0)
    residual = mc.memory_caching(q, k, v, u, LINEAR, aggregation="residual", segments=4, init=init)
    assert close(gated, residual / (Segments.constant(19, 4).owner + 1)[:, None, None])


@pytest.mark.parametrize("aggregation", ["residual", "grm"])
@pytest.mark.parametrize("init", ["independent", "checkpoint"])
def test_one_segment_is_the_base_model(aggregation, init):
    q, k, v, u = tokens()
    y = mc.memory_caching(q, k, v, u, LINEAR, aggregation=aggregation, segments=19, init=init)
    assert close(y, mc.memory_caching(q, k, v, u, LINEAR, aggregation="none"))


def test_segments_of_one_token_are_attention_with_u_over_keys():
    "Sec. 4.1 with a matrix memory: the gates are softmax(u_t . k_i), the answers v_i (k_i . q_t)."
    q, k, v, u = tokens()
    attention = torch.einsum("bthd,bjhd->bhtj", u, k).masked_fill(~torch.ones(19, 19, dtype=bool).tril(), -torch.inf).softmax(-1)
    assert close(mc.memory_caching(q, k, v, u, LINEAR, segments=1), weighted(q, k, v, attention))


def test_grm_against_gates_computed_by_hand():
    q, k, v, u = tokens(T=10, B=1, H=1)
    cut, gates = Segments.constant(10, 4), torch.zeros(10, 10, dtype=torch.float64)
    for t in range(10):
        s = int(cut.owner[t])
        pools = [k[0, a:b, 0].mean(0) for a, b in cut.bounds[:s]] + [k[0, cut.bounds[s][0] : t + 1, 0].mean(0)]
        gates[t] = torch.stack([u[0, t, 0] @ pool for pool in pools]).mul(0.7).softmax(0)[cut.owner.clamp(max=s)]
    assert close(mc.memory_caching(q, k, v, u, LINEAR, segments=4, gate_scale=0.7), weighted(q, k, v, gates))


def test_a_value_written_is_nearer_when_read():
    q, k, v, _ = tokens(T=1, B=1, H=1)
    k = torch.nn.functional.normalize(k, dim=-1)[:, 0]
    before = LINEAR.start(k, v[:, 0])
    after = LINEAR.write(before, k, v[:, 0])
    gap = lambda state: (LINEAR.read(state, k) - v[:, 0]).norm()
    assert gap(after) < 1e-12 < gap(before)
