"""One graph: layers and models under `torch.compile(fullgraph=True)`, forward, backward and token by token, equal to eager in float32."""
import logging
from itertools import product

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import mc
from mc.nn.attention import AttentionConfig
from mc.nn.model import LanguageModel, LMConfig
from mc.read.ways import AGGREGATIONS
from mc.train.config import TrainConfig
from mc.train.loop import train

MEMORIES = ("linear", "swla", "dla", "titans", "gated_delta")
FEW = [("linear", "grm"), ("titans", "ssc")]
SOME = {("linear", "ssc"), ("dla", "grm")}
cells = pytest.mark.parametrize("memory, way", [pytest.param(*cell, marks=[pytest.mark.slow] * (cell not in SOME)) for cell in product(MEMORIES, AGGREGATIONS)])
few = pytest.mark.parametrize("memory, way", [FEW[0], pytest.param(*FEW[1], marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def anew():
    logging.disable(logging.WARNING)
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    logging.disable(logging.NOTSET)


def layer_of(memory, way, **rest):
    layer = mc.MemoryCachingLayer(mc.MCConfig(8, 2, memory, way, segment_size=4, chunk_size=2, top_k=2, **rest))
    for p in layer.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return layer


def close(found, expected):
    assert found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


def slopes(module, x):
    module.zero_grad()
    y = module(x)
    y.square().mean().backward()
    return [y.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


def same(compiled, plain, x):
    found, expected = slopes(compiled, x), slopes(plain, x)
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        close(a, b)


@cells
def test_every_memory_and_way_is_one_graph_both_ways(memory, way):
    layer = layer_of(memory, way)
    same(torch.compile(layer, fullgraph=True, backend="aot_eager"), layer, torch.randn(2, 10, 8))


@few
def test_a_token_is_the_same_graph_whatever_the_number_of_segments(memory, way):
    layer, x, graphs = layer_of(memory, way), torch.randn(2, 34, 8), CompileCounterWithBackend("eager")
    with torch.no_grad():
        y = layer(x)
        _, cache = layer.forward_with_cache(x[:, :13])
        step = torch.compile(layer.step, fullgraph=True, backend=graphs)
        for t in range(13, 34):
            read, cache = step(x[:, t], cache)
            close(read, y[:, t])
            if t == 21:                                                              # two segments have ended by now
                known = graphs.frame_count
    assert graphs.frame_count == known <= 7 and cache.lengths == (4,) * 8 and cache.position == 34
    other = layer.forward_with_cache(x)[1]
    assert other.about == cache.about and other.running == cache.running
    for name, leaf in cache._tensors().items():
        close(leaf, other._tensors()[name])


@pytest.mark.slow
def test_a_model_is_one_graph_and_decodes_in_as_many_as_its_layer():
    model, tokens = LanguageModel(LMConfig(11, 2, mc.MCConfig(8, 2, segment_size=4))), torch.randint(0, 11, (2, 30))
    graphs = CompileCounterWithBackend("eager")
    same(torch.compile(model, fullgraph=True, backend=graphs), model, tokens)
    assert graphs.frame_count == 1
    torch._dynamo.reset()
    with torch.no_grad():
        logits = model(tokens)
        _, cache = model.forward_with_cache(tokens[:, :13])
        step, graphs.frame_count = torch.compile(model.forward_with_cache, fullgraph=True, backend=graphs), 0
        known = None
        for t in range(13, 30):
            read, cache = step(tokens[:, t : t + 1], cache)
            close(read[:, 0], logits[:, t])
            known = graphs.frame_count if t == 21 else known
    assert graphs.frame_count == known <= 5


def test_another_batch_is_the_same_graph_another_length_is_not():
    layer, graphs = layer_of("linear", "grm"), CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    for batch, length, count in ((2, 10, 1), (3, 10, 2), (5, 10, 2), (4, 11, 3), (4, 10, 3)):
        x = torch.randn(batch, length, 8)
        close(compiled(x), layer(x))
        assert graphs.frame_count == count


@pytest.mark.slow
def test_a_hybrid_and_a_layer_with_parts_of_segments_are_one_graph():
    mixers = [mc.MCConfig(8, 2, "dla", "ssc", segment_size=4, pool_blocks=2, detach_cache=True), AttentionConfig(8, 2, window=4)]
    model = LanguageModel(LMConfig(11, mixers=mixers))
    same(torch.compile(model, fullgraph=True, backend="aot_eager"), model, torch.randint(0, 11, (2, 10)))


@pytest.mark.parametrize("way", ["grm", "ssc"])
@pytest.mark.slow
def test_the_compiler_of_pytorch_computes_what_eager_does(way):
    layer = layer_of("dla" if way == "ssc" else "linear", way)
    same(torch.compile(layer, fullgraph=True), layer, torch.randn(1, 10, 8))


def test_training_compiles_one_graph(monkeypatch):
    config, graphs, plain = LMConfig(11, 1, mc.MCConfig(8, 2, segment_size=4)), CompileCounterWithBackend("eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, backend: plain(model, backend={"inductor": graphs}[backend]))
    tokens = torch.randint(0, 11, (3, 2, 11))
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        batch = lambda step, gen: (tokens[step, :, :-1], tokens[step, :, 1:])
        losses.append(train(LanguageModel(config), batch, TrainConfig(3, 0.01), progress=False, compile=compile))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and graphs.frame_count == 1
