"""Models: the registry, the contract, the comparison and the published forms. Importing this imports no torch."""

from models.config import ConfigError, ModelConfig
from models.registry import (
    LADDERS,
    NOMINAL_VOCAB_SIZE,
    RUNGS,
    SCALES,
    UnknownModelError,
    UnknownScaleError,
    get_model,
    list_models,
    model_config,
)

__all__ = [
    "LADDERS",
    "NOMINAL_VOCAB_SIZE",
    "RUNGS",
    "SCALES",
    "ConfigError",
    "ModelConfig",
    "UnknownModelError",
    "UnknownScaleError",
    "get_model",
    "list_models",
    "model_config",
]
