"""The tables of docs/performance.md come from files of times."""

import re

import pytest
from made_up_times import row, run

from benchmarks import page
from benchmarks.record import write

BETWEEN_MARKS = re.compile(r"(?<=-->\n).*?(?=<!-- end of)", re.DOTALL)
GPU = {
    "versions": {"python": "3.12.3", "torch": "2.11.0"},
    "git": {"sha": "0" * 40, "dirty": False},
    "gpu": "NVIDIA H200",
}


def kernels_record(**more):
    cells = {
        "floor_ms": 0.5,
        "ratio": 2.5,
        "ratio_to": "fla chunk_rwkv6",
        "details": {"first_call_s": 203.5, "difference": 0.01},
    }
    rows = [
        row(candidate, part=part, mode=mode, peer=peer, **cells)
        for candidate, peer in (("wkv6/cuda", False), ("fla chunk_rwkv6", True))
        for part in ("forward", "forward+backward")
        for mode in ("eager", "graphed")
    ]
    return run(*rows).model_copy(update={"provenance": GPU} | more)


def step_record():
    details = {"num_params": 8_052_786, "kernels_per_step": 700, "gpu_busy_ms": 9.5, "gpu_busy_share": 0.95}
    steps = row("GF-MH", 10.0, benchmark="step", part="step", tokens_per_s=1_638_400.0, details=details)
    phases = {"imported_s": 3.0, "built_s": 4.0, "first_step_s": 40.0, "step_20_s": 50.0}
    begun = row("GF-MH", 40_000.0, benchmark="start", case="8M, caches empty", part="first step", details=phases)
    return run(steps, begun, benchmark="step").model_copy(update={"provenance": GPU})


def test_the_tables_of_both_records_are_put_between_their_marks(tmp_path):
    write(kernels_record(), tmp_path / "k.json")
    write(step_record(), tmp_path / "s.json")
    copy = tmp_path / "performance.md"
    before = page.PAGE.read_text()
    copy.write_text(before)
    for _ in range(2):  # the second time changes nothing
        assert page.main([str(tmp_path / "k.json"), str(tmp_path / "s.json"), "--page", str(copy)]) == 0
        text = copy.read_text()
    assert (
        "| wkv6 | B1 T64 H1 K64 | wkv6/cuda | 1.000 | 1.000 | 1.000 (2.0) | 1.000 (2.0) | 0.500 | 0.500 | 2.50x fla"
        in text
    )
    assert "fla chunk_rwkv6 first call 203.5 s" in text
    assert "| GF-MH | graphed | 8,052,786 | 10.00 | 0.00 | 1,638,400 | 700 | 9.5 | 0.95 |" in text
    assert "| GF-MH | graphed | 8M, caches empty | 3.0 | 4.0 | 40.0 | 50.0 |" in text
    assert "`python -m benchmarks.kernels`" in text
    assert BETWEEN_MARKS.sub("", text) == BETWEEN_MARKS.sub("", before)


def test_a_table_has_as_many_cells_in_each_row():
    failed = row(
        "fla chunk_rwkv6",
        None,
        least_ms=None,
        spread_ms=None,
        peer=True,
        part="forward+backward",
        mode="eager",
        error="x",
    )
    for record in (kernels_record(), run(failed).model_copy(update={"provenance": GPU}), step_record()):
        for text in page.sections(record).values():
            assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_times_of_a_cpu_are_refused(tmp_path, capsys):
    write(kernels_record(provenance=GPU | {"gpu": None}, device="AMD EPYC"), tmp_path / "k.json")
    assert page.main([str(tmp_path / "k.json")]) == 2
    assert "this run was on AMD EPYC" in capsys.readouterr().err


def test_a_page_without_the_marks_is_left_alone(tmp_path, capsys):
    write(kernels_record(), tmp_path / "k.json")
    other = tmp_path / "other.md"
    other.write_text("nothing\n")
    assert page.main([str(tmp_path / "k.json"), "--page", str(other)]) == 2
    assert "no place for kernels" in capsys.readouterr().err
    assert other.read_text() == "nothing\n"


@pytest.mark.parametrize("section", ["kernels", "step", "start"])
def test_the_page_has_a_place_for_every_section(section):
    assert f"<!-- {section} -->" in page.put(page.PAGE.read_text(), section, "x\n")
