"""What a weight transport is: what others must know of it, the trainer's half and the sampler's half."""

from __future__ import annotations

from dataclasses import dataclass


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
