"""The recipe: its strict schema, and how it is loaded from YAML with overrides."""

from still_ray.config.loading import dump_recipe, load_recipe
from still_ray.config.methods import AnyMethod, Method
from still_ray.config.recipe import Recipe, RoundConfig, TrainingStep
from still_ray.config.schema import (
    AdaptiveConfig,
    CodeConfig,
    DataConfig,
    EvaluateConfig,
    ExploreConfig,
    FailureConfig,
    ModelConfig,
    OptimizerConfig,
    PairConfig,
    PromptConfig,
    SamplerConfig,
    Scope,
    SelectConfig,
    SyncConfig,
    TinyWorldConfig,
    TrainerConfig,
    TrainingSection,
    VerifierConfig,
)

__all__ = [
    "AdaptiveConfig",
    "AnyMethod",
    "CodeConfig",
    "DataConfig",
    "EvaluateConfig",
    "ExploreConfig",
    "FailureConfig",
    "Method",
    "ModelConfig",
    "OptimizerConfig",
    "PairConfig",
    "PromptConfig",
    "Recipe",
    "RoundConfig",
    "SamplerConfig",
    "Scope",
    "SelectConfig",
    "SyncConfig",
    "TinyWorldConfig",
    "TrainerConfig",
    "TrainingSection",
    "TrainingStep",
    "VerifierConfig",
    "dump_recipe",
    "load_recipe",
]
