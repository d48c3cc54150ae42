"""A session: the actors of a run, or of several one after another, put together here and taken down at its end.

The runs of an ablation share one session: replicas, verifiers and trainer workers start once, and again only where a
recipe needs others. Models that are evaluated share one as well: each has replicas of its own, the rest stays.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import ray

from still_ray.actors.launcher import EngineLauncher, Launcher
from still_ray.actors.monitoring.run_monitor import RunMonitor
from still_ray.actors.monitoring.status_board import RunStatus, start_board
from still_ray.actors.pool.actor_pool import ActorPool
from still_ray.actors.pool.causes import cause_of
from still_ray.actors.pool.cluster import Cluster, connected
from still_ray.actors.pool.failure_message import explained, failure_line
from still_ray.actors.sampling.explorer import RayExplorer
from still_ray.actors.sampling.rollouts import RolloutPipeline
from still_ray.actors.training.device_sharing import DeviceSharing
from still_ray.actors.training.live_trainer import LiveTrainer, SessionTrainer
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.algo.devices import Devices
from still_ray.algo.placement import NOTHING_KNOWN, AtHand, resolve
from still_ray.algo.planning.bundles import PLACEMENTS, releases_samplers
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.algo.stages import Stage, newest_trained, plan_stages
from still_ray.config import DataConfig, Recipe
from still_ray.driver.ports import NO_REPORTER, Data, Ports, Progress, Reporter
from still_ray.driver.rounds import Driver
from still_ray.location import is_uri
from still_ray.store.atomic import full_disk_line, is_full_disk
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import InputError, RunError, StageKind, SyncReport
from still_ray.weight_sync.transports.exchange import Receivers

LAUNCH_SECTIONS = frozenset({"model", "prompt", "placement", "sampler", "trainer", "verifier", "sync", "failures"})
"""Sections of a recipe that actors are launched from; another value of one of them needs other actors."""

OUTSIDE_RUNS = Stage(kind=StageKind.BACKBONE, round=0, policy_version=0)
"""What a model outside of a run is: version 0, which no trainer has left probes for."""

_MAX_NAME_CHARS = 120


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A validated recipe with the files it names.

    Attributes:
        recipe: Its paths are resolved.
        backbone: Model directory or hub id of policy version 0.
        data: The run's files.
        test_ids: Ids of the held-out problems, in the order of their file.
        command: The command line that resumes the run; "" where there is none.
        at_hand: What its sizes follow from, where the recipe leaves them to "auto".
        baseline: Response format that the backbone is asked for first, see `Driver`.
        forgetting_ids: Ids of the general problems, likewise; () without any.
    """

    recipe: Recipe
    backbone: str
    data: Data
    test_ids: Sequence[str]
    command: str = ""
    at_hand: AtHand = NOTHING_KNOWN
    baseline: str = ""
    forgetting_ids: Sequence[str] = ()


