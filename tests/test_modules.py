"""What PyTorch's own tools do with a layer's modules: hooks, adapters, quantisation, checkpoints, sharding."""
import copy

import pytest
import torch
from torch import nn

import mc

TOKENS = torch.randint(32, (2, 11), generator=torch.Generator().manual_seed(0))
MIXERS = [mc.MCConfig(16, 2, backend=b, aggregation=a, segment_size=4, chunk_size=3, top_k=1)
          for b, a in [("linear", "grm"), ("swla", "residual"), ("dla", "soup"), ("titans", "ssc"), ("gated_delta", "grm")]] + [mc.AttentionConfig(16, 2)]
each_mixer = pytest.mark.parametrize("mixer", MIXERS, ids=lambda m: getattr(m, "backend", "attention"))


def model_of(mixer, layers=2):
    torch.manual_seed(0)
    return mc.LanguageModel(mc.LMConfig(32, layers, mixer))


@each_mixer
@pytest.mark.parametrize("way", ["forward", "prefill", "step"])
def test_a_forward_hook_on_every_module_is_called_once_for_a_pass(mixer, way):
    model, called = model_of(mixer), []
    for name, part in model.named_modules():
        part.register_forward_hook(lambda *_, name=name: called.append(name))
    if way == "step":
        _, caches = model.forward_with_cache(TOKENS)
        called.clear()
        model.forward_with_cache(TOKENS[:, :1], caches)
    else:
        model(TOKENS) if way == "forward" else model.forward_with_cache(TOKENS)
    told = {name: called.count(name) for name, part in model.named_modules()}
    # the embedding makes vectors and logits; a list of blocks is never called, and the model's hook fires for `forward` only
    once = {n: 2 if n == "embedding" else 0 if n == "blocks" or (not n and way != "forward") else 1 for n in told}
    assert told == once


@pytest.mark.parametrize("call", ["forward_with_cache", "step"])
def test_hooks_of_a_layer_fire_for_each_way_to_call_it(call):
    layer, called = mc.MemoryCachingLayer(mc.MCConfig(16, 2)), []
    layer.register_forward_hook(lambda *_: called.append(1))
    getattr(layer, call)(torch.randn(1, 16) if call == "step" else torch.randn(1, 3, 16))
    assert called == [1]


class Adapter(nn.Module):
    "A low-rank addition to a linear layer, without an attribute `weight`."

    def __init__(self, base):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Apart(nn.Module):
    "Any module, behind another name."

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, *args):
        return self.base(*args)


@each_mixer
def test_every_projection_can_be_wrapped(mixer):
    model = model_of(mixer)
    right, wrapped = model(TOKENS), copy.deepcopy(model)
    for name, part in reversed(list(wrapped.named_modules())):              # inner ones first
        parent, _, last = name.rpartition(".")
        if isinstance(part, nn.Linear):
            setattr(wrapped.get_submodule(parent), last, Adapter(part))
        elif last in ("embedding", "norm", "mixer_norm", "mlp_norm", "conv", "backend"):
            setattr(wrapped.get_submodule(parent), last, Apart(part))
    assert torch.allclose(wrapped(TOKENS), right, atol=1e-6)
    wrapped(TOKENS).square().sum().backward()
    assert sum(isinstance(m, Apart) for m in wrapped.modules()) >= 10
    assert all(p.grad is not None and p.grad.norm() > 0 for n, p in wrapped.named_parameters() if n.endswith("up.weight"))


@pytest.mark.filterwarnings("ignore:torch")                               # deprecated there, and still what people use
@each_mixer
def test_dynamic_quantisation_is_close(mixer):
    model = model_of(mixer).eval()
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(m) is nn.Linear for m in small.modules())
    with torch.no_grad():
        assert (small(TOKENS) - model(TOKENS)).norm() < 0.25 * model(TOKENS).norm()    # 8 bits: .03, of SWLA .17


@each_mixer
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints_on_mixers_change_no_gradient(mixer, reentrant):
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as c

    plain, spared, passes = model_of(mixer), model_of(mixer), []
    for block in spared.blocks:
        block.mixer.register_forward_pre_hook(lambda *_: passes.append(1))
    kind = c.CheckpointImpl.REENTRANT if reentrant else c.CheckpointImpl.NO_REENTRANT
    for block in spared.blocks:
        block.mixer = c.checkpoint_wrapper(block.mixer, checkpoint_impl=kind)
    for model in (plain, spared):
        model(TOKENS).square().sum().backward()
    assert len(passes) == 4                                               # each mixer once more on the way back
    for a, b in zip(plain.parameters(), spared.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5, atol=1e-6)


def sharded(rank, port, answers):
    import os

    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    mesh, worst = init_device_mesh("cpu", (2,)), 0.0
    for mixer in MIXERS:
        alone, model = model_of(mixer), model_of(mixer)
        for block in model.blocks:
            fully_shard(block.mixer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        model(TOKENS[rank : rank + 1]).square().sum().backward()
        alone(TOKENS).square().sum().div(2).backward()
        for a, b in zip(model.parameters(), alone.parameters(), strict=True):
            worst = max(worst, (a.grad.full_tensor() - b.grad).abs().max().item() / b.grad.abs().max().item())
    answers.put(worst)
    dist.destroy_process_group()


def test_mixers_can_be_sharded():
    "fully_shard on each mixer and on the model, two processes: the gradients of the whole batch in one."
    import socket

    import torch.multiprocessing as mp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(sharded, (port, answers), nprocs=2)
    assert max(answers.get(), answers.get()) < 1e-4
