"""Which rows make up which optimizer step, and the arithmetic of batches: pure functions."""

import random
from collections.abc import Iterator, Sequence

from still_ray.algo.optimizer_steps import num_steps
from still_ray.types import InputError


def gradient_accumulation_steps(*, global_batch_size: int, per_device_batch_size: int, num_workers: int) -> int:
    """Forward passes of one rank in one optimizer step.

    Raises:
        InputError: The global batch is not a multiple of what all ranks take in one forward pass.
    """
    rows = per_device_batch_size * num_workers
    if global_batch_size % rows:
        raise InputError(
            f"global_batch_size ({global_batch_size}) must be a multiple of per_device_batch_size x workers "
            f"({per_device_batch_size} x {num_workers})"
        )
    return global_batch_size // rows


def row_order(lengths: Sequence[int], *, epochs: float, global_batch_size: int, seed: int) -> list[int]:
    """Row indices of the whole stage in the order in which the ranks take them.

    Passes over the rows follow each other without a seam, each in an order of its own, so every optimizer step has
    exactly `global_batch_size` rows, and the last one is filled up from a further pass. Which rows share a step is
    random; within a step they lie from long to short, so that rows of a like length share a forward pass: that saves
    padding, evens out the ranks, and meets the largest batch first, without changing what a step learns.

    Args:
        lengths: Tokens of each row.
        epochs: Passes over the rows.
        global_batch_size: Rows of one optimizer step.
        seed: Decides the order.

    Returns:
        `num_steps * global_batch_size` row indices. Forward pass i of a step gives rank r the rows
        `[(i * world + r) * per_device : (i * world + r + 1) * per_device]` of the step.
    """
    steps = num_steps(num_rows=len(lengths), epochs=epochs, global_batch_size=global_batch_size)
    rows = _endless_passes(len(lengths), seed)
    order: list[int] = []
    for _ in range(steps):
        step = [next(rows) for _ in range(global_batch_size)]
        order += sorted(step, key=lambda row: (-lengths[row], row))
    return order


def _endless_passes(num_rows: int, seed: int) -> Iterator[int]:
    generator = random.Random(seed)
    rows = list(range(num_rows))
    while True:
        generator.shuffle(rows)
        yield from rows
