"""Written whole or not at all, swept after kills, and independent of its file once loaded."""
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import safetensors.torch
import torch

import mc
from mc.files import sweep, write_atomic
from mc.storage import load_json, load_tensors, plain_names, save_json, save_tensors, seal

KILLED = """
import os, signal, sys
from mc.files import write_atomic
os.{where} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(sys.argv[1], b"new" * 1000)
"""


def hidden(folder):
    return [p for p in folder.iterdir() if p.name.startswith(".")]


def same(a, b):
    a, b = a._tensors(), b._tensors()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_killed_writer_keeps_the_old_file_and_the_next_one_sweeps(where, tmp_path):
    write_atomic(tmp_path / "file", b"old")
    for _ in range(2):
        job = subprocess.run([sys.executable, "-c", KILLED.format(where=where), tmp_path / "file"])
        assert job.returncode == -signal.SIGKILL and (tmp_path / "file").read_bytes() == b"old" and len(hidden(tmp_path)) == 1
    write_atomic(tmp_path / "another", b"")
    assert not hidden(tmp_path)


def test_sweeping_spares_living_writers_and_the_files_of_others(tmp_path):
    others = [".file.123", ".mc-notes", ".checkpoint", "mc-1.part"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    left, started, go = tmp_path / ".mc-0123456789abcdef.part", threading.Event(), threading.Event()
    left.write_bytes(b"left by a kill")
    real = os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (started.set(), go.wait(20), real(file)))
        writer = threading.Thread(target=write_atomic, args=(tmp_path / "file", b"whole"))
        writer.start()
        assert started.wait(20)
        sweep(tmp_path)
        assert not left.exists() and len(list(tmp_path.glob(".mc-*.part"))) == 1
        go.set()
        writer.join()
    assert (tmp_path / "file").read_bytes() == b"whole" and sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "file"])
    sweep(tmp_path / "not there")


def write_many(folder, who):
    os.fsync = lambda file: None
    for i in range(60):
        write_atomic(folder / "shared", bytes([who]) * 5000)
        write_atomic(folder / f"own {who}", str(i).encode())


def test_threads_and_processes_write_side_by_side(tmp_path):
    "Every write sweeps, so each of these sweeps while five others write."
    jobs = [multiprocessing.get_context("fork").Process(target=write_many, args=(tmp_path, who)) for who in (1, 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fsync)                                       # put back what the threads take away
        jobs += [threading.Thread(target=write_many, args=(tmp_path, who)) for who in (3, 4, 5, 6)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(60)
    assert [job.exitcode for job in jobs[:2]] == [0, 0]
    assert [(tmp_path / f"own {who}").read_bytes() for who in range(1, 7)] == [b"59"] * 6
    assert len(set((tmp_path / "shared").read_bytes())) == 1 and (tmp_path / "shared").stat().st_size == 5000 and not hidden(tmp_path)


def test_a_temporary_that_vanishes_is_written_again(tmp_path, monkeypatch):
    "As on a disk whose locks other machines do not see."
    real, seen = os.replace, []
    def replace(temporary, path):
        seen.append(temporary)
        os.unlink(temporary) if len(seen) == 1 else None
        return real(temporary, path)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole" and len(set(seen)) == 2


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "a b\n#", "日本"])
def test_every_name_that_a_file_can_have(name, tmp_path):
    save_json(tmp_path / "new" / "folders" / name, {"a": 1})
    assert load_json(tmp_path / "new" / "folders" / name) == {"a": 1}


def test_a_link_stays_a_link_and_the_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "link").symlink_to("real/file")
    (tmp_path / "real").mkdir()
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "link", b"through it")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/file").read_bytes() == b"through it"
    assert (tmp_path / "real/file").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_names_it(where, tmp_path, monkeypatch):
    save_json(tmp_path / "r.json", {"a": 1})
    def full(*arguments):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="No space left on device: '.*r.json'") as caught:
        save_json(tmp_path / "r.json", {"a": 2})
    assert caught.value.errno == 28 and load_json(tmp_path / "r.json") == {"a": 1} and not hidden(tmp_path)


