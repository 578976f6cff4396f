"""``pytest --graduate`` as a session: its selection, its plan, its documents, the same from one process or two."""

import pytest
from plugin_project import ROOT, Project, check_row

from harness.checks import load_checks
from harness.graduation.plan import PlannedTraining, make_plan, recipes_of
from harness.tables import load_tables

HOLDS = (
    "@check('{0}')\n@pytest.mark.parametrize('i', range(3))\ndef test_{1}(judge, i):\n    judge.holds('ran', True)\n"
)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    project = Project(pytester)
    # as in the project itself: what a bare pytest collects must not be what a worker collects
    pytester.makeini("[pytest]\nfilterwarnings = error\nstrict_markers = true\ntestpaths = tests")
    pytester.mkdir("tests").joinpath("test_own.py").write_text("def test_own():\n    pass\n")
    rows = [
        check_row(check, category=category)
        for check, category in {"A1": "stability", "B1": "canary", "C1": "scaling", "D1": "resource"}.items()
    ]
    project.checks(*rows, check_row("S1", study="true"))
    project.suite(
        **{f"test_{check.lower()}": HOLDS.format(check, check.lower()) for check in ("A1", "B1", "C1", "D1", "S1")}
    )
    return project


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_decision_is_the_same_from_one_process_or_two(project, workers):
    done = project.graduate("3.5M", "-n", workers)
    assert done.ret == 0, done.stdout.str()
    report = project.report
    assert (report.verdict, report.total, report.scale) == ("GO", 15, {"from": "3.5M", "to": "8M"})
    assert set(project.statuses) == {"A1", "B1", "C1", "D1"}, "a study is demanded nowhere"
    assert {seal.records for seal in report.seals} == {1}
    assert len(report.seals) == len(report.planned) == 12
    written = {path.name for path in project.report_dir.iterdir()}
    assert written >= {
        "report.json", "decision.md", "decision.html", "VALIDATION_GATE_PASS.md", "junit.xml",
        "checks.toml", "thresholds.toml", "evidence.toml", "items.jsonl",
    }  # fmt: skip
    assert "VALIDATION_GATE_FAIL.md" not in written
    said = done.stdout.str()
    assert all(name in said for name in ("stability", "canary", "scaling", "resource", "GO (cpu_ref)"))


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_runs_nothing(project):
    done = project.graduate("3.5M", "--dry-run")
    assert done.ret == 0
    done.stdout.fnmatch_lines(
        ["may GF-MH go from 3.5M to 8M?*3 seeds*", "4 checks*", "  A1 *title of A1", "time left: *"]
    )
    assert not project.report_dir.joinpath("report.json").exists()


def test_the_plan_of_a_scale_follows_the_tables():
    tables = load_tables()
    recipes = recipes_of("3.5M", tables.checks, tables.evidence)
    assert recipes[:1] == ["main"]
    assert set(recipes) >= {"main", "shuffled_control", "ladder", "held_out"}
    trainings = [
        PlannedTraining("a, seed 0", 1000, 512_000, stored=True, begun=False, seconds=0.0),
        PlannedTraining("a, seed 1", 1000, 512_000, stored=False, begun=True, seconds=120.0),
    ]
    shared = {"model": "GF-MH", "scale": "3.5M", "seeds": 3, "corpus": "sotu", "checks": tables.checks}
    plan = make_plan(**shared, device="cpu", embedded_corpus=True, trainings=trainings, table=tables.evidence)
    order = [check for check, _ in plan.checks]
    assert all(order.index(need) < order.index(check) for check in order for need in tables.checks[check].needs)
    assert {*order, *(check for check, _ in plan.pending)} == set(tables.evidence.scale("3.5M").demands)
    text = "\n".join(plan.lines())
    assert "2 trainings, 1 of them in the store" in text
    assert "begun, will be continued, 2 min" in text
    from_another = PlannedTraining("c", 5000, 10, stored=False, begun=False, seconds=60.0, shared=2000)
    shares = make_plan(
        **shared, device="cpu", embedded_corpus=True, trainings=[from_another], table=tables.evidence
    ).lines()
    assert "5000 steps" in "\n".join(shares)
    assert "to train, the first 2000 steps with a shorter one, 60 s" in "\n".join(shares)
    never_timed = PlannedTraining("b, seed 0", 10, 10, stored=False, begun=False, seconds=None)
    shared["scale"] = "8M"
    unknown = make_plan(**shared, device="cuda", embedded_corpus=True, trainings=[never_timed], table=tables.evidence)
    assert unknown.seconds is None
    assert "the embedded corpus is smoke evidence at 8M" in unknown.limits
    assert not any("GPU" in limit for limit in unknown.limits)
    on_a_cpu = make_plan(**shared, device="cpu", embedded_corpus=False, trainings=[], table=tables.evidence)
    assert "8M needs a GPU" in on_a_cpu.limits
    assert "time left: unknown" in "\n".join(unknown.lines())


def test_every_recipe_that_a_check_names_exists():
    from fixtures.recipes import RECIPES

    named = {recipe for check in load_checks().values() for recipe in check.trainings}
    assert named <= set(RECIPES)
    assert set(RECIPES) <= named, "a recipe that no check needs is dead"


@pytest.mark.slow
def test_explain_says_where_a_check_is_demanded_and_which_gate_it_belongs_to(project):
    done = project.run("--explain", "A1")
    assert done.ret == 0
    done.stdout.fnmatch_lines(["runs at*3.5M*", "demanded at*3.5M*"])
