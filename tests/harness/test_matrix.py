"""The decision matrix: known verdicts, and properties that no evidence may break."""

from datetime import date
from itertools import product

import pytest
from graduation_evidence import CATEGORY, HARD, Made, ending, made, record
from hypothesis import given
from hypothesis import strategies as st

from harness.graduation.matrix import Verdict
from harness.graduation.waivers import Waiver
from harness.records import Record, Status

PASS, WARN, FAIL, MISSING = Status.PASS, Status.WARN, Status.FAIL, Status.MISSING
INVALID, UNSUPPORTED, NA = Status.INVALID, Status.UNSUPPORTED, Status.NA
WAIVER = Waiver(check="NOTE", owner="Ada Lovelace", reason="repeated by hand, with care", expires=date(2030, 1, 1))


def odd(check: str, **changes) -> Record:
    """A PASS with something wrong about it."""
    return record(check, "level_of", value=2.0, case="odd").model_copy(update=changes)


def absent(check: str, status: Status) -> Record:
    """Evidence that is not there."""
    return odd(check, status=status, value=None, threshold=None)


def beside_a_waived_fail(*records: Record, **changes) -> Made:
    """Evidence for GO but for a waived FAIL of NOTE, and what its other item says."""
    evidence = made(3, 3, 2, 2, {"NOTE": FAIL}, waivers=(WAIVER,), **changes)
    return evidence.but(records=(*evidence.records, *records))


def of_seed(check: str, seed: int, statuses=None, **changes) -> Made:
    """Evidence for GO, but for ``statuses``, whose records of that check are of one seed."""
    evidence = made(3, 3, 2, 2, statuses, **changes)
    one = tuple(r.model_copy(update={"seeds": (seed,)}) if r.check == check else r for r in evidence.records)
    return evidence.but(records=one)


