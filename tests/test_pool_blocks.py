"""Several pools for each segment: one function in all forms, through every door, and refused where it has no meaning."""
from dataclasses import replace

import pytest
import torch

import mc
from cells import C, assert_same, call, outcome, rules_of, tokens
from mc.nn.model import LanguageModel, LMConfig

pytestmark = pytest.mark.usefixtures("poisoned")
CELLS = [("linear", "grm"), ("linear", "ssc"), ("swla", "top_p"), ("dla", "soup"), ("titans", "ssc"), ("gated_delta", "grm")]


@pytest.mark.parametrize("before", [0, 2, 2 * C + 3])
@pytest.mark.parametrize("change", [{"pool_blocks": 2}, {"pool_blocks": 4, "pool": "sum"}, {"pool_blocks": 2, "init": "checkpoint"}], ids=str)
@pytest.mark.parametrize("name, aggregation", CELLS)
def test_both_forms_are_one_function(name, aggregation, change, before):
    rules = rules_of(aggregation, "constant", change.get("init", "independent"), **{n: a for n, a in change.items() if n != "init"})
    for T in (1, C + 1, 4 * C - 1):
        assert_same(outcome("parallel", name, rules, C, T, before), outcome("sequential", name, rules, C, T, before))


def test_a_segment_is_scored_by_its_best_part():
    "The score is the largest product of the connector with the mean of a part's keys so far."
    (x, rates), rules = tokens(3 * C), rules_of("grm", "constant", "independent", pool_blocks=2)
    x = x.detach()
    scores = call("parallel", "linear", rules, C, x, rates.detach()).scores / rules.gate_scale
    _, k, _, u = x
    for t in (C, C + 1, 2 * C + 2, 3 * C - 1):
        for s in range(t // C + 1):
            keys = k[:, s * C : min((s + 1) * C, t + 1)]
            parts = [part.mean(1) for part in keys.split(C // 2, 1)]
            best = torch.stack([(u[:, t] * part).sum(-1) for part in parts]).amax(0)
            column = -1 if s == t // C else s
            assert torch.allclose(scores[:, t, :, column], best)


def test_parts_change_the_choice_and_one_part_changes_nothing():
    (x, rates) = tokens(4 * C)
    y = {n: call("parallel", "linear", rules_of("ssc", "constant", "independent", top_k=1, pool_blocks=n), C, x, rates) for n in (1, 2)}
    assert not torch.equal(y[1].chosen, y[2].chosen)
    plain = call("parallel", "linear", rules_of("ssc", "constant", "independent", top_k=1), C, x, rates)
    assert torch.equal(y[1].y, plain.y)


def model(**options):
    torch.manual_seed(0)
    mixer = mc.MCConfig(16, 2, segment_size=8, aggregation="ssc", top_k=2, pool_blocks=4, **options)
    return LanguageModel(LMConfig(32, 2, mixer)).double().eval()


@torch.no_grad()
def test_token_by_token_ragged_and_all_at_once_agree(tmp_path):
    one, x = model(), torch.randint(32, (3, 29), generator=torch.Generator().manual_seed(1))
    whole, cache = one(x), None
    for t in range(29):
        y, cache = one.forward_with_cache(x[:, t : t + 1], cache)
        assert torch.allclose(y[:, 0], whole[:, t], atol=1e-9)
    mask = torch.ones(3, 29, dtype=torch.int64)
    mask[1, :5], mask[2, 20:] = 0, 0
    padded, cache = one.forward_with_cache(x, attention_mask=mask)
    assert torch.allclose(padded[1, 5:], one(x[1:2, 5:])[0], atol=1e-9)
    more = torch.randint(32, (3, 3), generator=torch.Generator().manual_seed(2))
    for t in range(3):
        y, cache = one.forward_with_cache(more[:, t : t + 1], cache)
        alone = one(torch.cat([x[2:, :20], more[2:, : t + 1]], 1))
        assert torch.allclose(y[2, -1], alone[0, -1], atol=1e-9)
    cache.save(tmp_path / "cache")
    y, _ = one.forward_with_cache(more[:, :2], mc.ModelCache.load(tmp_path / "cache"))
    assert torch.allclose(y, one.forward_with_cache(more[:, :2], cache)[0], atol=1e-12)


@torch.no_grad()
def test_going_back_and_a_cache_on_disk(tmp_path):
    layer = model().blocks[0].mixer
    x = torch.randn(2, 20, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    whole, cache = layer.forward_with_cache(x)
    again, _ = layer.forward_with_cache(x[:, 16:], layer.rewind(cache, 2))
    assert torch.allclose(again, whole[:, 16:], atol=1e-9)
    assert cache.pools.shape == (2, 2, 2, 4 * 8) and cache.key_sum.shape == (2, 2, 4 * 8)


def test_a_saved_model_knows_its_parts_and_earlier_files_read_as_one(tmp_path):
    one = model()
    one.save(tmp_path / "model")
    assert LanguageModel.load(tmp_path / "model").config.mixer.pool_blocks == 4
    content = one.config.to_dict()
    assert content["mixer"].pop("pool_blocks") == 4
    assert LMConfig.from_dict(content).mixer.pool_blocks == 1
    assert "pool_blocks" not in replace(one.config, mixer=replace(one.config.mixer, pool_blocks=1)).to_dict()["mixer"]


@pytest.mark.parametrize("options, said", [
    (dict(pool_blocks=3), "3 for 8"), (dict(pool_blocks=16), "16 for 8"), (dict(pool_blocks=0), ">= 1"),
    (dict(pool_blocks=2, segmentation="fenwick"), "fenwick"), (dict(pool_blocks=2, segmentation="logarithmic"), "logarithmic"),
    (dict(pool_blocks=2, pool="position"), "position"), (dict(pool_blocks=2, gate="position"), "position"), (dict(pool_blocks=2.5), "2.5"),
], ids=str)
def test_what_has_no_parts_is_refused(options, said):
    with pytest.raises(ValueError, match="pool_blocks") as caught:
        mc.MCConfig(16, 2, segment_size=8, **options)
    assert said in str(caught.value)


def test_lists_of_segments_have_no_equal_parts_and_ways_without_gates_need_none():
    q = torch.randn(4, 1, 8, 2, 4)
    with pytest.raises(ValueError, match="pool_blocks must divide"):
        mc.memory_caching(*q, mc.LinearMemory(), segments=[4, 4], pool_blocks=2)
    for way in ("none", "residual"):
        y = mc.memory_caching(*q, mc.LinearMemory(), segments=[4, 4], pool_blocks=2, aggregation=way)
        assert torch.equal(y, mc.memory_caching(*q, mc.LinearMemory(), segments=[4, 4], aggregation=way))
