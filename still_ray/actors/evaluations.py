"""Models side by side on benchmarks: one cluster, one set of verifiers, and for each model replicas of its own.

consumes     jobs: a model with its recipe, and the benchmarks that it has not finished
produces     judged responses, journalled as they come, and a summary of each benchmark
waits for    the replicas of the present model, then what the pipeline waits for
unblocked by the end of its last benchmark: its replicas are released and those of the next model launched
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from still_ray.actors.launcher import EngineLauncher, Launcher
from still_ray.actors.monitoring.run_monitor import RunMonitor
from still_ray.actors.pool.cluster import Cluster
from still_ray.actors.sampling.explorer import RayExplorer
from still_ray.actors.session import RunInputs, Session, joined
from still_ray.actors.training.live_trainer import LiveTrainer
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.algo.stages import Stage
from still_ray.config import Recipe
from still_ray.driver.evaluation import Journal, evaluate
from still_ray.driver.ports import Data, EvaluateOrder, Progress
from still_ray.facts import EvaluationFacts
from still_ray.store.run_directory import RunDirectory
from still_ray.types import StageKind, Trajectory

STAGE = Stage(kind=StageKind.BACKBONE, round=0, policy_version=0)
"""What a model outside of a run is: version 0, which no trainer has left probes for."""


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
    journal: Journal
    finished: Callable[[list[Trajectory], EvaluationFacts], None]


@dataclass(frozen=True, kw_only=True)
class ModelJob:
    """One model and what it is asked.

    Attributes:
        recipe: Its recipe: prompt, length, sampling, and the resources, which are those of the first job throughout.
        backbone: Model directory, URI or hub id.
        data: A run's files, of which an evaluation needs none but the benchmarks.
        benchmarks: In order.
    """

    recipe: Recipe
    backbone: str
    data: Data
    benchmarks: Sequence[BenchmarkJob]


class _PresentLauncher:
    """The launcher of the model whose turn it is."""

    def __init__(self, recipe: Recipe, cluster: Cluster, launcher_of: Callable[[Recipe, Cluster], Launcher]) -> None:
        self._cluster = cluster
        self._launcher_of = launcher_of
        self._launcher = launcher_of(recipe, cluster)

    def change(self, recipe: Recipe) -> None:
        """Launches for another model from now on."""
        self._launcher = self._launcher_of(recipe, self._cluster)

    def replica(self, name: str, policy: CurrentPolicy) -> Any:
        """See `Launcher`."""
        return self._launcher.replica(name, policy)

    def verifier(self, name: str) -> Any:
        """See `Launcher`."""
        return self._launcher.verifier(name)

    def trainer(self, name: str, directory: RunDirectory, note: Callable[[str], None]) -> LiveTrainer:
        """See `Launcher`."""
        return self._launcher.trainer(name, directory, note)


def evaluate_models(
    jobs: Sequence[ModelJob],
    directory: RunDirectory,
    progress: Progress,
    *,
    launcher_of: Callable[[Recipe, Cluster], Launcher] = EngineLauncher,
) -> None:
    """Carries the jobs out, in order.

    Args:
        jobs: At least one.
        directory: Where the logs go.
        progress: Where a person watches.
        launcher_of: Who plays, for a recipe on a cluster.

    Raises:
        RunError: A failure policy was exhausted.
    """
    first = jobs[0]
    with joined(first.recipe, directory, progress) as (cluster, watch):
        launcher = _PresentLauncher(first.recipe, cluster, launcher_of)
        inputs = RunInputs(recipe=first.recipe, backbone=first.backbone, data=first.data, test_ids=())
        session = Session(inputs, launcher, CurrentPolicy(0, first.backbone), watch)
        sync = session.sync(None, has_gpus=cluster.has_gpus)
        for job in jobs:
            if job is not first:
                session.samplers.release()
                launcher.change(job.recipe)
            watch.stage_started(STAGE, f"start {job.backbone}")
            sync.sync(0, job.backbone)
            for benchmark in job.benchmarks:
                _evaluate(job, benchmark, session, sync, watch)
        session.close()


def _evaluate(job: ModelJob, benchmark: BenchmarkJob, session: Session, sync: PolicySync, watch: RunMonitor) -> None:
    watch.stage_started(STAGE, benchmark.title)
    data = job.recipe.data.model_copy(update={"test": benchmark.path})
    explorer = RayExplorer(session.pipeline(sync), data, test_ids=benchmark.ids, own=job.recipe.verifier.custom)
    order = EvaluateOrder(stage=STAGE, config=job.recipe.evaluate)
    benchmark.finished(*evaluate(explorer, order, watch, benchmark.journal))
