"""The studies of recall run from end to end: mixers on MQAR, and architectures over turns of dialogue."""

import math

import pytest
from suite_runner import MADE_UP_REGISTRIES, run_suites

from harness.checks import load_checks

SHORT = ("-p", "short_lessons", "-p", "short_benchmarks", "--seeds", "1", "--set", "train.threads=1",
         "--set", "train.steps=20", "--set", "train.warmup_steps=5", "--set", "train.batch_tokens.cpu=256",
         "--set", "eval.tokens=4096", "--set", "eval.final_tokens=4096")  # fmt: skip


@pytest.mark.slow
def test_mixers_are_read_by_bytes_of_state(store, tmp_path):
    run = run_suites(store, tmp_path / "report", *SHORT, suites=load_checks()["MQAR"].path, env=MADE_UP_REGISTRIES)

    assert run.status("MQAR") in ("PASS", "WARN"), run.output
    judged = run.records("MQAR", "easiest_accuracy")
    assert [record["case"].split(",")[0] for record in judged] == ["RWKV6", "MAMBA2", "GF-MH"]
    # the small setting stands beside nothing that is published
    assert not run.records("MQAR", "over_published")
    assert all("nothing to compare" in record["note"] for record in judged)
    figure = (tmp_path / "report" / "plots" / "mqar-by-state-bytes.json").read_text()
    assert "published" not in figure.replace("nothing to compare with what is published", "")


@pytest.mark.slow
def test_turns_are_compared_between_architectures(store, tmp_path):
    run = run_suites(store, tmp_path / "report", *SHORT, suites=load_checks()["TURNS"].path, marker="small",
                     env=MADE_UP_REGISTRIES)  # fmt: skip

    assert run.status("TURNS") == "PASS", run.output
    names = {"GF-MH", "RWKV6", "MAMBA2", "GPT2"}
    assert {record["case"] for record in run.records("TURNS", "reset_excess")} == names
    lags = [r for r in run.report["records"] if r["metric"] == "accuracy" and r["case"].startswith("GF-MH")]
    assert len(lags) == 7
    # the lessons had 128 tokens, and 50 turns have more
    assert [r["case"].endswith("extrapolation") for r in lags] == sorted(
        r["case"].endswith("extrapolation") for r in lags
    )
    assert lags[-1]["case"].endswith("extrapolation")
    assert all(math.isfinite(r["value"]) for r in lags)
    assert (tmp_path / "report" / "plots" / "turns-by-architecture.png").is_file()
