from __future__ import annotations

import math

import pytest

from still_ray.types import ProbeSequence
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.proof import ProbeDifference, compare, default_tolerance, require, shift

PROBES = [
    ProbeSequence(token_ids=(1, 2, 3), logprobs=(-1.0, -2.0)),
    ProbeSequence(token_ids=(4, 5), logprobs=(-3.0,)),
]


def test_differences_are_taken_over_every_position() -> None:
    difference = compare(PROBES, [[-1.0, -2.5], [-2.0]])
    assert difference.mean == pytest.approx(0.5)
    assert difference.max == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("scored", "complaint"),
    [
        ([[-1.0, -2.0]], "2 probes, but 1"),
        ([[-1.0], [-3.0]], "probe 0 has 2 positions, not 1"),
        ([[-1.0, math.nan], [-3.0]], "not finite"),
        ([[-1.0, -math.inf], [-3.0]], "not finite"),
    ],
)
def test_scores_that_prove_nothing_are_refused(scored: list[list[float]], complaint: str) -> None:
    with pytest.raises(SyncError, match=complaint):
        compare(PROBES, scored)


def test_no_probes_prove_nothing() -> None:
    with pytest.raises(SyncError, match="no positions"):
        compare([], [])


def test_a_replica_that_is_too_far_off_is_named() -> None:
    require(ProbeDifference(mean=0.001, max=5.0), tolerance=0.001, sampler="sampler-1", policy_version=3)
    with pytest.raises(SyncError, match="sampler-1 does not serve policy version 3"):
        require(ProbeDifference(mean=0.0011, max=0.002), tolerance=0.001, sampler="sampler-1", policy_version=3)


def test_bfloat16_is_given_more_room() -> None:
    assert default_tolerance("bfloat16") > default_tolerance("float32") == default_tolerance("unheard of")


def test_shift_is_the_mean_absolute_change() -> None:
    assert shift([[-1.0, -2.0], [-3.0]], [[-2.0, -2.0], [-1.0]]) == pytest.approx(1.0)
    assert shift([], []) == 0.0
