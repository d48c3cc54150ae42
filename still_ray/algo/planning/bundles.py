"""Which resources the actors of a run ask for at once, and whether the machines can hold them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from still_ray.algo.planning.cluster import NodeType
from still_ray.algo.resolved import ResolvedRecipe

READER_CPUS: Final = 1.0
"""CPUs of Ray Data's readers. Source: still_ray.actors.pool.cluster."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What one actor asks for; it must come from one machine.

    Attributes:
        role: "sampler", "trainer", "verifier" or "reader".
        cpus: Ray CPUs.
        gpus: Ray GPUs.
        key: The recipe's key that says how many of these there are.
        selector: Labels that its machine must have, as Ray's label selectors say them.
        shared_gpus: GPUs that it works on and does not ask for: replicas of its machine hold them, and sleep meanwhile.
    """

    role: str
    cpus: float
    gpus: float
    key: str
    selector: Mapping[str, str] = field(default_factory=dict, hash=False)
    shared_gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the bundles went.

    Attributes:
        nodes: For each machine its type's name and the roles it holds, in order; with placement shared, one after
            the other.
        unplaced: Bundles for which no machine had room.
        is_full: Whether no machine more could be started, though there are more of some type.
    """

    nodes: tuple[tuple[str, tuple[str, ...]], ...]
    unplaced: tuple[Bundle, ...]
    is_full: bool = False

    @property
    def num_trainer_machines(self) -> int:
        """Machines over which the ranks are spread."""
        return sum("trainer" in roles for _, roles in self.nodes)


@dataclass(frozen=True, kw_only=True)
class PlacementRule:
    """What a placement means: who holds devices at the same time.

    Attributes:
        phases: Roles that hold resources at the same time, phase by phase. Roles of different phases use the same
            devices one after the other, and are started anew for it.
        sleeps: Whether ranks work on devices that replicas hold, whose engines sleep meanwhile; without GPUs on both
            sides all engines do.
    """

    phases: tuple[frozenset[str], ...]
    sleeps: bool = False

    @property
    def takes_turns(self) -> bool:
        """Whether trainer and samplers are never up together."""
        return not any({"sampler", "trainer"} <= phase for phase in self.phases)

    @property
    def shares_devices(self) -> bool:
        """Whether trainer and samplers work on the same devices, one after the other."""
        return self.takes_turns or self.sleeps


_EVERYBODY: Final = (frozenset({"sampler", "trainer", "verifier", "reader"}),)

PLACEMENTS: Final[Mapping[str, PlacementRule]] = {
    "dedicated": PlacementRule(phases=_EVERYBODY),
    "shared": PlacementRule(phases=(frozenset({"sampler", "verifier", "reader"}), frozenset({"trainer", "verifier"}))),
    "elastic": PlacementRule(phases=_EVERYBODY, sleeps=True),
}
"""Every placement by its name in a recipe: all that places actors, counts time or looks for a better one reads it."""


def phases_of(recipe: ResolvedRecipe) -> tuple[frozenset[str], ...]:
    """Which roles hold resources at the same time, phase by phase.

    Samplers that `release_while_training` ends come back beside the trainer: it keeps what it holds.
    """
    return PLACEMENTS[recipe.placement].phases


def releases_samplers(recipe: ResolvedRecipe) -> bool:
    """Whether the replicas end while the trainer works."""
    return PLACEMENTS[recipe.placement].takes_turns or recipe.sampler.release_while_training


def lends_devices(recipe: ResolvedRecipe) -> bool:
    """Whether ranks work on GPUs that replicas hold."""
    return PLACEMENTS[recipe.placement].sleeps and recipe.sampler.on_gpu and recipe.trainer.use_gpu


def bundles_of(recipe: ResolvedRecipe) -> tuple[Bundle, ...]:
    """Every actor of a run; `phases_of` says which of them live at the same time."""
    sampler, trainer, verifier = recipe.sampler, recipe.trainer, recipe.verifier
    lent = lends_devices(recipe)
    replica = Bundle(
        role="sampler",
        cpus=sampler.cpus_per_replica,
        gpus=sampler.gpus_per_replica,
        key="sampler.num_replicas",
        selector=sampler.node_labels,
    )
    rank = Bundle(
        role="trainer",
        cpus=trainer.cpus_per_worker,
        gpus=float(trainer.use_gpu and not lent),
        key="trainer.num_workers",
        selector=trainer.node_labels,
        shared_gpus=float(lent),
    )
    judge = Bundle(
        role="verifier",
        cpus=verifier.cpus_per_worker,
        gpus=0.0,
        key="verifier.num_workers",
        selector=verifier.node_labels,
    )
    reader = Bundle(role="reader", cpus=READER_CPUS, gpus=0.0, key="verifier.num_workers")
    return (
        *[replica] * sampler.num_replicas,
        *[rank] * trainer.num_workers,
        *[judge] * verifier.num_workers,
        reader,
    )


