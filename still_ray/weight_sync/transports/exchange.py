"""What passes between the halves of a transport, and what actors hand them: records, and calls that need Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from still_ray.weight_sync.rendezvous import Backend, Rendezvous

if TYPE_CHECKING:
    import torch

    from still_ray.weight_sync.zero_source import ZeroSource

Payload = dict[str, Any]
"""One piece of a weight update; its key "transport" names the transport that can read it."""


@dataclass(frozen=True, kw_only=True)
class TrainedWeights:
    """What a trainer rank holds after a stage.

    Attributes:
        policy_version: Which.
        source: The model; reading it is collective, and only the first rank's yields anything.
        tensors: One pass over the source, of which digests are taken; what is left of it is read afterwards.
        put: Stores a payload in the cluster, returning the reference under which a replica finds it.
        bucket_bytes: Size of a packed bucket.
    """

    policy_version: int
    source: ZeroSource
    tensors: Iterator[tuple[str, torch.Tensor]]
    put: Callable[[Payload], Any]
    bucket_bytes: int


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A version that the trainer offers.

    Attributes:
        policy_version: Which.
        num_bytes: Its size.
        parts: What the transport needs for its offer, such as references to payloads.
        trainer: The trainer group's mailbox, where a transfer is requested.
    """

    policy_version: int
    num_bytes: int
    parts: tuple[Any, ...] = ()
    trainer: Any = None


@dataclass(frozen=True, kw_only=True)
class Receivers:
    """How replicas take part in a transfer.

    Attributes:
        ranks_per_replica: Worker ranks of one replica.
        backend: What carries the bytes.
    """

    ranks_per_replica: int = 1
    backend: Backend = "gloo"


@dataclass(frozen=True, kw_only=True)
class TransferOrder:
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
class TransferNews:
    """How a transfer stands.

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


class Transfer(Protocol):
    """The driver's hold on a transfer that it requested."""

    def news(self) -> TransferNews:
        """How it stands."""
        ...

    def cancel(self) -> None:
        """Calls it off: a replica died, and with some backends no other member would notice."""
        ...


class TrainerLine(Protocol):
    """What a trainer rank that carries out a transfer says to the driver and hears from it."""

    def host(self) -> str:
        """This machine's address, as replicas reach it."""
        ...

    def opened(self, rendezvous: Rendezvous) -> None:
        """Says where the replicas meet this rank."""
        ...

    def cancelled(self) -> bool:
        """Whether the driver called it off."""
        ...

    def ended(self, failure: str) -> None:
        """Says that it is over, and why it failed; "" if it did not."""
        ...


@dataclass(frozen=True, kw_only=True)
class SyncRequest:
    """Replicas that are to be brought to a version.

    Attributes:
        weights: What the trainer published of it.
        behind: Names the replicas that are up and serve another version.
        receivers: How they take part in a transfer.
        timeout_s: Time for the whole sync, seconds.
        request: Asks the trainer group for a transfer.
    """

    weights: PublishedWeights
    behind: Callable[[], Sequence[str]]
    receivers: Receivers
    timeout_s: float
    request: Callable[[TransferOrder], Transfer]


@dataclass(frozen=True, kw_only=True)
class SamplerRank:
    """One worker of a replica, while an update is open.

    Attributes:
        index: Its rank in the replica.
        device: Of its model.
        load: Loads whole parameters by their HF names, of which the model keeps this rank's shard; may be called
            several times.
    """

    index: int
    device: torch.device
    load: Callable[[Iterable[tuple[str, torch.Tensor]]], None]
