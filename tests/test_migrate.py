"""Checkpoints of memory-caching 0.1.0: outputs as recorded from it (tests/old_package), nothing of a file run, and clear words."""
import json
import os
import pickle
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

import mc
import mc.migrate

HOME = Path(__file__).parent / "old_package"
RECORDED = load_file(HOME / "outputs.safetensors")
with safetensors.safe_open(HOME / "outputs.safetensors", "pt") as file:
    CONFIGS = json.loads(file.metadata()["configs"])
WEIGHTS = {n.removeprefix("w."): w for n, w in RECORDED.items() if n.startswith("w.")}
DEEP = [name for name, config in CONFIGS.items() if config["backend"] in ("dla", "titans")]


def near(a, b):
    "Equal to 1e-5 of what they hold: float32, summed in another order."
    return torch.allclose(a, b, rtol=0, atol=1e-5 * max(1.0, b.abs().max().item()))


@pytest.mark.filterwarnings("ignore:the .* memories of memory-caching")
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_that_the_old_package_gave(name):
    layer, x = mc.migrate.load(HOME / "layer.pt", CONFIGS[name]), RECORDED["x"]
    y = RECORDED[f"y.{name}"]
    assert isinstance(layer, mc.MemoryCachingLayer) and near(layer(x), y)
    if name != "logarithmic":                              # which cannot be cut: the old one could not go on either
        prompt, cache = layer.forward_with_cache(x[:, :6])
        rows = [prompt]
        for t in range(6, 14):
            y_t, cache = layer.step(x[:, t], cache)
            rows.append(y_t[:, None])
        assert near(torch.cat(rows, 1), y)


def test_the_cases_differ_and_cover_every_way_and_both_inits():
    ys = [y for n, y in RECORDED.items() if n.startswith("y.") and n not in ("y.detached",)]
    close = [(i, j) for i in range(len(ys)) for j in range(i) if torch.allclose(ys[i], ys[j], atol=1e-4)]
    soups = [n for n in CONFIGS if CONFIGS[n]["aggregation"] == "soup" and CONFIGS[n]["backend"] in ("linear", "swla")]
    assert len(close) == len(soups)                        # the soup of a matrix memory is its GRM, and no more are alike


def test_its_small_model():
    model = mc.migrate.load(HOME / "model.pt")             # options in the file
    assert model.mc.config.segment_size == 3 and torch.allclose(model(RECORDED["tokens"]), RECORDED["logits"], atol=1e-5)
    again = mc.migrate.load(HOME / "model.pt", aggregation="grm")
    assert not torch.allclose(again(RECORDED["tokens"]), RECORDED["logits"], atol=1e-4)
    layer = mc.migrate.load(HOME / "model.pt", prefix="mc.")
    assert torch.equal(layer(RECORDED["x"]), model.mc(RECORDED["x"]))


def test_other_files_that_hold_a_layer(tmp_path):
    y, config = RECORDED["y.linear-grm-restart"], CONFIGS["linear-grm-restart"]
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    save_file({f"blocks.1.{n}": w for n, w in WEIGHTS.items()} | {"blocks.1x": torch.zeros(1)}, tmp_path / "b.safetensors", {"config": json.dumps(config)})
    torch.save({"state_dict": WEIGHTS, "config": config}, tmp_path / "c.pt")
    torch.save({f"{i}.{n}": w * i for i in (1, 2) for n, w in WEIGHTS.items()}, tmp_path / "d.pt")
    options = dict(num_heads=2, segment_size=4, state_init_mode="restart")
    for layer in (mc.migrate.load(tmp_path / "a.safetensors", **options), mc.migrate.load(tmp_path / "b.safetensors"),
                  mc.migrate.load(str(tmp_path / "c.pt")), mc.migrate.load(tmp_path / "d.pt", prefix="1.", **options),
                  mc.migrate.layer_of(WEIGHTS, config)):
        assert torch.allclose(layer(RECORDED["x"]), y, atol=1e-5)
    half = mc.migrate.layer_of({n: w.bfloat16() for n, w in WEIGHTS.items()}, config)
    assert half(RECORDED["x"].bfloat16()).dtype == torch.bfloat16


def test_the_old_configuration_itself():
    @dataclass(frozen=True)
    class SWLAConfig:
        alpha: float = 0.9
        beta: float = 0.2
        lam: float = 0.7

    @dataclass(frozen=True)
    class MCConfig:
        d_model: int = 8
        num_heads: int = 2
        backend: str = "swla"
        swla: SWLAConfig = field(default_factory=SWLAConfig)
        segment_size: int = 4
        allow_output_mixture_fallback: bool = False

    layer = mc.migrate.load(HOME / "layer.pt", MCConfig())
    assert torch.allclose(layer(RECORDED["x"]), RECORDED["y.swla-grm-checkpoint"], atol=1e-5)


