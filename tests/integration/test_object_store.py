"""A user's own model, demonstrations in the released format and problems in MATH_OAI's format, in an S3 server.

The driver is killed in the middle of training, and another machine goes on.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from still_ray.location import ObjectPath
from still_ray.store.scratch import SCRATCH_VARIABLE
from still_ray.store.tables import read_table
from still_ray.types import Trajectory
from tests.runs import COMMAND, Run, kill_driver, small_recipe, started, write_recipe
from tests.s3_server import CREDENTIALS, S3Server
from tests.tiny_model import build_tiny_checkpoint

pytestmark = pytest.mark.integration

NUM_DEMONSTRATIONS = 24
NUM_PROBLEMS = 12
NUM_TEST = 8
SAMPLES = 2


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A model of random weights with the default prompt, and three small files in the published formats."""
    build_tiny_checkpoint(tmp_path / "model", seed=3)
    thought = "<|begin_of_thought|>\n\nTwo and {n} make {m}.\n\nLet me check: {m}.\n\n<|end_of_thought|>\n\n"
    solution = "<|begin_of_solution|>\n\nThe answer is \\boxed{{{m}}}.\n\n<|end_of_solution|>"
    demonstrations = [
        {"question": f"What is 2+{n}?", "combined_text": (thought + solution).format(n=n, m=n + 2), "domain": "math"}
        for n in range(NUM_DEMONSTRATIONS)
    ]
    problems = [
        {
            "problem": f"Find ${n}+{n}$.",
            "solution": f"It is \\boxed{{{2 * n}}}.",
            "answer": str(2 * n),
            "subject": "Prealgebra",
            "level": 1 + n % 5,
            "unique_id": f"test/prealgebra/{n}.json",
        }
        for n in range(NUM_PROBLEMS + NUM_TEST)
    ]
    write_lines(tmp_path / "demonstrations.jsonl", demonstrations)
    write_lines(tmp_path / "problems.jsonl", problems[:NUM_PROBLEMS])
    write_lines(tmp_path / "test.jsonl", problems[NUM_PROBLEMS:])
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("demonstrations", "problems", "test")}


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def recipe(files: dict[str, str], tmp_path: Path) -> Path:
    """One replica that reads checkpoints, two ranks, one round; the second training stage keeps its state."""
    training = {"epochs": 1, "global_batch_size": 8, "per_device_batch_size": 4, "max_length": 2048}
    return write_recipe(
        tmp_path,
        small_recipe(
            model={"path": str(tmp_path / "model"), "max_length": 2048},
            prompt={"template": None},
            data=files,
            imitate=training,
            explore={"samples_per_problem": SAMPLES, "max_tokens": 24},
            sft={**training, "epochs": 14, "save_steps": 5},
            sampler={"num_replicas": 1},
            trainer={"logging_steps": 1, "num_workers": 2},
            evaluate={"max_tokens": 24},
            sync={"transport": "checkpoint"},
        ),
    )


def test_a_run_on_own_files_in_an_object_store_is_resumed_by_another_machine(
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
        assert (manifest["sync"]["transport"], manifest["sync"]["num_bytes"]) == ("checkpoint", 0)
        assert manifest["sync"]["num_replicas"] == 1
        assert manifest["training"]["num_examples"] >= NUM_DEMONSTRATIONS and manifest["training"]["num_skipped"] == 0
        assert math.isfinite(manifest["training"]["final_loss"])
        assert manifest["evaluation"]["num_problems"] == NUM_TEST
    assert {"recipe.yaml", "summary.json", "metrics.jsonl", "rounds/001-sft/eval.parquet"} <= {*files}
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
