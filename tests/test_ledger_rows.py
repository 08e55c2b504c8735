"The rows of the ledger, and the open questions, on the records of the repository."
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ledger_records import FAILS, HOLDS, ROOT, three_seeds
from mc.evidence import claims, ledger_runs
from mc.evidence.claims import CLAIMS, claim, counted, sentence, totals
from mc.evidence.ledger import CONTROL, VERDICTS, Claim, unmeasured
from mc.evidence.ledger_runs import paired
from mc.evidence.questions import QUESTIONS, Question
from mc.paper.sentences import SENTENCES, report
from mc.storage import load_json


@pytest.fixture
def made(tmp_path):
    return three_seeds(tmp_path)


def test_what_the_ledger_says_of_gaps_to_attention():
    "The paper's own numbers narrow them, and do not close them; ours have the same rule in both tasks and for both ways."
    rows = [c for c in CLAIMS if "to attention" in c.name]
    assert len(rows) == 4 and all("narrows the gap" in c.says and " without, " in c.paper for c in rows)
    for c in rows:
        found = c.found(ROOT)
        assert "Against softmax attention: no caching " in found.also and found.also.endswith("closed.") and {r.split("/")[3].split("-")[0] for r in found.records} == {c.name[:3].lower(), "none", "attention"}


def test_rows_of_averages_hold_all_that_is_recorded():
    for how in ("uniform", "fading"):
        found = claim(f"{how} average").found(ROOT)
        runs = {p.name for p in (ROOT / "results/after_training/cpu").glob(f"*-{how}-*.json")}
        tests = {(p.rsplit("-seed", 1)[0], s["task"]["length"], s["task"]["pairs"]) for p in runs for s in load_json(ROOT / "results/after_training/cpu" / p)["scores"]}
        assert runs == {Path(r).name for r in found.records if f"-{how}-" in r} and f"weakest of {len(tests)} comparisons" in found.ours
    same = claim("uniform average").found(ROOT)
    assert same.equal and same.said == FAILS and "identity" in same.also and "tests/test_equations.py" in same.records and same.command.split(" && ")[-1].startswith("pytest ")


def test_the_command_of_a_contradiction_shows_the_cells_that_are_counted():
    "Each command is run as it stands; the first and the last in full, and all reports against the rows."
    rows = [c for c in CLAIMS if c.found(ROOT).said == "the paper contradicts itself"]
    assert {c.name for c in rows} == set(SENTENCES)
    for c in rows:
        found, lines = c.found(ROOT), report(c.name).splitlines()
        count, _, of, unit = found.ours.split()[:4]
        assert lines[0] == f"{count} of {of} {unit} do not say so:" and len(lines) == 1 + int(count) and len({*lines}) == len(lines)
        worst = lines[1].split()[0].replace("-", "−")
        assert worst in found.ours or (worst == "+0.00" and "equal" in found.ours)
        assert f"report('{c.name}')" in found.command
    code, = re.findall(r'python -c "(.*)"$', claim("consistent").found(ROOT).command)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == report("consistent") + "\n"
    assert "+0.00  Table 5, SSC, lm_ppl: 13.4, without context-dependent 13.4" in report("every part")
    assert "-0.20  Table 1, 1.3B/100B, SWLA, Log-Linear++, wiki_ppl, 4K train / seg 256: 18.67, base 18.47" in report("consistent")


def test_controls_are_counted_apart(made, monkeypatch):
    rows = [Claim("b", "x", "B is better.", "", "", paired("made/b", "made/a", length=512), ""), Claim("c", CONTROL, "C is better.", "", "", paired("made/a", "made/b", length=512), "")]
    monkeypatch.setattr(claims, "CLAIMS", rows)
    assert counted(made) == {False: {HOLDS: 1}, True: {FAILS: 1}}
    assert totals(made) == f"Of 1 claims of the paper: 1 *{HOLDS}*. Of 1 controls of ours, which are no claims of the paper: 1 *{FAILS}*."
    assert sentence("c", made).startswith("C is better. *Does not hold here* (a control of ours): a 0.47") and "control" not in sentence("b", made)
    assert claims.headlines(made, ("b",)).splitlines()[-1] == f"* {totals(made)}"


def test_the_controls_of_the_ledger():
    controls = {c.name for c in CLAIMS if c.control}
    assert controls == {"only the cache", "after longer training", "best per width", "equal bytes", "deep, equal bytes"} == {c.name for c in CLAIMS if "no such control" in c.where}
    said = counted(ROOT)
    assert sum(said[True].values()) == len(controls) and sum(map(sum, (some.values() for some in said.values()))) == len(CLAIMS)


