"""A real run in an S3 server: its driver is killed in the middle of training, and another machine goes on."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import cast

import pytest

from still_ray.location import ObjectPath
from still_ray.store.scratch import SCRATCH_VARIABLE
from still_ray.store.tables import read_table
from still_ray.types import Trajectory
from tests.runs import COMMAND, Run, kill_driver, small_recipe, started, write_recipe
from tests.s3_server import CREDENTIALS, S3Server

pytestmark = pytest.mark.integration

NUM_PROBLEMS = 12
SAMPLES = 2


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One replica, two ranks, one round; the second training stage keeps its state."""
    base = small_recipe()
    return write_recipe(
        tmp_path,
        small_recipe(
            data={"tiny_world": {"num_demonstrations": 40, "num_problems": NUM_PROBLEMS, "num_test": 8}},
            imitate={**base["imitate"], "epochs": 2},
            explore={"samples_per_problem": SAMPLES, "max_tokens": 64, "num_problems": NUM_PROBLEMS},
            sft={**base["sft"], "epochs": 20, "save_steps": 5},
            sampler={"num_replicas": 1},
            trainer={"logging_steps": 1, "num_workers": 2},
            evaluate={"max_tokens": 64},
        ),
    )


def test_a_run_in_an_object_store_is_resumed_by_another_machine(
    recipe: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = s3.place("integration/run")
    states = root / "rounds/001-sft/checkpoint.partial-state"
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "one-machine"))
    with started(recipe, cast(Path, root)) as run:
        run.until(lambda: list(states.glob("complete-*")), "a state of 001-sft")
        assert kill_driver(run) == []
    explored, reported = created_at(root), len(steps_of(root, "001-sft"))
    last = max(int(mark.name.removeprefix("complete-")) for mark in states.glob("complete-*"))

    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "another-machine"))
    with started(recipe, cast(Path, root)) as run:
        assert run.wait() == 0, run.text()
    status = status_of(root)
    assert (status["status"], status["policy_version"]) == ("complete", 2)
    assert created_at(root) == explored, "what was stored was not sampled again"
    first = steps_of(root, "001-sft")[reported]
    assert first == last + 1, "trained on from the state"
    assert_stored(root, run)


def assert_stored(root: ObjectPath, run: Run) -> None:
    """Everything is in its place, nothing temporary is left, and no file or message holds a credential."""
    files = root.files()
    for stage in ("000-imitate", "001-sft"):
        manifest = json.loads((root / f"rounds/{stage}/manifest.json").read_text())
        assert manifest["files"].keys() >= {"checkpoint/model.safetensors", "checkpoint/still_ray_policy.json"}
        assert manifest["sync"]["num_replicas"] == 1
    assert {"recipe.yaml", "summary.json", "metrics.jsonl", "world/test.jsonl", "rounds/001-sft/eval.parquet"} <= {
        *files
    }
    assert not [name for name in files if "partial-state" in name or name == ".lock" or "ray_train" in name]
    texts = [(root / name).read_text() for name in files if name.endswith((".yaml", ".json", ".jsonl"))]
    assert not any(secret in text for secret in CREDENTIALS.values() for text in [*texts, run.text()])


def status_of(root: ObjectPath) -> dict[str, object]:
    printed = subprocess.run([COMMAND, "status", str(root), "--json"], capture_output=True, check=True)
    status: dict[str, object] = json.loads(printed.stdout)
    return status


def created_at(root: ObjectPath) -> dict[tuple[str, int], str]:
    """When each sample was stored; each is stored once."""
    rows = [row for path in (root / "trajectories/round=001").glob("*.parquet") for row in read_table(path, Trajectory)]
    assert set(Counter(row.key for row in rows).values()) == {1}
    assert len(rows) == NUM_PROBLEMS * SAMPLES
    return {(row.problem_id, row.sample_index): row.created_at for row in rows}


def steps_of(root: ObjectPath, stage: str) -> list[int]:
    """Optimizer steps that were reported, in order."""
    events = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    mine = [event for event in events if event["name"] == "train/loss" and event["labels"]["stage"] == stage]
    return [int(event["labels"]["step"]) for event in mine]
