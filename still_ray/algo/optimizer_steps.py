"""How many optimizer steps a training stage makes, and the learning rate of each of them."""

import math


def num_steps(*, num_rows: int, epochs: float, global_batch_size: int) -> int:
    """Optimizer steps that cover the rows `epochs` times; the last step is filled up, so at least one."""
    return max(1, math.ceil(round(num_rows * epochs, 6) / global_batch_size))


def warmup_steps(*, total_steps: int, warmup_ratio: float) -> int:
    """Optimizer steps below the peak at the beginning; at least one step of a stage is at the peak."""
    return min(math.ceil(round(total_steps * warmup_ratio, 6)), total_steps - 1)


def learning_rate_factor(step: int, *, total_steps: int, num_warmup: int) -> float:
    """Learning rate of a step over the peak: linear warm-up, then half a cosine.

    This is the cosine schedule of transformers made one step longer and without its first step, whose rate is 0: that
    is a whole step lost where a stage has eleven, and all of it where a stage has one.

    Args:
        step: 0-based number of the step; past the end the factor is 0.
        total_steps: Steps of the stage.
        num_warmup: Steps below the peak at the beginning, as `warmup_steps` gives them.
    """
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    progress = min(1.0, (step - num_warmup) / max(1, total_steps - num_warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def total_learning_rate(*, peak: float, total_steps: int, warmup_ratio: float) -> float:
    """Sum of the learning rates of a stage's steps."""
    warmup = warmup_steps(total_steps=total_steps, warmup_ratio=warmup_ratio)
    factors = (learning_rate_factor(step, total_steps=total_steps, num_warmup=warmup) for step in range(total_steps))
    return peak * math.fsum(factors)