class Session:
    """Runs recipes, or serves models, in turn; leaving it ends the actors, and makes of a failure one line."""

    def __init__(
        self,
        directory: RunDirectory,
        *,
        name: str | None = None,
        launcher_of: Callable[[ResolvedRecipe], Launcher] = EngineLauncher,
    ) -> None:
        """Starts nothing: the first run or model does.

        Args:
            directory: Where the logs and Ray Train's own files go.
            name: What the dashboard and the metrics call a session of several runs; None: by the recipe's name.
            launcher_of: Makes what launches the actors of a recipe.
        """
        self._directory = directory
        self._name = name
        self._launcher_of = launcher_of
        self._launched_from: Mapping[str, Any] = {}
        self._has_gpus = False
        self._actors: SessionActors | None = None
        self._running: RunStore | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Nothing starts before it is needed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the actors and leaves the cluster; notes how a run ended that did not come to its end."""
        ends_early = error is not None or (self._running is not None and self._running.has_begun)
        if self._running is not None and ends_early:
            with suppress(OSError, RunError):  # the run ends for its own reason, which is what is said
                if isinstance(error, Exception):
                    self._running.stop("failed", cause_of(error))
                else:
                    self._running.stop("interrupted")
        self._stack.__exit__(kind, error, trace)

    def run(
        self,
        inputs: RunInputs,
        directory: RunDirectory,
        progress: Progress,
        *,
        is_rehearsal: bool = False,
        reporter: Reporter = NO_REPORTER,
    ) -> None:
        """Runs a recipe to its end.

        Args:
            inputs: The run's inputs.
            directory: The run directory.
            progress: Where a person watches this run.
            is_rehearsal: Whether fakes make it, which state.json then says.
            reporter: Told when a stage is complete.

        Raises:
            RunError: A failure policy was exhausted. The session is of no use afterwards: leave it.
        """
        ports = self.ports(inputs, directory, progress, is_rehearsal=is_rehearsal, reporter=reporter)
        Driver(inputs.recipe, ports, backbone=inputs.backbone, baseline=inputs.baseline).run()
        self._running = None
        if self._actors is not None:
            self._actors.monitor.run_ended()

    def ports(
        self,
        inputs: RunInputs,
        directory: RunDirectory,
        progress: Progress,
        *,
        is_rehearsal: bool = False,
        reporter: Reporter = NO_REPORTER,
    ) -> Ports:
        """What a driver, or a program in its place, works with; actors are launched and not waited for.

        Args:
            inputs: The run's inputs.
            directory: The run directory.
            progress: Where a person watches this run.
            is_rehearsal: Whether fakes make it.
            reporter: Told when a stage is complete.
        """
        plan = plan_stages(inputs.recipe)
        self._running = store = RunStore(directory, plan, is_rehearsal=is_rehearsal, command=inputs.command)
        policy = _newest_policy(store, plan, inputs.backbone)
        actors = self._actors_for(inputs, policy, progress)
        return Ports(
            store=store,
            data=inputs.data,
            explorer=actors.explorer(inputs.recipe.data, inputs.test_ids, inputs.forgetting_ids),
            trainer=actors.trainer,
            sync=actors.sync,
            progress=actors.monitor,
            reporter=reporter,
        )

    def serve(
        self, recipe: Recipe, backbone: str, progress: Progress, *, at_hand: AtHand = NOTHING_KNOWN
    ) -> SessionActors:
        """Has replicas serve a model that belongs to no run; returns the actors that they are among.

        Args:
            recipe: Its prompt, length and sampling; the resources are those of the first model throughout.
            backbone: Model directory, URI or hub id.
            progress: Where a person watches.
            at_hand: What sizes follow from.

        Raises:
            RunError: A failure policy was exhausted.
        """
        if self._actors is None:
            actors = self._open(recipe, CurrentPolicy(0, backbone), progress, at_hand, trains=False)
        else:
            actors = self._actors
            settled = resolve(recipe, has_gpus=self._has_gpus, at_hand=at_hand, trains=False)
            actors.replace_replicas(self._launcher_of(settled))
        actors.monitor.stage_started(OUTSIDE_RUNS, f"start {backbone}")
        actors.sync.sync(0, backbone)
        return actors

    def _actors_for(self, inputs: RunInputs, policy: CurrentPolicy, progress: Progress) -> SessionActors:
        """Actors that fit a run: those of the run before, if these were launched from equal sections."""
        recipe = self._named(inputs.recipe)
        if self._actors is not None and self._launched_from == self._launch_sections(recipe, inputs.at_hand):
            self._actors.begin_next_run(progress, inputs.backbone)
            return self._actors
        self._stack.close()
        self._actors = None
        actors = self._open(recipe, policy, progress, inputs.at_hand)
        self._launched_from = self._launch_sections(recipe, inputs.at_hand)
        actors.trainer.begin_run()
        return actors

    def _launch_sections(self, recipe: Recipe, at_hand: AtHand) -> dict[str, Any]:
        """What actors are launched from: settled, since what one stage needs decides sizes that all share."""
        settled = resolve(recipe, has_gpus=self._has_gpus, at_hand=at_hand)
        return {name: getattr(settled, name) for name in (*LAUNCH_SECTIONS, "name")}

    def _named(self, recipe: Recipe) -> Recipe:
        """Actors are named after the whole; experiment trackers tell runs apart by name, so there each has its own."""
        keeps = self._name is None or recipe.trainer.report_to
        return recipe if keeps else recipe.model_copy(update={"name": self._name})

    def _open(
        self, recipe: Recipe, policy: CurrentPolicy, progress: Progress, at_hand: AtHand, *, trains: bool = True
    ) -> SessionActors:
        """Joins the cluster and launches actors there; does not wait for them."""

        def settled_on(*, has_gpus: bool) -> ResolvedRecipe:
            return resolve(recipe, has_gpus=has_gpus, at_hand=at_hand, trains=trains)

        expected = settled_on(has_gpus=at_hand.machine is not None and at_hand.machine.num_gpus > 0)
        with ExitStack() as stack:
            cluster, monitor = stack.enter_context(_joined(expected, self._directory, progress))
            self._has_gpus = cluster.has_gpus
            settled = settled_on(has_gpus=cluster.has_gpus)
            actors = SessionActors(
                settled, policy, launcher=self._launcher_of(settled), directory=self._directory, monitor=monitor
            )
            self._actors = stack.enter_context(actors)
            self._stack = stack.pop_all()
        return self._actors


class SessionActors:
    """What a session has running: the pools, and the trainer and the weight sync beside them.

    Attributes:
        monitor: Passes on what happens.
        samplers: The replicas.
        verifiers: The verifier workers.
        trainer: The trainer group, started by its `begin_run`.
        sync: Brings the replicas to a version.
    """

    def __init__(
        self,
        recipe: ResolvedRecipe,
        policy: CurrentPolicy,
        *,
        launcher: Launcher,
        directory: RunDirectory,
        monitor: RunMonitor,
    ) -> None:
        """Launches the actors that the first stage may need; does not wait for them.

        Args:
            recipe: What they are launched from.
            policy: What replicas start from; from here on that of the weight sync.
            launcher: Launches them.
            directory: Where Ray Train's own files go.
            monitor: Where waiting is noted, and how the pools stand.
        """
        self._recipe = recipe
        self._policy = policy
        self._launcher = launcher
        self._directory = directory
        self.monitor = monitor
        self.samplers = self._pool(
            "replica",
            lambda name: self._launcher.replica(name, policy),
            size=recipe.sampler.num_replicas,
            min_ready=recipe.sampler.min_replicas,
            max_restarts=recipe.failures.max_replica_restarts,
        )
        self.verifiers = self._pool(
            "verifier",
            self._launcher.verifier,
            size=recipe.verifier.num_workers,
            max_restarts=recipe.failures.max_verifier_restarts,
        )
        releases, rule = releases_samplers(recipe), PLACEMENTS[recipe.placement]
        self.trainer = SessionTrainer(
            self._trainer_group,
            each_stage=rule.takes_turns,
            make_room=self.samplers.release if releases else None,
            sharing=DeviceSharing(recipe, self.samplers) if rule.sleeps else None,
            max_moves=recipe.failures.max_trainer_restarts,
        )
        self.sync = self._weight_sync()
        self.verifiers.resume()
        if not releases:  # else the first weight sync launches them
            self.samplers.resume()

    def __enter__(self) -> Self:
        """They were launched with the object."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the actors; after a failure they end with the driver's connection, which waits for nothing."""
        if kind is None:
            self.trainer.close()
            self.samplers.release()
            self.verifiers.release()

    def begin_next_run(self, progress: Progress, backbone: str) -> None:
        """Goes over to another run, whose recipe differs in nothing that the actors were launched from.

        Policy versions are counted from 0 in every run, so version 2 of one run is another model than version 2 of the
        next: what the trainer still holds is not offered, and no replica goes on with the version it serves.

        Args:
            progress: Where a person watches that run.
            backbone: Its model.
        """
        self.monitor.pass_on_to(progress)
        self.samplers.begin_run()
        self.verifiers.begin_run()
        self.trainer.begin_run()
        self.sync = self._weight_sync()
        forget_version(self._recipe, backbone, self.samplers, self.sync)

    def replace_replicas(self, launcher: Launcher) -> None:
        """Ends the replicas; the next weight sync launches as many by another launcher."""
        self.samplers.release()
        self._launcher = launcher

    def explorer(self, data: DataConfig, test_ids: Sequence[str], forgetting_ids: Sequence[str] = ()) -> RayExplorer:
        """Replicas and verifiers, connected to files.

        Args:
            data: Resolved paths of problems, test set and general problems.
            test_ids: Ids of the test set in the order of its file.
            forgetting_ids: Ids of the general problems likewise.
        """
        sampler, failures = self._recipe.sampler, self._recipe.failures
        pipeline = RolloutPipeline(
            samplers=self.samplers,
            verifiers=self.verifiers,
            max_in_flight=int(sampler.max_num_seqs * sampler.max_in_flight_factor),
            max_attempts=failures.max_prompt_attempts,
            admission=self.sync,
            replica_timeout_s=failures.replica_timeout_s,
            doing=self.monitor.doing,
        )
        own = self._recipe.verifier.custom
        return RayExplorer(pipeline, data, test_ids=test_ids, forgetting_ids=forgetting_ids, own=own)

    def _pool(
        self, kind: str, launch: Callable[[str], Any], *, size: int, max_restarts: int, min_ready: int | None = None
    ) -> ActorPool:
        return ActorPool(
            kind,
            launch,
            size=size,
            min_ready=min_ready,
            max_restarts=max_restarts,
            note=self.monitor.noted,
            doing=self.monitor.doing,
            on_change=self.monitor.pool,
        )

    def _synced(self, report: SyncReport) -> None:
        self.monitor.synced(report)
        self.trainer.replicas_are_up()

    def _trainer_group(self, suffix: str, devices: Devices) -> LiveTrainer:
        name = train_run_name(self._recipe.name, time.strftime("%Y%m%d-%H%M%S"))
        return self._launcher.trainer(f"{name}{suffix}", self._directory, devices)

    def _weight_sync(self) -> PolicySync:
        """A weight sync that knows nothing of earlier versions."""
        recipe = self._recipe
        return PolicySync(
            self.samplers,
            self._policy,
            recipe.sync,
            tolerance=recipe.sync.tolerance,
            published=self.trainer.published,
            synced=self._synced,
            receivers=Receivers(
                ranks_per_replica=recipe.sampler.tensor_parallel_size,
                backend="nccl" if recipe.sampler.on_gpu and recipe.trainer.use_gpu else "gloo",
            ),
            note=self.monitor.noted,
            doing=self.monitor.doing,
        )


