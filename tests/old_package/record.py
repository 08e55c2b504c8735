"""What memory-caching 0.1.0 computes, recorded: python record.py, in an environment with `pip install memory-caching==0.1.0`.

Writes outputs.safetensors (an input, the weights of one layer, and the outputs of that layer under many options, which the header
lists), layer.pt (a state dict as torch.save wrote it) and model.pt (its small language model, as its training scripts saved it,
with logits beside it in outputs.safetensors). Float32, seed 0.
"""
import json
from dataclasses import asdict, replace
from pathlib import Path

import memory_caching as old
import torch
from memory_caching.models import _build_backend, build_tiny_model_from_spec
from safetensors.torch import save_file

HERE = Path(__file__).parent
BASE = old.MCConfig(d_model=8, num_heads=2, segment_size=4)
CASES = {f"{b}-{a}-{i}": dict(backend=b, aggregation=a, state_init_mode=i)
         for b in ("linear", "swla") for a in ("grm", "residual", "soup", "ssc") for i in ("restart", "checkpoint")}
for case in CASES.values():
    if case["backend"] == "swla":
        case["swla"] = old.SWLAConfig(alpha=0.9, beta=0.2, lam=0.7)
CASES |= {
    "temperature": dict(softmax_temperature=0.5), "queries": dict(use_q_as_u=True, aggregation="ssc", ssc_top_k=1),
    "logarithmic": dict(segmentation="logarithmic"), "detached": dict(detach_cached_states=True, detach_cached_context=True),
    "dla": dict(backend="dla", dla=old.DLAConfig(memory_width=12, momentum=0.3)),
    "dla-l2": dict(backend="dla", aggregation="soup", dla=old.DLAConfig(memory_depth=3, objective="l2", inner_update_mode="differentiable")),
    "titans": dict(backend="titans", state_init_mode="restart"),
    "titans-descent": dict(backend="titans", aggregation="ssc", titans=old.TitansConfig(update_convention="gradient_descent", retention_alpha=0.9)),
    "titans-dot": dict(backend="titans", aggregation="residual", titans=old.TitansConfig(objective="dot")),
}
SPEC = dict(model_family="tiny_mc_lm", vocab_size=16, d_model=8, aggregation="ssc", segment_size=3)

if __name__ == "__main__":
    torch.manual_seed(0)
    tensors, configs = {"x": torch.randn(1, 14, 8)}, {}
    weights = old.MemoryCachingLayer(config=BASE, backend=old.LinearMemoryBackend()).state_dict()
    weights = {name: 2 * w for name, w in weights.items()}    # scores that differ
    for name, case in CASES.items():
        config = replace(BASE, **case)
        layer = old.MemoryCachingLayer(config=config, backend=_build_backend(config))
        layer.load_state_dict(weights)
        tensors[f"y.{name}"], configs[name] = layer(tensors["x"]).detach(), asdict(config)
    model = build_tiny_model_from_spec(SPEC)
    tensors["tokens"] = torch.randint(16, (1, 14))
    tensors["logits"] = model(tensors["tokens"]).detach()
    torch.save(weights, HERE / "layer.pt")
    torch.save({"model_spec": SPEC, "model_state": model.state_dict(), "step": 0}, HERE / "model.pt")
    about = {"configs": json.dumps(configs), "package": f"memory-caching {old.__version__}", "torch": torch.__version__, "made by": "tests/old_package/record.py"}
    save_file(tensors | {f"w.{name}": w for name, w in weights.items()}, HERE / "outputs.safetensors", about)
