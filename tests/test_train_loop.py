"""The loop's options: accumulation, schedules, logs, held-out text, the last checkpoints, a run's folder."""
import errno
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mc
import mc.train.loop as loop
from mc.files import write_atomic
from mc.storage import load_json, load_tensors
from mc.train import Checkpoints, JsonLines, TensorBoard, TrainConfig, evaluate, generator, open_fabric, optimiser, train
from mc.train.data import draw
from mc.train.runs import RunFolder, train_text
from mc.train.settings import MACHINE, Settings

CONFIG = TrainConfig(steps=12, learning_rate=1e-2, warmup=3, seed=5)


def fresh(**options):
    torch.manual_seed(0)
    return mc.LanguageModel(mc.LMConfig(16, 2, mc.MCConfig(8, 2, segment_size=4, **options)))


def batch(step, generator):
    tokens = torch.randint(4, (4, 17), generator=generator).cumsum(1) % 16
    labels = tokens[:, 1:].clone()
    labels[:, : int(labels[0, 0]) % 9] = -1                  # another number of labels each time
    return tokens[:, :-1], labels


def run(model, config=CONFIG, **kwargs):
    return train(model, batch, config, progress=False, **kwargs)


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("way", ["grm", "ssc"])
def test_the_default_path_is_the_plain_loop_to_the_bit(way):
    "What the records of the benchmarks were trained with, in ten lines."
    plain, model, losses = fresh(aggregation=way), fresh(aggregation=way), []
    adam = optimiser(plain)
    for step in range(CONFIG.steps):
        tokens, labels = batch(step, generator(CONFIG.seed, step))
        asked = labels >= 0
        loss = F.cross_entropy(plain(tokens)[asked], labels[asked])
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        done = (step - 3) / 9
        for group in adam.param_groups:
            group["lr"] = 1e-2 * (step + 1) / 3 if step < 3 else 1e-2 * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
        adam.step()
        losses.append(loss.item())
    assert run(model) == losses and same(model, plain)


def test_accumulated_batches_are_one_batch_with_all_their_labels():
    config = replace(CONFIG, accumulate=3)

    def joined(step, generator):
        parts = draw(batch, config, step)
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    apart, one = fresh().double(), fresh().double()
    losses = run(apart, config)
    whole = train(one, joined, CONFIG, progress=False)
    assert max(abs(a - b) for a, b in zip(losses, whole)) < 1e-12
    counts = {int((labels >= 0).sum()) for _, labels, _ in draw(batch, config, 0)}
    assert len(counts) > 1                                       # else the mean of means would do


@pytest.mark.parametrize("change, message", [
    (dict(schedule="linear"), "schedule must be one of 'cosine', 'wsd', 'constant'"), (dict(decay=1.5), "decay must be between 0"),
    (dict(floor=-0.1), "floor"), (dict(clip=0), "clip must be a finite number > 0; got 0"), (dict(weight_decay=-1), "weight_decay"),
    (dict(accumulate=0), "accumulate must be an integer >= 1; got 0"), (dict(weight_decay=float("nan")), "weight_decay")])
def test_options_are_checked_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize("schedule, halfway, last", [("cosine", 0.55, 0.1), ("wsd", 1.0, 0.1), ("constant", 1.0, 1.0)])
def test_schedules(schedule, halfway, last):
    config = TrainConfig(steps=1000, learning_rate=1.0, warmup=0, schedule=schedule)
    rates = [config.rate(step) for step in range(1000)]
    assert rates[500] == pytest.approx(halfway, abs=1e-3) and rates[-1] == pytest.approx(last, abs=5e-3)
    if schedule == "wsd":
        assert rates[800] == 1.0 and rates[900] == pytest.approx(0.55)


def test_weight_decay_and_clip_are_used():
    assert run(fresh()) != run(fresh(), replace(CONFIG, clip=0.1)) and run(fresh()) != run(fresh(), replace(CONFIG, weight_decay=5.0))


class Plain(nn.Module):
    "Nothing of ours."

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.layers(self.embed(tokens), mask=mask, is_causal=True))


