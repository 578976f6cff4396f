"""Models: the registry, the contract, the comparison and the published forms. Importing this imports no torch."""

from models.config import ConfigError, ModelConfig
from models.registry import (
    NOMINAL_VOCAB_SIZE,
    SCALES,
    UnknownModelError,
    UnknownScaleError,
    get_model,
    list_models,
    model_config,
)

__all__ = [
    "NOMINAL_VOCAB_SIZE",
    "SCALES",
    "ConfigError",
    "ModelConfig",
    "UnknownModelError",
    "UnknownScaleError",
    "get_model",
    "list_models",
    "model_config",
]
