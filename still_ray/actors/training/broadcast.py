"""Broadcasts of weights: an order to the trainer group, and where the replicas meet it.

consumes     nothing but the mailbox's news
produces     a payload for each replica
waits for    the trainer's rank 0 to open the meeting
unblocked by it, by its refusal, or by the deadline; then replicas read the checkpoint
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray

from still_ray.weight_sync.broadcast import Backend, Layouts, Rendezvous, payload

if TYPE_CHECKING:
    import torch

SHARE_OF_TIMEOUT = 0.5
"""Of `sync.timeout_s`; the rest is left for reading the checkpoint. Source: ours."""
MAX_TIMEOUT_S = 900.0
"""Longest broadcast: half of what torch lets the trainer's other ranks wait for rank 0. Source: ours."""
POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class BroadcastOrder:
    """What the trainer group is asked to do between two stages.

    Attributes:
        policy_version: The version that the replicas need.
        num_receivers: Worker ranks of all replicas that take part.
        backend: What carries the bytes.
        timeout_s: When to give up, seconds from the start.
    """

    policy_version: int
    num_receivers: int
    backend: Backend
    timeout_s: float


@dataclass(frozen=True, kw_only=True)
class BroadcastNews:
    """How a broadcast stands.

    Attributes:
        rendezvous: Where the replicas meet the trainer; None while it is not open.
        ended: Whether the trainer is done with it.
        cancelled: Whether the driver called it off.
        failure: Why it did not succeed; "" if it did or goes on.
    """

    rendezvous: Rendezvous | None = None
    ended: bool = False
    cancelled: bool = False
    failure: str = ""


def timeout_of(sync_timeout_s: float) -> float:
    """Seconds for a broadcast within those for the whole sync."""
    return min(SHARE_OF_TIMEOUT * sync_timeout_s, MAX_TIMEOUT_S)


class Broadcast:
    """The driver's hold on one broadcast."""

    def __init__(self, mailbox: Any, layouts: Layouts, order: BroadcastOrder) -> None:
        """Posts the order.

        Args:
            mailbox: The trainer group's.
            layouts: What will be sent.
            order: The order.
        """
        self._mailbox = mailbox
        self._layouts = layouts
        self._deadline = time.monotonic() + order.timeout_s
        self._number: int = ray.get(mailbox.post_broadcast.remote(order))

    def wait_open(self) -> str:
        """Waits until the replicas can come; returns why they need not, "" if they can."""
        while time.monotonic() < self._deadline:
            news: BroadcastNews = ray.get(self._mailbox.broadcast_news.remote(self._number))
            if news.rendezvous is not None:
                self._rendezvous = news.rendezvous
                return ""
            if news.ended:
                return news.failure
            time.sleep(POLL_S)
        self.cancel()
        return "the trainer did not open it in time"

    def payload(self, rank_offset: int) -> dict[str, Any]:
        """The update of the replica whose first worker has this rank."""
        left = max(0.0, self._deadline - time.monotonic())
        return payload(self._rendezvous, self._layouts, rank_offset=rank_offset, timeout_s=left)

    def cancel(self) -> None:
        """Calls it off: a replica died, and with some backends no other member would notice."""
        self._mailbox.cancel_broadcast.remote(self._number)


class BroadcastDesk:
    """The mailbox's account of the present broadcast; news of an earlier one is not asked for any more."""

    def __init__(self) -> None:
        """Starts without one."""
        self._number = 0
        self._news = BroadcastNews(ended=True)

    def start(self, number: int) -> None:
        """A new broadcast, under the number of its order."""
        self._number, self._news = number, BroadcastNews()

    def update(self, number: int, **changes: Any) -> None:
        """Takes in what changed, unless it concerns an earlier broadcast."""
        if number == self._number:
            self._news = replace(self._news, **changes)

    def news(self, number: int) -> BroadcastNews:
        """How the broadcast of that number stands."""
        if number == self._number:
            return self._news
        return BroadcastNews(ended=True, cancelled=True, failure="another order took its place")

    @property
    def is_open(self) -> bool:
        """Whether the trainer group should still take the present one up."""
        return not (self._news.ended or self._news.cancelled)


def broadcast_model(
    model: Any, order: BroadcastOrder, mailbox: Any, number: int, *, leads: bool, device: torch.device
) -> None:
    """Carries out an order on one rank of the trainer group; collective.

    All ranks gather the model group by group, rank 0 sends. However the sending ends, every rank gathers to the end:
    that keeps them in step, and brings them back to the mailbox. Where a rank has no memory for it, none begins, and
    the replicas read the checkpoint.

    Args:
        model: The model inside the DeepSpeed engine.
        order: The order.
        mailbox: The trainer group's.
        number: The order's number.
        leads: Whether this is rank 0.
        device: Where the blocks lie that are sent.
    """
    from still_ray.weight_sync.zero_source import ZeroSource, agreed

    source = ZeroSource(model, device=device, keep=leads)
    failure = agreed(source.shortage())
    if not failure:
        blocks = source.iter_packed()
        unsent = _failure_of(lambda: _send(blocks, order, mailbox, number, device)) if leads else ""
        unread = _failure_of(lambda: deque(blocks, maxlen=0))
        failure = unsent or unread
    if leads:
        ray.get(mailbox.end_broadcast.remote(number, failure))


def _failure_of(work: Callable[[], Any]) -> str:
    """Why something did not succeed; "" if it did."""
    from still_ray.weight_sync.errors import SyncError

    try:
        work()
    except SyncError as error:
        return str(error)
    return ""


def _send(
    blocks: Iterator[torch.Tensor], order: BroadcastOrder, mailbox: Any, number: int, device: torch.device
) -> None:
    from still_ray.weight_sync.member import Sender

    def cancelled() -> bool:
        news: BroadcastNews = ray.get(mailbox.broadcast_news.remote(number))
        return news.cancelled

    sender = Sender(
        ray.util.get_node_ip_address(),
        num_receivers=order.num_receivers,
        backend=order.backend,
        device=device,
        timeout_s=order.timeout_s,
        cancelled=cancelled,
    )
    ray.get(mailbox.open_broadcast.remote(number, sender.rendezvous))
    sender.send(blocks)
