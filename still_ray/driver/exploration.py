"""One round of sampling: what is not stored yet of its problems is sampled, judged and stored once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from still_ray.algo.exploration import Allotment, allotment_of
from still_ray.driver.ports import ExploreOrder, Ports, SamplingLoad
from still_ray.driver.progress_counter import ProgressCounter
from still_ray.types import Event, Trajectory, Verdict

CANCEL_S: Final = 15.0
"""Longest wait for an exploration that shall end: it hears of it within two seconds, unless a store is slow."""


class _CancelledError(Exception):
    """The exploration shall end: the run does."""


def explore(
    ports: Ports, order: ExploreOrder, *, is_beside: bool = False, check: Callable[[], None] = lambda: None
) -> Allotment:
    """Samples a round to its end, with progress; the replicas serve the policy already.

    Args:
        ports: The world.
        order: Which problems, and how.
        is_beside: Whether another stage is the present one.
        check: Called every few seconds; ends the exploration by raising.

    Returns:
        What was allotted to each problem.

    Raises:
        RunError: A failure policy was exhausted.
    """
    number = order.stage.round
    stored = ports.store.explored(number)
    allotment = allotment_of(
        order.config, order.problem_ids, stored, num_tokens=lambda: ports.store.sampled_tokens(number)
    )
    expected = len(order.problem_ids) * order.config.samples_per_problem
    num_correct = sum(verdict is Verdict.CORRECT for verdict in stored.values())
    partials = ports.store.partial_responses(number)
    counter = ProgressCounter(
        total=expected - allotment.num_saved,
        already=len(stored),
        already_correct=num_correct,
        brought={
            part.key: part.num_tokens
            for part in partials.all()
            if part.policy_version == order.stage.policy_version and part.key not in stored
        },
    )

    def show(fresh: Sequence[Trajectory]) -> None:
        _show(ports, order, counter, fresh, is_beside=is_beside)

    def commit(rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        check()
        fresh = ports.store.commit(number, rows)
        for row in fresh:
            allotment.record(row.key, row.verdict, num_tokens=row.num_tokens)
        counter.total = expected - allotment.num_saved
        show(fresh)
        return fresh

    def on_load(load: SamplingLoad) -> None:
        check()
        counter.loaded(load)
        show(())

    if order.problem_ids:
        ports.explorer.explore(order, allotment=allotment, commit=commit, on_load=on_load, partials=partials)
    if not is_beside:
        ports.progress.doing("storing the round")
    ports.store.close_round(number)
    return allotment


class BackgroundExploration:
    """An exploration in a thread of its own, beside a training stage in the thread that made it.

    consumes     the replicas, the verifiers and the files of its round, which nobody else uses meanwhile
    produces     the round's trajectories
    waits for    nothing of the training stage
    unblocked by its own end; left early, it ends within seconds, and what it had sampled is kept

    Its failure does not end the training, whose checkpoint is of use to the run that resumes: `result` raises it.
    """

    def __init__(self, ports: Ports, order: ExploreOrder, *, beside: str) -> None:
        """Starts nothing yet.

        Args:
            ports: The world.
            order: Which problems, and how; the replicas serve the policy already.
            beside: Name of the training stage.
        """
        self._ports = ports
        self._order = order
        self._beside = beside
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name=order.stage.name, daemon=True)
        self._outcome: tuple[Allotment, float] | BaseException = _CancelledError()

    def __enter__(self) -> Self:
        """Begins."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it, if it has not ended."""
        self._cancelled.set()
        self._thread.join(CANCEL_S)

    def result(self) -> tuple[Allotment, float]:
        """Waits for the end; what was allotted, and the seconds that it took.

        Raises:
            RunError: As `explore`.
        """
        self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def _run(self) -> None:
        started = time.monotonic()
        try:
            allotment = explore(self._ports, self._order, is_beside=True, check=self._check)
            seconds = round(time.monotonic() - started, 1)
            self._outcome = allotment, seconds
            labels = {"stage": self._order.stage.name}
            self._ports.progress.event(Event(name="stage/seconds", value=seconds, labels=labels))
        except BaseException as error:  # the thread that waits for the result raises it
            self._outcome = error
            if not self._cancelled.is_set():
                what = f"{self._order.stage.name} failed ({error})"
                self._ports.progress.noted(f"{what}; {self._beside} goes on to its checkpoint, then the run ends")

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledError


def _show(
    ports: Ports, order: ExploreOrder, counter: ProgressCounter, fresh: Sequence[Trajectory], *, is_beside: bool
) -> None:
    counter.add(fresh)
    beside = order.stage if is_beside else None
    ports.progress.advanced(counter.done, counter.total, counter.facts(), beside=beside)
    for name, value in counter.events():
        ports.progress.event(Event(name=f"explore/{name}", value=value, labels={"stage": order.stage.name}))
