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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from still_ray.algo.optimizer_steps import total_learning_rate
from still_ray.algo.planning.findings import Finding
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.workload import StageWork
from still_ray.config import LoraConfig, Recipe, TrainingStep

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


def adapter_reach(total: float, lora: LoraConfig, *, num_inputs: int) -> float:
    """How far a sum of learning rates can move a weight by an adapter, at most.

    B starts at 0 and A within 1 / sqrt(inputs) (Kaiming's uniform with a = sqrt(5), as peft has it), and Adam moves an
    entry of either by the sum at most. An entry of the product adds up `rank` of theirs.

    Args:
        total: Sum of the learning rates of a stage's steps.
        lora: The adapters.
        num_inputs: Of the layer.
    """
    return lora.scale * lora.rank * total * (1.0 / math.sqrt(num_inputs) + total)


def movement_findings(recipe: Recipe, works: Sequence[StageWork], shape: ModelShape, *, bf16: bool) -> list[Finding]:
    """Training stages whose learning rates cannot move a bfloat16 model.

    Args:
        recipe: The recipe.
        works: The stages with their steps.
        shape: The model.
        bf16: Whether weights are bfloat16; in float32 every stage moves them.
    """
    steps = {work.name: work.num_steps for work in works if work.num_steps}
    reach_of = _reach_of(recipe.trainer.lora, shape)
    found = []
    for step in recipe.steps if bf16 else ():
        optimizer = step.settings.optimizer
        total = total_learning_rate(
            peak=optimizer.learning_rate, total_steps=steps[step.where], warmup_ratio=optimizer.warmup_ratio
        )
        if movable_share(reach_of(total)) < LEAST_SHARE:
            found.append(_finding(step, steps[step.where], total, reach_of))
    return found


def _reach_of(lora: LoraConfig | None, shape: ModelShape) -> Callable[[float], float]:
    """How far a sum of learning rates can move a weight: by itself, or through an adapter."""
    if lora is None:
        return float
    return partial(adapter_reach, lora=lora, num_inputs=shape.hidden_size)


def _finding(step: TrainingStep, num_steps: int, total: float, reach_of: Callable[[float], float]) -> Finding:
    reach = reach_of(total)
    text = (
        f"{num_steps:,} steps with learning rates of {total:.1e} in all can change at most {movable_share(reach):.0%} "
        f"of bfloat16 weights (std {TYPICAL_STD:g}), none of size {largest_movable(reach):.1e} or more: what moves "
        f"less than 1/512 of itself is rounded away. Make the sum {enough(reach_of):.0e} or more: a higher "
        f"learning_rate, more epochs or rows, or a global_batch_size below {step.settings.global_batch_size}"
    )
    return Finding(severity="warning", key=f"{step.where}.optimizer.learning_rate", text=text)


def enough(reach_of: Callable[[float], float] = float) -> float:
    """The least sum of learning rates, a power of two, that can change `LEAST_SHARE` of the weights.

    Args:
        reach_of: How far a sum can move a weight.
    """
    return next(2.0**power for power in range(-40, 10) if movable_share(reach_of(2.0**power)) >= LEAST_SHARE)
