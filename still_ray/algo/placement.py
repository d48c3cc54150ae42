"""What the "auto" of a recipe comes down to on a cluster: decided here, once; everything behind reads plain values.

A recipe is stored with its "auto", so that its run may go on on other machines.
"""

from __future__ import annotations

from typing import Final, cast

from still_ray.algo.resolved import ResolvedRecipe, ResolvedSampler, ResolvedSync, ResolvedTrainer
from still_ray.config import Recipe, SamplerConfig, SyncConfig, TrainerConfig
from still_ray.weight_sync.transports import preferred

TOLERANCES: Final = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest mean absolute difference of log-probabilities by dtype. Source: ours; float32 engines agree to about 1e-5,
bfloat16 ones round each hidden state to 8 bits, and their kernels sum in another order than the trainer's."""


def resolve(recipe: Recipe, *, has_gpus: bool) -> ResolvedRecipe:
    """Puts plain values in the place of every "auto".

    Args:
        recipe: The recipe.
        has_gpus: Whether the cluster has any GPU now. One that starts with its head alone has none yet: recipes for
            such clusters name the numbers.
    """
    sampler = resolve_sampler(recipe.sampler, has_gpus=has_gpus)
    trainer = resolve_trainer(recipe.trainer, has_gpus=has_gpus)
    sync = _resolve_sync(recipe.sync, sampler, trainer, devices_apart=not releases_samplers(recipe))
    return cast(ResolvedRecipe, recipe.model_copy(update={"sampler": sampler, "trainer": trainer, "sync": sync}))


def resolve_sampler(config: SamplerConfig, *, has_gpus: bool) -> ResolvedSampler:
    """The replicas' section: each device of a replica is a GPU, if there are any."""
    gpus, statistics = config.gpus_per_replica, config.engine_statistics
    if gpus == "auto":
        gpus = config.tensor_parallel_size if has_gpus else 0
    changes = {
        "gpus_per_replica": float(gpus),
        "engine_statistics": gpus > 0 if statistics == "auto" else statistics,
        "dtype": "float32" if config.dtype == "auto" and not gpus else config.dtype,
    }
    return ResolvedSampler.model_construct(**{**dict(config), **changes})


def resolve_trainer(config: TrainerConfig, *, has_gpus: bool) -> ResolvedTrainer:
    """The trainer group's section: a GPU for each rank, if there are any; bfloat16 and checkpointing there alone."""
    use_gpu = has_gpus if config.use_gpu == "auto" else config.use_gpu
    changes = {
        "asked": config,
        "use_gpu": use_gpu,
        "bf16": use_gpu if config.bf16 == "auto" else config.bf16,
        "gradient_checkpointing": use_gpu if config.gradient_checkpointing == "auto" else config.gradient_checkpointing,
    }
    return ResolvedTrainer.model_construct(**{**dict(config), **changes})


def _resolve_sync(
    config: SyncConfig, sampler: ResolvedSampler, trainer: ResolvedTrainer, *, devices_apart: bool
) -> ResolvedSync:
    transport, tolerance = config.transport, config.tolerance
    if transport == "auto":
        transport = preferred(devices_apart=devices_apart, all_on_gpus=trainer.use_gpu and sampler.on_gpu)
    if tolerance == "auto":
        tolerance = default_tolerance("bfloat16" if sampler.dtype == "auto" else sampler.dtype)
    return ResolvedSync.model_construct(**{**dict(config), "transport": transport, "tolerance": tolerance})


def default_tolerance(dtype: str) -> float:
    """The tolerance for an engine of this dtype; that of float32 for one that is not known."""
    return TOLERANCES.get(dtype, TOLERANCES["float32"])


def releases_samplers(recipe: Recipe) -> bool:
    """Whether the replicas end while the trainer works."""
    return recipe.placement == "shared" or recipe.sampler.release_while_training
