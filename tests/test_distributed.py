"""Segments over ranks: real processes (gloo) against one process. This file is also the program of the ranks: it imports once, then forks them."""
import copy
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

import mc
from mc.distributed import context_parallel
from mc.ranks import Ranks, shard, shares, sum_gradients, unshard

MEMORIES = ("linear", "swla", "dla", "titans", "gated_delta")
WAYS = ("residual", "grm", "soup", "ssc", "top_p")
C = 4
OPTIONS = {  # beside memories x ways: whatever else takes another path
    "one token per segment, wide convolution": dict(segment_size=1, conv_size=4),
    "segments shorter than the convolution": dict(segment_size=2, conv_size=4, backend="swla"),
    "no convolution": dict(conv_size=1),
    "sums as pools": dict(pool="sum"),
    "places as pools": dict(gate="position"),
    "no learned gate": dict(gate="shared"),
    "uniform gate": dict(gate="uniform"),
    "stopped gradients": dict(detach_cache=True, backend="titans"),
    "softmax over all": dict(aggregation="ssc", softmax="all"),
    "exact recurrence": dict(backend="dla", chunk_size=1),
}
CELLS = {f"{m}, {w}": dict(backend=m, aggregation=w) for m, w in product(MEMORIES, WAYS)} | OPTIONS


def layer_of(seed=0, **options):
    torch.manual_seed(seed)
    layer = mc.MemoryCachingLayer(mc.MCConfig(8, 2, **dict(segment_size=C, chunk_size=3, top_k=2, conv_size=3) | options)).double()
    for p in layer.parameters():    # an untrained deep memory reads nothing
        torch.nn.init.normal_(p, std=0.4) if not p.any() else None
    return layer


def data(tokens, batch=2):
    return torch.randn(2, batch, tokens, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(tokens))


def furthest(a, b):
    assert a.shape == b.shape
    return ((a - b).abs().max() / (1 + b.abs().max())).item() if b.numel() else 0.0


def equals_alone(ranks, tokens, **options):
    "Outputs, gradients of inputs and parameters, and the cache of the last rank."
    layer, (x, weight) = layer_of(**options), data(tokens)
    part = lambda a: shard(a, ranks.rank, ranks.count, layer.config.segment_size)
    whole, alone = x.clone().requires_grad_(), copy.deepcopy(layer)
    y, cache = alone(whole, return_cache=True)
    (y * weight).sum().backward()
    mine, over = part(x).clone().requires_grad_(), context_parallel(layer, ranks.group)
    out, after = over(mine, return_cache=True)
    (out * part(weight)).sum().backward()
    sum_gradients(over, ranks.group)
    errors = {"outputs": furthest(out, part(y)), "gradient of x": furthest(mine.grad, part(whole.grad))}
    for (name, a), b in zip(layer.named_parameters(), alone.parameters()):
        errors[name] = furthest(a.grad, torch.zeros_like(b) if b.grad is None else b.grad)
    if ranks.rank == ranks.count - 1:
        assert (after.lengths, after.running) == (cache.lengths, cache.running)
        errors["next call"] = furthest(layer(x, cache=after), alone(x, cache=cache))
        errors["edges"] = furthest(after.edges, cache.edges)
    assert max(errors.values()) < 1e-9, {n: e for n, e in errors.items() if e >= 1e-9}


def check_cuts(ranks):
    "Whole segments only; a rest at the end; one segment each; a last rank with fewer tokens than a segment or than the convolution sees."
    for tokens in (8 * C, 9 * C + 3, (ranks.count - 1) * C + 1, ranks.count * C, (2 * ranks.count - 1) * C + 2):
        equals_alone(ranks, tokens)
        equals_alone(ranks, tokens, backend="titans", aggregation="ssc")


