"""Where the trainer and the workers of replicas meet for a transfer; light enough for the driver to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Backend = Literal["nccl", "gloo"]
"""nccl from GPU to GPU; gloo where one of the two sides has none."""


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
