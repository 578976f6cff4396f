import pytest
import torch

from models.config import FUSIONS, GATED_FUSIONS, FusionConfig
from models.fusion.build import build_fusion

D = 6


def fusion_of(kind, gate_init=0.3):
    torch.manual_seed(0)
    return build_fusion(FusionConfig(kind, gate_init if kind in GATED_FUSIONS else None), D).double()


@pytest.fixture
def branches():
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(2, 3, D, generator=generator, dtype=torch.float64) for _ in range(2))


def test_gains_scale_each_channel_of_each_branch(branches):
    rwkv, mamba = branches
    fusion = fusion_of("learned_gains")
    gains = torch.arange(1.0, D + 1).double()
    with torch.no_grad():
        fusion.rwkv_gain.copy_(gains)
        fusion.mamba_gain.copy_(-2 * gains)
    fused = fusion(rwkv, mamba)
    assert fused.rwkv.equal(rwkv * gains)
    assert fused.mamba.equal(mamba * -2 * gains)


def test_the_scalar_blends_with_complementary_shares(branches):
    rwkv, mamba = branches
    fusion = fusion_of("learned_scalar")
    with torch.no_grad():
        fusion.logit.fill_(torch.tensor(3.0).log())  # sigmoid(ln 3) = 3/4
    fused = fusion(rwkv, mamba)
    torch.testing.assert_close(fused.rwkv + fused.mamba, 0.75 * rwkv + 0.25 * mamba, rtol=1e-7, atol=1e-7)


def test_residual_projection_leaves_rwkv_alone(branches):
    rwkv, mamba = branches
    fusion = fusion_of("residual_projection")
    fused = fusion(rwkv, mamba)
    assert fused.rwkv is rwkv
    torch.testing.assert_close(fused.mamba, mamba @ fusion.mamba.weight.T)


def test_residual_projection_starts_small_at_any_width():
    torch.manual_seed(0)
    for width in (64, 256):
        fusion = build_fusion(FusionConfig("residual_projection"), width)
        x = torch.randn(2, 256, width)
        assert fusion(x, x).mamba.std().item() == pytest.approx(0.1, rel=0.1)


def test_concat_projection_is_one_matrix_on_both_branches(branches):
    rwkv, mamba = branches
    fusion = fusion_of("concat_projection")
    W = torch.cat([fusion.rwkv.weight, fusion.mamba.weight], dim=1)
    fused = fusion(rwkv, mamba)
    torch.testing.assert_close(fused.rwkv + fused.mamba, torch.cat([rwkv, mamba], -1) @ W.T)


@pytest.mark.parametrize("kind", GATED_FUSIONS)
@pytest.mark.parametrize("share", [0.03, 0.3, 0.5, 0.7, 0.97])
def test_a_fresh_gate_is_its_initial_share_everywhere(branches, kind, share):
    fused = fusion_of(kind, share)(*branches)
    assert fused.gate.shape == (2, 3, 1 if kind == "position_gate" else D)
    torch.testing.assert_close(fused.gate, torch.full_like(fused.gate, share), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", GATED_FUSIONS)
def test_a_gate_reads_both_branches_and_mixes_with_complementary_shares(branches, kind):
    rwkv, mamba = (branch.requires_grad_() for branch in branches)
    fusion = fusion_of(kind)
    with torch.no_grad():
        fusion.rwkv_weight.normal_()
        fusion.mamba_weight.normal_()
    W = torch.cat([fusion.rwkv_weight, fusion.mamba_weight], dim=1)
    logits = torch.cat([rwkv, mamba], -1) @ W.T + fusion.bias
    g = torch.sigmoid(logits)
    fused = fusion(rwkv, mamba)
    torch.testing.assert_close(fused.gate_logits, logits)
    want = g * rwkv + (1 - g) * mamba
    torch.testing.assert_close(fused.rwkv + fused.mamba, want)
    assert g.std() > 0.1
    inputs = (rwkv, mamba, *fusion.parameters())
    weight = torch.linspace(-1, 1, want.numel(), dtype=want.dtype).view_as(want)
    grads = torch.autograd.grad(((fused.rwkv + fused.mamba) * weight).sum(), inputs)
    for got, wanted in zip(grads, torch.autograd.grad((want * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("kind", GATED_FUSIONS)
@pytest.mark.parametrize(("bias", "chosen"), [(60.0, 0), (-800.0, 1)])
def test_a_saturated_gate_passes_one_branch_exactly(branches, kind, bias, chosen):
    fusion = fusion_of(kind)
    with torch.no_grad():
        fusion.bias.fill_(bias)
    fused = fusion(*branches)
    assert (fused.rwkv + fused.mamba).equal(branches[chosen])


@pytest.mark.parametrize("kind", FUSIONS)
def test_only_gated_fusions_report_a_gate(branches, kind):
    fused = fusion_of(kind)(*branches)
    assert (fused.gate is not None) == (kind in GATED_FUSIONS) == (fused.gate_logits is not None)


@pytest.mark.parametrize("kind", FUSIONS)
def test_every_fusion_parameter_gets_a_gradient_from_the_start(branches, kind):
    fusion = fusion_of(kind)
    fused = fusion(*branches)
    (fused.rwkv + fused.mamba).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in fusion.parameters())
