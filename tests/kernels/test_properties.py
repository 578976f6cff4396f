"""What must hold for any shape: carrying a state changes nothing, NaN stays causal, results do not depend on luck."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kernels
from kernels import backends, parity

ALL = [(op, name) for op in backends.OPS for name in backends.names(op, "cpu")]
SCANS = [(op, name) for op, name in ALL if op in parity.OPS_WITH_STATE]
# Inputs that have a position axis, and the initial state, by the names of the public operations
PER_POSITION = {
    "wkv6": ("r_BTHK", "k_BTHK", "v_BTHV", "log_w_BTHK"),
    "ssd": ("x_BTHP", "dt_BTH", "B_BTGN", "C_BTGN"),
    "causal_conv1d": ("x_BTC",),
    "selective_scan": ("u_BTC", "delta_BTC", "B_BTN", "C_BTN"),
}
STATE = {
    "wkv6": "initial_state_BHKV",
    "ssd": "initial_state_BHPN",
    "causal_conv1d": "initial_state_BCw",
    "selective_scan": "initial_state_BCN",
}


def run(op, inputs):
    return getattr(kernels, op)(**inputs)


def in_two_parts(op, split):
    """The operation as two calls that hand over the state."""

    def function(**inputs):
        head, tail = dict(inputs), dict(inputs)
        for name in PER_POSITION[op]:
            head[name], tail[name] = inputs[name][:, :split], inputs[name][:, split:]
        y_head, tail[STATE[op]] = run(op, head)
        y_tail, final = run(op, tail)
        return torch.cat([y_head, y_tail], dim=1), final

    return function


def random_wkv6(seed, B, T, H, K, V, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    pick = torch.randint(5, (B, T, H, K), generator=generator)
    kinds = torch.stack(
        [
            torch.full((B, T, H, K), -math.inf),
            torch.zeros(B, T, H, K),
            torch.full((B, T, H, K), math.log1p(-1e-6)),
            -torch.exp(2 * normal(B, T, H, K)),
            -60 * torch.rand(B, T, H, K, generator=generator),
        ]
    )
    log_w = kinds.gather(0, pick[None])[0]
    made = {"r_BTHK": normal(B, T, H, K), "k_BTHK": normal(B, T, H, K), "v_BTHV": normal(B, T, H, V)}
    made |= {"log_w_BTHK": log_w, "u_HK": normal(H, K), "initial_state_BHKV": normal(B, H, K, V)}
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def random_ssd(seed, B, T, G, heads, P, N, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    H = G * heads
    rates = torch.tensor([0.0, -1e-6, -1.0, -16.0, -1e6])
    A = rates[torch.randint(5, (H,), generator=generator)]
    made = {"x_BTHP": normal(B, T, H, P), "dt_BTH": torch.rand(B, T, H, generator=generator), "A_H": A}
    made |= {"B_BTGN": normal(B, T, G, N), "C_BTGN": normal(B, T, G, N), "initial_state_BHPN": normal(B, H, P, N)}
    return {name: tensor.to(dtype) for name, tensor in made.items()}


lengths = st.one_of(st.integers(1, 20), st.integers(60, 70), st.integers(125, 140))
seeds = st.integers(0, 2**31)
small = st.integers(1, 3)
sizes = st.integers(1, 20)


@pytest.mark.parametrize("backend", ["cpp", "chunked"])
@given(seed=seeds, B=small, T=lengths, H=small, K=sizes, V=sizes)
def test_wkv6_equals_the_oracle_on_any_shape(backend, seed, B, T, H, K, V):
    errors = parity.compare("wkv6", backend, random_wkv6(seed, B, T, H, K, V, torch.float64))
    assert all(error <= 1e-10 for error in errors.values()), errors


@pytest.mark.parametrize("backend", ["cpp", "chunked"])
@given(seed=seeds, B=small, T=lengths, G=small, heads=small, P=sizes, N=sizes)
def test_ssd_equals_the_oracle_on_any_shape(backend, seed, B, T, G, heads, P, N):
    errors = parity.compare("ssd", backend, random_ssd(seed, B, T, G, heads, P, N, torch.float64))
    assert all(error <= 1e-10 for error in errors.values()), errors


@pytest.mark.parametrize(("op", "backend"), SCANS)
@given(data=st.data(), T=st.integers(2, 70))
def test_two_calls_that_hand_over_the_state_equal_one(op, backend, data, T):
    split = data.draw(st.integers(1, T - 1))
    inputs = parity.ParityCase(op, T).inputs(head_size=4, dtype=torch.float64)
    with backends.force(op, backend):
        errors = parity.errors_of(in_two_parts(op, split), op, inputs)
    assert all(error <= 1e-10 for error in errors.values()), errors


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("T", [5, 64, 130])
@pytest.mark.parametrize(("op", "backend"), SCANS)
def test_nan_and_inf_reach_later_positions_and_no_earlier_one(op, backend, T, bad):
    at = T // 2
    healthy = parity.ParityCase(op, T).inputs(head_size=6)
    for name in PER_POSITION[op]:
        if name.startswith(("log_w", "dt", "delta")) and bad == math.inf:
            continue  # decays cannot be inf
        inputs = {key: tensor.clone() for key, tensor in healthy.items()}
        inputs[name][0, at] = bad
        with backends.force(op, backend):
            y_healthy, _ = run(op, healthy)
            y, final = run(op, inputs)
        assert torch.equal(y[:, :at], y_healthy[:, :at]), name
        assert torch.equal(y[1], y_healthy[1]), f"{name} crossed from one row of the batch to another"
        assert not y[0, at:].isfinite().all(), f"{name} was swallowed"
        if name not in ("r_BTHK", "C_BTGN", "C_BTN") and op != "causal_conv1d":
            assert not final[0].isfinite().all(), f"{name} was swallowed by the state"


@pytest.mark.parametrize(
    ("op", "backend"), [(op, name) for op in ("wkv6", "ssd") for name in backends.names(op, "cpu")]
)
def test_nan_in_one_head_stays_in_its_head(op, backend):
    healthy = parity.ParityCase(op, 20).inputs(head_size=6)
    name = "k_BTHK" if op == "wkv6" else "x_BTHP"
    broken = {key: tensor.clone() for key, tensor in healthy.items()}
    broken[name][0, 3, 0] = math.nan
    results = []
    for inputs in (healthy, broken):
        leaf = inputs[name].requires_grad_()
        with backends.force(op, backend):
            y, final = run(op, inputs)
        (gradient,) = torch.autograd.grad(y.sum() + final.sum(), leaf)
        results.append((y[:, :, 1], final[:, 1], gradient[:, :, 1]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


NORM_INPUTS = [("rms_norm", "x_BTD"), ("gated_rms_norm", "x_BTD"), ("gated_rms_norm", "z_BTD")]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("backend", backends.names("rms_norm", "cpu"))
@pytest.mark.parametrize(("op", "place"), NORM_INPUTS)
def test_nan_and_inf_stay_in_their_vector_of_a_norm(op, place, backend, bad):
    healthy = parity.ParityCase(op, 5).inputs(head_size=20)
    broken = {name: tensor.clone() for name, tensor in healthy.items()}
    broken[place][1, 2, 33] = bad
    others = torch.ones(2, 5, dtype=torch.bool)
    others[1, 2] = False
    with backends.force(op, backend):
        (y, *gradients), (y_healthy, *healthy_gradients) = all_results(op, broken), all_results(op, healthy)
    assert torch.equal(y[others], y_healthy[others])
    assert y[1, 2, 33].isnan(), "swallowed"
    for gradient, expected in zip(gradients[:-1], healthy_gradients[:-1], strict=True):
        assert torch.equal(gradient[others], expected[others])
        assert gradient[1, 2].isnan().any(), "swallowed in the backward pass"
    assert gradients[-1][33].isnan(), "swallowed by the gradient of the weight"


def row_losses(backend, logits, targets):
    """Each row's loss on its own, and the gradient of their mean in one call."""
    leaf = logits.clone().requires_grad_()
    with backends.force("cross_entropy", backend):
        (gradient,) = torch.autograd.grad(kernels.cross_entropy(leaf, targets), leaf)
        losses = [float(kernels.cross_entropy(logits[n : n + 1], targets[n : n + 1])) for n in range(len(logits))]
    return losses, gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", backends.names("cross_entropy", "cpu"))
