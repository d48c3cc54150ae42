"""Transport `object_store`: buckets of packed weights in Ray's object store, zero-copy for replicas on its node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from still_ray.weight_sync.transports.base import Offer, Transport, TransportMemory
from still_ray.weight_sync.transports.exchange import (
    Payload,
    PublishedWeights,
    SamplerRank,
    SyncRequest,
    TrainedWeights,
)

if TYPE_CHECKING:
    from still_ray.weight_sync.packing import Bucket

PRETENDED_BUCKETS = 2
PRETENDED_BYTES = 64 * 2**10
"""What travels in a rehearsal. Source: ours."""


class ObjectStore(Transport):
    """The first rank packs and stores the weights once a stage; every replica reads them bucket by bucket."""

    rehearsed_as = "object_store"

    def suits(self, *, devices_apart: bool, all_on_gpus: bool) -> bool:
        """Where replicas are up when the stage ends: those that start later start from the checkpoint."""
        return devices_apart

    def memory(self, *, model_bytes: int, group_bytes: int) -> TransportMemory:
        """The packed weights, whole."""
        return TransportMemory(object_store=model_bytes, source="one packed copy of the weights; still_ray.weight_sync")

    def pretend(self, policy_version: int, put: Callable[[Payload], Any]) -> PublishedWeights | None:
        """Payloads that a fake sampler reads and forgets."""
        payload = {"transport": self.name, "data": bytes(PRETENDED_BYTES)}
        parts = tuple(put(payload) for _ in range(PRETENDED_BUCKETS))
        return PublishedWeights(
            policy_version=policy_version, parts=parts, num_bytes=PRETENDED_BUCKETS * PRETENDED_BYTES
        )

    def publish(self, weights: TrainedWeights) -> PublishedWeights | None:
        """Packs the weights, gathered group by group on all ranks; the first rank stores them."""
        from still_ray.weight_sync.packing import pack

        references, num_bytes = [], 0
        for bucket in pack(weights.tensors, weights.bucket_bytes):  # other ranks' sources yield nothing
            references.append(weights.put(self.payload(bucket)))
            num_bytes += bucket.data.nbytes
        return PublishedWeights(policy_version=weights.policy_version, parts=tuple(references), num_bytes=num_bytes)

    def payload(self, bucket: Bucket) -> Payload:
        """A bucket as a piece of a weight update: {"transport", "bucket": uint8 array, "specs"}."""
        return {"transport": self.name, "bucket": bucket.data, "specs": [asdict(spec) for spec in bucket.specs]}

    def offer(self, request: SyncRequest) -> Offer:
        """The same references for every replica, also for one that replaces another during the sync."""
        return _Buckets(self.name, request.weights.parts)

    def receive(self, payload: Payload, rank: SamplerRank) -> None:
        """Loads views of a bucket; on one node it lies in the store's own memory."""
        from still_ray.weight_sync.packing import unpack

        rank.load(unpack(payload["bucket"], payload["specs"]))


class _Buckets(Offer):
    def __init__(self, carrier: str, references: Sequence[Any]) -> None:
        self.carrier = carrier
        self._references = references

    def payloads(self, replica: str) -> Sequence[Any]:
        return self._references