# Evidence, its verdict, and the one line of why
TABLE = {
    "the worked example: 1.5 x 3 + 1.5 x 3 + 2 + 2 = 13": (made(3, 3, 2, 2), "GO"),
    "everything at its best is 15": (made(3, 3, 3, 3), "GO"),
    "exactly 10 is enough": (made(2, 2, 2, 2), "GO"),
    "9.5 lies between the bands of 8 and 10: CAUTION": (made(3, 2, 1, 1), "CAUTION"),
    "exactly 8 is CAUTION": (made(2, 2, 1, 1), "CAUTION"),
    "7.5 is HOLD": (made(1, 2, 1, 2), "HOLD"),
    "a zero is HOLD, however high the rest: 10.5 points": (made(3, 3, 0, 3), "HOLD"),
    "a weak canary passes the matrix at 10: the gates must stop it where the milestones are missed":
        (made(3, 1, 2, 3, {"CANARY": FAIL}), "HOLD"),
    "evidence that is missing is no zero and no pass": (made(3, None, 2, 2), "INCOMPLETE"),
    "missing evidence that could not lift the total to 8 is HOLD outright": (made(1, 1, 1, None), "HOLD"),
    "a hard gate that FAILs is NO-GO at 13 points": (made(3, 3, 2, 2, {"G0": FAIL}), "NO-GO"),
    "a hard gate that WARNs caps 13 points at CAUTION": (made(3, 3, 2, 2, {"G0": WARN}), "CAUTION"),
    "a WARN beyond the gates caps nothing": (made(3, 3, 2, 2, {"NOTE": WARN}), "GO"),
    "a FAIL beyond the gates is HOLD": (made(3, 3, 2, 2, {"NOTE": FAIL}), "HOLD"),
    "a waived FAIL is CAUTION, never GO": (made(3, 3, 2, 2, {"NOTE": FAIL}, waivers=(WAIVER,)), "CAUTION"),
    "what is missing cannot be waived": (made(3, 3, 2, 2, {"NOTE": MISSING}, waivers=(WAIVER,)), "INCOMPLETE"),
    "nor with a FAIL beside it": (beside_a_waived_fail(absent("NOTE", MISSING)), "HOLD"),
    "nor what is invalid, for one seed of three say":
        (beside_a_waived_fail(absent("NOTE", INVALID)), "HOLD"),
    "nor what this machine cannot run":
        (beside_a_waived_fail(absent("NOTE", UNSUPPORTED)), "HOLD"),
    "unless nobody demands it there":
        (beside_a_waived_fail(absent("NOTE", UNSUPPORTED), scope="cpu_ref"), "CAUTION"),
    "nor a FAIL that one seed has, where the others have nothing":
        (of_seed("NOTE", 0, {"NOTE": FAIL}, waivers=(WAIVER,)), "HOLD"),
    "a FAIL of the one seed that is demanded can be":
        (of_seed("LONGER", 0, {"LONGER": FAIL}, waivers=(WAIVER.model_copy(update={"check": "LONGER"}),)), "CAUTION"),
    "a quantity that was reported twice":
        (made(3, 3, 2, 2).but(records=(*made(3, 3, 2, 2).records, ending("NOTE", PASS))), "INCOMPLETE"),
    "the one record that capped the verdict, lost on the way":
        (made(3, 3, 2, 2, {"G0": WARN}).after([r for r in made(3, 3, 2, 2, {"G0": WARN}).records
                                               if r.status is not WARN]), "INCOMPLETE"),
    "a status that does not follow from its number":
        (made(3, 3, 2, 2).but(records=(*made(3, 3, 2, 2).records, odd("NOTE", value=0.7))), "INCOMPLETE"),
    "a number judged by limits that are not in force":
        (made(3, 3, 2, 2).but(records=(*made(3, 3, 2, 2).records, odd("NOTE", threshold=None))), "INCOMPLETE"),
    "a record of another model":
        (made(3, 3, 2, 2).but(records=(*made(3, 3, 2, 2).records, odd("NOTE", model="RWKV6"))), "INCOMPLETE"),
    "a record of an item that was never planned":
        (made(3, 3, 2, 2).but(records=(*made(3, 3, 2, 2).records, odd("NOTE", nodeid="elsewhere"))), "INCOMPLETE"),
    "three seeds were trained and one was judged": (of_seed("NOTE", 0), "INCOMPLETE"),
    "of a training that only the first seed has, it is enough": (of_seed("LONGER", 0), "GO"),
    "and no other one will do": (of_seed("LONGER", 1), "INCOMPLETE"),
    "a FAIL outweighs what is missing": (made(3, None, 2, 2, {"G1": FAIL}), "NO-GO"),
    "an invalid measurement is no evidence": (made(3, 3, 2, 2, {"D1": INVALID}), "INCOMPLETE"),
    "a pure model is excused from comparing branches": (made(3, 3, 2, 2, {"HYBRID": NA}, branches=1), "GO"),
    "a hybrid is not": (made(3, 3, 2, 2, {"HYBRID": NA}), "INCOMPLETE"),
    "two of three seeds": (made(3, 3, 2, 2, seeds=(0, 1)), "INCOMPLETE"),
    "a single seed where one is demanded scores at most 2 everywhere": (made(3, 3, 3, 3, seeds=(0,), demanded_seeds=1),
                                                                        "GO"),
    "a CPU cannot answer where a GPU is demanded": (made(3, 3, 2, 2, scope="cpu_ref", cpu_ref=False), "INCOMPLETE"),
    "on a CPU the kernel half of G0 is excused at the smallest scale":
        (made(3, 3, 2, 2, scope="cpu_ref").but(records=(*made(3, 3, 2, 2).records, ending("G0", UNSUPPORTED))), "GO"),
    "on a GPU it is not":
        (made(3, 3, 2, 2).but(records=(*made(3, 3, 2, 2).records, ending("G0", UNSUPPORTED))), "INCOMPLETE"),
    "a session cut short": (made(3, 3, 2, 2, changes={"interrupted": True}), "INCOMPLETE"),
    "fewer steps than the evidence table demands": (made(3, 3, 2, 2, changes={"overrides": {"train.steps": "60"}}),
                                                    "INCOMPLETE"),
    "another learning rate is the user's affair": (made(3, 3, 2, 2, changes={"overrides": {"train.lr": "1e-3"}}), "GO"),
    "a check that was not run": (made(3, 3, 2, 2, unplanned=frozenset({"NOTE"})), "INCOMPLETE"),
    "an item that never reported": (made(3, 3, 2, 2, unsealed=frozenset({"NOTE"})), "INCOMPLETE"),
    "WARN counts as FAIL where the user says so": (made(3, 3, 2, 2, {"NOTE": WARN}, changes={"fail_on_warn": True}),
                                                   "HOLD"),
}  # fmt: skip


