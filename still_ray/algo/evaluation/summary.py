"""What one evaluation asks of a model, and what its responses say: accuracy, pass@k, majority, lengths, verdicts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from still_ray.algo.evaluation.majority import AnswerPair, has_votes, majority_is_correct, pairs_to_compare
from still_ray.algo.evaluation.statistics import (
    bootstrap_interval,
    exact_binomial_interval,
    hoeffding_interval,
    mean,
    pass_at_k,
)
from still_ray.algo.seeds import derived_seed
from still_ray.config import EvaluateConfig
from still_ray.facts import Estimate, EvaluationFacts
from still_ray.types import FinishReason, Problem, RolloutRequest, Trajectory, Verdict

BOOTSTRAP_SEED = 42
"""Of every interval over problems, so that the same responses give the same interval."""
EXACT = "exact binomial"
BOOTSTRAP = "bootstrap over problems"
BOUND = "Hoeffding's bound over problems"
QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """The problems of one level or subject. Fields as in `EvaluationFacts`."""

    num_problems: int
    accuracy: float
    ci95: tuple[float, float]
    mean_thought_tokens: float
    num_truncated: int
    verdicts: dict[str, int]


def evaluation_request(
    problem: Problem,
    config: EvaluateConfig,
    indices: Sequence[int],
    *,
    round_number: int,
    form: str = "",
    general: bool = False,
) -> RolloutRequest | None:
    """The request for some samples of a held-out problem, or None for none.

    The seeds follow from the config's seed, the problem and the sample alone, so that every model is asked the same.
    """
    if not indices:
        return None
    return RolloutRequest(
        round=round_number,
        problem=problem,
        sample_indices=tuple(indices),
        seeds=tuple(derived_seed(config.seed, "evaluate", problem.id, index) for index in indices),
        settings=config.sampling,
        form=form,
        general=general,
    )


def summarize(trajectories: Sequence[Trajectory], *, same: Collection[AnswerPair] = ()) -> EvaluationFacts:
    """Summarizes an evaluation.

    Args:
        trajectories: Equally many for each problem.
        same: Wrong answers that a verifier called the same, of those that `open_pairs` names.

    Raises:
        ValueError: There is nothing to summarize, or a problem lacks samples.
    """
    problems = _by_problem(trajectories)
    num_samples = _num_samples(problems)
    correct = [_num_correct(samples) for samples in problems.values()]
    accuracy = _accuracy(correct, num_samples)
    truncated = sum(row.finish_reason is FinishReason.LENGTH for row in trajectories)
    return EvaluationFacts(
        num_problems=len(problems),
        num_correct=sum(correct),
        accuracy=accuracy.value,
        ci95=accuracy.ci95,
        mean_thought_tokens=mean(row.thought_tokens for row in trajectories),
        truncation_rate=truncated / len(trajectories),
        verdicts=_verdicts(trajectories),
        num_samples=num_samples,
        num_responses=len(trajectories),
        num_truncated=truncated,
        ci95_method=_method([count / num_samples for count in correct], num_samples),
        pass_at_k=_pass_at_k(correct, num_samples, accuracy),
        majority=_majority(problems, num_samples, same),
        thought_tokens=_quantiles([row.thought_tokens for row in trajectories]),
    )


def open_pairs(trajectories: Sequence[Trajectory]) -> list[AnswerPair]:
    """The pairs of wrong answers on which the majority of some problem hinges; a verifier has to compare them."""
    problems = _by_problem(trajectories).values()
    several = [samples for samples in problems if len(samples) > 1 and has_votes(samples)]
    return [pair for samples in several for pair in pairs_to_compare(samples)]


def summarize_groups(trajectories: Sequence[Trajectory], groups: Mapping[str, str]) -> dict[str, GroupSummary]:
    """Summaries by group, e.g. by level, in the order of the groups' names; those that are numbers as numbers.

    Args:
        trajectories: Equally many for each problem.
        groups: The group of each problem by id; problems without one are left out.
    """
    members: dict[str, list[Trajectory]] = defaultdict(list)
    for row in trajectories:
        if row.problem_id in groups:
            members[groups[row.problem_id]].append(row)
    ordered = sorted(members, key=lambda name: (not name.isdecimal(), len(name) if name.isdecimal() else 0, name))
    return {name: _group_summary(members[name]) for name in ordered}


def _group_summary(trajectories: Sequence[Trajectory]) -> GroupSummary:
    problems = _by_problem(trajectories)
    accuracy = _accuracy([_num_correct(samples) for samples in problems.values()], _num_samples(problems))
    return GroupSummary(
        num_problems=len(problems),
        accuracy=accuracy.value,
        ci95=accuracy.ci95,
        mean_thought_tokens=mean(row.thought_tokens for row in trajectories),
        num_truncated=sum(row.finish_reason is FinishReason.LENGTH for row in trajectories),
        verdicts=_verdicts(trajectories),
    )


def correct_by_problem(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    """How many samples of each problem are correct."""
    return {problem: _num_correct(samples) for problem, samples in _by_problem(trajectories).items()}


def _by_problem(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Samples of each problem, by id; sorted, so that a bootstrap does not depend on the order of arrival."""
    problems: dict[str, list[Trajectory]] = defaultdict(list)
    for row in sorted(trajectories, key=lambda row: row.key):
        problems[row.problem_id].append(row)
    return dict(problems)


