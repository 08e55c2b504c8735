"""What the paper's algebra promises, on random numbers in float64."""
import pytest
import torch

import mc
from cells import CELLS, CUTS, D, DEEP, H, MEMORIES, call, coefficients_of, memory_of, randn, rules_of, segments_of, tokens, weights
from mc.segments.fenwick import powers, visible
from mc.options import INITS
from mc.segments.lengths import Segments

pytestmark = pytest.mark.usefixtures("poisoned")

LINEAR = mc.LinearMemory()
GATED = ("grm", "soup", "ssc")


def qkvu(T=19, seed=0):
    return tokens(T, seed)[0].detach()


def weighted(q, k, v, weight):
    "y_t = sum of weight_tj (q_t . k_j) v_j over j <= t, the mask as an oracle."
    return torch.einsum("bhtj,bjhd->bthd", torch.einsum("bthd,bjhd->bhtj", q, k).tril() * weight, v)


def close(a, b):
    return torch.allclose(a, b, rtol=1e-11, atol=1e-11)


def read(name, aggregation, cut="constant", init="independent", T=19, segments=None, **kwargs):
    "What the cell reads, from the same tokens each time."
    x, rates = tokens(T)
    with torch.no_grad():
        return call("parallel", name, rules_of(aggregation, cut, init, **kwargs), segments or segments_of(cut, T), x, rates).y


def test_uncached_memory_is_linear_attention():
    "Eq. 2, without φ and its normaliser."
    q, k, v, u = qkvu(T=150)                                       # more than two chunks of the parallel form
    assert close(mc.memory_caching(q, k, v, u, LINEAR, aggregation="none"), weighted(q, k, v, 1.0))


def test_residual_of_independent_segments_is_linear_attention():
    "Eq. 7, 12-13."
    q, k, v, u = qkvu()
    for cut in ("constant", "fenwick"):
        y = mc.memory_caching(q, k, v, u, LINEAR, aggregation="residual", segments=4, segmentation=cut)
        assert close(y, weighted(q, k, v, 1.0))


def test_residual_of_checkpoints_counts_a_token_once_per_segment_since():
    "Eq. 7."
    q, k, v, u = qkvu()
    owner = Segments.constant(19, 4).owner
    y = mc.memory_caching(q, k, v, u, LINEAR, aggregation="residual", segments=4, init="checkpoint")
    assert close(y, weighted(q, k, v, owner[:, None] - owner + 1))


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("init", INITS)
def test_grm_with_equal_scores_is_residual_over_the_number_of_memories(name, init):
    "Eq. 9 against Eq. 7."
    even = read(name, "grm", init=init, gate_scale=0.0)
    assert close(even, read(name, "residual", init=init) / (Segments.constant(19, 4).owner + 1)[:, None, None])


def test_the_even_average_of_independent_memories_is_the_uncached_model():
    "Sec. 4.3: over linear memories it is the uncached read over their number, and a norm behind the read takes the number back."
    q, k, v, u = qkvu()
    plain = mc.memory_caching(q, k, v, u, LINEAR, aggregation="none")
    even = mc.memory_caching(q, k, v, 0 * u, LINEAR, aggregation="grm", segments=4)
    norm = lambda y: torch.nn.functional.rms_norm(y, y.shape[-1:], eps=0.0)
    assert close(even * (Segments.constant(19, 4).owner + 1)[:, None, None], plain) and not close(even, plain)
    assert close(norm(even), norm(plain))


@pytest.mark.parametrize("name, aggregation, cut, init", CELLS)
def test_one_segment_is_the_base_model(name, aggregation, cut, init):
    "Eq. 5 with nothing in the cache."
    if cut == "logarithmic":                                       # one segment at a power of two: the paper's trap
        assert close(read(name, aggregation, cut, init, T=16), read(name, "none", T=16))
    else:
        assert close(read(name, aggregation, cut, init, segments=[19] if cut == "list" else 19), read(name, "none"))


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("init", INITS)
def test_soup_is_grm_for_matrices_only(name, cut, init):
    "Eq. 15 against Eq. 9, and for SWLA Eq. 29."
    same = close(read(name, "soup", cut, init), read(name, "grm", cut, init))
    assert same == (name not in DEEP)


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("softmax", ["chosen", "all"])
def test_ssc_that_reads_everything_is_grm(name, cut, softmax):
    "Eq. 17 against Eq. 9."
    assert close(read(name, "ssc", cut, top_k=9, softmax=softmax), read(name, "grm", cut))
    assert not close(read(name, "ssc", cut, top_k=1, softmax=softmax, segments=[2, 5, 5, 7] if cut == "list" else None),
                     read(name, "grm", cut, segments=[2, 5, 5, 7] if cut == "list" else None))


