"""Several runs one after another on the same actors: replicas, verifiers and trainer workers start once.

consumes     the inputs of a run, one run at a time
produces     its run directory, as `still_ray.actors.session.run` does
waits for    the run
unblocked by its end

Policy versions are counted from 0 in every run, so version 2 of one run is another model than version 2 of the next.
Between two runs the replicas therefore go back to the backbone, and what the trainer still holds is not offered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from still_ray.actors.launcher import EngineLauncher, Launcher
from still_ray.actors.monitoring.run_monitor import RunMonitor
from still_ray.actors.pool.cluster import Cluster
from still_ray.actors.session import RunInputs, Session, joined
from still_ray.actors.training.live_trainer import LiveTrainer
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.algo.placement import releases_samplers, resolved
from still_ray.algo.stages import Stage, newest_trained, plan_stages
from still_ray.config import Recipe
from still_ray.driver.ports import Ports, Progress, TrainOrder
from still_ray.driver.rounds import Driver
from still_ray.location import is_uri
from still_ray.store.policy import read_policy_record
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import Event, TrainProgress, TrainResult
from still_ray.weight_sync.transports.exchange import PublishedWeights

KEPT = frozenset({"model", "prompt", "placement", "sampler", "trainer", "verifier", "sync", "failures"})
"""Sections that actors are launched from; another value of one of them needs other actors."""


@dataclass(frozen=True, kw_only=True)
class _Live:
    """What is up.

    Attributes:
        built_from: The sections that it was launched from.
        stack: Leaves the cluster.
        cluster: Where it runs.
        watch: Passes on what happens.
        session: The actors.
        trainer: The trainer group.
        policy: What a new replica starts from.
    """

    built_from: Mapping[str, Any]
    stack: ExitStack
    cluster: Cluster
    watch: RunMonitor
    session: Session
    trainer: LiveTrainer
    policy: CurrentPolicy


class SharedSession:
    """Runs recipes in turn; actors are launched again only where a recipe needs others."""

    def __init__(
        self, directory: RunDirectory, *, name: str, launcher_of: Callable[[Recipe, Cluster], Launcher] = EngineLauncher
    ) -> None:
        """Starts nothing yet.

        Args:
            directory: Where the logs and Ray Train's own files of all runs go.
            name: What the dashboard and the metrics call all of this.
            launcher_of: Who plays, for a recipe on a cluster.
        """
        self._directory = directory
        self._name = name
        self._launcher_of = launcher_of
        self._relay = _Relay()
        self._live: _Live | None = None

    def __enter__(self) -> Self:
        """Nothing starts before the first run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the actors and leaves the cluster; a failure becomes the line that a run ends with."""
        live, self._live = self._live, None
        if live is None:
            return
        if error is None:
            _close(live)
        else:
            live.stack.__exit__(kind, error, trace)

    def run(self, inputs: RunInputs, directory: RunDirectory, progress: Progress) -> None:
        """Runs a recipe to its end.

        Args:
            inputs: The run's inputs.
            directory: Its run directory.
            progress: Where a person watches this run.

        Raises:
            RunError: A failure policy was exhausted. The session is of no use afterwards: leave it.
        """
        self._relay.target = progress
        live, is_new = self._fitting(inputs, directory)
        for pool in (live.session.samplers, live.session.verifiers):
            pool.begin_run()
        inputs = replace(inputs, recipe=resolved(inputs.recipe, has_gpus=live.cluster.has_gpus))
        session = live.session.for_run(inputs)
        trainer = _OfOneRun(live.trainer)
        sync = session.sync(trainer, has_gpus=live.cluster.has_gpus)
        if not is_new:
            _forget(inputs, session, sync)
        ports = Ports(
            store=RunStore(directory, plan_stages(inputs.recipe)),
            data=inputs.data,
            explorer=session.explorer(sync),
            trainer=trainer,
            sync=sync,
            progress=live.watch,
        )
        Driver(inputs.recipe, ports, backbone=inputs.backbone).run()
        live.watch.run_ended()

    def _fitting(self, inputs: RunInputs, directory: RunDirectory) -> tuple[_Live, bool]:
        """Actors that fit a run, and whether they are new."""
        inputs = replace(inputs, recipe=self._named(inputs.recipe))
        wanted = inputs.recipe.model_dump(include={*KEPT, "name"})
        if self._live is not None and self._live.built_from == wanted:
            return self._live, False
        if self._live is not None:
            live, self._live = self._live, None
            _close(live)
        self._live = self._launched(inputs, directory, wanted)
        return self._live, True

    def _named(self, recipe: Recipe) -> Recipe:
        """Actors are named after the whole; experiment trackers tell runs apart by name, so there each has its own."""
        return recipe if recipe.trainer.report_to else recipe.model_copy(update={"name": self._name})

    def _launched(self, inputs: RunInputs, directory: RunDirectory, built_from: Mapping[str, Any]) -> _Live:
        plan = plan_stages(inputs.recipe)
        store = RunStore(directory, plan)
        newest = newest_trained(plan, store.completed())
        version, checkpoint = (newest.policy_version, store.checkpoint(newest)) if newest else (0, inputs.backbone)
        policy = CurrentPolicy(version, checkpoint)
        with ExitStack() as stack:
            cluster, watch = stack.enter_context(joined(inputs.recipe, self._directory, self._relay))
            inputs = replace(inputs, recipe=resolved(inputs.recipe, has_gpus=cluster.has_gpus))
            session = Session(inputs, self._launcher_of(inputs.recipe, cluster), policy, watch)
            trainer = session.trainer(self._directory)
            return _Live(
                built_from=built_from,
                stack=stack.pop_all(),
                cluster=cluster,
                watch=watch,
                session=session,
                trainer=trainer,
                policy=policy,
            )


def _close(live: _Live) -> None:
    live.trainer.close()
    live.session.close()
    live.stack.close()


def _forget(inputs: RunInputs, session: Session, sync: PolicySync) -> None:
    """Makes sure that no replica takes the version it serves for the next run's."""
    in_folder = is_uri(inputs.backbone) or Path(inputs.backbone).is_dir()
    if in_folder and not releases_samplers(inputs.recipe):
        sync.sync(0, inputs.backbone)
    else:  # a hub id has no folder to load in place from; the next sync launches them anew
        session.samplers.release()


class _OfOneRun:
    """The trainer group in one run: what it still holds of another is not offered."""

    def __init__(self, inner: LiveTrainer) -> None:
        self._inner = inner
        self._has_trained = False

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        is_done = read_policy_record(order.checkpoint) is not None
        result = self._inner.train(order, progress=progress)
        self._has_trained = self._has_trained or not is_done
        return result

    def published(self) -> PublishedWeights | None:
        """See `LiveTrainer`."""
        return self._inner.published() if self._has_trained else None

    def close(self) -> None:
        """The group goes on: the next run needs it."""


class _Relay:
    """The progress of whichever run is on."""

    target: Progress

    def stage_started(self, stage: Stage, title: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.target.stage_started(stage, title)

    def advanced(self, done: float, total: float, facts: Mapping[str, str]) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.target.advanced(done, total, facts)

    def trained(self, stage: Stage, report: TrainProgress) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.target.trained(stage, report)

    def event(self, event: Event) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.target.event(event)

    def noted(self, text: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.target.noted(text)
