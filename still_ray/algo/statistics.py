"""Numbers about samples: accuracies with intervals, means."""

from __future__ import annotations

import math
from collections.abc import Iterable

Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def wilson_interval(num_correct: int, num_total: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (Wilson 1927), as fractions in [0, 1].

    Raises:
        ValueError: Unless 0 <= num_correct <= num_total and num_total > 0.
    """
    if not 0 <= num_correct <= num_total or num_total == 0:
        raise ValueError(f"no proportion: {num_correct} of {num_total}")
    share = num_correct / num_total
    scale = 1 + Z95**2 / num_total
    centre = (share + Z95**2 / (2 * num_total)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / num_total + Z95**2 / (4 * num_total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean(values: Iterable[float]) -> float:
    """The mean, or 0.0 of nothing."""
    items = list(values)
    return math.fsum(items) / len(items) if items else 0.0
