"""mc.route: the routing of mc.memory_caching for projections of one's own, against the passes of every memory."""
import pytest
import torch

import mc
from cells import CELLS, C, coefficients_of, memory_of, rules_of, segments_of, tokens
from mc.functional import one_pass
from mc.options import OPTIONS

FEW = [cell for cell in CELLS if cell[0] in ("linear", "titans")]


@pytest.mark.parametrize("name, aggregation, cut, init", FEW, ids="-".join)
def test_routes_are_those_of_the_pass(name, aggregation, cut, init):
    (q, k, v, u), rates = tokens(13)
    rules, segments = rules_of(aggregation, cut, init, pool="sum"), segments_of(cut, 13)
    memory = memory_of(name)
    with torch.no_grad():
        out = one_pass(q, k, v, u, memory, rules, segments, coefficients_of(memory, rates))
        found = mc.route(u, k, segments=segments, **{o: getattr(rules, o) for o in OPTIONS})
    for part in ("scores", "gates", "chosen"):
        a, b = getattr(found, part), getattr(out, part)
        assert torch.equal(a, b) or torch.allclose(a, b, rtol=1e-12, atol=0), part
    assert found.bounds == out.bounds


def test_padded_and_packed_sequences_are_routed_as_if_alone():
    (_, k, _, u), _ = tokens(11)
    alone = [mc.route(u[[0]], k[[0]], segments=C), mc.route(u[[1], :7], k[[1], :7], segments=C)]
    bad = torch.full_like(u[[1], :4], torch.nan)
    both = [torch.stack([a[0], torch.cat([bad[0], a[1, :7]])]) for a in (u, k)]
    padded = mc.route(*both, segments=C, attention_mask=torch.tensor([[1] * 11, [0] * 4 + [1] * 7]))
    packed = mc.route(*(torch.cat([a[[0]], a[[1], :7]], 1) for a in (u, k)), segments=C, cu_seqlens=[0, 11, 18])
    for name, gone in (("scores", -torch.inf), ("gates", 0), ("chosen", 0)):
        a, b = getattr(padded, name), getattr(packed, name)
        n = getattr(alone[1], name).shape[-1] - 1
        assert torch.equal(a[[0]], getattr(alone[0], name)) and torch.equal(b[:, :11], a[[0]])
        for some in (a[[1], 4:], b[:, 11:]):
            assert torch.equal(torch.cat([some[..., :n], some[..., -1:]], -1), getattr(alone[1], name))
            assert (some[..., n:-1] == gone).all()
        assert (a[1, :4] == gone).all()


def test_gradients_reach_connectors_and_keys():
    (_, k, _, u), _ = tokens(9)
    for a in torch.autograd.grad(mc.route(u, k, segments=C).gates[..., 0].sum(), (u, k)):
        assert a.norm() > 0


def test_what_cannot_be_routed_is_refused():
    (_, k, _, u), _ = tokens(9)
    for call, said in ((lambda: mc.route(u[0], k), "u must be a tensor"), (lambda: mc.route(u, k[:, :3]), "k must be a tensor"),
                       (lambda: mc.route(u, k.float()), "k must be torch.float64"), (lambda: mc.route(u / 0, k), "u contains NaN"),
                       (lambda: mc.route(u, k, segments=[4, 4]), "add up to 8"), (lambda: mc.route(u, k, pool="means"), "did you mean 'mean'")):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(TypeError, match="route.. got an unexpected keyword argument 'topk'"):
        mc.route(u, k, topk=2)