def forget_version(recipe: ResolvedRecipe, backbone: str, samplers: ActorPool, sync: PolicySync) -> None:
    """Makes sure that no replica takes the version it serves for the next run's: it goes back to the backbone, or ends.

    Args:
        recipe: What the replicas were launched from.
        backbone: The next run's model.
        samplers: The replicas.
        sync: The next run's weight sync.
    """
    in_folder = is_uri(backbone) or Path(backbone).is_dir()
    if in_folder and not releases_samplers(recipe):
        sync.sync(0, backbone)
    else:  # a hub id has no folder to load in place from; the next sync launches them anew
        samplers.release()


def train_run_name(recipe: str, started: str) -> str:
    """The name of a Ray Train run, which is also that of a folder and a tag of Ray's metrics: ASCII, no separators.

    Args:
        recipe: The recipe's name.
        started: When it started; tells runs of the same name apart.
    """
    return f"{quote(recipe, safe=' +=@', errors='replace').lstrip('. ')[:_MAX_NAME_CHARS]}-{started}"


def _newest_policy(store: RunStore, plan: tuple[Stage, ...], backbone: str) -> CurrentPolicy:
    """What replicas of a run start from: the version of its last complete training stage."""
    newest = newest_trained(plan, store.completed())
    return CurrentPolicy(newest.policy_version, store.checkpoint(newest)) if newest else CurrentPolicy(0, backbone)


