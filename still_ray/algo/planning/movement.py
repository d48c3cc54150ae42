"""Which weights a stage can change at all in bfloat16, from the sum of its learning rates.

Within a stage DeepSpeed updates float32 masters, so nothing is lost there from step to step; what the checkpoint, the
samplers and the next stage get is the masters rounded to bfloat16. A weight has changed if its master moved by half a
unit in the last place. With 8 bits of significand the unit of weights from 2^e to 2^(e + 1) is 2^(e - 7), so half of it
is 2^(e - 8): between 1/512 and 1/256 of the weight.

Adam moves a weight by about the learning rate in a step, and by less where gradients of steps disagree (arXiv
1412.6980, section 2.1), so over a stage by at most about the sum of its learning rates. Weight decay adds the sum times
`weight_decay` of the weight itself: far less than 1/512 for every recipe here. Hence a weight can change only if
2^(e - 8) is at most the sum, and the largest sizes are out of reach however often a stage is repeated: float32 masters
that were kept from stage to stage would add the sums up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from still_ray.algo.optimizer_steps import total_learning_rate
from still_ray.algo.planning.findings import Finding
from still_ray.algo.planning.workload import StageWork
from still_ray.config import Recipe

TYPICAL_STD: Final = 0.02
"""Standard deviation of a large model's matrices, taken as normal around 0. Source: `initializer_range` in the config
of Qwen2.5. Training widens it, most in small models: 0.19 measured in SmolLM2-135M, whose weights are normal to within
13 % at every size below their deviation (docs/decisions/0012-bfloat16-movement.md)."""
LEAST_SHARE: Final = 0.5
"""`plan` warns where fewer weights can change. Source: ours, measured: a third to a half of those that can
change do (docs/decisions/0012-bfloat16-movement.md)."""

TINY_SHARE: Final = 0.05
"""A stage that changed a smaller share of the weights has hardly made another model. Source: ours."""


def largest_movable(total: float) -> float:
    """The size from which on no bfloat16 weight changes when every step moves it the same way by the learning rate.

    Args:
        total: Sum of the learning rates of a stage's steps.
    """
    return math.ldexp(1.0, math.frexp(256.0 * total)[1]) if total > 0 else 0.0


def movable_share(total: float, *, std: float = TYPICAL_STD) -> float:
    """Share of weights, normal around 0, that a sum of learning rates can change in bfloat16; an upper bound.

    Args:
        total: Sum of the learning rates of a stage's steps.
        std: Standard deviation of the weights.
    """
    return math.erf(largest_movable(total) / (std * math.sqrt(2.0)))


def movement_findings(recipe: Recipe, works: Sequence[StageWork], *, bf16: bool) -> list[Finding]:
    """Training stages whose learning rates cannot move a bfloat16 model.

    Args:
        recipe: The recipe.
        works: The stages with their steps.
        bf16: Whether weights are bfloat16; in float32 every stage moves them.
    """
    steps = {work.name: work.num_steps for work in works if work.num_steps}
    found = []
    for step in recipe.steps if bf16 else ():
        name, section = step.where, step.settings
        optimizer = section.optimizer
        total = total_learning_rate(
            peak=optimizer.learning_rate, total_steps=steps[name], warmup_ratio=optimizer.warmup_ratio
        )
        if movable_share(total) < LEAST_SHARE:
            found.append(_finding(name, steps[name], section.global_batch_size, total))
    return found


def _finding(name: str, num_steps: int, global_batch_size: int, total: float) -> Finding:
    text = (
        f"{num_steps:,} steps with learning rates of {total:.1e} in all can change at most {movable_share(total):.0%} "
        f"of bfloat16 weights (std {TYPICAL_STD:g}), none of size {largest_movable(total):.1e} or more: what moves "
        f"less than 1/512 of itself is rounded away. Make the sum {enough():.0e} or more: a higher learning_rate, more "
        f"epochs or rows, or a global_batch_size below {global_batch_size}"
    )
    return Finding(severity="warning", key=f"{name}.optimizer.learning_rate", text=text)


def enough() -> float:
    """The least sum of learning rates, a power of two, that can change `LEAST_SHARE` of the weights."""
    return next(2.0**power for power in range(-40, 10) if movable_share(2.0**power) >= LEAST_SHARE)
