"The paper's equations written out, token by token and with gradients from autograd, against what `mc` computes at once."
import pytest
import torch
from torch.nn.functional import gelu, scaled_dot_product_attention

import mc
from cells import MEMORIES, B, C, D, H, coefficients_of, memory_of, randn, tokens, weights
from mc.nn.model import Attention
from mc.options import INITS

T = 15


def close(a, b):
    return torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def slopes(M, k, v, squared):
    "The gradients of one token's inner loss with respect to both layers."
    layers = [M[n].detach().requires_grad_() for n in ("w1", "w2")]
    miss = answer(dict(zip(("w1", "w2"), layers)), k) - v
    return torch.autograd.grad(miss.square().sum() if squared else -((miss + v) @ v), layers)


def written(name, M, k, v, c):
    if name == "linear":
        return {"m": M["m"] + torch.outer(v, k)}
    if name == "swla":
        last = torch.outer(M["v"], M["k"])
        return {"m": c["alpha"] * M["m"] + c["beta"] * last + c["lam"] * torch.outer(v, k), "k": k, "v": v}
    if name == "gated_delta":
        kept = c["alpha"] * M["m"]
        return {"m": kept - c["eta"] * torch.outer(kept @ k - v, k)}
    to_w1, to_w2 = slopes(M, k, v, squared=name == "titans")
    if name == "dla":
        return {"w1": M["w1"] - c["eta"] * to_w1, "w2": M["w2"] - c["eta"] * to_w2}
    s1, s2 = c["beta"] * M["s1"] - c["eta"] * to_w1, c["beta"] * M["s2"] - c["eta"] * to_w2
    return {"w1": c["alpha"] * M["w1"] + s1, "w2": c["alpha"] * M["w2"] + s2, "s1": s1, "s2": s2}


def answer(M, q):
    return M["m"] @ q if "m" in M else q + M["w1"] @ gelu(M["w2"] @ q)


def aggregate(aggregation, memories, pools, q, u, top_k):
    "Of the cached memories and, last, the online one."
    scores = torch.stack([u @ pool for pool in pools])
    if aggregation == "ssc":
        scores[:-1][scores[:-1].argsort(descending=True)[top_k:]] = -torch.inf
    gates = torch.ones_like(scores) if aggregation == "residual" else scores.softmax(0)
    if aggregation == "soup":
        return answer({n: sum(g * M[n] for g, M in zip(gates, memories)) for n in memories[0] if n in ("m", "w1", "w2")}, q)
    return sum(g * answer(M, q) for g, M in zip(gates, memories))


def by_hand(name, start, aggregation, init, q, k, v, u, rates):
    "y (T, D) of one head of one sequence, in segments of C tokens."
    cached, ends, M, y = [], [], start, []
    for t in range(T):
        first = t - t % C
        if t == first and t:
            cached, ends = [*cached, M], [*ends, k[first - C : t].mean(0)]
            M = start if init == "independent" else M
        M = written(name, M, k[t], v[t], {n: c[t] for n, c in rates.items()})
        y.append(aggregate(aggregation, [*cached, M], [*ends, k[first : t + 1].mean(0)], q[t], u[t], top_k=2))
    return torch.stack(y)


def agree(name, aggregation, init):
    "The same tokens, coefficients and start by hand and by `mc.memory_caching`."
    x, rates = (a.detach() for a in tokens(T))
    w1, w2 = (w.detach() for w in weights())
    memory = {"dla": mc.DLAMemory, "titans": mc.TitansMemory}[name](w1, w2) if "w1" in memory_of(name).params else memory_of(name)
    rates = {n: c for n, c in coefficients_of(memory, rates).items() if (name, n) != ("dla", "alpha")}
    if name == "titans":
        rates["eta"] = 0.1 * rates["eta"]                          # larger steps diverge
    y = mc.memory_caching(*x, memory, aggregation=aggregation, init=init, segments=C, top_k=2, chunk_size=1, coefficients=rates)
    for b in range(B):
        for h in range(H):
            none, start = torch.zeros(D, dtype=x.dtype), {"w1": w1[h], "w2": w2[h], "s1": 0 * w1[h], "s2": 0 * w2[h]}
            if "m" in memory.params:
                start = {"m": torch.outer(none, none), "k": none, "v": none}
            mine = by_hand(name, start, aggregation, init, *x[:, b, :, h], {n: c[b, :, h] for n, c in rates.items()})
            assert close(y[b, :, h], mine)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", MEMORIES)
def test_residual_reading_as_printed(name, init):
    "Eq. 4-7; with DLA Eq. 11 (its loss with the minus of Eq. 31), with the linear memory Eq. 12-13."
    agree(name, "residual", init)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", MEMORIES)
def test_gated_reading_as_printed(name, init):
    "Eq. 8-10; with SWLA Eq. 26-29, with DLA Eq. 30-33, with Titans Eq. 34-36, of which one sign is corrected."
    agree(name, "grm", init)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", MEMORIES)
