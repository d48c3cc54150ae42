"""Real runs for tests: the console script in a process of its own, and what its run directory holds afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import yaml

from still_ray.cli.preflight.models import BACKBONE

COMMAND = str(Path(sys.executable).parent / "still-ray")
START_TIMEOUT_S = 240.0
END_TIMEOUT_S = 420.0
REPLICAS = ("ray::SamplerReplica", "ray::replica-", ": generate")
"""What Ray calls the process of a replica, when it is idle, starting and at work."""

MAILBOX = ("ray::Mailbox", "ray::mailbox-")
VERIFIERS = ("ray::VerifierWorker", "ray::verifier-", ": judge")
RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
ENDOFTEXT_ID, IM_END_ID = 343, 345


def small_recipe(**sections: Any) -> dict[str, Any]:
    """A recipe on the tiny world that exercises every part in about two minutes; sections given replace its own."""
    training = {
        "epochs": 25,
        "global_batch_size": 32,
        "per_device_batch_size": 16,
        "max_length": 512,
        "optimizer": {"learning_rate": 5e-3, "weight_decay": 0.0},
    }
    recipe: dict[str, Any] = {
        "name": "test",
        "seed": 7,
        "model": {"path": "builtin:tiny", "max_length": 512},
        "prompt": {"template": str(Path(__file__).parent.parent / "jobs" / "demo-prompt.txt")},
        "data": {"tiny_world": {"num_demonstrations": 100, "num_problems": 300, "num_test": 60}},
        "imitate": training,
        "explore": {"samples_per_problem": 4, "max_tokens": 200, "num_problems": 60},
        "sft": {**training, "init": "previous", "epochs": 3, "optimizer": {"learning_rate": 3e-3}},
        "dpo": {**training, "epochs": 4, "optimizer": {"learning_rate": 1e-4}},
        "rounds": [{"method": "sft"}],
        "evaluate": {"max_tokens": 200},
        "trainer": {"logging_steps": 1},
    }
    return {**recipe, **sections}


def base_model_eos(folder: Path) -> Path:
    """The demo's backbone as a base model is published: its eos is <|endoftext|>, its turns end with <|im_end|>."""
    model = Path(shutil.copytree(BACKBONE, folder))
    eos_id = {"eos_token_id": ENDOFTEXT_ID}
    for name, eos in {
        "tokenizer_config": {"eos_token": "<|endoftext|>"},
        "config": eos_id,
        "generation_config": eos_id,
    }.items():
        path = model / f"{name}.json"
        path.write_text(json.dumps(json_of(path) | eos))
    return model


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    """Writes a recipe file."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


class Run:
    """One `still-ray run`, or another command, in a process group of its own, with its output in a file."""

    def __init__(self, recipe: Path, run_dir: Path, arguments: Sequence[str] = ()) -> None:
        self.run_dir = run_dir
        self.log = recipe.parent / f"{run_dir.name}.log"
        self._handle = self.log.open("a")
        self.process = subprocess.Popen(
            [COMMAND, *(arguments or ("run", str(recipe), "--run-dir", str(run_dir)))],
            stdout=self._handle,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, timeout_s: float = END_TIMEOUT_S) -> int:
        """Waits for the end; returns the exit status."""
        status = self.process.wait(timeout_s)
        self._handle.close()
        return status

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = START_TIMEOUT_S) -> Any:
        """Waits until a condition holds while the run goes on; returns what it returned."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := condition():
                return found
            assert self.process.poll() is None, f"ended before {what}:\n{self.text()}"
            time.sleep(0.05)
        raise AssertionError(f"no {what} within {timeout_s} s:\n{self.text()}")

    def text(self) -> str:
        """Everything that was printed."""
        return self.log.read_text()

    def descendants(self, *titles: str) -> list[psutil.Process]:
        """Processes that this run started, directly or not, whose title contains one of some texts."""
        return [process for process in _tree(self.process.pid) if any(title in _title(process) for title in titles)]


@contextmanager
def started(recipe: Path, run_dir: Path, arguments: Sequence[str] = ()) -> Iterator[Run]:
    """A run, or another command; whatever is left of it at the end is killed by its own ids."""
    run = Run(recipe, run_dir, arguments)
    try:
        yield run
    finally:
        for process in _tree(run.process.pid):
            _kill(process)


def kill_driver(run: Run) -> list[psutil.Process]:
    """SIGKILL for the driver alone; returns what of its processes does not end by itself soon.

    Ray's two agents are left out: they ask a dead GCS for minutes before they give up. They are killed here.
    """
    children = [process for process in _tree(run.process.pid) if process.pid != run.process.pid]
    agents = [process for process in children if _title(process).startswith(RAY_AGENTS)]
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(30)
    alive = outliving([process for process in children if process not in agents])
    for process in agents:
        _kill(process)
    return alive


def outliving(processes: list[psutil.Process], timeout_s: float = 30.0) -> list[psutil.Process]:
    """Which of these still run after a while; they are killed then. A zombie has ended, whoever has to reap it."""
    deadline = time.monotonic() + timeout_s
    while (alive := [process for process in processes if _runs(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in alive:
        _kill(process)
    return alive


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def keys_of(run_dir: Path) -> Counter[tuple[int, str, int]]:
    """How often every (round, problem, sample) is stored, straight from the Parquet files."""
    counts: Counter[tuple[int, str, int]] = Counter()
    for path in sorted(run_dir.glob("trajectories/*/*.parquet")):
        table = pq.ParquetFile(path).read(columns=["round", "problem_id", "sample_index"]).to_pylist()
        counts.update((row["round"], row["problem_id"], row["sample_index"]) for row in table)
    return counts


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def json_of(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def events_of(run_dir: Path, name: str, stage: str) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl with a name and a stage; a line being written is left out."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("\n")]
    return [event for event in events if event["name"] == name and event["labels"].get("stage") == stage]


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