@contextmanager
def _joined(
    recipe: ResolvedRecipe, directory: RunDirectory, progress: Progress
) -> Iterator[tuple[Cluster, RunMonitor]]:
    """The cluster, announced, and the run's monitor; a failure inside becomes the line that the run ends with."""
    progress.doing("starting Ray")
    with connected(recipe, directory.logs / "ray.log") as cluster:
        if cluster.dashboard:
            progress.noted(f"Ray dashboard: http://{cluster.dashboard}")
        monitor = _monitor(recipe, directory, progress, cluster)
        try:
            yield cluster, monitor
        except InputError:
            raise
        except RunError as error:
            raise explained(error, str(error), stage=monitor.stage, logs=cluster.logs) from error
        except ray.exceptions.RayError as error:
            what = f"Ray: {cause_of(error)}"
            raise explained(error, what, stage=monitor.stage, logs=cluster.logs) from error
        except Exception as error:  # named policy: one line for the person, the rest for whoever mends it
            log = directory.logs / "driver.log"
            with suppress(OSError):  # on a full disk
                log.write_text(traceback.format_exc(), encoding="utf-8")
            what = f"unexpected {type(error).__name__}: {error}"
            if isinstance(error, OSError) and is_full_disk(error):
                what = full_disk_line(error, directory.root)
            raise RunError(failure_line(what, stage=monitor.stage, actor=None, log=str(log))) from error


def _monitor(recipe: Recipe, directory: RunDirectory, progress: Progress, cluster: Cluster) -> RunMonitor:
    """The run's monitor and its status board, which lives as long as the monitor does."""
    now = time.time()
    dashboard = f"http://{cluster.dashboard}" if cluster.dashboard else ""
    status = RunStatus(
        name=recipe.name, run_dir=str(directory.root), dashboard=dashboard, started_at=now, updated_at=now
    )
    board = start_board(status)
    return RunMonitor(progress, status, board.post.remote)
