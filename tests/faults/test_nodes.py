"""A run on a cluster whose nodes come and go while it samples, on devices that trainer and samplers share.

The cluster is several raylets on this machine. Training needs a whole device node, and so does a replica: neither can
run there before the other has let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.runs import REPLICAS, Run, json_of, keys_of, rows_of, small_recipe, started, write_recipe

pytestmark = pytest.mark.faults

DEVICE = {"still-ray.io/role": "device"}
DEVICE_CPUS = 2
NUM_PROBLEMS = 50
SAMPLES = 4


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head for the driver and the verifier."""
    monkeypatch.setenv("RAY_process_group_cleanup_enabled", "1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def device_node(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=DEVICE_CPUS, labels=DEVICE, wait=False)


def recipe_of(folder: Path) -> Path:
    base = small_recipe()
    return write_recipe(
        folder,
        small_recipe(
            placement="shared",
            imitate={**base["imitate"], "epochs": 1},
            explore={"samples_per_problem": SAMPLES, "max_tokens": 60, "num_problems": NUM_PROBLEMS},
            rounds=[{"method": "dpo"}],  # a policy that solves nothing leaves no pairs: the round is all that is left
            evaluate={"max_tokens": 60},
            data={"tiny_world": {"num_demonstrations": 100, "num_problems": NUM_PROBLEMS, "num_test": 20}},
            sampler={
                "num_replicas": 2,
                "min_replicas": 1,
                "cpus_per_replica": float(DEVICE_CPUS),
                "node_labels": DEVICE,
                "max_num_seqs": 2,  # slow enough for a node to leave while it samples
            },
            trainer={
                "num_workers": 1,
                "cpus_per_worker": float(DEVICE_CPUS),
                "node_labels": DEVICE,
                "logging_steps": 1,
            },
            failures={"max_replica_restarts": 0},
        ),
    )


def samplers_of(run: Run) -> set[str]:
    """Which replicas have made trajectories that are durable."""
    paths = run.run_dir.glob("trajectories/round=001/part-*.parquet")
    return {row["sampler"] for path in paths for row in rows_of(path)}


@contextmanager
def held_up(node: Any) -> Iterator[None]:
    """The replica of a node does not get on meanwhile, so that the round lasts until another node is there."""
    [raylet] = node.all_processes["raylet"]
    processes = psutil.Process(raylet.process.pid).children(recursive=True)
    replicas = [process for process in processes if any(title in " ".join(process.cmdline()) for title in REPLICAS)]
    assert replicas, "no replica on this node"
    for replica in replicas:
        replica.suspend()
    yield
    for replica in replicas:
        replica.resume()


def exploring(run: Run) -> bool:
    return not (run.run_dir / "rounds/001-explore/manifest.json").exists()


def test_nodes_join_and_leave_a_round_without_loss(cluster: Cluster, tmp_path: Path) -> None:
    first = device_node(cluster)
    with started(recipe_of(tmp_path), tmp_path / "run") as run:
        run.until(lambda: len(samplers_of(run)) == 1, "trajectories of the only replica that has a node")
        with held_up(first):
            second = device_node(cluster)
            device_node(cluster)  # a spare: what it takes to start is not waited for when it is needed
            run.until(lambda: len(samplers_of(run)) == 2, "trajectories of the replica that joined")
        with held_up(second):
            cluster.remove_node(first, allow_graceful=False)
            run.until(lambda: len(samplers_of(run)) == 3, "trajectories of the replica in the place of the lost one")
        cluster.remove_node(second, allow_graceful=True)
        assert exploring(run), "the round was over before its last node had left"
        assert run.wait() == 0, run.text()
    assert_exactly_once(run)
    assert_the_trainer_had_the_devices_to_itself(run)


def assert_exactly_once(run: Run) -> None:
    counts = keys_of(run.run_dir)
    problems = {problem for _, problem, _ in counts}
    assert len(problems) == NUM_PROBLEMS
    assert set(counts) == {(1, problem, index) for problem in problems for index in range(SAMPLES)}
    assert set(counts.values()) == {1}
    rows = rows_of(run.run_dir / "trajectories/round=001/all.parquet")
    assert {row["policy_version"] for row in rows} == {1}, "every replica, early or late, had the imitated weights"
    assert run.text().count("was lost with its node") == 2


def assert_the_trainer_had_the_devices_to_itself(run: Run) -> None:
    """Training and sampling each need a whole node, so both happened only because each let go of it."""
    manifest = json_of(run.run_dir / "rounds/000-imitate/manifest.json")
    assert manifest["policy_version"] == 1
    assert manifest["sync"]["transport"] == "checkpoint" and manifest["sync"]["num_replicas"] == 1
    assert manifest["sync"]["max_logprob_difference"] < 1e-2
