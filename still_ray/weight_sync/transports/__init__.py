"""Weight transports by name: each is one module with the trainer's half and the sampler's half side by side.

A new one is a module with a subclass of `base.Transport` and a line in `TRANSPORTS`, or `package.module:object` as the
recipe's `sync.transport`. Config, `plan` and rehearsals look transports up here, so these modules load neither torch
nor vLLM until weights travel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from still_ray.extensions import load_named
from still_ray.weight_sync.transports.base import Transport

TRANSPORTS: Final[Mapping[str, str]] = {
    "broadcast": "still_ray.weight_sync.transports.broadcast:Broadcast",
    "object_store": "still_ray.weight_sync.transports.object_store:ObjectStore",
    "checkpoint": "still_ray.weight_sync.transports.checkpoint:Checkpoint",
}
"""Class by name, in the order in which `auto` prefers them."""
FALLBACK: Final = "checkpoint"
"""What replicas read that join late, or that another transport failed: it needs nobody and suits everywhere."""
GROUP: Final = "still_ray.transports"
"""Entry points of transports of a user's own."""

_ALIASES: Final[Mapping[str, str]] = {"nccl": "broadcast"}
"""Names in recipes and run directories of before."""
_AUTO: Final = "auto"


def canonical_name(text: str) -> str:
    """A transport's name as today's recipes have it; "auto" is one.

    Raises:
        ValueError: There is no such transport, or a user's own cannot be loaded; says what would be right.
    """
    name = _ALIASES.get(text, text)
    if name != _AUTO:
        transport_named(name)
    return name


def transport_named(name: str) -> Transport:
    """The transport with a name that is not "auto".

    Raises:
        ValueError: There is none, or a user's own cannot be loaded; says what would be right.
    """
    found = load_named(name, {_AUTO: "", **TRANSPORTS}, group=GROUP)
    if not (isinstance(found, type) and issubclass(found, Transport)):
        raise ValueError(f"{name} is no transport: derive a class from still_ray.weight_sync.transports.base.Transport")
    return found(name)


def preferred(*, devices_apart: bool, all_on_gpus: bool) -> str:
    """What `auto` comes down to: the first transport of the table that suits; see `Transport.suits`."""
    each = map(transport_named, TRANSPORTS)
    return next(one.name for one in each if one.suits(devices_apart=devices_apart, all_on_gpus=all_on_gpus))
