"""Trainings that take turns in one process: each is what it is alone, whatever becomes of the others."""

import functools
import itertools
import json
import math
import os
import signal

import pytest
import torch
from toy import Poison, SignalPatch, ToyModel, toy_config, toy_dataset, toy_probe, toy_train

import harness.team
from harness.errors import HarnessError
from harness.execution import Execution, choose, read_execution
from harness.resume_proof import compare
from harness.runlog import read_rows
from harness.runtime import CleanInterrupt, Interrupt, OwnRandom, deferred_interrupt, seeded
from harness.team import MOST, Member, Team, train_together
from harness.training_job import NO_PATCH, TrainingPatch, TrainJob, TrainOutcome
from harness.training_loop import Loop

SEEDS = (3, 4, 5)


def toy_job(directory, *, seed=3, patch=NO_PATCH, **options) -> TrainJob:
    with seeded(seed):
        model = ToyModel()
    return TrainJob(model, toy_dataset(), toy_config(**options), directory, seed, "cpu", patch, probe=toy_probe)


def toy_team(root, patches=(), interrupt=None, **options):
    """A team of ``SEEDS``, each in a directory of its seed, and the outcomes that it tells of."""
    outcomes: dict[int, TrainOutcome] = {}
    team = Team(interrupt or Interrupt(), outcomes.__setitem__)
    for index, (seed, patch) in enumerate(itertools.zip_longest(SEEDS, patches, fillvalue=NO_PATCH)):
        team.members.append(Member(index, toy_job(root / str(seed), seed=seed, patch=patch, **options), team.interrupt))
    return team, outcomes


def take_turns(team) -> None:
    with team.saved_together():
        team.take_turns()


