"""Models side by side on benchmarks: one cluster, one set of verifiers, and for each model replicas of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from still_ray.actors.launcher import EngineLauncher, Launcher
from still_ray.actors.session import OUTSIDE_RUNS, Session, SessionActors
from still_ray.algo.placement import NOTHING_KNOWN, AtHand
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.config import Recipe
from still_ray.driver.evaluation import ResponseJournal, evaluate
from still_ray.driver.ports import EvaluateOrder, Progress
from still_ray.facts import EvaluationFacts
from still_ray.store.run_directory import RunDirectory
from still_ray.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class BenchmarkJob:
    """One benchmark for one model.

    Attributes:
        title: What a person is told, e.g. "sft on AIME24, 30 problems".
        path: Its problems, a file that `still_ray.rows` reads.
        ids: Their ids in the order of the file.
        journal: Keeps the responses.
        finished: Takes the responses and their summary at the end.
    """

    title: str
    path: str
    ids: Sequence[str]
    journal: ResponseJournal
    finished: Callable[[list[Trajectory], EvaluationFacts], None]


@dataclass(frozen=True, kw_only=True)
class ModelJob:
    """One model and what it is asked.

    Attributes:
        recipe: Its recipe: prompt, length, sampling, and the resources, which are those of the first job throughout.
        backbone: Model directory, URI or hub id.
        benchmarks: In order.
        at_hand: What its sizes follow from, where the recipe leaves them to "auto".
    """

    recipe: Recipe
    backbone: str
    benchmarks: Sequence[BenchmarkJob]
    at_hand: AtHand = NOTHING_KNOWN


def evaluate_models(
    jobs: Sequence[ModelJob],
    directory: RunDirectory,
    progress: Progress,
    *,
    launcher_of: Callable[[ResolvedRecipe], Launcher] = EngineLauncher,
) -> None:
    """Carries the jobs out, in order.

    Args:
        jobs: At least one.
        directory: Where the logs go.
        progress: Where a person watches.
        launcher_of: Makes what launches the actors of a recipe.

    Raises:
        RunError: A failure policy was exhausted.
    """
    with Session(directory, launcher_of=launcher_of) as session:
        for job in jobs:
            actors = session.serve(job.recipe, job.backbone, progress, at_hand=job.at_hand)
            for benchmark in job.benchmarks:
                _evaluate(job.recipe, benchmark, actors)


def _evaluate(recipe: Recipe, benchmark: BenchmarkJob, actors: SessionActors) -> None:
    actors.monitor.stage_started(OUTSIDE_RUNS, benchmark.title)
    explorer = actors.explorer(recipe.data.model_copy(update={"test": benchmark.path}), benchmark.ids)
    order = EvaluateOrder(stage=OUTSIDE_RUNS, config=recipe.evaluate)
    benchmark.finished(*evaluate(explorer, order, actors.monitor, benchmark.journal))