@pytest.mark.parametrize("why", TABLE)
def test_known_evidence_has_its_known_verdict(why):
    evidence, verdict = TABLE[why]
    if verdict == "INCOMPLETE" or evidence.unplanned:
        evidence = evidence.but(records=tuple(r for r in evidence.records if r.check not in evidence.unplanned))
    decision = evidence.decide()
    assert decision.verdict == verdict, decision.reasons
    assert decision.verdict == Verdict.GO or decision.reasons


def test_the_worked_example_scores_13_of_15():
    decision = made(3, 3, 2, 2).decide()
    assert decision.total == 13
    assert {name: score.score for name, score in decision.categories.items()} == {
        "stability": 3, "canary": 3, "scaling": 2, "resource": 2,
    }  # fmt: skip
    assert decision.total_range == (13, 13)


def test_missing_evidence_gives_both_bounds_of_the_total():
    decision = made(3, None, 2, 2).decide()
    assert decision.total is None
    assert decision.total_range == (8.5, 13)
    assert decision.categories["canary"].score is None


@pytest.mark.parametrize("scores", list(product(range(4), repeat=4)))
def test_every_score_vector_is_scored_as_made_and_judged_by_its_total(scores):
    decision = made(*scores).decide()
    assert tuple(score.score for score in decision.categories.values()) == scores
    total = 1.5 * scores[0] + 1.5 * scores[1] + scores[2] + scores[3]
    expected = "HOLD" if 0 in scores or total < 8 else "CAUTION" if total < 10 else "GO"
    assert decision.verdict == expected


def test_every_unmet_requirement_is_named_with_its_figure():
    unmet = made(1, 3, 2, 2).decide().categories["stability"].unmet
    assert unmet == [
        "for 2: STABILITY.spikes_per_1000 is 3, demanded at most 1",
        "for 2: STABILITY.seed_sd is 0.08, demanded at most 0.05",
    ]


def test_one_seed_caps_every_score():
    scores = made(3, 3, 3, 3, seeds=(0,), demanded_seeds=1).decide().categories
    assert [score.score for score in scores.values()] == [2, 2, 2, 2]


def test_a_number_that_no_record_gives_is_no_score():
    evidence = made(3, 3, 2, 2)
    kept = tuple(r for r in evidence.records if r.metric != "seed_sd")
    decision = evidence.but(records=kept).decide()
    assert decision.categories["stability"].score is None
    assert decision.verdict == Verdict.INCOMPLETE
    assert any("STABILITY.seed_sd" in reason for reason in decision.reasons)


def test_analyses_that_name_different_branches_cap_the_verdict():
    def shares(check, metric, **sizes):
        told = {"info": True, "status": NA, "nodeid": "elsewhere", "threshold": None}
        return tuple(
            Record(check=check, metric=metric, branch=branch, value=size, ci=(size - 0.1, size + 0.1), **told)
            for branch, size in sizes.items()
        )

    agree = made(3, 3, 2, 2)
    first = shares("D3", "activity", rwkv=0.8, mamba=0.2)
    agreeing = agree.but(records=(*agree.records, *first, *shares("INFO", "share", rwkv=0.8, mamba=0.2)))
    assert agreeing.decide().verdict == Verdict.GO
    apart = agree.but(records=(*agree.records, *first, *shares("INFO", "share", rwkv=0.2, mamba=0.8)))
    decision = apart.decide()
    assert decision.verdict == Verdict.CAUTION
    assert "disagree" in decision.reasons[0]


STATUSES = st.sampled_from([PASS, WARN, FAIL, MISSING, INVALID])
SCORES = st.tuples(*[st.integers(0, 3)] + [st.one_of(st.none(), st.integers(0, 3))] * 3)


@st.composite
def evidences(draw) -> Made:
    """Any scores and endings, and every other time such as one record alone keeps from GO."""
    if draw(st.booleans()):
        return made(3, 3, 3, 3, {draw(st.sampled_from(sorted(CATEGORY))): draw(STATUSES)})
    names = draw(st.lists(st.sampled_from(sorted(CATEGORY)), unique=True, max_size=4))
    return made(*draw(SCORES), {name: draw(STATUSES) for name in names})


