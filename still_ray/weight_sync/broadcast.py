"""What a trainer and its replicas agree on before weights are broadcast; light enough for the driver to import.

The trainer's rank 0 is rank 0 of the group and sends. Behind it comes every worker of every replica: worker r of
replica i has rank 1 + i x (workers of a replica) + r. vLLM's own `nccl` backend gives all replicas the same offset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Backend = Literal["nccl", "gloo"]
"""nccl from GPU to GPU; gloo where one of the two sides has none."""

Layouts = tuple[tuple[dict[str, Any], ...], ...]
"""For every group of tensors what lies where in its block: the fields of `packing.TensorSpec`."""


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where the members of one broadcast meet.

    Attributes:
        host: The sender's address.
        port: Its TCP store's port.
        world_size: Members, the sender included.
        backend: What carries the bytes.
    """

    host: str
    port: int
    world_size: int
    backend: Backend


def payload(rendezvous: Rendezvous, layouts: Layouts, *, rank_offset: int, timeout_s: float) -> dict[str, Any]:
    """The broadcast as one replica's weight update.

    Args:
        rendezvous: Where to meet.
        layouts: What will come.
        rank_offset: Rank of the replica's first worker.
        timeout_s: When the replica gives up, seconds from the arrival of the payload.
    """
    return {
        "transport": "broadcast",
        "rendezvous": asdict(rendezvous),
        "layouts": [list(group) for group in layouts],
        "rank_offset": rank_offset,
        "timeout_s": timeout_s,
    }


def rank_offsets(num_replicas: int, *, ranks_per_replica: int) -> list[int]:
    """The rank of each replica's first worker."""
    return [1 + index * ranks_per_replica for index in range(num_replicas)]