def test_old_deep_memories_are_a_bias_and_say_so():
    with pytest.warns(UserWarning, match="answer every query alike") as told:
        layer = mc.migrate.load(HOME / "layer.pt", CONFIGS["titans"])
    assert told[0].filename == __file__
    x = RECORDED["x"].double()
    layer = layer.double()
    layer.conv.proj.weight.data[:8] = torch.randn(8, 8)    # other queries
    assert torch.allclose(layer(x).float(), RECORDED["y.titans"], atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")                     # it has a parallel form, and nothing else to tell
        layer.forward_with_cache(x)
    mask = torch.tensor([[0] * 3 + [1] * 14])
    padded = layer(torch.cat([x[:, :3], x], 1), attention_mask=mask)
    assert torch.allclose(padded[:, 3:], layer(x))


def test_defaults_are_the_old_ones():
    config = mc.migrate.load(HOME / "layer.pt", num_heads=2).config
    assert (config.segment_size, config.init, config.top_k, config.pool, config.aggregation) == (256, "checkpoint", 2, "sum", "grm")
    assert config == replace(mc.MCConfig(8, 2, segment_size=256, init="checkpoint", top_k=2, pool="sum", conv_size=1),
                             normalise_qk=False, read_norm=False, output_gate=False)


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "pickle", "old torch"])
def test_nothing_in_a_file_is_run(tmp_path, how):
    place, content = tmp_path / "file", {"model_state": WEIGHTS, "more": Harmful(tmp_path / "harm")}
    if how == "pickle":
        place.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, place, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ValueError, match="no file of tensors, numbers and texts alone"):
        mc.migrate.load(place, num_heads=2)
    assert not (tmp_path / "harm").exists()


def test_what_is_no_old_checkpoint_is_named(tmp_path):
    layer = lambda tensors, **options: lambda: mc.migrate.layer_of(tensors, dict(num_heads=2) | options)
    (tmp_path / "text").write_text("nothing")
    (tmp_path / "empty").touch()
    (tmp_path / "cut.pt").write_bytes((HOME / "layer.pt").read_bytes()[:900])
    (tmp_path / "cut.safetensors").write_bytes((HOME / "outputs.safetensors").read_bytes()[:900])
    torch.save([1], tmp_path / "list")
    torch.save({"embed.weight": torch.zeros(2)}, tmp_path / "other")
    load = lambda name, **options: lambda: mc.migrate.load(tmp_path / name, **options)
    for call, said in ((load("text"), "no file of tensors"), (load("empty"), "no file of tensors"), (load("cut.pt"), "no file of tensors"),
                       (load("cut.safetensors"), "no file of tensors"), (load("list"), r"must be a dict; got \[1\]"), (load("other"), "no q_proj.weight; it has embed"),
                       (lambda: mc.migrate.load(HOME / "layer.pt"), "num_heads is not in the file"),
                       (lambda: mc.migrate.load(HOME / "layer.pt", num_heads=3), "multiple of num_heads"),
                       (lambda: mc.migrate.load(HOME / "model.pt", prefix="x."), "prefix must be one of 'mc.'"),
                       (layer(WEIGHTS, topk=2), "config has no option topk; did you mean ssc_top_k"), (layer(WEIGHTS, swla={"lamda": 1}), "config: swla has no option lamda; did you mean lam"),
                       (layer(WEIGHTS, aggregation="mean"), "aggregation must be one of"), (layer(WEIGHTS, state_init_mode="independent"), "state_init_mode must be one of 'checkpoint', 'restart'"),
                       (layer(WEIGHTS, softmax_temperature=0), "softmax_temperature must be between"), (layer(WEIGHTS, backend="swla", swla={"alpha": 1.5}), "alpha must be between 0 and 1"),
                       (layer(WEIGHTS | {"backend.w": torch.zeros(1)}), "no backend.w"), (layer({n: w for n, w in WEIGHTS.items() if n[0] != "u"}), "u_proj.weight must be a square tensor")):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(FileNotFoundError):
        load("missing")()


def test_the_package_itself():
    old = pytest.importorskip("memory_caching", reason="memory-caching 0.1.0 is not installed")
    from memory_caching.models import _build_backend
    torch.manual_seed(1)
    x = torch.randn(2, 37, 16).double()
    for aggregation in ("grm", "residual", "soup", "ssc"):
        for init in ("restart", "checkpoint"):
            config = old.MCConfig(d_model=16, num_heads=4, segment_size=8, aggregation=aggregation, state_init_mode=init)
            theirs = old.MemoryCachingLayer(config=config, backend=_build_backend(config)).double()
            assert torch.allclose(mc.migrate.layer_of(theirs.state_dict(), config)(x), theirs(x), atol=1e-10)
