"""Lengths of many rows in little space: exact counts, means and extremes, quantiles to within one percent."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

_GROWTH: Final = 1.01


@dataclass(kw_only=True)
class Histogram:
    """Whole numbers from 0 on in bins that grow by one percent; histograms of parts add up to that of the whole.

    Attributes:
        bins: How many numbers fell into each bin.
        total: Their sum.
        least: The smallest; 0 if there is none.
        greatest: The largest; 0 if there is none.
    """

    bins: Counter[int] = field(default_factory=Counter)
    total: int = 0
    least: int = 0
    greatest: int = 0

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return self.bins.total()

    def add(self, value: int) -> None:
        """Counts a number."""
        self.least = min(self.least, value) if self.bins else value
        self.greatest = max(self.greatest, value)
        self.bins[_bin(value)] += 1
        self.total += value

    def merge(self, other: Histogram) -> None:
        """Adds another histogram to this one."""
        if other.bins:
            self.least = min(self.least, other.least) if self.bins else other.least
            self.greatest = max(self.greatest, other.greatest)
            self.bins += other.bins
            self.total += other.total

    def quantile(self, share: float) -> int:
        """The least number with at least this share of all at or below it, within one percent; 0 without numbers."""
        wanted = math.ceil(share * self.count)
        seen = 0
        for position in sorted(self.bins):
            seen += self.bins[position]
            if seen >= wanted:
                return min(max(_middle(position), self.least), self.greatest)
        return 0

    def summary(self) -> dict[str, float]:
        """What a report says: count, min, median, mean, p95, max."""
        return {
            "count": self.count,
            "min": self.least,
            "median": self.quantile(0.5),
            "mean": round(self.total / self.count, 1) if self.bins else 0.0,
            "p95": self.quantile(0.95),
            "max": self.greatest,
        }


def _bin(value: int) -> int:
    return 0 if value <= 0 else 1 + math.floor(math.log(value) / math.log(_GROWTH))


def _middle(position: int) -> int:
    return 0 if position == 0 else round(_GROWTH ** (position - 0.5))