def go_on(root) -> None:
    """Take up what was left of a team, as a team again."""
    team, _ = toy_team(root)
    take_turns(team)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What ``train`` makes of each seed; the toy has dropout, so the random state matters."""
    root = tmp_path_factory.mktemp("alone")
    for seed in SEEDS:
        toy_train(root / str(seed), seed=seed)
    return root


def assert_equal(root, alone, seeds=SEEDS) -> None:
    for name in map(str, seeds):
        assert (root / name / "metrics.jsonl").read_bytes() == (alone / name / "metrics.jsonl").read_bytes()
        assert compare(root / name, alone / name, 20).is_none


def test_turns_driven_to_the_end_are_the_training(alone, tmp_path):
    job = toy_job(tmp_path / "3")
    job.directory.mkdir()
    outcomes = []

    def driven():
        outcomes.append((yield from Loop(job, Interrupt()).turns()))

    with seeded(3, "train"):
        steps = list(driven())
    assert [outcome.status for outcome in outcomes] == ["finished"]
    assert sum(steps) == 20, "every update belongs to a turn"
    # evaluations at 0, 4 .. 20, probes at 5, 10, 15, 20, a checkpoint at 10
    assert steps.count(0) == 6 + 4 + 1
    assert_equal(tmp_path, alone, [3])


def test_trainings_that_take_turns_are_those_that_run_alone(alone, tmp_path):
    team, outcomes = toy_team(tmp_path)
    before = torch.get_rng_state()
    take_turns(team)
    assert torch.equal(torch.get_rng_state(), before)
    assert {index: outcome.status for index, outcome in outcomes.items()} == dict.fromkeys(range(3), "finished")
    assert_equal(tmp_path, alone)


def test_it_does_not_matter_whose_turn_it_is(alone, tmp_path):
    team, _ = toy_team(tmp_path)
    order = torch.randint(3, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    for index in order:
        if team.members[index].is_open:
            team.members[index].turn()
    assert all(member.outcome.status == "finished" for member in team.members)
    assert_equal(tmp_path, alone)


def test_without_a_random_state_of_its_own_a_training_would_not_be_the_same(alone, tmp_path):
    # the comparison above can tell: turns without the exchange share one generator
    loops = []
    for seed in SEEDS[:2]:
        job = toy_job(tmp_path / str(seed), seed=seed)
        job.directory.mkdir()
        loops.append(Loop(job, Interrupt()).turns())
    with seeded(3, "train"):
        for _ in itertools.zip_longest(*loops):
            pass
    with pytest.raises(AssertionError):
        assert_equal(tmp_path, alone, SEEDS[:2])


@pytest.mark.parametrize("step", [0, 3, 9, 12])
def test_ctrl_c_saves_all_and_each_goes_on_bit_equal(alone, tmp_path, step):
    with deferred_interrupt() as interrupt:
        team, outcomes = toy_team(tmp_path, [NO_PATCH, SignalPatch(step, signal.SIGINT)], interrupt)
        with pytest.raises(KeyboardInterrupt):
            take_turns(team)
    assert outcomes == {}
    assert not any(member.is_open for member in team.members)
    for seed in SEEDS:
        assert len(list((tmp_path / str(seed) / "resume").iterdir())) == 1, "each saved"
    go_on(tmp_path)
    assert_equal(tmp_path, alone)


def test_a_training_interrupted_in_a_team_goes_on_alone(alone, tmp_path):
    with deferred_interrupt() as interrupt:
        team, _ = toy_team(tmp_path, [SignalPatch(7, signal.SIGINT)], interrupt)
        with pytest.raises(KeyboardInterrupt):
            take_turns(team)
    for seed in SEEDS:
        toy_train(tmp_path / str(seed), seed=seed)
    assert_equal(tmp_path, alone)


def test_a_second_ctrl_c_does_not_wait(tmp_path):
    class Impatient(TrainingPatch):
        def gradients(self, model, step):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with deferred_interrupt() as interrupt:
        team, _ = toy_team(tmp_path, [Impatient()], interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            take_turns(team)
    assert not isinstance(caught.value, CleanInterrupt)
    assert not list(tmp_path.glob("*/resume"))
    assert not any(member.is_open for member in team.members)


def test_a_divergence_is_its_own(alone, tmp_path):
    team, outcomes = toy_team(tmp_path, [NO_PATCH, Poison(8, math.nan)])
    take_turns(team)
    assert (outcomes[1].status, outcomes[1].steps) == ("diverged", 8)
    assert [row["step"] for row in read_rows(tmp_path / "4", "step")] == list(range(1, 10))
    assert {outcomes[0].status, outcomes[2].status} == {"finished"}
    assert_equal(tmp_path, alone, [3, 5])


class Fails(TrainingPatch):
    def gradients(self, model, step):
        if step == 7:
            raise HarnessError("no")


def test_an_error_of_one_is_raised_when_the_others_are_saved(alone, tmp_path):
    team, outcomes = toy_team(tmp_path, [NO_PATCH, Fails()])
    with pytest.raises(HarnessError, match="no"):
        take_turns(team)
    assert outcomes == {}
    for name in ("3", "5"):
        assert len(list((tmp_path / name / "resume").iterdir())) == 1
    go_on(tmp_path)
    assert_equal(tmp_path, alone)


def test_what_has_ended_is_told_as_it_is(tmp_path):
    toy_train(tmp_path / "4", seed=4)
    log = (tmp_path / "4" / "metrics.jsonl").read_bytes()
    team, outcomes = toy_team(tmp_path)
    take_turns(team)
    assert list(outcomes) == [1, 0, 2], "at its first turn"
    assert (tmp_path / "4" / "metrics.jsonl").read_bytes() == log


def test_a_training_is_let_go_of_as_it_ends(tmp_path):
    ended = []
    team = Team(Interrupt(), lambda index, _: ended.append((index, len(team.members))))
    for index, steps in enumerate((20, 8)):
        team.members.append(Member(index, toy_job(tmp_path / str(index), train={"steps": steps}), team.interrupt))
    take_turns(team)
    assert ended == [(1, 1), (0, 0)]


@pytest.fixture
def gpu_of_a_sort(monkeypatch):
    """A CPU that passes for a GPU with 1000 bytes free, on which each training takes another 100."""
    reserved = itertools.count(0, 100)
    held = {"now": 0}

    def peak():
        held["now"] = next(reserved) + 100
        return held["now"]

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000 - held["now"], 1000))
    # what is held here is never given back, so that no share of it would do
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: math.inf)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU of a sort")
    return monkeypatch


def jobs_of(root, seeds=SEEDS):
    return [functools.partial(toy_job, root / str(seed), seed=seed) for seed in seeds]


def executions(root, seeds=SEEDS):
    return [read_execution(root / str(seed)) for seed in seeds]


def test_eager_updates_are_not_shared(alone, tmp_path, gpu_of_a_sort):
    ended = []
    train_together(jobs_of(tmp_path), lambda index, _: ended.append(index))
    assert ended == [0, 1, 2]
    for execution in executions(tmp_path):
        assert (execution.mode, execution.at_once, execution.together_ms) == ("alone", 1, None)
        assert "eager" in execution.reason
        assert execution.alone_ms > 0
    assert_equal(tmp_path, alone)


@pytest.mark.parametrize("mode", ["together", "alone"])
def test_trainings_go_on_as_chosen(alone, tmp_path, gpu_of_a_sort, mode):
    asked = []
    gpu_of_a_sort.setattr(harness.team, "_against_sharing", lambda member: None)
    gpu_of_a_sort.setattr(harness.team, "choose", lambda *given: asked.append(given) or (mode, "told so"))
    ended = []
    train_together(jobs_of(tmp_path), lambda index, _: ended.append(index))
    assert ended == [0, 1, 2]
    [(alone_ms, together_ms)] = asked
    assert len(alone_ms) == 3
    for execution, own in zip(executions(tmp_path), alone_ms, strict=True):
        at_once = 3 if mode == "together" else 1
        assert execution == Execution(mode, "told so", at_once, own, together_ms, "a GPU of a sort")
    assert_equal(tmp_path, alone)


def test_there_are_no_more_at_once_than_memory_and_the_limit_allow(tmp_path, gpu_of_a_sort):
    gpu_of_a_sort.setattr(harness.team, "_against_sharing", lambda member: None)
    gpu_of_a_sort.setattr(harness.team, "choose", lambda *given: ("together", "told so"))
    seeds = tuple(range(MOST + 1))
    train_together(jobs_of(tmp_path, seeds), lambda index, outcome: None)
    assert [execution.at_once for execution in executions(tmp_path, seeds)] == [MOST] * MOST + [1]
    assert executions(tmp_path, seeds)[-1].reason == "there is no other training to run beside it"

    # each takes 100 bytes, and the next is let in where 125 are free
    gpu_of_a_sort.setattr(torch.cuda, "mem_get_info", lambda: (124, 1000))
    train_together(jobs_of(tmp_path / "full"), lambda index, outcome: None)
    assert [execution.at_once for execution in executions(tmp_path / "full")] == [1, 1, 1]
    assert "no memory" in executions(tmp_path / "full")[0].reason
    gpu_of_a_sort.setattr(torch.cuda, "mem_get_info", lambda: (125, 1000))
    train_together(jobs_of(tmp_path / "room"), lambda index, outcome: None)
    assert [execution.at_once for execution in executions(tmp_path / "room")] == [3, 3, 3]

    # a share of the memory: that much is free, but not for this process
    gpu_of_a_sort.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.1)
    train_together(jobs_of(tmp_path / "share"), lambda index, outcome: None)
    assert [execution.at_once for execution in executions(tmp_path / "share")] == [1, 1, 1]


def test_ctrl_c_while_one_is_measured_saves_those_that_wait(alone, tmp_path, gpu_of_a_sort):
    gpu_of_a_sort.setattr(harness.team, "_against_sharing", lambda member: None)
    jobs = jobs_of(tmp_path)
    jobs[1] = functools.partial(toy_job, tmp_path / "4", seed=4, patch=SignalPatch(2, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train_together(jobs, lambda index, _: pytest.fail("none ends"))
    assert sorted(path.parent.name for path in tmp_path.glob("*/resume")) == ["3", "4"], "5 had not begun"
    train_together(jobs_of(tmp_path), lambda index, _: None)
    assert_equal(tmp_path, alone)


def test_a_short_training_is_told_of_too(tmp_path, gpu_of_a_sort):
    job = functools.partial(toy_job, tmp_path, train={"steps": 2, "warmup_steps": 1})
    ended = []
    train_together([job], lambda index, outcome: ended.append(outcome.status))
    assert ended == ["finished"]
    assert read_execution(tmp_path).reason == "it was too short to measure it"


def test_what_was_measured_before_an_interruption_is_kept(tmp_path, gpu_of_a_sort):
    with pytest.raises(KeyboardInterrupt):
        toy_train(tmp_path, patch=SignalPatch(18, signal.SIGINT))
    before = Execution("together", "3 at once", 3, 9.0, 7.5, "a GPU")
    before.write(tmp_path)
    train_together([functools.partial(toy_job, tmp_path)], lambda index, outcome: None)
    assert read_execution(tmp_path) == before


def test_own_random_states_do_not_mix():
    one, two = OwnRandom(1, "train"), OwnRandom(2, "train")
    drawn = {1: [], 2: []}
    for seed, random in ((1, one), (2, two), (2, two), (1, one)):
        with random.in_place():
            drawn[seed].append(torch.rand(2))
    for seed in drawn:
        with seeded(seed, "train"):
            assert torch.equal(torch.cat(drawn[seed]), torch.cat([torch.rand(2), torch.rand(2)]))


@pytest.mark.parametrize(
    ("alone_ms", "together_ms", "mode", "reason"),
    [
        ([9.0, 9.0, 9.0], 7.5, "together", "3 at once do 1.20 times the updates of one after another"),
        ([2.1, 2.1], 2.0, "together", "1.05 times"),
        ([9.0, 9.0], 8.9, "alone", "1.01 times the updates of one after another, and less than 1.05 is not worth it"),
        ([9.0, 9.0], 12.0, "alone", "0.75 times"),
        ([4.0, 12.0], 6.0, "together", "1.33 times"),
        ([9.0, 9.0], None, "alone", "too short"),
    ],
)
def test_the_choice_follows_from_what_was_measured(alone_ms, together_ms, mode, reason):
    found = choose(alone_ms, together_ms)
    assert found[0] == mode
    assert reason in found[1]


def test_how_it_ran_is_read_as_it_was_written(tmp_path):
    assert read_execution(tmp_path) is None
    execution = Execution("together", "3 at once", 3, 9.0, 7.5, "a GPU")
    execution.write(tmp_path)
    assert read_execution(tmp_path) == execution
    assert json.loads((tmp_path / "execution.json").read_text())["at_once"] == 3