def test_what_is_not_finite_in_one_row_shows_in_its_loss_and_gradient_only(backend, dtype):
    logits, targets = parity.ParityCase("cross_entropy", 6).inputs(head_size=7, dtype=dtype).values()
    targets[:] = 3
    healthy = logits.clone()
    logits[0, 5] = math.nan
    logits[1, 90] = math.inf
    logits[2] = -math.inf
    logits[3, 3] = -math.inf
    losses, gradient = row_losses(backend, logits, targets)
    healthy_losses, healthy_gradient = row_losses(backend, healthy, targets)
    assert math.isnan(losses[0])
    assert not math.isfinite(losses[1])
    assert math.isnan(losses[2])
    assert losses[3] == math.inf, "the target has no chance"
    assert losses[4:] == healthy_losses[4:]
    for row in (0, 1, 2):
        assert gradient[row].isnan().any()
    assert gradient[3].isfinite().all()
    assert torch.equal(gradient[4:], healthy_gradient[4:])


@pytest.mark.parametrize("backend", backends.names("cross_entropy", "cpu"))
def test_a_class_without_a_chance_gets_no_gradient(backend):
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    losses, gradient = row_losses(backend, logits, torch.tensor([0]))
    assert losses == pytest.approx([math.log(2)], rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.0, 0.5]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@given(seed=seeds, N=sizes, V=st.integers(1, 700), scale=st.sampled_from([0.0, 1.0, 30.0, 1000.0]))
