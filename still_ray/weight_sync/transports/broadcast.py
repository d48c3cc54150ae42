"""Transport `broadcast`: from the trainer's rank 0 to every worker of every replica, one group of tensors at a time.

The trainer's rank 0 is rank 0 of the group and sends. Behind it comes every worker of every replica: worker r of
replica i has rank 1 + i x (workers of a replica) + r. vLLM's own `nccl` backend gives all replicas the same offset.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.rendezvous import Backend, Rendezvous
from still_ray.weight_sync.transports.base import Offer, Transport, TransportMemory
from still_ray.weight_sync.transports.exchange import (
    Payload,
    PublishedWeights,
    SamplerRank,
    SyncRequest,
    TrainedWeights,
    TrainerLine,
    Transfer,
    TransferOrder,
)

if TYPE_CHECKING:
    import torch

SHARE_OF_TIMEOUT = 0.5
"""Of `sync.timeout_s`; the rest is left for reading the checkpoint. Source: ours."""
MAX_TIMEOUT_S = 900.0
"""Longest broadcast: half of what torch lets the trainer's other ranks wait for rank 0. Source: ours."""
POLL_S = 0.1

Layouts = Sequence[Sequence[Mapping[str, Any]]]
"""For every group of tensors what lies where in its block: the fields of `packing.TensorSpec`."""


class Broadcast(Transport):
    """From GPU to GPU by NCCL; by gloo where one of the two sides has none."""

    rehearsed_as = "object_store"

    def suits(self, *, devices_apart: bool, all_on_gpus: bool) -> bool:
        """Where both sides hold GPUs of their own at the same time."""
        return devices_apart and all_on_gpus

    def memory(self, *, model_bytes: int, group_bytes: int) -> TransportMemory:
        """A group on each side, and its copy on the sender's."""
        return TransportMemory(
            trainer_device=2 * group_bytes,
            sampler_device=group_bytes,
            source="the largest layer or the embedding, gathered, and its copy; still_ray.weight_sync.zero_source",
        )

    def publish(self, weights: TrainedWeights) -> PublishedWeights | None:
        """Says what would come; the weights stay where they are until replicas ask for them."""
        from still_ray.weight_sync.packing import extent

        layouts = weights.source.layouts()
        return PublishedWeights(
            policy_version=weights.policy_version,
            num_bytes=sum(extent(specs) for specs in layouts),
            parts=tuple(tuple(asdict(spec) for spec in specs) for specs in layouts),
        )

    def offer(self, request: SyncRequest) -> Offer:
        """Has the trainer group open a meeting for the replicas that are behind."""
        replicas = request.behind()
        if not replicas:
            return Offer()
        receivers = request.receivers
        order = TransferOrder(
            policy_version=request.weights.policy_version,
            num_receivers=receivers.ranks_per_replica * len(replicas),
            backend=receivers.backend,
            timeout_s=min(SHARE_OF_TIMEOUT * request.timeout_s, MAX_TIMEOUT_S),
        )
        deadline = time.monotonic() + order.timeout_s
        transfer = request.request(order)
        rendezvous, refusal = _opened(transfer, deadline)
        if rendezvous is None:
            return _Refused(refusal)
        offsets = rank_offsets(len(replicas), ranks_per_replica=receivers.ranks_per_replica)
        ranks = dict(zip(replicas, offsets, strict=True))
        return _Meeting(self, transfer, rendezvous, request.weights.parts, ranks, deadline=deadline)

    def payload(self, rendezvous: Rendezvous, layouts: Layouts, *, rank_offset: int, timeout_s: float) -> Payload:
        """The broadcast as one replica's weight update.

        Args:
            rendezvous: Where to meet.
            layouts: What will come.
            rank_offset: Rank of the replica's first worker.
            timeout_s: When the replica gives up, seconds from the arrival of the payload.
        """
        return {
            "transport": self.name,
            "rendezvous": asdict(rendezvous),
            "layouts": [list(group) for group in layouts],
            "rank_offset": rank_offset,
            "timeout_s": timeout_s,
        }

    def send(self, model: Any, order: TransferOrder, line: TrainerLine, *, leads: bool) -> None:
        """Gathers the model group by group on all ranks; rank 0 sends.

        However the sending ends, every rank gathers to the end: that keeps them in step, and brings them back to their
        mailbox. Where a rank has no memory for it, none begins, and the replicas read the checkpoint.
        """
        from still_ray.weight_sync.zero_source import ZeroSource, agreed

        device = _sending_device(order.backend)
        source = ZeroSource(model, device=device, keep=leads)
        failure = agreed(source.shortage())
        if not failure:
            blocks = source.iter_packed()
            unsent = _failure_of(lambda: _send(blocks, order, line, device)) if leads else ""
            unread = _failure_of(lambda: deque(blocks, maxlen=0))
            failure = unsent or unread
        if leads:
            line.ended(failure)

    def receive(self, payload: Payload, rank: SamplerRank) -> None:
        """Takes part in the broadcast, group by group.

        Each group has a block of its own, because a layer that is not complete keeps what it was given, and so do the
        threads that take digests.
        """
        import torch

        from still_ray.weight_sync.member import receiving
        from still_ray.weight_sync.packing import TensorSpec, extent, views

        rendezvous = Rendezvous(**payload["rendezvous"])
        place = payload["rank_offset"] + rank.index
        device = rank.device if rendezvous.backend == "nccl" else torch.device("cpu")
        with receiving(rendezvous, place, device=device, timeout_s=payload["timeout_s"]) as member:
            for group in payload["layouts"]:
                specs = [TensorSpec(**spec) for spec in group]
                block = torch.empty(extent(specs), dtype=torch.uint8, device=device)
                member.broadcast(block)
                rank.load(views(block, specs))


