"""Transport `broadcast`: from the trainer's rank 0 to every worker of every replica, one group of tensors at a time."""

from __future__ import annotations

from still_ray.weight_sync.transports.base import Transport, TransportMemory


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
