"""How much a run samples, trains and writes: rows, rollouts and tokens of every stage, from stated assumptions."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
from typing import Final

from still_ray.algo.optimizer_steps import num_steps
from still_ray.config import AdaptiveConfig, ExploreConfig, Recipe, TrainingStep
from still_ray.config.methods import Expected


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a recipe cannot say: how large its files are, how long responses become, how often they are right.

    Attributes:
        num_demonstrations: Rows of the demonstrations.
        num_problems: Problems to explore.
        num_test: Held-out problems.
        num_general: General problems, which show forgetting.
        mean_tokens: Mean length of a response, tokens; None: half of the longest.
        solve_rate: Share of a round's problems with a correct response among `samples_per_problem`.
    """

    num_demonstrations: int
    num_problems: int
    num_test: int
    mean_tokens: int | None = None
    solve_rate: float = 0.5
    num_general: int = 0

    def tokens_of(self, longest: int) -> int:
        """Mean tokens of a response that may have `longest`."""
        return min(longest, self.mean_tokens or math.ceil(longest / 2))


ASSUMED: Final = Workload(num_demonstrations=4_900, num_problems=5_000, num_test=728)
"""Sizes of files that are not here. Source: paper, of the demonstrations (3.9k of mathematics and 1k mixed) and of the
held-out problems (MATH-OAI 500, AIME 2024 30, GPQA diamond 198); ours, an assumption, of the problems."""


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """The work of one stage.

    Attributes:
        name: "imitate", "rounds.0.explore", ..., as the recipe calls it.
        num_rollouts: Responses sampled, at most.
        expected_rollouts: The same where `explore.adaptive` stops at solved problems, see `expected_samples`, and where
            `explore.max_sampled_tokens` is spent.
        sampled_tokens: Tokens of these at the mean length.
        num_rows: Rows trained on, at most.
        num_steps: Optimizer steps.
        trained_tokens: Tokens of all passes at the mean length.
        is_evaluation: Whether its rollouts are those of an evaluation, which are no part of the pool.
        beside: Name of the training stage that goes on at the same time; "": none does.
    """

    name: str
    num_rollouts: int = 0
    expected_rollouts: int = 0
    sampled_tokens: int = 0
    num_rows: int = 0
    num_steps: int = 0
    trained_tokens: int = 0
    is_evaluation: bool = False
    beside: str = ""

    @property
    def most_tokens(self) -> int:
        """Tokens of all responses at the mean length, were none of them spared."""
        return self.sampled_tokens * self.num_rollouts // (self.expected_rollouts or self.num_rollouts or 1)

    @property
    def role(self) -> str:
        """The actors whose devices do it: "sampler" or "trainer"."""
        return "trainer" if self.num_rows else "sampler"


def stage_works(recipe: Recipe, workload: Workload) -> tuple[StageWork, ...]:
    """Every stage of a run in order, each training stage with the evaluation that follows it."""
    works = [_evaluation("backbone", recipe, workload)]
    explorations, explored = dict(recipe.explorations), _Explored()
    for number in range(len(recipe.rounds) + 1):
        if number in explorations:
            beside = next((step.where for step in recipe.steps if step.round == number - 1), "")
            work = explored.take(f"rounds.{number - 1}.explore", explorations[number], workload)
            works.append(replace(work, beside=beside if number in recipe.overlapped else ""))
        for step in (step for step in recipe.steps if step.round == number):
            works += [_training(step, explored.expected(workload), workload), _evaluation(step.where, recipe, workload)]
    return tuple(works)