class _Machine:
    """What one machine has left, and what it holds."""

    def __init__(self, node: NodeType, *, is_up: bool) -> None:
        self.node = node
        self.is_up = is_up
        self.cpus = node.cpus
        self.gpus = node.gpus
        self.lent_gpus = 0.0
        self.roles: tuple[str, ...] = ()
        self._held: list[Bundle] = []

    def has_room_for(self, bundle: Bundle) -> bool:
        has_gpus = self.gpus >= bundle.gpus and self.lent_gpus >= bundle.shared_gpus
        return self.cpus >= bundle.cpus and has_gpus and self.node.satisfies(bundle.selector)

    def cost_of(self, bundle: Bundle) -> tuple[bool, bool, float, float]:
        """Lower is better: no new machine, no GPU machine for what needs none, no more room than needed."""
        return (not self.is_up, bool(self.node.gpus) and not bundle.gpus, self.gpus, self.cpus)

    def take(self, bundle: Bundle) -> None:
        self._held.append(bundle)
        self.roles = (*self.roles, bundle.role)
        self.is_up = True
        self._count()

    def keep(self, roles: Collection[str]) -> None:
        """Lets go of what has another role."""
        self._held = [bundle for bundle in self._held if bundle.role in roles]
        self._count()

    def _count(self) -> None:
        self.cpus = self.node.cpus - sum(bundle.cpus for bundle in self._held)
        self.gpus = self.node.gpus - sum(bundle.gpus for bundle in self._held)
        held = sum(bundle.gpus for bundle in self._held if bundle.role == "sampler")
        self.lent_gpus = held - sum(bundle.shared_gpus for bundle in self._held)


def place(
    bundles: Sequence[Bundle],
    nodes: Sequence[NodeType],
    *,
    phases: Sequence[Collection[str]],
    max_nodes: int | None = None,
) -> Placement:
    """Puts the largest bundles first onto the machine with the least room that still has enough.

    Ray packs in much the same way (trainer ranks are a placement group of strategy PACK, an actor lies on one machine);
    a placement found here is one that Ray can find, not always the one it takes.

    Args:
        bundles: Every actor.
        nodes: The machines.
        phases: Roles that hold resources at the same time; a role of several phases keeps its place.
        max_nodes: How many machines there can be at once; None: all.
    """
    machines = [_Machine(node, is_up=index < node.num_first) for node in nodes for index in range(node.count)]
    unplaced: list[Bundle] = []
    seen: frozenset[str] = frozenset()
    for roles in phases:
        for machine in machines:
            machine.keep(roles)
        new = [bundle for bundle in bundles if bundle.role in roles and bundle.role not in seen]
        unplaced += _placed(sorted(new, key=lambda bundle: (-bundle.gpus, -bundle.cpus)), machines, max_nodes)
        seen |= frozenset(roles)
    return Placement(
        nodes=tuple((machine.node.name, machine.roles) for machine in machines),
        unplaced=tuple(unplaced),
        is_full=_is_full(machines, max_nodes) and len(machines) > (max_nodes or 0),
    )


def _placed(bundles: Sequence[Bundle], machines: Sequence[_Machine], max_nodes: int | None) -> list[Bundle]:
    """Places bundles; returns those for which there was no room."""
    unplaced = []
    for bundle in bundles:
        full = _is_full(machines, max_nodes)
        fitting = [machine for machine in machines if machine.has_room_for(bundle) and (machine.is_up or not full)]
        if fitting:
            min(fitting, key=lambda machine: machine.cost_of(bundle)).take(bundle)
        else:
            unplaced.append(bundle)
    return unplaced


def held_devices(
    bundles: Sequence[Bundle], nodes: Sequence[NodeType], placement: Placement, phases: Sequence[Collection[str]]
) -> float:
    """GPUs of the machines that hold anything; where no machine has any, the most replicas and ranks at once.

    Args:
        bundles: Every actor.
        nodes: The machines.
        placement: Where the actors went.
        phases: Roles that hold resources at the same time.
    """
    gpus = {node.name: node.gpus for node in nodes}
    if any(gpus.values()):
        return sum(gpus[name] for name, roles in placement.nodes if roles)
    working = [bundle.role for bundle in bundles if bundle.role in ("sampler", "trainer")]
    return float(max(sum(role in phase for role in working) for phase in phases))


def _is_full(machines: Sequence[_Machine], max_nodes: int | None) -> bool:
    return max_nodes is not None and sum(machine.is_up for machine in machines) >= max_nodes
