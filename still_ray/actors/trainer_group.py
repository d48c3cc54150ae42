"""The trainer group: one long Ray Train fit whose workers take stages from a mailbox, so that they stay warm.

consumes     train orders, one at a time, and between them orders to broadcast the weights
produces     checkpoints with their policy record, events, packed weights in the object store
waits for    the mailbox; never inside a torch collective, which would time out
unblocked by the next order; a dead worker makes Ray Train build the group again, which finds the order unfinished
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig as TrainFailureConfig
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from still_ray.actors.actor_pool import first_line
from still_ray.actors.broadcast import BroadcastDesk, BroadcastNews, BroadcastOrder
from still_ray.actors.cluster import beside_driver, ray_environment
from still_ray.actors.policy import PublishedWeights
from still_ray.actors.train_loop import TrainLoopSettings, train_loop
from still_ray.driver.ports import TrainOrder
from still_ray.store.policy import PolicyRecord, read_policy_record
from still_ray.trainer.environment import trainer_environment
from still_ray.types import Event, RunError, TrainResult
from still_ray.weight_sync.broadcast import Rendezvous

POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class MailboxNews:
    """What happened at the mailbox since the last look.

    Attributes:
        events: New events.
        record: The finished stage's policy record, or None while it runs.
        failure: What went wrong with the order itself, e.g. a table that cannot be read; "" if nothing.
    """

    events: tuple[Event, ...]
    record: PolicyRecord | None
    failure: str


class Mailbox:
    """Holds the present order for the workers, and their news for the driver."""

    def __init__(self, name: str) -> None:
        """Starts empty.

        Args:
            name: Name of the Train run.
        """
        self._name = name
        self._order: TrainOrder | BroadcastOrder | None = None
        self._sequence = 0
        self._stopped = False
        self._changed = asyncio.Condition()
        self._events: list[Event] = []
        self._record: PolicyRecord | None = None
        self._failure = ""
        self._weights: PublishedWeights | None = None
        self._broadcast = BroadcastDesk()

    def __repr__(self) -> str:
        """The name that Ray shows, with the stage in work."""
        return f"mailbox of {self._name}" + (f", {_label(self._order)}" if self._order else "")

    async def post(self, order: TrainOrder) -> None:
        """Gives the workers an order; the weights of the last one are let go."""
        async with self._changed:
            self._order, self._record, self._failure, self._weights = order, None, "", None
            self._sequence += 1
            self._changed.notify_all()

    async def stop(self) -> None:
        """Lets the workers end."""
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()

    async def next_order(self, after: int) -> tuple[int, TrainOrder | BroadcastOrder] | None:
        """The order with a number above `after` that is not finished, as soon as there is one; None to stop."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopped or self._is_open(after))
        assert self._order is not None or self._stopped
        return await self.newest_order()

    async def newest_order(self) -> tuple[int, TrainOrder | BroadcastOrder] | None:
        """The present order, finished or not; None to stop."""
        return None if self._stopped or self._order is None else (self._sequence, self._order)

    async def report(self, event: Event) -> None:
        """Takes an event in from rank 0."""
        self._events.append(event)

    async def finish(self, record: PolicyRecord, weights: PublishedWeights | None) -> None:
        """Takes the result of the present order in from rank 0, with what it offers of the weights."""
        self._record, self._weights = record, weights

    async def fail(self, failure: str) -> None:
        """Takes in that the present order cannot be carried out however often it is tried."""
        self._failure = failure

    async def news(self) -> MailboxNews:
        """What happened since the last call."""
        events, self._events = tuple(self._events), []
        return MailboxNews(events=events, record=self._record, failure=self._failure)

    async def weights(self) -> PublishedWeights | None:
        """The weights of the last finished order."""
        return self._weights

    async def post_broadcast(self, order: BroadcastOrder) -> int:
        """Asks the workers to send the weights of the last order; returns the number of the broadcast."""
        async with self._changed:
            self._order = order
            self._sequence += 1
            self._broadcast.start(self._sequence)
            self._changed.notify_all()
            return self._sequence

    async def open_broadcast(self, number: int, rendezvous: Rendezvous) -> None:
        """Takes in from rank 0 where the replicas meet it."""
        self._broadcast.update(number, rendezvous=rendezvous)

    async def end_broadcast(self, number: int, failure: str) -> None:
        """Takes in from rank 0 that it is done, and why it failed, if it did."""
        self._broadcast.update(number, ended=True, failure=failure)

    async def cancel_broadcast(self, number: int) -> None:
        """Takes in from the driver that there is no use in it any more."""
        self._broadcast.update(number, cancelled=True)

    async def broadcast_news(self, number: int) -> BroadcastNews:
        """How a broadcast stands."""
        return self._broadcast.news(number)

    def _is_open(self, after: int) -> bool:
        if self._order is None or self._sequence <= after:
            return False
        if isinstance(self._order, BroadcastOrder):
            return self._broadcast.is_open
        return self._record is None and not self._failure


