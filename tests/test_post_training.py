"""Caches for a trained model: equal at the start, in every form and in files; then shares and connectors learn; foreign layers, transformers included."""
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mc
from mc.post_training import Beside, new_parameters, projected, wrap

TOKENS = torch.randint(32, (2, 21), generator=torch.Generator().manual_seed(0))


def model_of(backend="linear", layers=2, **options):
    torch.manual_seed(0)
    mixer = mc.MCConfig(16, 2, backend, aggregation="none", chunk_size=2, **options)
    model = mc.LanguageModel(mc.LMConfig(32, layers, mixer)).double().eval()
    for block in model.blocks:
        if hasattr(block.mixer.backend, "w1"):
            nn.init.normal_(block.mixer.backend.w1, std=0.1)
    return model


def generated(model):
    return model.generate(TOKENS[:, :7], 6, seed=0).all()


def step(loss, parameters, size=0.02):
    "One step down, as Adam's first one is; the slopes stay to be looked at."
    for p in parameters:
        p.grad = None
    loss.backward()
    with torch.no_grad():
        for p in parameters:
            p -= size * p.grad.sign()
    return loss.item()


@pytest.mark.parametrize("backend, way", [("linear", "grm"), ("swla", "ssc"), ("titans", "soup"), ("dla", "residual"), ("gated_delta", "grm")])
def test_it_begins_as_the_model_that_it_was(backend, way):
    "At once bit for bit; padded, with a cache and generating within rounding."
    base = model_of(backend)
    model = wrap(deepcopy(base), segment_size=4, aggregation=way)
    assert torch.equal(model(TOKENS), base(TOKENS))
    mask = torch.tensor([[1] * 21, [0] * 6 + [1] * 15])
    assert torch.allclose(model(TOKENS, mask), base(TOKENS, mask), rtol=0, atol=1e-12)
    caches, told = [None, None], []
    for a, b in ((0, 9), (9, 10), (10, 21)):
        for i, one in enumerate((model, base)):
            y, caches[i] = one.forward_with_cache(TOKENS[:, a:b], caches[i], mask[:, a:b])
            told.append(y)
        assert torch.allclose(told[-2], told[-1], rtol=0, atol=1e-12)
    assert [len(c) for c in caches[0]] == [5, 5] and generated(model) == generated(base)


def test_then_shares_and_connectors_learn_and_the_rest_may_stay(tmp_path):
    base = model_of()
    model = wrap(deepcopy(base), segment_size=4)
    new = new_parameters(model)
    assert new.keys() == {f"blocks.{i}.mixer.{n}" for i in (0, 1) for n in ("share", "connector.weight")}
    assert all((p == 0).all() for p in new.values())
    losses = []
    for i in range(8):
        losses.append(step(F.cross_entropy(model(TOKENS)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()), new.values()))
        learned = {n for n, p in new.items() if p.grad.norm() > 1e-8}
        assert learned == {n for n in new if i or n.endswith("share")}
    assert losses[-1] < losses[0] - 1e-3
    old = base.state_dict()
    assert all(torch.equal(p, old[n]) for n, p in model.state_dict().items() if n in old)
    trace = model.inspect(TOKENS)[1][0]
    assert torch.allclose(trace.gates.sum(-1), torch.ones(()).double()) and not torch.allclose(trace.gates[..., -1], torch.ones(()).double())
    model.save(tmp_path / "m")
    again = mc.LanguageModel.load(tmp_path / "m")
    assert torch.equal(again(TOKENS), model(TOKENS)) and again.config.mixer.share
    later = wrap(deepcopy(base), segment_size=4)              # or what is new alone
    later.load_state_dict({n: p.detach() for n, p in new.items()}, strict=False)
    assert torch.equal(later(TOKENS), model(TOKENS))


def test_a_share_of_one_is_memory_caching():
    base = model_of()
    model = wrap(deepcopy(base), segment_size=4, aggregation="ssc", top_k=1, pool="sum")
    full = mc.LanguageModel(mc.LMConfig(32, 2, mc.MCConfig(16, 2, aggregation="ssc", top_k=1, pool="sum", init="checkpoint", segment_size=4, chunk_size=2))).double()
    for n, p in new_parameters(model).items():
        nn.init.ones_(p) if n.endswith("share") else nn.init.normal_(p)
    full.load_state_dict(model.state_dict(), strict=False)
    assert torch.allclose(model(TOKENS), full(TOKENS), atol=1e-12) and not torch.allclose(model(TOKENS), base(TOKENS))


def test_what_holds_the_old_parameters_still_does_and_other_mixers_stay():
    mixers = [mc.MCConfig(16, 2, aggregation="none"), mc.AttentionConfig(16, 2), mc.MCConfig(16, 2)]
    base = mc.LanguageModel(mc.LMConfig(32, mixers=mixers))
    old, others = {id(p) for p in base.parameters()}, [base.blocks[i].mixer for i in (1, 2)]
    model = wrap(base, segment_size=4)
    assert model is base and old <= {id(p) for p in model.parameters()} and [model.blocks[i].mixer for i in (1, 2)] == others
    assert [getattr(c, "share", None) for c in model.config.layers] == [True, None, False]
    layer = mc.MemoryCachingLayer(mixers[0]).double()
    x = torch.randn(2, 9, 16).double()
    assert torch.equal(wrap(layer, segment_size=4)(x), layer(x))


