"""FIX writes all of its figure inside it, and says of each share how many trainings lack it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixtures.fix_readings import SHARES, Arm, Reading, verdict_of
from fixtures.fix_study import REMEDIES, UNTREATED
from harness.figures import draw_figure
from harness.metrics.intervals import Interval

SUITE = Path(__file__).parents[2] / "suites/graduation/test_fix_and_revalidate.py"
ARMS = (UNTREATED, *REMEDIES)
BENCH = SimpleNamespace(seeds=(3, 4, 5), subject=SimpleNamespace(name="mutant:starved_branch", scale="8M"))


@pytest.fixture(scope="module")
def suite():
    spec = importlib.util.spec_from_file_location("remedies_suite", SUITE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interval(value):
    return Interval(value, 0.9 * value, 1.1 * value, 64, 16)


def reading(value, unread=()):
    shares = {share: interval(value) for share in SHARES if share not in unread}
    return Reading(shares, {"activity": interval(value)}, dict(unread))


def arms(**unread):
    """Every arm, three seeds each. unread: arm and seed, as ``arm2_seed4``, to what is unread and why."""
    found = {}
    for place, name in enumerate(ARMS):
        runs = [SimpleNamespace(seed=seed) for seed in BENCH.seeds]
        readings = [reading(0.01 * seed, unread.get(f"arm{place}_seed{seed}", {})) for seed in BENCH.seeds]
        found[name] = Arm(name, runs, readings)
    return found


def drawn(figure, path, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, dpi: kept.append(self))
    draw_figure(figure, path)
    kept[0].draw_without_rendering()
    return kept[0]


@pytest.mark.parametrize("lost", [(), ("coupling_share",), SHARES])
def test_nothing_of_the_figure_is_cut_off(suite, lost, tmp_path, monkeypatch):
    given = arms(arm2_seed4=dict.fromkeys(lost, "off"))
    figure = suite._figure(BENCH, given, {name: [6.1, 6.2, 6.3] for name in ARMS})
    assert len(figure.panels) == 5 - len(lost)
    canvas = drawn(figure, tmp_path / "f.png", monkeypatch)
    labels = [axes.xaxis.label for axes in canvas.axes if axes.get_xlabel()]
    assert labels
    for label in labels:
        said = " ".join(label.get_text().split())
        assert said == f"arm: {', '.join(f'{place} {name}' for place, name in enumerate(ARMS))}"
    texts = [canvas._suptitle, canvas.legends[0], *labels]
    boxes = [text.get_window_extent() for text in texts]
    assert all(box.x0 >= 0 and box.x1 <= canvas.bbox.x1 for box in boxes)
    assert all(box.y0 >= -1 and box.y1 <= canvas.bbox.y1 + 1 for box in boxes)
    assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)


class Judge:
    """Keeps what is recorded, by metric and arm."""

    def __init__(self):
        self.found = {}

    def holds(self, metric, is_so, **where):
        return "PASS" if is_so else "FAIL"

    def info(self, metric, value, *, case, note="", seed=None, **where):
        self.found.setdefault((metric, case), []).append((seed, value, note))


@pytest.fixture
def record(suite, monkeypatch):
    """What the suite records of arms, by metric and arm: seed, value and note of each."""

    def record(given):
        judge = Judge()
        monkeypatch.setattr("fixtures.study_readings.validation_loss", lambda run: 6.0 + 0.1 * run.seed)
        monkeypatch.setattr("fixtures.fix_readings.loss_change", lambda arm, bare: verdict_of(arm, bare))
        bench = SimpleNamespace(**vars(BENCH), where=lambda run: {"seed": run.seed})
        suite.test_what_the_remedies_change(given, bench, judge, lambda name, figure: None)
        return judge.found

    return record


def test_an_unread_training_is_counted_once_and_leaves_out_the_comparison(record):
    rate = ARMS[2]
    found = record(arms(arm2_seed3={"coupling_share": "first order is off"}))
    [(_, count, note)] = found["coupling_share_unread", rate]
    assert count == 1
    assert note == "seed 3: first order is off; left out for all seeds: the mean over seeds and its change"
    [(_, _, words)] = found["coupling_share_fails", rate]
    assert words.split(", ").count("unread") == count
    assert [(seed, value) for seed, value, _ in found["coupling_share", rate]] == [(4, 0.04), (5, 0.05)]
    assert not {("mean_coupling_share", rate), ("coupling_share_change", rate)} & set(found)
    for name in ARMS:
        assert found["information_share_unread", name] == [(None, 0, "")]
    for name in {*ARMS} - {rate}:
        assert found["coupling_share_unread", name] == [(None, 0, "")]
        assert ("mean_coupling_share", name) in found
        assert len(found["coupling_share", name]) == 3
    assert ("coupling_share_change", ARMS[3]) in found


def test_an_unread_training_without_a_remedy_leaves_out_every_comparison(record):
    lost = {"write_share": "no layer has two writes to compare"}
    found = record(arms(arm0_seed4=lost, arm0_seed5=lost))
    [(_, count, note)] = found["write_share_unread", UNTREATED]
    assert count == 2
    reason = lost["write_share"]
    assert note == (
        f"seed 4: {reason}; seed 5: {reason}; left out for all seeds: the mean over seeds and its change in every arm"
    )
    for name in REMEDIES:
        says = f"left out: its change, for the arm {UNTREATED} has unread trainings"
        assert found["write_share_unread", name] == [(None, 0, says)]
        assert ("mean_write_share", name) in found
        assert ("write_share_change", name) not in found
