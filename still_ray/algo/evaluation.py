"""What one evaluation says of a model: accuracy with its interval, lengths, truncation, verdicts by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from still_ray.algo.statistics import mean, wilson_interval
from still_ray.types import FinishReason, Trajectory, Verdict


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary:
    """One line of the final table.

    Attributes:
        num_problems: Responses judged, one for each problem.
        num_correct: Those with verdict correct. A timeout or an error is not correct, and is counted apart.
        accuracy: num_correct / num_problems.
        ci95: 95 % Wilson interval of the accuracy.
        mean_thought_tokens: Mean tokens of the thought.
        truncation_rate: Share of responses that met the token limit.
        verdicts: Count of each verdict, absent ones as 0.
    """

    num_problems: int
    num_correct: int
    accuracy: float
    ci95: tuple[float, float]
    mean_thought_tokens: float
    truncation_rate: float
    verdicts: dict[str, int]


def summarize(trajectories: Sequence[Trajectory]) -> EvaluationSummary:
    """Summarizes a greedy evaluation, one trajectory for each problem.

    Raises:
        ValueError: There is nothing to summarize.
    """
    counts = Counter(row.verdict for row in trajectories)
    total = len(trajectories)
    return EvaluationSummary(
        num_problems=total,
        num_correct=counts[Verdict.CORRECT],
        accuracy=counts[Verdict.CORRECT] / total if total else 0.0,
        ci95=wilson_interval(counts[Verdict.CORRECT], total),
        mean_thought_tokens=mean(row.thought_tokens for row in trajectories),
        truncation_rate=mean(float(row.finish_reason is FinishReason.LENGTH) for row in trajectories),
        verdicts={verdict.value: counts[verdict] for verdict in Verdict},
    )
