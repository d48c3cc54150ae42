"""Whether the actors of a run find machines, and what to change where they do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from still_ray.algo.planning.bundles import Bundle, Placement
from still_ray.algo.planning.cluster import NodeType
from still_ray.algo.planning.findings import Finding


def placement_findings(bundles: Sequence[Bundle], nodes: Sequence[NodeType], placement: Placement) -> list[Finding]:
    """What does not fit, one finding for each kind of actor, and ranks that lie further apart than they need to."""
    found = []
    for bundle in dict.fromkeys(placement.unplaced):
        missing = placement.unplaced.count(bundle)
        found.append(_unplaced(bundle, missing, bundles, nodes, placement))
    return found or _spread_findings(bundles, nodes, placement)


def _unplaced(
    bundle: Bundle, missing: int, bundles: Sequence[Bundle], nodes: Sequence[NodeType], placement: Placement
) -> Finding:
    alike = bundles.count(bundle)
    text = f"{missing} of {alike} {bundle.role} actors find no machine with "
    lent = " and a GPU of a replica" if bundle.shared_gpus else ""
    text += f"{bundle.cpus:g} CPUs and {bundle.gpus:g} GPUs free{lent}: "
    matching = [node for node in nodes if node.satisfies(bundle.selector)]
    if not matching:
        text += f"none has the labels {_labels_text(bundle.selector)}, there are {_known_labels(nodes)}"
        return Finding(severity="error", key=f"{bundle.role}.node_labels", text=text)
    text += f"{_demand(bundles)}, the cluster has {_supply(nodes)}"
    if len(matching) < len(nodes):
        text += f" ({_supply(matching)} with the labels {_labels_text(bundle.selector)})"
    if placement.is_full:
        text += ", and its max_workers lets no more machines start"
    if bundle.role == "sampler" and bundle.gpus and all(bundle.gpus > node.gpus for node in matching):
        text += "; a replica must lie on one machine, and none has so many GPUs"
        return Finding(severity="error", key="sampler.tensor_parallel_size", text=text)
    advice = "lower it, or add machines" if alike > 1 else "add machines"
    return Finding(severity="error", key=bundle.key, text=f"{text}; {advice}")


def _demand(bundles: Sequence[Bundle]) -> str:
    parts = [f"{bundles.count(b)} {b.role} ({b.gpus:g} GPUs, {b.cpus:g} CPUs each)" for b in dict.fromkeys(bundles)]
    return f"the run asks for {', '.join(parts)}"


def _supply(nodes: Sequence[NodeType]) -> str:
    gpus = sum(node.count * node.gpus for node in nodes)
    return f"{gpus:g} GPUs and {sum(node.count * node.cpus for node in nodes):g} CPUs"


def _labels_text(labels: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in sorted(labels.items())) + "}"


def _known_labels(nodes: Sequence[NodeType]) -> str:
    return ", ".join(f"{node.name} {_labels_text(node.labels)}" for node in nodes)


def _spread_findings(bundles: Sequence[Bundle], nodes: Sequence[NodeType], placement: Placement) -> list[Finding]:
    """Ranks talk to each other in every layer of every step: the fewer machines, the better."""
    ranks = [bundle for bundle in bundles if bundle.role == "trainer"]
    if not ranks:
        return []
    rank = ranks[0]
    rooms = [
        room(node.cpus, node.gpus, rank.cpus, rank.gpus + rank.shared_gpus)
        for node in nodes
        if node.satisfies(rank.selector)
        for _ in range(node.count)
    ]
    text = scattered(placement.num_trainer_machines, rooms, num_ranks=len(ranks))
    return [Finding(severity="warning", key="trainer.node_labels", text=text)] if text else []


def scattered(num_machines: int, rooms: Sequence[int], *, num_ranks: int) -> str:
    """That the ranks of a group lie on more machines than they need; "" if they do not.

    Args:
        num_machines: Those on which they lie.
        rooms: How many ranks each machine of the cluster could hold.
        num_ranks: Of the group.
    """
    fewest, held = 0, 0
    for places in sorted(rooms, reverse=True):
        if held >= num_ranks:
            break
        fewest, held = fewest + 1, held + places
    if num_machines <= fewest or held < num_ranks:
        return ""
    return (
        f"the ranks lie on {num_machines} machines where {fewest} would hold them: others take their room; give each "
        "role machines of its own"
    )


def room(cpus: float, gpus: float, cpus_each: float, gpus_each: float) -> int:
    """How many actors one machine holds."""
    by_cpu = math.floor(cpus / cpus_each)
    return min(by_cpu, math.floor(gpus / gpus_each)) if gpus_each else by_cpu