@given(evidences())
def test_dropping_a_record_never_raises_the_verdict(evidence):
    rank = evidence.decide().verdict.rank
    for index in range(len(evidence.records)):
        less = evidence.after(evidence.records[:index] + evidence.records[index + 1 :])
        assert less.decide().verdict.rank <= rank


CORRUPTIONS = {
    "status": lambda r: r.model_copy(update={"status": PASS}),
    "value": lambda r: r.model_copy(update={"value": 2.0}),
    "not a number": lambda r: r.model_copy(update={"value": float("nan"), "status": PASS}),
    "check": lambda r: r.model_copy(update={"check": "NOTE"}),
    "info": lambda r: r.model_copy(update={"info": True}),
    "item": lambda r: r.model_copy(update={"nodeid": "suites/other.py::test"}),
    "model": lambda r: r.model_copy(update={"model": "RWKV6"}),
    "scale": lambda r: r.model_copy(update={"scale": "8M"}),
    "seeds": lambda r: r.model_copy(update={"seeds": (0, 1, 2, 3)}),
}


@given(evidences(), st.sampled_from(sorted(CORRUPTIONS)))
def test_corrupting_a_record_never_raises_the_verdict(evidence, how):
    rank = evidence.decide().verdict.rank
    for index, found in enumerate(evidence.records):
        records = [*evidence.records[:index], CORRUPTIONS[how](found), *evidence.records[index + 1 :]]
        assert evidence.after(records).decide().verdict.rank <= rank


@given(evidences(), st.data())
def test_repeating_a_record_never_raises_the_verdict(evidence, data):
    twice = data.draw(st.sampled_from(evidence.records))
    # sealed with the repetition in it: an item that reports a quantity twice
    again = evidence.but(records=(*evidence.records, twice))
    assert again.decide().verdict.rank <= evidence.decide().verdict.rank


@given(evidences(), st.randoms(use_true_random=False))
def test_the_order_of_records_and_seeds_does_not_matter(evidence, random):
    shuffled = list(evidence.records)
    random.shuffle(shuffled)
    seeds = list(evidence.seeds)
    random.shuffle(seeds)
    again = evidence.but(records=tuple(shuffled), seeds=tuple(seeds))
    first, second = evidence.decide(), again.decide()
    assert (first.verdict, first.total_range, first.categories.keys()) == (
        second.verdict, second.total_range, second.categories.keys(),
    )  # fmt: skip
    assert sorted(first.reasons) == sorted(second.reasons)


@given(SCORES, st.integers(0, 3))
def test_the_verdict_is_monotone_in_every_score(scores, which):
    if scores[which] in (None, 3):
        return
    better = tuple(score + 1 if index == which else score for index, score in enumerate(scores))
    assert made(*better).decide().verdict.rank >= made(*scores).decide().verdict.rank


@given(evidences(), st.sampled_from(sorted(CATEGORY)))
def test_a_better_status_never_lowers_the_verdict(evidence, name):
    order = [FAIL, WARN, PASS]
    ranks = []
    for status in order:
        others = tuple(
            r for r in evidence.records if not (r.check == name and r.metric in ("", "level_of") and not r.case)
        )
        ranks.append(evidence.but(records=(*others, ending(name, status))).decide().verdict.rank)
    assert ranks == sorted(ranks)


@given(evidences())
def test_a_waiver_never_gives_go(evidence):
    waivers = tuple(WAIVER.model_copy(update={"check": name}) for name in CATEGORY)
    before, after = evidence.decide(), evidence.but(waivers=waivers).decide()
    assert after.verdict.rank <= (2 if before.verdict == Verdict.GO else 1)
    assert after.verdict.rank >= before.verdict.rank


@given(evidences(), st.sampled_from(HARD))
def test_a_hard_gate_that_fails_is_never_better_than_no_go(evidence, name):
    others = tuple(r for r in evidence.records if not (r.check == name and r.metric in ("", "level_of") and not r.case))
    assert evidence.but(records=(*others, ending(name, FAIL))).decide().verdict == Verdict.NO_GO
