"""The statefulness page: what it says follows from records, and what they do not hold is named."""

import math
import re

import pytest
from plugin_project import check_row, write_tables

from harness.figures import LineFigure, figure_to_json
from harness.records import Limits, Record, Status
from harness.render import write_report
from harness.report import RunFacts, build_report
from harness.state_evidence import Evidence, say, times
from harness.statefulness import branch_names, statefulness
from harness.witnesses import headline, witnesses

CHECKS = ("D3", "INFO", "COUPLING", "BALANCE", "EVOLUTION", "D4", "MEMORY", "SHS", "D1", "D2")
BOTH = ("rwkv", "mamba")


@pytest.fixture
def tables(tmp_path):
    rows = [check_row(name, suite="diagnostics") for name in CHECKS] + [check_row("G4")]
    return write_tables(tmp_path, *rows)


def record(source, value=None, half=None, status=Status.PASS, **fields):
    check, _, metric = source.rpartition(".")
    ci = None if half is None or value is None else (value - half, value + half)
    given = {"check": check, "metric": metric, "value": value, "ci": ci, "status": status, "unit": "1", "seeds": (0,)}
    return Record(**{**given, "nodeid": f"suites/{check}.py::test", "scale": "3.5M", **fields})


def shown(source, value, half=None, **fields):
    return record(source, value, half, status=Status.NA, info=True, **fields)


def ablation(branch, horizon, kinds, value, half, seed=0, how="resample"):
    case = f"{branch}, {how}, {kinds}, {horizon} tokens"
    return shown("D3.loss_delta", value, half, case=case, unit="nats/token", seeds=(seed,))


def hybrid(first=0.8, seed=0):
    """Records of a hybrid whose first branch has that share of everything that is heard."""
    found = [record("BALANCE.smaller_write_share", 0.25, 0.02, branch="rwkv", seeds=(seed,))]
    for branch, share in zip(BOTH, (first, 1 - first), strict=True):
        at = {"branch": branch, "case": branch, "seeds": (seed,)}
        found += [
            record("D3.activity", share / 50, 0.001, **at),
            record("INFO.share", share, 0.05, **at),
            record("COUPLING.share", share, 0.05, **at),
            ablation(branch, 16, "long", share / 40, 0.001, seed),
        ]
    return found


def report_of(tables, *records, **changes):
    base = {
        "model": "GF-MH", "parameters": 1, "corpus": "sotu", "embedded_corpus": False, "device": "cpu",
        "scope": "cpu_ref", "scale": "3.5M", "seeds": (0,), "command": "pytest", "records": records,
        "planned": {record.nodeid: record.check for record in records}, "rerun": {},
        "provenance": {"git": {"sha": "0" * 40, "dirty": False}, "wall_s": 1.0},
    }  # fmt: skip
    return RunFacts(**{**base, **changes})


def page_of(tables, *records, **changes):
    return statefulness(build_report(report_of(tables, *records, **changes), tables), tables.checks)


# --- the headline -----------------------------------------------------------------------------------------------------


def head(*records, branches=BOTH):
    evidence = Evidence(records)
    return " ".join(headline(evidence, witnesses(evidence, branches), branches))


def test_analyses_that_agree_name_the_branch_and_its_share():
    said = head(*hybrid(0.8))
    assert said.startswith("D3, INFO and COUPLING agree: the state of rwkv carries more of what is said next")
    assert "with 80 % to 80 % of the whole" in said
    assert "mamba writes more: 0.75 of the variance" in said
    assert "That is no contradiction" in said


def test_the_other_way_round_the_other_branch_is_named():
    said = head(*hybrid(0.2))
    assert "the state of mamba carries more" in said
    assert "mamba writes more" in said
    assert "contradiction" not in said


def test_analyses_that_disagree_are_not_averaged():
    records = [r for r in hybrid(0.8) if r.check != "INFO"] + [r for r in hybrid(0.2) if r.check == "INFO"]
    said = head(*records)
    assert "The analyses disagree on which branch's state carries more" in said
    assert "information: mamba" in said
    assert "swapped state, predictions, swapped state, loss, gradient: rwkv" in said


def test_intervals_that_overlap_name_no_branch():
    assert head(*hybrid(0.5)).startswith("No analysis can tell rwkv from mamba by what is heard of their states.")
    without = [r.model_copy(update={"ci": None}) for r in hybrid(0.8)]
    assert head(*without).startswith("No analysis can tell")


def test_seeds_that_differ_name_no_branch():
    found = witnesses(Evidence([*hybrid(0.8), *hybrid(0.2, seed=1)]), BOTH)
    assert {(witness.leader, witness.undecided) for witness in found if witness.heard} == {(None, "seeds differ")}
    found = witnesses(Evidence([*hybrid(0.8), *hybrid(0.7, seed=1)]), BOTH)
    assert {witness.leader for witness in found if witness.heard} == {"rwkv"}
    assert found[2].sizes["rwkv"] == "0.75 (mean of 2 seeds, 0.7 to 0.8)"


