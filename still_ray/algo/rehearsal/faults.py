"""Which deaths a rehearsal brings about, and when: only such as the recipe's failure policies must survive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from still_ray.algo.planning.bundles import PLACEMENTS
from still_ray.algo.stages import Stage, plan_stages
from still_ray.config import Recipe
from still_ray.types import StageKind

REPLICA_DIES_AT: Final = 0.15
VERIFIER_DIES_AT: Final = 0.4
NODE_DIES_AT: Final = 0.2
NODE_DIES_LATE_AT: Final = 0.65
"""Shares of a round's rollouts; the node goes late where it shares a round with the other two. Source: ours."""


class FaultKind(StrEnum):
    """What dies."""

    REPLICA = "replica"
    VERIFIER = "verifier"
    NODE = "sampler node"
    RANK = "trainer rank"
    SLEEPER = "replica that sleeps"


_IN_TRAINING: Final = (FaultKind.RANK, FaultKind.SLEEPER)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A death.

    Attributes:
        kind: Of what.
        stage: Name of the stage in which it happens.
        after: Share of the stage's work that is done by then; what dies in training dies after its first step.
    """

    kind: FaultKind
    stage: str
    after: float = 0.0


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """The deaths of a rehearsal.

    Attributes:
        faults: What will happen.
        left_out: What will not, each with the reason.
    """

    faults: tuple[Fault, ...]
    left_out: tuple[str, ...]


NO_FAULTS: Final = FaultPlan(faults=(), left_out=())


def plan_faults(recipe: Recipe, *, num_workers: int) -> FaultPlan:
    """One death of each kind, as far as the recipe's policies and the machines allow.

    Args:
        recipe: The recipe.
        num_workers: Machines beside the head.
    """
    plan = plan_stages(recipe)
    explores = [stage for stage in plan if stage.kind is StageKind.EXPLORE]
    reasons = dict(_reasons(recipe, has_rounds=bool(explores), num_workers=num_workers))
    wanted = _wanted(plan, explores, sleeps=_sleeps(recipe))
    faults = [fault for fault in wanted if fault.kind not in reasons]
    return FaultPlan(faults=tuple(faults), left_out=tuple(f"{kind}: {reason}" for kind, reason in reasons.items()))


def _sleeps(recipe: Recipe) -> bool:
    return recipe.placement != "auto" and PLACEMENTS[recipe.placement].sleeps


def _wanted(plan: tuple[Stage, ...], explores: list[Stage], *, sleeps: bool) -> Iterator[Fault]:
    if explores:
        first, later = explores[0].name, explores[min(1, len(explores) - 1)].name
        yield Fault(kind=FaultKind.REPLICA, stage=first, after=REPLICA_DIES_AT)
        yield Fault(kind=FaultKind.VERIFIER, stage=first, after=VERIFIER_DIES_AT)
        yield Fault(kind=FaultKind.NODE, stage=later, after=NODE_DIES_AT if later != first else NODE_DIES_LATE_AT)
    in_rounds = [stage for stage in plan if stage.kind is StageKind.TRAIN]
    trained = in_rounds[0] if in_rounds else next(stage for stage in plan if stage.trains)
    yield Fault(kind=FaultKind.RANK, stage=trained.name)
    if sleeps:  # not where the rank dies, if there are several
        yield Fault(
            kind=FaultKind.SLEEPER, stage=in_rounds[min(1, len(in_rounds) - 1)].name if in_rounds else trained.name
        )


def _reasons(recipe: Recipe, *, has_rounds: bool, num_workers: int) -> Iterator[tuple[FaultKind, str]]:
    """Why a death is left out, by kind."""
    failures = recipe.failures
    if not has_rounds:
        yield from ((kind, "the recipe has no rounds") for kind in FaultKind if kind not in _IN_TRAINING)
    elif failures.max_prompt_attempts == 1:
        yield FaultKind.REPLICA, "failures.max_prompt_attempts is 1, so the run must fail"
    elif failures.max_replica_restarts == 0:
        yield FaultKind.REPLICA, "failures.max_replica_restarts is 0, so the run must fail"
    if failures.max_replica_restarts == 0 and _sleeps(recipe):
        yield FaultKind.SLEEPER, "failures.max_replica_restarts is 0, so the run must fail"
    if has_rounds and failures.max_verifier_restarts == 0:
        yield FaultKind.VERIFIER, "failures.max_verifier_restarts is 0, so the run must fail"
    if has_rounds and num_workers < 2:  # noqa: PLR2004 - one must be left
        yield FaultKind.NODE, "there is one machine beside the head, and nothing would be left of the run"
    if failures.max_trainer_restarts == 0:
        yield FaultKind.RANK, "failures.max_trainer_restarts is 0, so the run must fail"