def test_segments_of_one_token_are_attention_with_u_over_keys():
    "Eq. 19 with a matrix in place of the vector: the gates are softmax(u_t . k_i), the answers v_i (k_i . q_t)."
    q, k, v, u = qkvu()
    attention = torch.einsum("bthd,bjhd->bhtj", u, k).masked_fill(~torch.ones(19, 19, dtype=bool).tril(), -torch.inf).softmax(-1)
    assert close(mc.memory_caching(q, k, v, u, LINEAR, segments=1), weighted(q, k, v, attention))


def test_grm_against_gates_computed_by_hand():
    "Eq. 9-10."
    q, k, v, u = (a[:1, :10, :1] for a in qkvu())
    cut, gates = Segments.constant(10, 4), torch.zeros(10, 10, dtype=torch.float64)
    for t in range(10):
        s = int(cut.owner[t])
        pools = [k[0, a:b, 0].mean(0) for a, b in cut.bounds[:s]] + [k[0, cut.bounds[s][0] : t + 1, 0].mean(0)]
        gates[t] = torch.stack([u[0, t, 0] @ pool for pool in pools]).mul(0.7).softmax(0)[cut.owner.clamp(max=s)]
    assert close(mc.memory_caching(q, k, v, u, LINEAR, segments=4, gate_scale=0.7), weighted(q, k, v, gates))


def test_logarithmic_cuts():
    assert Segments.logarithmic(37).lengths == (32, 4, 1) and Segments.logarithmic(4096).lengths == (4096,)
    assert all(len(visible(n)) == n.bit_count() == len(powers(n)) for n in range(1, 200))


@pytest.mark.parametrize("name", MEMORIES)
def test_a_fenwick_group_is_a_fresh_memory_over_its_tokens(name):
    "The memories that a text of 7 blocks ends with, against separate calls over 4, 2 and 1 blocks."
    x, rates = tokens(28)
    with torch.no_grad():
        whole = call("parallel", name, rules_of("grm", "fenwick", "independent"), 4, x, rates).cache
        assert whole.lengths == (16, 8, 4)
        for i, (a, b) in enumerate(whole.bounds):
            rules = rules_of("grm", "constant", "checkpoint")
            alone = call("parallel", name, rules, 4, x[:, :, a:b], rates[:, :, a:b]).cache
            assert all(close(leaf[:, i], alone.states[n][:, -1]) for n, leaf in whole.states.items())
            assert close(whole.pools[:, i], x[1, :, a:b].mean(1))


@pytest.mark.parametrize("name", ["linear", "titans"])
def test_a_fenwick_token_reads_the_groups_before_it(name):
    "Outputs of the Fenwick cut against list cuts of the same prefix, independent starts."
    x, rates = tokens(23)
    with torch.no_grad():
        y = call("parallel", name, rules_of("grm", "fenwick", "independent"), 4, x, rates).y
        for n in range(6):                                         # the tokens of block n
            groups = [4 * size for size in powers(n)]
            first, last = 4 * n, min(4 * n + 4, 23)
            cut = [*groups, last - first]
            if name == "titans" and any(g > 4 for g in groups):
                continue                                           # chunks restart at each block, so a list differs
            alone = call("parallel", name, rules_of("grm", "list", "independent"), cut, x[:, :, :last], rates[:, :, :last]).y
            assert close(y[:, first:last], alone[:, first:last])


def test_swla_without_its_window_is_gated_linear_attention():
    "Eq. 26-27 with c = 1."
    q, k, v, u = qkvu()
    alpha, lam = torch.rand(2, 19, H, dtype=torch.float64), torch.rand(2, 19, H, dtype=torch.float64)
    gated = lambda **c: mc.memory_caching(q, k, v, u, mc.SWLAMemory(), aggregation="none", coefficients=c)
    decay = torch.stack([torch.stack([alpha[:, j + 1 : t + 1].prod(1) for j in range(19)], -1) for t in range(19)], -2)
    weight = decay.transpose(1, 2) if decay.ndim == 3 else decay      # (B, H, T, T)
    assert close(gated(alpha=alpha, beta=0.0, lam=lam), weighted(q, k, v, weight * lam.transpose(1, 2)[:, :, None]))
    assert close(gated(alpha=1.0, beta=0.0, lam=1.0), weighted(q, k, v, 1.0))


