"""How often each row of a file of demonstrations is learnt, by the weight that the recipe gives the file."""

from __future__ import annotations

import random
from collections.abc import Callable

from still_ray.algo.seeds import derived_seed


def num_mixed(num_rows: int, weight: float) -> int:
    """Rows that an epoch learns of a file: its weight times its rows, to the nearest whole number."""
    return round(num_rows * weight)


def copies(num_rows: int, weight: float, *, seed: int, name: str) -> Callable[[int], int]:
    """How often an epoch learns a row, by its place in the file; `num_mixed` in all.

    Args:
        num_rows: Rows of the file.
        weight: Of the file.
        seed: Of the run; decides which rows come once more than the others.
        name: Of the file, so that two files of one length are not drawn from alike.
    """
    every, more = divmod(num_mixed(num_rows, weight), num_rows)
    drawn = frozenset(random.Random(derived_seed(seed, "mix", name)).sample(range(num_rows), more))
    return lambda place: every + (place in drawn)