def test_soup_as_printed(name, init):
    "Eq. 14-15."
    agree(name, "soup", init)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", MEMORIES)
def test_sparse_reading_as_printed(name, init):
    "Eq. 16-17, with the softmax over what was chosen."
    agree(name, "ssc", init)


def test_softmax_attention_as_printed():
    "Eq. 1, between the projections, norm and gate of the layer."
    layer, x = Attention(mc.AttentionConfig(8, 2)).double(), randn(1, 7, 8)
    q, k, v = layer.conv(x, None)[0].unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    q, k = (torch.nn.functional.normalize(a, dim=-1) for a in (q, k))
    y = torch.zeros_like(v)
    for h in range(2):
        for i in range(7):
            e = [(layer.log_scale[h].exp() * q[0, h, i] @ k[0, h, t]).exp() for t in range(i + 1)]
            y[0, h, i] = sum(a * v[0, h, t] for t, a in enumerate(e)) / sum(e)
    gate = torch.nn.functional.silu(layer.gate(x))
    assert close(layer(x), layer.out(layer.norm(y).transpose(1, 2).flatten(2) * gate))


def test_the_write_of_a_matrix_is_a_minimum():
    "Eq. 3 with the loss -<M(k), v> and the retention |M - M'|^2 / 2: its minimum is the write of Eq. 2."
    before, k, v = randn(D, D), randn(D, seed=1), randn(D, seed=2)
    after = mc.LinearMemory().write({"m": before}, k, v)["m"].requires_grad_()
    objective = -(after @ k) @ v + (after - before).square().sum() / 2
    assert close(torch.autograd.grad(objective, after)[0], torch.zeros(D, D, dtype=before.dtype))


class Vector(mc.LinearMemory):
    "A vector that keys are added to."
    name = "vector"

    def __init__(self, bias):
        self.bias = bias

    def start(self, k, v):
        return {"m": self.bias.expand_as(k)}

    def write(self, state, k, v):
        return {"m": state["m"] + k}

    def read(self, state, q):
        return state["m"] * q


def test_one_key_per_segment_is_gated_attention():
    "Eq. 18-20: a vector memory, segments of one token."
    (q, k, _, u), bias = tokens(T)[0].detach(), randn(H, D, seed=3)
    y = mc.memory_caching(q.sigmoid(), k, k, u, Vector(bias), segments=1, implementation="sequential")
    by_head = (a.transpose(1, 2) for a in (u, k, bias + k))
    attention = scaled_dot_product_attention(*by_head, is_causal=True, scale=1.0).transpose(1, 2)
    assert close(y, attention * q.sigmoid())


def test_a_recurrent_layer_and_attention_are_one_cache():
    "Eq. 21-22 and 23-24: checkpoints after every token, whose keys and connectors are the recurrent layer's answers."
    v, alpha = randn(B, T, H, D), randn(B, T, H, seed=1).sigmoid()
    one, none, rates = torch.ones(B, T, H, 1, dtype=v.dtype), torch.zeros_like(v), {"alpha": alpha, "beta": 0.0, "lam": 1.0}
    state, y = 0, []
    for t in range(T):
        state = alpha[:, t, :, None] * state + v[:, t]
        y.append(state)
    y = torch.stack(y, 1)
    assert close(mc.memory_caching(one, one, v, one, mc.SWLAMemory(), aggregation="none", coefficients=rates), y)
    W_q, W_k, W_v = 0.5 * randn(3, D, D, seed=2)
    hybrid = scaled_dot_product_attention(*((y @ W).transpose(1, 2) for W in (W_q, W_k, W_v)), is_causal=True, scale=1.0)
    ask, keys, seek = (torch.cat(pair, -1) for pair in ((none, one), (y @ W_k, one), (y @ W_q, 0 * one)))
    o = mc.memory_caching(ask, keys, v, seek, mc.SWLAMemory(), segments=1, init="checkpoint", coefficients=rates)
    assert close(o @ W_v, hybrid.transpose(1, 2))


def test_one_token_of_a_deep_memory_is_a_network():
    "Eq. 25: what a segment of one token leaves in the cache."
    (q, k, v, u), (w1, w2) = tokens(3)[0].detach(), (w.detach() for w in weights())
    _, cache = mc.memory_caching(q, k, v, u, mc.DLAMemory(w1, w2), segments=1, coefficients={"eta": 0.2}, return_cache=True)
    for t in range(3):
        to_w1, to_w2 = slopes({"w1": w1[1], "w2": w2[1]}, k[0, t, 1], v[0, t, 1], squared=False)
        assert close(cache[t]["w1"][0, 1], w1[1] - 0.2 * to_w1) and close(cache[t]["w2"][0, 1], w2[1] - 0.2 * to_w2)
