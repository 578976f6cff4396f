"""How the workers of pytest-xdist share the machine."""

from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"

SPANS = """
    import time
    from pathlib import Path
    import pytest

    def span(kind):
        began = time.monotonic()
        time.sleep(.05)
        with Path({spans!r}).open("a") as file:
            file.write(f"{{kind}} {{began}} {{time.monotonic()}}\\n")

    {mark}
    @pytest.mark.parametrize("turn", range(60))
    def test_span(turn):
        span({kind!r})
"""


def overlaps(pytester, monkeypatch, mark):
    """How many spans of time of the marked tests have one of the others in them."""
    # locks of its own: the test that this runs in holds one of the usual
    monkeypatch.setenv("TMPDIR", str(pytester.path))
    pytester.makeconftest(CONFTEST.read_text())
    spans = pytester.path / "spans.txt"
    pytester.makepyfile(
        test_marked=SPANS.format(spans=str(spans), kind="marked", mark=mark),
        test_others=SPANS.format(spans=str(spans), kind="other", mark=""),
    )
    pytester.makeini("[pytest]\nmarkers =\n  alone: times the machine\n")
    done = pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=120)
    rows = [line.split() for line in spans.read_text().splitlines()]
    marked, others = (
        [tuple(map(float, times)) for kind, *times in rows if kind == wanted] for wanted in ("marked", "other")
    )
    assert len(marked) == len(others) == 60
    return sum(any(begin < end_ and begin_ < end for begin_, end_ in others) for begin, end in marked)


def test_one_that_times_the_machine_runs_while_no_other_worker_runs_any(pytester, monkeypatch):
    assert overlaps(pytester, monkeypatch, "@pytest.mark.alone") == 0


def test_any_other_runs_beside_those_of_other_workers(pytester, monkeypatch):
    assert overlaps(pytester, monkeypatch, "") > 0
