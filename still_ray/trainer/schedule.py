"""Which rows make up which optimizer step, and the arithmetic of batches: pure functions."""

import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from still_ray.algo.optimizer_steps import num_steps
from still_ray.types import InputError

Batch = tuple[int, ...]
"""Row indices of one forward pass of one rank, in their order."""


def gradient_accumulation_steps(*, global_batch_size: int, per_device_batch_size: int, num_workers: int) -> int:
    """Forward passes of one rank in one optimizer step.

    Args:
        global_batch_size: Rows of one optimizer step.
        per_device_batch_size: Rows of one forward pass of a rank.
        num_workers: Ranks with rows of their own; those that share theirs count once.

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


def batches_of(order: Sequence[int], per_device_batch_size: int) -> list[Batch]:
    """The batches of a stage; as many as there are ranks make one forward pass of them all."""
    starts = range(0, len(order), per_device_batch_size)
    return [tuple(order[start : start + per_device_batch_size]) for start in starts]


def filled(rows: Iterable[int], lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Rows from long to short, cut where the padded tokens of a batch would pass the limit: as few batches as can be.

    Args:
        rows: Indices of rows.
        lengths: Tokens that each row has beside rows that are no longer.
        most_tokens: Of a batch; one row may have more.
    """
    batches: list[list[int]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= most_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def packed(rows: Sequence[int], lengths: Sequence[int], *, most_tokens: int, num_ranks: int) -> list[Batch]:
    """The batches of one optimizer step: as few forward passes of all ranks as can be, and the batches alike in size.

    ZeRO-3 gathers weights in every pass, so each rank makes as many. The batches hold rows of neighbouring lengths, for
    the least padding, and the largest of them is as small as so many batches allow; ranks wait for it.

    Args:
        rows: Those of the step, from long to short; a multiple of the ranks.
        lengths: Tokens of each row of the stage, those of all its sequences padded to the longest.
        most_tokens: Padded tokens of a batch, unless one row has more.
        num_ranks: Ranks with rows of their own.

    Returns:
        A multiple of `num_ranks`, from long rows to short ones; pass i gives rank r the batch `i * num_ranks + r`.
    """
    number = num_ranks * math.ceil(len(filled(rows, lengths, most_tokens)) / num_ranks)
    # The fewest tokens of a batch with which there are no more batches than these: a larger limit never makes more.
    least = bisect_left(range(most_tokens), True, key=lambda limit: len(filled(rows, lengths, limit)) <= number)
    batches = filled(rows, lengths, least)
    while len(batches) < number:
        several = [index for index, batch in enumerate(batches) if len(batch) > 1]
        largest = max(several, key=lambda index: len(batches[index]) * lengths[batches[index][0]])
        whole = batches[largest]
        batches[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return [*map(tuple, batches)]


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
