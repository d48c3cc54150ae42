"""A real evaluation with several samples on a cluster: killed in the middle, resumed, and repeated word for word."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from still_ray.algo.evaluation.statistics import pass_at_k
from still_ray.store.digests import file_digest
from still_ray.tiny_world.arithmetic import write_world
from tests.runs import COMMAND, json_of, kill_driver, rows_of, started

pytestmark = pytest.mark.integration

NUM_PROBLEMS = 40
SAMPLES = 2


@pytest.fixture
def _cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that outlives the commands, so that each need not start its own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield
    cluster.shutdown()


@pytest.mark.usefixtures("_cluster")
def test_a_killed_evaluation_is_resumed_and_its_repetition_matches(tmp_path: Path) -> None:
    """One slow replica, so that there is a middle; the backbone says something else at every seed."""
    write_world(tmp_path, 0, num_demonstrations=1, num_problems=1, num_test=NUM_PROBLEMS)
    output = tmp_path / "out"
    arguments = ["evaluate", "--model", "builtin:tiny", "--benchmark", str(tmp_path / "test.jsonl")]
    arguments += ["--output", str(output), "--samples", str(SAMPLES), "--temperature", "1.0", "--max-tokens", "48"]
    arguments += ["--set", "sampler.num_replicas=1", "--set", "sampler.max_num_seqs=4"]

    with started(output, output, arguments) as first:
        first.until(lambda: list(output.glob("rows/part-*.parquet")), "responses that are kept")
        assert kill_driver(first) == []
    kept = {key_of(row): row for path in output.glob("rows/*.parquet") for row in rows_of(path)}
    assert 0 < len(kept) < NUM_PROBLEMS * SAMPLES and not (output / "eval.json").exists()

    with started(output, output, arguments) as second:
        assert second.wait() == 0, second.text()
    assert f"{len(kept)} responses are there, going on" in second.text()
    rows = {key_of(row): row for row in rows_of(output / "eval.parquet")}
    assert len(rows) == len(rows_of(output / "eval.parquet")) == NUM_PROBLEMS * SAMPLES
    assert all(rows[key] == row for key, row in kept.items()), "what was kept was not sampled again"
    result = json_of(output / "eval.json")
    assert result["raw_outputs"]["sha256"] == file_digest(output / "eval.parquet").sha256
    counts = result["correct_by_problem"].values()
    expected = sum(pass_at_k(SAMPLES, count, SAMPLES) for count in counts) / NUM_PROBLEMS
    assert result["pass_at_k"][str(SAMPLES)]["value"] == pytest.approx(expected)
    texts = [row["response"] for row in rows.values()]
    assert len(set(texts)) > len(texts) / 2, "a repetition that matches says something"

    repeated = subprocess.run(
        [COMMAND, "evaluate", "--repeat", str(output)], capture_output=True, text=True, check=False
    )
    assert repeated.returncode == 0, repeated.stdout + repeated.stderr
    assert f"responses: {len(rows)} of {len(rows)} the same, word for word" in repeated.stdout
    assert repeated.stdout.endswith("it matches\n")
    assert json_of(output / "repeat-001" / "repeat.json")["matches"] is True


def key_of(row: dict[str, object]) -> tuple[object, object]:
    return row["problem_id"], row["sample_index"]