def check_model(ranks):
    "A language model; and DistributedDataParallel around it, whose mean is that of the whole text."
    torch.manual_seed(0)
    model = mc.LanguageModel(mc.LMConfig(32, 2, mc.MCConfig(8, 2, segment_size=C))).double()
    text = torch.randint(32, (2, 4 * C * ranks.count + 1))
    alone = copy.deepcopy(model)
    cross_entropy(alone(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).backward()
    over = context_parallel(model, ranks.group)
    assert over.state_dict().keys() == model.state_dict().keys() and over.embedding.weight is model.embedding.weight
    wrapped = torch.nn.parallel.DistributedDataParallel(over, process_group=ranks.group)
    tokens, labels = (shard(a, ranks.rank, ranks.count, C) for a in (text[:, :-1], text[:, 1:]))
    for _ in range(2):    # DDP rebuilds its buckets after the first
        wrapped.zero_grad()
        cross_entropy(wrapped(tokens).flatten(0, 1), labels.flatten()).backward()
        worst = max(furthest(a.grad, b.grad) for a, b in zip(model.parameters(), alone.parameters()))
        assert worst < 1e-9, worst
    whole = unshard(over(tokens), ranks.group)
    assert furthest(whole, alone(text[:, :-1])) < 1e-9
    copy.deepcopy(over)


def check_activation_checkpoints(ranks):
    from torch.utils.checkpoint import checkpoint
    layer, (x, _) = layer_of(backend="dla"), data(5 * C)
    grads = []
    for call in (lambda f, a: f(a), lambda f, a: checkpoint(f, a, use_reentrant=False)):
        mine = shard(x, ranks.rank, ranks.count, C).clone().requires_grad_()
        call(context_parallel(layer, ranks.group), mine).square().sum().backward()
        grads.append(mine.grad)
    assert torch.equal(*grads)


def check_traffic(ranks):
    "N H (D² + D) numbers and N (K-1) d_model: what all ranks give, of N segments each to R - 1 others."
    layer, S = layer_of(), 3
    x, _ = data(S * C * ranks.count, batch=1)
    over = context_parallel(layer, ranks.group)
    over(shard(x, ranks.rank, ranks.count, C).clone().requires_grad_()).sum().backward()
    H, D = 2, 4
    expected = {"states and pools": S * H * (D * D + D), "inputs": S * 2 * H * D}
    for kind, numbers in expected.items():
        assert over.ranks.sent[kind] == over.ranks.sent[f"gradients of {kind}"] == 8 * numbers * (ranks.count - 1)


def check_refusals(ranks):
    "What one rank refuses, all refuse, in no time; and they can go on afterwards."
    odd = ranks.rank == 1
    x, _ = data(2 * C)
    layer = layer_of()
    over = lambda **options: context_parallel(layer_of(**options), ranks.group)
    calls = (
        ("whole segments", lambda: over()(x[:, :C + 1] if ranks.rank == 0 else x)),
        ("NaN" if odd else "rank 1 refused", lambda: over()(x / (0 if odd else 1))),
        ("no empty axis" if odd else "rank 1 refused", lambda: over()(x[:, :0] if odd else x)),
        ("float32" if odd else "rank 1 refused", lambda: over()(x.float() if odd else x)),
        ("the same batch size", lambda: over()(x[:1] if odd else x)),
        ("the same aggregation", lambda: over(aggregation="soup" if odd else "grm")(x)),
        ("the same conv_size", lambda: over(conv_size=2 if odd else 3)(x)),
        ("the same weights", lambda: over(seed=ranks.rank)(x)),
        ("the same gradients of x", lambda: over()(x.clone().requires_grad_(odd))),
        ("no attention_mask", lambda: over()(x, torch.ones(2, 2 * C))),
        ("no cache", lambda: over()(x, cache=layer(x, return_cache=True)[1])),
    )
    for message, call in calls:
        with pytest.raises(ValueError, match=message):
            call()
    context_parallel(layer, ranks.group)(x)


TRAINED = {  # every memory; parameters without a gradient; cuts and initialisations that do not matter to copies of a model
    "linear": dict(), "swla": dict(backend="swla", aggregation="residual"), "dla": dict(backend="dla", aggregation="soup"),
    "titans": dict(backend="titans", aggregation="ssc"), "gated_delta": dict(backend="gated_delta", aggregation="top_p"),
    "uncached": dict(aggregation="none"), "fenwick": dict(segmentation="fenwick"), "checkpoint": dict(backend="titans", init="checkpoint"),
}


class Texts:
    "Two texts per step: for each rank a row, or (`cut`) its part of both."

    def __init__(self, cut=False):
        self.cut = cut

    def batch(self, n, rank=0, ranks=1):
        text = torch.randint(32, (2, 9 * C + 3), generator=torch.Generator().manual_seed(n))
        labels = text[:, 1:].clone()
        labels[0, :7] = -100    # ranks have unequally many labels
        if self.cut:
            return tuple(shard(a, rank, ranks, C) for a in (text[:, :-1], labels))
        return text[rank * 2 // ranks:(rank + 1) * 2 // ranks, :-1], labels[rank * 2 // ranks:(rank + 1) * 2 // ranks]


def trains(ranks, folder, strategy):
    "The training loop with several processes, also interrupted, against one process; copies of a model, and parts of a text."
    from mc.train import Checkpoints, TrainConfig, train
    from mc.train.devices import open_fabric
    fabric = open_fabric(devices=ranks.count, strategy=strategy, accelerator="cpu")    # in the model's own type
    config, quiet = TrainConfig(steps=3, learning_rate=1e-2, warmup=1), dict(progress=False)
    whole = lambda t: t.full_tensor() if hasattr(t, "full_tensor") else t

    def fresh(options):
        torch.manual_seed(0)
        return mc.LanguageModel(mc.LMConfig(32, 2, mc.MCConfig(8, 2, **dict(segment_size=C, chunk_size=3) | options))).double()

    names = TRAINED if strategy == "ddp" else ("linear", "dla", "titans")
    for name, cut in [*((name, False) for name in names), ("linear", True), ("titans", True)]:
        alone, make = fresh(TRAINED[name]), lambda: context_parallel(fresh(TRAINED[name])) if cut else fresh(TRAINED[name])
        expected = train(alone, Texts(), config, **quiet)
        kept = Checkpoints(Path(folder, f"{strategy}-{name}-{cut}"))
        train(make(), Texts(cut), config, checkpoint=kept, every=1, stop=2, fabric=fabric, **quiet)
        model = make()
        losses = train(model, Texts(cut), config, checkpoint=kept, fabric=fabric, activation_checkpointing=True, **quiet)
        apart = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        assert apart < 1e-9, (name, cut, apart)
        worst = max(furthest(whole(a.detach()), b.detach()) for a, b in zip(model.parameters(), alone.parameters()))
        assert worst < 1e-7, (name, cut, worst)    # Adam divides by gradients near zero


def ddp(ranks, folder):
    trains(ranks, folder, "ddp")


def fsdp(ranks, folder):
    trains(ranks, folder, "fsdp")


CHECKS = {name[6:]: check for name, check in list(globals().items()) if name.startswith("check_")}


def lost(ranks, folder):
    "The last rank goes away without a word after the first layer's pass; the others are told so and end."
    over = context_parallel(layer_of(), ranks.group)
    x, _ = data(C)
    y = over(x.clone().requires_grad_())
    if ranks.rank == ranks.count - 1:
        os._exit(0)
    with pytest.raises(ConnectionError, match=f"rank {ranks.rank} of {ranks.count} lost another rank"):
        y.sum().backward()


def stuck(ranks, folder):
    "The last rank is there and does nothing; the group's time limit ends the wait."
    if ranks.rank == ranks.count - 1:
        time.sleep(4)
        os._exit(0)
    with pytest.raises(ConnectionError, match="imed out"):
        context_parallel(layer_of(), ranks.group)(data(C)[0])


def work(rank, count, folder, what):
    "One rank: each check's error, or null, as lines of JSON."
    torch.set_num_threads(1)
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), GROUP_RANK="0",
                       MASTER_ADDR="127.0.0.1", MASTER_PORT="0", TORCHELASTIC_RUN_ID="ranks")    # as torchrun, for Fabric
    limit = timedelta(seconds=2 if what == "stuck" else 60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{count}-{what}", rank=rank, world_size=count, timeout=limit)
    ranks, answers = Ranks(), {}
    every = {name: lambda o=o: equals_alone(ranks, 2 * C * ranks.count + 3 * C + 2, **o) for name, o in CELLS.items()}
    every |= {name: lambda f=f: f(ranks) for name, f in CHECKS.items()}
    for name, call in (every if what == "all" else {what: lambda: globals()[what](ranks, folder)}).items():
        try:
            answers[name] = call()
        except BaseException as error:
            answers[name] = f"{type(error).__name__}: {error}"
            if not isinstance(error, AssertionError):
                break    # the others may wait for something else now
    Path(folder, f"{count}-{what}-{rank}.json").write_text(json.dumps(answers))
    os._exit(0)


def main(folder):
    try:
        import lightning_fabric  # noqa: F401, once for all that are forked
    except ImportError:
        pass
    for what, count in (("all", 2), ("all", 4), ("lost", 2), ("lost", 4), ("stuck", 2), ("ddp", 2), ("fsdp", 2)):
        children = []
        for rank in range(count):
            if not (pid := os.fork()):
                try:
                    work(rank, count, folder, what)
                finally:
                    os._exit(1)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    "By (ranks, what): for each rank, what each check said."
    folder = tmp_path_factory.mktemp("ranks")
    program = subprocess.Popen([sys.executable, __file__, str(folder)], stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        _, said = program.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        _, said = program.communicate()
        said = f"ranks waited for ever: {said}"
    found = {}
    for file in folder.glob("*.json"):
        count, what, rank = file.stem.split("-")
        found.setdefault((int(count), what), {})[int(rank)] = json.loads(file.read_text())
    return found, said


@pytest.mark.slow
@pytest.mark.parametrize("count", (2, 4))
@pytest.mark.parametrize("name", [*CELLS, *CHECKS])
def test_ranks(answers, count, name):
    found, said = answers
    each = found.get((count, "all"), {})
    assert len(each) == count, said[-3000:]
    for rank, told in each.items():
        assert told.get(name, "was not reached") is None, f"rank {rank}: {told.get(name, 'was not reached')}"


@pytest.mark.slow
@pytest.mark.parametrize("count, what", ((2, "lost"), (4, "lost"), (2, "stuck")))
def test_nobody_waits_for_ever(answers, count, what):
    found, said = answers
    each = found.get((count, what), {})
    assert sorted(each) == list(range(count - 1)), said[-3000:]
    assert all(told == {what: None} for told in each.values()), each


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ("ddp", "fsdp"))
def test_training(answers, strategy):
    pytest.importorskip("lightning_fabric", reason="needs pip install 'memory-caching-companion[text]'")
    found, said = answers
    assert found.get((2, strategy)) == {rank: {strategy: None} for rank in range(2)}, said[-3000:]


def test_a_lost_rank_is_no_full_disk():
    "The training loop passes on what a layer over ranks raises."
    from mc.train import TrainConfig, train

    def batch(step, generator):
        raise ConnectionError("rank 0 of 2 lost another rank")

    with pytest.raises(ConnectionError, match="^rank 0 of 2 lost another rank$"):
        train(mc.LanguageModel(mc.LMConfig(8, 1, mc.MCConfig(8, 2))), batch, TrainConfig(steps=1, learning_rate=1e-2), progress=False)


def test_refused_before_a_group_is_asked():
    with pytest.raises(ValueError, match="no process group is initialised"):
        context_parallel(layer_of())
    for tokens, ranks, size, message in ((7, 4, 4, "too few for 4 ranks"), (0, 1, 4, "tokens"), (8, 0, 4, "ranks"), (8, 2, 0, "segment_size")):
        with pytest.raises(ValueError, match=message):
            shares(tokens, ranks, size)


def test_outside_its_group():
    "Also: one rank is one process, and what cannot be cut says why."
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/one", rank=0, world_size=1)
        try:
            equals_alone(Ranks(), 14, backend="titans")
            with pytest.raises(ValueError, match="must contain this process"):
                context_parallel(layer_of(), dist.GroupMember.NON_GROUP_MEMBER)
            attention = mc.LanguageModel(mc.LMConfig(8, 1, mc.AttentionConfig(8, 2)))
            hybrid = torch.nn.Sequential(layer_of(), attention)
            wrapped = torch.nn.parallel.DistributedDataParallel(layer_of())
            for module, message in ((layer_of(aggregation="none"), "runs on"), (layer_of(init="checkpoint"), "begins each segment"),
                                    (layer_of(segmentation="fenwick"), "joins segments"), (layer_of(segmentation="logarithmic"), "joins"),
                                    (attention, "with Memory Caching layers"), (hybrid, "has attention layers"), (wrapped, "wrapped already")):
                with pytest.raises(ValueError, match=message):
                    context_parallel(module)
        finally:
            dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
