"""A session: the actors of a run, put together around the driver, and taken down at its end."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from urllib.parse import quote

import ray

from still_ray.actors.launcher import EngineLauncher, Launcher
from still_ray.actors.monitoring.run_monitor import RunMonitor
from still_ray.actors.monitoring.status_board import RunStatus, start_board
from still_ray.actors.pool.actor_pool import ActorPool, first_line
from still_ray.actors.pool.cluster import Cluster, connected
from still_ray.actors.pool.failure_message import explained, failure_line
from still_ray.actors.sampling.explorer import RayExplorer
from still_ray.actors.sampling.rollouts import RolloutPipeline
from still_ray.actors.training.device_sharing import SamplersReleased, StartedForEachStage
from still_ray.actors.training.live_trainer import LiveTrainer
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.algo.placement import releases_samplers, resolved, sampler_gpus, uses_gpu
from still_ray.algo.stages import newest_trained, plan_stages
from still_ray.config import Recipe
from still_ray.driver.ports import NO_REPORTER, Data, Ports, Progress, Reporter
from still_ray.driver.rounds import Driver
from still_ray.store.atomic import full_disk_line, is_full_disk
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import InputError, RunError
from still_ray.weight_sync.proof import default_tolerance
from still_ray.weight_sync.transports.exchange import Receivers

_MAX_NAME_CHARS = 120


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A validated recipe with the files it names.

    Attributes:
        recipe: Its paths are resolved.
        backbone: Model directory or hub id of policy version 0.
        data: The run's files.
        test_ids: Ids of the held-out problems, in the order of their file.
    """

    recipe: Recipe
    backbone: str
    data: Data
    test_ids: Sequence[str]


class Session:
    """Replicas and verifiers that live from the first stage to the last, and the trainer beside them."""

    def __init__(self, inputs: RunInputs, launcher: Launcher, policy: CurrentPolicy, watch: RunMonitor) -> None:
        """Launches the actors that the first stage may need; does not wait for them.

        Args:
            inputs: The run's inputs; the recipe's transport is no longer auto.
            launcher: Launches actors.
            policy: What replicas start from; shared with the weight sync.
            watch: Where waiting is noted, and how the pools stand.
        """
        self._inputs = inputs
        self._recipe = inputs.recipe
        self._launcher = launcher
        self._policy = policy
        self._watch = watch
        sampler, failures = self._recipe.sampler, self._recipe.failures
        self.samplers = ActorPool(
            "replica",
            lambda name: launcher.replica(name, policy),
            size=sampler.num_replicas,
            min_ready=sampler.min_replicas,
            max_restarts=failures.max_replica_restarts,
            note=watch.noted,
            on_change=watch.pool,
        )
        self.verifiers = ActorPool(
            "verifier",
            launcher.verifier,
            size=self._recipe.verifier.num_workers,
            max_restarts=failures.max_verifier_restarts,
            note=watch.noted,
            on_change=watch.pool,
        )
        self.verifiers.resume()
        if not releases_samplers(self._recipe):  # else the first weight sync launches them
            self.samplers.resume()

    def trainer(self, directory: RunDirectory) -> LiveTrainer:
        """The trainer group, taking turns with the samplers where the recipe says so."""
        name = train_run_name(self._recipe.name, time.strftime("%Y%m%d-%H%M%S"))
        if self._recipe.placement == "shared":
            start = StartedForEachStage(
                lambda stage: self._launcher.trainer(f"{name}-{stage.name}", directory, self._watch.noted)
            )
            return SamplersReleased(start, self.samplers)
        trainer = self._launcher.trainer(name, directory, self._watch.noted)
        return SamplersReleased(trainer, self.samplers) if releases_samplers(self._recipe) else trainer

    def sync(self, trainer: LiveTrainer | None, *, has_gpus: bool) -> PolicySync:
        """The weight sync of this session."""
        dtype = self._recipe.sampler.dtype
        on_gpu = sampler_gpus(self._recipe, has_gpus=has_gpus) > 0
        effective = dtype if dtype != "auto" else ("bfloat16" if on_gpu else "float32")
        tolerance = self._recipe.sync.tolerance
        return PolicySync(
            self.samplers,
            self._policy,
            self._recipe.sync,
            tolerance=default_tolerance(effective) if tolerance == "auto" else tolerance,
            published=trainer.published if trainer else lambda: None,
            synced=self._watch.synced,
            receivers=Receivers(
                ranks_per_replica=self._recipe.sampler.tensor_parallel_size,
                backend="nccl" if on_gpu and uses_gpu(self._recipe, has_gpus=has_gpus) else "gloo",
            ),
            note=self._watch.noted,
        )

    def explorer(self, sync: PolicySync) -> RayExplorer:
        """The sampling and verifying of this session."""
        recipe, test_ids = self._recipe, self._inputs.test_ids
        return RayExplorer(self.pipeline(sync), recipe.data, test_ids=test_ids, own=recipe.verifier.custom)

    def pipeline(self, sync: PolicySync) -> RolloutPipeline:
        """Replicas and verifiers, connected."""
        sampler = self._recipe.sampler
        return RolloutPipeline(
            samplers=self.samplers,
            verifiers=self.verifiers,
            max_in_flight=int(sampler.max_num_seqs * sampler.max_in_flight_factor),
            max_attempts=self._recipe.failures.max_prompt_attempts,
            admission=sync,
            replica_timeout_s=self._recipe.failures.replica_timeout_s,
        )

    def for_run(self, inputs: RunInputs) -> Session:
        """The same actors for another run; its recipe may differ in nothing that they were launched from."""
        other = copy(self)
        other._inputs, other._recipe = inputs, inputs.recipe
        return other

    def close(self) -> None:
        """Ends the actors."""
        self.samplers.release()
        self.verifiers.release()


