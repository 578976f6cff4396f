"""FIX writes all of its figure inside it, and says of each share how many trainings lack it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from fixtures.fix_readings import SHARES, Arm, Reading
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
