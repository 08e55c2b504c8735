"""1,100 damaged files: each is refused with a ValueError that names it, and nothing of it is used."""
import json
import os
import random
from collections import Counter
from dataclasses import asdict

import pytest
import safetensors.torch
import torch

import mc
from mc.evidence.experiments import Experiment
from mc.evidence.measured import measure
from mc.evidence.variants import Sizes, made
from mc.storage import load_json, load_tensors, save_json, save_tensors
from mc.tasks.mqar import MQAR
from mc.train import TrainConfig, describe, load_checkpoint, optimiser, save_checkpoint, train

CONFIG = TrainConfig(steps=4, learning_rate=1e-2, warmup=1)


def fresh(backend="linear", segmentation="constant"):
    torch.manual_seed(0)
    mixer = mc.MCConfig(4, 2, backend, segmentation=segmentation, segment_size=2, chunk_size=2, expansion=1)
    return mc.LanguageModel(mc.LMConfig(6, 1, mixer))


def batch(step, generator):
    tokens = torch.randint(6, (1, 5), generator=generator)
    return tokens, tokens.roll(-1, 1)


def load_run(path):
    model = fresh()
    adam, before = optimiser(model), [p.clone() for p in model.parameters()]
    try:
        return load_checkpoint(path, model, adam, {"train": asdict(CONFIG), "model": describe(model)})
    except ValueError:
        assert not adam.state and all(map(torch.equal, before, model.parameters())), "half of a checkpoint was taken"
        raise


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "One whole file of each kind, and what reads it."
    folder = tmp_path_factory.mktemp("whole")
    fresh("dla").save(folder / "weights")
    for backend, segmentation in (("linear", "constant"), ("titans", "fenwick"), ("swla", "logarithmic")):
        _, (cache,) = fresh(backend, segmentation).forward_with_cache(torch.arange(6).repeat(2, 2)[:, :7])
        cache.save(folder / f"{backend} cache")
    train(fresh(), batch, CONFIG, checkpoint=folder / "checkpoint", stop=3, progress=False)
    save_json(folder / "record", {"scores": [{"right": 0.8125}, {"right": 0.75}], "seed": 3, "settings": {"steps": 12}, "name": "grm, ü"})
    loads = {"weights": mc.LanguageModel.load, "checkpoint": load_run, "record": load_json}
    return {path: loads.get(path.name, mc.SegmentCache.load) for path in sorted(folder.iterdir())}


def header(whole, change):
    "The file with its JSON header changed, and the length that belongs to it."
    size = int.from_bytes(whole[:8], "little")
    text = change(whole[8 : 8 + size])
    return len(text).to_bytes(8, "little") + text + whole[8 + size :]


def foreign(whole, change):
    "As another program would write the same tensors, after `change`, with our header copied."
    about = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
    tensors = safetensors.torch.load(whole)
    change(tensors)
    return safetensors.torch.save(tensors, about)


def flip(r, whole, i=None):
    i = r.randrange(len(whole)) if i is None else i
    return whole[:i] + bytes([whole[i] ^ r.randrange(1, 256)]) + whole[i + 1 :]


def zero(r, whole):
    at = r.randrange(len(whole) - 2)
    return whole[:at] + bytes(len(whole) - at)


