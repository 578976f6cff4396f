"""Two saved reports held against each other: what is paired, what is refused, and what counts as worse."""

import json

import numpy as np
import pytest
from made_up_report import TABLE, claim, facts, measured
from plugin_project import check_row, write_tables

from harness.compare import EXIT_NO_WORSE, EXIT_USAGE, EXIT_WORSE, compare_reports, main
from harness.dynamics import TrainingLog
from harness.errors import HarnessError
from harness.items import ITEMS_FILE, ItemSet, items_text
from harness.pairing import pair
from harness.records import Status
from harness.render import write_report
from harness.report import Report

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(1, 9, 43) * 256
NATS = RNG.normal(6.0, 0.5, 43)


def items(shift=0.0, seed=0, noise=0, **fields):
    nats = NATS + shift + 0.05 * np.random.default_rng([noise, seed]).normal(size=43)
    values = {str(n): (float(x * c), float(c)) for n, (x, c) in enumerate(zip(nats, COUNTS, strict=True))}
    base = {"check": "A1", "metric": "val_loss", "seed": seed, "unit": "nats/token", "direction": "lower"}
    return ItemSet(**{**base, "corpus_sha256": "c", "tokenizer_sha256": "t", "items": values, **fields})


@pytest.fixture
def tables(tmp_path):
    return write_tables(tmp_path, check_row("A1"), check_row("B1"), limits=TABLE)


@pytest.fixture
def report(tables, tmp_path):
    def write(name, *records, **changes):
        given = records or (measured(1.0, (0.9, 1.1)), claim(Status.PASS))
        made = facts(*given, **changes)
        write_report(made, tables, tmp_path / name)
        return tmp_path / name

    return write


def worse(first, second):
    return compare_reports(first, second).worse


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_a_report_does_not_differ_from_itself(report, capsys):
    one = report("a", items=[items()])
    found = compare_reports(one, one)
    assert (found.worse, found.differs, found.statuses, found.scores) == ([], [], [], [])
    (change,) = found.pairing.changes
    assert (change.difference.value, change.changed, change.score) == (0.0, False, "0 : 0 : 43")
    assert main([str(one), str(one)]) == EXIT_NO_WORSE
    said = capsys.readouterr().out
    assert "nothing got worse beyond noise" in said
    assert "What else differs: nothing" in said


@pytest.mark.parametrize(("shift", "tendency", "code"), [(0.05, "worse", EXIT_WORSE), (-0.05, "better", EXIT_NO_WORSE)])
def test_a_planted_shift_is_found_with_its_sign(report, capsys, shift, tendency, code):
    first, second = report("a", items=[items()]), report("b", items=[items(shift)])
    (change,) = compare_reports(first, second).pairing.changes
    assert change.tendency == tendency
    assert change.difference.value == pytest.approx(shift)
    assert main([str(first), str(second)]) == code
    assert ("worse beyond noise: A1.val_loss" in capsys.readouterr().out) == (code == EXIT_WORSE)


def test_noise_is_no_change_and_one_seed_is_named(report, capsys):
    first, second = report("a", items=[items(noise=1)]), report("b", items=[items(noise=2)])
    (change,) = compare_reports(first, second).pairing.changes
    assert not change.changed
    assert change.difference.p_value > 0.1
    main([str(first), str(second)])
    assert "one seed: a difference between these weights" in capsys.readouterr().out


def test_of_many_pairs_that_differ_by_noise_one_in_twenty_is_called_worse():
    claims = [change.tendency for n in range(200) for change in pair([items(noise=n)], [items(noise=1000 + n)]).changes]
    assert len(claims) == 200
    assert 3 <= claims.count("worse") <= 17
    # what is compared together is corrected together: few of ten metrics are called anything
    together = [
        pair(*([items(noise=k + 100 * side + n, metric=str(n)) for n in range(10)] for side in (0, 1))).changes
        for k in range(1000, 9000, 400)
    ]
    assert sum(any(change.changed for change in changes) for changes in together) <= 5


