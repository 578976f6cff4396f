"""G0: the kernels that run are the ones that were chosen, and they compute the right thing."""

from itertools import chain

import pytest

pytestmark = pytest.mark.check("G0")

WITH_STATE = ("wkv6", "ssd", "causal_conv1d", "selective_scan")
WITHOUT_STATE = ("cross_entropy", "rms_norm", "gated_rms_norm")


@pytest.fixture
def model(bench, require_hooks):
    model = bench.exercised[0]
    require_hooks(model, "branches", "branch_modules")
    return model


@pytest.fixture
def expected(model, judge):
    from harness.kernel_reality import expected_calls

    expected = expected_calls(model)
    if not expected:
        judge.na(f"a model of {', '.join(model.branches)} calls none of the harness's kernels")
    return expected


@pytest.fixture
def dtype(bench):
    """Of the matrix products of a training here, in which the kernels are seen to run."""
    from harness.training_job import resolve_dtype

    return resolve_dtype(bench.config, bench.device)


@pytest.fixture
def compared(bench, judge):
    """``compared(op)``: the backend of an operation, and the sizes to compare it in. NA where it is the oracle."""
    from harness.kernel_parity import sizes_to_compare, sizes_used
    from kernels import backends

    def choose(op):
        choice = backends.select(op, bench.device)
        judge.provenance(backend=f"{op}={choice.name}", dtype="float32")
        if choice.name == backends.REFERENCE:
            judge.na(f"{op} runs as the reference itself here: there is nothing to compare it with ({choice.reason})")
        used = bench.once(("kernel sizes",), lambda: sizes_used(bench.exercised[0], bench.validation_tokens(1, 16)))
        return choice.name, sizes_to_compare(op, bench.device, used)

    return choose


@pytest.fixture
def gpu(bench, judge):
    if bench.device != "cuda":
        judge.unsupported("there is no GPU here: that its kernels run, and run correctly, is not evidenced")


def judge_launches(judge, found, case, note=""):
    """What a profiler saw of a backend, where it has kernels of its own to see."""
    if found.seen:
        unseen = [f"not seen in every call: {trace}" for trace in found.unseen]
        notes = "; ".join(filter(None, (note, found.described, *unseen)))
        judge.holds("launched", not unseen, case=case, value=min(found.seen.values()), unit="launches", note=notes)


@pytest.mark.parametrize("op", [*WITH_STATE, *WITHOUT_STATE])
def test_every_backend_in_use_agrees_with_the_oracle(op, bench, compared, judge):
    from harness.kernel_parity import dtypes_of, parities
    from kernels import backends
    from kernels.parity import worst

    backend, sizes = compared(op)
    dtypes = dtypes_of(backends.get(op, backend))
    by_size = (parities(op, backend, device=bench.device, size=size, dtypes=dtypes) for size in sizes)
    for dtype, found in chain.from_iterable(by_dtype.items() for by_dtype in by_size):
        judge.provenance(dtype=str(dtype).removeprefix("torch."))
        for row in found:
            case = ", ".join((f"{op} ({backend})", row.quantity, *row.variant(of=sizes)))
            judge(
                "parity_error_16bit" if row.narrow else "parity_error",
                row.error,
                case=case,
                n=row.num_cases,
                note=row.case,
            )
        over_naive = {
            f"{row.quantity}, {row.naive_case}": row.over_naive for row in found if row.over_naive is not None
        }
        if over_naive:
            where, ratio = worst(over_naive)
            judge(
                "error_over_naive",
                ratio,
                case=", ".join((f"{op} ({backend})", *found[0].variant(of=sizes))),
                note=where,
            )


@pytest.mark.parametrize("op", [*WITH_STATE, *WITHOUT_STATE])
def test_every_backend_in_use_is_executed_when_it_is_called(op, bench, compared, judge):
    from harness.kernel_reality import execution_alone
    from kernels.parity import ParityCase

    _, [size, *_] = compared(op)
    inputs = ParityCase(op, 65).inputs(size.head, device=bench.device, state_size=size.state)
    found = execution_alone(op, inputs, bench.device)
    judge.holds("executed", found.calls == 1, case=f"{op} alone", value=found.calls, unit="calls", note=found.reason)
    judge_launches(judge, found, f"{op} alone")


@pytest.mark.parametrize("op", WITH_STATE)
def test_a_pass_in_parts_is_the_whole_pass(op, bench, compared, judge):
    from harness.kernel_parity import carries

    backend, sizes = compared(op)
    for size in sizes:
        for found in carries(op, backend, device=bench.device, size=size):
            case = ", ".join((f"{op} ({backend})", found.way, *found.variant(of=sizes)))
            judge("carry_error", found.error, case=case, n=found.num_cases, note=f"{found.quantity}, {found.case}")