@dataclass
class _Explored:
    """What the rounds so far have explored; a round that does not explore trains on what was there."""

    num_solved: int = 0
    num_solved_so_far: int = 0
    num_rollouts: int = 0
    num_rollouts_so_far: int = 0

    def take(self, name: str, explore: ExploreConfig, workload: Workload) -> StageWork:
        """Counts a round in; returns its work."""
        problems = min(explore.num_problems or workload.num_problems, workload.num_problems)
        self.num_rollouts = problems * explore.samples_per_problem
        self.num_rollouts_so_far += self.num_rollouts
        self.num_solved = math.ceil(problems * workload.solve_rate)
        self.num_solved_so_far += self.num_solved
        expected = _affordable(explore, problems, workload)
        return StageWork(
            name=name,
            num_rollouts=self.num_rollouts,
            expected_rollouts=expected,
            sampled_tokens=expected * workload.tokens_of(explore.longest),
        )

    def expected(self, workload: Workload) -> Expected:
        """The same for a training method."""
        return Expected(num_demonstrations=workload.num_demonstrations, **asdict(self))


def _affordable(explore: ExploreConfig, problems: int, workload: Workload) -> int:
    """Rollouts of a round: those that its problems are expected to want, as far as its budget of tokens goes.

    A budget is spent but for what is less than a wave; the first wave of every problem is sampled whatever it takes.
    """
    expected = math.ceil(problems * expected_samples(explore, workload.solve_rate))
    if explore.max_sampled_tokens is None:
        return expected
    initial = (explore.adaptive or AdaptiveConfig()).initial
    first = problems * min(initial, explore.samples_per_problem)
    return min(expected, max(first, explore.max_sampled_tokens // workload.tokens_of(explore.longest)))


def expected_samples(explore: ExploreConfig, solve_rate: float) -> float:
    """Mean number of samples that a problem gets: all of them, or fewer where waves stop at those that are solved.

    A wave follows while a problem has fewer than `enough_correct` correct samples, as `Allotment` decides. Every sample
    is taken to be correct with the same probability p, where 1 - (1 - p)^samples_per_problem is the solve rate. So
    after n samples a problem goes on with the probability that a binomial variable B(n, p) is below `enough_correct`.

    Source: ours, an assumption, and for `enough_correct: 1` an upper bound: among all ways in which problems can differ
    in difficulty with this solve rate, equal ones go on longest (Jensen: x^(n / N) is concave for n < N).

    Args:
        explore: The round's settings.
        solve_rate: Share of problems with a correct response among `samples_per_problem`.
    """
    cap, waves = explore.samples_per_problem, explore.adaptive
    if waves is None:
        return float(cap)
    right = 1.0 - math.pow(1.0 - solve_rate, 1.0 / cap)
    ends: list[int] = [*range(min(waves.initial, cap), cap, waves.step), cap]
    following = sum(
        (end - before) * _below(waves.enough_correct, before, right) for before, end in itertools.pairwise(ends)
    )
    return ends[0] + following


def _below(enough: int, num_samples: int, right: float) -> float:
    """Probability that fewer than `enough` of the samples are right."""
    return sum(
        math.comb(num_samples, count) * math.pow(right, count) * math.pow(1.0 - right, num_samples - count)
        for count in range(min(enough, num_samples + 1))
    )


def _training(step: TrainingStep, expected: Expected, workload: Workload) -> StageWork:
    settings = step.settings
    num_rows = step.method.expected_rows(settings, expected)
    steps = num_steps(num_rows=num_rows, epochs=settings.epochs, global_batch_size=settings.global_batch_size)
    sequences = steps * settings.global_batch_size * step.method.num_sequences
    return StageWork(
        name=step.where,
        num_rows=num_rows,
        num_steps=steps,
        trained_tokens=sequences * workload.tokens_of(settings.longest),
    )


def _evaluation(of: str, recipe: Recipe, workload: Workload) -> StageWork:
    problems = min(recipe.evaluate.num_problems or workload.num_test, workload.num_test)
    if recipe.data.forgetting is not None:
        problems += min(recipe.data.forgetting.num_problems or workload.num_general, workload.num_general)
    num_rollouts = problems * recipe.evaluate.num_samples
    tokens = num_rollouts * workload.tokens_of(recipe.evaluate.longest)
    return StageWork(
        name=f"evaluate {of}",
        num_rollouts=num_rollouts,
        expected_rollouts=num_rollouts,
        sampled_tokens=tokens,
        is_evaluation=True,
    )
