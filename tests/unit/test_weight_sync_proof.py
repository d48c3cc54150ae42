from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from still_ray.algo.placement import default_tolerance
from still_ray.types import ProbeSequence
from still_ray.weight_sync.digests import update_digest
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.proof import (
    Answer,
    Claim,
    ProbeProof,
    Prover,
    changed_share,
    compare,
    prove,
    shift,
)

PROBES = [
    ProbeSequence(token_ids=(1, 2, 3), logprobs=(-1.0, -2.0)),
    ProbeSequence(token_ids=(4, 5), logprobs=(-3.0,)),
]
Scores = list[list[float]]


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


def test_bfloat16_is_given_more_room() -> None:
    assert default_tolerance("bfloat16") > default_tolerance("float32") == default_tolerance("unheard of")


def test_shift_is_the_mean_absolute_change() -> None:
    assert shift([[-1.0, -2.0], [-3.0]], [[-2.0, -2.0], [-1.0]]) == pytest.approx(1.0)
    assert shift([], []) == 0.0


# -- what a replica computes ------------------------------------------------------------------------------------------

DTYPES = {"float32": 7e-7, "bfloat16": 0.0134}
"""Mean difference between vLLM and transformers with equal weights, as `test_vllm_sampler` finds it."""


class Model:
    """Scores of 4 probes by the trainer and by a replica, before and after an update that moves them."""

    def __init__(self, moved_by: float, noise: float) -> None:
        draw = random.Random(7)
        shape = [range(50)] * 4
        self.old = [[-2.0 + draw.random() for _ in row] for row in shape]
        self.move = [[moved_by * draw.gauss(0, 1.2533) for _ in row] for row in shape]
        self.noise = [[noise * draw.gauss(0, 1.2533) for _ in row] for row in shape]
        self.new = added(self.old, self.move)

    def replica(self, share: float = 1.0) -> Scores:
        """What the replica computes when that share of the update has reached its model."""
        moved = [[share * value for value in row] for row in self.move]
        return added(added(self.old, moved), self.noise)

    def probes(self, *, start: bool = True) -> list[ProbeSequence]:
        starts = self.old if start else [[]] * 4
        scored = zip(self.new, starts, strict=True)
        return [ProbeSequence(token_ids=(0,) * 51, logprobs=tuple(new), start_logprobs=tuple(s)) for new, s in scored]


def added(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> Scores:
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(left, right, strict=True)]


def claim_of(probes: Sequence[ProbeSequence], dtype: str, noise: float | None = None) -> Claim:
    return Claim(sampler="replica-0", policy_version=3, probes=probes, tolerance=default_tolerance(dtype), noise=noise)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("moved_by", "shares"), [(0.08, (0.0, 0.3)), (0.5, (0.0, 0.3, 0.65)), (3.0, (0.0, 0.3, 0.65))])
def test_new_weights_are_proved_and_old_ones_are_not(dtype: str, moved_by: float, shares: tuple[float, ...]) -> None:
    """Nothing arrived, or one rank of two or of eight kept its old shard, which leaves 0.7 and 0.35 of the distance.

    0.08 is what the demo's DPO moves the probes by; bfloat16's tolerance alone would let the old weights pass.
    """
    model = Model(moved_by, DTYPES[dtype])
    claim = claim_of(model.probes(), dtype)
    proof = prove(claim, model.replica(), model.replica(0.0))
    assert not proof.weak and proof.shift == pytest.approx(moved_by, rel=0.2)
    for share in shares:
        with pytest.raises(SyncError, match="replica-0 does not serve policy version 3: its probe's log-probabilities"):
            prove(claim, model.replica(share), model.replica(0.0))


@pytest.mark.parametrize(("dtype", "moved_by"), [("float32", 1e-6), ("bfloat16", 0.01)])
def test_a_move_below_the_noise_is_a_weak_proof(dtype: str, moved_by: float) -> None:
    model = Model(moved_by, DTYPES[dtype])
    proof = prove(claim_of(model.probes(), dtype), model.replica(), model.replica(0.0))
    assert proof.weak and proof.difference.mean < proof.allowed < default_tolerance(dtype)


def test_noise_is_known_from_the_weights_before_or_from_the_version_before() -> None:
    """A stage that started from other weights than the replica's has scores that say nothing of the noise."""
    model = Model(0.08, DTYPES["bfloat16"])
    elsewhere = [replace(probe, start_logprobs=tuple(x - 1 for x in probe.logprobs)) for probe in model.probes()]
    stale = (model.replica(0.0), model.replica(0.0))
    for probes in (model.probes(start=False), elsewhere):
        assert prove(claim_of(probes, "bfloat16"), *stale).weak, "nobody knows the noise: within the tolerance"
        with pytest.raises(SyncError, match="does not serve"):
            prove(claim_of(probes, "bfloat16", noise=0.01), *stale)


def test_the_tolerance_is_never_exceeded() -> None:
    model = Model(30.0, 0.4)
    with pytest.raises(SyncError, match=r"0\.1 is allowed \(sync.tolerance: 0\.1\)"):
        prove(claim_of(model.probes(), "bfloat16", noise=0.4), model.replica(), model.replica(0.0))