def exchange(r, whole):
    "Two stretches of bytes in each other's place."
    n = r.randrange(1, len(whole) // 4)
    i, j = sorted((r.randrange(len(whole) // 2 - n + 1), r.randrange(len(whole) // 2, len(whole) - n + 1)))
    return whole[:i] + whole[j : j + n] + whole[i + n : j] + whole[i : i + n] + whole[j + n :]


BYTES = {
    "a flipped bit": lambda r, w: flip(r, w), "a flipped byte in front": lambda r, w: flip(r, w, r.randrange(120)),
    "cut": lambda r, w: w[: r.randrange(len(w))], "a zeroed tail": zero, "exchanged": exchange,
    "longer": lambda r, w: w + r.choice([b"\n", b"\0", b" " * 8, w]),
    "twice a stretch": lambda r, w: w[: (i := r.randrange(1, len(w)))] + w[i // 2 :],
    "garbage": lambda r, w: r.choice([b"", b"{}", b"[" * 100_000, b"9" * 5000,
                                      b"PK\3\4" + w, b"\x80\4.", r.randbytes(300), b"null", b"\xef\xbb\xbf" + w]),
    "other blanks": lambda r, w: w.replace(b" ", b"\t", r.randrange(1, 4)) if b" " in w else w[1:],
}
HEADERS = {
    "a header of another length": lambda r, w: r.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little") + w[8:],
    "a key twice": lambda r, w: header(w, lambda t: t.replace(b"{", b'{"__metadata__": {"about": "{}"}, ', 1)),
    "a header that is no JSON": lambda r, w: header(w, lambda t: r.choice([b"", b"[]", b"null", b"{" * 5000, b'"x"', t[:-1], t[1:], t + t])),
    "renamed in the header": lambda r, w: header(w, lambda t: t.replace(b"weight", b"wEight").replace(b"online", b"0nline")),
    "by another program": lambda r, w: foreign(w, lambda t: r.choice(list(t.values())).add_(1)),
    "exchanged tensors": lambda r, w: foreign(w, lambda t: t.update(zip(a := r.sample(sorted(t), 2), [t[a[1]], t[a[0]]]))),
    "without a checksum": lambda r, w: safetensors.torch.save(safetensors.torch.load(w), {"about": "{}"}),
}


def pop(r, t, a):
    del t[r.choice(sorted(t))]


def rename(r, t, a):
    name = r.choice(sorted(t))
    t[r.choice([name + "_", "_" + name, name.upper(), name.replace(".", "..", 1) + "."])] = t.pop(name)


def recast(r, t, a):
    name = r.choice(sorted(t))
    kinds = torch.int64, torch.bool, torch.float16, torch.complex64, torch.float8_e4m3fn
    t[name] = t[name].to(r.choice([kind for kind in kinds if kind != t[name].dtype]))


def reshape(r, t, a):
    name = r.choice(sorted(t))
    changes = [lambda x: x[None], lambda x: torch.stack([x, x], -1), lambda x: x[..., None], lambda x: x.new_zeros(0)]
    t[name] = r.choice(changes)(t[name])


def poison(r, t, a):
    name = r.choice([n for n in sorted(t) if t[n].numel()])
    t[name].view(-1)[r.randrange(t[name].numel())] = r.choice([float("nan"), float("inf"), float("-inf")])


def add(r, t, a):
    t[r.choice(["x", "model.x", "adam.99.step", "states.x", "online.x", "pending.x", ""])] = torch.zeros(2)


def clear(r, t, a):
    t.clear()


def every(key, change):
    return lambda t: {n: change(x) if n.endswith(key) else x for n, x in t.items()}


STEPS = [every("losses", change) for change in (lambda x: x[:-1], lambda x: torch.cat([x, x]), lambda x: x[None], lambda x: x.float(), lambda x: x[0],
                                                lambda x: x / 0, lambda x: x[:0])]
STEPS += [every(".step", lambda x: x + 1), every(".step", lambda x: x - 1), every("adam.0.step", lambda x: x - 0.5), every("adam.0.step", lambda x: x - 9)]
STEPS += [every(".exp_avg_sq", torch.neg), lambda t: every("losses", lambda x: torch.cat([x, x]))(every(".step", lambda x: x * 2)(t))]


TENSORS = [pop, rename, recast, reshape, poison, add, clear]
ABOUT = {
    "nothing": lambda r, a: None, "a list": lambda r, a: [a], "a text": lambda r, a: "model", "empty": lambda r, a: {},
    "a key more": lambda r, a: a | {"future": 1}, "a key fewer": lambda r, a: {k: a[k] for k in sorted(a)[1:]},
    "null in it": lambda r, a: a | {r.choice(sorted(a)): None}, "a number in it": lambda r, a: a | {r.choice(sorted(a)): -1},
}
OPTIONS = {
    "mixer": [None, {}, [], "MCConfig"], "vocab_size": [None, 5, 7, "6", 6.0, -6, True], "num_layers": [None, 0, 2, 10**9, "1", [1]],
    "expansion": [0, 1, None, 1e9], "window": [3], "kind": ["Delta", None, 7, "AttentionConfig", []], "d_model": [None, 8, "4", 10**18, -4, 4.0],
    "num_heads": [None, 1, 3, 0], "backend": [None, "linear", "delta", 3, ["dla"]], "aggregation": [None, "none", "best"], "init": [None, "later"],
    "segment_size": [None, 0, -2, "2", 1.5], "gate": [None, "shared", "x"], "top_k": [None, 0, "4"], "pool": [None, "max"], "conv_size": [None, 0, 1, 3],
    "gate_scale": [None, "1", []], "softmax": [None, "all of them"], "chunk_size": [None, 0, 2.0], "segmentation": [None, "random"]}
LENGTHS = [("lengths", v) for v in (
    None, 4, "22", [2], [2, 2, 2, 2], [2, 2, 3], [2, 2, -2], [2, 2, 0], [2, 2, 2.0], [2, 2, "2"], [2, 2, True], [2, 2, None], [6, 0, 0], [1, 1, 4],
    [[2], [2], [2]], {"a": 2}, [])]
LENGTHS += [("about", {"segmentation": kind, "size": v}) for v in (0, -2, 3, "2", [2], 1.5) for kind in ("constant", "fenwick")]
LENGTHS += [("running", v) for v in (None, -1, 2, 7, 1.0, "1", True, [1], 10**12)] + [("about", v) for v in (None, [], "linear", 3)]


def option(r, a):
    name = r.choice(sorted(OPTIONS))
    place = a["model"] if name in ("mixer", "vocab_size", "num_layers") else a["model"]["mixer"]
    place[name] = r.choice([v for v in OPTIONS[name] if v != place.get(name, "") or v is True])
    return a


def damages(path, r):
    "Of a file of one kind: (what was done, what does it) without end."
    whole = path.read_bytes()
    raw = [*BYTES.items(), *(HEADERS.items() if path.name != "record" else ())]
    while True:
        for what, damage in raw:
            if (bad := damage(r, whole)) != whole:
                yield what, lambda target: target.write_bytes(bad)
        if path.name == "record":
            continue
        for change in TENSORS:
            tensors, about = load_tensors(path)
            change(r, tensors, about)
            yield change.__name__, lambda target: save_tensors(target, tensors, about)
        extra = {"weights": {"an option": option}}.get(path.name, {})
        if "cache" in path.name:
            extra = {"lengths": lambda r, a: a | dict([r.choice(LENGTHS)])}
        for what, change in [*ABOUT.items(), *extra.items(), *extra.items()]:
            tensors, about = load_tensors(path)
            if (changed := change(r, json.loads(json.dumps(about)))) != about:
                yield what, lambda target: save_tensors(target, tensors, changed)


def test_1100_damaged_files_are_refused_by_name(files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)                            # not what is tested, and slow
    for path, load in files.items():
        load(path)
    wrong, done, r = [], Counter(), random.Random(20)
    share = {path: {"weights": 300, "checkpoint": 250, "record": 100}.get(path.name, 150) for path in files}
    for path, load in files.items():
        target = tmp_path / f"damaged {path.name}"
        for (what, damage), _ in zip(damages(path, r), range(share[path])):
            damage(target)
            try:
                load(target)
                wrong.append((path.name, what, "silent"))
            except ValueError as error:
                wrong += [] if target.name in str(error) else [(path.name, what, f"not named: {error}")]
            except Exception as error:
                wrong.append((path.name, what, f"{type(error).__name__}: {error}"))
            done[path.name, what] += 1
    assert done.total() == 1100 and not wrong, f"{len(wrong)} of {done.total()}: {wrong[:20]}"


@pytest.mark.parametrize("change", STEPS, ids=range(len(STEPS)))
def test_losses_and_steps_that_no_run_can_have_had(change, files, tmp_path):
    tensors, about = load_tensors(next(path for path in files if path.name == "checkpoint"))
    save_tensors(tmp_path / "changed", change(tensors), about)
    with pytest.raises(ValueError, match="changed does not fit|changed holds NaN"):
        load_run(tmp_path / "changed")


@pytest.mark.parametrize("name", ["linear cache", "swla cache", "titans cache"])
def test_lengths_that_no_pass_leaves(name, files, tmp_path):
    path = next(path for path in files if path.name == name)
    for key, value in LENGTHS:
        tensors, about = load_tensors(path)
        save_tensors(tmp_path / "changed", tensors, about | {key: value})
        with pytest.raises(ValueError, match="changed is not a segment cache|changed does not fit"):
            mc.SegmentCache.load(tmp_path / "changed")


def test_every_byte_counts(files, tmp_path):
    "Not a sample: each byte of the smallest cache and of a record, flipped."
    for path, load in files.items():
        if path.name in ("record", "linear cache"):
            whole, target = path.read_bytes(), tmp_path / path.name
            for i in range(len(whole)):
                target.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
                with pytest.raises(ValueError, match=path.name):
                    load(target)


@pytest.mark.parametrize("bad", ["zeroed", "a model", "a record"])
def test_no_record_is_made_of_a_damaged_checkpoint(bad, tmp_path):
    task = MQAR(16, 16, 4)
    run = Experiment(task, (task,), (0.01,), steps=4, batch=2, search_steps=2, sizes=Sizes(1, 16, 2, 4), sequences=4).run("grm", 0, 0.01)
    checkpoint, model = tmp_path / ".grm-seed0.checkpoint", made(run.model, 0)
    about = {"train": asdict(TrainConfig(4, 0.01, 0)), "model": describe(model)}
    {"a model": lambda: model.save(checkpoint), "a record": lambda: save_json(checkpoint, {"losses": [1.0]}),
     "zeroed": lambda: save_checkpoint(checkpoint, model, optimiser(model), [], about)}[bad]()
    if bad == "zeroed":
        whole = checkpoint.read_bytes()
        checkpoint.write_bytes(whole[:-4_000] + bytes(4_000))
    with pytest.raises(ValueError, match="grm-seed0.checkpoint"):
        measure(run, tmp_path, "a test")
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.name]