def test_an_analysis_that_did_not_run_is_named_and_decides_nothing():
    said = head(*(r for r in hybrid(0.8) if r.check in ("D3", "BALANCE")))
    assert said.startswith("D3 says: the state of rwkv carries more")
    assert "Not asked: information (missing: INFO was not part of this run); gradient (" in said


def test_losses_below_zero_have_no_shares():
    found = witnesses(
        Evidence([ablation("rwkv", 16, "long", 0.02, 0.01), ablation("mamba", 16, "long", -0.01, 0.01)]), BOTH
    )
    assert found[1].shares == {}
    assert found[1].leader == "rwkv"


def test_what_lies_in_the_short_states_is_said():
    assert "short ones" not in head(*hybrid(0.8), *(ablation(b, 16, "all", 0.02, 0.02) for b in BOTH))
    said = head(*hybrid(0.8), ablation("mamba", 16, "all", 0.03, 0.001), ablation("rwkv", 16, "all", 0.02, 0.001))
    assert "that of mamba costs 0.03 nats/token [0.029, 0.031] instead of 0.005 nats/token" in said
    assert said.count("short ones") == 1


def test_one_branch_is_not_compared_with_itself():
    one = [r for r in hybrid(1.0) if "rwkv" in (r.branch, r.case.split(",")[0])]
    said = head(*one, branches=("rwkv",))
    assert said.startswith("One branch has a state, rwkv, and carries all of it: another document's state moves")
    assert "agree" not in said
    # what compares branches does not apply to one: it was not left out
    told = [record(f"{check}.", status=Status.NA, note="one branch") for check in ("INFO", "COUPLING")]
    assert "Not asked" not in head(*(r for r in one if r.check == "D3"), *told, branches=("rwkv",))


def test_without_a_branch_nothing_is_claimed():
    assert head(branches=()) == "No record names a branch with a state, so nothing can be said of what one carries."


# --- the evidence -----------------------------------------------------------------------------------------------------


def test_what_is_missing_says_why():
    evidence = Evidence([
        record("D3.", status=Status.MISSING, note="the model lacks state; prerequisite G1 not run here"),
        record("INFO.", status=Status.NA, note="one branch"),
        record("D4.long_range_gain", 1.0),
    ])  # fmt: skip
    assert evidence.why_not("D3.activity") == "missing: D3, the model lacks state"
    assert evidence.why_not("INFO.share") == "not applicable: INFO, one branch"
    assert evidence.why_not("D4.degradation") == "missing: D4 gave no such number"
    assert evidence.why_not("SHS.state_health_score") == "missing: SHS was not part of this run"


def test_numbers_of_one_and_of_several_seeds():
    assert say([record("D3.m", 1.0, 0.5, unit="nats")]) == "1 nats [0.5, 1.5]"
    assert say([record("D3.m", 1.0, 0.5, unit="nats"), record("D3.m", 2.0, 0.5, unit="nats", seeds=(1,))]) == (
        "1.5 nats (mean of 2 seeds, 1 to 2)"
    )
    assert times([record("B.m", 61610403.6, note="rwkv over mamba, variances")]) == "61,600,000x, rwkv over mamba"
    assert times([record("B.m", 1.2648)]) == "1.265x"
    assert times([record("B.m", math.nan)]) == "none: one of the two is exactly 0"


def test_branches_are_those_that_have_a_state():
    assert branch_names(hybrid()) == ["rwkv", "mamba"]
    assert branch_names([record("G4.activation_share", 1.0, branch="other")]) == []


# --- the page ---------------------------------------------------------------------------------------------------------


def limited(source, value, **fields):
    limits = Limits(pass_band=(0.5, 1.0), warn_band=(0.1, 1.0), source="s", calibrated=False)
    return record(source, value, threshold=limits, direction="higher", **fields)


def test_a_card_shows_each_layer_and_its_weak_places_first(tables):
    weak = [
        limited("D2.directions", 0.4, status=Status.WARN, branch="rwkv", layer=1),
        limited("D2.directions", 0.05, status=Status.FAIL, branch="rwkv", layer=3),
        limited("D2.directions", 0.9, branch="rwkv", layer=2),
    ]
    page = page_of(tables, *hybrid(), *weak)
    card = page.cards[0]
    assert [(r.status, r.layer) for r in card.weak] == [("FAIL", 3), ("WARN", 1)]
    assert page.cards[1].weak == []
    (row,) = card.layers.rows
    assert row[0] == "directions between texts"
    assert card.layers.columns == ["layer 1", "layer 2", "layer 3"]
    assert [(cell.value, cell.status) for cell in row[1]] == [("0.4", "WARN"), ("0.9", "PASS"), ("0.05", "FAIL")]


def test_the_share_of_what_is_written_is_that_of_each_branch(tables):
    page = page_of(tables, *hybrid())
    written = {card.branch: card.does[-1] for card in page.cards}
    assert written["rwkv"].value == "0.25 [0.23, 0.27]"
    assert written["mamba"].value == "0.75 [0.73, 0.77]"


