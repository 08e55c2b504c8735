"The paper's tables, and what the book says about them."
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mc
from mc import paper
from mc.evidence.ledger import cell
from mc.evidence.tables import Cell, Table

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "mc/paper/tables.csv"
WAYS = ("grm", "soup", "ssc", "log_linear")


# ---- the numbers

def test_the_numbers_are_those_of_the_paper():
    assert hashlib.sha256(TABLES.read_bytes()).hexdigest() == "ab90294f31593ea0cc1512bf8a1916c43efc75b5b5ebc971ec2eb4fb80b9fd29"
    assert [len(paper.numbers(t)) for t in range(1, 7)] == [429, 99, 288, 154, 30, 10] and len(paper.numbers()) == 1010
    assert paper.numbers()[0] == (1, "760M/30B", "Transformer++", "base", "wiki_ppl", "4K train / seg 256", 24.18, "certain")
    assert cell(6, scale="760M", metric="tokens") == 30e9


def test_tables_is_a_frame_with_the_columns_of_the_file():
    frame = mc.paper.tables()
    assert list(frame) == TABLES.read_text().splitlines()[0].split(",") and len(frame) == 1010
    assert frame.value.dtype == float and frame.table.dtype == int and not frame.isna().any(axis=None)
    assert list(mc.paper.tables(2).table.unique()) == [2] and len(mc.paper.tables(2)) == 99


def test_tables_without_pandas_names_the_extra():
    code = "import sys; sys.modules['pandas'] = None; import mc; print(len(mc.paper.numbers(5))); mc.paper.tables()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "30\n" and run.returncode == 1
    assert "ImportError" in run.stderr and "pip install 'memory-caching-companion[bench]'" in run.stderr


@pytest.mark.parametrize("asked, message", [
    (dict(table=7), "table must be one of 1, 2, 3, 4, 5, 6; got 7"), (dict(table="1"), "table must be one of 1, 2"),
    (dict(table=2, model="GPT"), r"model must be one of Transformer, DLA, Titans \(LMM\); got 'GPT'"),
    (dict(colour="red"), "no field 'colour'; there are table, scale, model"), (dict(table=4, way="residual"), "way must be one of none, log_linear")])
def test_what_no_number_has_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        paper.numbers(**asked)


def test_gains_are_differences_to_the_base_of_the_same_block():
    pick = lambda table, **where: paper.numbers(table, **where)[0]
    better = pick(1, scale="1.3B/100B", model="SWLA", variant="GRM (= Soup)", metric="wiki_ppl")
    assert paper.gain(better) == pytest.approx(18.47 - 18.51)    # a perplexity that rises is a loss
    assert paper.gain(pick(2, model="DLA", way="grm", metric="S-NIAH-1_acc", context="16K")) == pytest.approx(82.4 - 44.0)
    assert paper.gain(pick(5)) is None and paper.gain(pick(6)) is None and paper.gain(pick(4, model="DLA", way="none")) == 0
    assert sum(paper.gain(n) is not None for n in paper.numbers()) == 1010 - 30 - 10
    assert paper.gains(3, "grm") == pytest.approx([38.03 - 30.51, 40.50 - 31.75])


def test_means_of_table_4():
    dla, titans = (paper.summary(4)["not stated", model] for model in ("DLA", "Titans (LMM)"))
    order = ("none", "log_linear", "grm", "soup", "ssc")
    assert [round(dla[w], 2) for w in order] == [15.09, 16.13, 19.04, 18.09, 17.11]
    assert [round(titans[w], 2) for w in order] == [19.53, 17.91, 19.81, 19.09, 18.48]


