"""Connecting to Ray: a cluster that is there, or one started on this machine for the length of the run."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from still_ray.algo.resolved import ResolvedRecipe
from still_ray.network import keep_direct
from still_ray.types import InputError, RunError

READER_CPUS = 1.0
"""CPUs kept for Ray Data's readers on a local cluster."""

CONNECT_TIMEOUT_S = 5.0

ADDRESS_VARIABLE = "RAY_ADDRESS"
ADDRESSES = "HOST:PORT of the GCS, ray://HOST:10001, or auto on a node of the cluster"
FOR_JOBS = "this is the address for jobs (ray job submit --address)"
ADDRESS = re.compile(r"(ray://)?(\[[0-9A-Fa-f:.%\w]+\]|[^\s/:@\[\]]+):[0-9]{1,5}")

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray counts a start that waited for so long as failed; nodes come when they come, and what is waited for is shown.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "864000",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a run waits for one at its end; a dead rank is noticed by one
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # shows Train runs in the dashboard
    "RAY_process_group_cleanup_enabled": "1",  # children of a killed actor end with it (ray issue 54364)
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore::FutureWarning",
}


def ray_environment() -> dict[str, str]:
    """What Ray reads from the environment of the processes that call it; the user's own values hold."""
    return {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The cluster of a run.

    Attributes:
        has_gpus: Whether any node offers GPUs.
        dashboard: Address of the dashboard; "" without one.
        logs: Folder of Ray's logs on this node.
    """

    has_gpus: bool
    dashboard: str
    logs: str


@contextmanager
def connected(recipe: ResolvedRecipe | None, output: Path) -> Iterator[Cluster]:
    """Joins the cluster that RAY_ADDRESS names (a submitted job has it), or starts one here; leaves it at the end.

    Args:
        recipe: What a local cluster must have room for; None: its cores are all that is needed, and no dashboard.
        output: File that takes what Ray prints on stdout in the meantime; a command's stdout holds its result alone.
    """
    missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    keep_direct(ray.util.get_node_ip_address())
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address := settled_address():
        options |= {"address": address, "runtime_env": {"env_vars": missing}}  # local workers inherit them
    else:
        num_cpus = local_cpus(recipe) if recipe else os.cpu_count()
        options |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": recipe is not None}
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as sink, redirect_stdout(sink):
        context = _initialized(options)
        try:
            yield _described(context)
        finally:
            ray.shutdown()


def _initialized(options: dict[str, Any]) -> Any:
    """`ray.init` without its warnings, the SIGTERM handler as it was before: that of Ray dumps a C++ stack."""
    address = options.get("address", "local")
    if address not in ("local", "auto") and (why := why_unreachable(address)):
        raise RunError(f"Ray cannot be reached or started: nothing answers at {address} ({why}){_advice()}")
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ray.init(**options)
    except Exception as error:  # named policy: Ray raises bare ones too; the log that takes its output has the rest
        traceback.print_exc(file=sys.stdout)
        raise RunError(f"Ray cannot be reached or started: {error}{_advice()}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)


def settled_address() -> str:
    """What RAY_ADDRESS says, "" where it says that there is no cluster to join; then nobody after this reads it either.

    Raises:
        InputError: It is no address of a cluster.
    """
    address = os.environ.get(ADDRESS_VARIABLE, "").strip()
    if address in ("", "local"):
        os.environ.pop(ADDRESS_VARIABLE, None)
        return ""
    if address.startswith("ray://"):
        raise InputError(
            f"{ADDRESS_VARIABLE} ({address}): a run's driver must be on a machine of the cluster, with the GCS's "
            "HOST:PORT here; or submit a job (jobs/README.md)"
        )
    check_address(address, named=ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = address
    return address


def check_address(address: str, *, named: str) -> None:
    """Refuses what is no address of a cluster, before Ray tries to join there, which takes it minutes.

    Args:
        address: What was given.
        named: The option or variable that gave it.

    Raises:
        InputError: It is none, or one that jobs are submitted to.
    """
    said = f"{named} ({address})"
    if address == "auto":
        return
    if address.partition("://")[0] in ("http", "https"):
        raise InputError(f"{said}: {FOR_JOBS}; give {ADDRESSES}, or unset it")
    if not ADDRESS.fullmatch(address):
        raise InputError(f"{said}: is no address of a cluster; give {ADDRESSES}, or unset it")
    if speaks_http(address):
        raise InputError(f"{said}: the dashboard answers there: {FOR_JOBS}; give {ADDRESSES}, or unset it")


def why_unreachable(address: str) -> str:
    """Why nothing answers at HOST:PORT or ray://HOST:PORT, "" if something does; Ray itself would try for minutes."""
    try:
        with _connection(address):
            return ""
    except (OSError, ValueError, OverflowError) as error:
        return str(error)


def speaks_http(address: str) -> bool:
    """Whether what answers at HOST:PORT speaks HTTP/1, as the dashboard does; the GCS and Ray's client port do not."""
    with suppress(OSError, ValueError, OverflowError), _connection(address) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: ray\r\nConnection: close\r\n\r\n")
        return connection.recv(5) == b"HTTP/"
    return False


def _connection(address: str) -> socket.socket:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S)


def _advice() -> str:
    """What to look at when a cluster does not answer; what it says of a wrong token is not in Ray's error."""
    if ADDRESS_VARIABLE not in os.environ:
        return ""
    return (
        f"; see that {ADDRESS_VARIABLE} ({os.environ[ADDRESS_VARIABLE]}) is right, and where the cluster wants a "
        "token, that RAY_AUTH_MODE=token and its token are set here"
    )


def _described(context: Any) -> Cluster:
    return Cluster(
        has_gpus=ray.cluster_resources().get("GPU", 0) > 0,
        dashboard=context.dashboard_url or "",
        logs=ray._private.worker.global_worker.node.get_logs_dir_path(),
    )


def beside_driver() -> NodeAffinitySchedulingStrategy:
    """Keeps an actor that a run cannot do without on the driver's node, and so off nodes that come and go."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def local_cpus(recipe: ResolvedRecipe) -> int:
    """Logical CPUs of a local cluster: at least what the recipe's actors ask for; they share the cores."""
    sampler, trainer, verifier = recipe.sampler, recipe.trainer, recipe.verifier
    asked = (
        sampler.num_replicas * sampler.cpus_per_replica
        + trainer.num_workers * trainer.cpus_per_worker
        + verifier.num_workers * verifier.cpus_per_worker
        + READER_CPUS
    )
    return max(os.cpu_count() or 1, int(-(-asked // 1)))
