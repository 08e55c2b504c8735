"""A cache on disk: equal to one in memory, opens after any kill, refuses what it cannot do, and stays within its memory."""
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import cycle
from unittest.mock import patch

import pytest
import torch

import mc
from mc.disk_cache import DiskCache, create_caches, open_caches
from mc.disk_shard import Shard

BACKENDS = ("linear", "swla", "gated_delta", "dla", "titans")
WAYS = ("residual", "grm", "soup", "ssc", "top_p")
INITS = cycle(("independent", "checkpoint"))


@pytest.fixture(autouse=True)
def no_graph():
    with torch.no_grad():
        yield


def layer_of(backend="linear", aggregation="grm", **more):
    torch.manual_seed(0)
    options = dict(segment_size=4, chunk_size=2, top_k=2) | more
    layer = mc.MemoryCachingLayer(mc.MCConfig(16, 2, backend=backend, aggregation=aggregation, **options)).double()
    for weight in layer.parameters():  # else both layers of a deep memory begin with zeros
        weight.add_(0.1 * torch.randn_like(weight))
    return layer


def tokens(count, batch=1, seed=1):
    return torch.randn(batch, count, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def go_on(layer, x, cuts, cache):
    "Calls of the tokens between `cuts`; a call of one is a step."
    rows = []
    for a, b in zip(cuts, cuts[1:]):
        call = layer.forward_with_cache(x[:, a:b], cache)
        rows.append(call[0])
        cache = call[1]
    return torch.cat(rows, 1), cache


def same(a, b):
    "Whether two caches hold the same."
    some = [replace(c, states={n: getattr(x, "whole", lambda x=x: x)() for n, x in c.states.items()}) for c in (a, b)]
    parts = [{n: t for n, t in mc.SegmentCache._tensors(c).items()} for c in some]
    return a.lengths == b.lengths and a.running == b.running and all(
        torch.allclose(parts[0][n], parts[1][n], atol=1e-9) for n in parts[1])


@pytest.mark.parametrize("init", ["independent", "checkpoint"])
@pytest.mark.parametrize("aggregation", WAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_to_memory(tmp_path, backend, aggregation, init):
    "In pieces, steps, and through closing and opening, at a segment's end and inside one."
    layer, x = layer_of(backend, aggregation, init=init), tokens(27, 2)
    expected = layer(x)
    y, cache = go_on(layer, x, [0, 3, 4, 11, 12], DiskCache.create(tmp_path / "c", layer, 2, shard_bytes=9000))
    cache.release()
    more, cache = go_on(layer, x, [12, 13, 14, 22], DiskCache.open(tmp_path / "c"))
    cache.sync().release()
    rest, cache = go_on(layer, x, [22, 27], DiskCache.open(tmp_path / "c"))
    assert torch.allclose(torch.cat([y, more, rest], 1), expected, atol=1e-9)
    assert same(cache, layer.forward_with_cache(x)[1])
    cache.release()


@pytest.mark.parametrize("backend", BACKENDS)
def test_opened_is_rewound(tmp_path, backend):
    "Without `sync` the running segment is lost; with `segments` those after it are, for good."
    layer, x = layer_of(backend), tokens(23)
    cache = layer.forward_with_cache(x, DiskCache.create(tmp_path, layer, shard_bytes=900))[1]
    assert cache.position == 23
    cache.release()
    plain = layer.forward_with_cache(x)[1]
    for segments in (5, 3):
        cache = DiskCache.open(tmp_path, segments=None if segments == 5 else segments)
        assert same(cache, layer.rewind(plain, segments))
        cache.release()
    cache = DiskCache.open(tmp_path)
    assert len(cache) == 3
    y = layer.forward_with_cache(x[:, 12:], cache)[0]
    assert torch.allclose(y, layer(x)[:, 12:], atol=1e-9)


def test_the_function_and_a_plain_cache(tmp_path):
    "`mc.memory_caching` takes and returns one; a plain cache moves to disk and back."
    x = torch.randn(4, 1, 30, 2, 8, dtype=torch.float64)
    options = dict(segments=4, aggregation="ssc", top_k=2, return_cache=True)
    whole, _ = mc.memory_caching(*x, mc.LinearMemory(), **options)
    _, plain = mc.memory_caching(*x[:, :, :14], mc.LinearMemory(), **options)
    disk = DiskCache.write(tmp_path / "c", plain, mc.LinearMemory())
    for cache in (disk, disk.in_memory()):
        y, _ = mc.memory_caching(*x[:, :, 14:], mc.LinearMemory(), cache=cache, **options)
        assert torch.allclose(y, whole[:, 14:], atol=1e-9)
    disk = DiskCache.write(tmp_path / "d", plain, mc.LinearMemory())
    slow = mc.memory_caching(*x[:, :, 14:], mc.LinearMemory(), cache=disk, implementation="sequential", **options)
    assert torch.allclose(slow[0], whole[:, 14:], atol=1e-9)


def test_a_third_partys_memory_streams(tmp_path):
    class Mine:
        params = ("m",)

        def start(self, k, v):
            return {"m": v.new_zeros(*v.shape, k.shape[-1])}

        def write(self, state, k, v):
            return {"m": state["m"] + v[..., None] * k[..., None, :]}

        def read(self, state, q):
            return (state["m"] @ q[..., None])[..., 0]

    x = torch.randn(4, 1, 13, 2, 8, dtype=torch.float64)
    for way in ("grm", "soup", "ssc"):
        options = dict(segments=4, aggregation=way, return_cache=True)
        whole, _ = mc.memory_caching(*x, mc.LinearMemory(), **options)
        _, plain = mc.memory_caching(*x[:, :, :9], Mine(), **options)
        cache = DiskCache.write(tmp_path / way, plain, Mine())
        for t in range(9, 13):
            y, cache = mc.memory_caching(*x[:, :, t : t + 1], Mine(), cache=cache, **options)
            assert torch.allclose(y[:, 0], whole[:, t], atol=1e-9)


# ---- kills


STREAM = """
import os, sys, torch, mc
from tests.test_disk_cache import layer_of, tokens
from mc.disk_cache import DiskCache
for folder in sys.stdin:    # imported once; each folder has a process of its own, to be killed
    if pid := os.fork():
        os.waitpid(pid, 0)
        print("killed", flush=True)
        continue
    with torch.no_grad():
        layer = layer_of(sys.argv[1])
        cache = DiskCache.create(folder[:-1], layer, shard_bytes=2000)
        print(os.getpid(), flush=True)
        x, a = tokens(100_000), 0
        while True:
            cache = layer.forward_with_cache(x[:, a : a + 5 + a % 7], cache)[1]
            a = cache.position
            print(len(cache), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["linear", "swla"])
def test_a_kill_at_any_moment_loses_the_running_segment_only(tmp_path, backend):
    "SIGKILL at random moments; what the child had been told to be finished is there, and goes on exactly."
    layer, random_ = layer_of(backend), random.Random(backend)
    with subprocess.Popen([sys.executable, "-c", STREAM, backend], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        for trial in range(3):
            folder = tmp_path / str(trial)
            print(folder, file=program.stdin, flush=True)
            pid = int(program.stdout.readline())
            time.sleep(random_.uniform(0.01, 0.4))
            os.kill(pid, signal.SIGKILL)
            told = [0, *map(int, iter(program.stdout.readline, "killed\n"))]
            cache = DiskCache.open(folder)
            assert len(cache) >= told[-1] and cache.running == 0
            n = len(cache) * 4
            x = tokens(100_000)[:, : n + 9]
            _, plain = layer.forward_with_cache(x[:, :n]) if n else (None, None)
            expected = layer.forward_with_cache(x[:, n:], plain)[0]
            assert torch.allclose(layer.forward_with_cache(x[:, n:], cache)[0], expected, atol=1e-9)


def test_a_row_that_was_written_halfway_does_not_count(tmp_path):
    "Any byte of the last row; and what was torn does not count later either."
    layer, x = layer_of(), tokens(20)
    cache = layer.forward_with_cache(x, DiskCache.create(tmp_path, layer, shard_bytes=1 << 20))[1]
    shard = cache.store.shards[0]
    for name in ("states.m", "pools", "edges", "check"):
        row = cache.store.read(name, 3, 4)
        broken = row.clone()
        broken.view(torch.uint8).reshape(-1)[-1] ^= 1
        shard.put(name, 3, broken)
        cache.release()
        cache = DiskCache.open(tmp_path)
        assert len(cache) == 3
        cache = layer.forward_with_cache(x[:, 12:16], cache)[1]  # the same row again
        cache.release()
        cache = DiskCache.open(tmp_path)
        assert len(cache) == 4  # and not 5: the old fifth row is gone
        cache = layer.forward_with_cache(x[:, 16:], cache)[1]
        shard = cache.store.shards[0]
    assert same(cache, layer.forward_with_cache(x)[1])


def test_blank_shards_do_not_count(tmp_path):
    "A kill in a call that finishes several segments may leave shards that were made and not filled."
    layer, x = layer_of(), tokens(24)
    cache = layer.forward_with_cache(x[:, :12], DiskCache.create(tmp_path, layer, shard_bytes=900))[1]
    assert cache.store.rows == 1
    for i in (3, 4):
        Shard.write(cache.store.path(i), cache.store.columns, 1)
    cache.release()
    cache = DiskCache.open(tmp_path)
    assert len(cache) == 3
    assert torch.allclose(layer.forward_with_cache(x[:, 12:], cache)[0], layer(x)[:, 12:], atol=1e-9)


def test_a_full_disk(tmp_path):
    "One clear error that names the folder; the folder opens, and the same cache goes on when there is room."
    layer, x = layer_of(), tokens(40)
    _, cache = layer.forward_with_cache(x[:, :20], DiskCache.create(tmp_path, layer, shard_bytes=2000))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for at in ("write", "put", "flush"):
        with patch.object(Shard, at, side_effect=full), pytest.raises(OSError, match="No space left on device.*5 before it") as error:
            layer.forward_with_cache(x[:, 20:], cache)
        assert error.value.errno == errno.ENOSPC and error.value.filename == str(tmp_path)
    y, cache = layer.forward_with_cache(x[:, 20:25], cache)
    assert torch.allclose(y, layer(x)[:, 20:25], atol=1e-9)
    cache.release()
    cache = DiskCache.open(tmp_path)
    assert len(cache) == 6  # nothing of the calls that failed counts
    y, cache = layer.forward_with_cache(x[:, 24:], cache)
    assert torch.allclose(y, layer(x)[:, 24:], atol=1e-9)


# ---- refusals


def test_two_writers(tmp_path):
    cache = DiskCache.create(tmp_path, layer_of())
    code = f"from mc.disk_cache import DiskCache; DiskCache.open({str(tmp_path)!r})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BlockingIOError" in told.stderr and "has this folder open" in told.stderr and str(tmp_path) in told.stderr
    with pytest.raises(BlockingIOError):
        DiskCache.open(tmp_path)
    cache.release()
    DiskCache.open(tmp_path).release()


def test_one_line_of_segments(tmp_path):
    "An older cache reads and starts a segment, but cannot finish another one in the same place."
    layer, x = layer_of(), tokens(30)
    _, old = layer.forward_with_cache(x[:, :9], DiskCache.create(tmp_path, layer))
    _, new = layer.forward_with_cache(x[:, 9:14], old)
    assert torch.allclose(layer.forward_with_cache(x[:, 9:11], old)[0], layer(x)[:, 9:11], atol=1e-9)
    with pytest.raises(ValueError, match="holds 3 segments.*began with 2.*one line"):
        layer.forward_with_cache(x[:, 9:14], old)
    assert torch.allclose(layer.forward_with_cache(x[:, 14:], new)[0], layer(x)[:, 14:], atol=1e-9)


@pytest.mark.parametrize("change, named", [(dict(segment_size=8), "segment"), (dict(aggregation="ssc"), "aggregation"), (dict(backend="dla"), "memory"), (dict(init="checkpoint"), "init")])
def test_another_configuration_is_refused_by_name(tmp_path, change, named):
    DiskCache.create(tmp_path, layer_of()).release()
    with pytest.raises(ValueError, match=f"another configuration.*{named}"):
        layer_of(**change).forward_with_cache(tokens(3), DiskCache.open(tmp_path))


@pytest.mark.parametrize("change, why", [(dict(segmentation="fenwick"), "log2"), (dict(segmentation="logarithmic"), "go on"), (dict(aggregation="none"), "no segments")])
def test_what_needs_no_disk_is_refused(tmp_path, change, why):
    with pytest.raises(ValueError, match=why):
        DiskCache.create(tmp_path / "c", layer_of(**change))
    assert not (tmp_path / "c").exists()


def test_what_a_cache_on_disk_cannot_do(tmp_path):
    layer = layer_of()
    cache = DiskCache.create(tmp_path, layer, 2)
    _, cache = layer.forward_with_cache(tokens(9, 2), cache)
    assert cache.reorder([0, 1]) is cache and cache.select(torch.tensor([0, 1])) is cache and cache.repeat(1) is cache
    for change in (lambda: cache.reorder([1, 0]), lambda: cache.repeat(2)):
        with pytest.raises(ValueError, match="stay where they are"):
            change()
    for wrong in (1, None, "ab", [0.0, 1.0], [False, True], torch.tensor([0.0, 1.0])):
        with pytest.raises(ValueError, match="index must be a row of integers from 0 to 1"):
            cache.reorder(wrong)
    for wrong in (0, True, 1.0, "a", None):
        with pytest.raises(ValueError, match="n must be an integer >= 1"):
            cache.repeat(wrong)
    with pytest.raises(ValueError, match="dtype of a cache on disk"):
        cache.to(torch.float32)
    with torch.enable_grad(), pytest.raises(ValueError, match="no gradients.*no_grad"):
        layer.forward_with_cache(tokens(1, 2), cache)
    with pytest.raises(ValueError, match="rows of one length"):
        layer.forward_with_cache(tokens(3, 2), cache, torch.tensor([[1, 1, 1], [1, 1, 0]]))
    with pytest.raises(ValueError, match="holds a cache already"):
        DiskCache.create(tmp_path, layer)
    with pytest.raises(ValueError, match="begin with DiskCache.create"):
        swla = layer_of("swla", init="checkpoint")
        memory, _ = swla.backend(tokens(1))
        DiskCache.write(tmp_path / "d", swla.forward_with_cache(tokens(9))[1], memory)


def test_a_call_without_tokens(tmp_path):
    layer, x = layer_of(), tokens(12, 2)
    _, cache = layer.forward_with_cache(x[:, :5], DiskCache.create(tmp_path, layer, 2))
    y, cache = layer.forward_with_cache(x[:, :3], cache, torch.zeros(2, 3))
    assert isinstance(cache, DiskCache) and (y == 0).all() and (cache.position, cache.columns) == (5, 8)
    y, cache = layer.forward_with_cache(x[:, 5:], cache)
    assert torch.allclose(y, layer(x)[:, 5:], atol=1e-9)


def test_rows_that_differ_do_not_move_to_disk(tmp_path):
    layer, mask = layer_of(), torch.tensor([[1] * 9, [1] * 2 + [0] * 7])
    _, cache = layer.forward_with_cache(tokens(9, 2), None, mask)
    with pytest.raises(ValueError, match=r"cache must be of rows.*\[9, 2\].*cache.row"):
        DiskCache.write(tmp_path / "c", cache, layer.backend(tokens(1))[0])
    assert not (tmp_path / "c").exists()
    for b in range(2):
        moved = DiskCache.write(tmp_path / str(b), cache.row(b), layer.backend(tokens(1))[0])
        assert moved.positions == [[9], [2]][b]
        moved.release()


def test_a_released_cache_neither_reads_nor_writes(tmp_path):
    "Somebody else may have the folder by now: a `sync` would write into his."
    layer, x = layer_of(), tokens(12)
    _, cache = layer.forward_with_cache(x[:, :6], DiskCache.create(tmp_path, layer))
    cache.release()
    cache.release()
    other = DiskCache.open(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    for use in (cache.sync, cache.in_memory, lambda: layer.forward_with_cache(x[:, 6:7], cache), lambda: layer.forward_with_cache(x[:, 6:], cache)):
        with pytest.raises(ValueError, match=f"{tmp_path} was released.*open it again"):
            use()
    assert before == sorted(p.name for p in tmp_path.iterdir())
    assert torch.allclose(layer.forward_with_cache(x[:, 4:], other)[0], layer(x)[:, 4:], atol=1e-9)


def test_folders_and_models_are_named(tmp_path):
    layer = layer_of()
    for folder in (None, 3, "", b"x"):
        for call in (lambda: DiskCache.create(folder, layer), lambda: DiskCache.open(folder), lambda: open_caches(folder)):
            with pytest.raises(ValueError, match="folder must be a path"):
                call()
    with pytest.raises(ValueError, match="model must be a LanguageModel; got an object of type MemoryCachingLayer"):
        create_caches(tmp_path, layer)


@pytest.mark.parametrize("damage", ["cut", "gone", "other", "json"])
def test_damage_is_named(tmp_path, damage):
    layer = layer_of()
    _, cache = layer.forward_with_cache(tokens(30), DiskCache.create(tmp_path, layer, shard_bytes=900))
    cache.release()
    first = tmp_path / "shard-000000.safetensors"
    if damage == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    elif damage == "gone":
        first.unlink()
    elif damage == "other":
        first.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    else:
        (tmp_path / "cache.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=str(tmp_path)):
        DiskCache.open(tmp_path)


# ---- a model, and its memory


def test_a_model_opens_at_a_token_that_all_blocks_share(tmp_path):
    torch.manual_seed(0)
    config = mc.LMConfig(32, 2, mc.MCConfig(16, 2, segment_size=4, aggregation="ssc", top_k=2))
    model, text = mc.LanguageModel(config).double(), torch.randint(32, (1, 40))
    whole = model(text)
    _, caches = model.forward_with_cache(text[:, :18], create_caches(tmp_path, model))
    for cache in caches:
        cache.sync().release()
    caches = open_caches(tmp_path)
    assert [cache.position for cache in caches] == [18, 18]
    logits, caches = model.forward_with_cache(text[:, 18:26], caches)
    assert torch.allclose(logits, whole[:, 18:26], atol=1e-9)
    for cache in caches:
        cache.release()
    DiskCache.open(tmp_path / "block-001", segments=5).release()  # as if killed between two blocks
    caches = open_caches(tmp_path)
    assert [cache.position for cache in caches] == [20, 20]
    logits, _ = model.forward_with_cache(text[:, 20:], caches)
    assert torch.allclose(logits, whole[:, 20:], atol=1e-9)
    with pytest.raises(ValueError, match="block 0 is Attention"):
        create_caches(tmp_path / "a", mc.LanguageModel(mc.LMConfig(32, 1, mc.AttentionConfig(16, 2))))


MEMORY = """
import sys, torch, mc
from dataclasses import replace
from mc.disk_cache import DiskCache, begin
from mc.evidence.longer import resident, from_now
from mc.nn.layer import MCConfig
torch.set_num_threads(1)
torch.manual_seed(0)
layers = {w: mc.MemoryCachingLayer(MCConfig(64, 1, segment_size=16, aggregation=w)) for w in ("ssc", "grm")}
with torch.inference_mode():
    x = torch.randn(1, 256, 64)
    cache = DiskCache.create(sys.argv[1], layers["ssc"])
    for layer in layers.values():
        layer.forward_with_cache(x)
    before = resident("VmRSS")
    from_now()
    for _ in range(256):
        cache = layers["ssc"].forward_with_cache(x, cache)[1]
    asked = replace(cache, about=begin(layers["grm"], 1)[1].about)
    layers["grm"].forward_with_cache(x[:, :15], asked)
    for way, one in (("ssc", cache), ("grm", asked)):
        layers[way].step(x[:, 0], one)
print(cache.position, cache.disk_bytes, resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="resident memory is read from Linux's /proc")
def test_resident_memory_is_bounded(tmp_path):
    "64K tokens leave 68 MB of states on disk, and nothing like it in memory."
    told = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True)
    assert not told.returncode, told.stderr
    position, disk, growth = map(int, told.stdout.split())
    assert position == 65536 and disk > 65e6
    assert growth < 60e6
