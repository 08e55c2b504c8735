"""Training: exact resume, interruption, and checkpoints that do not belong."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

import mc
from mc.storage import load_tensors
from mc.tasks.mqar import MQAR
from mc.train import TrainConfig, generator, optimiser, save_checkpoint, train

CONFIG = TrainConfig(steps=12, learning_rate=1e-2, warmup=3, seed=5)


def fresh(aggregation="grm"):
    torch.manual_seed(0)
    return mc.LanguageModel(mc.LMConfig(16, 1, mc.MCConfig(8, 2, aggregation=aggregation, segment_size=4)))


def batch(step, generator):
    return MQAR(16, 16, 4).sample(4, generator)[:2]


def run(model, config=CONFIG, **kwargs):
    return train(model, batch, config, progress=False, **kwargs)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("stops", [[1], [5], [2, 3, 11], [12]])
def test_resuming_is_bit_exact(stops, tmp_path):
    whole = fresh()
    losses = run(whole)
    for stop in stops:
        run(fresh(), checkpoint=tmp_path / "c", every=100, stop=stop)
    resumed = fresh()
    assert run(resumed, checkpoint=tmp_path / "c") == losses and same(resumed, whole)


def test_the_result_does_not_depend_on_global_randomness():
    a, b = fresh(), fresh()
    torch.manual_seed(1)
    run(a)
    torch.manual_seed(2)
    run(b)
    assert same(a, b)


def test_stop_at_zero_trains_nothing():
    assert run(fresh(), stop=0) == []


def test_seed_decides_the_data():
    assert run(fresh())[0] != run(fresh(), replace(CONFIG, seed=6))[0]


def test_every_step_draws_new_data():
    drawn = [batch(step, generator(0, step))[0] for step in range(3)]
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    assert torch.equal(drawn[2], batch(2, generator(0, 2))[0])


SCRIPT = """
import signal, sys, time, torch, mc
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_train as t
signal.signal(signal.SIGINT, signal.default_int_handler)           # a shell may start its background jobs without
def slow(step, generator):
    time.sleep(0.05 if step < 4 else 5)                            # however late the signal comes
    return t.batch(step, generator)
t.train(t.fresh(), slow, t.CONFIG, checkpoint={path!r}, every=2, progress=False)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_loses_at_most_one_interval(how, tmp_path):
    path = tmp_path / "c"
    job = subprocess.Popen([sys.executable, "-c", SCRIPT.format(tests=os.path.dirname(__file__), path=str(path))],
                           stderr=subprocess.DEVNULL)
    while not path.exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(how)
    job.wait()
    tensors, _ = load_tensors(path)
    assert 2 <= len(tensors["losses"]) < 12
    whole, resumed = fresh(), fresh()
    assert run(resumed, checkpoint=path) == run(whole) and same(resumed, whole)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(fresh(), checkpoint=tmp_path / "c", stop=2)
    for model, config in [(fresh("residual"), CONFIG), (fresh(), replace(CONFIG, learning_rate=1.0))]:
        with pytest.raises(ValueError, match="belongs to another run"):
            run(model, config, checkpoint=tmp_path / "c")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    run(fresh(), checkpoint=tmp_path / "c", stop=2)
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not a complete file"):
        run(fresh(), checkpoint=tmp_path / "c")


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
    model = fresh()
    run(model, checkpoint=tmp_path / "c", every=1, stop=2)
    with torch.no_grad():
        model.norm.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="at step 0"):
        run(model)


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path):
    "sqrt(0) is finite and its gradient is not: the next checkpoint would have held NaN."
    class Rooted(Bare):
        def forward(self, tokens):
            return super().forward(tokens) + (self.unused - self.unused.detach().round()).abs().sum().sqrt()
    model = Rooted()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(FloatingPointError, match="the gradient's norm became nan at step 0; the last checkpoint is kept"):
        run(model, checkpoint=tmp_path / "c", every=1)
    assert not (tmp_path / "c").exists() and all(map(torch.equal, before, model.parameters()))


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    config = TrainConfig(steps=100, learning_rate=1.0, warmup=10)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == rates[10] == 1.0 and rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