@pytest.mark.parametrize("name", MEMORIES)
def test_a_value_written_is_nearer_when_read(name):
    k = torch.nn.functional.normalize(randn(1, H, D), dim=-1)
    v, (w1, w2) = randn(1, H, D, seed=1), weights()
    memory = memory_of(name, torch.zeros_like(w1), w2)
    coefficients = coefficients_of(memory, torch.full((4, 1, H), 0.5, dtype=torch.float64))
    before = memory.start(k, v)
    after = memory.write(before, k, v, **coefficients)
    gap = lambda state: (memory.read(state, k) - v).norm(dim=-1)
    assert (gap(after) < gap(before)).all()
    if name == "linear":
        assert gap(after).max() < 1e-12


def deep(k, v, name):
    "The inner loss of a deep memory as autograd sees it."
    def loss(w1, w2):
        out = k + torch.nn.functional.gelu(k @ w2.T) @ w1.T
        return -(out @ v) if name == "dla" else (out - v).square().sum()
    return loss


@pytest.mark.parametrize("name", DEEP)
def test_inner_gradients_are_those_of_the_inner_loss(name):
    "The gradients in Eq. 30 and 35."
    (w1, w2), k, v = weights(), randn(1, H, D), randn(1, H, D, seed=1)
    memory = {"dla": mc.DLAMemory, "titans": mc.TitansMemory}[name](w1, w2)
    one = torch.ones(1, H, dtype=torch.float64)
    beta = {"beta": 0 * one} if name == "titans" else {}
    after = memory.write(memory.start(k, v), k, v, alpha=one, eta=one, **beta)
    for h in range(H):
        to_w1, to_w2 = torch.autograd.grad(deep(k[0, h], v[0, h], name)(w1[h], w2[h]), [w1, w2])
        assert close(after["w1"][0, h], w1[h] - to_w1[h]) and close(after["w2"][0, h], w2[h] - to_w2[h])


def test_titans_descends_and_the_printed_signs_climb():
    "Eq. 34-35."
    (w1, w2), k, v = weights(), randn(1, H, D), randn(1, H, D, seed=1)
    one = torch.ones(1, H, dtype=torch.float64)
    gaps = {}
    for update in ("descent", "printed"):
        memory = mc.TitansMemory(w1, w2, update=update)
        state = memory.start(k, v)
        gaps[update] = [(memory.read(state, k) - v).square().sum().item()]
        for _ in range(3):
            state = memory.anchor(memory.write(state, k, v, alpha=one, beta=0.5 * one, eta=0.01 * one))
            gaps[update].append((memory.read(state, k) - v).square().sum().item())
    assert gaps["descent"] == sorted(gaps["descent"], reverse=True) and gaps["printed"] == sorted(gaps["printed"])


def test_one_chunk_of_gradients_from_zero_is_linear_attention():
    "TTT's Theorem 1 for the dual form's coefficients: alpha = 1, beta = 0, eta = 1/2, a linear inner model."
    q, k, v, _ = qkvu(T=6)
    errors = 2 * (0 - v)                                           # of M_0 = 0 under |M k - v|^2
    y = -0.5 * torch.einsum("bhtj,bjhd->bthd", torch.einsum("bthd,bjhd->bhtj", q, k).tril(), errors)
    assert close(y, mc.memory_caching(q, k, v, q, LINEAR, aggregation="none"))


def test_a_softmax_over_all_keeps_the_gates_of_grm():
    "Eq. 16-17."
    x, rates = tokens(19)
    gates = {}
    for aggregation, softmax in (("grm", "all"), ("ssc", "all"), ("ssc", "chosen")):
        out = call("parallel", "linear", rules_of(aggregation, "constant", "independent", softmax=softmax), 4, x, rates)
        gates[aggregation, softmax], chosen = out.gates, out.chosen
    assert not chosen[:, 16:].all() and close(gates["ssc", "all"], gates["grm", "all"] * chosen)
    kept = gates["grm", "all"] * chosen
    assert close(gates["ssc", "chosen"], kept / kept.sum(-1, keepdim=True))


def test_the_normalised_step_divides_by_one_plus_the_hidden_layer_squared():
    (w1, w2), k, v = weights(), randn(1, H, D), randn(1, H, D, seed=1)
    one, (plain, normalised) = torch.ones(1, H, dtype=torch.float64), (mc.DLAMemory(w1, w2, n) for n in (False, True))
    moved = [m.write(m.start(k, v), k, v, alpha=one, eta=one)["w1"][0] - w1 for m in (plain, normalised)]
    h = torch.nn.functional.gelu(torch.einsum("hfd,hd->hf", w2, k[0]))
    assert close(moved[1] * (1 + h.square().sum(-1))[:, None, None], moved[0])
