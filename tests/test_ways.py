"""The table of ways: its rows work in every form, a new row too, and a name that it lacks is refused everywhere."""
import subprocess
import sys
from itertools import combinations

import pytest
import torch

import mc
from cells import C, CELLS, MEMORIES, assert_same, call, outcome, randn, rules_of, segments_of, tokens
from mc.costs import costs
from mc.functional import one_pass
from mc.options import OPTIONS, Rules, check_rules
from mc.read.router import gate
from mc.read.sparse import sparse
from mc.read.top_p import choose_share
from mc.read.ways import WAYS, Way

INF = float("inf")


@pytest.fixture
def own_way():
    "A way that reads the oldest memory that a token sees."
    WAYS["oldest"] = Way("oldest", sparse, choose=lambda r, rules: torch.where(r > -INF, 1, 0)[..., :-1].argmax(-1, keepdim=True)
                         .where((r[..., :-1] > -INF).any(-1, keepdim=True), -1) if r.shape[-1] > 1 else r.new_zeros(*r.shape[:-1], 0).long())
    yield "oldest"
    del WAYS["oldest"]


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("cut", ["constant", "fenwick"])
def test_a_new_row_works_in_every_form(own_way, name, cut):
    rules, T = rules_of(own_way, cut, "independent"), 19
    fast, plain = (outcome(form, name, rules, segments_of(cut, T), T) for form in ("parallel", "sequential"))
    assert_same(fast, plain)
    assert fast[1].chosen[..., :-1].any() and (fast[1].chosen.sum(-1) <= 2).all()
    (x, rates), cache, rows = tokens(T, seed=T), None, []
    with torch.no_grad():
        for t in range(T):
            out = call("parallel", name, rules, C, x[:, :, t : t + 1], rates[:, :, t : t + 1], cache)
            rows, cache = [*rows, out.y], out.cache
    assert torch.allclose(torch.cat(rows, 1), plain[0]["y"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("refuse", [
    lambda: one_pass(*randn(4, 1, 3, 1, 2), mc.LinearMemory(), Rules("grn"), 2),
    lambda: one_pass(*randn(4, 1, 3, 1, 2), mc.LinearMemory(), Rules("grn"), 2, implementation="sequential"),
    lambda: one_pass(*randn(4, 1, 1, 1, 2), mc.LinearMemory(), Rules("grn"), 2),
    lambda: mc.memory_caching(*randn(4, 1, 3, 1, 2), mc.LinearMemory(), aggregation="grn"),
    lambda: mc.MCConfig(8, 2, aggregation="grn"), lambda: costs("grn", 64), lambda: gate(randn(3), Rules("grn"))])
def test_an_unknown_way_is_an_error_everywhere(refuse):
    with pytest.raises(ValueError, match="grm.*'?grn'?|'?grn'?.*grm"):
        refuse()


@pytest.mark.parametrize("p", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_top_p_is_the_smallest_set(p):
    "By trying all sets, ties and memories that do not exist included."
    gen = torch.Generator().manual_seed(int(100 * p))
    for trial in range(40):
        n = 1 + trial % 5
        r = torch.randn(n + 1, generator=gen, dtype=torch.float64).round(decimals=trial % 3)
        r[:-1][torch.rand(n, generator=gen) < 0.2] = -INF
        gates, chosen = r.softmax(0), [i for i in choose_share(r, p).tolist() if i >= 0]
        exists = [i for i in range(n) if r[i] > -INF]
        enough = [s for size in range(len(exists) + 1) for s in combinations(exists, size) if gates[[*s, n]].sum() > p + 1e-12]
        least = min(map(len, enough), default=len(exists))
        assert len(set(chosen)) == len(chosen) == least and set(chosen) <= set(exists)
        assert all(gates[i] >= gates[j] for i in chosen for j in set(exists) - set(chosen))


def test_top_p_between_none_and_grm():
    q, k, v, u = randn(4, 2, 30, 2, 5)
    read = lambda way, **options: one_pass(q, k, v, u, mc.LinearMemory(), Rules(way, **options), 4)
    assert torch.equal(read("top_p", top_p=1.0).chosen, read("grm").chosen)
    assert torch.allclose(read("top_p", top_p=1.0).y, read("grm").y, rtol=1e-12)
    assert not read("top_p", top_p=0.0).chosen[..., :-1].any()


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), "0.9", None, True])
def test_top_p_is_a_share(bad):
    with pytest.raises(ValueError, match="top_p must be"):
        mc.MCConfig(8, 2, aggregation="top_p", top_p=bad)


def test_options_are_listed_once():
    "Function, layer and rules have the names, defaults and descriptions of the one dataclass."
    import inspect
    from dataclasses import fields
    keywords = inspect.signature(mc.memory_caching).parameters
    config = {f.name: f.default for f in fields(mc.MCConfig)}
    for name, option in OPTIONS.items():
        assert keywords[name].default == config[name] == option.default
        assert f"\n{name}: " in mc.memory_caching.__doc__ and f"\n{name}: " in mc.MCConfig.__doc__
    assert check_rules({"top_k": 3}) == {"top_k": 3}
    with pytest.raises(TypeError, match="unexpected keyword argument 'agregation'.*aggregation"):
        mc.memory_caching(*randn(4, 1, 3, 1, 2), mc.LinearMemory(), agregation="grm")


def test_options_without_docstrings():
    code = "import mc; mc.MCConfig(8, 2); assert mc.memory_caching.__doc__ is None"
    assert subprocess.run([sys.executable, "-OO", "-c", code]).returncode == 0


def test_every_way_is_tried_in_every_cell():
    assert {cell[1] for cell in CELLS} == set(WAYS)