WRAPPERS = {"plain": lambda m: m, "compiled": lambda m: torch.compile(m, backend="eager"), "parallel": torch.nn.DataParallel,
            "both": lambda m: torch.compile(torch.nn.DataParallel(m), backend="eager")}


def compiled_inside(model):
    model.blocks[0] = torch.compile(model.blocks[0], backend="eager")
    return model


@pytest.mark.parametrize("before, after", [("compiled", "plain"), ("plain", "compiled"), ("parallel", "plain"), ("plain", "parallel"), ("both", "compiled")])
def test_a_wrapped_model_and_the_plain_one_go_on_from_each_other(before, after, tmp_path):
    whole, resumed = fresh(), fresh()
    losses = run(whole)
    with torch.compiler.set_stance("force_eager"):                                 # only its names matter here
        run(WRAPPERS[before](fresh()), checkpoint=tmp_path / "c", stop=5)
        assert not any("_orig_mod" in name or "module" in name for name in load_tensors(tmp_path / "c")[0])
        assert run(WRAPPERS[after](resumed), checkpoint=tmp_path / "c") == losses and same(resumed, whole)


def test_a_compiled_model_is_saved_as_the_plain_one(tmp_path):
    tokens, model = torch.arange(8)[None], fresh()
    for wrapped in (WRAPPERS["compiled"](model), compiled_inside(fresh())):
        wrapped.save(tmp_path / "m")
        assert same(mc.LanguageModel.load(tmp_path / "m"), model)
    mc.storage.save_tensors(tmp_path / "m", WRAPPERS["compiled"](model).state_dict(), {"model": model.config.to_dict()})
    assert torch.equal(mc.LanguageModel.load(tmp_path / "m")(tokens), model(tokens))


class Bare(torch.nn.Sequential):
    "A model without a configuration."
    def __init__(self, width=8):
        torch.manual_seed(0)
        super().__init__(torch.nn.Embedding(16, width), mc.MemoryCachingLayer(mc.MCConfig(width, 2, segment_size=4)), torch.nn.Linear(width, 16))
        self.unused = torch.nn.Parameter(torch.ones(3))                            # never has a gradient

    def forward(self, tokens):
        return self[2](self[1](self[0](tokens)))


def test_a_model_without_a_configuration_is_known_by_its_shapes(tmp_path):
    whole, resumed = Bare(), Bare()
    losses = run(whole)
    run(Bare(), checkpoint=tmp_path / "c", stop=7)
    with pytest.raises(ValueError, match="belongs to another run"):
        run(Bare(4), checkpoint=tmp_path / "c")
    assert run(resumed, checkpoint=tmp_path / "c") == losses and same(resumed, whole)


def test_a_configuration_that_is_a_dataclass_belongs_to_the_run(tmp_path):
    "Segments of 2 and of 4 have the same shapes."
    def configured(size):
        model = Bare()
        model.config = model[1].config = replace(model[1].config, segment_size=size)
        return model
    run(configured(4), checkpoint=tmp_path / "c", stop=2)
    with pytest.raises(ValueError, match="belongs to another run.*'segment_size': 4.*'segment_size': 2"):
        run(configured(2), checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="adam must be a torch.optim.AdamW; got SGD"):
        save_checkpoint(tmp_path / "c", Bare(), torch.optim.SGD(Bare().parameters()), [], {})


def test_an_untrained_checkpoint_is_the_start(tmp_path):
    model, whole, resumed = fresh(), fresh(), fresh()
    save_checkpoint(tmp_path / "c", model, optimiser(model), [], {"train": asdict(CONFIG), "model": model.config.to_dict()})
    assert run(resumed, checkpoint=tmp_path / "c") == run(whole) and same(resumed, whole)


def test_the_run_is_the_same_under_another_default_type(tmp_path):
    models = [fresh(), fresh()]
    losses = run(models[0])
    torch.set_default_dtype(torch.float64)
    try:
        run(models[1], checkpoint=tmp_path / "c", stop=5)
    finally:
        torch.set_default_dtype(torch.float32)
    resumed = fresh()
    assert run(resumed, checkpoint=tmp_path / "c") == losses and same(resumed, models[0])


