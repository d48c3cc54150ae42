"""Models against each other on the same problems: a difference is called one only when a paired test says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from still_ray.algo.evaluation.statistics import bootstrap_interval, holm_correction, mcnemar_exact, sign_flip_test
from still_ray.algo.evaluation.summary import BOOTSTRAP_SEED
from still_ray.facts import EvaluationFacts, ForgettingFacts

LEVEL = 0.05
"""A difference is called one if its corrected p-value is at most this."""
MCNEMAR = "McNemar, exact"
PERMUTATION = "paired permutation over problems, exact"

Finding = Literal["first is better", "second is better", "no difference shown"]


@dataclass(frozen=True, kw_only=True)
class ModelResult:
    """What one model did on one benchmark.

    Attributes:
        model: Its name.
        num_samples: Responses to each problem.
        correct: How many of them are correct, by problem.
    """

    model: str
    num_samples: int
    correct: Mapping[str, int]

    @property
    def accuracy(self) -> float:
        """Share of correct responses."""
        return sum(self.correct.values()) / (self.num_samples * len(self.correct))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two models on the same problems.

    Attributes:
        benchmark: Name of the benchmark.
        first: Name of the model that the other is compared with.
        second: The other.
        num_problems: Problems of both.
        accuracy_first: Accuracy (avg@N) of the first.
        accuracy_second: Of the second.
        difference: accuracy_second - accuracy_first.
        ci95: 95 % interval of the difference, by a bootstrap over problems.
        only_first: Problems on which the first has more correct samples than the second.
        only_second: The other way round.
        test: Name of the test.
        p_value: Two-sided, of this comparison alone.
        p_value_corrected: The same after Holm's correction for all comparisons of the evaluation.
        finding: What the corrected p-value allows to say.
    """

    benchmark: str
    first: str
    second: str
    num_problems: int
    accuracy_first: float
    accuracy_second: float
    difference: float
    ci95: tuple[float, float]
    only_first: int
    only_second: int
    test: str
    p_value: float
    p_value_corrected: float
    finding: Finding


def compare_models(results: Mapping[str, Sequence[ModelResult]]) -> list[Comparison]:
    """Compares the first model of each benchmark with every other one on it.

    Args:
        results: Results by benchmark, in order.

    Raises:
        ValueError: Two results are not of the same problems, or not of equally many samples.
    """
    pairs = [_compared(name, models[0], other) for name, models in results.items() for other in models[1:]]
    corrected = holm_correction([pair.p_value for pair in pairs])
    return [_found(pair, p_value) for pair, p_value in zip(pairs, corrected, strict=True)]


def compared_with_backbone(
    evaluation: EvaluationFacts, backbone: Mapping[str, int] | None, now: Mapping[str, int], *, alpha: float
) -> ForgettingFacts:
    """Whether a policy has forgotten what the backbone could.

    Args:
        evaluation: Of the policy.
        backbone: Correct responses of the backbone to each problem; None: the policy is the backbone.
        now: The same of the policy.
        alpha: Greatest p-value of the exact paired test at which a fall is called one.

    Raises:
        ValueError: They were not asked the same problems.
    """
    if backbone is None:
        return ForgettingFacts(evaluation=evaluation)
    before, after = (
        ModelResult(model=name, num_samples=evaluation.num_samples, correct=correct)
        for name, correct in (("backbone", backbone), ("policy", now))
    )
    found = _compared("general problems", before, after)
    return ForgettingFacts(
        evaluation=evaluation,
        num_lost=found.only_first,
        num_gained=found.only_second,
        p_value=found.p_value,
        alarm=found.difference < 0 and found.p_value <= alpha,
    )


def _compared(benchmark: str, first: ModelResult, second: ModelResult) -> Comparison:
    if first.correct.keys() != second.correct.keys() or first.num_samples != second.num_samples:
        raise ValueError(f"{benchmark}: {first.model} and {second.model} were not asked the same")
    differences = [second.correct[problem] - first.correct[problem] for problem in sorted(first.correct)]
    only_first, only_second = sum(gain < 0 for gain in differences), sum(gain > 0 for gain in differences)
    greedy = first.num_samples == 1
    p_value = mcnemar_exact(only_first, only_second) if greedy else sign_flip_test(differences)
    shares = [gain / first.num_samples for gain in differences]
    return Comparison(
        benchmark=benchmark,
        first=first.model,
        second=second.model,
        num_problems=len(differences),
        accuracy_first=first.accuracy,
        accuracy_second=second.accuracy,
        difference=second.accuracy - first.accuracy,
        ci95=bootstrap_interval(shares, seed=BOOTSTRAP_SEED),
        only_first=only_first,
        only_second=only_second,
        test=MCNEMAR if greedy else PERMUTATION,
        p_value=p_value,
        p_value_corrected=p_value,
        finding="no difference shown",
    )


def _found(pair: Comparison, p_value_corrected: float) -> Comparison:
    finding: Finding = "no difference shown"
    if p_value_corrected <= LEVEL:
        finding = "second is better" if pair.difference > 0 else "first is better"
    return replace(pair, p_value_corrected=p_value_corrected, finding=finding)
