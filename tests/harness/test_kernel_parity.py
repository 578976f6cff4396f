"""G0's comparisons: each defect of a kernel shows in its number, and a sound kernel is not blamed for rounding."""

import math
from dataclasses import replace

import pytest
import torch

from fixtures.mutants.kernel import ignore_initial_state, skip_the_tail
from harness import kernel_parity
from harness.kernel_parity import (
    Carry,
    OracleError,
    Size,
    carries,
    dtypes_of,
    model_errors,
    parities,
    sizes_to_compare,
    sizes_used,
    speed_up,
)
from harness.sufficiency import wake
from harness.thresholds import load_thresholds
from kernels import backends, reference, wkv6_chunked
from kernels import parity as kernel_cases
from kernels.parity import ParityCase, carry_errors, errors_of, naive_errors, oracles, parity_cases, worst
from models import get_model

LIMITS = load_thresholds().of("G0")
SMALL = Size(8)


def parity(op, backend, *, device, size, dtype=torch.float32):
    return parities(op, backend, device=device, size=size, dtypes=[dtype])[dtype]


@pytest.fixture
def short(monkeypatch):
    """A few lengths instead of all."""
    monkeypatch.setattr(kernel_cases, "LENGTHS", (1, 65))


@pytest.fixture
def native(monkeypatch):
    """``native(function)``: a backend of wkv6 that takes bfloat16 as it is. Returns its name."""

    def register(function):
        name = f"native_{function.__name__}"
        row = backends.Backend("wkv6", name, frozenset({"cpu"}), lambda: function, lambda: (True, ""),
                               frozenset({"float32", "bfloat16"}))  # fmt: skip
        monkeypatch.setattr(backends, "_TABLE", (*backends._TABLE, row))
        return name

    yield register
    backends._loaded.cache_clear()


def computes_in_fp32(r, k, v, log_w, u, state):
    y, final = wkv6_chunked.wkv6_chunked(r.float(), k.float(), v.float(), log_w.float(), u, state)
    return y.to(v.dtype), final


def computes_in_bfloat16(*inputs):
    y, final = reference.wkv6_reference(*(t.bfloat16() for t in inputs))
    return y, final.float()


def is_a_percent_off(r, k, v, log_w, u, state):
    y, final = computes_in_fp32(r, k, v, log_w, u, state)
    return y, final * 1.012


def passes(metric, value):
    low, high = LIMITS[metric].pass_band
    return low <= value <= high


def fails(metric, value):
    low, high = LIMITS[metric].warn_band
    return not low <= value <= high


def test_a_backend_is_compared_in_fp32_and_in_what_it_takes_as_it_is(native):
    assert dtypes_of(backends.get("wkv6", "chunked")) == [torch.float32]
    assert dtypes_of(backends.get("wkv6", native(computes_in_fp32))) == [torch.float32, torch.bfloat16]


def test_a_sound_kernel_passes_in_16_bits(native, short):
    found = parity("wkv6", native(computes_in_fp32), device="cpu", size=SMALL, dtype=torch.bfloat16)
    assert {row.quantity for row in found} == {"y", "final_state"} | {
        f"grad {name}" for name in ("r_BTHK", "k_BTHK", "v_BTHV", "log_w_BTHK", "u_HK", "initial_state_BHKV")
    }
    for row in found:
        assert passes("parity_error_16bit", row.error), row
        assert passes("error_over_naive", row.over_naive), row
    errors = {row.quantity: row.error for row in found}
    assert 1e-3 < errors["y"] < 3e-3, "the result is rounded to bfloat16"
    assert errors["final_state"] < 1e-6, "nothing rounds a state"


def test_a_state_in_16_bits_fails(native, monkeypatch):
    # a long memory is where it shows: each position rounds what was kept of all before
    monkeypatch.setattr(kernel_cases, "LENGTHS", (1000,))
    found = parity("wkv6", native(computes_in_bfloat16), device="cpu", size=SMALL, dtype=torch.bfloat16)
    errors = {row.quantity: row for row in found}
    assert fails("parity_error_16bit", errors["final_state"].error)
    assert errors["final_state"].over_naive is None, "the naive recurrence is not run as far"