@pytest.mark.parametrize("bad, message", [
    (dict(steps=0), "steps must be an integer >= 1; got 0"), (dict(steps=-5), "steps .* got -5"), (dict(steps=2.0), "steps .* got 2.0"),
    (dict(steps=True), "steps"), (dict(steps="4"), "steps .* got '4'"), (dict(warmup=-1), "warmup must be an integer >= 0; got -1"),
    (dict(warmup=None), "warmup"), (dict(seed=-1), "seed must be an integer >= 0"), (dict(seed=2**41), "seed must be at most 2\\^40"),
    (dict(seed=0.5), "seed"), (dict(learning_rate=0), "learning_rate must be a finite number > 0; got 0"),
    (dict(learning_rate=-1e-3), "learning_rate"), (dict(learning_rate=float("nan")), "learning_rate .* got nan"),
    (dict(learning_rate=float("inf")), "learning_rate"), (dict(learning_rate="1e-3"), "learning_rate .* got '1e-3'"), (dict(learning_rate=True), "learning_rate")])
def test_nonsense_is_no_configuration(bad, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **bad)


def test_numbers_of_numpy_are_numbers():
    given = TrainConfig(np.int64(12), np.float32(0.5), np.int32(3), np.uint8(5))
    assert given == TrainConfig(12, 0.5, 3, 5) and {type(v) for v in asdict(given).values()} == {int, float, str}
    assert torch.equal(batch(0, generator(np.int64(5), np.int32(2)))[0], batch(0, generator(5, 2))[0])
    for bad in ((-1, 0), (0, -1), (0.5, 0), (2**41, 0)):
        with pytest.raises(ValueError, match="seed|step"):
            generator(*bad)


@pytest.mark.parametrize("drawn, message", [
    (None, "got NoneType"), (torch.zeros(2, 4), "got Tensor"), ((torch.zeros(2, 4), torch.zeros(2, 4).long()), "got torch.float32 .*torch.int64"),
    ((torch.ones(4).long(),) * 2, r"\(B, T\); got torch.int64 \(4,\)"), ((torch.ones(2, 4).long(),) * 3, "two int64 tensors"),
    ((torch.ones(2, 4).long(), torch.ones(2, 5).long()), r"of one shape; got \(2, 4\) and \(2, 5\)"), ((torch.ones(2, 0).long(),) * 2, "tokens >= 0"),
    ((torch.ones(2, 4).long(), -torch.ones(2, 4).long()), "at least one label >= 0"), ((-torch.ones(2, 4).long(), torch.ones(2, 4).long()), "tokens >= 0"),
    ((torch.ones(2, 4).long(), torch.full((2, 4), 16)), "labels below 16, the number of logits; got 16"),
    ((torch.full((2, 4), 16), torch.ones(2, 4).long()), "tokens must lie between 0 and vocab_size - 1 = 15")], ids=lambda x: None)
def test_batches_that_are_none_are_refused(drawn, message):
    with pytest.raises(ValueError, match=message):
        train(fresh(), lambda step, generator: drawn, CONFIG, progress=False)


@pytest.mark.parametrize("change, message", [
    (dict(model=None), "model must be a Module; got NoneType"), (dict(config=asdict(CONFIG)), "config must be a TrainConfig; got dict"),
    (dict(batch=3), "batch must be a function"), (dict(every=0), "every must be an integer >= 1; got 0"), (dict(every=1.5), "every"),
    (dict(stop=-1), "stop must be an integer >= 0"), (dict(stop="2"), "stop"), (dict(progress="no"), "progress must be a bool; got str"),
    (dict(model=torch.nn.ReLU()), "model must have parameters"), (dict(model=torch.nn.Embedding(16, 4).requires_grad_(False)), "model must have parameters"),
    (dict(checkpoint=3), "path must name a file"),
    (dict(checkpoint=os.path.dirname(__file__)), "is a folder"), (dict(checkpoint=""), "path must name a file")], ids=lambda x: None)
def test_arguments_are_checked_by_name(change, message):
    given = dict(model=fresh(), batch=batch, config=CONFIG, progress=False) | change
    with pytest.raises(ValueError, match=message):
        train(**given)


def test_a_model_must_return_logits():
    class Wrong(Bare):
        def forward(self, tokens):
            return super().forward(tokens)[:, -1]
    with pytest.raises(ValueError, match=r"model must return logits \(B, T, V\) for tokens \(4, 16\); got \(4, 16\)"):
        run(Wrong())
