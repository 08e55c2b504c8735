"""Training with two processes (gloo): as with one, sharded too; killed, it goes on to the same bits, and nobody is left."""
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mc.evidence.kills import kills
from mc.train.launch import LOST, Lost, launched, lost_a_peer, supervise

WORKER = """
import json, sys
from dataclasses import replace
sys.path.insert(0, {tests!r})
import torch
from mc.train import Checkpoints, JsonLines, open_fabric, train
from mc.train.checkpoints import weights_of
from mc.train.launch import end_with_watcher, rank
from test_train_loop import CONFIG, batch, fresh
from mc.train.data import generator

end_with_watcher()
torch.set_num_threads(1)
config, held_out = replace(CONFIG, steps=6), [batch(0, generator(9, n)) for n in range(3)]


def run(strategy, name, **options):
    model = fresh().double()
    fabric = open_fabric(2, strategy, accelerator="cpu")
    log = JsonLines({folder!r} + "/" + name + ".jsonl")
    losses = train(model, batch, config, progress=False, fabric=fabric, checkpoint=Checkpoints({folder!r} + "/" + name), every=2,
                   logs=[log], evaluation=held_out, evaluate_every=6, activation_checkpointing=strategy == "fsdp", **options)
    return losses, weights_of(model)


found = {{}}
for strategy in ("ddp", "fsdp"):
    whole, weights = run(strategy, strategy)
    run(strategy, strategy + "-cut", stop=3)
    losses, again = run(strategy, strategy + "-cut")
    found[strategy] = [whole, losses == whole and all(torch.equal(weights[n], again[n]) for n in weights)]
run("ddp", "mixed", stop=3)
found["mixed"] = run("fsdp", "mixed")[0]
if rank() == 0:
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "What two processes found, and their folder."
    folder = tmp_path_factory.mktemp("two")
    code = f"from mc.train.launch import supervise; import sys; supervise([sys.executable, {str(folder / 'worker.py')!r}], 2)"
    (folder / "worker.py").write_text(WORKER.format(tests=str(Path(__file__).parent), folder=str(folder)))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), folder


@pytest.fixture(scope="module")
def one():
    "One process that takes the same batches, in float64."
    from dataclasses import replace

    from test_train_loop import CONFIG, batch, fresh, generator
    from mc.train import evaluate, train

    model = fresh().double()
    losses = train(model, batch, replace(CONFIG, steps=6, accumulate=2), progress=False)
    return losses, evaluate(model, [batch(0, generator(9, n)) for n in range(3)])["held_out"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_are_one_with_twice_the_batches(two, one, strategy):
    "Each has another number of labels, and of held-out batches one has two and the other one."
    (whole, _), (losses, held_out) = two[0][strategy], one
    assert max(abs(a - b) for a, b in zip(whole, losses, strict=True)) < 1e-12
    last = json.loads((two[1] / f"{strategy}.jsonl").read_text().splitlines()[-1])
    assert last["held_out"] == pytest.approx(held_out, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_resume_bit_for_bit(two, strategy):
    assert two[0][strategy][1] is True
    lines = [json.loads(line) for line in (two[1] / f"{strategy}-cut.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6] and [line["loss"] for line in lines] == two[0][strategy][0]


@pytest.mark.slow
def test_a_sharded_run_goes_on_from_one_that_was_not(two):
    assert two[0]["mixed"] == pytest.approx(two[0]["ddp"][0], abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_killed_training_goes_on_to_the_same_bits(ranks, tmp_path):
    found = kills(tmp_path, ranks, 2, steps=24, seed=ranks)
    assert found["exact"] == 2 and all(one["left"] == 0 and one["code"] != 0 for one in found["each"])


SLEEPER = textwrap.dedent("""
    import os, signal, sys, time
    if os.environ["LOCAL_RANK"] == "1":
        {how}
    time.sleep(60)
""")


@pytest.mark.parametrize("how, code, said", [
    ("os.kill(os.getpid(), signal.SIGKILL)", -9, "process 2 of 2 was killed by SIGKILL, and the others were ended"),
    ("sys.exit(3)", 3, "process 2 of 2 ended with exit code 3, and the others were ended"),
    ("from mc.train.launch import report; report('the disk is full'); sys.exit(1)", 1, "the disk is full"), ("raise RuntimeError('a mistake')", 1, "process 2: RuntimeError: a mistake"),
    (f"sys.exit({LOST})", LOST, f"process 2 of 2 ended with exit code {LOST}")])
def test_a_lost_process_ends_the_others_with_one_line(how, code, said):
    with pytest.raises(Lost, match=f"^{said}") as lost:
        supervise([sys.executable, "-c", SLEEPER.format(how=how)], 2)
    assert (lost.value.rank, lost.value.code) == (1, code)


def test_who_is_lost_and_who_lost_a_peer(monkeypatch):
    assert lost_a_peer(RuntimeError("[../third_party/gloo/...] Connection closed by peer")) and not lost_a_peer(RuntimeError("shape mismatch"))
    assert not lost_a_peer(ValueError("Connection")) and lost_a_peer(ConnectionError("lost another rank"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert not launched()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launched()
