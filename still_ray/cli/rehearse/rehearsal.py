"""What a rehearsal is, before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from still_ray.algo.rehearsal.faults import FaultPlan
from still_ray.algo.rehearsal.machines import Machine
from still_ray.algo.rehearsal.sizes import Cut
from still_ray.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A rehearsal before it starts.

    Attributes:
        recipe: At rehearsal size.
        machines: The head first.
        cuts: What was changed of the recipe.
        plan: What shall die.
    """

    recipe: Recipe
    machines: tuple[Machine, ...]
    cuts: tuple[Cut, ...]
    plan: FaultPlan

    @property
    def has_gpus(self) -> bool:
        """Whether any machine has GPUs."""
        return any(machine.gpus for machine in self.machines)
