"""Devices that replicas and trainer ranks share: replicas hold them, and sleep while the ranks work.

consumes     where the replicas are
produces     the devices that ranks may work on, with every engine asleep that lies on one of them
waits for    replicas that start, where those that are up hold too few, and for engines that fall asleep
unblocked by a replacement, for one that dies in the meantime
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from still_ray.actors.pool.actor_pool import ActorPool, PoolMember, as_they_end
from still_ray.algo.devices import Devices, devices_for_ranks
from still_ray.algo.planning.bundles import lends_devices
from still_ray.algo.planning.cluster import labels_satisfy
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.types import RunError

NODE_ID_LABEL = "ray.io/node-id"
"""Of every node, set by Ray."""
TASKS = {"devices": "say which devices it has", "sleep": "fall asleep"}
"""What replicas are asked, by the method that is called."""


class DeviceSharing:
    """What a session's trainer asks before its ranks touch a device."""

    def __init__(self, recipe: ResolvedRecipe, samplers: ActorPool) -> None:
        """Asks nothing yet.

        Args:
            recipe: Its placement is elastic.
            samplers: The replicas.
        """
        self._samplers = samplers
        self._lends = lends_devices(recipe)
        self._num_ranks = recipe.trainer.num_workers
        self._labels = recipe.trainer.node_labels
        self._timeout_s = recipe.sync.timeout_s
        self._held: dict[str, Devices] = {}

    def present(self, preferred: Devices) -> Devices | None:
        """The devices that ranks would work on, None while replicas that are up hold too few; nobody falls asleep.

        Args:
            preferred: Those of the present group.
        """
        return devices_for_ranks(self._held_by_those_up(), self._num_ranks, preferred=preferred) if self._lends else ()

    def vacate(self, preferred: Devices) -> Devices:
        """Puts the engines to sleep that lie on the ranks' devices, which it returns.

        Without devices to lend, as on CPUs, every engine that is up sleeps, and none is returned.

        Raises:
            RunError: A replica refuses, or the budget of replacements is used up.
        """
        while True:
            self._samplers.resume()
            devices = self.present(preferred)
            if devices is None:
                self._wait_for_more()
            elif self._asleep([m for m in self._up() if not devices or set(devices) & set(self._held[m.name])]):
                return devices

    def _wait_for_more(self) -> None:
        if not self._samplers.starting():
            raise RunError(
                f"replicas that lie where ranks may (trainer.node_labels) hold fewer than {self._num_ranks} devices "
                "(trainer.num_workers)"
            )
        self._samplers.settle_next()

    def _up(self) -> list[PoolMember]:
        return [member for member in self._samplers.members() if member.up]

    def _held_by_those_up(self) -> Mapping[str, Devices]:
        """Devices of every replica that is up and lies where ranks may; each is asked once."""
        self._ask([member for member in self._up() if member.name not in self._held], "devices", self._held)
        nodes = {node["NodeID"] for node in ray.nodes() if labels_satisfy(node.get("Labels", {}), self._labels)}
        up = (member.name for member in self._up() if member.name in self._held)
        return {name: held for name in up if (held := self._held[name]) and held[0].node_id in nodes}

    def _asleep(self, members: Sequence[PoolMember]) -> bool:
        """Whether all of them sleep now; else one died and is replaced, perhaps elsewhere."""
        asleep: dict[str, None] = {}
        for member in members:
            self._samplers.suspend(member.name)
        self._ask(members, "sleep", asleep)
        return len(asleep) == len(members)

    def _ask(self, members: Sequence[PoolMember], what: str, answers: dict[str, Any]) -> None:
        """Calls a method of several replicas; one that is dead or silent is replaced, and gives no answer."""
        asked = {getattr(member.handle, what).remote(): member.name for member in members}
        for reference in as_they_end(asked, timeout_s=self._timeout_s):
            name = asked[reference]
            try:
                answers[name] = ray.get(reference, timeout=0)
            except ray.exceptions.RayError as error:
                self._samplers.replace_unless_refused(
                    name, error, task=TASKS[what], timeout_s=self._timeout_s, key="sync.timeout_s"
                )


def selectors_of(devices: Devices) -> list[dict[str, str]]:
    """Ray's label selector of the machine of each device."""
    return [{NODE_ID_LABEL: device.node_id} for device in devices]


def has_lost(devices: Devices) -> bool:
    """Whether the machine of one of them is gone."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return any(device.node_id not in alive for device in devices)