def test_scores_that_stayed_the_same_to_the_last_bit_show_that_nothing_was_loaded() -> None:
    model = Model(0.01, DTYPES["bfloat16"])
    claim = claim_of(model.probes(), "bfloat16")
    assert prove(claim, model.replica(0.0), model.replica(0.0)).weak
    with pytest.raises(SyncError, match="those before the update, to the last bit"):
        prove(replace(claim, has_moved=True), model.replica(0.0), model.replica(0.0))


# -- what a session knows ---------------------------------------------------------------------------------------------

OLD, NEW = {"a": "1", "b": "2", "c": "3"}, {"a": "4", "b": "5", "c": "3"}


def answer(model: Model, share: float = 1.0, **changes: object) -> Answer:
    whole = Answer(
        policy_version=1,
        took_weights=True,
        scores_before=model.replica(0.0),
        scores_after=model.replica(share),
        digests=(update_digest(NEW),) * 2,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def started(model: Model, share: float = 1.0, **changes: object) -> Answer:
    """A replica that came up with the version: late, or in the place of another."""
    return answer(model, share, took_weights=False, scores_before=model.replica(share), **changes)


def prover(model: Model, dtype: str = "bfloat16") -> Prover:
    found = Prover(default_tolerance(dtype))
    found.expect((1, "/checkpoint"), model.probes(), NEW)
    return found


def judged(proof: ProbeProof | None) -> ProbeProof:
    assert proof is not None
    return proof


def test_every_rank_must_have_received_what_was_sent() -> None:
    model = Model(0.5, 0.01)
    assert not judged(prover(model).judge("replica-0", answer(model))).weak
    wrong = answer(model, digests=(update_digest(NEW), update_digest(OLD)))
    with pytest.raises(SyncError, match="replica-0 does not serve policy version 1: rank 1 received other weights"):
        prover(model).judge("replica-0", wrong)
    with pytest.raises(SyncError, match="it received nothing"):
        prover(model).judge("replica-0", answer(model, digests=()))
    with pytest.raises(SyncError, match="replica-0 serves version 0 instead of 1"):
        prover(model).judge("replica-0", answer(model, policy_version=0))


@pytest.mark.parametrize(("dtype", "noise"), DTYPES.items())
def test_a_replica_that_comes_later_is_held_against_the_weights_before(dtype: str, noise: float) -> None:
    """It has no scores of the version before; those of the replicas that were there stand in."""
    model = Model(0.08, noise)
    session = prover(model, dtype)
    session.judge("replica-0", answer(model))
    assert not judged(session.judge("replica-1", started(model))).weak
    with pytest.raises(SyncError, match="replica-2 does not serve policy version 1"):
        session.judge("replica-2", started(model, share=0.0))


@pytest.mark.parametrize(("dtype", "noise"), DTYPES.items())
def test_a_replica_that_dropped_its_weights_is_held_against_the_noise_or_anothers_weights_before(
    dtype: str, noise: float
) -> None:
    model = Model(0.5, noise)
    woken = answer(model, scores_before=())
    assert not judged(prover(model, dtype).judge("replica-0", woken)).weak
    with pytest.raises(SyncError, match="replica-0 does not serve policy version 1: its probe's log-probabilities"):
        prover(model, dtype).judge("replica-0", answer(model, share=0.0, scores_before=()))
    session = prover(model, dtype)
    session.judge("replica-1", answer(model))
    assert judged(session.judge("replica-0", woken)).shift > 0, "those of a replica that stayed awake stand in"


def test_the_first_replicas_of_a_resumed_session_agree_with_the_trainer_and_measure_the_noise() -> None:
    model = Model(0.08, 0.01)
    session = prover(model)
    proof = judged(session.judge("replica-0", started(model)))
    assert (proof.weak, proof.shift) == (False, 0.0)
    later = Model(0.08, 0.01)
    session.expect((2, "/later"), later.probes(start=False), OLD)
    stale = answer(later, share=0.0, policy_version=2, digests=(update_digest(OLD),))
    with pytest.raises(SyncError, match="replica-0 does not serve policy version 2"):
        session.judge("replica-0", stale)


def test_an_update_that_never_happened_is_seen_below_the_noise() -> None:
    model = Model(0.001, 0.01)
    session = prover(model)
    session.judge("replica-0", answer(model))
    session.expect((2, "/later"), model.probes(), OLD)
    with pytest.raises(SyncError, match="to the last bit"):
        session.judge("replica-0", answer(model, 0.0, policy_version=2, digests=(update_digest(OLD),)))


def test_a_policy_without_probes_and_digests_has_nothing_to_prove() -> None:
    session = Prover(1e-3)
    session.expect((0, "backbone"), [])
    nothing = Answer(policy_version=0, took_weights=False, scores_before=(), scores_after=())
    assert session.judge("replica-0", nothing) is None


def test_the_share_of_tensors_that_changed() -> None:
    assert changed_share(OLD, NEW) == pytest.approx(2 / 3)
    assert changed_share({}, NEW) == changed_share(OLD, {}) == 0.0