def test_seeds_of_both_are_paired_and_the_others_named():
    found = pair([items(seed=0), items(seed=1)], [items(0.05, seed=1), items(0.05, seed=0), items(0.05, seed=2)])
    (change,) = found.changes
    assert change.seeds == (0, 1)
    assert change.difference.by_seed == pytest.approx((0.05, 0.05))
    assert found.refused == ["A1.val_loss: seed 2 is in one report only and left out"]


def test_the_order_of_documents_does_not_matter():
    one = items()
    other = one.model_copy(update={"items": dict(reversed(one.items.items()))})
    assert pair([one], [other]).changes[0].difference.value == 0.0


def other_documents(**_):
    return items(items={str(n + 1): (1.0, 1.0) for n in range(43)})


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (items(corpus_sha256="d"), "measured on other texts"),
        (items(tokenizer_sha256="u"), "measured on other tokenizers"),
        (other_documents(), "measured on other items (2 are not in both: 0, 43)"),
        (items(items={**items().items, "0": (1.0, 7.0)}), "the same items count differently"),
        (items(items=dict(list(items().items.items())[:-1])), "measured on other items (1 are not in both: 42)"),
        (items(seed=3), "no seed in common (0 against 3)"),
        (items(unit="bits"), "its unit differs"),
        (items(direction="higher"), "its direction differs"),
        (items(metric="other"), "only the second report has its items"),
    ],
)
def test_what_is_no_pair_is_refused_with_the_reason(other, why):
    found = pair([items()], [other])
    assert found.changes == []
    assert why in found.refused[0]


def test_a_model_that_broke_is_worse_without_any_test():
    broken = items(items={**items().items, "0": (float("nan"), float(COUNTS[0]))})
    assert [change.tendency for change in pair([items()], [broken]).changes] == ["worse"]
    assert [change.tendency for change in pair([broken], [items()]).changes] == ["better"]
    assert [change.tendency for change in pair([broken], [broken]).changes] == [""]


def test_right_and_wrong_answers_take_the_exact_test(report):
    def answers(right, wrong_of=()):
        values = {str(n): (float(n < right and n not in wrong_of), 1.0) for n in range(220)}
        return items(items=values, direction="higher", unit="1")

    first, second = report("a", items=[answers(181)]), report("b", items=[answers(181, range(8))])
    (change,) = compare_reports(first, second).pairing.changes
    assert change.difference.p_value == pytest.approx(2 / 2**8)
    assert (change.tendency, change.score) == ("worse", "0 : 8 : 212")


# --- the rest of the report -------------------------------------------------------------------------------------------


def test_what_is_paired_is_not_compared_a_second_time(report):
    shown = {"check": "A1", "metric": "val_loss", "threshold": None, "status": Status.NA, "info": True}
    records = measured(6.0, (5.9, 6.1), **shown), claim(Status.PASS)
    first, second = report("a", *records, items=[items()]), report("b", *records, items=[items(0.05)])
    found = compare_reports(first, second)
    assert [change.now.metric for change in found.unpaired.changes] == ["claim"]


def test_a_new_fail_is_worse_and_a_new_warn_may_be_noise(report):
    good, warned = report("a"), report("b", measured(1.0, (0.2, 1.1)), claim(Status.PASS))
    failed = report("c", measured(1.0, (0.9, 1.1)), claim(Status.FAIL))
    gone = report("d", measured(1.0, (0.9, 1.1)), claim(Status.MISSING))
    assert worse(good, warned) == []
    assert [(each.before, each.after) for each in compare_reports(good, warned).statuses] == [("PASS", "WARN")]
    assert worse(good, failed) == ["B1 PASS -> FAIL", "B1.claim"]
    assert worse(failed, good) == []
    assert worse(good, gone) == ["B1 PASS -> MISSING"]


def test_a_number_without_items_is_compared_by_its_intervals_and_says_so(report, capsys):
    limits = {"direction": "lower"}
    first = report("a", measured(1.0, (0.9, 1.1), **limits), claim(Status.PASS))
    second = report("b", measured(2.0, (1.9, 2.1), **limits), claim(Status.PASS))
    assert worse(first, second) == ["A1.ratio[seed 0]"]
    assert main([str(first), str(second)]) == EXIT_WORSE
    said = capsys.readouterr().out
    assert "Unpaired: all other numbers, as of two independent runs" in said