@pytest.mark.parametrize("variant, said", [
    ("ssc", "SSC"), ("wide", "no caching (one head)"), ("needles-grm-position", "GRM (weights by place only)"), ("mqar-ssc", "SSC"), ("x", "x"),
    ("short-signed-16", "trained at 128 (u = ±q, C = 16)"), ("many-fading-64", "trained on MQAR (fading weights, C = 64)"), ("long-uniform-1024", "trained at 1,024 (even weights, C = 1,024)"),
    ("needles-grm-scale4", "GRM (scores × 4)"), ("mqar-grm-scale16", "GRM (scores × 16)"), ("needles-ssc-as-k1", "SSC (trained with k = 4, read with k = 1)"),
    ("needles-ssc-random", "SSC (random router)"), ("needles-ssc-k2-random", "SSC (k = 2, random router)"), ("needles-grm-checkpoint", "GRM (checkpoint)"),
    ("needles-ssc-random-as-k8", "SSC (random router, trained with k = 4, read with k = 8)"), ("needles-grm-blocks4", "GRM (4 pools a segment)"),
    ("mqar-grm-detach", "GRM (no gradient through the cache)"), ("swla-ssc", "SWLA (SSC)"), ("dla-grm-64", "DLA (GRM, C = 64)"), ("grm-128", "GRM (C = 128)")])
def test_variants_have_names_for_readers(variant, said):
    assert ledger_runs.label(variant) == said


def listed_variants():
    "Every variant that a record has, or a profile of a benchmark lists."
    found = {load_json(p).get("variant") for p in (ROOT / "results").glob("*/cpu/*.json")}
    for path in (ROOT / "nbs/bench").glob("*.yaml"):
        for profile in yaml.safe_load(path.read_text()).values():
            found |= {*profile.get("variants", ())}
            for way in profile.get("ways", ()):
                changes = [*profile["gates"], *profile["choices"], *(f"blocks{n}" for n in profile["pool_blocks"]), *(f"scale{n}" for n in profile["scales"])]
                changes += [f"{end}{k}{random}" for k in profile["other_ks"] for end in ("k", "as-k") for random in ("", "-random")]
                found |= {f"{task}-{way}-{change}" for task in ("needles", "mqar") for change in changes}
            sizes = profile.get("segment_sizes", ())
            tags = [dict(extrapolation="short", length_of_training="long", state_per_byte="many", own="own")[start] for start in profile.get("starts", ())]
            found |= {f"{tag}-{how}-{C}" for tag in tags for how in profile["readings"] for C in sizes}
    return sorted(found - {None})


def test_no_label_is_a_raw_name():
    variants = listed_variants()
    assert len(variants) > 150 and {"ssc", "dla-grm", "mqar-grm-sum", "needles-ssc-as-k8", "short-signed-16"} <= {*variants}
    raw = {v: ledger_runs.label(v) for v in variants if v not in ("none", "x")}
    known = ("router", "trained", "weights", "gradient", "pools", "scores", "sum", "keys", "caching", "checkpoint", "residual", "attention", "oracle")
    for variant, said in raw.items():
        assert not re.search(r"[a-zA-Z]+\d|_|\w-\w|\b(needles|mqar|short|long|many|own|as-k|detach|signed|shared|fading(?! weights)|uniform|position|none|wide|swla|grm|ssc|dla|titans|soup|fenwick)\b",
                             said.replace("Log-Linear", "").replace("top-p", "")), (variant, said)
        assert any(word in said for word in known) or re.search(r"GRM|SSC|SWLA|DLA|Titans|Soup|Log-Linear", said), (variant, said)
    words = {v: said for v, said in raw.items() if v.startswith(("needles-", "short-", "long-", "many-"))}
    assert len({*words.values()}) >= len(words) - 1 - sum(v.startswith("needles-ssc-") and v.endswith("-random") and "-as-" in v for v in words)


def test_what_the_labels_say_of_training_is_what_the_records_say():
    trained = {word: load_json(ROOT / f"results/{name}/cpu/none-seed0.json")["settings"]["task"]["length"]
               for word, name in (("short", "extrapolation"), ("long", "length_of_training"))}
    assert {w: ledger_runs.word(w) for w in trained} == {w: f"trained at {n:,}" for w, n in trained.items()}
    assert load_json(ROOT / "results/gates/cpu/needles-ssc-seed0.json")["settings"]["model"]["mixer"]["top_k"] == 4


