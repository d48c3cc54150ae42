"""A run survives the deaths of its processes, and every (round, problem, sample) is stored exactly once.

Each process is found by its own id among the descendants of the run that the test started.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runs import (
    MAILBOX,
    REPLICAS,
    VERIFIERS,
    Run,
    events_of,
    json_of,
    keys_of,
    kill_driver,
    outliving,
    rows_of,
    small_recipe,
    started,
    write_recipe,
)

pytestmark = pytest.mark.faults

NUM_PROBLEMS = 120
SAMPLES = 4


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Exploration and training long enough to be interrupted in the middle; one replica, which starts soonest."""
    return recipe_with(tmp_path, sampler={"num_replicas": 1}, sync={"transport": "nccl"})


def recipe_with(tmp_path: Path, **sections: Any) -> Path:
    base = small_recipe()
    return write_recipe(
        tmp_path,
        small_recipe(
            explore={"samples_per_problem": SAMPLES, "max_tokens": 120, "num_problems": NUM_PROBLEMS},
            imitate={**base["imitate"], "epochs": 1},
            sft={**base["sft"], "epochs": 5},
            evaluate={"max_tokens": 60},
            data={"tiny_world": {"num_demonstrations": 100, "num_problems": NUM_PROBLEMS, "num_test": 20}},
            **sections,
        ),
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Where the run goes."""
    return tmp_path / "run"


def stored_parts(run_dir: Path) -> list[Path]:
    return list(run_dir.glob("trajectories/round=001/part-*.parquet"))


def exploring(run: Run, *, since: int = 0) -> bool:
    """More trajectories than `since` are durable and the round is not over."""
    ended = (run.run_dir / "rounds/001-explore/manifest.json").exists()
    return len(stored_parts(run.run_dir)) > since and not ended


def assert_complete(run_dir: Path) -> None:
    """The run is done, and its round holds every sample of every problem once."""
    assert json_of(run_dir / "state.json")["status"] == "complete"
    counts = keys_of(run_dir)
    problems = {problem for _, problem, _ in counts}
    assert len(problems) == NUM_PROBLEMS
    assert set(counts) == {(1, problem, index) for problem in problems for index in range(SAMPLES)}
    assert set(counts.values()) == {1}
    assert [line["policy_version"] for line in json_of(run_dir / "summary.json")["stages"]] == [0, 1, 2]


def replaced(run: Run, victim: psutil.Process) -> bool:
    return any(process.pid != victim.pid for process in run.descendants(*VERIFIERS))


def test_every_process_of_a_run_is_killed_once_and_the_run_completes(
    recipe: Path, run_dir: Path, tmp_path: Path
) -> None:
    """The driver while it explores; after the command again, a sampler, a verifier, a sampler that sleeps, a rank.

    The first half broadcasts weights; the second has two replicas, which sleep while the trainer works.
    A driver killed during training, and resumed elsewhere: tests/integration/test_object_store.py.
    """
    with started(recipe, run_dir) as run:
        run.until(lambda: exploring(run), "explored trajectories")
        assert kill_driver(run) == [], "processes that outlive a killed driver"
    before, num_parts = set(durable_rows(run_dir)), len(stored_parts(run_dir))
    imitated = (run_dir / "rounds/000-imitate/manifest.json").stat().st_mtime_ns
    assert 0 < len(before) < NUM_PROBLEMS * SAMPLES

    elastic = recipe_with(tmp_path, placement="elastic", sampler={"num_replicas": 2})
    with started(elastic, run_dir) as run:
        run.until(lambda: exploring(run, since=num_parts), "more trajectories")
        run.descendants(*REPLICAS)[0].kill()
        victim = run.descendants(*VERIFIERS)[0]
        victim.kill()
        run.until(lambda: replaced(run, victim), "another verifier")
        run.until(lambda: len(events_of(run_dir, "train/loss", "001-sft")) >= 2, "steps of 001-sft")
        run.descendants(*REPLICAS)[0].kill()
        run.descendants("ray::RayTrainWorker")[0].kill()
        assert run.wait() == 0, run.text()
    assert_complete(run_dir)
    assert before <= set(durable_rows(run_dir)), "what was durable was kept, not sampled again"
    assert (run_dir / "rounds/000-imitate/manifest.json").stat().st_mtime_ns == imitated
    assert_replaced(run_dir)
    for stage, transport, num_replicas in (("000-imitate", "gloo", 1), ("001-sft", "object_store", 2)):
        sync = json_of(run_dir / f"rounds/{stage}/manifest.json")["sync"]
        assert (sync["transport"], sync["num_replicas"]) == (transport, num_replicas), "gloo: nccl without GPUs"
        assert sync["num_bytes"] > 0 and sync["probe_shift"] > 10 * sync["max_logprob_difference"]


def assert_replaced(run_dir: Path) -> None:
    """A sampler in the place of the dead one had the right weights and served; a new worker group trained the stage."""
    rows = rows_of(run_dir / "trajectories/round=001/all.parquet")
    assert {row["policy_version"] for row in rows} == {1}
    samplers = {row["sampler"] for row in rows_of(run_dir / "rounds/001-sft/eval.parquet")}
    assert "replica-3" in samplers and len(samplers) == 2, "replacements serve, and who died asleep does not"
    steps = [int(event["labels"]["step"]) for event in events_of(run_dir, "train/loss", "001-sft")]
    assert steps.count(1) == 2, "the stage was begun again by a new worker group"
    assert steps[-1] == json_of(run_dir / "rounds/001-sft/manifest.json")["training"]["steps"]


def durable_rows(run_dir: Path) -> list[tuple[tuple[str, int], str]]:
    """Key and creation time of every stored trajectory."""
    paths = sorted(run_dir.glob("trajectories/*/*.parquet"))
    rows = [row for path in paths for row in rows_of(path)]
    return [((row["problem_id"], row["sample_index"]), row["created_at"]) for row in rows]


def test_an_interrupted_run_says_how_to_resume_and_leaves_nothing_behind(recipe: Path, run_dir: Path) -> None:
    """Ctrl-C while its actors start. SIGTERM while it explores: tests/integration/test_job.py."""
    with started(recipe, run_dir) as run:
        run.until(lambda: "000-backbone" in run.text() and run.descendants(*MAILBOX), MAILBOX[0])
        children = [process for process in run.descendants("") if process.pid != run.process.pid]
        run.process.send_signal(signal.SIGINT)
        assert run.wait(60) == 130, run.text()
        assert outliving(children) == []
    last = run.text().splitlines()[-1]
    assert last.startswith("still-ray: interrupted; resume with: still-ray run ") and "Traceback" not in run.text()
    last = run.text().splitlines()[-1]
    assert last.startswith("still-ray: interrupted; resume with: still-ray run ") and str(run_dir) in last
