"""Policies and their proof: which version the replicas shall serve, and how they are brought to it.

consumes     a checkpoint, and the trainer's packed buckets where it still holds the version
produces     a `SyncReport`: every replica serves the version, and its log-probabilities agree with the trainer's
waits for    every replica
unblocked by a replacement, which starts from the checkpoint itself
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from still_ray.actors.actor_pool import ActorPool, first_line, is_death
from still_ray.actors.replica import UpdateReceipt
from still_ray.config import SyncConfig
from still_ray.store.policy import read_policy_record
from still_ray.types import ProbeSequence, RunError, StillRayError, SyncReport
from still_ray.weight_sync.proof import ProbeDifference, compare, require, shift


@dataclass
class CurrentPolicy:
    """What a new replica starts from.

    Attributes:
        version: 0 is the backbone.
        checkpoint: HF model directory or hub id.
    """

    version: int
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A version that the trainer put into the object store.

    Attributes:
        policy_version: Which.
        buckets: References to payloads, in order.
        num_bytes: Their size.
    """

    policy_version: int
    buckets: tuple[Any, ...]
    num_bytes: int


class PolicySync:
    """The driver's `WeightSync` on Ray."""

    def __init__(
        self,
        samplers: ActorPool,
        policy: CurrentPolicy,
        config: SyncConfig,
        *,
        tolerance: float,
        published: Callable[[], PublishedWeights | None],
    ) -> None:
        """Connects replicas with the trainer.

        Args:
            samplers: The replicas.
            policy: Shared with the launcher of replicas.
            config: Transport and tolerance.
            tolerance: Largest mean difference of log-probabilities.
            published: What the trainer group holds, if anything.
        """
        self._samplers = samplers
        self._policy = policy
        self._config = config
        self._tolerance = tolerance
        self._published = published

    def sync(self, policy_version: int, checkpoint: str) -> SyncReport:
        """See `still_ray.driver.ports.WeightSync`."""
        started = time.monotonic()
        self._policy.version, self._policy.checkpoint = policy_version, checkpoint
        probes = read_probes(policy_version, checkpoint)
        weights = self._weights(policy_version)
        self._samplers.resume()
        self._samplers.wait_ready()
        differences, shifts = self._bring_all(probes, weights)
        return SyncReport(
            policy_version=policy_version,
            transport="object_store" if weights else "checkpoint",
            num_replicas=len(self._samplers.loads()),
            num_bytes=weights.num_bytes if weights else 0,
            seconds=time.monotonic() - started,
            max_logprob_difference=max((difference.max for difference in differences), default=0.0),
            probe_shift=max(shifts, default=0.0),
        )

    def admit(self, name: str) -> None:
        """Proves a replacement replica before it serves.

        Raises:
            RunError: The proof fails.
        """
        member = self._samplers.member(name)
        if member is not None:
            self._bring(name, member.handle, read_probes(self._policy.version, self._policy.checkpoint), None)

    def _weights(self, policy_version: int) -> PublishedWeights | None:
        """The trainer's buckets, when they are of this version and the transport uses them."""
        held = self._published() if self._config.transport == "object_store" else None
        return held if held is not None and held.policy_version == policy_version else None

    def _bring_all(
        self, probes: Sequence[ProbeSequence], weights: PublishedWeights | None
    ) -> tuple[list[ProbeDifference], list[float]]:
        """Brings every replica that is up to the current policy; one that dies is replaced and brought too.

        One that is still starting is brought by `admit`, when it joins.
        """
        proved: dict[str, tuple[ProbeDifference | None, float]] = {}
        while missing := [m for m in self._samplers.members() if m.ready and m.name not in proved]:
            asked = {member.name: self._ask(member.handle, probes, weights) for member in missing}
            deadline = time.monotonic() + self._config.timeout_s
            for name, reference in asked.items():
                try:
                    receipt = ray.get(reference, timeout=max(0.0, deadline - time.monotonic()))
                    proved[name] = self._proved(name, receipt, probes)
                except ray.exceptions.RayError as error:
                    self._replace_or_fail(name, error)
            self._samplers.wait_ready()
        differences = [difference for difference, _ in proved.values() if difference is not None]
        return differences, [moved for _, moved in proved.values()]

    def _bring(self, name: str, handle: Any, probes: Sequence[ProbeSequence], weights: PublishedWeights | None) -> None:
        try:
            receipt = ray.get(self._ask(handle, probes, weights), timeout=self._config.timeout_s)
            self._proved(name, receipt, probes)
        except ray.exceptions.RayError as error:
            self._replace_or_fail(name, error)

    def _replace_or_fail(self, name: str, error: ray.exceptions.RayError) -> None:
        """A dead or silent replica is replaced; one that lives and refuses the weights ends the run."""
        if not is_death(error) and not isinstance(error, ray.exceptions.GetTimeoutError):
            version = self._policy.version
            raise RunError(f"{name} cannot be brought to version {version}: {first_line(error)}") from error
        self._samplers.replace(name, error)

    def _ask(self, handle: Any, probes: Sequence[ProbeSequence], weights: PublishedWeights | None) -> ray.ObjectRef:
        buckets = list(weights.buckets) if weights else []
        return handle.update.remote(self._policy.version, buckets, self._policy.checkpoint, list(probes))

    def _proved(
        self, name: str, receipt: UpdateReceipt, probes: Sequence[ProbeSequence]
    ) -> tuple[ProbeDifference | None, float]:
        """Checks a replica's version and, where the policy has probes, its log-probabilities."""
        if receipt.policy_version != self._policy.version:
            raise RunError(f"{name} serves version {receipt.policy_version} instead of {self._policy.version}")
        if not probes:
            return None, 0.0
        try:
            difference = compare(probes, receipt.scores_after)
            require(difference, tolerance=self._tolerance, sampler=name, policy_version=self._policy.version)
        except StillRayError as error:
            raise RunError(str(error)) from error
        return difference, shift(receipt.scores_before, receipt.scores_after)


def read_probes(policy_version: int, checkpoint: str) -> tuple[ProbeSequence, ...]:
    """The probes that the trainer left in a checkpoint; none for the backbone.

    Raises:
        RunError: A trained checkpoint has no record of its policy.
    """
    if policy_version == 0:
        return ()
    record = read_policy_record(checkpoint)
    if record is None or record.policy_version != policy_version:
        raise RunError(f"{checkpoint}: does not hold policy version {policy_version}")
    return record.probes
