"""From a fusion's configuration to its module."""

from models.config import FusionConfig
from models.fusion.base import Fusion
from models.fusion.gains import LearnedGains, LearnedScalar
from models.fusion.gated import GatedFusion
from models.fusion.projections import ConcatProjection, ResidualProjection


def build_fusion(config: FusionConfig, d_model: int) -> Fusion:
    """The fusion of one layer."""
    match config.kind:
        case "learned_gains":
            return LearnedGains(d_model)
        case "learned_scalar":
            return LearnedScalar()
        case "residual_projection":
            return ResidualProjection(d_model)
        case "concat_projection":
            return ConcatProjection(d_model)
        case "position_gate" | "channel_gate":
            assert config.gate_init is not None, "FusionConfig demands a gate_init for every gate"
            return GatedFusion(d_model, 1 if config.kind == "position_gate" else d_model, config.gate_init)
        case _:
            raise AssertionError(f"FusionConfig let an unknown kind through: {config.kind}")
