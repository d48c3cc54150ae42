"""How much a run samples, trains and writes: rows, rollouts and tokens of every stage, from stated assumptions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from still_ray.algo.optimizer_steps import num_steps
from still_ray.config import ExploreConfig, Recipe, TrainingStep
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
        solve_rate: Share of a round's problems with a correct response.
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


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """The work of one stage.

    Attributes:
        name: "imitate", "rounds.0.explore", ..., as the recipe calls it.
        num_rollouts: Responses sampled, at most.
        sampled_tokens: Their tokens at the mean length.
        num_rows: Rows trained on, at most.
        num_steps: Optimizer steps.
        trained_tokens: Tokens of all passes at the mean length.
        is_evaluation: Whether its rollouts are those of an evaluation, which are no part of the pool.
    """

    name: str
    num_rollouts: int = 0
    sampled_tokens: int = 0
    num_rows: int = 0
    num_steps: int = 0
    trained_tokens: int = 0
    is_evaluation: bool = False


def stage_works(recipe: Recipe, workload: Workload) -> tuple[StageWork, ...]:
    """Every stage of a run in order, each training stage with the evaluation that follows it."""
    works = [_evaluation("backbone", recipe, workload)]
    explorations, explored = dict(recipe.explorations), _Explored()
    for number in range(len(recipe.rounds) + 1):
        if number in explorations:
            works.append(explored.take(f"rounds.{number - 1}.explore", explorations[number], workload))
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
        tokens = self.num_rollouts * workload.tokens_of(explore.longest)
        return StageWork(name=name, num_rollouts=self.num_rollouts, sampled_tokens=tokens)

    def expected(self, workload: Workload) -> Expected:
        """The same for a training method."""
        return Expected(num_demonstrations=workload.num_demonstrations, **asdict(self))


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
    return StageWork(name=f"evaluate {of}", num_rollouts=num_rollouts, sampled_tokens=tokens, is_evaluation=True)