def test_a_kernel_much_worse_than_the_naive_recurrence_fails_though_its_error_is_moderate(native, short):
    found = parity("wkv6", native(is_a_percent_off), device="cpu", size=SMALL, dtype=torch.bfloat16)
    row = next(row for row in found if row.quantity == "final_state")
    assert fails("error_over_naive", row.over_naive)
    assert row.naive_case.startswith("wkv6-T")


def test_the_naive_recurrence_itself_is_level_with_itself():
    [oracle] = oracles("wkv6", [ParityCase("wkv6", 33).inputs(8, torch.bfloat16)])
    [naive] = naive_errors([oracle])
    assert 1e-3 < naive["final_state"] < 1e-1
    assert oracle.errors(lambda **inputs: computes_in_bfloat16(*inputs.values())) == naive


# squares of rms_norm's larger rows are beyond float16: there the naive form is no yardstick
NAIVE_FORMS = [
    (op, dtype)
    for op in ("ssd", "causal_conv1d", "selective_scan", "cross_entropy", "rms_norm", "gated_rms_norm")
    for dtype in (torch.bfloat16, torch.float16)
    if (op, dtype) != ("rms_norm", torch.float16)
]


@pytest.mark.parametrize(("op", "dtype"), NAIVE_FORMS)
def test_every_operation_has_a_naive_form_in_16_bits(op, dtype):
    [naive] = naive_errors(oracles(op, [ParityCase(op, 17).inputs(8, dtype)]))
    assert all(math.isfinite(error) and error < 0.3 for error in naive.values()), naive
    assert max(naive.values()) > 1e-4


def test_dtypes_and_kinds_of_decay_that_walk_together_are_measured_as_if_alone(native, short):
    """The numbers of each case by itself, taken here in the plainest way."""
    backend = native(computes_in_bfloat16)
    found = parities("wkv6", backend, device="cpu", size=SMALL, dtypes=[torch.float32, torch.bfloat16])
    assert list(found) == [torch.float32, torch.bfloat16]
    for dtype, rows in found.items():
        alone, naive = {}, {}
        for case in parity_cases("wkv6"):
            [oracle] = oracles("wkv6", [case.inputs(8, dtype)])
            with backends.force("wkv6", backend):
                alone[str(case)] = oracle.errors(kernel_parity.api.wkv6)
            [naive[str(case)]] = naive_errors([oracle])
        assert [row.quantity for row in rows] == list(alone["wkv6-T1-typical"])
        for row in rows:
            errors = {case: found[row.quantity] for case, found in alone.items()}
            assert (row.case, row.error) == (worst(errors)[0], pytest.approx(worst(errors)[1], rel=1e-9))
            assert (row.num_cases, row.dtype) == (len(alone), dtype)
            if row.narrow:
                ratios = {
                    case: kernel_parity._ratio(error, naive[case][row.quantity]) for case, error in errors.items()
                }
                assert row.over_naive == pytest.approx(worst(ratios)[1], rel=1e-9)
            else:
                assert row.over_naive is None


def test_a_decay_as_coarse_as_the_values_is_a_case_of_its_own(native, monkeypatch):
    monkeypatch.setattr(kernel_cases, "LENGTHS", (5, 9))
    monkeypatch.setattr(kernel_cases, "DECAYS_AT_THE_LONGEST", ("typical",))
    monkeypatch.setattr(kernel_parity, "NAIVE_LENGTH", 5)
    coarse = []

    def forgets_when_the_decay_is_coarse(r, k, v, log_w, u, state):
        coarse.append(log_w.dtype == torch.bfloat16)
        y, final = computes_in_fp32(r, k, v, log_w, u, state)
        return y, final * (1 - coarse[-1])

    backend = native(forgets_when_the_decay_is_coarse)
    found = {row.quantity: row for row in parity("wkv6", backend, device="cpu", size=SMALL, dtype=torch.bfloat16)}
    assert (len(coarse), sum(coarse), found["y"].num_cases) == (13, 6, 13)
    assert found["final_state"].error == pytest.approx(1.0)
    assert found["final_state"].case.endswith("-coarse")


