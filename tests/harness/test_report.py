"""The report: decided by records alone, complete, honest about its scope, and reproducible from its own directory."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up_report import TABLE, claim, facts, measured
from plugin_project import check_row, write_tables

from harness.baseline import load_baseline
from harness.figures import LineFigure, Passage, TextFigure, figure_from_json, figure_to_json
from harness.plots import exponential_average
from harness.records import Status
from harness.render import write_report
from harness.report import METRICS_FILE, Report, build_report, decide
from harness.rescore import rescore
from harness.wording import format_band, format_measurement, label


@pytest.fixture
def tables(tmp_path):
    rows = check_row("A1"), check_row("B1"), check_row("L1", scales=["125M"])
    return write_tables(tmp_path, *rows, limits=TABLE)


@pytest.mark.parametrize(
    ("statuses", "outcome", "exit_code"),
    [
        (["PASS", "PASS"], "PASS", 0),
        (["PASS", "WARN"], "WARN", 0),
        (["PASS", "UNSUPPORTED"], "PASS", 0),
        (["NA", "UNSUPPORTED"], "NOT JUDGED", 0),
        ([], "NOT JUDGED", 0),
        (["PASS", "MISSING"], "INCOMPLETE", 11),
        (["WARN", "INVALID"], "INCOMPLETE", 11),
        (["MISSING", "FAIL"], "FAIL", 1),
    ],
)
def test_the_outcome(statuses, outcome, exit_code):
    assert decide([Status(status) for status in statuses], facts()) == (outcome, exit_code)


@given(st.lists(st.sampled_from(Status), max_size=5), st.sampled_from(Status))
def test_taking_evidence_away_never_improves_the_exit_code(statuses, lost):
    rank = {0: 0, 11: 1, 1: 2}
    with_evidence = decide([*statuses, lost], facts())[1]
    without = decide([*statuses, Status.MISSING], facts())[1]
    if lost is not Status.FAIL:
        assert rank[without] >= rank[with_evidence]


def test_a_check_takes_its_worst_record_and_the_worst_check_comes_first(tables):
    report = build_report(facts(measured(1.0), measured(5.0, layer=2), claim(Status.FAIL)), tables)
    assert [(result.id, result.status) for result in report.checks] == [("B1", "FAIL"), ("A1", "WARN")]
    assert report.checks[1].worst.layer == 2
    assert report.checks[1].margin == "-2"
    assert report.headline == "FAIL: GF-MH at 3.5M, 1 FAIL, 1 WARN"


def test_a_check_that_passes_shows_its_tightest_number(tables):
    exact = claim(Status.PASS, check="A1", nodeid="a")
    report = build_report(facts(exact, measured(1.0), measured(0.31)), tables)
    assert report.checks[0].worst.value == 0.31
    failed = build_report(facts(claim(Status.FAIL, check="A1", nodeid="a"), measured(0.01)), tables)
    assert failed.checks[0].worst.metric == "claim"


def test_a_planned_item_without_a_record_is_missing(tables):
    report = build_report(facts(measured(1.0), planned={"a": "A1", "gone": "A1"}), tables)
    assert (report.outcome, report.exit_code) == ("INCOMPLETE", 11)


def test_a_descriptive_record_never_decides(tables):
    report = build_report(facts(measured(1.0), measured(50.0, info=True, status=Status.NA)), tables)
    assert report.outcome == "PASS"


def test_what_the_scale_demands_and_nobody_selected_is_listed(tables):
    report = build_report(facts(measured(1.0)), tables)
    assert [(row.check, row.reason) for row in report.not_run] == [("B1", "not selected in this run")]


@pytest.mark.parametrize(
    ("changes", "stamp"),
    [
        ({"embedded_corpus": True}, "smoke evidence: embedded corpus"),
        ({"scope": "cpu_ref"}, "authorises nothing on a GPU"),
        ({"seeds": (0,)}, "1 seed: train-level claims at 3.5M need 3"),
        ({"seeds": (0, 1)}, "2 seeds: train-level claims at 3.5M need 3"),
        ({"seeds": (0,), "scale": "125M"}, "single seed"),
        ({"provenance": {"git": {"sha": "", "dirty": True}}}, "uncommitted changes"),
    ],
)
def test_stamps_say_what_the_evidence_is_not(tables, changes, stamp):
    assert not any(stamp in given for given in build_report(facts(measured(1.0)), tables).stamps)
    assert any(stamp in given for given in build_report(facts(measured(1.0), **changes), tables).stamps)


def test_the_first_line_says_when_the_evidence_is_weak(tables):
    weak = build_report(facts(measured(1.0), scope="cpu_ref", embedded_corpus=True, scale="8M"), tables)
    assert weak.headline == "PASS (cpu_ref, embedded corpus): GF-MH at 8M, 1 PASS"


def test_uncalibrated_limits_are_counted(tables):
    report = build_report(facts(measured(1.0), measured(2.0), claim(Status.PASS)), tables)
    assert "1 of 1 limits uncalibrated" in report.stamps


def test_the_documents_hold_everything_and_nothing_unescaped(tables, tmp_path):
    nasty = "<script>alert(1)</script> | {{ 7 * 7 }}"
    out = tmp_path / "out"
    report = write_report(facts(measured(5.0, (4.0, 6.0), note=nasty), claim(Status.PASS)), tables, out)
    html, markdown = (out / "decision.html").read_text(), (out / "decision.md").read_text()
    assert markdown.startswith(f"# {report.headline}\n")
    for text in (html, markdown):
        assert "<script>" not in text
        assert "{{ 7 * 7 }}" in text
        for wanted in ("5 [4, 6]", "0.3 .. 3", "a source, uncalibrated", "pytest a", "what to do about A1", "0" * 12):
            assert wanted in text, wanted
    assert not re.search(r"(src|href)=\"(?!#|data:)", html), "the page loads something from elsewhere"
    rows = [line for line in markdown.splitlines() if line.startswith("| A1 |")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 9
    assert (out / "thresholds.toml").read_text() == TABLE
    assert json.loads((out / "report.json").read_text())["verdict"] is None


def test_curves_go_into_the_page_and_a_lost_log_costs_only_its_figure(tables, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    rows = [
        {"kind": "step", "step": i, "loss": 9 / i, "grad_norm": 1.0, "grad_norm_rwkv": 0.5, "grad_norm_mamba": 1.0}
        for i in range(1, 30)
    ]
    rows += [
        {"kind": "step", "step": 30, "loss": "nan", "grad_norm": "inf", "grad_norm_rwkv": 0.0, "grad_norm_mamba": 0.0}
    ]
    rows += [{"kind": "eval", "step": 0, "val_loss": 9.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [{"directory": str(run), "seed": 0, "name": "GF-MH", "baselines": {"unigram": 7.2}}]
    runs += [{"directory": str(tmp_path / "gone"), "seed": 1, "name": "GF-MH", "baselines": {}}]
    report = write_report(facts(measured(1.0), runs=runs), tables, tmp_path / "out")
    assert report.plots == ["plots/run-0-seed-0.png"]
    assert "data:image/png;base64," in (tmp_path / "out" / "decision.html").read_text()
    assert any("no curves of GF-MH, seed 1" in stamp for stamp in report.stamps)


def figure(name="f", check="A1", points=((0, 1.0), (1, 2.0))):
    drawn = LineFigure("title <b>", "x", "y", {"": {"a": list(points)}})
    return {"name": name, "check": check, "nodeid": "a", "figure": figure_to_json(drawn)}


def test_text_is_shown_with_its_check_and_never_drawn(tables, tmp_path):
    out = tmp_path / "out"
    shown = TextFigure("Samples", [Passage("seed 0", "Once | there", "was <b>\na man")])
    entry = {"name": "said", "check": "A1", "nodeid": "a", "figure": figure_to_json(shown)}
    report = write_report(facts(measured(1.0), figures=[entry]), tables, out)
    [kept] = report.figures
    assert (kept.image, kept.passages) == ("", shown.passages)
    assert not (out / "plots" / "said.png").exists()
    assert figure_from_json((out / "plots" / "said.json").read_text()) == shown
    assert not any("not drawn" in stamp for stamp in report.stamps)
    assert "| seed 0 | Once \\| there | was &lt;b> a man |" in (out / "decision.md").read_text()
    assert "<td>was &lt;b&gt;\na man</td>" in (out / "decision.html").read_text()


def test_a_figure_is_kept_as_numbers_and_shown_with_its_check(tables, tmp_path):
    out = tmp_path / "out"
    published = [figure("one"), figure("none", points=((0, math.nan),))]
    report = write_report(facts(measured(1.0), figures=published), tables, out)
    assert [(f.name, f.image, f.data) for f in report.figures] == [
        ("one", "plots/one.png", "plots/one.json"),
        ("none", "", "plots/none.json"),
    ]
    assert figure_from_json((out / "plots" / "one.json").read_text()).title == "title <b>"
    assert "figure none is not drawn: title <b>: no point can be drawn" in report.stamps
    html = (out / "decision.html").read_text()
    assert html.count("data:image/png;base64,") == 1
    assert 'alt="title &lt;b&gt;: y over x. From first to last point: a: 1 to 2."' in html
    assert "(plots/one.png)" in (out / "decision.md").read_text()


def test_a_run_without_state_checks_has_no_page_of_the_state(tables, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "statefulness.html").write_text("of an earlier run")
    report = write_report(facts(measured(1.0)), tables, out)
    assert report.documents == ["decision.html", "decision.md"]
    assert not (out / "statefulness.html").exists()
    assert "statefulness" not in (out / "decision.html").read_text()


def test_the_numbers_of_a_report_are_those_of_its_records(tables, tmp_path):
    out = tmp_path / "out"
    write_report(facts(measured(1.0, (0.9, 1.1)), claim(Status.PASS)), tables, out)
    kept = load_baseline(out)
    assert [(m.check, m.value, m.ci) for m in kept.metrics] == [("A1", 1.0, (0.9, 1.1)), ("B1", 1.0, None)]
    assert (kept.model, kept.scale, kept.git_sha) == ("GF-MH", "3.5M", "0" * 40)
    (out / METRICS_FILE).unlink()
    assert load_baseline(out) == kept, "an older report gives them from its records"


def test_a_baseline_is_shown_in_every_document_and_decides_nothing(tables, tmp_path):
    out = tmp_path / "out"
    before = build_report(facts(measured(1.0, (0.9, 1.1)), measured(1.0, layer=1)), tables)
    now = facts(measured(2.0, (1.9, 2.1)), baseline=before.metrics, baseline_name="a|<dir>")
    report = write_report(now, tables, out)
    assert (report.outcome, report.exit_code) == ("PASS", 0)
    assert [change.verdict for change in report.comparison.changes] == ["changed"]
    html, markdown = (out / "decision.html").read_text(), (out / "decision.md").read_text()
    assert "Since a|&lt;dir&gt;" in html
    assert "<dir>" not in markdown
    for text in (html, markdown):
        assert "1 numbers compared: 1 changed" in text
        assert "Only in the baseline: A1.ratio[layer 1, seed 0]" in text
    assert "no baseline" not in html
    assert rescore(out) == [
        f"{name}.toml is not the file whose hash the report recorded" for name in ("checks", "thresholds", "evidence")
    ]
    assert Report.model_validate_json((out / "report.json").read_text()).comparison == report.comparison


def test_the_smoothed_loss_is_unbiased_and_shows_gaps():
    assert exponential_average([2.0] * 50) == pytest.approx([2.0] * 50)
    smoothed = exponential_average([1.0, math.nan, 1.0])
    assert math.isnan(smoothed[1])
    assert smoothed[2] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("band", "text"),
    [
        ((0.3, 3.0), "0.3 .. 3"),
        ((-math.inf, 10.0), "<= 10"),
        ((0.9, math.inf), ">= 0.9"),
        ((-math.inf, math.inf), "any"),
        ((0.0, 1e-5), "0 .. 1e-05"),
    ],
)
def test_bands_in_words(band, text):
    assert format_band(band) == text


def test_measurements_in_words():
    assert format_measurement(measured(0.05, (0.03, 0.08), unit="nat")) == "0.05 nat [0.03, 0.08]"
    assert label(measured(1.0, layer=3, branch="rwkv", case="rwkv")) == "ratio[rwkv, layer 3, seed 0]"