def test_cross_entropy_equals_the_oracle_on_any_shape(backend, seed, N, V, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(N, V, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    results = []
    for name in (backend, "reference"):
        with backends.force("cross_entropy", name):
            loss = kernels.cross_entropy(logits, targets)
        results.append([loss, *torch.autograd.grad(loss, logits)])
    for actual, expected in zip(*results, strict=True):
        # absolute: a sure prediction has a loss far below the rounding of the logits it is the difference of
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@given(seed=seeds, B=small, T=sizes, G=small, S=st.integers(2, 70))
def test_gated_rms_norm_equals_the_oracle_on_any_shape(backend, seed, B, T, G, S):
    generator = torch.Generator().manual_seed(seed)
    x, z, upstream = (torch.randn(B, T, G * S, generator=generator, dtype=torch.float64) for _ in range(3))
    leaves = [x.requires_grad_(), z.requires_grad_(), torch.randn(G * S, generator=generator, dtype=torch.float64)]
    leaves[2].requires_grad_()
    results = []
    for name in (backend, "reference"):
        with backends.force("gated_rms_norm", name):
            y = kernels.gated_rms_norm(*leaves, num_groups=G)
        results.append([y, *torch.autograd.grad(y, leaves, upstream)])
    # a group of two numbers has almost no gradient: what is left of two large terms loses digits
    assert all(parity.rms_error(actual, expected) <= 1e-8 for actual, expected in zip(*results, strict=True))


def all_results(op, inputs):
    given = {name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in inputs.items()}
    results = run(op, given)
    outputs = results if isinstance(results, tuple) else (results,)
    loss = sum(output.square().sum() for output in outputs)
    return [*outputs, *torch.autograd.grad(loss, [tensor for tensor in given.values() if tensor.requires_grad])]


@pytest.mark.parametrize(("op", "backend"), ALL)
def test_two_runs_are_equal_to_the_bit(op, backend):
    inputs = parity.ParityCase(op, 65).inputs()
    with backends.force(op, backend):
        first, second = all_results(op, inputs), all_results(op, inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("op", [op for op, name in ALL if name == "cpp"])
def test_the_number_of_threads_changes_no_bit(op):
    inputs = parity.ParityCase(op, 65).inputs()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with backends.force(op, "cpp"):
            results.append(all_results(op, inputs))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.fixture
def poisoned_memory():
    """torch.empty returns NaN, so that an output which nobody wrote cannot look right."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("op", "backend"), ALL)
def test_every_output_is_written(op, backend):
    errors = parity.compare(op, backend, parity.ParityCase(op, 37).inputs(head_size=7))
    assert all(error <= 1e-5 for error in errors.values()), errors
