"""Which problems a round explores, and how many samples each of them gets."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from still_ray.algo.seeds import derived_seed, rollout_seed
from still_ray.config import ExploreConfig
from still_ray.types import Problem, RolloutRequest, SamplingSettings, TrajectoryKey, Verdict


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


class Allotment:
    """Which samples the problems of a round still want, decided from the verdicts so far.

    Without `adaptive` every problem wants all its samples at once. With it, samples come in waves: `initial`, then
    `step` at a time. Only a wave that is judged as a whole decides whether there is a next one, so the samples of a
    problem depend on its verdicts alone, never on the order in which they arrive or on where a run was resumed.
    """

    def __init__(self, config: ExploreConfig, stored: Mapping[TrajectoryKey, Verdict]) -> None:
        """Takes up a round.

        Args:
            config: The round's settings: samples_per_problem, adaptive.
            stored: What is already there of the round.
        """
        self._cap = config.samples_per_problem
        self._adaptive = config.adaptive
        self._judged: dict[str, dict[int, bool]] = defaultdict(dict)
        self._saved: dict[str, int] = {}
        self._num_saved = 0
        for key, verdict in stored.items():
            self.record(key, verdict)

    @property
    def num_saved(self) -> int:
        """Samples below the cap that problems with enough correct ones do without, so far."""
        return self._num_saved

    def record(self, key: TrajectoryKey, verdict: Verdict) -> None:
        """Takes a verdict in."""
        judged = self._judged[key.problem_id]
        judged[key.sample_index] = verdict is Verdict.CORRECT
        saved = self._cap - len(judged) if not self.wanted(key.problem_id) else 0
        self._num_saved += saved - self._saved.get(key.problem_id, 0)
        self._saved[key.problem_id] = saved

    def wanted(self, problem_id: str) -> tuple[int, ...]:
        """Sample indices that are to be sampled now, ascending; empty when the problem is done or waits for a wave."""
        judged = self._judged.get(problem_id, {})
        return tuple(index for index in range(self._end(judged)) if index not in judged)

    def _end(self, judged: Mapping[int, bool]) -> int:
        """The end of the present wave: every sample below it is wanted."""
        if self._adaptive is None:
            return self._cap
        end = min(self._adaptive.initial, self._cap)
        while end < self._cap and all(index in judged for index in range(end)):
            if sum(judged[index] for index in range(end)) >= self._adaptive.enough_correct:
                return end
            end = min(end + self._adaptive.step, self._cap)
        return end


def rollout_request(
    problem: Problem, config: ExploreConfig, indices: Sequence[int], *, seed: int, round_number: int
) -> RolloutRequest | None:
    """The request for some samples of a problem, or None for none."""
    if not indices:
        return None
    return RolloutRequest(
        round=round_number,
        problem=problem,
        sample_indices=tuple(indices),
        seeds=tuple(rollout_seed(seed, round_number, problem.id, index) for index in indices),
        settings=SamplingSettings(temperature=config.temperature, top_p=config.top_p, max_tokens=config.longest),
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
