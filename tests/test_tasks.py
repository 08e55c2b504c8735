"""The tasks: fixed by their hash, and free of shortcuts."""
import numpy as np
import pytest
import torch

from mc.tasks.mqar import IGNORE, MQAR, correct, curriculum, fingerprint
from mc.tasks.needles import Needles

GOLDEN = {MQAR(): "bb161b1e29af6691092f923dae34043299afd98f243dea7cc9f57c56f06b5552",
          Needles(): "1669169e622e981a640ab14f5b2c3e3170d6412ee304ff88163a78855b7b8ce6"}


def sample(task=MQAR(), n=64, seed=0):
    return task.sample(n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("task", GOLDEN, ids=str)
def test_golden_hash(task):
    assert fingerprint(sample(task, n=4)) == GOLDEN[task]


def test_global_randomness_is_not_touched():
    before = torch.random.get_rng_state()
    sample()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("task", [MQAR(), MQAR(32, 24, 8), MQAR(10, 13, 4), MQAR(4, 3, 1)], ids=str)
def test_structure(task):
    batch = sample(task)
    tokens, labels, source = batch
    asked = labels != IGNORE
    assert tokens.shape == labels.shape == source.shape == (64, task.length)
    assert (asked.sum(1) == task.pairs).all() and not asked[:, : 2 * task.pairs].any()
    assert torch.equal(tokens.gather(1, source.clamp(min=0))[asked], labels[asked])
    assert torch.equal(tokens.gather(1, source.clamp(min=1) - 1)[asked], tokens[asked])
    assert (source[~asked] == -1).all()
    for row, question in zip(tokens, asked):
        keys, rest = row[: 2 * task.pairs : 2], row[2 * task.pairs :]
        assert len(set(keys.tolist())) == task.pairs
        assert sorted(row[question].tolist()) == sorted(keys.tolist())
        assert not set(rest[~question[2 * task.pairs :]].tolist()) & set(keys.tolist())


@pytest.mark.parametrize("task", [Needles(), Needles(32, 24, 8), Needles(10, 200, 4), Needles(4, 3, 1)], ids=str)
def test_needles_lie_apart_in_hay_and_are_asked_for_at_the_end(task):
    batch = sample(task)
    tokens, labels, source = batch
    asked, half = labels != IGNORE, task.vocab_size // 2
    assert tokens.shape == labels.shape == source.shape == (64, task.length)
    assert asked[:, -task.pairs :].all() and not asked[:, : -task.pairs].any() and (source[~asked] == -1).all()
    assert torch.equal(tokens.gather(1, source.clamp(min=0))[asked], labels[asked])
    assert torch.equal(tokens.gather(1, source.clamp(min=1) - 1)[asked], tokens[asked])
    for row, at in zip(tokens[:, : -task.pairs], source[:, -task.pairs :]):
        needles = {*at.tolist(), *(at - 1).tolist()}
        hay = [t for i, t in enumerate(row.tolist()) if i not in needles]
        keys = row[at - 1].tolist()
        assert len(needles) == 2 * task.pairs == 2 * len(set(keys)) and max(hay, default=0) < half and not set(hay) & set(keys)


def test_correct_counts_right_answers():
    batch = sample(MQAR(32, 24, 8), 5)
    def oracle(tokens):
        rows = (batch.tokens[None] == tokens[:, None]).all(-1).int().argmax(1)
        return torch.nn.functional.one_hot(batch.labels[rows].clamp(min=0), 32).float()
    assert correct(oracle, batch).tolist() == [1.0] * 5
    assert correct(lambda tokens: torch.zeros(*tokens.shape, 32), batch).tolist() == [0.0] * 5


def test_curriculum_keeps_the_tokens_of_a_step():
    stages = [curriculum(MQAR(), 16, step, 800) for step in range(800)]
    assert {task.length * batch for task, batch in stages} == {256 * 16}
    assert [task.pairs for task, _ in stages[:: 160]] == [8, 16, 32, 64, 64]
    assert curriculum(MQAR(32, 27, 9), 4, 0, 10) == (MQAR(32, 27, 9), 4)


@pytest.mark.parametrize("kind", [MQAR, Needles])
@pytest.mark.parametrize("bad, message", [(dict(length=20), "at least 3 \\* pairs"), (dict(pairs=0), "pairs must be an integer >= 1; got 0"),
                                          (dict(vocab_size=16), "vocab_size must exceed")])
def test_impossible_tasks_are_refused(kind, bad, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"pairs": 8} | bad)


@pytest.mark.parametrize("task", GOLDEN, ids=str)
@pytest.mark.parametrize("setting, values", [(torch.set_default_dtype, [torch.float64, torch.bfloat16, torch.float16, torch.float32]),
                                             (torch.set_default_device, ["meta", "cpu", None])], ids=["type", "device"])
def test_the_same_seed_gives_the_same_data_under_every_default(task, setting, values):
    for value in values:                                                           # the last one is what it was
        setting(value)
        assert fingerprint(sample(task, n=4)) == GOLDEN[task]


@pytest.mark.parametrize("kind", [MQAR, Needles])
def test_sizes_are_integers_and_those_of_numpy_are(kind):
    task = kind(np.int64(16), np.int32(16), np.uint8(4))
    assert task == kind(16, 16, 4) and {type(v) for v in vars(task).values()} == {int}
    assert fingerprint(sample(task, np.int64(3))) == fingerprint(sample(kind(16, 16, 4), 3))
    for name in ("vocab_size", "length", "pairs"):
        for bad in (0, -4, 4.0, "16", None, True, np.float64(16)):
            with pytest.raises(ValueError, match=f"{name} must be an integer >= 1; got"):
                kind(**{name: bad})


@pytest.mark.parametrize("task", GOLDEN, ids=str)
def test_draws_are_checked_by_name(task):
    for bad in (0, -1, 2.0, "2", None, True):
        with pytest.raises(ValueError, match="batch must be an integer >= 1; got"):
            sample(task, bad)
    for bad in (None, 0, np.random.default_rng(0), torch.default_generator.get_state()):
        with pytest.raises(ValueError, match="generator must be a torch.Generator of the CPU"):
            task.sample(2, bad)


def test_steps_outside_a_curriculum_are_refused():
    for given, message in [((0, 0), "steps must be an integer >= 1; got 0"), ((-1, 5), "step must be an integer >= 0"),
                           ((5, 5), "step must be below steps = 5"), ((0, 2.5), "steps"), ((None, 5), "step must")]:
        with pytest.raises(ValueError, match=message):
            curriculum(MQAR(), 16, *given)


def test_nan_is_no_answer():
    "argmax would take the first NaN for an answer."
    with pytest.raises(ValueError, match="model must give logits that are numbers; some are NaN"):
        correct(lambda tokens: torch.full((*tokens.shape, 32), float("nan")), sample(MQAR(32, 24, 8), 5))