def test_the_backend_is_called_case_by_case_and_the_oracle_once_a_length(short):
    shapes = []

    def watching(kernel):
        def wrapped(*inputs):
            shapes.append(tuple(inputs[0].shape))
            return kernel(*inputs)

        return wrapped

    before = backends.calls.copy()
    with backends.wrap("ssd", watching):
        parity("ssd", "chunked", device="cpu", size=SMALL)
    assert shapes == [(2, case.length, 8, 8) for case in parity_cases("ssd")], "rows and heads of one case"
    assert (backends.calls - before)["ssd", "reference"] == 2


@pytest.mark.parametrize(("error", "naive", "ratio"), [(1e-3, 1e-3, 1.0), (0.0, 0.0, 0.0), (1e-3, 0.0, math.inf),
                                                       (1e-3, math.nan, 0.0), (1e-3, math.inf, 0.0)])  # fmt: skip
def test_the_ratio_has_a_meaning_at_its_ends(error, naive, ratio):
    assert kernel_parity._ratio(error, naive) == ratio


def test_only_values_are_rounded_and_all_implementations_get_the_same():
    inputs = ParityCase("wkv6", 5).inputs(8, torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in inputs.items()} == {
        "r_BTHK": torch.bfloat16, "k_BTHK": torch.bfloat16, "v_BTHV": torch.bfloat16,
        "log_w_BTHK": torch.float32, "u_HK": torch.float32, "initial_state_BHKV": torch.float32,
    }  # fmt: skip
    coarse = ParityCase("wkv6", 5, coarse=True)
    assert coarse.inputs(8, torch.bfloat16)["log_w_BTHK"].dtype == torch.bfloat16
    assert str(coarse) == "wkv6-T5-typical-coarse"
    assert all(t.dtype == torch.float64 for t in ParityCase("ssd", 5).inputs(8, torch.float64).values())


def test_the_state_of_ssd_may_have_another_size_than_the_head():
    inputs = ParityCase("ssd", 3).inputs(8, state_size=16)
    assert inputs["initial_state_BHPN"].shape[2:] == (8, 16)
    assert inputs["x_BTHP"].shape[-1] == 8


def test_an_input_that_is_never_used_has_a_gradient_of_zero_and_not_an_exception():
    errors = errors_of(
        lambda r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, initial_state_BHKV: reference.wkv6_reference(
            r_BTHK, k_BTHK, v_BTHV, log_w_BTHK, u_HK, torch.zeros_like(initial_state_BHKV)
        ),
        "wkv6",
        ParityCase("wkv6", 5).inputs(8),
    )
    assert errors["grad initial_state_BHKV"] == pytest.approx(1.0)


@pytest.mark.parametrize("op", ["wkv6", "ssd", "causal_conv1d", "selective_scan"])
def test_a_pass_in_parts_is_the_whole_pass(op):
    backend = backends.select(op, "cpu").name
    found = list(carries(op, backend, device="cpu", size=SMALL))
    assert [row.way for row in found] == ["recurrent", "split"]
    assert all(passes("carry_error", row.error) for row in found)


def test_a_state_that_is_handed_on_and_ignored_shows_in_parts_only():
    inputs = {**ParityCase("ssd", 20).inputs(8)}
    inputs["initial_state_BHPN"] = torch.zeros_like(inputs["initial_state_BHPN"])
    with backends.wrap("ssd", ignore_initial_state):
        assert errors_of(kernel_parity.api.ssd, "ssd", inputs)["y"] < 1e-5
        assert carry_errors("ssd", "chunked", inputs, (7,))["y"] > 0.1
        assert max(row.error for row in carries("ssd", "chunked", device="cpu", size=SMALL)) > 0.1


