"""Which problems a round explores, and which samples are still missing."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

from still_ray.algo.seeds import derived_seed, rollout_seed
from still_ray.config import ExploreConfig
from still_ray.types import Problem, RolloutRequest, SamplingSettings, TrajectoryKey


def choose_problems(
    levels: Mapping[str, int | None], config: ExploreConfig, *, solved: Collection[str], seed: int, round_number: int
) -> list[str]:
    """The ids of the problems that a round explores, sorted.

    Args:
        levels: Level of every problem of the data set by id; None where unknown.
        config: The round's settings: levels, skip_solved, num_problems.
        solved: Ids that earlier rounds answered correctly at least once.
        seed: The run's seed.
        round_number: The round, so that each draws others.
    """
    eligible = sorted(
        problem_id
        for problem_id, level in levels.items()
        if _in_range(level, config.levels) and not (config.skip_solved and problem_id in solved)
    )
    if config.num_problems is None or len(eligible) <= config.num_problems:
        return eligible
    draw = random.Random(derived_seed(seed, "problems", round_number))
    return sorted(draw.sample(eligible, config.num_problems))


def _in_range(level: int | None, levels: tuple[int, int] | None) -> bool:
    return levels is None or (level is not None and levels[0] <= level <= levels[1])


def missing_request(
    problem: Problem, config: ExploreConfig, *, done: Collection[TrajectoryKey], seed: int, round_number: int
) -> RolloutRequest | None:
    """The samples of one problem that are not yet stored, or None when there are none."""
    indices = tuple(
        index
        for index in range(config.samples_per_problem)
        if TrajectoryKey(round_number, problem.id, index) not in done
    )
    if not indices:
        return None
    return RolloutRequest(
        round=round_number,
        problem=problem,
        sample_indices=indices,
        seeds=tuple(rollout_seed(seed, round_number, problem.id, index) for index in indices),
        settings=SamplingSettings(temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_tokens),
    )


def least_loaded(loads: Mapping[str, int], *, weight: int, limit: int) -> str | None:
    """The replica with the fewest samples in flight that has room for `weight` more, or None.

    An idle replica takes any request, even one larger than the limit, or it would never be served.

    Args:
        loads: Samples in flight by replica.
        weight: Samples of the request.
        limit: Most samples in flight at one replica.
    """
    fitting = [(load, name) for name, load in loads.items() if load == 0 or load + weight <= limit]
    return min(fitting)[1] if fitting else None