def test_what_happens_without_it_has_every_replacement_and_horizon_that_was_measured(tables):
    records = [ablation("rwkv", horizon, "long", 0.1, 0.01, how=how) for horizon in (1, 16) for how in ("zero", "mean")]
    page = page_of(tables, *hybrid(), *records, ablation("rwkv", 64, "long", 0.001, 0.01))
    grid = page.cards[0].without
    assert grid.columns == ["next token", "next 16 tokens", "next 64 tokens"]
    assert {name: [bool(cell.value) for cell in cells] for name, cells in grid.rows} == {
        "zero": [True, True, False],
        "mean": [True, True, False],
        "another text's": [False, True, True],
    }


def test_recall_is_that_of_the_best_layer(tables):
    records = [
        shown("MEMORY.accuracy", value, branch="rwkv", layer=layer, case="queried, lag 8", null_value=0.1)
        for layer, value in enumerate((0.2, 0.5, 0.3))
    ]
    page = page_of(tables, *hybrid(), *records)
    ((name, cells),) = page.memory.rows
    assert (name, [cell.value for cell in cells], page.chance) == ("queried, lag 8", ["0.5", ""], "0.1")


def test_the_parts_of_the_score_come_weakest_first(tables):
    parts = [shown("SHS.subscore", v, case=name, note=f"reading {v}; more") for name, v in (("a", 0.9), ("b", 0.2))]
    page = page_of(tables, *hybrid(), limited("SHS.state_health_score", 0.2, status=Status.WARN), *parts)
    assert [(part.name, part.score, part.reading) for part in page.parts] == [
        ("b", 0.2, "reading 0.2"),
        ("a", 0.9, "reading 0.9"),
    ]
    assert (page.score.value, page.score.status) == ("0.2", "WARN")


def rendered(tables, directory, *records, **changes):
    write_report(report_of(tables, *records, **changes), tables, directory)
    return (directory / "statefulness.html").read_text(), (directory / "statefulness.md").read_text()


NASTY = "<script>alert(1)</script> | {{ 7 * 7 }}"


def figure(name, check):
    drawn = LineFigure(f"title of {name}", "x", "y", {"": {"a": [(0, 1.0), (1, 2.0)]}})
    return {"name": name, "check": check, "nodeid": "n", "figure": figure_to_json(drawn)}


def test_the_page_is_whole_escaped_and_linked(tables, tmp_path):
    broken = record("D1.", status=Status.MISSING, note=NASTY)
    weak = limited("D2.directions", 0.4, status=Status.WARN, branch="rwkv", layer=1, case=NASTY)
    figures = [figure("later", "EVOLUTION"), figure("first", "D3"), figure("elsewhere", "G4")]
    html, markdown = rendered(tables, tmp_path / "out", *hybrid(), broken, weak, record("G4.x"), figures=figures)
    for text in (html, markdown):
        assert "<script>" not in text
        assert "{{ 7 * 7 }}" in text
        assert "D3, INFO and COUPLING agree" in text
        assert "108,583x" in text
        assert text.index("title of first") < text.index("title of later")
        assert "title of elsewhere" not in text
        for absent in ("SHS was not part of this run", "EVOLUTION was not part of this run", "D1 test"):
            assert absent in text
        assert not re.search(r"\b(None|nan|Undefined)\b", text)
    assert not re.search(r'(src|href)="(?!#|data:|decision\.html|plots/)', html), (
        "the page loads something from elsewhere"
    )
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", html))
    decision = (tmp_path / "out" / "decision.html").read_text()
    assert 'href="statefulness.html"' in decision
    assert "title of elsewhere" in decision
    assert "title of first" not in decision


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record("D3.", status=Status.MISSING, note="the model lacks state")],
        [record("D3.activity", 0.02, 0.001, branch="attention", case="attention", unit="nats/token")],
        hybrid(),
    ],
    ids=["nothing", "no hook", "one branch", "hybrid"],
)
def test_a_page_can_be_made_of_little_and_leaves_nothing_blank(tables, tmp_path, records):
    other = limited("D2.directions", 0.9)
    html, markdown = rendered(tables, tmp_path / "out", *records, other)
    rows = re.findall(r"<tr>(.*?)</tr>", html, flags=re.S)
    assert rows
    quantities = [row for row in rows if 'class="what"' in row]
    assert quantities
    for row in quantities:
        value = re.sub(r"<[^>]+>", "", row.split("<td>", 1)[1])
        assert value.strip(), row
    assert "missing: " in html
    assert "missing: " in markdown
    assert ("71x" in html) == (len(branch_names(records)) == 2)


def test_the_baseline_is_on_the_page_too(tables, tmp_path):
    before = build_report(report_of(tables, *hybrid(0.6)), tables)
    html, markdown = rendered(tables, tmp_path / "out", *hybrid(0.8), baseline=before.metrics, baseline_name="earlier")
    for text in (html, markdown):
        assert "Since earlier" in text
        assert "changed" in text
