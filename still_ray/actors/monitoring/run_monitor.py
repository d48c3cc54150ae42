"""Watching a run from outside: what the driver reports, as metrics and on the run's status board.

A status is posted at most every second.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec

from still_ray.actors.monitoring import metrics
from still_ray.actors.monitoring.status_board import RunStatus
from still_ray.actors.pool.actor_pool import PoolCounts
from still_ray.algo.stages import Stage
from still_ray.driver.ports import Progress
from still_ray.types import ACTORS_LOST, Event, SyncReport, TrainProgress

POST_INTERVAL_S = 1.0
"""Least time between two posts of progress; a new stage, a note or a lost actor is posted at once."""

GAUGES = {
    "train/loss": metrics.LOSS,
    "train/learning_rate": metrics.LEARNING_RATE,
    "train/share_changed": metrics.WEIGHTS_CHANGED,
    "train/tokens_per_s": metrics.TRAINED_TOKENS_PER_SECOND,
    "train/all_gather_bytes_per_s": metrics.ALL_GATHER_RATE,
    "train/communication_s_per_step": metrics.STEP_COMMUNICATION,
    "evaluate/accuracy": metrics.ACCURACY,
    "evaluate/general_accuracy": metrics.GENERAL_ACCURACY,
    "stage/seconds": metrics.STAGE_SECONDS,
}
"""Events of the driver that are metrics as they are."""
NOTHING_DONE: Mapping[str, Any] = {"done": 0.0, "total": 0.0, "facts": {}, "training": None, "doing": "", "beside": ""}
"""Fields of a status where an activity begins."""

_Arguments = ParamSpec("_Arguments")


def _one_at_a_time(
    method: Callable[Concatenate[RunMonitor, _Arguments], None],
) -> Callable[Concatenate[RunMonitor, _Arguments], None]:
    """Keeps calls of a monitor apart: an exploration beside a training stage reports from a thread of its own."""

    @functools.wraps(method)
    def locked(self: RunMonitor, /, *arguments: _Arguments.args, **options: _Arguments.kwargs) -> None:
        with self.lock:
            method(self, *arguments, **options)

    return locked


class RunMonitor:
    """The driver's `Progress` that others can watch too: it passes everything on to the one inside."""

    def __init__(
        self,
        inner: Progress,
        status: RunStatus,
        post: Callable[[RunStatus], Any],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Posts nothing yet.

        Args:
            inner: Where the person at the terminal watches.
            status: Name, run directory, dashboard and start of the run.
            post: Takes the newest status; must not wait.
            clock: Unix time.
        """
        self._inner = inner
        self._status = status
        self._post = post
        self._clock = clock
        self._metrics = metrics.MetricsRecorder(status.name)
        self.lock = threading.RLock()

    @property
    def stage(self) -> str:
        """Name of the present stage; "" before the first."""
        return self._status.stage

    @_one_at_a_time
    def stage_started(self, stage: Stage, title: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self._inner.stage_started(stage, title)
        if self._status.stage:
            self._metrics.set(metrics.STAGE, 0, stage=self._status.stage)
        self._metrics.set(metrics.STAGE, 1, stage=stage.name)
        self._metrics.set(metrics.ROUND, stage.round)
        self._update(at_once=True, stage=stage.name, round=stage.round, activity=title, **NOTHING_DONE)

    @_one_at_a_time
    def pass_on_to(self, progress: Progress) -> None:
        """Passes everything on to the progress of another run from here on."""
        self._inner = progress

    @_one_at_a_time
    def run_ended(self) -> None:
        """No stage is on any more: what fails before the next run's first stage is none of this run's."""
        if self._status.stage:
            self._metrics.set(metrics.STAGE, 0, stage=self._status.stage)
        self._update(at_once=True, stage="", activity="", **NOTHING_DONE)

    @_one_at_a_time
    def doing(self, what: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self._inner.doing(what)
        self._update(at_once=True, doing=what)

    @_one_at_a_time
    def advanced(self, done: float, total: float, facts: Mapping[str, str], *, beside: Stage | None = None) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self._inner.advanced(done, total, facts, beside=beside)
        if total:
            self._metrics.set(metrics.PROGRESS, done / total, stage=beside.name if beside else self._status.stage)
        if beside is not None:
            text = ", ".join(f"{name} {value}" for name, value in facts.items())
            self._update(at_once=done >= total, beside=f"{beside.name}: {text}" if done < total else "")
        else:
            self._update(at_once=done >= total, done=done, total=total, facts=dict(facts))

    @_one_at_a_time
    def trained(self, stage: Stage, report: TrainProgress) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self._inner.trained(stage, report)
        for event in report.events(stage.name):
            self._gauge(event)
        step, total = report.step, report.total_steps
        self._metrics.set(metrics.PROGRESS, step / total, stage=stage.name)
        self._update(at_once=step == total, done=step, total=total, facts={"step": f"{step}/{total}"}, training=report)

    def _gauge(self, event: Event) -> None:
        if gauge := GAUGES.get(event.name):
            self._metrics.set(gauge, event.value, stage=event.labels["stage"])

    @_one_at_a_time
    def event(self, event: Event) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self._inner.event(event)
        self._gauge(event)

    @_one_at_a_time
    def noted(self, text: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self._inner.noted(text)
        self._update(at_once=True, note=text)

    @_one_at_a_time
    def pool(self, kind: str, counts: PoolCounts) -> None:
        """Takes in how a pool stands."""
        before = self._status.pools.get(kind, PoolCounts())
        self._metrics.set(metrics.ACTORS, counts.ready, pool=kind, state="ready")
        self._metrics.set(metrics.ACTORS, counts.starting, pool=kind, state="starting")
        self._metrics.set(metrics.ACTORS_WANTED, counts.wanted, pool=kind)
        self._lost(kind, "died", counts.num_died - before.num_died)
        self._lost(kind, "node", counts.num_lost - before.num_lost)
        self._update(at_once=True, pools={**self._status.pools, kind: counts})

    def _lost(self, kind: str, cause: str, number: int) -> None:
        self._metrics.count(metrics.ACTORS_LOST, number, pool=kind, cause=cause)
        if number > 0:
            labels = {"stage": self._status.stage, "pool": kind, "cause": cause}
            self._inner.event(Event(name=ACTORS_LOST, value=float(number), labels=labels))

    @_one_at_a_time
    def synced(self, report: SyncReport) -> None:
        """Takes in that the replicas serve a version."""
        self._metrics.set(metrics.POLICY_VERSION, report.policy_version)
        self._metrics.set(metrics.SYNC_SECONDS, report.seconds, transport=report.transport)
        self._metrics.set(metrics.SYNC_BYTES, report.num_bytes, transport=report.transport)
        self._metrics.set(metrics.SYNC_DIFFERENCE, report.max_logprob_difference, transport=report.transport)
        self._metrics.set(metrics.SYNC_WEAK, float(report.weak), transport=report.transport)
        self._update(at_once=True, policy_version=report.policy_version)

    def _update(self, *, at_once: bool, **changes: Any) -> None:
        now = self._clock()
        posted = self._status.updated_at
        if at_once or now - posted >= POST_INTERVAL_S:
            self._status = replace(self._status, **changes, updated_at=now)
            self._post(self._status)
        else:
            self._status = replace(self._status, **changes)
