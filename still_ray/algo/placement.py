"""What the "auto" of a recipe's resources comes down to on a cluster."""

from __future__ import annotations

from still_ray.config import Recipe
from still_ray.weight_sync.transports import preferred


def sampler_gpus(recipe: Recipe, *, has_gpus: bool) -> float:
    """Ray GPUs of one replica; 0: its engine runs on the CPU.

    Args:
        recipe: The recipe.
        has_gpus: Whether the cluster has any GPU now. One that starts with its head alone has none yet: recipes for
            such clusters name the number.
    """
    asked = recipe.sampler.gpus_per_replica
    if asked == "auto":
        return float(recipe.sampler.tensor_parallel_size) if has_gpus else 0.0
    return float(asked)


def uses_gpu(recipe: Recipe, *, has_gpus: bool) -> bool:
    """Whether trainer ranks hold a GPU each."""
    return has_gpus if recipe.trainer.use_gpu == "auto" else bool(recipe.trainer.use_gpu)


def releases_samplers(recipe: Recipe) -> bool:
    """Whether the replicas end while the trainer works."""
    return recipe.placement == "shared" or recipe.sampler.release_while_training


def resolved(recipe: Recipe, *, has_gpus: bool) -> Recipe:
    """The recipe with a transport in the place of auto: replicas that start with the new version need none sent."""
    if recipe.sync.transport != "auto":
        return recipe
    transport = preferred(
        devices_apart=not releases_samplers(recipe),
        all_on_gpus=uses_gpu(recipe, has_gpus=has_gpus) and sampler_gpus(recipe, has_gpus=has_gpus) > 0,
    )
    return recipe.model_copy(update={"sync": recipe.sync.model_copy(update={"transport": transport})})