def _label(order: TrainOrder | BroadcastOrder) -> str:
    return f"broadcast of version {order.policy_version}" if isinstance(order, BroadcastOrder) else order.stage.name


class TrainerGroup:
    """The driver's `Trainer` on Ray Train."""

    def __init__(self, settings: TrainLoopSettings, *, name: str, storage: Path, max_restarts: int) -> None:
        """Starts the mailbox and the fit; does not wait for the workers.

        Args:
            settings: What every worker needs.
            name: Name of the Train run; a name that was used before would resume that run.
            storage: Folder for Ray Train's own files.
            max_restarts: Times that the group may be built again.
        """
        mailbox = ray.remote(Mailbox).options(
            num_cpus=0,
            max_restarts=0,
            max_concurrency=1000,
            scheduling_strategy=beside_driver(),
            name=f"mailbox-{name}",
        )
        self._mailbox: Any = mailbox.remote(name)
        host = ray.remote(FitHost).options(
            num_cpus=0,
            max_restarts=0,
            scheduling_strategy=beside_driver(),
            runtime_env={"env_vars": ray_environment()},
            name=f"trainer-group-{name}",
        )
        self._host: Any = host.remote(name)
        self._fit: ray.ObjectRef = self._host.fit.remote(
            replace(settings, mailbox=self._mailbox), name, storage, max_restarts
        )

    def train(self, order: TrainOrder, *, on_event: Callable[[Event], None]) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        record = read_policy_record(order.checkpoint)
        if record is not None:
            return record.result
        ray.get(self._mailbox.post.options(name=f"{order.stage.name}: train").remote(order))
        while True:
            news: MailboxNews = ray.get(self._mailbox.news.remote())
            for event in news.events:
                on_event(event)
            if news.record is not None:
                return news.record.result
            self._raise_failure(news, order)
            time.sleep(POLL_S)

    def published(self) -> PublishedWeights | None:
        """The weights that the group still holds."""
        if ray.wait([self._fit], timeout=0)[0]:  # nobody would answer
            return None
        weights: PublishedWeights | None = ray.get(self._mailbox.weights.remote())
        return weights and replace(weights, mailbox=self._mailbox)

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Lets the workers end and waits for them; whatever has not ended by then is killed."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._mailbox.stop.remote())
        ray.wait([self._fit], timeout=timeout_s)
        ray.kill(self._host)

    def _raise_failure(self, news: MailboxNews, order: TrainOrder) -> None:
        if news.failure:
            raise RunError(f"it cannot be trained: {news.failure}")
        if ray.wait([self._fit], timeout=0)[0]:
            host = self._host._actor_id.hex()
            raise RunError(f"the trainer group failed: {self._end_of_fit()}", actor_id=host)

    def _end_of_fit(self) -> str:
        try:
            failure: str = ray.get(self._fit)
        except ray.exceptions.RayError as error:
            failure = first_line(error)
        return failure or "the trainer group ended"


class FitHost:
    """Where the fit is called from: a process that ends whenever the run does.

    A thread of the driver's would go on calling Ray after an interrupted run has left it, and Ray ends a process
    that does so, with a status and a message of its own.
    """

    def __init__(self, name: str) -> None:
        """Remembers the name of the Train run."""
        self._name = name

    def __repr__(self) -> str:
        """The name that Ray shows."""
        return f"trainer group {self._name}"

    def fit(self, settings: TrainLoopSettings, name: str, storage: Path, max_restarts: int) -> str:
        """Runs the fit to its end; returns what failed, "" if nothing."""
        try:
            _ray_trainer(settings, name, storage, max_restarts).fit()
        except Exception as error:  # named policy: the driver says what failed, Ray's log of this actor holds the rest
            logging.getLogger(__name__).exception("the fit ended")
            return first_line(error)
        return ""


def _ray_trainer(settings: TrainLoopSettings, name: str, storage: Path, max_restarts: int) -> TorchTrainer:
    config = settings.trainer
    resources = {"CPU": config.cpus_per_worker, **({"GPU": 1.0} if settings.use_gpu else {})}
    environment = trainer_environment(config, use_gpu=settings.use_gpu)
    return TorchTrainer(
        train_loop,
        train_loop_config={"settings": settings},
        torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker=resources,
            label_selector=config.node_labels or None,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=TrainFailureConfig(max_failures=max_restarts),
            worker_runtime_env={"env_vars": environment},
            logging_config=ray.train.LoggingConfig(log_level=logging.getLevelName(logging.WARNING)),
        ),
    )