def _num_samples(problems: Mapping[str, Sequence[Trajectory]]) -> int:
    counts = {len(samples) for samples in problems.values()}
    if not counts:
        raise ValueError("no evaluation: no responses")
    if len(counts) > 1:
        raise ValueError(f"no evaluation: problems have {min(counts)} to {max(counts)} samples each")
    return counts.pop()


def _num_correct(samples: Sequence[Trajectory]) -> int:
    return sum(row.verdict is Verdict.CORRECT for row in samples)


def _verdicts(trajectories: Sequence[Trajectory]) -> dict[str, int]:
    counts = Counter(row.verdict for row in trajectories)
    return {verdict.value: counts[verdict] for verdict in Verdict}


def _accuracy(correct: Sequence[int], num_samples: int) -> Estimate:
    if num_samples == 1:
        return Estimate(value=sum(correct) / len(correct), ci95=exact_binomial_interval(sum(correct), len(correct)))
    return interval_over_problems([count / num_samples for count in correct])


def interval_over_problems(values: Sequence[float], *, num_resamples: int = 10_000) -> Estimate:
    """The mean of a share over problems with its 95 % interval.

    The interval is a percentile bootstrap over problems. Where all values are the same, that has no width. Then the
    exact (Clopper-Pearson) interval serves if they are all 0 or all 1, else Hoeffding's bound: for one problem that is
    0 to 1, since one problem says nothing of others.

    Args:
        values: One share in [0, 1] for each problem, e.g. that of its correct responses; at least one.
        num_resamples: Draws of the bootstrap.
    """
    num_problems = len(values)
    if set(values) in ({0.0}, {1.0}):
        return Estimate(value=values[0], ci95=exact_binomial_interval(int(values[0]) * num_problems, num_problems))
    if len(set(values)) == 1:
        return Estimate(value=values[0], ci95=hoeffding_interval(values[0], num_problems))
    return Estimate(
        value=mean(values), ci95=bootstrap_interval(values, seed=BOOTSTRAP_SEED, num_resamples=num_resamples)
    )


def _method(values: Sequence[float], num_samples: int) -> str:
    """How the interval of the accuracy was made."""
    if num_samples == 1 or set(values) in ({0.0}, {1.0}):
        return EXACT
    return BOUND if len(set(values)) == 1 else BOOTSTRAP


def _pass_at_k(correct: Sequence[int], num_samples: int, accuracy: Estimate) -> dict[str, Estimate]:
    """pass@1 is the accuracy, by definition and with the same interval."""
    further = {
        str(k): interval_over_problems([pass_at_k(num_samples, count, k) for count in correct])
        for k in range(2, num_samples + 1)
    }
    return {"1": accuracy, **further}


def _majority(
    problems: Mapping[str, Sequence[Trajectory]], num_samples: int, same: Collection[AnswerPair]
) -> Estimate | None:
    if num_samples == 1 or not all(has_votes(samples) for samples in problems.values()):
        return None
    right = sum(majority_is_correct(samples, same) for samples in problems.values())
    return Estimate(value=right / len(problems), ci95=exact_binomial_interval(right, len(problems)))


def _quantiles(lengths: Sequence[int]) -> dict[str, int]:
    """The least length that so large a share of the thoughts does not exceed."""
    ordered = sorted(lengths)
    return {name: ordered[max(0, math.ceil(share * len(ordered)) - 1)] for name, share in QUANTILES.items()}
