"""Transfers of weights that the driver asks of the trainer group, by way of its mailbox.

The transport decides what happens on each side (`still_ray.weight_sync.transports`); here are the calls on Ray that it
is passed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ray

from still_ray.weight_sync.rendezvous import Rendezvous
from still_ray.weight_sync.transports.exchange import TransferNews, TransferOrder


class RequestedTransfer:
    """The driver's hold: see `still_ray.weight_sync.transports.exchange.Transfer`."""

    def __init__(self, mailbox: Any, order: TransferOrder) -> None:
        """Posts the order at the trainer group's mailbox."""
        self._mailbox = mailbox
        self._number: int = ray.get(mailbox.post_transfer.remote(order))

    def news(self) -> TransferNews:
        """How it stands."""
        news: TransferNews = ray.get(self._mailbox.transfer_news.remote(self._number))
        return news

    def cancel(self) -> None:
        """Calls it off; does not wait."""
        self._mailbox.cancel_transfer.remote(self._number)


@dataclass(frozen=True)
class RankLine:
    """A rank's end: see `still_ray.weight_sync.transports.exchange.TrainerLine`.

    Attributes:
        mailbox: The trainer group's.
        number: The order's number.
    """

    mailbox: Any
    number: int

    def host(self) -> str:
        """This node's address."""
        return str(ray.util.get_node_ip_address())

    def opened(self, rendezvous: Rendezvous) -> None:
        """Says where the replicas meet this rank."""
        ray.get(self.mailbox.open_transfer.remote(self.number, rendezvous))

    def cancelled(self) -> bool:
        """Whether the driver called it off."""
        news: TransferNews = ray.get(self.mailbox.transfer_news.remote(self.number))
        return news.cancelled

    def ended(self, failure: str) -> None:
        """Says that it is over, and why it failed, if it did."""
        ray.get(self.mailbox.end_transfer.remote(self.number, failure))


class TransferDesk:
    """The mailbox's account of the present transfer; news of an earlier one is not asked for any more."""

    def __init__(self) -> None:
        """Starts without one."""
        self._number = 0
        self._news = TransferNews(ended=True)

    def start(self, number: int) -> None:
        """A new transfer, under the number of its order."""
        self._number, self._news = number, TransferNews()

    def update(self, number: int, **changes: Any) -> None:
        """Takes in what changed, unless it concerns an earlier transfer."""
        if number == self._number:
            self._news = replace(self._news, **changes)

    def news(self, number: int) -> TransferNews:
        """How the transfer of that number stands."""
        if number == self._number:
            return self._news
        return TransferNews(ended=True, cancelled=True, failure="another order took its place")

    @property
    def is_open(self) -> bool:
        """Whether the trainer group should still take the present one up."""
        return not (self._news.ended or self._news.cancelled)
