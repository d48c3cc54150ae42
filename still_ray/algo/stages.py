"""The order of a run: which stages a recipe asks for, and which comes next."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from still_ray.config import Recipe
from still_ray.facts import StageFacts, TrainFacts
from still_ray.types import StageKind

TRAINING_KINDS = frozenset({StageKind.IMITATE, StageKind.TRAIN})


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run.

    Attributes:
        kind: What it does.
        round: 0 for the backbone's evaluation and imitation, then 1, 2, ...
        policy_version: The version that the stage serves with; a training stage: the one it makes.
        method: Name of its training method; "" if it does not train.
        table: File name of what it learns from; "" if it does not train.
        beside: Of an exploration: name of the training stage that goes on at the same time; "": none does.
    """

    kind: StageKind
    round: int
    policy_version: int
    method: str = ""
    table: str = ""
    beside: str = ""

    @property
    def step(self) -> str:
        """What it does, in one word: its kind or, in a round, its training method."""
        return self.method if self.kind is StageKind.TRAIN else self.kind.value

    @property
    def name(self) -> str:
        """Name of its folder, e.g. "001-sft"."""
        return f"{self.round:03d}-{self.step}"

    @property
    def trains(self) -> bool:
        """Whether it makes a new policy version."""
        return self.kind in TRAINING_KINDS


def plan_stages(recipe: Recipe) -> tuple[Stage, ...]:
    """All stages of a recipe in order: backbone, imitate, then for each round explore and its training methods.

    An exploration that overlaps stands before the first training stage of the round before its own: they begin
    together, and it is complete first, since the replicas get the new version only after its end.
    """
    stages = [Stage(kind=StageKind.BACKBONE, round=0, policy_version=0)]
    explored = {number for number, _ in recipe.explorations}
    for number in range(len(recipe.rounds) + 1):
        version = stages[-1].policy_version
        trained = _training_stages(recipe, number, version)
        if number in explored - recipe.overlapped:
            stages.append(Stage(kind=StageKind.EXPLORE, round=number, policy_version=version))
        if number + 1 in recipe.overlapped:
            beside = trained[0].name
            stages.append(Stage(kind=StageKind.EXPLORE, round=number + 1, policy_version=version, beside=beside))
        stages += trained
    return tuple(stages)


def _training_stages(recipe: Recipe, number: int, version: int) -> list[Stage]:
    """The training stages of a round that begins with a policy version."""
    return [
        Stage(
            kind=StageKind.TRAIN if number else StageKind.IMITATE,
            round=number,
            policy_version=version + 1 + index,
            method=step.method.name,
            table=step.method.table,
        )
        for index, step in enumerate(step for step in recipe.steps if step.round == number)
    ]


def newest_trained(plan: Sequence[Stage], completed: Mapping[str, StageFacts]) -> Stage | None:
    """The last completed stage that left a checkpoint, or None while the policy is the backbone.

    Args:
        plan: All stages in order.
        completed: Facts of the completed stages by name; a training stage that was skipped made no policy.
    """
    trained = [stage for stage in plan if isinstance(completed.get(stage.name), TrainFacts)]
    return trained[-1] if trained else None


def advance(plan: Sequence[Stage], completed: Collection[str]) -> Stage | None:
    """The first stage that is not complete, or None when the run is done."""
    return next((stage for stage in plan if stage.name not in completed), None)