def train_run_name(recipe: str, started: str) -> str:
    """The name of a Ray Train run, which is also that of a folder and a tag of Ray's metrics: ASCII, no separators.

    Args:
        recipe: The recipe's name.
        started: When it started; tells runs of the same name apart.
    """
    return f"{quote(recipe, safe=' +=@', errors='replace').lstrip('. ')[:_MAX_NAME_CHARS]}-{started}"


def run(
    inputs: RunInputs,
    directory: RunDirectory,
    progress: Progress,
    *,
    launcher_of: Callable[[Recipe, Cluster], Launcher] = EngineLauncher,
    is_rehearsal: bool = False,
    reporter: Reporter = NO_REPORTER,
) -> None:
    """Runs a recipe on Ray to its end.

    Args:
        inputs: The run's inputs.
        directory: The run directory.
        progress: Where a person watches.
        launcher_of: Who plays, for a recipe on a cluster.
        is_rehearsal: Whether fakes play.
        reporter: Told when a stage is complete.

    Raises:
        RunError: A failure policy was exhausted; the text names Ray's log folder.
    """
    plan = plan_stages(inputs.recipe)
    store = RunStore(directory, plan, is_rehearsal=is_rehearsal)
    newest = newest_trained(plan, store.completed())
    policy = (
        CurrentPolicy(newest.policy_version, store.checkpoint(newest)) if newest else CurrentPolicy(0, inputs.backbone)
    )
    with joined(inputs.recipe, directory, progress) as (cluster, watch):
        inputs = replace(inputs, recipe=resolved(inputs.recipe, has_gpus=cluster.has_gpus))
        session = Session(inputs, launcher_of(inputs.recipe, cluster), policy, watch)
        trainer = session.trainer(directory)
        sync = session.sync(trainer, has_gpus=cluster.has_gpus)
        ports = Ports(
            store=store,
            data=inputs.data,
            explorer=session.explorer(sync),
            trainer=trainer,
            sync=sync,
            progress=watch,
            reporter=reporter,
        )
        Driver(inputs.recipe, ports, backbone=inputs.backbone).run()
        trainer.close()
        session.close()


@contextmanager
def joined(recipe: Recipe, directory: RunDirectory, progress: Progress) -> Iterator[tuple[Cluster, RunMonitor]]:
    """The cluster, announced, and the run's watch; a failure inside becomes the line that the run ends with."""
    with connected(recipe, directory.logs / "ray.log") as cluster:
        if cluster.dashboard:
            progress.noted(f"Ray dashboard: http://{cluster.dashboard}")
        watch = _watch(recipe, directory, progress, cluster)
        try:
            yield cluster, watch
        except InputError:
            raise
        except RunError as error:
            raise explained(error, str(error), stage=watch.stage, logs=cluster.logs) from error
        except ray.exceptions.RayError as error:
            what = f"Ray: {first_line(error)}"
            raise explained(error, what, stage=watch.stage, logs=cluster.logs) from error
        except Exception as error:  # named policy: one line for the person, the rest for whoever mends it
            log = directory.logs / "driver.log"
            with suppress(OSError):  # on a full disk
                log.write_text(traceback.format_exc(), encoding="utf-8")
            what = f"unexpected {type(error).__name__}: {error}"
            if isinstance(error, OSError) and is_full_disk(error):
                what = full_disk_line(error, directory.root)
            raise RunError(failure_line(what, stage=watch.stage, actor=None, log=str(log))) from error


def _watch(recipe: Recipe, directory: RunDirectory, progress: Progress, cluster: Cluster) -> RunMonitor:
    """The run's watch and its status board, which lives as long as the watch does."""
    now = time.time()
    dashboard = f"http://{cluster.dashboard}" if cluster.dashboard else ""
    status = RunStatus(
        name=recipe.name, run_dir=str(directory.root), dashboard=dashboard, started_at=now, updated_at=now
    )
    board = start_board(status)
    return RunMonitor(progress, status, board.post.remote)
