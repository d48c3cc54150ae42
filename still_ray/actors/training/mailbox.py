"""The mailbox of a trainer group: where the driver leaves orders, and the workers their news.

consumes     orders of the driver, news of rank 0
produces     the present order for every rank that asks; what is new for the driver
waits for    an order
unblocked by the driver

It outlives worker groups: when one dies, Ray Train builds another, which finds the order unfinished. Each group has a
number, so that a message that a killed one had sent is not taken for its successor's.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from still_ray.actors.pool.causes import alike
from still_ray.actors.training.transfers import TransferDesk
from still_ray.driver.ports import TrainOrder
from still_ray.store.policy import PolicyRecord
from still_ray.types import TRAINER_REBUILT, Event, TrainProgress
from still_ray.weight_sync.rendezvous import Rendezvous
from still_ray.weight_sync.transports.exchange import PublishedWeights, TransferNews, TransferOrder


@dataclass(frozen=True, kw_only=True)
class MailboxNews:
    """What happened at the mailbox since the last look.

    Attributes:
        events: New events.
        progress: New reports of the stage in work.
        notes: New lines for the person who watches.
        record: The finished stage's policy record, or None while it runs.
        failure: Why the order cannot be carried out however often it is tried, e.g. a table that cannot be read; ""
            if nothing is wrong with it.
        leader: Ray's id of the actor that is rank 0 of the newest group; "" before there was one.
    """

    events: tuple[Event, ...] = ()
    progress: tuple[TrainProgress, ...] = ()
    notes: tuple[str, ...] = ()
    record: PolicyRecord | None = None
    failure: str = ""
    leader: str = ""


class Mailbox:
    """Holds the present order for the workers, and their news for the driver."""

    def __init__(self, name: str) -> None:
        """Starts empty.

        Args:
            name: Name of the Train run.
        """
        self._name = name
        self._order: TrainOrder | TransferOrder | None = None
        self._sequence = 0
        self._stopped = False
        self._changed = asyncio.Condition()
        self._group = 0
        self._leader = ""
        self._events: list[Event] = []
        self._progress: list[TrainProgress] = []
        self._notes: list[str] = []
        self._record: PolicyRecord | None = None
        self._failure = ""
        self._step = 0
        self._last_death: tuple[str, int] | None = None
        self._weights: PublishedWeights | None = None
        self._transfer = TransferDesk()

    def __repr__(self) -> str:
        """The name that Ray shows, with the stage in work."""
        return f"mailbox of {self._name}" + (f", {_label(self._order)}" if self._order else "")

    async def post(self, order: TrainOrder) -> None:
        """Gives the workers an order; the weights of the last one are let go."""
        async with self._changed:
            self._order, self._record, self._failure, self._weights = order, None, "", None
            self._step, self._last_death = 0, None
            self._sequence += 1
            self._changed.notify_all()

    async def stop(self) -> None:
        """Lets the workers end."""
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()

    async def next_order(self, after: int) -> tuple[int, TrainOrder | TransferOrder] | None:
        """The order with a number above `after` that is not finished, as soon as there is one; None to stop."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopped or self._is_open(after))
        assert self._order is not None or self._stopped
        return await self.newest_order()

    async def newest_order(self) -> tuple[int, TrainOrder | TransferOrder] | None:
        """The present order, finished or not; None to stop."""
        return None if self._stopped or self._order is None else (self._sequence, self._order)

    async def register(self, leader: str) -> int:
        """Takes in that a group has come up, by the actor id of its rank 0; returns the group's number."""
        if self._group:
            stage = self._order.stage.name if isinstance(self._order, TrainOrder) else ""
            self._events.append(Event(name=TRAINER_REBUILT, value=1.0, labels={"stage": stage}))
        self._group += 1
        self._leader = leader
        return self._group

    async def report(self, group: int, event: Event) -> None:
        """Takes an event in from rank 0."""
        if group == self._group:
            self._events.append(event)

    async def trained(self, group: int, report: TrainProgress) -> None:
        """Takes in from rank 0 how far the present order is."""
        if group == self._group:
            self._progress.append(report)
            self._step = max(self._step, report.step)

    async def note(self, group: int, text: str) -> None:
        """Takes a line for the person who watches in from rank 0."""
        if group == self._group:
            self._notes.append(text)

    async def finish(self, group: int, record: PolicyRecord, weights: PublishedWeights | None) -> None:
        """Takes the result of the present order in from rank 0, with what it offers of the weights."""
        if group == self._group:
            self._record, self._weights = record, weights

    async def fail(self, group: int, failure: str) -> None:
        """Takes in that the present order cannot be carried out however often it is tried."""
        if group == self._group:
            self._failure = failure

    async def died(self, cause: str, *, has_reason: bool) -> None:
        """Takes in from Ray Train's controller that a group failed, which it builds again within its budget.

        One that failed in the same words as the group before it and got no further would fail so again: the order ends.

        Args:
            cause: Why, in words.
            has_reason: Whether it failed by itself rather than with a process or a node.
        """
        self._notes.append(f"the trainer group failed: {cause}")
        death = (alike(cause), self._step)
        if has_reason and death == self._last_death:
            self._failure = self._failure or f"the trainer group failed twice alike: {cause}"
        self._last_death = death if has_reason else None

    async def news(self) -> MailboxNews:
        """What happened since the last call."""
        events, self._events = tuple(self._events), []
        progress, self._progress = tuple(self._progress), []
        notes, self._notes = tuple(self._notes), []
        return MailboxNews(
            events=events,
            progress=progress,
            notes=notes,
            record=self._record,
            failure=self._failure,
            leader=self._leader,
        )

    async def weights(self) -> PublishedWeights | None:
        """The weights of the last finished order."""
        return self._weights

    async def post_transfer(self, order: TransferOrder) -> int:
        """Asks the workers to send the weights of the last order; returns the number of the transfer."""
        async with self._changed:
            self._order = order
            self._sequence += 1
            self._transfer.start(self._sequence)
            self._changed.notify_all()
            return self._sequence

    async def open_transfer(self, number: int, rendezvous: Rendezvous) -> None:
        """Takes in from rank 0 where the replicas meet it."""
        self._transfer.update(number, rendezvous=rendezvous)

    async def end_transfer(self, number: int, failure: str) -> None:
        """Takes in from rank 0 that it is done, and why it failed, if it did."""
        self._transfer.update(number, ended=True, failure=failure)

    async def cancel_transfer(self, number: int) -> None:
        """Takes in from the driver that there is no use in it any more."""
        self._transfer.update(number, cancelled=True)

    async def transfer_news(self, number: int) -> TransferNews:
        """How a transfer stands."""
        return self._transfer.news(number)

    def _is_open(self, after: int) -> bool:
        if self._order is None or self._sequence <= after:
            return False
        if isinstance(self._order, TransferOrder):
            return self._transfer.is_open
        return self._record is None and not self._failure


def _label(order: TrainOrder | TransferOrder) -> str:
    return f"transfer of version {order.policy_version}" if isinstance(order, TransferOrder) else order.stage.name
