"""The proof of a sync: probes, token sequences that the trainer scored, which a replica scores before and after.

Digests say what a replica received; probes say what it computes with it, which a fault of loading would change: a layer
that kept its old weights, a tensor-parallel shard that was lost. Two engines never agree to the last bit. So the scores
must be nearer the trainer's than such a fault would leave them: as near as they were when the weights were known to be
equal (the noise), or else a tenth of the distance before. Where the update moves the scores by hardly more than the
noise, they cannot tell, and the proof is weak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from still_ray.types import ProbeSequence
from still_ray.weight_sync.digests import update_digest
from still_ray.weight_sync.errors import SyncError

NOISE_FACTOR: Final = 3.0
"""How much larger than the noise that was measured a difference may be. Source: ours; see docs/decisions/0004."""
LEAST_NOISE: Final = 0.01
"""Noise that is always granted, as a share of the tolerance. Source: ours: 1e-5 for float32, 1e-3 for bfloat16."""
CLEARLY_NEARER: Final = 0.1
"""Share of the distance before that is clearly nearer. Source: ours: where one of N ranks keeps its old shard, about
1 / sqrt(N) of the distance is left, 0.1 for a hundred ranks."""
CLEAR_SHIFT: Final = 1.5
"""How far from the trainer's scores those before must be, over what is allowed, for the proof to be clear. Source:
ours: more than sqrt(2), so that half a model that kept its old weights is seen."""
MOVED_SHARE: Final = 0.5
"""Share of tensors that differ from the version before, from which on scores cannot stay the same to the last bit."""


@dataclass(frozen=True, kw_only=True)
class ProbeDifference:
    """How far a replica's log-probabilities are from the expected ones, over every position of every probe.

    Attributes:
        mean: Mean absolute difference.
        max: Largest absolute difference.
    """

    mean: float
    max: float


def compare(probes: Sequence[ProbeSequence], scored: Sequence[Sequence[float]]) -> ProbeDifference:
    """Compares a replica's scores with the probes.

    Args:
        probes: The sequences and the log-probabilities to expect.
        scored: The replica's log-probabilities, one row for each probe.

    Raises:
        SyncError: The rows do not match the probes, there is nothing to compare, or a number is not finite.
    """
    rows = [_row_differences(i, probe.logprobs, row) for i, (probe, row) in enumerate(_matched(probes, scored))]
    differences = [difference for row in rows for difference in row]
    if not differences:
        raise SyncError("weight sync cannot be proved: the probes hold no positions")
    return ProbeDifference(mean=sum(differences) / len(differences), max=max(differences))


def _matched(
    probes: Sequence[ProbeSequence], scored: Sequence[Sequence[float]]
) -> list[tuple[ProbeSequence, Sequence[float]]]:
    if len(probes) != len(scored):
        raise SyncError(f"weight sync cannot be proved: {len(probes)} probes, but {len(scored)} were scored")
    return list(zip(probes, scored, strict=True))


def _row_differences(index: int, expected: Sequence[float], scored: Sequence[float]) -> list[float]:
    if len(expected) != len(scored):
        raise SyncError(f"weight sync cannot be proved: probe {index} has {len(expected)} positions, not {len(scored)}")
    differences = [abs(a - b) for a, b in zip(expected, scored, strict=True)]
    if not all(difference < float("inf") for difference in differences):  # a NaN compares as False
        raise SyncError(f"weight sync failed: probe {index} has log-probabilities that are not finite numbers")
    return differences


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a replica has to prove.

    Attributes:
        sampler: Its name.
        policy_version: What it says that it serves.
        probes: The sequences and the trainer's log-probabilities of them.
        tolerance: Largest mean absolute difference of log-probabilities under any circumstances.
        noise: Mean absolute difference of the last version whose proof was clear; None: there is none.
        has_moved: Whether scores that stayed the same to the last bit show that nothing was loaded.
    """

    sampler: str
    policy_version: int
    probes: Sequence[ProbeSequence]
    tolerance: float
    noise: float | None = None
    has_moved: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a replica says after it was brought to a policy version.

    Attributes:
        policy_version: The version that it serves.
        took_weights: Whether it replaced its weights; else it had them from its start, or from an earlier update.
        scores_before: Its scores of the probes before; none: it had dropped the weights of before.
        scores_after: And after.
        digests: Of what each rank received, or of the files that it was started from.
    """

    policy_version: int
    took_weights: bool
    scores_before: Sequence[Sequence[float]]
    scores_after: Sequence[Sequence[float]]
    digests: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class ProbeProof:
    """That a replica's scores are the trainer's, and how well they show it.

    Attributes:
        difference: From the trainer's scores.
        allowed: Largest mean difference that would have passed.
        shift: Mean absolute change of the scores by the update; 0 if there was none.
        weak: Whether the scores before were so near the trainer's that old weights could have passed for new ones.
    """

    difference: ProbeDifference
    allowed: float
    shift: float = 0.0
    weak: bool = False


def prove(
    claim: Claim, after: Sequence[Sequence[float]], before: Sequence[Sequence[float]] | None = None
) -> ProbeProof:
    """Proves that a replica computes with the weights that it was sent.

    Args:
        claim: What is to be proved.
        after: The replica's scores now.
        before: Scores under the weights of the version before; None: this replica took no new weights.

    Raises:
        SyncError: The scores are too far from the trainer's, or say nothing.
    """
    difference = compare(claim.probes, after)
    if before is None:
        return _near_enough(claim, ProbeProof(difference=difference, allowed=_limit(claim, claim.noise)))
    distance = compare(claim.probes, before).mean
    limit = _limit(claim, _noise(claim, before))
    allowed = min(claim.tolerance, max(limit, CLEARLY_NEARER * distance))
    moved = shift(before, after)
    if claim.has_moved and moved == 0.0:
        raise SyncError(
            f"{_failure(claim)}: its probe's log-probabilities are those before the update, to the last bit"
        )
    is_clear = difference.mean <= CLEARLY_NEARER * distance or distance >= CLEAR_SHIFT * allowed
    return _near_enough(
        claim,
        ProbeProof(difference=difference, allowed=allowed, shift=moved, weak=not is_clear),
        f", {distance:.3g} before the update",
    )


class Prover:
    """Judges what replicas say after an update, and keeps of earlier answers what later ones are judged by.

    It keeps how far equal weights were from the trainer's scores, and what the weights before say of the present
    probes: a replica that was started with the new weights has no scores of the old ones itself.
    """

    def __init__(self, tolerance: float) -> None:
        """Knows nothing yet.

        Args:
            tolerance: Largest mean absolute difference of log-probabilities under any circumstances.
        """
        self._tolerance = tolerance
        self._policy: tuple[int, str] | None = None
        self._probes: Sequence[ProbeSequence] = ()
        self._digests: Mapping[str, str] = {}
        self._digests_before: Mapping[str, str] = {}
        self._scores_before: Sequence[Sequence[float]] | None = None
        self._noise: float | None = None
        self._noise_now: float | None = None

    def expect(
        self, policy: tuple[int, str], probes: Sequence[ProbeSequence], digests: Mapping[str, str] | None = None
    ) -> None:
        """Says what is to be proved from here on.

        Args:
            policy: Version and checkpoint.
            probes: With the trainer's scores; none: nothing can be proved but the version.
            digests: Of what the trainer held, by name; empty: it took none.
        """
        if policy == self._policy:
            return
        self._policy, self._probes = policy, probes
        self._digests_before, self._digests = self._digests, digests or {}
        self._scores_before, self._noise_now = None, None

    def judge(self, sampler: str, answer: Answer) -> ProbeProof | None:
        """Whether a replica serves what is expected; None where there are no probes.

        Args:
            sampler: Its name.
            answer: What it says.

        Raises:
            SyncError: It does not.
        """
        assert self._policy is not None, "expected first"
        version, _ = self._policy
        if answer.policy_version != version:
            raise SyncError(f"{sampler} serves version {answer.policy_version} instead of {version}")
        self._check_digests(sampler, answer)
        if not self._probes:
            return None
        own = answer.scores_before if answer.took_weights and answer.scores_before else None
        self._scores_before = self._scores_before or own
        before = own or self._scores_before
        proof = prove(self._claim(sampler, is_update=before is not None), answer.scores_after, before)
        self._noise_now = max(proof.difference.mean, self._noise_now or 0.0)
        self._noise = self._noise if proof.weak else self._noise_now
        return proof

    def _claim(self, sampler: str, *, is_update: bool) -> Claim:
        assert self._policy is not None, "expected first"
        return Claim(
            sampler=sampler,
            policy_version=self._policy[0],
            probes=self._probes,
            tolerance=self._tolerance,
            noise=self._noise if is_update or self._noise_now is None else self._noise_now,
            has_moved=changed_share(self._digests_before, self._digests) >= MOVED_SHARE,
        )

    def _check_digests(self, sampler: str, answer: Answer) -> None:
        if not self._digests:
            return
        expected = update_digest(self._digests)
        wrong = [rank for rank, digest in enumerate(answer.digests) if digest != expected]
        if wrong or not answer.digests:
            what = f"rank {wrong[0]} received other weights than the trainer held" if wrong else "it received nothing"
            raise SyncError(
                f"weight sync failed: {sampler} does not serve policy version {answer.policy_version}: {what}"
            )


def changed_share(before: Mapping[str, str], after: Mapping[str, str]) -> float:
    """Share of tensors whose digests differ between two versions; 0 where digests of one are not known."""
    if not before or not after:
        return 0.0
    return sum(before.get(name) != digest for name, digest in after.items()) / len(after)


def _noise(claim: Claim, before: Sequence[Sequence[float]]) -> float | None:
    """The noise of the last version, or of the weights before on these very probes, if the stage started from them.

    If it started from others, the scores before are further from the trainer's than two engines are.
    """
    starts = [probe.start_logprobs for probe in claim.probes]
    here = [shift(starts, before)] if all(starts) else []
    return min([*here, *([] if claim.noise is None else [claim.noise])], default=None)


def _limit(claim: Claim, noise: float | None) -> float:
    """How far two engines with equal weights may be from each other."""
    if noise is None:
        return claim.tolerance
    return min(claim.tolerance, NOISE_FACTOR * max(noise, LEAST_NOISE * claim.tolerance))


def _near_enough(claim: Claim, proof: ProbeProof, before: str = "") -> ProbeProof:
    found = proof.difference
    if found.mean > proof.allowed:
        raise SyncError(
            f"{_failure(claim)}: its probe's log-probabilities differ by {found.mean:.3g} on average (at most "
            f"{found.max:.3g}){before}; {proof.allowed:.3g} is allowed (sync.tolerance: {claim.tolerance:.3g})"
        )
    return proof


def _failure(claim: Claim) -> str:
    return f"weight sync failed: {claim.sampler} does not serve policy version {claim.policy_version}"


def shift(previous: Sequence[Sequence[float]], current: Sequence[Sequence[float]]) -> float:
    """Mean absolute change of the probes' log-probabilities between two policy versions: the proof could have failed.

    Args:
        previous: Scores of the probes under the version before.
        current: Scores under the new version, same shape.
    """
    pairs = [pair for a, b in zip(previous, current, strict=True) for pair in zip(a, b, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs) if pairs else 0.0
