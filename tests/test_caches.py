"""What a cache holds is its own, and it goes on in another type."""
import copy
from itertools import product

import pytest
import torch

import mc
from mc.nn.backends import BACKENDS

pytestmark = pytest.mark.usefixtures("poisoned")

CONFIGS = [mc.MCConfig(16, 2, backend=b, init=i, segmentation=s, segment_size=4, chunk_size=4)
           for b, i, s in product(BACKENDS, ("independent", "checkpoint"), ("constant", "fenwick"))]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.backend}-{c.init}-{c.segmentation}")


def layer_of(config):
    torch.manual_seed(0)
    return mc.MemoryCachingLayer(config)


def tensors(cache):
    return {n: t.clone() for n, t in cache._tensors().items()}


def same(cache, kept):
    return all(torch.equal(t, kept[n]) for n, t in cache._tensors().items())


@each_config
@pytest.mark.parametrize("tokens", [1, 4, 9])
@pytest.mark.parametrize("grad", [False, True])
def test_changing_parameters_in_place_changes_no_cache(config, tokens, grad):
    "An optimiser's step, load_state_dict; after a prefill and after single steps."
    layer, x = layer_of(config), torch.randn(2, 10, 16)
    caches = []
    with torch.set_grad_enabled(grad):
        caches.append(layer.forward_with_cache(x[:, :tokens])[1])
        caches.append(None)
        for t in range(tokens):
            caches[1] = layer.step(x[:, t], caches[1])[1]
    kept = [tensors(c) for c in caches]
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.5)
    assert all(map(same, caches, kept))


@each_config
@pytest.mark.parametrize("tokens", [1, 4, 6])
def test_changing_inputs_in_place_changes_no_cache(config, tokens):
    "Of the layer its x; of the function q, k, v, u and tensors of coefficients and weights."
    layer, x = layer_of(config), torch.randn(2, tokens, 16)
    with torch.no_grad():
        _, cache = layer.forward_with_cache(x)
        kept = tensors(cache)
        x.add_(1)
        assert same(cache, kept)
        memory, rates = layer.backend(x)
        rows = [torch.randn(2, tokens, 2, 8) for _ in range(4)]
        _, cache = mc.memory_caching(*rows, memory, segments=4, segmentation=config.segmentation, init=config.init, chunk_size=4,
                                     coefficients=rates, return_cache=True)
        kept = tensors(cache)
        for tensor in [*rows, *rates.values(), *layer.parameters()]:
            tensor.add_(1)
        assert same(cache, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cache_keeps_no_more_storage_than_it_holds(backend):
    "Else a cache of a prompt would keep the prompt's activations alive."
    layer = layer_of(mc.MCConfig(16, 2, backend=backend, segment_size=16, conv_size=3))
    with torch.no_grad():
        _, cache = layer.forward_with_cache(torch.randn(1, 203, 16))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache._tensors().values()}
    assert sum(storages.values()) <= 1.05 * cache.nbytes


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", [*BACKENDS, "attention"])
def test_layer_and_cache_go_on_in_another_type(backend, kind):
    "The cache moved with the layer, or left as it was; in one step and in a piece that closes segments."
    config = mc.AttentionConfig(16, 2, 3) if backend == "attention" else mc.MCConfig(16, 2, backend=backend, segment_size=4, conv_size=3)
    torch.manual_seed(0)
    layer = mc.LanguageModel(mc.LMConfig(8, 1, config)).blocks[0].mixer
    x = torch.randn(2, 18, 16)
    with torch.no_grad():
        right, (_, cache) = layer(x), layer.forward_with_cache(x[:, :7])
        other = copy.deepcopy(layer).to(kind)
        for given in (cache, cache.to(kind)):
            y, after = other.forward_with_cache(x[:, 7:17].to(kind), given)
            z, _ = other.forward_with_cache(x[:, 17:].to(kind), after)
            both = torch.cat([y, z], 1)
            assert both.dtype == kind and (both.float() - right[:, 7:]).abs().max() < (1e-5 if kind == torch.float64 else 0.03)
            if backend != "attention":
                assert all(leaf.dtype == torch.promote_types(kind, torch.float32) for leaf in after.online.values())


def test_a_cache_on_another_device_is_refused_by_name():
    layer, x = layer_of(mc.MCConfig(16, 2, segment_size=4)), torch.randn(1, 6, 16)
    _, cache = layer.forward_with_cache(x)
    with pytest.raises(ValueError, match="cache must be on the device of x, cpu; it is on meta"):
        layer.step(x[:, 0], cache.to("meta"))
    _, cache = mc.memory_caching(*[torch.randn(1, 6, 2, 8)] * 4, mc.LinearMemory(), segments=4, return_cache=True)
    with pytest.raises(ValueError, match="cache holds a memory .* on meta"):
        mc.memory_caching(*[torch.randn(1, 6, 2, 8)] * 4, mc.LinearMemory(), segments=4, cache=cache.to("meta"))
