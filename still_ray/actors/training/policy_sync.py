"""Policies and their proof: which version the replicas shall serve, and how they are brought to it.

consumes     a checkpoint; what the trainer offers by the recipe's transport, where it still holds the version
produces     a `SyncReport`: every replica serves the version, and its log-probabilities agree with the trainer's
waits for    every replica
unblocked by a replacement, which starts from the checkpoint itself
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from still_ray.actors.pool.actor_pool import ActorPool, PoolMember, as_they_end
from still_ray.actors.sampling.replica import UpdateReceipt
from still_ray.actors.training.transfers import RequestedTransfer
from still_ray.config import SyncConfig
from still_ray.store.policy import read_policy_record
from still_ray.types import ProbeSequence, RunError, StillRayError, SyncReport
from still_ray.weight_sync.proof import Answer, ProbeProof, Prover
from still_ray.weight_sync.transports import FALLBACK, transport_named
from still_ray.weight_sync.transports.base import Offer
from still_ray.weight_sync.transports.exchange import PublishedWeights, Receivers, SyncRequest


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
class _Joiner:
    """A replica that was asked to bring itself to the current policy while the others serve.

    Attributes:
        reference: Its answer.
        deadline: When the answer is not waited for any more, on the monotonic clock.
    """

    reference: ray.ObjectRef
    deadline: float


class PolicySync:
    """The driver's `WeightSync` on Ray, and the pipeline's `Admission`."""

    def __init__(
        self,
        samplers: ActorPool,
        policy: CurrentPolicy,
        config: SyncConfig,
        *,
        tolerance: float,
        published: Callable[[], PublishedWeights | None],
        synced: Callable[[SyncReport], None] = lambda report: None,
        receivers: Receivers | None = None,
        note: Callable[[str], None] = lambda text: None,
        doing: Callable[[str], None] = lambda what: None,
    ) -> None:
        """Connects replicas with the trainer.

        Args:
            samplers: The replicas.
            policy: Shared with the launcher of replicas.
            config: Transport and tolerance.
            tolerance: Largest mean difference of log-probabilities under any circumstances.
            published: What the trainer group holds, if anything.
            synced: Takes every report.
            receivers: How replicas take part in a transfer; None: one rank each, by gloo.
            note: Takes a line for the person who watches.
            doing: Takes what is waited for.
        """
        self._samplers = samplers
        self._policy = policy
        self._config = config
        self._prover = Prover(tolerance)
        self._published = published
        self._synced = synced
        self._receivers = receivers or Receivers()
        self._note = note
        self._doing = doing
        self._versions: dict[str, int] = {}
        self._joiners: dict[str, _Joiner] = {}

    def sync(self, policy_version: int, checkpoint: str) -> SyncReport:
        """See `still_ray.driver.ports.WeightSync`."""
        started = time.monotonic()
        self._joiners.clear()  # they are brought with all others, once what they were asked before is done
        self._policy.version, self._policy.checkpoint = policy_version, checkpoint
        expected = self._expected()
        weights = self._weights(policy_version)
        self._samplers.resume()
        self._samplers.wait_ready()
        proofs = self._bring_all(expected, self._offer(weights))
        transports = {proof.transport for proof in proofs if proof.transport}
        report = SyncReport(
            policy_version=policy_version,
            transport=" + ".join(sorted(transports)) or FALLBACK,
            num_replicas=len(self._samplers.loads()),
            num_bytes=weights.num_bytes if weights and transports - {FALLBACK} else 0,
            seconds=time.monotonic() - started,
            **_probe_facts([proof.probes for proof in proofs if proof.probes]),
            num_digests=len(expected.digests),
        )
        self._synced(report)
        if report.weak and transports:  # said once, when the weights came
            self._note(_weakness(report))
        return report

    def ask(self, name: str) -> None:
        """See `still_ray.actors.sampling.rollouts.Admission`."""
        member = self._samplers.member(name)
        if member is not None:
            self._joiners[name] = _Joiner(
                reference=self._ask(name, member.handle, self._expected(), Offer()),
                deadline=time.monotonic() + self._config.timeout_s,
            )

    def joining(self) -> Mapping[ray.ObjectRef, str]:
        """See `still_ray.actors.sampling.rollouts.Admission`."""
        return {joiner.reference: name for name, joiner in self._joiners.items()}

    def prove(self, name: str, answer: ray.ObjectRef) -> None:
        """See `still_ray.actors.sampling.rollouts.Admission`."""
        joiner = self._joiners.get(name)
        if joiner is None or joiner.reference != answer:
            return
        del self._joiners[name]
        try:
            self._proved(name, ray.get(joiner.reference, timeout=0))
        except ray.exceptions.RayError as error:
            self._replace_or_fail(name, error)
        else:
            self._samplers.joined(name)

    def expire(self) -> None:
        """See `still_ray.actors.sampling.rollouts.Admission`."""
        now = time.monotonic()
        for name, joiner in [(name, joiner) for name, joiner in self._joiners.items() if joiner.deadline <= now]:
            self.prove(name, joiner.reference)

    def _weights(self, policy_version: int) -> PublishedWeights | None:
        """What the trainer offers, when it is of this version."""
        held = self._published()
        return held if held is not None and held.policy_version == policy_version else None

    def _offer(self, weights: PublishedWeights | None) -> Offer:
        """What the transport makes of the trainer's weights for the replicas that are behind."""
        if weights is None:
            return Offer()
        request = SyncRequest(
            weights=weights,
            behind=self._behind,
            receivers=self._receivers,
            timeout_s=self._config.timeout_s,
            request=lambda order: RequestedTransfer(weights.trainer, order),
        )
        offer = transport_named(self._config.transport).offer(request)
        if offer.refusal:
            self._note(f"replicas read the checkpoint: {offer.refusal}")
        return offer

    def _behind(self) -> list[str]:
        """The replicas that are up and serve another version."""
        return [m.name for m in self._samplers.members() if m.ready and self._version_of(m) != self._policy.version]

    def _version_of(self, member: PoolMember) -> int:
        """What a ready replica serves: it said so when it came up, and at every sync since."""
        known = self._versions.get(member.name)
        version: int = ray.get(member.ready_ref) if known is None else known
        return version

    def _expected(self) -> _Expected:
        """What the present policy's replicas have to prove."""
        expected = read_expected(self._policy.version, self._policy.checkpoint)
        self._prover.expect((self._policy.version, self._policy.checkpoint), expected.probes, expected.digests)
        return expected

    def _bring_all(self, expected: _Expected, offer: Offer) -> list[_Proof]:
        """Brings every replica that is up to the current policy; one that dies is replaced and brought too.

        One that is still starting joins later: see `ask`. One that is up and was joining is among them.
        """
        proved: dict[str, _Proof] = {}
        while missing := [m for m in self._samplers.members() if m.up and m.name not in proved]:
            self._doing(self._waited_for([m.name for m in missing], expected, offer))
            asked = {self._ask(m.name, m.handle, expected, offer): m.name for m in missing}
            for reference in as_they_end(asked, timeout_s=self._config.timeout_s):
                name = asked[reference]
                try:
                    proved[name] = self._proved(name, ray.get(reference, timeout=0))
                    self._samplers.joined(name)
                except ray.exceptions.RayError as error:
                    offer.cancel()  # the others need not wait for it
                    self._replace_or_fail(name, error)
            self._samplers.wait_ready()
        return list(proved.values())

    def _waited_for(self, names: Sequence[str], expected: _Expected, offer: Offer) -> str:
        """What replicas do until they answer."""
        behind = [name for name in names if self._versions.get(name) != self._policy.version]
        steps = [f"loading its weights from {offer.carrier or 'the checkpoint'}"] if behind and self._versions else []
        steps += [f"scoring {len(expected.probes)} probes before and after"] if expected.probes else []
        return f"bringing {len(names)} replicas to version {self._policy.version}: {', '.join(steps) or 'asking them'}"

    def _replace_or_fail(self, name: str, error: ray.exceptions.RayError) -> None:
        """A dead or silent replica is replaced; one that lives and refuses the weights ends the run."""
        task = f"be brought to version {self._policy.version}"
        self._samplers.replace_unless_refused(
            name, error, task=task, timeout_s=self._config.timeout_s, key="sync.timeout_s"
        )

    def _ask(self, name: str, handle: Any, expected: _Expected, offer: Offer) -> ray.ObjectRef:
        update = handle.update.options(name=f"sync version {self._policy.version}")
        wanted = (self._policy.version, list(offer.payloads(name)), self._policy.checkpoint, list(expected.probes))
        return update.remote(*wanted, carrier=offer.carrier, digests=expected.digests)

    def _proved(self, name: str, receipt: UpdateReceipt) -> _Proof:
        """Checks a replica's version, what its ranks received and, where the policy has probes, its scores."""
        answer = Answer(
            policy_version=receipt.policy_version,
            took_weights=bool(receipt.transport),
            scores_before=receipt.scores_before,
            scores_after=receipt.scores_after,
            digests=receipt.digests,
        )
        try:
            probes = self._prover.judge(name, answer)
        except StillRayError as error:
            raise RunError(str(error)) from error
        self._versions[name] = receipt.policy_version
        if receipt.fallback:
            self._note(f"{name} read the checkpoint: {receipt.fallback}")
        return _Proof(transport=receipt.transport, probes=probes)


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """What the trainer left in a checkpoint for proofs; nothing in the backbone."""

    probes: tuple[ProbeSequence, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Proof:
    """What one replica proved, and how it got its weights ("" if it had them)."""

    transport: str
    probes: ProbeProof | None = None


def _probe_facts(proofs: Sequence[ProbeProof]) -> dict[str, Any]:
    """What a report says of the probes of all replicas: the worst of them."""
    return {
        "max_logprob_difference": max((proof.difference.max for proof in proofs), default=0.0),
        "noise": max((proof.difference.mean for proof in proofs), default=0.0),
        "probe_shift": min((proof.shift for proof in proofs if proof.shift), default=0.0),
        "weak": any(proof.weak for proof in proofs),
    }


def _weakness(report: SyncReport) -> str:
    rest = f"the digests of its {report.num_digests} tensors prove that they arrived" if report.num_digests else ""
    return (
        f"weak proof of version {report.policy_version}: it moves the probes by {report.probe_shift:.2g}, and replicas "
        f"and trainer differ by {report.noise:.2g}; {rest or 'nothing else proves it'}"
    )


def read_expected(policy_version: int, checkpoint: str) -> _Expected:
    """What the trainer left in a checkpoint for proofs; nothing for the backbone.

    Raises:
        RunError: A trained checkpoint has no record of its policy.
    """
    if policy_version == 0:
        return _Expected()
    record = read_policy_record(checkpoint)
    if record is None or record.policy_version != policy_version:
        raise RunError(f"{checkpoint}: does not hold policy version {policy_version}")
    return _Expected(probes=record.probes, digests=record.digests)
