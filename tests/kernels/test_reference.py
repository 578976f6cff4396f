"""The oracles against answers known without them, and their gradients against finite differences."""

import math

import pytest
import torch

import kernels
from kernels import backends, causal_conv1d, selective_scan, ssd, wkv6

F64 = torch.float64


@pytest.fixture(params=backends.names("wkv6", "cpu"))
def wkv6_backend(request):
    with backends.force("wkv6", request.param):
        yield request.param


@pytest.fixture(params=backends.names("ssd", "cpu"))
def ssd_backend(request):
    with backends.force("ssd", request.param):
        yield request.param


def test_without_decay_the_wkv6_state_counts_pairs(wkv6_backend):
    generator = torch.Generator().manual_seed(3)
    T, K, V = 70, 5, 4
    keys, values = (torch.randint(n, (T,), generator=generator) for n in (K, V))
    k_BTHK = torch.eye(K)[keys].view(1, T, 1, K)
    v_BTHV = torch.eye(V)[values].view(1, T, 1, V)
    counts_KV = torch.zeros(K, V)
    reads_TV = []
    for key, value in zip(keys, values, strict=True):
        reads_TV.append(counts_KV.sum(0))
        counts_KV[key, value] += 1
    y, final = wkv6(torch.ones(1, T, 1, K), k_BTHK, v_BTHV, torch.zeros(1, T, 1, K), torch.zeros(1, K))
    assert torch.equal(final[0, 0], counts_KV)
    assert torch.equal(y[0, :, 0], torch.stack(reads_TV))


def test_constant_decay_has_a_closed_form(wkv6_backend):
    T, w = 70, 0.9
    one = torch.ones(1, T, 1, 1, dtype=F64)
    u, state = torch.full((1, 1), 0.5, dtype=F64), torch.full((1, 1, 1, 1), 7.0, dtype=F64)
    y, final = wkv6(one, one, one, math.log(w) * one, u, state)
    # S_n = w^n S_0 + (1 - w^n) / (1 - w) after n writes; y_t = S_{t-1} + u
    n = torch.arange(T + 1, dtype=F64)
    S = w**n * 7.0 + (1 - w**n) / (1 - w)
    torch.testing.assert_close(y.flatten(), S[:-1] + 0.5, rtol=1e-12, atol=0)
    torch.testing.assert_close(final.flatten(), S[-1:], rtol=1e-12, atol=0)


def test_the_bonus_reads_the_present_and_the_state_the_past(wkv6_backend):
    r = k = v = torch.ones(1, 2, 1, 1)
    y, _ = wkv6(r, k, v, torch.full((1, 2, 1, 1), -math.inf), torch.full((1, 1), 3.0))
    # w_1 = 0 erases S_0 after y_1 has read it, and not what position 1 writes
    assert y.flatten().tolist() == [3.0, 4.0]


