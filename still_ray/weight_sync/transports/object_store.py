"""Transport `object_store`: buckets of packed weights in Ray's object store, zero-copy for replicas on its node."""

from __future__ import annotations

from still_ray.weight_sync.transports.base import Transport, TransportMemory


class ObjectStore(Transport):
    """The first rank packs and stores the weights once a stage; every replica reads them bucket by bucket."""

    rehearsed_as = "object_store"

    def suits(self, *, devices_apart: bool, all_on_gpus: bool) -> bool:
        """Where replicas are up when the stage ends: those that start later start from the checkpoint."""
        return devices_apart

    def memory(self, *, model_bytes: int, group_bytes: int) -> TransportMemory:
        """The packed weights, whole."""
        return TransportMemory(object_store=model_bytes, source="one packed copy of the weights; still_ray.weight_sync")
