"""The demo, shortened, as jobs/README.md says: submitted, stopped while it explores, submitted again, followed.

consumes     a head, the commands of the document, a copy of what a checkout ships
produces     a finished run directory, and what was seen of the two jobs
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.ray_head import RayHead, commands_of
from tests.runs import keys_of, small_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "jobs" / "README.md"
PRINTED_RUN_DIR = "/tmp/runs/demo"
NUM_PROBLEMS = 80
SAMPLES = 4
EXPLORING_TIMEOUT_S = 240.0
FOLLOW_TIMEOUT_S = 300.0
ENDING_S = 20.0
RUN_PROCESSES = re.compile(
    r"still-ray run|ray::(SamplerReplica|VerifierWorker|RayTrainWorker|TrainController|FitHost|Mailbox|StatusBoard)"
    r"|ray::.*: (generate|judge|train)"
)
"""Titles of what a run consists of; Ray keeps a few actors of its own for the next job."""


@dataclass(frozen=True, kw_only=True)
class DemoJobs:
    """What was seen of the two jobs.

    Attributes:
        run_dir: The finished run.
        watched: Output of the commands under Watch, while the first job ran.
        stopped: The first job, as the Jobs API describes it.
        stopped_log: Its log.
        left: Titles of processes of the run that were still there after it was stopped.
        kept: Keys that were stored then.
        followed: Output of the commands that submit the second job and follow it to its end.
        resumed: The second job, as the Jobs API describes it.
    """

    run_dir: Path
    watched: str
    stopped: dict[str, Any]
    stopped_log: str
    left: list[str]
    kept: Counter[tuple[int, str, int]]
    followed: str
    resumed: dict[str, Any]


def run_demo_jobs(head: RayHead) -> DemoJobs:
    """Runs the commands of the document on a head; only the run directory's path is another one."""
    run_dir = head.folder / "runs" / "demo"
    tree = shipped_tree(head.folder / "tree")

    def printed(heading: str) -> str:
        return commands_of(DOCUMENT, heading).replace(PRINTED_RUN_DIR, str(run_dir))

    stop, resume = printed("Stop and resume").split("\n", maxsplit=1)
    head.shell(printed("Submit"), cwd=tree)
    _until((run_dir / "state.json").exists, head, "demo-1")
    watched = head.shell(printed("Watch"), cwd=tree)
    _until(lambda: list(run_dir.glob("trajectories/*/part-*.parquet")), head, "demo-1")
    assert _run_processes(head), "the titles of a run's processes are other ones"
    head.shell(stop, cwd=tree)
    left = _outliving(head)
    kept = keys_of(run_dir)
    (tree / "jobs" / "notes.txt").write_text("changed between the two jobs, so it is shipped under another name\n")
    followed = head.shell(resume, cwd=tree, timeout_s=FOLLOW_TIMEOUT_S)
    return DemoJobs(
        run_dir=run_dir,
        watched=watched,
        stopped=head.job("demo-1"),
        stopped_log=head.log("demo-1"),
        left=left,
        kept=kept,
        followed=followed,
        resumed=head.job("demo-2"),
    )


def shipped_tree(folder: Path) -> Path:
    """What `working-tree.yaml` ships of a checkout, with a demo that takes a minute instead of five."""
    for name in ("jobs", "still_ray"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    base = small_recipe()
    recipe = {
        **base,
        "name": "demo",
        "prompt": {"template": "demo-prompt.txt"},
        "data": {"tiny_world": {"num_demonstrations": 100, "num_problems": NUM_PROBLEMS, "num_test": 20}},
        "imitate": {**base["imitate"], "epochs": 1},
        "explore": {"samples_per_problem": SAMPLES, "max_tokens": 60, "num_problems": NUM_PROBLEMS},
        "sft": {**base["sft"], "epochs": 1},
        "sampler": {"num_replicas": 1, "max_num_seqs": 8},  # slow enough to be stopped in the middle
        "trainer": {"num_workers": 1},
    }
    (folder / "jobs" / "demo.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder


def _until(condition: Callable[[], Any], head: RayHead, submission_id: str) -> None:
    deadline = time.monotonic() + EXPLORING_TIMEOUT_S
    while not condition():
        status = head.job(submission_id)["status"]
        assert status in ("PENDING", "RUNNING"), f"{submission_id}: {status}\n{head.log(submission_id)}"
        assert time.monotonic() < deadline, f"{submission_id} does not explore:\n{head.log(submission_id)}"
        time.sleep(0.2)


def _run_processes(head: RayHead) -> list[str]:
    titles = []
    for process in psutil.Process(head.pid).children(recursive=True):
        try:
            titles.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return [title for title in titles if RUN_PROCESSES.search(title)]


def _outliving(head: RayHead) -> list[str]:
    """Processes of a run that are still there a while after its end."""
    deadline = time.monotonic() + ENDING_S
    while (alive := _run_processes(head)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return alive
