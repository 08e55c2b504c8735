"Records that are made up, for the tests of the ledger."
from pathlib import Path

from mc.storage import save_json

ROOT = Path(__file__).resolve().parents[1]
HOLDS, FAILS, OPEN = "holds here", "does not hold here", "undecided"


def record(root, name, seed, start=None, **right):
    "A record of the runs `name` with a score for each length: `at128=0.5`."
    benchmark, variant = name.split("/")
    scores = [dict(task=dict(name="needles", vocab_size=64, length=int(n[2:]), pairs=8), sequences=2, right=share, sd_over_sequences=0.0,
                   test_hash="", state_bytes=8, seconds=0.0, routing=None) for n, share in right.items()]
    settings = dict(task={}, model={}, training=None, tests=[], sequences=2, test_tokens=1, start=start, router="learned", test_seed=1)
    save_json(root / f"results/{benchmark}/cpu/{variant}-seed{seed}.json", dict(
        variant=variant, seed=seed, settings=settings, parameters=1, start_sha256=None, scores=scores,
        command="", commit="", device="", torch="", python="", time=""))


def three_seeds(root):
    "b is always .1 above a, c scatters around a, d has one seed, e lacks a seed."
    for seed, a in enumerate((0.2, 0.5, 0.7)):
        record(root, "made/a", seed, at128=1.0, at512=a)
        record(root, "made/b", seed, at128=1.0, at512=a + 0.1 + seed / 100)
        record(root, "made/c", seed, at128=1.0, at512=a + (0.1, -0.1, 0.05)[seed])
        record(root, "other/b", seed, at512=a - 0.1 - seed / 100)
        if seed != 1:
            record(root, "made/e", seed, at512=a)
    record(root, "made/d", 0, at512=0.9)
    record(root, "made/far", 9, at512=0.9)
    return root