@pytest.mark.parametrize("make", [Plain, lambda: torch.manual_seed(0) and nn.Sequential(nn.Embedding(16, 8), nn.GELU(), nn.Linear(8, 16))],
                         ids=["transformer", "sequential"])
def test_any_module_from_tokens_to_logits_can_be_trained(make, tmp_path):
    whole, resumed = make(), make()
    losses = run(whole)
    run(make(), checkpoint=tmp_path / "c", stop=7)
    assert run(resumed, checkpoint=tmp_path / "c", activation_checkpointing=True) == losses and same(resumed, whole) and losses[-1] < losses[0]


def test_bounds_of_documents_reach_a_model_that_takes_them():
    "Packed documents give the loss of each alone; a model without cu_seqlens is not given them."
    docs = [batch(0, generator(0, n))[0][:1, : 5 + n] for n in range(3)]
    tokens = torch.cat(docs, 1)
    labels = torch.cat([torch.cat([d[:, 1:], torch.full((1, 1), -1)], 1) for d in docs], 1)
    bounds = torch.tensor([0, 5, 11, 18])
    model = fresh()
    apart = sum(F.cross_entropy(model(d[:, :-1])[0], d[0, 1:], reduction="sum").item() for d in docs) / 15
    packed = train(model, lambda step, g: (tokens, labels, bounds), replace(CONFIG, steps=1), progress=False)
    assert packed[0] == pytest.approx(apart, abs=1e-5)
    assert train(Plain(), lambda step, g: (tokens, labels, bounds), replace(CONFIG, steps=1), progress=False)
    assert evaluate(Plain(), [(tokens, labels, bounds)])["held_out"] > 0
    assert train(fresh(), lambda step, g: (tokens, labels), replace(CONFIG, steps=1), progress=False)[0] != pytest.approx(apart, abs=1e-4)


def test_the_last_checkpoints_are_kept_and_the_newest_is_gone_on_from(tmp_path):
    whole, resumed = fresh(), fresh()
    losses = run(whole)
    places = Checkpoints(tmp_path, keep=2)
    run(fresh(), checkpoint=places, every=2, stop=9)
    assert places.steps() == [8, 9] and len(load_tensors(places.newest())[0]["losses"]) == 9
    assert run(resumed, checkpoint=places, every=5) == losses and same(resumed, whole) and places.steps() == [10, 12]
    newest = places.newest()
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"step-12.safetensors is not a complete file"):
        run(fresh(), checkpoint=places)
    newest.unlink()                                              # and the one before it will do
    again = fresh()
    assert run(again, checkpoint=places) == losses and same(again, whole)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    places, save = Checkpoints(tmp_path / "c"), loop.save_tensors

    def full(path, *rest):
        if "step-8" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(path, *rest)

    monkeypatch.setattr(loop, "save_tensors", full)
    log = JsonLines(tmp_path / "log.jsonl")
    with pytest.raises(OSError, match="the disk is full, at step 8; the last checkpoint is kept.*step-8"):
        run(fresh(), checkpoint=places, every=4, logs=[log])
    assert places.steps() == [4] and [p.name for p in places.folder.iterdir()] == ["step-4.safetensors"] and len(log.read()) == 8
    monkeypatch.undo()
    model, whole = fresh(), fresh()
    assert run(model, checkpoint=places, logs=[log]) == run(whole) and same(model, whole)
    assert [line["step"] for line in log.read()] == list(range(1, 13))


def test_the_log_of_a_resumed_run_is_that_of_a_whole_one(tmp_path):
    held_out = [batch(0, generator(9, n)) for n in range(2)]

    def logged(name, stops):
        log = JsonLines(tmp_path / name / "log.jsonl")
        for stop in stops:
            run(fresh(), checkpoint=tmp_path / name / "c", every=5, stop=stop, logs=[log], evaluation=held_out, evaluate_every=4)
            with open(log.path, "a") as file:                     # what a kill leaves: lines after the checkpoint, and half a line
                file.write(f'{{"step": {stop + 1}, "loss": 0.0}}\n{{"step": {stop + 2}, "lo')
        return [{n: v for n, v in line.items() if "seconds" not in n} for line in log.read()][: -1]

    whole = logged("whole", [12])
    assert [line["step"] for line in whole] == list(range(1, 13)) and [line["step"] for line in whole if "held_out" in line] == [4, 8, 12]
    assert logged("cut", [4, 5, 8, 12]) == whole
    assert set(whole[3]) == {"step", "loss", "rate", "norm", "labels", "held_out"} and whole[2]["rate"] == CONFIG.learning_rate


