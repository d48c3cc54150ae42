"""Declared machines: a Ray cluster of several nodes on this machine, whose CPUs and GPUs exist on paper alone.

A node is a raylet with an object store and agents; the head also has the cluster's control service.

Each is what `ray.cluster_utils.Cluster` makes, started side by side. That class starts one after the other, takes over
the handler of SIGTERM, and overwrites the file in which `ray start` keeps the address of a head of the user's own.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import psutil
from ray._private.node import Node
from ray._private.parameter import RayParams

from still_ray.actors.pool.cluster import ray_environment
from still_ray.algo.rehearsal.machines import Machine
from still_ray.types import RunError

OBJECT_STORE_BYTES = 80 * 2**20
"""Of each node: the fakes send little. Source: ours; Ray takes no less than 75 MiB."""

ENVIRONMENT = {
    "RAY_enable_worker_prestart": "0",  # a declared CPU would get a process
    "RAY_prestart_worker_first_driver": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",  # a node that is gone is noticed in seconds
    "RAY_health_check_failure_threshold": "3",
    "RAY_enable_metrics_collection": "0",
}
HIDDEN = ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "RAY_NAMESPACE")
"""Ray refuses more GPUs than the first allows; the other two name a cluster of the user's."""


@dataclass(frozen=True, kw_only=True)
class MachineTime:
    """When a machine was there.

    Attributes:
        machine: The machine.
        node_id: Of its Ray node, which is another each time it comes.
        begin_s: On the clock that all processes of this machine share.
        end_s: When it was killed; None: it was not.
    """

    machine: Machine
    node_id: str
    begin_s: float
    end_s: float | None = None


class VirtualCluster:
    """The nodes that are up."""

    def __init__(self) -> None:
        """Starts nothing."""
        # A node's processes end with the thread that started them, so these threads live as long as the cluster.
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="declared")
        self._numbers = itertools.count()
        self._head: Node | None = None
        self._head_machine: Machine | None = None
        self._nodes: dict[str, tuple[Machine, Future[Node]]] = {}
        self.times: list[MachineTime] = []
        """When each machine was there; those that came back twice."""

    def start(self, machines: Sequence[Machine]) -> None:
        """Starts the head, which is the first, and then the others side by side; returns when all are up."""
        self._head_machine = machines[0]
        self._head = self._threads.submit(
            _started, machines[0], {"include_dashboard": False, "no_monitor": True}
        ).result()
        for machine in machines[1:]:
            self.add(machine)
        self.wait()

    @property
    def address(self) -> str:
        """What RAY_ADDRESS must say."""
        assert self._head is not None
        return str(self._head.gcs_address)

    def wait(self) -> None:
        """Waits until every machine is up.

        Raises:
            RunError: One did not start.
        """
        for machine, started in self._nodes.values():
            try:
                started.result()
            except Exception as error:  # named policy: Ray raises plain exceptions here
                raise RunError(f"declared machine {machine.name} did not start: {error}") from error

    def machine_ids(self) -> dict[str, Machine]:
        """The machines that are up by the ids of their Ray nodes, the head first."""
        assert self._head is not None
        assert self._head_machine is not None
        done = [(machine, started) for machine, started in self._nodes.values() if started.done()]
        others = {started.result().node_id: machine for machine, started in done if started.exception() is None}
        return {self._head.node_id: self._head_machine, **others}

    def kill(self, node_id: str) -> Machine:
        """Kills every process of a node, as the end of a spot machine does."""
        machine, started = self._nodes.pop(self.machine_ids()[node_id].name)
        now = time.monotonic()
        self.times = [replace(one, end_s=now) if one.node_id == node_id else one for one in self.times]
        _ended(started.result())
        return machine

    def close(self) -> None:
        """Ends every node by the ids of its processes."""
        nodes = [started for _, started in self._nodes.values()]
        ended = [self._threads.submit(lambda one: _ended(one.result()), started) for started in nodes]
        for one in ended:
            with suppress(Exception):  # one that never started
                one.result()
        if self._head is not None:
            _ended(self._head)
        self._threads.shutdown()

    def add(self, machine: Machine) -> None:
        """Starts a machine; does not wait for it."""
        assert self._head is not None
        number = next(self._numbers)
        sockets = self._head._sockets_dir
        joined = {
            "gcs_address": self._head.gcs_address,
            "redis_address": self._head.redis_address,
            "node_manager_port": 0,
            "plasma_store_socket_name": f"{sockets}/store-{number}",
            "raylet_socket_name": f"{sockets}/raylet-{number}",
        }
        self._nodes[machine.name] = machine, self._threads.submit(self._joined, machine, joined)

    def _joined(self, machine: Machine, options: dict[str, Any]) -> Node:
        node = _started(machine, options)
        self.times.append(MachineTime(machine=machine, node_id=node.node_id, begin_s=time.monotonic()))
        return node


class _Node(Node):  # type: ignore[misc]
    """A node whose processes choose the names of their log files one node at a time."""

    _choosing = threading.Lock()

    def start_ray_processes(self) -> None:
        """See the base class."""
        with self._choosing:
            super().start_ray_processes()


def _started(machine: Machine, options: dict[str, Any]) -> Node:
    parameters = RayParams(
        num_cpus=machine.cpus,
        num_gpus=machine.gpus,
        labels=dict(machine.labels),
        object_store_memory=OBJECT_STORE_BYTES,
        min_worker_port=0,
        max_worker_port=0,
        include_log_monitor=False,
        **options,
    )
    return _Node(parameters, head="gcs_address" not in options, shutdown_at_exit=False, spawn_reaper=True)


def _ended(node: Node) -> None:
    """Kills the processes of a node, and then what these had started: Ray's agents would look for it for minutes."""
    below = [child for process in node.live_processes() for child in _below(process[1].pid)]
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    for child in below:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _below(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


@contextmanager
def virtual_cluster(machines: Sequence[Machine]) -> Iterator[VirtualCluster]:
    """A cluster of these machines that RAY_ADDRESS names; it is gone at the end, and the environment is as it was."""
    before = dict(os.environ)
    for name in HIDDEN:
        os.environ.pop(name, None)
    os.environ.update({**ray_environment(), **ENVIRONMENT})
    cluster = VirtualCluster()
    try:
        cluster.start(machines)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        cluster.close()
        os.environ.clear()
        os.environ.update(before)
