"""What is where: Ray's own tables of actors and placement groups, read at moments of a rehearsal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import ray
from ray.core.generated import gcs_pb2

from still_ray.algo.rehearsal.held import Held

ROLES = {"FakeReplica": "sampler", "VerifierWorker": "verifier", "FakeRank": "trainer"}
"""Roles of the actors that hold resources, by class."""


@dataclass(frozen=True, kw_only=True)
class ActorSeen:
    """An actor that is up.

    Attributes:
        name: Its name.
        role: As in `still_ray.algo.planning.bundles.Bundle`.
        node_id: Where it is.
        pid: Its process.
        resources: What it asked Ray for.
    """

    name: str
    role: str
    node_id: str
    pid: int
    resources: Mapping[str, float] = field(hash=False)


def actors_up() -> list[ActorSeen]:
    """Every replica, verifier and trainer rank that is up."""
    accessor = ray._private.state.state._connect_and_get_accessor()
    tables = (gcs_pb2.ActorTableData.FromString(row) for row in accessor.get_actor_table(None, "ALIVE"))
    return [
        ActorSeen(
            name=table.name,
            role=ROLES[table.class_name],
            node_id=ray.NodeID(table.address.node_id).hex(),
            pid=table.pid,
            resources=_plain(table.required_resources),
        )
        for table in tables
        if table.class_name in ROLES
    ]


def held_by(actors: Sequence[ActorSeen]) -> tuple[Held, ...]:
    """What these actors hold."""
    return tuple(
        Held(role=one.role, name=one.name, node_id=one.node_id, cpus=one.resources["CPU"], gpus=one.resources["GPU"])
        for one in actors
    )


def pending() -> list[str]:
    """What waits for room: names of actors and of placement groups."""
    accessor = ray._private.state.state._connect_and_get_accessor()
    actors = (gcs_pb2.ActorTableData.FromString(row) for row in accessor.get_actor_table(None, "PENDING_CREATION"))
    groups = ray.util.placement_group_table().values()
    return [
        *(f"{actor.name or actor.class_name} ({_asked(_plain(actor.required_resources))})" for actor in actors),
        *(f"the placement group {group['name']}" for group in groups if group["state"] == "PENDING"),
    ]


def _asked(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    """CPUs and GPUs; those of a placement group's bundle go by names such as GPU_group_<id>."""
    amounts = {}
    for kind in ("CPU", "GPU"):
        names = [name for name in resources if name == kind or name.startswith(f"{kind}_group_")]
        amounts[kind] = max((resources[name] for name in names), default=0.0)
    return amounts