def test_held_out_text_is_measured_and_changes_nothing():
    class Held(list):
        bytes = 100

    held_out = Held(batch(0, generator(9, n)) for n in range(3))
    model, other, seen = fresh(), fresh(), []

    class Log:
        open = close = flush = lambda self, *a: None
        write = lambda self, line: seen.append(line)

    assert run(model, evaluation=held_out, logs=[Log()]) == run(other) and same(model, other)
    total = [(F.cross_entropy(model(x)[y >= 0], y[y >= 0], reduction="sum").item(), int((y >= 0).sum())) for x, y in held_out]
    nats, labels = map(sum, zip(*total))
    assert seen[-1]["held_out"] == pytest.approx(nats / labels, rel=1e-6)
    assert seen[-1]["bits_per_byte"] == pytest.approx(nats / math.log(2) / 100, rel=1e-6)
    assert model.train() and evaluate(model, held_out) and model.training


def test_recomputed_and_compiled_models_train_alike():
    whole = fresh()
    losses = run(whole)
    for options in (dict(activation_checkpointing=True), dict(compile="eager"), dict(compile="eager", activation_checkpointing=True)):
        model = fresh()
        with torch.compiler.set_stance("force_eager"):
            assert run(model, **options) == losses and same(model, whole)
        assert all("forward" not in vars(block) for block in model.blocks)
    with pytest.raises(ValueError, match="activation_checkpointing needs a model with"):
        train(nn.Embedding(16, 16), batch, CONFIG, progress=False, activation_checkpointing=True)
    for bad in (dict(compile=1), dict(activation_checkpointing="yes"), dict(evaluate_every=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            run(fresh(), **bad)


@pytest.mark.slow
def test_fabric_with_one_process_is_the_same_loop(tmp_path):
    from lightning_fabric import Fabric

    whole, model, resumed = fresh(), fresh(), fresh()
    losses = run(whole)
    fabric = Fabric(accelerator="cpu", devices=1)
    assert run(model, fabric=fabric) == losses and same(model, whole)
    run(fresh(), fabric=fabric, checkpoint=tmp_path / "c", stop=5)
    assert run(resumed, checkpoint=tmp_path / "c") == losses and same(resumed, whole)
    half = run(fresh(), fabric=open_fabric(precision="bf16-mixed", accelerator="cpu"))
    assert half != losses and half == pytest.approx(losses, rel=0.02)


@pytest.mark.slow
def test_tensorboard_shows_each_step_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def killed(step, generator):
        return batch(step, generator) if step < 7 else None                # after step 7 of which 5 are in a checkpoint

    options = dict(checkpoint=tmp_path / "c", every=5, logs=[TensorBoard(tmp_path / "tb")], progress=False)
    with pytest.raises(ValueError, match="batch must return"):
        train(fresh(), killed, CONFIG, **options)
    train(fresh(), batch, CONFIG, **options)
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 13)) and set(events.Tags()["scalars"]) >= {"loss", "rate", "norm"}


def test_open_fabric_refuses_what_cannot_be():
    for bad in (dict(devices=0), dict(strategy="dp"), dict(precision="fp8"), dict(accelerator="tpu"), dict(nodes=0)):
        with pytest.raises(ValueError, match=next(iter(bad))):
            open_fabric(**bad)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="devices must be at most the 0 GPUs of this machine; got 1"):
            open_fabric(accelerator="cuda")


