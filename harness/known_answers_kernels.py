"""Known answers of G0: what the oracles must give where a pencil suffices, and an error that parity must see."""

import math

import torch
from torch import Tensor

from harness.known_answers import known_answer
from kernels.parity import rms_error
from kernels.reference import ssd_reference, wkv6_reference

LENGTH = 7


@known_answer("G0")
def wkv6_without_decay_counts_pairs() -> None:
    """With w = 1, u = 0 and one-hot k and v the state counts which key met which value."""
    keys, values = torch.tensor([0, 1, 1, 2, 0, 1, 3]), torch.tensor([2, 0, 0, 3, 2, 1, 1])
    one_hot = torch.eye(4, dtype=torch.float64)
    counts_KV = torch.zeros(4, 4, dtype=torch.float64)
    counts_KV.index_put_((keys, values), torch.ones(LENGTH, dtype=torch.float64), accumulate=True)
    zeros = torch.zeros(1, LENGTH, 1, 4, dtype=torch.float64)
    state_BHKV = _final_state(one_hot[keys][None, :, None], one_hot[values][None, :, None], zeros)
    assert torch.equal(state_BHKV[0, 0], counts_KV), "wkv6 without decay must count pairs of keys and values"
    assert (
        rms_error(_final_state(one_hot[keys][None, :, None], one_hot[values][None, :, None], zeros - 0.1), state_BHKV)
        > 0
    )


def _final_state(k_BTHK: Tensor, v_BTHV: Tensor, log_w_BTHK: Tensor) -> Tensor:
    initial = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    return wkv6_reference(k_BTHK, k_BTHK, v_BTHV, log_w_BTHK, torch.zeros(1, 4, dtype=torch.float64), initial)[1]


@known_answer("G0")
def wkv6_with_constant_decay_sums_powers_of_it() -> None:
    """With w = 1/2 everywhere the state is the sum of k_t^T v_t / 2^(T-1-t), exact in binary."""
    places = torch.arange(LENGTH, dtype=torch.float64)
    k, v = places % 3 + 1, 5 - places % 2
    expected = (k * v * 0.5 ** (LENGTH - 1 - places)).sum()
    k_BTHK, v_BTHV = (t[None, :, None, None] * torch.eye(4, dtype=torch.float64)[0] for t in (k, v))
    log_w_BTHK = torch.full((1, LENGTH, 1, 4), -math.log(2), dtype=torch.float64)
    state_BHKV = _final_state(k_BTHK, v_BTHV, log_w_BTHK)
    assert abs(float(state_BHKV[0, 0, 0, 0] - expected)) < 1e-13, "a constant decay must sum powers of it"


@known_answer("G0")
def ssd_with_constant_input_sums_a_geometric_series() -> None:
    """With x = B = C = 1 and dt = 1 the state is 1 + a + a^2 + ..., a = exp(A)."""
    ones = torch.ones(1, LENGTH, 1, 1, dtype=torch.float64)
    rate = torch.tensor([-0.3], dtype=torch.float64)
    initial = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    y_BTHP, _ = ssd_reference(ones, ones[..., 0], rate, ones, ones, initial)
    wanted = torch.exp(rate * torch.arange(LENGTH)).cumsum(0)
    assert rms_error(y_BTHP.flatten(), wanted) < 1e-14, "SSD under constant input must sum a geometric series"


@known_answer("G0")
def parity_sees_an_error_of_one_part_in_a_thousand() -> None:
    """The relative error is relative, and NaN is no agreement."""
    expected = torch.tensor([3.0, 4.0])
    assert abs(rms_error(expected * 1.001, expected) - 1e-3) < 1e-6
    # 8 significant bits: between 1 and 2 the error is uniform within half of 2^-7
    rounded = torch.linspace(1, 2, 4097, dtype=torch.float64)
    assert abs(rms_error(rounded.bfloat16(), rounded) - 2**-7 / math.sqrt(12) / math.sqrt(7 / 3)) < 2e-5
    poisoned = rms_error(torch.tensor([3.0, float("nan")]), expected)
    assert poisoned != poisoned, "a NaN must not pass for agreement"