def test_a_sentence_has_the_verdict_and_the_numbers(made, monkeypatch):
    monkeypatch.setattr(claims, "CLAIMS", [Claim("b", "", "B is better.", "", "", paired("made/b", "made/a", length=512), ""),
                                           Claim("c", "", "C is better.", "", "", paired("made/x", "made/a", length=512), "")])
    said = sentence("b", made)
    assert said == "B is better. *Holds here*: b 0.58, a 0.47 at 512 tokens, +11.0 points (+8.5 to +13.5), 3 seeds."
    assert sentence("c", made) == "C is better. *Not measured yet*."
    with pytest.raises(ValueError, match="name must be one of b, c; got 'd'"):
        claim("d")


# ---- the rows

@pytest.mark.parametrize("row", CLAIMS, ids=lambda c: c.name)
def test_every_row_has_its_record_its_number_its_chapter_and_its_command(row):
    found = row.found(ROOT)
    assert found.said in VERDICTS and row.says.endswith(".") and row.where and row.paper and row.about
    chapter, _, label = row.page.partition("#")
    assert f"({label or '#'})=" in (ROOT / f"{chapter}.md").read_text() or not label
    assert all((ROOT / r).exists() for r in found.records)
    assert found.command or found.said in ("not measured", "not testable at this scale")
    assert found.said != "not measured" or "It takes" in found.ours    # what would be needed
    for command in filter(None, found.command.split(" && ") if not found.command.startswith("python") else []):
        if command.startswith("pytest"):
            assert re.fullmatch(r"pytest (tests/\w+\.py) -k (\w+)", command)
            continue
        name, profile = re.fullmatch(r"mc bench (\w+) --profile (\w+)", command).groups()
        file = ROOT / f"nbs/bench/{name}.yaml"
        assert profile in yaml.safe_load(file.read_text()) if file.exists() else found.said == "not measured yet"


def test_names_are_different():
    assert len({c.name for c in CLAIMS}) == len(CLAIMS) >= 40 and {c.found(ROOT).said for c in CLAIMS} <= set(VERDICTS)


def test_evidence_is_what_the_records_hold():
    "Recomputed from the files without the ledger's code."
    found = claim("GRM, recall").found(ROOT)
    runs = {}
    for path in found.records:
        r = load_json(ROOT / path)
        right = r.get("accuracy") or next(s["right"] for s in r["scores"] if s["task"]["pairs"] == 64)
        runs.setdefault(r["variant"], {})[r["seed"]] = right
    gaps = [a - runs["none"][s] for s, a in runs["grm"].items()]
    assert found.runs == f"{len(gaps)} seeds" and found.margin[0] == pytest.approx(sum(gaps) / len(gaps)) and found.margin[1] < found.margin[0]


@pytest.mark.parametrize("module, call", [("claims", "Claim"), ("questions", "Question")])
def test_no_number_of_a_row_is_typed(module, call):
    "In the sources numbers are those of tables, sizes of tests and counts; no text that is shown as a number has a digit."
    tree = ast.parse((ROOT / f"mc/evidence/{module}.py").read_text())
    rows = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == call]
    assert len(rows) > 15
    sizes = {64, 120, 128, 512, 1024, 2048, 4096, 8192, 16384}
    for row in rows:
        words = [row.args[4]] if call == "Claim" else []
        specs = [f.format_spec for n in words for f in ast.walk(n) if isinstance(f, ast.FormattedValue)]
        literal = [v for n in words for j in ast.walk(n) if isinstance(j, ast.JoinedStr) and j not in specs for v in j.values if isinstance(v, ast.Constant)]
        literal += [n for n in words if isinstance(n, ast.Constant)]
        assert not [v.value for v in literal if re.search(r"\d", v.value)], ast.unparse(row)
        parts = row.args[4:] + [k.value for k in row.keywords]
        constants = [n.value for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant)]
        typed = {c for c in constants if isinstance(c, int | float) and not isinstance(c, bool)}
        assert typed <= {0, 1, 2, 3, 4, 5, 6, 8} | sizes and not [c for c in typed if isinstance(c, float)], ast.unparse(row)


def test_rows_that_the_paper_contradicts_lead_to_the_errata():
    rows = [c for c in CLAIMS if c.found(ROOT).said == "the paper contradicts itself"]
    assert len(rows) >= 5 and all(c.page.startswith("nbs/evidence/errata#errata-") for c in rows)
    back = (ROOT / "nbs/evidence/errata.md").read_text()
    assert "what_holds" in back or "chap-what-holds" in back


# ---- the open questions