def test_an_unwritten_tail_is_found_at_odd_lengths(short):
    with backends.wrap("wkv6", skip_the_tail):
        found = {row.quantity: row for row in parity("wkv6", "chunked", device="cpu", size=SMALL)}
    assert fails("parity_error", found["y"].error)
    assert found["y"].case.startswith("wkv6-T1-")
    assert passes("parity_error", found["final_state"].error)


def test_a_model_on_its_kernels_computes_what_it_does_on_the_reference():
    torch.manual_seed(0)
    model = wake(get_model("GF-MH", vocab_size=64))
    tokens_BT = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    errors = model_errors(model, tokens_BT)
    assert set(errors) == {"logits", "gradients"}
    assert all(passes("model_error", error) for error in errors.values()), errors
    with backends.wrap("wkv6", skip_the_tail):
        assert all(fails("model_error", error) for error in model_errors(model, tokens_BT).values())


def test_sizes_are_those_that_the_layers_call_with():
    model = get_model("GF-MH", vocab_size=64)
    used = sizes_used(model, torch.zeros(1, 3, dtype=torch.int64))
    channels = model.branch_modules()["mamba"][0].conv_weight.shape[0]
    assert used == {"wkv6": {Size(32)}, "ssd": {Size(64)}, "causal_conv1d": {Size(channels // 2)}}
    assert sizes_used(get_model("GPT2", vocab_size=64), torch.zeros(1, 3, dtype=torch.int64)) == {}


def test_on_a_gpu_wkv6_is_compared_in_both_head_sizes_and_elsewhere_in_that_of_the_subject():
    assert sizes_to_compare("wkv6", "cuda", {"wkv6": {Size(64)}}) == [Size(32), Size(64)]
    assert sizes_to_compare("wkv6", "cpu", {"wkv6": {Size(64)}}) == [Size(64)]
    assert sizes_to_compare("wkv6", "cpu", {}) == [Size(32)]
    assert sizes_to_compare("ssd", "cuda", {"ssd": {Size(64, 128)}}) == [Size(64, 128)]
    assert str(Size(64, 128)) == "head size 64, state size 128"


def test_a_record_names_what_tells_it_from_its_neighbours():
    row = Carry("y", torch.bfloat16, Size(32), 0.0, "", 1, "split")
    assert row.variant(of=[Size(32), Size(64)]) == ["head size 32", "bfloat16"]
    assert row.variant(of=[Size(32)]) == ["bfloat16"]
    assert row.narrow
    assert not replace(row, dtype=torch.float32).narrow
    assert replace(row, dtype=torch.float32).variant(of=[Size(32)]) == []


def test_an_oracle_that_depends_on_the_device_is_no_oracle(monkeypatch):
    kernel_parity._require_the_same_oracle("ssd", "cpu")
    made = []

    def drifting(op, cases):
        [oracle] = oracles(op, cases)
        made.append(oracle)
        if len(made) == 2:
            oracle.expected["y"].mul_(1 + 1e-7)
        return [oracle]

    monkeypatch.setattr(kernel_parity, "oracles", drifting)
    with pytest.raises(OracleError, match="fp64 oracle of ssd gives another y on cpu than on the CPU"):
        kernel_parity._require_the_same_oracle("ssd", "cpu")


def test_products_of_fp32_are_fp32_whatever_the_process_asked_for(monkeypatch, short):
    seen = []

    def watching(kernel):
        def wrapped(*inputs):
            seen.append(torch.get_float32_matmul_precision())
            return kernel(*inputs)

        return wrapped

    torch.set_float32_matmul_precision("medium")
    try:
        with backends.wrap("causal_conv1d", watching):
            parity("causal_conv1d", "shifted", device="cpu", size=SMALL)
            list(carries("causal_conv1d", "shifted", device="cpu", size=SMALL))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


def test_a_chunked_form_is_faster_than_a_loop():
    assert speed_up("wkv6", "chunked", device="cpu", size=SMALL) > 1
