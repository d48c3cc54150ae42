"""The arithmetic of an ablation's table: means over seeds with intervals, and rows compared on the same problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from still_ray.algo.evaluation.statistics import holm_correction, mcnemar_exact, mean, sign_flip_test
from still_ray.config.ablation import ComparisonConfig, Matrix, RowConfig
from still_ray.facts import EvaluationFacts

LEVEL: Final = 0.05
"""A false difference is called with at most this probability among the comparisons of a metric. Source: convention."""
T975: Final = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom. Source: any table of it."""

Metric = Literal["accuracy", "truncation"]
METRICS: Final[tuple[Metric, ...]] = ("accuracy", "truncation")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One held-out problem: how many of its responses are correct, how many met the token limit, of how many."""

    correct: int
    truncated: int
    samples: int = 1


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One row under one seed.

    Attributes:
        seed: The seed.
        evaluation: As the stage's manifest has it.
        trained_on: What the stage's training data were, as its manifest has it; empty for the backbone.
        outcomes: Every held-out problem by id.
    """

    seed: int
    evaluation: EvaluationFacts
    trained_on: Mapping[str, int]
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True, kw_only=True)
class RowEstimate:
    """A mean over seeds.

    Attributes:
        mean: Of the values.
        interval: 95 % t-interval of the mean; None for fewer than two values.
        values: One for each seed, in order.
    """

    mean: float
    interval: tuple[float, float] | None
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RowSummary:
    """One row of the table.

    Attributes:
        row: As the matrix has it.
        seeds: Those with a result; a stage that was skipped, for want of pairs, has none.
        accuracy: Fractions.
        truncation: Share of responses that met the token limit.
        thought_tokens: Mean tokens of a thought.
        num_problems: Held-out problems of each seed.
        trained_on: Rows of training data, least and greatest over the seeds, by kind.
    """

    row: RowConfig
    seeds: tuple[int, ...]
    accuracy: RowEstimate
    truncation: RowEstimate
    thought_tokens: RowEstimate
    num_problems: tuple[int, ...]
    trained_on: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class RowComparison:
    """Two rows on the same problems under the same seeds, in one metric.

    Attributes:
        config: As the matrix has it.
        metric: What is compared.
        only_first: Problems, over all seeds, on which the first has more correct (or truncated) responses.
        only_second: The other way round.
        difference: First minus second, by seed.
        p_value: Paired test on the problems of all seeds: McNemar's exact one, or for several responses to a problem
            the exact permutation test that it is a case of.
        p_corrected: The same after Holm's correction over all comparisons of this metric.
        direction: "higher" or "lower": the first against the second; "": no difference is shown.
    """

    config: ComparisonConfig
    metric: Metric
    only_first: int
    only_second: int
    difference: RowEstimate
    p_value: float
    p_corrected: float
    direction: str


def t975(degrees: int) -> float:
    """The 97.5 % quantile of Student's t; beyond the table by the Cornish-Fisher expansion, to 1e-4.

    Source: Abramowitz and Stegun, 26.7.5.

    Raises:
        ValueError: There are no degrees of freedom.
    """
    if degrees < 1:
        raise ValueError(f"no t-distribution with {degrees} degrees of freedom")
    if degrees <= len(T975):
        return T975[degrees - 1]
    z = 1.959963984540054
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / degrees**power for power, term in enumerate(terms, start=1)))


