"""The layer without what is ours around the memory, and with a share of caching: in every form, in files, and against projections by hand."""
from dataclasses import replace

import pytest
import torch

import mc
from mc.nn.backends import BACKENDS
from mc.nn.model_config import mixer_from_dict, mixer_to_dict
from mc.storage import load_tensors

PLAIN = dict(normalise_qk=False, read_norm=False, output_gate=False)
CONFIGS = [mc.MCConfig(16, 2, backend=b, segment_size=4, chunk_size=2, aggregation=a, **off)
           for b, a in zip(BACKENDS, ("grm", "ssc", "soup", "residual", "top_p"))
           for off in ({f: False} for f in PLAIN)]
CONFIGS += [mc.MCConfig(16, 2, backend=b, segment_size=4, chunk_size=2, conv_size=1, **PLAIN) for b in BACKENDS]
SHARES = [mc.MCConfig(16, 2, backend=b, segment_size=4, chunk_size=2, init="checkpoint", share=True, aggregation=a)
          for b in ("linear", "swla", "titans") for a in ("grm", "ssc")]


def layer_of(config):
    torch.manual_seed(0)
    layer = mc.MemoryCachingLayer(config).double()
    with torch.no_grad():
        layer.conv.proj.weight *= 0.5                      # deep memories diverge with long keys
        if config.share:
            layer.share += torch.tensor([0.3, -0.6])
        if hasattr(layer.backend, "w1"):
            layer.backend.w1.normal_(std=0.1)
    return layer


def inputs(T, B=2, seed=0):
    return torch.randn(B, T, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS + SHARES, ids=str)
def test_every_form_is_the_same_layer(config):
    "At once, from a prompt, token by token, padded with a ragged cache, packed, inspected, and back to a segment's end."
    layer, x = layer_of(config), inputs(11)
    y, near = layer(x), dict(rtol=1e-9, atol=1e-11)
    prompt, cache = layer.forward_with_cache(x[:, :5])
    rows = [prompt]
    for t in range(5, 11):
        y_t, cache = layer.step(x[:, t], cache)
        rows.append(y_t[:, None])
    assert torch.allclose(torch.cat(rows, 1), y, **near)
    mask = torch.tensor([[1] * 11, [0] * 4 + [1] * 7])
    shifted = torch.cat([torch.full((2, 4, 16), torch.nan).double(), x], 1)
    padded = torch.stack([x[0], shifted[1, :11]])
    assert torch.allclose(layer(padded, attention_mask=mask)[1, 4:], y[1, :7], **near)
    a, cache = layer.forward_with_cache(padded[:, :6], None, mask[:, :6])
    b, cache = layer.forward_with_cache(padded[:, 6:10], cache, mask[:, 6:10])
    c, cache = layer.step(padded[:, 10], cache)
    out = torch.cat([a, b, c[:, None]], 1)
    assert torch.allclose(out[0], y[0], **near) and torch.allclose(out[1, 4:], y[1, :7], **near)
    packed = layer(torch.cat([x[:1, :4], x[1:]], 1), cu_seqlens=[0, 4, 15])
    assert torch.allclose(packed[:, :4], y[:1, :4], **near) and torch.allclose(packed[:, 4:], y[1:], **near)
    trace = layer.inspect(x)
    assert torch.isfinite(trace.gates).all() and torch.allclose(layer.step(x[:, 0], trace.cache)[0], layer(torch.cat([x, x[:, :1]], 1))[:, 11], **near)
    if config.aggregation not in ("residual",):
        assert torch.allclose(trace.gates.sum(-1), torch.ones(()).double())


@pytest.mark.parametrize("config", [*CONFIGS[::4], *SHARES[:2]], ids=str)
def test_every_parameter_learns_and_types_are_kept(config):
    layer = layer_of(config)
    layer(inputs(11)).square().sum().backward()
    assert all(p.grad.norm() > 0 for p in layer.parameters())
    assert mc.MemoryCachingLayer(config).bfloat16()(inputs(9).bfloat16()).dtype == torch.bfloat16


def test_the_plain_layer_is_projections_around_the_function():
    config = mc.MCConfig(16, 2, segment_size=4, conv_size=1, pool="sum", **PLAIN)
    layer, x = layer_of(config), inputs(11)
    q, k, v = (x @ layer.conv.proj.weight.T).unflatten(-1, (3, 2, 8)).unbind(2)
    u = (x @ layer.connector.weight.T).unflatten(-1, (2, 8))
    read = mc.memory_caching(q, k, v, u, mc.LinearMemory(), segments=4, pool="sum")
    assert torch.allclose(layer(x), read.flatten(2) @ layer.out.weight.T, atol=1e-12)
    assert sorted(n for n, _ in layer.named_parameters()) == ["connector.weight", "conv.proj.weight", "out.weight"]
    for flag in PLAIN:                                     # each of them changes something
        assert not torch.allclose(layer(x), layer_of(replace(config, **{flag: True}))(x))


def test_a_share_of_zero_is_the_layer_without_caches_to_the_last_bit():
    for config in SHARES:
        torch.manual_seed(0)
        layer, base = (mc.MemoryCachingLayer(c).double() for c in (config, replace(config, aggregation="none", share=False)))
        base.load_state_dict(layer.state_dict(), strict=False)
        x = inputs(23)
        assert (layer.share == 0).all() and torch.equal(layer(x), base(x))
        (layer(x) * inputs(23, seed=1)).sum().backward()
        assert (layer.share.grad.abs() > 1e-3).all()


def test_files_written_before_the_flags_load_and_new_ones_say_only_what_differs(tmp_path):
    old = {"kind": "MCConfig", "d_model": 16, "num_heads": 2, "backend": "linear", "aggregation": "grm"}
    config = mixer_from_dict(old)
    assert (config.normalise_qk, config.read_norm, config.output_gate, config.share) == (True, True, True, False)
    assert not {*PLAIN, "share"} & mixer_to_dict(config).keys()
    plain = mc.LMConfig(16, 1, mc.MCConfig(16, 2, **PLAIN))
    assert mc.LMConfig.from_dict(plain.to_dict()) == plain and plain.to_dict()["mixer"]["read_norm"] is False
    for mixer in (plain.mixer, SHARES[0]):
        model, path = mc.LanguageModel(mc.LMConfig(16, 1, mixer)), tmp_path / "m.safetensors"
        model.save(path)
        again, tokens = mc.LanguageModel.load(path), torch.arange(12)[None]
        assert again.config == model.config and torch.equal(again(tokens), model(tokens))
        assert ("blocks.0.mixer.share" in load_tensors(path)[0]) == mixer.share


def test_flags_that_are_none_are_refused():
    for name in (*PLAIN, "share"):
        with pytest.raises(ValueError, match=f"{name} must be True or False; got 'yes'"):
            mc.MCConfig(16, 2, **{name: "yes"})
    checkpoint = dict(share=True, init="checkpoint")
    for options, said in ((dict(share=True), "share needs init 'checkpoint'; got 'independent'"),
                          (checkpoint | dict(aggregation="none"), "aggregation 'none' has none"),
                          (checkpoint | dict(segmentation="logarithmic"), "share needs segmentation"),
                          (checkpoint | dict(backend="dla", segment_size=6, chunk_size=4), "whole chunks")):
        with pytest.raises(ValueError, match=said):
            mc.MCConfig(16, 2, **options)