def test_constant_ssd_is_a_geometric_sum(ssd_backend):
    T, a = 70, 0.8
    one = torch.ones(1, T, 1, 1, dtype=F64)
    dt, A = torch.full((1, T, 1), 0.25, dtype=F64), torch.full((1,), math.log(a) / 0.25, dtype=F64)
    y, final = ssd(one, dt, A, one, one)
    n = torch.arange(1, T + 1, dtype=F64)
    expected = 0.25 * (1 - a**n) / (1 - a)
    torch.testing.assert_close(y.flatten(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(final.flatten(), expected[-1:], rtol=1e-12, atol=0)


def test_a_head_of_ssd_reads_its_own_group(ssd_backend):
    T = 5
    x, dt, A = torch.ones(1, T, 4, 1), torch.ones(1, T, 4), torch.zeros(4)
    B = torch.ones(1, T, 2, 1) * torch.tensor([1.0, 100.0])[:, None]
    C = torch.ones(1, T, 2, 1) * torch.tensor([1.0, 3.0])[:, None]
    y, final = ssd(x, dt, A, B, C)
    assert final.flatten().tolist() == [5.0, 5.0, 500.0, 500.0]
    assert y[0, -1].flatten().tolist() == [5.0, 5.0, 1500.0, 1500.0]


def test_one_channel_of_selective_scan_is_ssd_with_one_head():
    generator = torch.Generator().manual_seed(5)
    T, N = 9, 4
    u = torch.randn(1, T, 1, generator=generator, dtype=F64)
    delta = torch.rand(1, T, 1, generator=generator, dtype=F64)
    B, C = (torch.randn(1, T, N, generator=generator, dtype=F64) for _ in range(2))
    state = torch.randn(1, 1, N, generator=generator, dtype=F64)
    A = torch.tensor([-2.0], dtype=F64)
    y, final = selective_scan(u, delta, A.expand(1, N), B, C, torch.tensor([0.5], dtype=F64), state)
    with backends.force("ssd", "reference"):
        y_ssd, final_ssd = ssd(u[..., None], delta, A, B[:, :, None], C[:, :, None], state[:, :, None])
    torch.testing.assert_close(y, y_ssd[..., 0] + 0.5 * u, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(final, final_ssd[:, :, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", backends.names("causal_conv1d", "cpu"))
@pytest.mark.parametrize(("T", "width"), [(1, 4), (2, 4), (3, 4), (4, 4), (9, 4), (5, 1), (5, 2)])
def test_convolution_equals_torch_on_state_and_input_together(backend, T, width):
    generator = torch.Generator().manual_seed(T)
    B, C = 2, 70
    x = torch.randn(B, T, C, generator=generator, dtype=F64)
    weight = torch.randn(C, width, generator=generator, dtype=F64)
    bias = torch.randn(C, generator=generator, dtype=F64)
    state = torch.randn(B, C, width - 1, generator=generator, dtype=F64)
    with backends.force("causal_conv1d", backend):
        y, final = causal_conv1d(x, weight, bias, state, activation=None)
        y_silu, _ = causal_conv1d(x, weight, bias, state)
    whole = torch.cat([state, x.mT], dim=2)
    expected = torch.nn.functional.conv1d(whole, weight[:, None], bias, groups=C).mT
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(y_silu, expected * torch.sigmoid(expected), rtol=1e-12, atol=1e-13)
    assert torch.equal(final, whole[:, :, whole.shape[2] - (width - 1) :])


@pytest.mark.parametrize("backend", backends.names("cross_entropy", "cpu"))
def test_cross_entropy_of_equal_logits_is_the_logarithm_of_their_number(backend):
    logits = torch.full((3, 50), 7.0, dtype=F64, requires_grad=True)
    targets = torch.tensor([0, 49, 20])
    with backends.force("cross_entropy", backend):
        loss = kernels.cross_entropy(logits, targets)
    (gradient,) = torch.autograd.grad(2 * loss, logits)
    assert loss.item() == pytest.approx(math.log(50), rel=1e-14)
    expected = torch.full((3, 50), 1 / 50, dtype=F64)
    expected[range(3), targets] -= 1
    torch.testing.assert_close(gradient, 2 / 3 * expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("backend", backends.names("cross_entropy", "cpu"))
def test_cross_entropy_is_the_mean_over_rows(backend):
    # -ln p is ln 4 in the first row and ln(4/3) in the second
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]], dtype=F64)
    with backends.force("cross_entropy", backend):
        loss = kernels.cross_entropy(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(4 / 3)) / 2, rel=1e-14)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_a_sure_prediction_keeps_the_digits_of_its_small_gradient(backend):
    logits = torch.tensor([[30.0, 0.0]], dtype=F64, requires_grad=True)
    with backends.force("cross_entropy", backend):
        loss = kernels.cross_entropy(logits, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, logits)
    # the exponential of -30 beside 1 has 3 digits in fp64
    assert gradient[0, 0].item() == pytest.approx(-math.exp(-30), rel=1e-2)
    assert gradient[0, 1].item() == pytest.approx(math.exp(-30), rel=1e-13)


@pytest.mark.parametrize("backend", backends.names("rms_norm", "cpu"))
def test_rms_norm_of_three_and_four(backend):
    # mean square 12.5, and eps makes it 16
    x, weight = torch.tensor([[[3.0, 4.0]]], dtype=F64), torch.tensor([1.0, 10.0], dtype=F64)
    with backends.force("rms_norm", backend):
        y = kernels.rms_norm(x, weight, eps=3.5)
    assert y.flatten().tolist() == pytest.approx([0.75, 10.0], rel=1e-14)


@pytest.mark.parametrize("backend", backends.names("gated_rms_norm", "cpu"))
def test_the_gate_comes_before_the_norm_and_groups_are_normalised_apart(backend):
    # silu(0) = 0 closes the gate; silu(60) = 60 leaves the ratios, which the norm then sets to mean square 1
    x = torch.tensor([[[1.0, 5.0, 3.0, 3.0]]], dtype=F64)
    z = torch.tensor([[[60.0, 0.0, 60.0, 60.0]]], dtype=F64)
    weight = torch.tensor([1.0, 1.0, 2.0, 4.0], dtype=F64)
    with backends.force("gated_rms_norm", backend):
        y = kernels.gated_rms_norm(x, z, weight, eps=0.0, num_groups=2)
    assert y.flatten().tolist() == pytest.approx([math.sqrt(2), 0.0, 2.0, 4.0], rel=1e-14)


def gradcheck_inputs(op):
    """Tiny fp64 inputs away from the edges of their ranges, where finite differences are one-sided."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=F64)

    def positive(*shape):
        return torch.rand(shape, generator=generator, dtype=F64) + 0.1

    B, T, H, K, V = 1, 5, 2, 2, 3
    keys, per_head, group = (B, T, H, K), (B, T, H), (B, T, 1, K)
    made = {
        "wkv6": [
            normal(*keys),
            normal(*keys),
            normal(*per_head, V),
            -positive(*keys),
            normal(H, K),
            normal(B, H, K, V),
        ],
        "ssd": [
            *[normal(*per_head, V), positive(*per_head), -positive(H)],
            *[normal(*group), normal(*group), normal(B, H, V, K)],
        ],
        "causal_conv1d": [normal(B, T, 3), normal(3, 4), normal(3), normal(B, 3, 3)],
        "cross_entropy": [normal(T, 4), torch.tensor([3, 0, 1, 3, 2])],
        "rms_norm": [normal(2, T, 3), normal(3)],
        "gated_rms_norm": [normal(2, T, 3), normal(2, T, 3), normal(3)],
        "selective_scan": [
            *[normal(B, T, 3), positive(B, T, 3), -positive(3, K)],
            *[normal(B, T, K), normal(B, T, K), normal(3), normal(B, 3, K)],
        ],
    }[op]
    return [tensor.requires_grad_(tensor.is_floating_point()) for tensor in made]


@pytest.mark.parametrize(("op", "backend"), [(op, name) for op in backends.OPS for name in backends.names(op, "cpu")])
def test_gradients_equal_finite_differences(op, backend):
    with backends.force(op, backend):
        assert torch.autograd.gradcheck(getattr(kernels, op), gradcheck_inputs(op), fast_mode=False)
