"""The proof of a sync: what a replica says of known sequences is what the trainer says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from still_ray.types import ProbeSequence
from still_ray.weight_sync.errors import SyncError

TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest mean absolute difference of log-probabilities by dtype. Source: ours; float32 engines agree to about 1e-5,
bfloat16 ones round each hidden state to 8 bits, and their kernels sum in another order than the trainer's."""


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


def default_tolerance(dtype: str) -> float:
    """The tolerance for an engine of this dtype; that of float32 for one that is not known."""
    return TOLERANCES.get(dtype, TOLERANCES["float32"])


def require(difference: ProbeDifference, *, tolerance: float, sampler: str, policy_version: int) -> None:
    """Refuses a replica whose probe is too far off.

    Raises:
        SyncError: The mean difference exceeds the tolerance.
    """
    if difference.mean > tolerance:
        raise SyncError(
            f"weight sync failed: {sampler} does not serve policy version {policy_version}: its probe's "
            f"log-probabilities differ by {difference.mean:.3g} on average (at most {difference.max:.3g}); "
            f"sync.tolerance allows {tolerance:.3g}"
        )


def shift(previous: Sequence[Sequence[float]], current: Sequence[Sequence[float]]) -> float:
    """Mean absolute change of the probes' log-probabilities between two policy versions: the proof could have failed.

    Args:
        previous: Scores of the probes under the version before.
        current: Scores under the new version, same shape.
    """
    pairs = [pair for a, b in zip(previous, current, strict=True) for pair in zip(a, b, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs) if pairs else 0.0
