"""What a run leaves on shared storage, at its peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from still_ray.algo.planning.findings import Part
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.workload import StageWork
from still_ray.config import Recipe

_BYTES_PER_TOKEN: Final = 4
"""Bytes of text that a token stands for. Source: an assumption, about that of Qwen's tokenizer on English."""
_TEXT_COPIES: Final = 2
"""A trajectory holds the response, and thought and solution apart. Source: still_ray.types.Trajectory."""
TEXT_BYTES_PER_TOKEN: Final = _BYTES_PER_TOKEN * _TEXT_COPIES
"""Of a trajectory."""
STATE_BYTES: Final = 12
"""Of a parameter in a resumable state beside its weight: DeepSpeed's float32 copy and two moments of AdamW."""


def disk_parts(recipe: Recipe, works: Sequence[StageWork], *, shape: ModelShape, width: int) -> tuple[Part, ...]:
    """Parts of the run directory.

    Args:
        recipe: The recipe.
        works: Its stages.
        shape: The model.
        width: Bytes of a weight in a checkpoint.
    """
    lora = recipe.trainer.lora
    num_adapter = shape.num_adapter_parameters(lora) + shape.num_trained_embeddings(lora) if lora else 0
    checkpoint = width * (shape.num_parameters + num_adapter)
    whole, trained = ("model and adapter, merged and apart", "adapters") if lora else ("parameters", "parameters")
    sections = [step.settings for step in recipe.steps]
    parts = [
        Part(
            name="checkpoints",
            num_bytes=(len(sections) + 1) * checkpoint,
            source=f"{len(sections)} training stages keep theirs, one more while it is written; {width} B x {whole}",
        ),
        Part(
            name="trajectories",
            num_bytes=_trajectory_bytes(works),
            source="rollouts, at most, x mean tokens x 4 B of text, twice (response; thought and solution), not "
            "compressed; twice while a round's parts are merged",
        ),
    ]
    if any(section.save_steps for section in sections):
        parts.append(
            Part(
                name="resumable state",
                num_bytes=2 * (STATE_BYTES + width) * (num_adapter or shape.num_parameters),
                source=f"(12 B + a weight) x {trained}, the newest and the one being written; DeepSpeed's shards",
            )
        )
    return tuple(parts)


def _trajectory_bytes(works: Sequence[StageWork]) -> int:
    tokens = [work.most_tokens for work in works]
    return (sum(tokens) + max(tokens, default=0)) * TEXT_BYTES_PER_TOKEN
