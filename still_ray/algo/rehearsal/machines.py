"""The machines that a rehearsal declares: those of a cluster file, those of the options, or as many as needed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from still_ray.algo.placement import resolve
from still_ray.algo.planning.bundles import READER_CPUS, Bundle, bundles_of, phases_of, place
from still_ray.algo.planning.cluster import Fleet, NodeType
from still_ray.algo.planning.placement_fit import placement_findings
from still_ray.config import Recipe
from still_ray.types import InputError

USUAL_DEVICES: Final = 8
"""GPUs of a machine, where nothing else is said. Source: ours, what clouds offer."""
CPUS_PER_DEVICE: Final = 12
"""CPUs of a machine for each of its GPUs, where nothing else is said. Source: ours, as `still-ray plan` assumes."""

_FIRST_OF: Final = re.compile(r"in\(\s*([^,)]*?)\s*(?:,.*)?\)")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine to declare.

    Attributes:
        name: What it is called in reports.
        cpus: Ray CPUs.
        gpus: Ray GPUs; they need not exist.
        labels: Ray node labels.
    """

    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)


def machines_of_fleet(recipe: Recipe, fleet: Fleet, *, head: str, where: str) -> tuple[Machine, ...]:
    """The machines of a cluster file that a run needs, the head first.

    Args:
        recipe: The recipe.
        fleet: Every machine that there can be.
        head: Name of the head's type.
        where: The file, in errors.

    Raises:
        InputError: The run does not fit; one line for each kind of actor.
    """
    settled = resolve(recipe, has_gpus=any(node.count and node.gpus for node in fleet.nodes))
    bundles = bundles_of(settled)
    placement = place(bundles, fleet.nodes, phases=phases_of(settled), max_nodes=fleet.max_nodes)
    if placement.unplaced:
        findings = placement_findings(bundles, fleet.nodes, placement)
        raise InputError("\n".join(f"{where}: {found.key}: {found.text}" for found in findings))
    types = {node.name: node for node in fleet.nodes}
    used = [name for name, roles in placement.nodes if roles and name != head]
    counts: dict[str, int] = defaultdict(int)
    machines = [_machine(types[head], head)]
    for name in used:
        counts[name] += 1
        machines.append(_machine(types[name], f"{name}-{counts[name]}"))
    return tuple(machines)


def _machine(node: NodeType, name: str) -> Machine:
    return Machine(name=name, cpus=node.cpus, gpus=node.gpus, labels=node.labels)


def machines_of_options(
    recipe: Recipe, *, nodes: int | None, devices: int | None, cpus: float | None
) -> tuple[Machine, ...]:
    """A small head without GPUs, and machines that are all alike but for the labels that the recipe asks for.

    Args:
        recipe: The recipe.
        nodes: How many machines beside the head; None: as many as its actors need.
        devices: GPUs of each; None: 8, or 0 for a recipe that asks for none.
        cpus: CPUs of each; None: 12 for each GPU, or what a run on one machine needs.

    Raises:
        InputError: An actor fits none of the machines, or they are too few.
    """
    if devices is None:
        devices = USUAL_DEVICES if any(bundle.gpus for bundle in bundles_of(resolve(recipe, has_gpus=False))) else 0
    settled = resolve(recipe, has_gpus=devices > 0)
    bundles = [bundle for bundle in bundles_of(settled) if bundle.role != "reader"]
    cpus = cpus or (CPUS_PER_DEVICE * devices if devices else sum(bundle.cpus for bundle in bundles))
    plain = NodeType(name="node", count=1, cpus=cpus, gpus=devices)
    groups = _label_groups(bundles)
    needed = [_num_needed(members, plain, phases_of(settled)) for _, members in groups]
    if nodes is not None and nodes < sum(needed):
        raise InputError(
            f"--nodes {nodes}: the actors of the recipe need {sum(needed)} machines of {devices} GPUs and {cpus:g} CPUs"
        )
    needed[0] += (nodes or sum(needed)) - sum(needed)
    labels = [labels for (labels, _), count in zip(groups, needed, strict=True) for _ in range(count)]
    head = Machine(name="head", cpus=READER_CPUS, gpus=0)
    return (
        head,
        *(Machine(name=f"node-{i}", cpus=cpus, gpus=devices, labels=own) for i, own in enumerate(labels, start=1)),
    )


def _label_groups(bundles: Sequence[Bundle]) -> list[tuple[dict[str, str], list[Bundle]]]:
    """The different labels that machines must have, and the bundles that go there; those without a wish go first."""
    groups: dict[tuple[tuple[str, str], ...], list[Bundle]] = defaultdict(list)
    for bundle in bundles:
        groups[tuple(sorted(_labels_for(bundle.selector).items()))].append(bundle)
    anywhere = groups.pop((), [])
    found = [(dict(labels), members) for labels, members in groups.items()] or [({}, [])]
    found[0][1].extend(anywhere)
    return found


def _labels_for(selector: Mapping[str, str]) -> dict[str, str]:
    """Labels that satisfy a selector: v and in(v, w) by v; !v and !in(v, w) by none."""
    wanted = {key: value.strip() for key, value in selector.items() if not value.strip().startswith("!")}
    return {key: found[1] if (found := _FIRST_OF.fullmatch(value)) else value for key, value in wanted.items()}


def _num_needed(bundles: Sequence[Bundle], node: NodeType, phases: Sequence[Collection[str]]) -> int:
    """How many machines hold all of these; the labels are right by construction."""
    plain = [replace(bundle, selector={}) for bundle in bundles]
    for number in range(1, len(plain) + 1):
        nodes = [NodeType(name=node.name, count=number, cpus=node.cpus, gpus=node.gpus)]
        if not (unplaced := place(plain, nodes, phases=phases).unplaced):
            return number
    largest = unplaced[0]
    raise InputError(
        f"--devices-per-node, --cpus-per-node: one {largest.role} asks for {largest.gpus:g} GPUs and {largest.cpus:g} "
        f"CPUs of one machine, each has {node.gpus:g} and {node.cpus:g}"
    )
