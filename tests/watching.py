"""Watching a run from outside while it goes on: `still-ray status`, the dashboard's API, Prometheus."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.prometheus import Prometheus, binary, prometheus
from tests.runs import COMMAND, Run, events_of

API_TIMEOUT_S = 20.0


class Watcher:
    """Looks at one run of a cluster of its own; `look` is called while it goes on.

    Attributes:
        status: What `still-ray status --address` printed, as JSON.
        train_runs: The dashboard's Train runs.
        actors: The dashboard's actors.
        tasks: Names of the dashboard's tasks.
        datasets: Names of the dashboard's datasets.
        server: The Prometheus that scrapes the run's cluster and outlives it; None where there is none to be had.
    """

    def __init__(self, folder: Path) -> None:
        self.status: list[dict[str, Any]] = []
        self.train_runs: list[dict[str, Any]] = []
        self.actors: list[dict[str, Any]] = []
        self.tasks: set[str] = set()
        self.datasets: set[str] = set()
        self.server: Prometheus | None = None
        self._folder = folder
        self._stack = ExitStack()

    def look(self, run: Run) -> None:
        """Sees what can be seen now."""
        if self.server is None and binary() is not None and (session := _session_dir(run)) is not None:
            discovery = session / "prom_metrics_service_discovery.json"
            self.server = self._stack.enter_context(prometheus(self._folder, discovery))
        if not self.status and events_of(run.run_dir, "train/loss", "000-imitate"):
            self.status = _status(run)
        if not self.datasets and events_of(run.run_dir, "train/loss", "001-sft"):
            self._ask_dashboard(run)

    def close(self) -> None:
        """Ends the Prometheus."""
        self._stack.close()

    def _ask_dashboard(self, run: Run) -> None:
        address = re.search(r"Ray dashboard: (\S+)", run.text())
        assert address is not None, run.text()
        self.train_runs = _get(f"{address[1]}/api/train/v2/runs/v1")["train_runs"]
        self.actors = _get(f"{address[1]}/api/v0/actors?detail=1")["data"]["result"]["result"]
        tasks = _get(f"{address[1]}/api/v0/tasks?limit=5000")["data"]["result"]["result"]
        self.tasks = {task["name"] for task in tasks}
        job = self.actors[0]["job_id"]
        self.datasets = {one["dataset"] for one in _get(f"{address[1]}/api/data/datasets/{job}")["datasets"]}


def _status(run: Run) -> list[dict[str, Any]]:
    """What the command says, asked in another process by the address of the run's own cluster."""
    command = [COMMAND, "status", "--address", _option(run, "--gcs-address"), "--json"]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _session_dir(run: Run) -> Path | None:
    """The folder of the run's Ray session, as soon as its head writes logs into it."""
    logs = _option(run, "--log_dir")
    return Path(logs).parent if logs else None


def _option(run: Run, name: str) -> str:
    """The value of an option that Ray gave to one of its own processes; "" if none has it yet."""
    for process in run.descendants(f"{name}="):
        if found := re.search(rf"{name}=(\S+)", " ".join(process.cmdline())):
            return found[1]
    return ""


def _get(url: str) -> Any:
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    headers = {"Authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=API_TIMEOUT_S) as response:
        return json.load(response)


def tensorboard_series(folder: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of a scalar in the event files of a folder: records of length, checksum, Event, checksum."""
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]

    series = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            series += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
            data = data[16 + length :]
    return series
