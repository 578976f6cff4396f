"""The comparison of two runs, on made-up times."""

import json
import subprocess
import sys

import pytest
from made_up_times import row, run

from benchmarks import trend
from benchmarks.record import Record, write


@pytest.fixture
def compared(tmp_path, capsys):
    """Runs the command on two records; gives its exit code and what it printed."""

    def of(old, new, *options):
        paths = []
        for name, record in (("old.json", old), ("new.json", new)):
            paths.append(tmp_path / name)
            if isinstance(record, Record):
                write(record, paths[-1])
            elif record is not None:
                paths[-1].write_text(record)
        code = trend.main([*map(str, paths), *options])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return of


def test_equal_times_pass(compared):
    code, printed = compared(run(row()), run(row()))
    assert code == 0
    assert "1 rows, 0 slower by more than 1.1x, 0 lost" in printed


@pytest.mark.parametrize(("median_ms", "code"), [(1.09, 0), (1.10, 0), (1.12, 1), (0.5, 0)])
def test_a_row_is_slower_from_the_limit_on(compared, median_ms, code):
    assert compared(run(row()), run(row(median_ms=median_ms)))[0] == code


def test_the_limit_can_be_chosen(compared):
    assert compared(run(row()), run(row(median_ms=1.3)), "--limit", "1.5")[0] == 0
    assert compared(run(row()), run(row(median_ms=1.06)), "--limit", "1.05")[0] == 1


def test_a_disturbed_median_with_the_old_least_time_is_not_slower(compared):
    assert compared(run(row()), run(row(median_ms=2.0, least_ms=1.0)))[0] == 0
    assert compared(run(row()), run(row(median_ms=1.0, least_ms=1.0)))[0] == 0


def test_one_slow_row_among_many_counts_and_stands_first(compared):
    slow = row("ssd/mamba_ssm", 2.0)
    code, printed = compared(run(row(), row("ssd/mamba_ssm", 1.0)), run(row(), slow))
    assert code == 1
    assert printed.index("ssd/mamba_ssm") < printed.index("wkv6/cuda")
    assert "2 rows, 1 slower by more than 1.1x, 0 lost" in printed


def test_rows_are_the_same_only_when_all_their_names_are(compared):
    code, printed = compared(run(row(mode="eager", median_ms=1.0)), run(row(median_ms=9.0), row(mode="eager")))
    assert code == 0
    assert "new" in printed


@pytest.mark.parametrize("now", [(), (row(median_ms=None, least_ms=None, spread_ms=None, error="OutOfMemoryError"),)])
def test_a_row_that_no_longer_runs_is_lost(compared, now):
    code, printed = compared(run(row()), run(*now))
    assert code == 1
    assert "0 slower by more than 1.1x, 1 lost" in printed


def test_a_row_that_never_ran_is_neither_lost_nor_slower(compared):
    failed = row(median_ms=None, least_ms=None, spread_ms=None, error="ImportError", peer=True)
    assert compared(run(failed), run(failed))[0] == 0


@pytest.mark.parametrize("now", [(), (row("fla chunk_rwkv6", 5.0, peer=True),)])
def test_peers_decide_nothing(compared, now):
    code, printed = compared(run(row(), row("fla chunk_rwkv6", 1.0, peer=True)), run(row(), *now))
    assert code == 0
    assert "a peer" in printed


def test_a_first_run_passes_and_says_so(compared):
    code, printed = compared(None, run(row()))
    assert code == 0
    assert "first run" in printed


def test_another_device_or_benchmark_is_not_compared(compared):
    for other in (run(row(), device="NVIDIA H100"), run(row(), benchmark="step")):
        code, printed = compared(other, run(row(median_ms=9.0)))
        assert code == 0
        assert "nothing to compare with" in printed


def test_a_file_of_another_version_is_not_compared(compared):
    old = json.loads(run(row()).model_dump_json()) | {"schema_version": 0}
    code, printed = compared(json.dumps(old), run(row(median_ms=9.0)))
    assert code == 0
    assert "schema_version is 0, that of this version is 1" in printed


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}', '{"schema_version": 1, "rows": [{"a": 1}]}'])
def test_a_damaged_file_is_an_error(compared, text):
    for old, new in ((text, run(row())), (run(row()), text)):
        code, printed = compared(old, new)
        assert code == 2
        assert "expected what --json writes" in printed


def test_no_new_file_is_an_error(compared):
    code, printed = compared(run(row()), None)
    assert code == 2
    assert "No such file" in printed


def test_a_limit_below_one_is_refused(compared):
    with pytest.raises(SystemExit) as error:
        compared(run(row()), run(row()), "--limit", "0.9")
    assert error.value.code == 2


@pytest.mark.slow
def test_the_command_ends_with_the_exit_code(tmp_path):
    for name, median_ms in (("old", 1.0), ("new", 2.0)):
        write(run(row(median_ms=median_ms)), tmp_path / name)
    command = [sys.executable, "-m", "benchmarks.trend", str(tmp_path / "old"), str(tmp_path / "new")]
    assert subprocess.run(command, capture_output=True).returncode == 1
