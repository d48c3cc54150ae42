"""The end of a run that failed, on a real Ray: the actor that died, its node and its log are found and named."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from still_ray.actors.pool.actor_pool import ActorPool
from still_ray.actors.pool.cluster import Cluster, connected
from still_ray.actors.pool.failure_message import explained
from still_ray.types import RunError

pytestmark = pytest.mark.integration

LAST_WORDS = "the engine died: out of memory"


class Doomed:
    """Dies the way a replica does whose engine breaks."""

    async def ready(self) -> None:
        """Is up."""

    async def work(self) -> None:
        os.write(1, LAST_WORDS.encode())
        os._exit(1)


def launch(name: str) -> Any:
    return ray.remote(Doomed).options(name=name, num_cpus=0, max_restarts=0).remote()


def died(pool: ActorPool) -> ray.exceptions.RayActorError:
    """Kills the only actor of a pool; returns what its caller sees."""
    pool.wait_ready()
    with pytest.raises(ray.exceptions.RayActorError) as death:
        ray.get(pool.members()[0].handle.work.remote())
    return death.value


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with connected(None, tmp_path_factory.mktemp("verdict") / "ray.log") as cluster:
            yield cluster


def test_a_dead_replica_is_named_with_its_node_and_its_log(cluster: Cluster) -> None:
    counted: list[int] = []
    pool = ActorPool(
        "replica", launch, size=1, max_restarts=1, on_change=lambda kind, counts: counted.append(counts.num_died)
    )
    pool.resume()
    pool.replace("replica-0", died(pool))
    last = died(pool)
    with pytest.raises(RunError) as failure:
        pool.replace("replica-1", last)
    line = str(explained(failure.value, str(failure.value), stage="001-explore", logs=cluster.logs))
    assert len(line.splitlines()) == 1
    assert line.startswith(
        "stage 001-explore failed: replica-1 died and failures.max_replica_restarts (1) is used up: "
    )
    assert re.search(r"is used up: its process (died|ended with status 1); actor replica-1 ", line), line
    where, _, log = line.partition("; log: ")
    assert where.endswith(f"; actor replica-1 on node {ray.util.get_node_ip_address()}")
    assert LAST_WORDS in Path(log).read_text()
    assert "Traceback" not in line and "root causes" not in line
    assert counted[-1] == 1


def test_a_failure_of_no_actor_names_the_folder(cluster: Cluster) -> None:
    line = str(explained(RunError("no room"), "no room", stage="", logs=cluster.logs))
    assert line == f"no room; log: {cluster.logs}"
