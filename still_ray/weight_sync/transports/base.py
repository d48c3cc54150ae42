"""What a weight transport is: what others must know of it, the trainer's half and the sampler's half.

A sync has up to four steps, of which a transport overrides those that it needs:

    publish   on every trainer rank, when a stage is trained: leave something that replicas can be offered
    offer     in the driver, when replicas are to be brought to the version: what each of them is handed
    send      on every trainer rank, if the offer asked the trainer group for a transfer
    receive   on every worker of a replica: load what a payload brings

What needs Ray is passed in by actors, as `put`, `request` and `line`; see `still_ray.weight_sync.transports.exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from still_ray.weight_sync.transports.exchange import (
    Payload,
    PublishedWeights,
    SamplerRank,
    SyncRequest,
    TrainedWeights,
    TrainerLine,
    TransferOrder,
)


@dataclass(frozen=True, kw_only=True)
class TransportMemory:
    """What a transport needs beside everything else, in bytes.

    Attributes:
        trainer_device: On the device of each trainer rank, between two stages.
        sampler_device: On a replica's device, beside what its engine was given.
        object_store: In the object store of the first trainer rank's machine, until the next stage.
        source: The formula, and where it comes from.
    """

    trainer_device: int = 0
    sampler_device: int = 0
    object_store: int = 0
    source: str = ""


class Offer:
    """What the replicas of one sync are handed; nothing here: they read the checkpoint.

    Attributes:
        carrier: What the report calls the way.
        refusal: Why there is nothing although the trainer published something; "" if there is.
    """

    carrier = ""
    refusal = ""

    def payloads(self, replica: str) -> Sequence[Any]:
        """The update of a replica: payloads, or references to them, in order; none: it reads the checkpoint."""
        return ()

    def cancel(self) -> None:
        """A replica died or refused: the others need not wait for it."""


class Transport:
    """One way of new weights from the trainer to the samplers.

    Attributes:
        name: As the recipe has it.
        rehearsed_as: The transport that a rehearsal, whose ranks have no weights and no devices, takes in its place.
    """

    rehearsed_as = "checkpoint"

    def __init__(self, name: str) -> None:
        """Called with the recipe's name of it."""
        self.name = name

    def suits(self, *, devices_apart: bool, all_on_gpus: bool) -> bool:
        """Whether `auto` may choose it.

        Args:
            devices_apart: Whether trainer and samplers hold devices of their own at the same time.
            all_on_gpus: Whether both hold GPUs.
        """
        return False

    def memory(self, *, model_bytes: int, group_bytes: int) -> TransportMemory:
        """What it needs beside everything else.

        Args:
            model_bytes: All weights.
            group_bytes: The largest group that is gathered at once: a layer, or the embedding.
        """
        return TransportMemory()

    def pretend(self, policy_version: int, put: Callable[[Payload], Any]) -> PublishedWeights | None:
        """What a rehearsal's first rank publishes in the place of weights."""
        return None

    def publish(self, weights: TrainedWeights) -> PublishedWeights | None:
        """Leaves what replicas can be offered; collective, and what counts is what the first rank returns."""
        return None

    def offer(self, request: SyncRequest) -> Offer:
        """What the replicas are handed; only called where the trainer published the version."""
        return Offer()

    def send(self, model: Any, order: TransferOrder, line: TrainerLine, *, leads: bool) -> None:
        """Carries out a transfer that an offer requested; collective.

        Args:
            model: The model inside the DeepSpeed engine.
            order: What was requested.
            line: To the driver; the first rank says there when the transfer is open and when it is over.
            leads: Whether this is the first rank.
        """
        raise NotImplementedError(f"transport {self.name} requests no transfers")

    def receive(self, payload: Payload, rank: SamplerRank) -> None:
        """Loads what a payload brings.

        Raises:
            SyncError: It cannot be had, or does not fit; the replica then reads the checkpoint.
        """
        raise NotImplementedError(f"transport {self.name} hands out no payloads")