def test_the_chosen_backends_are_executed(bench, model, expected, dtype, judge):
    from harness.kernel_reality import executions

    for found in executions(model, bench.validation_tokens(2, 65), expected, dtype):
        judge.provenance(backend=f"{found.op}={found.backend}")
        chosen = f"{found.backend}: {found.reason}"
        judge.holds("executed", found.calls >= found.least, case=found.op, value=found.calls, unit="calls", note=chosen)
        judge.holds(
            "reference_unused", found.reference_calls == 0, case=found.op, value=found.reference_calls, unit="calls"
        )
        judge_launches(judge, found, found.op)


def test_the_model_computes_what_it_computes_on_the_reference(bench, expected, judge):
    from harness.kernel_parity import model_errors

    # after a few updates a branch says so little that a wrong kernel hardly shows in the logits
    awake = bench.untrained(bench.seeds[0])
    for quantity, error in model_errors(awake, bench.validation_tokens(2, 50)).items():
        judge("model_error", error, case=quantity)


def test_the_detectors_notice_planted_faults(bench, model, expected, dtype, judge):
    from harness.kernel_reality import failed_controls

    missed = failed_controls(model, bench.validation_tokens(1, 9), expected, dtype)
    if missed:
        judge.invalid("; ".join(missed))
    judge.holds("controls", True, value=3 * len(expected), unit="controls", note="forced reference, raise, poison")


def test_the_same_input_gives_the_same_bits(bench, model, dtype, judge):
    from harness.kernel_reality import is_deterministic

    tokens = bench.validation_tokens(2, 65)
    judge.holds("deterministic", is_deterministic(model, tokens, dtype), case="logits, loss and gradients")
    poisoned = is_deterministic(model, tokens, dtype, poisoned=True)
    judge.holds("deterministic", poisoned, case="the same, in memory filled with NaN")


def test_gpu_kernels_are_executed(gpu, bench, expected, dtype, judge):
    from harness.kernel_parity import sizes_to_compare, speed_up
    from kernels import backends

    chosen = [backends.select(op, bench.device) for op in expected]
    plain = [choice for choice in chosen if not backends.get(choice.op, choice.name).launches]
    for choice in chosen:
        [size, *_] = sizes_to_compare(choice.op, bench.device, {})
        faster = speed_up(choice.op, choice.name, device=bench.device, size=size, dtype=dtype)
        judge.info(
            "speed_up", faster, unit="times", case=f"{choice.op} ({choice.name}), {size}", note="over the reference"
        )
    if plain:
        reasons = "; ".join(f"{choice.op} runs as {choice.name} ({choice.reason})" for choice in plain)
        judge.missing(f"no kernel of its own runs on the GPU for {len(plain)} operations: {reasons}")
    judge.holds("own_kernels", True, value=len(chosen), unit="operations")


def test_trainings_run_them_too(gpu, bench, expected, judge):
    from harness.kernel_reality import executions_in_training

    model = bench.fresh(bench.seeds[0])
    choice, executions = executions_in_training(model, bench.config, bench.training_batch(bench.seeds[0]), expected)
    for found in executions:
        judge.provenance(backend=f"{found.op}={found.backend}")
        judge_launches(judge, found, f"{found.op}, {choice.mode} update", choice.reason)


def test_the_build_is_the_one_on_record(gpu, judge):
    from harness.kernel_builds import PRINT_COMMAND, differences, load_builds
    from kernels import backends
    from kernels.cuda.build import fingerprint

    choice = backends.select("wkv6", "cuda")
    if choice.name != "cuda":
        judge.na(f"our CUDA kernels are not in use: wkv6 runs as {choice.name} ({choice.reason})")
    built, table = fingerprint(), load_builds()
    spilled = [kernel.name for kernel in built if kernel.spill_bytes]
    judge("spill_bytes", sum(kernel.spill_bytes for kernel in built), n=len(built), note=", ".join(spilled))
    for reference in table.references:
        ours = [kernel for kernel in built if reference.stands_beside(kernel.name)]
        if ours:
            figures = ", ".join(f"{kernel.name} {kernel.registers}" for kernel in ours)
            judge.info(
                "registers", max(kernel.registers for kernel in ours), unit="registers", case=reference.title,
                null_value=reference.registers, note=f"{reference.source}: {reference.registers}; ours: {figures}",
            )  # fmt: skip
    stored = table.find(built[0].arch, built[0].toolchain)
    if stored is None:
        judge.na(f"no build for {built[0].arch} by {built[0].toolchain} is on record: {PRINT_COMMAND} prints this one")
    changed = differences(built, stored)
    judge("changed_kernels", len(changed), n=len(built), note="; ".join(f"{d.kernel}: {d.what}" for d in changed))


def test_no_stub_poses_as_a_kernel(gpu, judge):
    from harness.kernel_reality import posing_stubs
    from kernels.packages import inventory

    parts = inventory()
    for part in parts:
        described = ", ".join(filter(None, (part.kind, part.version, f"gives {part.gives}", part.file, part.note)))
        judge.info("installed", int(part.kind == "real"), case=part.part, note=described)
    posing = posing_stubs(parts)
    judge.holds("no_stub_in_use", not posing, value=len(parts), unit="parts", note="; ".join(posing))
