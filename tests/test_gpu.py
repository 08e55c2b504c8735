"""What must be so on a GPU: the token loop on the CPU is the definition there, too. Without a GPU nothing of it runs."""
import copy

import pytest
import torch

from cells import C, CELLS, MEMORIES, assert_same, outcome, rules_of, segments_of
from mc.evidence.experiments import Experiment
from mc.evidence.measured import measure
from mc.evidence.sweeps import measure_all
from mc.evidence.variants import Sizes
from mc.nn.generation import generate
from mc.nn.attention import AttentionConfig
from mc.nn.layer import MCConfig, MemoryCachingLayer
from mc.nn.model import LanguageModel, LMConfig
from mc.read.ways import AGGREGATIONS
from mc.tasks.needles import Needles
from mc.train import TrainConfig, open_fabric, train

if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)


@pytest.mark.parametrize("name, aggregation, cut, init", CELLS)
def test_the_parallel_form_there_is_the_token_loop_here(name, aggregation, cut, init):
    "Eq. 4-5, outputs, states and gradients in float64."
    for T, before in ((2 * C + 3, 0), (5, 2 * C + 2)) if cut in ("constant", "fenwick") else ((2 * C + 3, 0),):
        rules, segments = rules_of(aggregation, cut, init), C if before else segments_of(cut, T)
        there = outcome("parallel", name, rules, segments, T, before, device="cuda")
        assert_same(there, outcome("sequential", name, rules, segments, T, before))


LAYERS = [(memory, way) for memory in MEMORIES for way in AGGREGATIONS]


def layer_of(memory, way, **more):
    torch.manual_seed(0)
    return MemoryCachingLayer(MCConfig(32, 2, backend=memory, aggregation=way, segment_size=8, chunk_size=4, **more))


@pytest.mark.parametrize("memory, way", LAYERS)
def test_a_layer_in_its_three_uses(memory, way):
    "All at once, token after token, and back on the CPU."
    layer, x = layer_of(memory, way).double(), torch.randn(2, 29, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    there = copy.deepcopy(layer).cuda()
    with torch.no_grad():
        whole, (y, cache) = layer(x), there.forward_with_cache(x[:, :20].cuda())
        rows = [y]
        for t in range(20, 29):
            y, cache = there.step(x[:, t].cuda(), cache)
            rows.append(y[:, None])
        assert torch.allclose(torch.cat(rows, 1).cpu(), whole, rtol=1e-9, atol=1e-11)
        on, _ = layer.step(x[:, 0], cache.to("cpu"))
        assert torch.allclose(on, there.step(x[:, 0].cuda(), cache)[0].cpu(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("memory, way", LAYERS)
def test_a_layer_in_bfloat16_is_near(memory, way):
    layer, x = layer_of(memory, way).cuda(), torch.randn(2, 64, 32, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    small = copy.deepcopy(layer).bfloat16()
    y, near = layer(x), small(x.bfloat16())
    near.float().square().mean().backward()
    assert near.dtype == torch.bfloat16 and all(p.grad is None or p.grad.isfinite().all() for p in small.parameters())
    if way != "ssc":                                                              # which memories are the best may change
        assert (near.float() - y).norm() < 0.1 * y.norm()


@pytest.mark.parametrize("memory, way", LAYERS)
def test_nothing_waits_for_the_device(memory, way):
    "A forward and a backward pass after the first ask the device for no number."
    layer, x = layer_of(memory, way).cuda(), torch.randn(2, 64, 32, device="cuda")
    layer(x).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("memory, way", [("linear", "grm"), ("linear", "ssc"), ("dla", "grm")])
def test_a_compiled_layer(memory, way):
    layer, x = layer_of(memory, way).cuda(), torch.randn(2, 64, 32, device="cuda")
    y, fast = layer(x), torch.compile(layer, fullgraph=True)(x)
    assert (fast - y).norm() < 1e-3 * y.norm()


@pytest.mark.parametrize("way", [*AGGREGATIONS, "attention"])
def test_a_model_generates_the_same(way):
    torch.manual_seed(0)
    mixer = AttentionConfig(32, 2) if way == "attention" else MCConfig(32, 2, aggregation=way, segment_size=8)
    model = LanguageModel(LMConfig(vocab_size=64, num_layers=2, mixer=mixer)).double().eval()
    prompt = torch.randint(64, (2, 21), generator=torch.Generator().manual_seed(0))
    here = generate(model, prompt, 12, temperature=0).all()
    assert generate(copy.deepcopy(model).cuda(), prompt.cuda(), 12, temperature=0).all() == here


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training(precision, tmp_path):
    pytest.importorskip("lightning_fabric")
    task = Needles(16, 32, 2)
    model = LanguageModel(LMConfig(vocab_size=16, num_layers=1, mixer=MCConfig(32, 2, segment_size=8))).cuda()
    fabric = open_fabric(accelerator="cuda", precision=precision)
    losses = train(model, lambda step, g: task.sample(8, g)[:2], TrainConfig(30, 0.01), fabric=fabric, progress=False)
    assert losses[-1] < losses[0]


def test_an_experiment(tmp_path):
    "A run and its readings, in workers of their own, and their records."
    task = Needles(32, 32, 4)
    one = Experiment(task, (Needles(32, 64, 4),), (0.01,), 20, 4, 20, Sizes(1, 32, 4, 8), sequences=8, device="cuda")
    folder = tmp_path / "needles/tiny"
    made = measure_all([one.run("ssc", s, 0.01) for s in (0, 1)], folder, "a test", 2)
    made += [measure(one.reading(f"ssc-{r}", 0, "needles/ssc-seed0", "ssc", r), folder, "a test") for r in ("oracle", "random", "signed", "fading")]
    assert {r["device"] for r in made} == {torch.cuda.get_device_name()} and {r["settings"]["device"] for r in made} == {"cuda"}
    assert made[2]["scores"][0]["routing"]["looked_at"] == 1