def test_sixteen_questions_have_an_answer_or_a_reason():
    assert len(QUESTIONS) == 16 and len({q.short for q in QUESTIONS}) == 16 and all(q.first for q in QUESTIONS if q.alike > 1)
    for q in QUESTIONS:
        found = q.evidence_in(ROOT)
        assert q.asks.endswith("?") and q.answer(found).endswith(".") and found
        assert all((ROOT / r).exists() for f in found for r in f.records)


def test_an_answer_follows_the_first_comparison(made):
    ask = lambda a, b: Question("", "", "", (paired(f"made/{a}", f"made/{b}", length=512),), "Yes.", "No.", "Unclear.")
    said = {pair: ask(*pair).answer(ask(*pair).evidence_in(made)) for pair in ("ba", "ab", "ca", "xa")}
    assert said == {"ba": "Yes.", "ab": "No.", "ca": "Unclear.", "xa": "Not measured yet."}
    four = Question("", "", "", tuple(paired(f"made/{a}", f"made/{b}", length=512) for a, b in ("ba", "ab", "ca", "xa")), "Yes.", "No.", alike=4, first="b")
    assert four.answer(four.evidence_in(made)) == "It depends: b recalls more in 1 of 3 comparisons, less in 1; 1 undecided."
    three = Question("", "", "", (four.evidence[0], *four.evidence[2:]), "Yes.", "No.", alike=3, first="b")
    assert three.answer(three.evidence_in(made)) == "B recalls more in 1 of 2 comparisons, less in 0; 1 undecided."
    same = paired("made/b", "made/a", length=128)
    mixed = Question("", "", "", (*four.evidence[:3], same), "Yes.", "No.", alike=4, first="b")
    assert mixed.answer(mixed.evidence_in(made)).endswith("more in 1 of 4 comparisons, less in 1; 1 undecided, 1 without any difference.")
    assert (two := Question("", "", "", four.evidence[:1] * 2, "Yes.", alike=2)).answer(two.evidence_in(made)) == "Yes."
    first = Question("", "", "", four.evidence, "Yes.", alike=1)
    assert first.answer(first.evidence_in(made)) == "Yes."    # the others are no evidence for it
    assert (equal := Question("", "", "", (same,), "Yes.", "No.")).answer(equal.evidence_in(made)) == "There is no difference at all."
    why = Question("", "", "", (unmeasured("Nobody has a machine that large."),))
    assert why.answer(why.evidence_in(made)) == "Nobody has a machine that large."


def test_the_scale_of_the_connector_is_answered_by_its_readings():
    (asked,) = [q for q in QUESTIONS if q.short == "W_u"]
    found = asked.evidence_in(ROOT)
    assert "scores × 4" in found[0].ours and found[0].records and asked.answer(found).startswith(("Shape and initialisation", "It depends"))


# ---- the built pages

def test_the_ledger_of_the_page_is_the_computed_one(page, context, site):
    page.goto(f"{site}nbs/start/what_holds.html")
    page.wait_for_selector(".mc-table[data-ready]")
    held = [c for c in CLAIMS if c.found(ROOT).said == HOLDS]
    page.select_option("select[aria-label=verdict]", label=f"■\u00a0{HOLDS}")
    assert page.inner_text(".mc-table-count") == f"{len(held)} of {len(CLAIMS)} rows"
    first = page.locator(".mc-table tbody tr").first
    assert held[0].says in first.inner_text() and first.locator("td.command button").count() == 1
    page.select_option("select[aria-label=verdict]", label="–\u00a0not measured")
    without = page.locator(".mc-table tbody tr")
    assert without.count() >= 1 and without.locator("td.command button").count() == 0    # nothing to copy
    bare = context.browser.new_context(java_script_enabled=False).new_page()
    bare.goto(f"{site}nbs/start/what_holds.html")
    rows = bare.locator(".mc-table tbody tr").all_inner_texts()
    for row, shown in zip(CLAIMS, rows, strict=True):
        found = row.found(ROOT)
        assert all(part in shown for part in (row.says, "" if row.control else row.paper, found.said, found.gap, found.also, found.command))
        assert ("A control of ours" in shown) == row.control
    for link in set(bare.locator(".mc-table tbody a").evaluate_all("all => all.map(a => a.href)")):
        assert bare.request.get(link).ok, link
    bare.context.close()
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_the_questions_open(page, site):
    page.goto(f"{site}nbs/evidence/open_questions.html")
    rows = page.locator("details.mc-question")
    assert rows.count() == len(QUESTIONS) and not rows.nth(3).locator("ul").is_visible()
    rows.nth(3).locator("summary").click()
    assert rows.nth(3).locator("ul").is_visible()