class Foreign(nn.Module):
    def __init__(self, width=16, num_heads=2):
        super().__init__()
        self.num_heads, self.kind = num_heads, "linear"
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden_states, attention_mask=None, cache=None):
        q, k, v = projected(self, hidden_states)
        if attention_mask is not None:
            v = v * attention_mask[..., None, None]
        read = torch.einsum("bthd,bjhd->bhtj", q, k).tril() @ v.transpose(1, 2)
        return self.o_proj(read.transpose(1, 2).flatten(2)), "more"


def test_a_foreign_layer():
    torch.manual_seed(0)
    base = nn.Sequential(Foreign()).double()
    model, x = wrap(deepcopy(base), layers=lambda part: isinstance(part, Foreign), segment_size=4), torch.randn(2, 15, 16).double()
    layer, mask = model[0], torch.tensor([[1] * 15, [0] * 4 + [1] * 11])
    assert isinstance(layer, Beside) and layer.kind == "linear"
    for given in ({}, {"attention_mask": mask}):
        y, more = layer(hidden_states=x, **given)
        assert more == "more" and torch.equal(y, base[0](x, **given)[0])
    y = layer(x)[0]
    (y * torch.randn(y.shape).double()).sum().backward()
    assert (layer.share.grad.abs() > 1e-3).all() and (layer.connector.weight.grad == 0).all()
    nn.init.constant_(layer.share, 0.4), nn.init.normal_(layer.connector.weight)
    layer(x)[0].square().sum().backward()
    assert layer.connector.weight.grad.norm() > 1e-6
    q, k, v = projected(base[0], x)
    read = lambda **options: mc.memory_caching(q, k, v, layer.connector(x).view_as(q), mc.LinearMemory(), **options)
    mixed = 0.6 * read(aggregation="none") + 0.4 * read(segments=4, init="checkpoint")
    assert torch.allclose(layer(x)[0], base[0].o_proj(mixed.flatten(2)), atol=1e-12)
    padded = layer(x, attention_mask=mask)[0][1, 4:]
    assert torch.allclose(padded, layer(x[1:, 4:])[0][0], atol=1e-12)
    assert not layer.layer.o_proj._forward_pre_hooks
    with pytest.raises(ValueError, match="reads whole sequences: cache must be None"):
        layer(x, cache=object())


def lightning(layer, x):
    "How MiniMax's lightning attention makes q, k, v, and its decay."
    heads = layer.act_fn(layer.qkv_proj(x)).unflatten(-1, (layer.num_attention_heads, -1))
    alpha = torch.exp(-layer.slope_rate[:, 0, 0]).to(x).expand(*x.shape[:2], -1)
    return *heads.split(layer.head_dim, -1), dict(alpha=alpha, beta=0.0, lam=1.0)


def test_a_model_of_transformers():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MiniMaxConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8, block_size=4,
        num_local_experts=2, num_experts_per_tok=1, layer_types=["linear_attention", "full_attention", "linear_attention"], bos_token_id=1, eos_token_id=2, pad_token_id=0)
    base = transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()
    kind = dict(layers="MiniMaxLightningAttention", projections=lightning, memory=mc.SWLAMemory(), at="norm")
    model = wrap(deepcopy(base), segment_size=4, **kind)
    assert [type(layer.self_attn).__name__ for layer in model.model.layers] == ["Beside", "MiniMaxAttention", "Beside"]
    logits = model(TOKENS).logits
    assert torch.equal(logits, base(TOKENS, use_cache=False).logits)
    prompt = TOKENS[:, :8].clamp(min=3)
    greedy = dict(max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert torch.equal(model.generate(prompt, **greedy), base.generate(prompt, **greedy))
    model.requires_grad_(False)
    new = new_parameters(model)
    for p in new.values():
        p.requires_grad_()
    losses = []
    for i in range(4):
        losses.append(step(model(TOKENS, labels=TOKENS).loss, new.values()))
        assert all(p.grad.norm() > 0 for n, p in new.items() if i or n.endswith("share"))
    assert losses[-1] < losses[0] and len(new) == 4
    with pytest.raises(ValueError, match="use_cache=False"):
        model(TOKENS, use_cache=True)
    with pytest.raises(ValueError, match="differs by"):      # a wrong memory is found at the first call
        wrap(deepcopy(base), segment_size=4, **kind | dict(memory=None, projections=lambda *a: lightning(*a)[:3]))(TOKENS)


def test_what_cannot_be_wrapped_is_named():
    plain, foreign = model_of(), nn.Sequential(Foreign())
    for call, said in ((lambda: wrap(mc.LanguageModel(mc.LMConfig(32, 1, mc.MCConfig(16, 2)))), "no Memory Caching layer with aggregation 'none'"),
                       (lambda: wrap(plain, segment_size=0), "segment_size"), (lambda: wrap(plain, init="independent"), "init"),
                       (lambda: wrap(plain, segmentation="logarithmic"), "share needs segmentation"), (lambda: wrap(plain, aggregation="none"), "aggregation 'none' has none"),
                       (lambda: wrap(model_of("titans"), segment_size=5), "whole chunks"), (lambda: wrap(foreign), "layers must be the name of a class"),
                       (lambda: wrap(foreign, layers="Attention"), "chooses none of Foreign"), (lambda: wrap(nn.Sequential(nn.Linear(4, 4)), layers="Linear"), "Linear does not say its width"),
                       (lambda: wrap(3), "model must be a Module"), (lambda: wrap(foreign, layers="Foreign", aggregation="grn"), "did you mean 'grm'")):
        with pytest.raises(ValueError, match=said):
            call()
    assert not new_parameters(plain) and not new_parameters(foreign)  # nothing half done
