"""What a run leaves on shared storage, at its peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from still_ray.algo.planning.findings import Part
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


def disk_parts(recipe: Recipe, works: Sequence[StageWork], *, num_parameters: int, width: int) -> tuple[Part, ...]:
    """Parts of the run directory.

    Args:
        recipe: The recipe.
        works: Its stages.
        num_parameters: Parameters of the model.
        width: Bytes of a weight in a checkpoint.
    """
    checkpoint = width * num_parameters
    sections = [step.settings for step in recipe.steps]
    parts = [
        Part(
            name="checkpoints",
            num_bytes=(len(sections) + 1) * checkpoint,
            source=f"{len(sections)} training stages keep theirs, one more while it is written; {width} B x parameters",
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
                num_bytes=2 * (STATE_BYTES + width) * num_parameters,
                source="(12 B + a weight) x parameters, the newest and the one being written; DeepSpeed's shards",
            )
        )
    return tuple(parts)


def _trajectory_bytes(works: Sequence[StageWork]) -> int:
    tokens = [work.most_tokens for work in works]
    return (sum(tokens) + max(tokens, default=0)) * TEXT_BYTES_PER_TOKEN
