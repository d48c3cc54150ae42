"""Where a run stands, for whoever asks the cluster: one small actor a run, in a namespace that all runs share.

The driver posts the newest status at most every second and never waits for it.

The actor ends with its driver, so the boards of a cluster are the runs that go on there.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from still_ray.actors.pool.actor_pool import PoolCounts
from still_ray.actors.pool.cluster import ADDRESSES, check_address, why_unreachable
from still_ray.types import InputError, RunError, TrainProgress

NAMESPACE = "still-ray"
ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How a run stands at one moment.

    Attributes:
        name: The recipe's name.
        run_dir: Where its results are.
        dashboard: Address of Ray's dashboard; "" without one.
        started_at: Unix time of the driver's start.
        updated_at: Unix time of this status.
        stage: Name of the present stage; "" before the first.
        round: Its round.
        activity: What it is for, in words.
        doing: What goes on at present.
        policy_version: Version that the replicas serve.
        done: How much of the activity is done.
        total: Of how much; 0 while that is not known.
        facts: A few numbers ready to print.
        training: The trainer's last report in this stage; None before the first.
        beside: What the exploration beside the stage has done, ready to print; "" where there is none.
        pools: Replicas and verifiers.
        note: The last line for a person.
    """

    name: str
    run_dir: str
    dashboard: str
    started_at: float
    updated_at: float
    stage: str = ""
    round: int = 0
    activity: str = ""
    doing: str = ""
    policy_version: int = 0
    done: float = 0.0
    total: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)
    training: TrainProgress | None = None
    beside: str = ""
    pools: Mapping[str, PoolCounts] = field(default_factory=dict)
    note: str = ""


class StatusBoard:
    """Holds the newest status of one run."""

    def __init__(self, status: RunStatus) -> None:
        """Starts with a status."""
        self._status = status

    def __repr__(self) -> str:
        """The name that Ray shows."""
        return f"status of {self._status.name}"

    def post(self, status: RunStatus) -> None:
        """Takes a newer one."""
        self._status = status

    def read(self) -> RunStatus:
        """The newest."""
        return self._status


def start_board(status: RunStatus) -> Any:
    """Starts the board of a run beside its driver, where it outlives every other node."""
    context = ray.get_runtime_context()
    actor = ray.remote(StatusBoard).options(
        name=f"run:{status.name}:{context.get_job_id()}",
        namespace=NAMESPACE,
        num_cpus=0,
        max_restarts=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(context.get_node_id(), soft=True),
    )
    return actor.remote(status)


def read_statuses(address: str) -> list[RunStatus]:
    """The runs that go on at a cluster, the oldest first; a board that does not answer in time is left out.

    Args:
        address: `auto`, HOST:PORT of the GCS, or ray://HOST:PORT.

    Raises:
        InputError: There is no cluster at the address.
        RunError: It is there and refuses.
    """
    with _joined(address):
        named = ray.util.list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in named if actor["namespace"] == NAMESPACE]
        asked = [reference for name in names if (reference := _asked(name)) is not None]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_TIMEOUT_S) if asked else ([], [])
        return sorted((status for reference in answered for status in _answer(reference)), key=lambda s: s.started_at)


def _asked(name: str) -> Any | None:
    try:
        return ray.get_actor(name, namespace=NAMESPACE).read.remote()
    except ValueError:  # it has ended since it was listed
        return None


def _answer(reference: Any) -> Iterator[RunStatus]:
    try:
        yield ray.get(reference)
    except ray.exceptions.RayActorError:  # its run ended meanwhile
        return


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Joins a cluster for a question."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _check_reachable(address)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), _no_stderr():  # stdout is for the answer
            warnings.simplefilter("ignore")
            ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.CRITICAL)
    except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        hint = (
            "" if "RAY_AUTH_MODE" in os.environ else "; for a cluster with token authentication set RAY_AUTH_MODE=token"
        )
        raise RunError(f"--address {address}: {' '.join(str(error).split())}{hint}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Ray's C++ part warns on file descriptor 2 of every attempt to join; what came of them is said in one line."""
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _check_reachable(address: str) -> None:
    """Refuses an address at which nothing answers, before Ray tries to join there."""
    check_address(address, named="--address")
    if address != "auto" and (why := why_unreachable(address)):
        raise InputError(f"--address {address}: nothing answers there ({why}); give {ADDRESSES}")


__all__ = ["RunStatus", "StatusBoard", "read_statuses", "start_board"]