class _Refused(Offer):
    def __init__(self, why: str) -> None:
        self.refusal = why


class _Meeting(Offer):
    """A broadcast that the trainer has opened; a replica that was not asked to it reads the checkpoint."""

    def __init__(
        self,
        transport: Broadcast,
        transfer: Transfer,
        rendezvous: Rendezvous,
        layouts: Layouts,
        ranks: Mapping[str, int],
        *,
        deadline: float,
    ) -> None:
        # Without GPUs on both sides the report says so: gloo is not what a broadcast is meant to be carried by.
        self.carrier = transport.name if rendezvous.backend == "nccl" else rendezvous.backend
        self._transport = transport
        self._transfer = transfer
        self._rendezvous = rendezvous
        self._layouts = layouts
        self._ranks = ranks
        self._deadline = deadline

    def payloads(self, replica: str) -> Sequence[Any]:
        if replica not in self._ranks:
            return ()
        left = max(0.0, self._deadline - time.monotonic())
        offset = self._ranks[replica]
        return [self._transport.payload(self._rendezvous, self._layouts, rank_offset=offset, timeout_s=left)]

    def cancel(self) -> None:
        self._transfer.cancel()


def rank_offsets(num_replicas: int, *, ranks_per_replica: int) -> list[int]:
    """The rank of each replica's first worker."""
    return [1 + index * ranks_per_replica for index in range(num_replicas)]


def _opened(transfer: Transfer, deadline: float) -> tuple[Rendezvous | None, str]:
    """Waits until the replicas can come; else returns why they need not."""
    while time.monotonic() < deadline:
        news = transfer.news()
        if news.rendezvous is not None:
            return news.rendezvous, ""
        if news.ended:
            return None, news.failure
        time.sleep(POLL_S)
    transfer.cancel()
    return None, "the trainer did not open it in time"


def _sending_device(backend: Backend) -> torch.device:
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")


def _failure_of(work: Callable[[], Any]) -> str:
    """Why something did not succeed; "" if it did."""
    try:
        work()
    except SyncError as error:
        return str(error)
    return ""


def _send(blocks: Iterator[torch.Tensor], order: TransferOrder, line: TrainerLine, device: torch.device) -> None:
    from still_ray.weight_sync.member import Sender

    sender = Sender(
        line.host(),
        num_receivers=order.num_receivers,
        backend=order.backend,
        device=device,
        timeout_s=order.timeout_s,
        cancelled=line.cancelled,
    )
    line.opened(sender.rendezvous)
    sender.send(blocks)
