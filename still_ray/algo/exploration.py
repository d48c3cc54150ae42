"""Which problems a round explores, and how many samples each of them gets."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

from still_ray.algo.seeds import derived_seed, rollout_seed
from still_ray.config import AdaptiveConfig, ExploreConfig
from still_ray.facts import BudgetFacts
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

    @property
    def decides_together(self) -> bool:
        """Whether further waves are decided for all problems at once, when everything wanted before is judged."""
        return False

    def record(self, key: TrajectoryKey, verdict: Verdict, *, num_tokens: int = 0) -> None:
        """Takes a verdict in, and how long its response was."""
        judged = self._judged[key.problem_id]
        judged[key.sample_index] = verdict is Verdict.CORRECT
        saved = self._cap - len(judged) if not self.wanted(key.problem_id) else 0
        self._num_saved += saved - self._saved.get(key.problem_id, 0)
        self._saved[key.problem_id] = saved

    def wanted(self, problem_id: str) -> tuple[int, ...]:
        """Sample indices that are to be sampled now, ascending; empty when the problem is done or waits for a wave."""
        judged = self._judged.get(problem_id, {})
        return tuple(index for index in range(self._end_of(problem_id)) if index not in judged)

    def _end_of(self, problem_id: str) -> int:
        """The end of the present wave: every sample below it is wanted."""
        judged = self._judged.get(problem_id, {})
        if self._adaptive is None:
            return self._cap
        end = min(self._adaptive.initial, self._cap)
        while end < self._cap and all(index in judged for index in range(end)):
            if sum(judged[index] for index in range(end)) >= self._adaptive.enough_correct:
                return end
            end = min(end + self._adaptive.step, self._cap)
        return end


class BudgetedAllotment(Allotment):
    """An allotment that spends `max_sampled_tokens` where the next verdicts are least certain.

    Samples come in generations. The first is a wave of every problem. Once a generation is judged as a whole, what its
    responses took is counted, and the next one is decided: a wave for each open problem, by `disagreement`, as long as
    the budget is expected to last at the mean length so far. So what is sampled follows from the verdicts and the
    lengths alone, never on the order in which they arrive or on where a run was resumed. No response is cut: the first
    generation may go over the budget, and so may the last if its responses are longer than those before.
    """

    def __init__(
        self,
        config: ExploreConfig,
        problem_ids: Sequence[str],
        stored: Mapping[TrajectoryKey, Verdict],
        num_tokens: Mapping[TrajectoryKey, int],
    ) -> None:
        """Takes up a round.

        Args:
            config: The round's settings: samples_per_problem, adaptive, max_sampled_tokens.
            problem_ids: All problems of the round.
            stored: What is already there of the round.
            num_tokens: Tokens of what is there.
        """
        assert config.max_sampled_tokens is not None
        super().__init__(config, {})
        waves = config.adaptive or AdaptiveConfig()
        self._budget = config.max_sampled_tokens
        self._step = waves.step
        self._enough = config.adaptive.enough_correct if config.adaptive else self._cap + 1
        self._ends = dict.fromkeys(problem_ids, min(waves.initial, self._cap))
        self._num_tokens = dict(num_tokens)
        for key, verdict in stored.items():
            self._judged[key.problem_id][key.sample_index] = verdict is Verdict.CORRECT
        self._num_missing = sum(len(self.wanted(problem_id)) for problem_id in problem_ids)
        self._num_saved = sum(self._cap - end for end in self._ends.values())
        self._decide()

    @property
    def num_saved(self) -> int:
        """Samples below the cap that are not wanted so far."""
        return self._num_saved

    def facts(self) -> BudgetFacts:
        """What became of the budget so far."""
        return BudgetFacts(
            max_sampled_tokens=self._budget,
            num_sampled_tokens=sum(self._num_tokens.values()),
            num_unaffordable=len(self._open()),
        )

    @property
    def decides_together(self) -> bool:
        """See `Allotment`."""
        return True

    def record(self, key: TrajectoryKey, verdict: Verdict, *, num_tokens: int = 0) -> None:
        """Takes a verdict in, and how long its response was."""
        judged = self._judged[key.problem_id]
        is_awaited = key.sample_index not in judged and key.sample_index < self._ends.get(key.problem_id, 0)
        judged[key.sample_index] = verdict is Verdict.CORRECT
        self._num_tokens[key] = num_tokens
        self._num_missing -= is_awaited
        self._decide()

    def _end_of(self, problem_id: str) -> int:
        return self._ends.get(problem_id, 0)

    def _decide(self) -> None:
        """Goes on to the first generation of which something is missing, or to the end of the budget."""
        while not self._num_missing and self._extend():
            self._num_missing = sum(len(self.wanted(problem_id)) for problem_id in self._ends)

    def _extend(self) -> bool:
        """Decides another generation; whether there is one."""
        within = [
            num_tokens
            for key, num_tokens in self._num_tokens.items()
            if key.sample_index < self._ends.get(key.problem_id, 0)
        ]
        left = float(self._budget - sum(within))
        mean = sum(within) / max(len(within), 1)
        found = False
        for problem_id in self._open():
            end = min(self._ends[problem_id] + self._step, self._cap)
            left -= (end - self._ends[problem_id]) * mean
            if left < 0:
                break
            self._num_saved -= end - self._ends[problem_id]
            self._ends[problem_id], found = end, True
        return found

    def _open(self) -> list[str]:
        """Problems that may get another wave, the most informative first; of equals, an arbitrary fixed order."""
        ranked = []
        for problem_id, end in self._ends.items():
            num_correct = sum(self._judged[problem_id][index] for index in range(end))
            if end < self._cap and num_correct < self._enough:
                value = disagreement(num_correct, end)
                ranked.append((-value, num_correct, derived_seed("budget", problem_id), problem_id))
        return [problem_id for *_, problem_id in sorted(ranked)]


def disagreement(num_correct: int, num_samples: int) -> float:
    """Probability that of two further samples of a problem one is correct and one is not.

    Under a uniform prior of its solve rate p this is 2 E[p (1 - p)] = 2 a b / ((a + b) (a + b + 1)) with a =
    `num_correct` + 1 and b = `num_samples` - `num_correct` + 1. Such samples are what is learnt from: a first correct
    response, or a pair. Of problems with equally many samples, one that is sometimes solved comes before one that never
    is; one that always is has the same value, and `BudgetedAllotment` puts it last.

    Source: ours; p (1 - p), the variance of a verdict, is the usual measure of what a problem has to teach.
    """
    right, wrong = num_correct + 1, num_samples - num_correct + 1
    return 2 * right * wrong / ((right + wrong) * (right + wrong + 1))


def allotment_of(
    config: ExploreConfig,
    problem_ids: Sequence[str],
    stored: Mapping[TrajectoryKey, Verdict],
    num_tokens: Callable[[], Mapping[TrajectoryKey, int]],
) -> Allotment:
    """The allotment that a round's settings ask for; `num_tokens` is asked for what is stored where a budget counts."""
    if config.max_sampled_tokens is None:
        return Allotment(config, stored)
    return BudgetedAllotment(config, problem_ids, stored, num_tokens())


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
    """The replica with the fewest samples in flight that has room for half of `weight` more, or None.

    A request comes as a whole. With room for half of it, a replica is now short of work by half a request and now has
    half a request waiting: so it is busy on average, and has little to itself when a round ends. An idle one takes any
    request, or the largest would never be served.

    Args:
        loads: Samples in flight by replica.
        weight: Samples of the request.
        limit: Samples in flight at one replica that keep it busy.
    """
    fitting = [(load, name) for name, load in loads.items() if load == 0 or load + (weight + 1) // 2 <= limit]
    return min(fitting)[1] if fitting else None
