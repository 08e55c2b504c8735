"""Training: exact resume, interruption, and checkpoints that do not belong."""
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

import mc
from mc.storage import load_tensors
from mc.tasks.mqar import MQAR
from mc.train import TrainConfig, generator, train

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


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    config = TrainConfig(steps=100, learning_rate=1.0, warmup=10)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == rates[10] == 1.0 and rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