def test_what_else_differs_stands_before_the_numbers(report, capsys):
    first = report("a", measured(1.0, corpus_sha256="c" * 64))
    git = {"sha": "f" * 40, "dirty": True}
    changed = {"provenance": {"git": git, "wall_s": 1.0}, "overrides": {"train.lr": "0.1"}}
    second = report("b", measured(1.0, corpus_sha256="d" * 64), model="HY", **changed)
    main([str(first), str(second)])
    said = capsys.readouterr().out
    before = said[: said.index("Paired")]
    for wanted in ("model", "HY", "text", "d" * 12, "commit", "f" * 12, "uncommitted changes", "--set train.lr"):
        assert wanted in before


def test_markdown_escapes_what_would_break_a_table(report, capsys):
    first, second = report("a", model="a|<b>", items=[items()]), report("b", items=[items(0.05)])
    assert main([str(first), str(second), "--markdown"]) == EXIT_WORSE
    said = capsys.readouterr().out
    assert "| model | a\\|&lt;b> | GF-MH |" in said
    assert "| A1.val_loss | 0 | 0.05 nats/token [" in said


# --- what is no report ------------------------------------------------------------------------------------------------


def test_two_scales_are_refused(report, capsys):
    first, second = report("a"), report("b", scale="8M")
    assert main([str(first), str(second)]) == EXIT_USAGE
    assert "numbers of two sizes are no change" in capsys.readouterr().err


def test_an_edited_report_is_refused(report):
    first, second = report("a"), report("b")
    path = second / "report.json"
    content = json.loads(path.read_text())
    content["records"][0]["value"] = 2.0
    path.write_text(json.dumps(content))
    with pytest.raises(HarnessError, match=r"was changed after it was written.*harness\.rescore"):
        compare_reports(first, second)


def edited(text):
    line = json.loads(text)
    line["items"]["0"][0] -= 100
    return json.dumps(line) + "\n"


@pytest.mark.parametrize(
    ("change", "why"), [(edited, "is not the file whose hash"), (None, "a report keeps its items beside it")]
)
def test_edited_or_lost_items_are_refused(report, change, why):
    first, second = report("a", items=[items()]), report("b", items=[items()])
    path = second / ITEMS_FILE
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text()))
    with pytest.raises(HarnessError, match=why):
        compare_reports(first, second)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([items(), items(0.1)], "two sets of items for A1.val_loss, seed 0"),
        (["{}"], r"holds no items:\n\[check\] Field required"),
        (["no json"], "holds no items"),
    ],
)
def test_items_that_were_signed_and_are_none_are_refused(report, tables, lines, why):
    from harness.items import items_sha256

    directory = report("a")
    text = items_text(lines) if isinstance(lines[0], ItemSet) else "\n".join(lines)
    (directory / ITEMS_FILE).write_text(text)
    signed = Report.model_validate_json((directory / "report.json").read_text())
    signed = signed.model_copy(update={"items_sha256": items_sha256(text)}).signed()
    (directory / "report.json").write_text(signed.model_dump_json())
    with pytest.raises(HarnessError, match=why):
        compare_reports(directory, directory)


@pytest.mark.parametrize("values", [{}, {"0": (1.0, 0.0)}, {"0": (1.0, -1.0)}, {"0": (1.0, float("nan"))}])
def test_values_without_a_count_are_no_items(values):
    with pytest.raises(ValueError, match=r"a count|no item has|at least 1 item"):
        items(items=values)


def test_the_items_of_a_training_are_its_validation_documents(tmp_path):
    row = {"kind": "final_eval", "tokens": 768, "documents": [3, 5], "loss_sums": [3000.0, "nan"]}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({**row, "token_counts": [512, 256]}) + "\n")
    documents = TrainingLog(tmp_path, 0, 1.0).final_documents()
    assert documents["3"] == (3000.0, 512)
    assert not items(items=documents).is_finite
