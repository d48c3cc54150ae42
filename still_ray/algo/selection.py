"""Which correct trajectories join the demonstrations.

All strategies see only correct, well-formed, untruncated trajectories, take at most `max_per_problem` of a problem and
`max_examples` in all, and do not depend on the order of their input.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from still_ray.algo.seeds import derived_seed
from still_ray.algo.strategies import STRATEGIES, Choice, TeacherLengths
from still_ray.config import SelectConfig
from still_ray.types import Candidate, FinishReason, TrajectoryKey, Verdict

_JUDGED = (Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNPARSABLE)


def is_usable(candidate: Candidate) -> bool:
    """Whether a trajectory may be learnt from: well-formed and not truncated."""
    return candidate.well_formed and candidate.finish_reason is FinishReason.STOP


def solve_rates(candidates: Iterable[Candidate]) -> dict[str, float]:
    """Share of correct responses among those that got a verdict on their answer, by problem id.

    A timeout or an error says nothing of the response and does not count; a response without an answer is not correct.
    """
    judged: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for row in candidates:
        if row.verdict in _JUDGED:
            judged[row.key.problem_id] += 1
            correct[row.key.problem_id] += row.verdict is Verdict.CORRECT
    return {problem_id: correct[problem_id] / count for problem_id, count in judged.items()}


def select_trajectories(
    candidates: Iterable[Candidate], config: SelectConfig, *, teacher: TeacherLengths, seed: int
) -> list[TrajectoryKey]:
    """Chooses trajectories for SFT.

    Args:
        candidates: The pool, all verdicts.
        config: Strategy and caps.
        teacher: Thought lengths of the demonstrations, for `length_distribution`.
        seed: Decides where the strategy leaves a choice.

    Returns:
        Keys, sorted.
    """
    pool = list(candidates)
    rates = solve_rates(pool)
    choice = Choice(
        rows=_shuffled([row for row in pool if _may_be_taken(row, rates, config)], seed),
        max_per_problem=config.max_per_problem,
        max_examples=config.max_examples,
        teacher=teacher,
        solve_rates=rates,
    )
    return sorted(row.key for row in STRATEGIES[config.strategy].choose(choice))


def _may_be_taken(row: Candidate, rates: dict[str, float], config: SelectConfig) -> bool:
    return (
        row.verdict is Verdict.CORRECT
        and is_usable(row)
        and (config.max_solve_rate is None or rates[row.key.problem_id] <= config.max_solve_rate)
    )


def _shuffled(rows: Sequence[Candidate], seed: int) -> list[Candidate]:
    """The same order for the same rows and seed, whatever order they came in."""
    ordered = sorted(rows, key=lambda row: row.key)
    random.Random(derived_seed(seed, "select")).shuffle(ordered)
    return ordered
