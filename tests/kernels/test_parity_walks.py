"""Cases that walk together: each comes out as it does alone, in every operation and every quantity."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import backends, parity, walks
from kernels.parity import ParityCase, naive_errors, oracles, rms_errors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Launches(TorchDispatchMode):
    """Counts what runs, by name: views launch nothing."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.seen[function.name()] += 1
        return function(*args, **(kwargs or {}))


def cases_of(op, length, dtypes=DTYPES):
    """All that may walk together: every kind of decay in every dtype, and decays as coarse as the values."""
    kinds = parity.DECAYS if op in parity.OPS_WITH_DECAYS else parity.DECAYS[:1]
    coarse = (False, True) if op == "wkv6" else (False,)
    return [ParityCase(op, length, kind, c).inputs(8, dtype) for dtype in dtypes for c in coarse for kind in kinds]


def agree(found, expected):
    errors = rms_errors(found, expected)
    return all(error <= 1e-13 for error in errors.values()), errors


@pytest.mark.parametrize("length", [1, 2, 33])
@pytest.mark.parametrize("op", backends.OPS)
def test_oracles_that_walk_together_are_what_each_is_alone(op, length):
    cases = cases_of(op, length)
    together = oracles(op, cases)
    alone = [oracles(op, [case])[0] for case in cases]
    quantities = {"y"} | ({"final_state"} if op in parity.OPS_WITH_STATE else set())
    quantities |= {f"grad {name}" for name, tensor in cases[0].items() if tensor.is_floating_point()}
    for case, one, other in zip(cases, together, alone, strict=True):
        assert one.inputs is case
        assert set(one.expected) == quantities
        assert all(tensor.dtype == torch.float64 for tensor in one.expected.values())
        assert one.weights.keys() == other.weights.keys()
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights)
        agreed, errors = agree(one.expected, other.expected)
        assert agreed, errors


@pytest.mark.parametrize("op", list(walks.SIDE_BY_SIDE))
def test_every_quantity_of_a_case_differs_from_that_of_its_neighbour(op):
    """The control: were cases mistaken for one another, or a parameter's gradient shared, the comparison would see."""
    cases = [ParityCase(op, 33).inputs(8, dtype) for dtype in DTYPES]
    for one, other in pairwise(oracles(op, cases)):
        errors = rms_errors(one.expected, other.expected)
        assert all(error > 1e-4 for error in errors.values()), errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", backends.OPS)
def test_naive_walks_together_err_as_each_does_alone(op, dtype):
    truth = oracles(op, cases_of(op, 33, [dtype]))
    together = naive_errors(truth)
    assert max(max(errors.values()) for errors in together) > 1e-4, "16 bits must show"
    for errors, oracle in zip(together, truth, strict=True):
        [alone] = naive_errors([oracle])
        assert errors == pytest.approx(alone, rel=1e-9, nan_ok=True)


def test_naive_walks_of_several_dtypes_are_refused():
    with pytest.raises(ValueError, match="too many values"):
        naive_errors(oracles("ssd", cases_of("ssd", 3)))


def test_cases_of_several_shapes_are_refused():
    with pytest.raises(AssertionError, match="cases must have one shape"):
        oracles("ssd", [ParityCase("ssd", 3).inputs(8), ParityCase("ssd", 3).inputs(16)])


@pytest.mark.parametrize("op", backends.OPS)
def test_the_reference_is_called_once_where_cases_lie_side_by_side(op):
    before = backends.calls.copy()
    cases = cases_of(op, 3)
    oracles(op, cases)
    assert (backends.calls - before)[op, "reference"] == (1 if op in walks.SIDE_BY_SIDE else len(cases))


@pytest.mark.parametrize("op", parity.OPS_WITH_DECAYS)
def test_kinds_of_decay_that_walk_together_launch_what_one_alone_does(op):
    cases = [ParityCase(op, 65, kind).inputs(8) for kind in parity.DECAYS]
    with Launches() as alone:
        oracles(op, cases[:1])
    with Launches() as together:
        oracles(op, cases)
    # beside the walk: copies, casts and weights of each case
    assert together.seen.total() < 1.25 * alone.seen.total() < len(cases) * alone.seen.total() / 4


@pytest.mark.parametrize("op", parity.OPS_WITH_STATE)
def test_no_position_has_a_gradient_as_long_as_the_sequence(op):
    with Launches() as walk:
        oracles(op, [ParityCase(op, 65).inputs(8)])
    assert not {name for name in walk.seen if "select_backward" in name}