class Corpus:
    "A corpus of bytes in memory, with what a corpus on disk has."

    class tokenizer:
        vocab_size, hash = 16, "sixteen"
        save = staticmethod(lambda path: write_atomic(path, b"{}"))

    hash = "random"

    def bytes(self, split):
        return 68

    def batches(self, split, length, batch_size, seed, packed):
        corpus = type("Batches", (), {})()
        corpus.batch = lambda step, rank=0, ranks=1: tuple(x[rank::ranks] for x in batch(step, generator(seed, step))) + (None,)
        return corpus

    def evaluation(self, split, length, batch_size, packed):
        return [batch(0, generator(9, 0))]


SETTINGS = dict(d_model=8, num_heads=2, num_layers=1, segment_size=4, steps=6, warmup=2, every=2, evaluate_every=3, tensorboard=False)


def test_the_folder_of_a_run(tmp_path):
    whole = train_text(SETTINGS, Corpus(), tmp_path / "whole", progress=False)
    train_text(SETTINGS, Corpus(), tmp_path / "cut", progress=False, stop=3)
    assert not (tmp_path / "cut/model.safetensors").exists()
    record = train_text(SETTINGS | {"keep": 2, "every": 3}, Corpus(), tmp_path / "cut", progress=False)     # the machine's may differ
    folder = RunFolder(tmp_path / "cut")
    assert {p.name for p in folder.folder.iterdir()} == {"config.yaml", "record.json", "log.jsonl", "checkpoints", "model.safetensors", "tokenizer.json"}
    unstable = {"seconds", "cpu_seconds", "time", "command"}
    assert {k: v for k, v in record.items() if k not in unstable} == {k: v for k, v in whole.items() if k not in unstable} == \
           {k: v for k, v in load_json(folder.record).items() if k not in unstable}
    assert record.keys() >= {"settings", "corpus", "tokenizer", "commit", "torch", "python", "device", "loss", "held_out", "tokens", "parameters"}
    assert record["settings"]["seed"] == 0 and record["tokenizer"] == "sixteen" and not MACHINE & record["settings"].keys()
    models = [mc.LanguageModel.load(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert same(*models) and load_tensors(folder.model)[1]["tokenizer"] == "sixteen"
    before = folder.log.read_bytes()
    assert train_text(SETTINGS, Corpus(), tmp_path / "cut", progress=False) == load_json(folder.record) and folder.log.read_bytes() == before


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path):
    train_text(SETTINGS, Corpus(), tmp_path / "run", progress=False, stop=1)
    for change, message in ((dict(seed=1), "seed = 0, this one has 1"), (dict(mixer="ssc"), "mixer = grm, this one has ssc")):
        with pytest.raises(ValueError, match=message):
            train_text(SETTINGS | change, Corpus(), tmp_path / "run", progress=False)
    other = Corpus()
    other.hash = "another"
    with pytest.raises(ValueError, match="corpus = random, this one has another"):
        train_text(SETTINGS, other, tmp_path / "run", progress=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    (tmp_path / "file").write_text("")
    for out, message in (("home", "holds letter.txt"), ("file", "is a file")):
        with pytest.raises(ValueError, match=message):
            train_text(SETTINGS, Corpus(), tmp_path / out, progress=False)
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["letter.txt"]
    for bad, message in ((dict(stepps=3), "has no stepps; did you mean steps"), (dict(mixer="gmr"), "did you mean 'grm'"), (dict(steps=0), "needs steps"),
                         (dict(precision="half"), "precision must be one of"), (dict(schedule="linear"), "schedule")):
        with pytest.raises(ValueError, match=message):
            train_text(SETTINGS | bad, Corpus(), tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_mixers_take_turns_and_a_model_can_be_given_whole():
    settings = Settings(mixer="grm,attention", num_layers=3, d_model=8, num_heads=2)
    assert [type(m).__name__ for m in settings.mixers()] == ["MCConfig", "AttentionConfig", "MCConfig"]
    config = mc.LMConfig(99, 2, mc.MCConfig(8, 2, aggregation="soup"))
    content = json.loads(json.dumps({n: v for n, v in config.to_dict().items() if n != "vocab_size"}))
    assert Settings(model=content).lm_config(99) == config
    assert same(Settings(seed=3, d_model=8).new_model(16), Settings(seed=3, d_model=8).new_model(16))
