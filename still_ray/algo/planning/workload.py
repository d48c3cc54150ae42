"""How much a run samples, trains and writes: rows, rollouts and tokens of every stage, from stated assumptions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from still_ray.algo.optimizer_steps import num_steps
from still_ray.config import DpoConfig, Recipe, SftConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a recipe cannot say: how large its files are, how long responses become, how often they are right.

    Attributes:
        num_demonstrations: Rows of the demonstrations.
        num_problems: Problems to explore.
        num_test: Held-out problems.
        mean_tokens: Mean length of a response, tokens; None: half of the longest.
        solve_rate: Share of a round's problems with a correct response.
    """

    num_demonstrations: int
    num_problems: int
    num_test: int
    mean_tokens: int | None = None
    solve_rate: float = 0.5

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
    """

    name: str
    num_rollouts: int = 0
    sampled_tokens: int = 0
    num_rows: int = 0
    num_steps: int = 0
    trained_tokens: int = 0


def stage_works(recipe: Recipe, workload: Workload) -> tuple[StageWork, ...]:
    """Every stage of a run in order, each training stage with the evaluation that follows it."""
    works = [_evaluation("backbone", recipe, workload)]
    works += _training("imitate", recipe, recipe.imitate, workload.num_demonstrations, workload)
    explored = 0
    for number, entry in enumerate(recipe.rounds):
        explore = entry.explore
        problems = min(explore.num_problems or workload.num_problems, workload.num_problems)
        rollouts = problems * explore.samples_per_problem
        works.append(
            StageWork(
                name=f"rounds.{number}.explore",
                num_rollouts=rollouts,
                sampled_tokens=rollouts * workload.tokens_of(explore.max_tokens),
            )
        )
        solved = math.ceil(problems * workload.solve_rate)
        explored += solved
        rows = _rows(entry.training, solved, explored, workload)
        works += _training(f"rounds.{number}.{entry.method}", recipe, entry.training, rows, workload)
    return tuple(works)


def _rows(settings: SftConfig | DpoConfig, solved: int, explored: int, workload: Workload) -> int:
    """Rows of a training stage: pairs of the solved problems, or demonstrations and what all rounds solved."""
    if isinstance(settings, DpoConfig):
        pairs = (explored if settings.pairs.rounds == "all" else solved) * settings.pairs.max_per_problem
        return min(pairs, settings.pairs.max_pairs or pairs)
    chosen = explored * settings.select.max_per_problem
    return workload.num_demonstrations + min(chosen, settings.select.max_examples or chosen)


def _training(
    name: str, recipe: Recipe, settings: SftConfig | DpoConfig, num_rows: int, workload: Workload
) -> list[StageWork]:
    steps = num_steps(num_rows=num_rows, epochs=settings.epochs, global_batch_size=settings.global_batch_size)
    sequences = steps * settings.global_batch_size * (2 if isinstance(settings, DpoConfig) else 1)
    trained = StageWork(
        name=name,
        num_rows=num_rows,
        num_steps=steps,
        trained_tokens=sequences * workload.tokens_of(settings.max_length),
    )
    return [trained, _evaluation(name, recipe, workload)]


def _evaluation(of: str, recipe: Recipe, workload: Workload) -> StageWork:
    problems = min(recipe.evaluate.num_problems or workload.num_test, workload.num_test)
    num_rollouts = problems * recipe.evaluate.num_samples
    tokens = num_rollouts * workload.tokens_of(recipe.evaluate.max_tokens)
    return StageWork(name=f"evaluate {of}", num_rollouts=num_rollouts, sampled_tokens=tokens)