def test_a_limit_that_is_met_in_the_middle_of_a_write(tmp_path):
    "The system's own: no file of this process may pass 2,000 bytes."
    save_json(tmp_path / "r.json", {"a": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: '.*r.json'"):
            save_json(tmp_path / "r.json", {"a": "x" * 9000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_json(tmp_path / "r.json") == {"a": 1} and not hidden(tmp_path)


@pytest.mark.parametrize("call", [lambda p: save_json(p, {}), lambda p: save_tensors(p, {}, {}), load_json, load_tensors, seal, mc.SegmentCache.load,
                                  mc.LanguageModel.load, lambda p: write_atomic(p, b"")], ids=lambda call: call.__qualname__)
def test_what_is_no_file_is_refused_by_name(call, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=f"path must name a file; {tmp_path} is a folder"):
        call(tmp_path)
    with pytest.raises(ValueError, match="path must name a file; /dev/null is a device"):
        call("/dev/null")
    for bad in ("", None, 3, b"file", "a\0b", "\ud800", ["file"]):
        with pytest.raises(ValueError, match="path must name a file, as text or a Path; got"):
            call(bad)
    with pytest.raises((ValueError, OSError), match="file/below"):
        call(tmp_path / "file/below")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"] and (tmp_path / "file").read_bytes() == b""


def test_a_missing_file_is_named(tmp_path):
    for load in (load_json, load_tensors, mc.SegmentCache.load, mc.LanguageModel.load):
        with pytest.raises(FileNotFoundError, match="not there"):
            load(tmp_path / "not there")


def test_what_is_loaded_is_not_a_map_of_its_file(tmp_path):
    torch.manual_seed(0)
    model, tokens = mc.LanguageModel(mc.LMConfig(9, 1, mc.MCConfig(64, 2, segment_size=2))), torch.arange(9)[None]
    _, caches = model.forward_with_cache(tokens)
    model.save(tmp_path / "m")
    caches[0].save(tmp_path / "c")
    loaded, cache = mc.LanguageModel.load(tmp_path / "m"), mc.SegmentCache.load(tmp_path / "c")
    for path in tmp_path.iterdir():
        with open(path, "r+b") as file:
            file.write(b"\xff" * path.stat().st_size)
            file.truncate(10)
    assert torch.equal(loaded(tokens), model(tokens))
    assert same(cache, caches[0])


@pytest.mark.parametrize("backend", ["linear", "swla", "dla", "titans", "gated_delta"])
@pytest.mark.parametrize("segmentation", ["constant", "logarithmic", "fenwick"])
@pytest.mark.parametrize("aggregation, tokens", [("none", 7), ("grm", 1), ("ssc", 7), ("grm", 8)])
def test_every_model_and_cache_comes_back(backend, segmentation, aggregation, tokens, tmp_path):
    torch.manual_seed(0)
    constants = {"alpha": 0.9} if backend != "linear" else None
    mixer = mc.MCConfig(8, 2, backend, aggregation, segmentation, segment_size=2, chunk_size=2, constants=constants)
    model, x = mc.LanguageModel(mc.LMConfig(9, 2, mixer)).to(torch.bfloat16), torch.arange(9)[None, :tokens]
    model.save(tmp_path / "m")
    again, state = mc.LanguageModel.load(tmp_path / "m"), torch.get_rng_state()
    assert not any(t.is_meta for t in [*again.parameters(), *again.buffers()]) and all(p.requires_grad for p in again.parameters())
    assert torch.equal(again(x), model(x)) and again.config == model.config and torch.equal(torch.get_rng_state(), state)
    for cache in model.forward_with_cache(x)[1]:
        cache.save(tmp_path / "c")
        back = mc.SegmentCache.load(tmp_path / "c")
        assert (back.lengths, back.running, back.about) == (cache.lengths, cache.running, cache.about)
        assert same(back, cache)


def test_the_default_type_and_device_do_not_matter(tmp_path):
    save_tensors(tmp_path / "a", {"w": torch.arange(3.0), "none": torch.zeros(0, 2)}, {"x": 1})
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            tensors, about = load_tensors(tmp_path / "a")
            save_tensors(tmp_path / "b", tensors, about)
    finally:
        torch.set_default_dtype(torch.float32)
    assert tensors["w"].tolist() == [0, 1, 2] and tensors["w"].dtype == torch.float32 and tensors["none"].shape == (0, 2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()          # the same content, the same file


@pytest.mark.parametrize("bad, message", [
    (torch.zeros(2, device="meta"), "tensors: w must be dense and have values; got torch.strided on meta"), ([1.0], "tensors: w must be a tensor; got list"),
    (torch.eye(2).to_sparse(), "tensors: w must be dense and have values; got torch.sparse_coo on cpu"),
    (torch.zeros(2, dtype=torch.complex128), "tensors: safetensors has no such type or name: torch.complex128")], ids=str)
def test_tensors_that_have_no_values_are_refused(bad, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_tensors(tmp_path / "w", {"w": bad}, {})
    for name in ("__metadata__", 3, "\ud800"):
        with pytest.raises(ValueError, match="tensors: "):
            save_tensors(tmp_path / "w", {name: torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="content must be bytes; got str"):
        write_atomic(tmp_path / "w", "text")
    assert not list(tmp_path.iterdir())


def test_records_take_numpy_numbers_and_refuse_what_json_has_not(tmp_path):
    save_json(tmp_path / "r", {"a": np.int64(3), "b": np.float32(0.5), "c": np.bool_(True), "name": "\ud800 ü"})
    assert load_json(tmp_path / "r") == {"a": 3, "b": 0.5, "c": True, "name": "\ud800 ü"}
    for bad in ({"a": float("nan")}, {"a": np.float64("inf")}, {"a": {1, 2}}, {"a": np.zeros(2)}, {("a",): 1}):
        with pytest.raises(ValueError, match="content must be texts, finite numbers, lists and dicts"):
            save_json(tmp_path / "r", bad)
    for bad in ([1], None, {"sha256": ""}):
        with pytest.raises(ValueError, match="content must be a dict without the key 'sha256'"):
            save_json(tmp_path / "r", bad)
    with pytest.raises(ValueError, match="about must be texts, finite numbers"):
        save_tensors(tmp_path / "t", {}, {"a": float("nan")})
    assert load_json(tmp_path / "r")["a"] == 3 and len(list(tmp_path.iterdir())) == 1


def test_windows_line_ends_are_no_damage(tmp_path):
    path = save_json(tmp_path / "r", {"a": [1, 2], "b": "x"})
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_json(path) == {"a": [1, 2], "b": "x"}


def test_files_of_earlier_versions_are_refused_until_they_are_sealed(tmp_path):
    weights, record = tmp_path / "w.safetensors", tmp_path / "r.json"
    weights.write_bytes(safetensors.torch.save({"w": torch.arange(5.0)}, {"about": json.dumps({"model": 1})}))
    record.write_text(json.dumps({"accuracy": 0.25}, indent=1) + "\n")
    for path, load in ((weights, load_tensors), (record, load_json)):
        with pytest.raises(ValueError, match=f"{path.name}.*no checksum.*mc.storage.seal"):
            load(path)
        seal(path)
        with pytest.raises(ValueError, match=f"{path.name}.*has a checksum"):
            seal(path)
    assert load_tensors(weights)[0]["w"].tolist() == [0, 1, 2, 3, 4] and load_tensors(weights)[1] == {"model": 1}
    assert load_json(record) == {"accuracy": 0.25}
    for bad in (b"", b"{}", weights.read_bytes()[:-1], safetensors.torch.save({"w": torch.zeros(1)})):
        (tmp_path / "other").write_bytes(bad)
        with pytest.raises(ValueError, match="other is not a file of an earlier version"):
            seal(tmp_path / "other")


def test_names_in_and_out_of_wrappers():
    names = lambda *given: list(plain_names(dict.fromkeys(given)))
    assert names("_orig_mod.a.w", "_orig_mod.b") == ["a.w", "b"] and names("a._orig_mod.w", "b") == ["a.w", "b"]
    assert names("module.a", "module._orig_mod.b") == names("_orig_mod.module.a", "_orig_mod.module.b") == ["a", "b"]
    assert names("module.a", "b") == ["module.a", "b"] and names() == []
