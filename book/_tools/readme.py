"""Writes into README.md what the ledger says, between two sentences of its last section. Run it when records were added."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "Nothing here confirms or refutes the paper's tables.\n\n", "* CPU time of a whole layer"
NAMES = ("SSC in long texts", "only the cache", "best per width", "DLA, GRM", "between, deep")


def written(readme: str, root: Path = ROOT) -> str:
    "`readme` with the sentences of the records of `root`."
    sys.path.insert(0, str(ROOT))
    from mc.evidence.claims import headlines

    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + headlines(root, NAMES) + "\n" + END + after


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))