def estimate(values: Sequence[float], *, bounds: tuple[float, float] = (-math.inf, math.inf)) -> RowEstimate:
    """The mean over seeds and its 95 % t-interval, cut off at what is possible.

    Each seed is one observation, whatever the number of its problems: seeds draw data, sampling and training anew, and
    that is what a reader who runs it again with another seed will meet. A bootstrap over so few seeds would be too
    narrow.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("no mean of nothing")
    centre = mean(values)
    if len(values) == 1:
        return RowEstimate(mean=centre, interval=None, values=tuple(values))
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    half = t975(len(values) - 1) * math.sqrt(variance / len(values))
    low, high = bounds
    return RowEstimate(mean=centre, interval=(max(low, centre - half), min(high, centre + half)), values=tuple(values))


def summarize_row(row: RowConfig, results: Sequence[SeedResult]) -> RowSummary | None:
    """One row over its seeds, or None when no seed has a result."""
    if not results:
        return None

    evaluations = [result.evaluation for result in results]
    kinds = dict.fromkeys(kind for result in results for kind in result.trained_on)
    counts = {kind: [result.trained_on.get(kind, 0) for result in results] for kind in kinds}
    return RowSummary(
        row=row,
        seeds=tuple(result.seed for result in results),
        accuracy=estimate([one.accuracy for one in evaluations], bounds=(0.0, 1.0)),
        truncation=estimate([one.truncation_rate for one in evaluations], bounds=(0.0, 1.0)),
        thought_tokens=estimate([one.mean_thought_tokens for one in evaluations], bounds=(0.0, math.inf)),
        num_problems=tuple(one.num_problems for one in evaluations),
        trained_on={kind: (min(numbers), max(numbers)) for kind, numbers in counts.items()},
    )


def compare_rows(matrix: Matrix, results: Mapping[str, Sequence[SeedResult]]) -> list[RowComparison]:
    """The comparisons of a matrix, each in every metric; those without common results are left out.

    A difference is called one only if the corrected test says so and every seed has it in the same direction: the test
    is about the models that were trained here, and a difference that turns round with the seed is not one of the
    recipe.

    Args:
        matrix: The matrix.
        results: Of every row by its name.
    """
    return [
        comparison for metric in METRICS for comparison in _corrected(_compared(matrix.comparisons, results, metric))
    ]


def _compared(
    configs: Sequence[ComparisonConfig], results: Mapping[str, Sequence[SeedResult]], metric: Metric
) -> list[RowComparison]:
    found = []
    for config in configs:
        gains = [_gains(*pair, metric) for pair in _same_seeds(results[config.first], results[config.second])]
        if not gains:
            continue
        pooled = [gain for seed in gains for gain in seed.by_problem]
        p_value = _p_value(pooled)
        found.append(
            RowComparison(
                config=config,
                metric=metric,
                only_first=sum(gain > 0 for gain in pooled),
                only_second=sum(gain < 0 for gain in pooled),
                difference=estimate([seed.mean for seed in gains], bounds=(-1.0, 1.0)),
                p_value=p_value,
                p_corrected=p_value,
                direction="",
            )
        )
    return found


def _p_value(gains: Sequence[int]) -> float:
    """Of a paired test; for gains of -1, 0 and 1 the permutation test is McNemar's, which is faster."""
    if max(map(abs, gains), default=0) <= 1:
        return mcnemar_exact(sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains))
    return sign_flip_test(gains)


def _same_seeds(first: Sequence[SeedResult], second: Sequence[SeedResult]) -> list[tuple[SeedResult, SeedResult]]:
    others = {result.seed: result for result in second}
    return [(result, others[result.seed]) for result in first if result.seed in others]


@dataclass(frozen=True, kw_only=True)
class _Gains:
    """What the first row has more than the second under one seed: responses by problem, and the mean share."""

    by_problem: tuple[int, ...]
    mean: float


def _gains(first: SeedResult, second: SeedResult, metric: Metric) -> _Gains:
    """The two rows of one seed, problem by problem.

    Raises:
        ValueError: They were not asked the same problems equally often.
    """
    asked, also = ({name: one.samples for name, one in side.outcomes.items()} for side in (first, second))
    if asked != also:
        raise ValueError(f"two rows under seed {first.seed} were not asked the same problems equally often")
    by_problem = tuple(
        _count(outcome, metric) - _count(second.outcomes[name], metric) for name, outcome in first.outcomes.items()
    )
    return _Gains(by_problem=by_problem, mean=sum(by_problem) / sum(asked.values()))


def _count(outcome: Outcome, metric: Metric) -> int:
    return outcome.correct if metric == "accuracy" else outcome.truncated


def _corrected(comparisons: Sequence[RowComparison]) -> list[RowComparison]:
    corrected = holm_correction([comparison.p_value for comparison in comparisons])
    return [
        replace(one, p_corrected=p_value, direction=_direction(one.difference.values, p_value))
        for one, p_value in zip(comparisons, corrected, strict=True)
    ]


def _direction(differences: Sequence[float], p_value: float) -> str:
    if p_value > LEVEL:
        return ""
    if all(value > 0 for value in differences):
        return "higher"
    if all(value < 0 for value in differences):
        return "lower"
    return ""
