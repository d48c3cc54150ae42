"""Devices that trainer ranks work on while the engines of the replicas that hold them sleep: which ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from still_ray.types import RunError


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU of a machine.

    Attributes:
        node_id: The machine's Ray node.
        gpu: Ray's id of the GPU on it.
    """

    node_id: str
    gpu: str


Devices = tuple[Device, ...]
"""One for each rank, those of a machine side by side; none where ranks ask Ray for what they work on."""


def devices_for_ranks(
    held: Mapping[str, Sequence[Device]], num_ranks: int, *, preferred: Devices = ()
) -> Devices | None:
    """Which of the devices that replicas hold the ranks work on.

    Those that are preferred if all are still held, so that a group that is there stays. Else those of the machines with
    the most, so that ranks lie on few machines, and replica by replica, so that few engines have to sleep.

    Args:
        held: Devices by replica.
        num_ranks: How many are wanted.
        preferred: Those of the present group.

    Returns:
        None if replicas hold too few.
    """
    if preferred and {device for devices in held.values() for device in devices}.issuperset(preferred):
        return preferred
    by_node: dict[str, dict[Device, None]] = defaultdict(dict)
    for name in sorted(held):
        for device in held[name]:
            by_node[device.node_id][device] = None
    nodes = sorted(by_node, key=lambda node_id: (-len(by_node[node_id]), node_id))
    offered = [device for node_id in nodes for device in by_node[node_id]]
    return tuple(offered[:num_ranks]) if len(offered) >= num_ranks else None


def own_gpu(devices: Devices, node_id: str, local_rank: int) -> str:
    """The GPU that a rank works on.

    Args:
        devices: Of all ranks.
        node_id: The rank's Ray node.
        local_rank: Its place among the ranks of that node, from 0.
    """
    return [device.gpu for device in devices if device.node_id == node_id][local_rank]


def visible_index(gpu: str, visible: str | None) -> int:
    """What CUDA calls a GPU in a process that sees several.

    Args:
        gpu: Ray's id of it.
        visible: CUDA_VISIBLE_DEVICES of the process, of which Ray takes its ids; None: it sees all.

    Raises:
        RunError: It does not see that GPU.
    """
    if visible is None:
        return int(gpu)
    if gpu not in visible.split(","):
        raise RunError(
            f"a rank is to work on GPU {gpu} and CUDA_VISIBLE_DEVICES shows it {visible or 'none'}: start the cluster "
            "with RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0"
        )
    return visible.split(",").index(gpu)