def test_prose_of_the_errata():
    "Sentences of the errata, of solutions and of other chapters about the paper's tables."
    worse = [n for n in paper.numbers(1) if (paper.gain(n) or 0) < 0]
    assert all(g > 0 for t in (1, 2, 3) for w in WAYS for g in paper.gains(t, w)) and len(worse) == 14
    titans = {w: paper.gains(4, w, model="Titans (LMM)")[0] for w in WAYS}
    assert [round(titans[w], 2) for w in ("soup", "ssc", "log_linear")] == [-0.44, -1.05, -1.62] and titans["grm"] > 0
    big = {m: s for (scale, m), s in paper.summary(1).items() if scale.startswith("1.3B")}["Titans (LMM)"]
    assert round(sum(big[w] for w in ("grm", "soup", "ssc")) / 3 - big["none"], 2) == 1.12
    retrieval = {m: s for (_, m), s in paper.summary(3).items()}
    near = retrieval["Titans (LMM)"]
    assert round(near["grm"] - near["none"], 2) == 8.75 and round(retrieval["Transformer"]["none"] - near["grm"], 2) == 0.5
    for t in (1, 2, 3, 4):                                                   # Log-Linear++: the smallest gain of all
        for s in paper.summary(t).values():
            assert len(s) == 1 or min(s[w] for w in WAYS if w in s) == s["log_linear"]
    for way in ("GRM", "SSC"):                                               # pools: without context, almost no gate
        full, position, even = (cell(5, variant=f"{way}{end}", metric="retrieval_acc") for end in ("", " - context-dependent", " - gating"))
        assert full - position > 3 > 1 > position - even > 0
    heads = [tuple(cell(6, scale=s, metric=m) for m in ("dim", "heads")) for s in ("760M", "1.3B")]
    assert heads == [(1536, 16), (2048, 8)]                                  # the cache's cost
    assert {n.context for n in paper.numbers(1)} == {"4K train / seg 256"}


def test_flags_of_the_tables():
    flags = {label: [n for n in paper.numbers() if paper.erratum(n) == label] for label in set(map(paper.erratum, paper.numbers()))}
    assert len(flags["errata-copied"]) == 3 * 9 + 5 * 11 and len(flags["errata-table-six"]) == 2
    assert {n.value for n in flags["errata-ablation"] if n.certainty != "certain"} == {0.0}
    for label in ("errata-consistent", "errata-retrieval", "errata-longbench"):
        assert flags[label] and all(paper.gain(n) < 0 for n in flags[label])
    labels = set(re.findall(r"^\((errata-[\w-]+)\)=", "".join((ROOT / f"nbs/evidence/{f}.md").read_text() for f in ("errata", "paper_tables")), re.M))
    assert set(flags) - {""} <= labels


# ---- the tables of the pages

def test_a_table_escapes_what_it_shows_and_refuses_what_does_not_fit():
    html = Table(["a", "b"], [[Cell("<b>", 1.5, 'x"y', "k"), "</td>"]], "<i>", filters=["a"], chosen={"a": "'\""})._repr_html_()
    assert "<b>" not in html and "</td>" not in html and "<i>" not in html and 'data-order="1.5"' in html and 'href="x&quot;y"' in html
    with pytest.raises(ValueError, match="no column 'c'; there are a, b"):
        Table(["a", "b"], [], "", filters=["c"])
    with pytest.raises(ValueError, match="every row must have 2 cells"):
        Table(["a", "b"], [["1"]], "")


def test_the_library_becomes_a_plain_script():
    sys.path.append(str(ROOT / "book/_ext"))
    import tables
    assert tables.script("var a=1;export{a as jQuery,b$ as default};") == "(function(){var a=1;window.mcDataTable=b$;\n})();\n"
    with pytest.raises(ValueError, match="exports something else"):
        tables.script("var a=1;export{a as jQuery};")


# ---- the built pages

def test_the_table_is_sorted_filtered_and_plotted(page, site):
    page.goto(f"{site}nbs/evidence/paper_tables.html")
    page.wait_for_selector(".mc-table[data-ready]")
    count = lambda: page.inner_text(".mc-table-count")
    assert count() == "48 of 1,010 rows"
    page.click("text=show all")
    assert count() == "1,010 of 1,010 rows"
    page.select_option("select[aria-label=table]", "4")
    page.select_option("select[aria-label=variant]", "GRM")
    assert count() == "28 of 1,010 rows" and page.locator(".mc-table-plot .points path").count() == 28
    page.click("th:has-text('difference')")
    page.wait_for_selector(".mc-table tbody tr:first-child:has-text('−22.3')")    # the loss on TREC
    page.click("th:has-text('difference')")
    page.wait_for_selector(".mc-table tbody tr:first-child:has-text('TriviaQA')")
    page.fill(".mc-table-bar input", "no such thing")
    assert count() == "0 of 1,010 rows"


def test_without_scripts_the_tables_are_whole(context, site):
    page = context.browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"{site}nbs/evidence/paper_tables.html")
    assert page.locator(".mc-table tbody tr").count() == 1010
    page.close()
