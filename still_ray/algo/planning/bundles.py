"""Which resources the actors of a run ask for at once, and whether the machines can hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from still_ray.algo.placement import sampler_gpus, uses_gpu
from still_ray.algo.planning.cluster import NodeType
from still_ray.algo.planning.findings import Finding
from still_ray.config import Recipe

READER_CPUS: Final = 1.0
"""CPUs of Ray Data's readers. Source: still_ray.actors.cluster."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What one actor asks for; it must come from one machine.

    Attributes:
        role: "sampler", "trainer", "verifier" or "reader".
        cpus: Ray CPUs.
        gpus: Ray GPUs.
        key: The recipe's key that says how many of these there are.
    """

    role: str
    cpus: float
    gpus: float
    key: str


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the bundles went.

    Attributes:
        nodes: For each machine its type's name and the roles it holds, in order.
        unplaced: Bundles for which no machine had room.
    """

    nodes: tuple[tuple[str, tuple[str, ...]], ...]
    unplaced: tuple[Bundle, ...]


def bundles_of(recipe: Recipe, *, has_gpus: bool) -> tuple[Bundle, ...]:
    """Every actor of a run; trainer and samplers live side by side from the first stage to the last.

    Args:
        recipe: The recipe.
        has_gpus: Whether the cluster has any GPU: what "auto" comes down to.
    """
    sampler, trainer, verifier = recipe.sampler, recipe.trainer, recipe.verifier
    replica = Bundle(
        role="sampler",
        cpus=sampler.cpus_per_replica,
        gpus=sampler_gpus(recipe, has_gpus=has_gpus),
        key="sampler.num_replicas",
    )
    rank = Bundle(
        role="trainer",
        cpus=trainer.cpus_per_worker,
        gpus=float(uses_gpu(recipe, has_gpus=has_gpus)),
        key="trainer.num_workers",
    )
    judge = Bundle(role="verifier", cpus=verifier.cpus_per_worker, gpus=0.0, key="verifier.num_workers")
    reader = Bundle(role="reader", cpus=READER_CPUS, gpus=0.0, key="verifier.num_workers")
    return (
        *[replica] * sampler.num_replicas,
        *[rank] * trainer.num_workers,
        *[judge] * verifier.num_workers,
        reader,
    )


@dataclass
class _Machine:
    """What one machine has left, and what it holds."""

    name: str
    cpus: float
    gpus: float
    roles: tuple[str, ...] = ()

    def has_room_for(self, bundle: Bundle) -> bool:
        return self.cpus >= bundle.cpus and self.gpus >= bundle.gpus

    def take(self, bundle: Bundle) -> None:
        self.cpus -= bundle.cpus
        self.gpus -= bundle.gpus
        self.roles = (*self.roles, bundle.role)


def place(bundles: Sequence[Bundle], nodes: Sequence[NodeType]) -> Placement:
    """Puts the largest bundles first onto the machine with the least room that still has enough.

    Ray packs in much the same way; a placement found here is one that Ray can find, not always the one it takes.
    """
    machines = [_Machine(name=node.name, cpus=node.cpus, gpus=node.gpus) for node in nodes for _ in range(node.count)]
    unplaced = []
    for bundle in sorted(bundles, key=lambda b: (-b.gpus, -b.cpus)):
        fitting = [machine for machine in machines if machine.has_room_for(bundle)]
        if fitting:
            min(fitting, key=lambda machine: (machine.gpus, machine.cpus)).take(bundle)
        else:
            unplaced.append(bundle)
    return Placement(nodes=tuple((machine.name, machine.roles) for machine in machines), unplaced=tuple(unplaced))


def placement_findings(bundles: Sequence[Bundle], nodes: Sequence[NodeType], placement: Placement) -> list[Finding]:
    """What does not fit, one finding for each kind of actor."""
    found = []
    for bundle in dict.fromkeys(placement.unplaced):
        missing = placement.unplaced.count(bundle)
        found.append(_unplaced(bundle, missing, bundles, nodes))
    return found


def _unplaced(bundle: Bundle, missing: int, bundles: Sequence[Bundle], nodes: Sequence[NodeType]) -> Finding:
    text = f"{missing} of {bundles.count(bundle)} {bundle.role} actors find no machine with "
    text += f"{bundle.cpus:g} CPUs and {bundle.gpus:g} GPUs free: the run holds "
    text += f"{sum(b.gpus for b in bundles):g} GPUs and {sum(b.cpus for b in bundles):g} CPUs at once, the cluster has "
    text += f"{sum(n.count * n.gpus for n in nodes):g} and {sum(n.count * n.cpus for n in nodes):g}"
    advice = "lower it, or add machines" if bundles.count(bundle) > 1 else "add machines"
    too_large = all(bundle.gpus > node.gpus for node in nodes)
    if bundle.role == "sampler" and bundle.gpus and too_large:
        return Finding(
            severity="error",
            key="sampler.tensor_parallel_size",
            text=f"{text}; a replica must lie on one machine, and none has so many GPUs",
        )
    return Finding(severity="error", key=bundle.key, text=f"{text}; {advice}")
