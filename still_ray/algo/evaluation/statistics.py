"""Numbers about samples: accuracies with intervals, pass@k, paired tests, means."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np

HALVINGS = 50
"""Steps of a bisection on (0, 1), which leave 1e-15."""
RESAMPLES_AT_ONCE = 1_000
"""Bootstrap resamples held in memory together: 1,000 of 5,000 problems take 40 MB."""


@lru_cache
def exact_binomial_interval(num_correct: int, num_total: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson 1934), as fractions in [0, 1].

    It holds the true share with at least the probability `level`, whatever the share is. Each end is the share under
    which a result as far out as the seen one has a probability of (1 - level) / 2.

    Raises:
        ValueError: Unless 0 <= num_correct <= num_total, num_total > 0 and 0 < level < 1.
    """
    _share(num_correct, num_total)
    tail = (1 - _level(level)) / 2
    low, high = 0.0, 1.0
    if num_correct:
        at_least = _binomial(range(num_correct, num_total + 1), num_total)
        low = _bisect(lambda share: at_least(share) > tail)
    if num_correct < num_total:
        at_most = _binomial(range(num_correct + 1), num_total)
        high = _bisect(lambda share: at_most(share) < tail)
    return low, high


def _binomial(counts: range, num_total: int) -> Callable[[float], float]:
    """The probability of these numbers of successes in `num_total` trials, by the share in (0, 1)."""
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num_total + 1)))])
    successes = np.asarray(counts)
    failures = num_total - successes
    logs = log_factorials[num_total] - log_factorials[successes] - log_factorials[failures]
    return lambda share: float(np.exp(logs + successes * math.log(share) + failures * math.log1p(-share)).sum())


def _bisect(beyond: Callable[[float], bool]) -> float:
    """The point in (0, 1) where a condition turns from false to true, to about 15 digits."""
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if beyond(middle) else (middle, high)
    return (low + high) / 2


def bootstrap_interval(
    values: Sequence[float], *, seed: int, num_resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: One value for each problem: the problems are what is drawn again, with replacement, because the
            samples of one problem are not independent of each other.
        seed: Makes the interval repeatable.
        num_resamples: Draws; 10,000 leave an error of the ends of about 1 % of the interval's width.
        level: Share of the resampled means between the two ends.

    Raises:
        ValueError: There are no values or no resamples, or the level is not between 0 and 1.
    """
    if not len(values) or num_resamples < 1:
        raise ValueError(f"no bootstrap of {len(values)} values with {num_resamples} resamples")
    tail = (1 - _level(level)) / 2
    table = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = []
    for done in range(0, num_resamples, RESAMPLES_AT_ONCE):
        size = (min(RESAMPLES_AT_ONCE, num_resamples - done), len(table))
        means.append(table[generator.integers(0, len(table), size=size)].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def hoeffding_interval(value: float, num_values: int, level: float = 0.95) -> tuple[float, float]:
    """An interval of the mean of independent values in [0, 1], from their number alone (Hoeffding 1963, theorem 2).

    It is wide, but holds whatever the values' distribution is: mean +- sqrt(ln(2 / (1 - level)) / (2 num_values)).

    Args:
        value: The values' mean.
        num_values: How many they are.
        level: The probability, at least, of the true mean being between the two ends.

    Raises:
        ValueError: Unless 0 <= value <= 1, num_values > 0 and 0 < level < 1.
    """
    if not 0 <= value <= 1 or num_values < 1:
        raise ValueError(f"no mean of values in [0, 1]: {value} of {num_values} values")
    width = math.sqrt(math.log(2 / (1 - _level(level))) / (2 * num_values))
    return max(0.0, value - width), min(1.0, value + width)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased estimate that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021).

    Args:
        num_samples: n, the samples drawn for the problem.
        num_correct: c, those that are correct.
        k: At least 1. Beyond n the estimate is undefined.

    Raises:
        ValueError: k is not in 1..n, or c not in 0..n.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} is undefined for {num_samples} samples")
    _share(num_correct, num_samples)
    missed: float = math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
    return 1 - missed


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test on paired right-or-wrong results (McNemar 1947, exact binomial form).

    Under the null hypothesis a problem that only one of the two models solves is either's with probability 1/2.

    Args:
        only_first: Problems that the first model solved and the second did not.
        only_second: The other way round.

    Raises:
        ValueError: A count is negative.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"no counts of problems: {only_first}, {only_second}")
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, count) for count in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**discordant))


def sign_flip_test(differences: Sequence[int]) -> float:
    """Two-sided p-value of the exact paired permutation test (Fisher 1935, section 21).

    Under the null hypothesis the two models are interchangeable on every problem, so each difference is as likely with
    the other sign. All 2^problems sign patterns are counted, none is drawn: the distribution of the sum is built up
    problem by problem. With differences of -1, 0 and 1 it is McNemar's exact test.

    Args:
        differences: For each problem, correct samples of the first model minus those of the second, on an equal number
            of samples.
    """
    seen = abs(sum(differences))
    steps = [abs(difference) for difference in differences if difference]
    probabilities = np.zeros(2 * sum(steps) + 1)
    probabilities[len(probabilities) // 2] = 1.0
    for step in steps:
        probabilities = (np.roll(probabilities, step) + np.roll(probabilities, -step)) / 2
    middle = len(probabilities) // 2
    return min(1.0, float(probabilities[: middle - seen + 1].sum() + probabilities[middle + seen :].sum()))


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for several comparisons by Holm's step-down method (Holm 1979), in the order given.

    Testing each against a level alpha keeps the chance of even one false difference below alpha.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def mean(values: Iterable[float]) -> float:
    """The mean, or 0.0 of nothing."""
    items = list(values)
    return math.fsum(items) / len(items) if items else 0.0


def _share(num_correct: int, num_total: int) -> float:
    if not 0 <= num_correct <= num_total or num_total == 0:
        raise ValueError(f"no proportion: {num_correct} of {num_total}")
    return num_correct / num_total


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"no confidence level: {level}")
    return level
