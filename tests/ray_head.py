"""A real Ray head of its own, started by the command that jobs/README.md prints, and the commands of that document."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent
PRINTED_DASHBOARD = "http://127.0.0.1:8265"
START_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 120.0


def commands_of(document: Path, heading: str) -> str:
    """The bash commands that a document prints under a heading."""
    text = document.read_text(encoding="utf-8")
    section = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"{document} has no heading {heading!r}"
    blocks: list[str] = re.findall(r"^```bash\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert blocks, f"{document} prints no commands under {heading!r}"
    return "".join(blocks)


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """A running head.

    Attributes:
        pid: Its first process, the ancestor of every process on it.
        address: Host and port of its GCS: what RAY_ADDRESS would be.
        dashboard: Address of the dashboard and of the Jobs API, http://host:port.
        metrics: Host and port of the node's exporter of Prometheus metrics, which also exports what the actors and
            drivers on it report.
        environment: For commands that talk to it: token, HOME, PATH, RAY_API_SERVER_ADDRESS. Nothing is written into
            the home of whoever runs the tests.
        temp_dir: Its --temp-dir; `session_latest/logs` in it holds the logs.
        folder: Where a test may put what has to live as long as the head, e.g. run directories.
    """

    pid: int
    address: str
    dashboard: str
    metrics: str
    environment: dict[str, str]
    temp_dir: Path
    folder: Path

    def shell(self, commands: str, *, cwd: Path, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Runs commands as printed in a document; returns their output."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=cwd,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{commands}\nexit status {done.returncode}:\n{done.stdout}"
        return done.stdout

    def api(self, path: str) -> Any:
        """The answer of the dashboard's API, e.g. to /api/jobs/."""
        request = urllib.request.Request(self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def job(self, submission_id: str) -> dict[str, Any]:
        """What the Jobs API knows of a job."""
        job: dict[str, Any] = self.api(f"/api/jobs/{submission_id}")
        return job

    def log(self, submission_id: str) -> str:
        """What a job has printed so far."""
        text: str = self.api(f"/api/jobs/{submission_id}/logs")["logs"]
        return text

    @property
    def discovery(self) -> Path:
        """The file in which Ray names all exporters for Prometheus; it appears a while after the start."""
        return self.temp_dir / "prom_metrics_service_discovery.json"

    @property
    def token(self) -> str:
        """The cluster's token."""
        return (Path(self.environment["HOME"]) / ".ray" / "auth_token").read_text().strip()


@contextmanager
def ray_head(printed: str) -> Iterator[RayHead]:
    """Starts a head with ports, a folder and a token of its own; ends it by its processes' own ids.

    Args:
        printed: Commands that start a head on this machine. The one that begins with "ray start --head" gets options,
            and the dashboard's address in the others is that of this head.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: a Unix socket's path has 107 characters at most
    gcs, dashboard, client, metrics, agent = free_ports(5)
    options = {
        "--port": gcs,
        "--dashboard-port": dashboard,
        "--ray-client-server-port": client,
        "--metrics-export-port": metrics,
        "--dashboard-agent-listen-port": agent,
        "--min-worker-port": 0,  # any free port
        "--max-worker-port": 0,
        "--temp-dir": folder / "ray",
    }
    starts, others = _start_and_others(printed.replace(PRINTED_DASHBOARD, f"http://127.0.0.1:{dashboard}"))
    environment = _environment(folder, others)
    command = [*shlex.split(starts), *(f"{name}={value}" for name, value in options.items()), "--block"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    head = RayHead(
        pid=process.pid,
        address=f"127.0.0.1:{gcs}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        metrics=f"127.0.0.1:{metrics}",
        environment=environment,
        temp_dir=folder / "ray",
        folder=folder,
    )
    try:
        _wait_for_jobs(head, process)
        yield head
    finally:
        end_tree(process.pid)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def end_tree(pid: int) -> None:
    """Kills a process and everything below it; SIGTERM would make a head wait half a minute for its own raylet."""
    try:
        root = psutil.Process(pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def _start_and_others(commands: str) -> tuple[str, str]:
    """The line that starts the head, and the lines around it."""
    lines = commands.splitlines()
    (start,) = [line for line in lines if line.startswith("ray start --head")]
    return start, "\n".join(line for line in lines if line != start)


def _environment(folder: Path, commands: str) -> dict[str, str]:
    """What a shell's environment is after some commands, which find an empty home."""
    home = folder / "home"
    home.mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    before = {**own, "HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}
    script = f"{commands}\nenv -0"
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=before, capture_output=True, check=True)
    pairs = (entry.partition("=") for entry in done.stdout.decode().split("\0") if entry)
    return {name: value for name, _, value in pairs}


def _wait_for_jobs(head: RayHead, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, (head.folder / "head.log").read_text()
        with suppress(OSError):
            head.api("/api/jobs/")
            return
        time.sleep(0.5)
    raise AssertionError(f"no Jobs API within {START_TIMEOUT_S} s:\n{(head.folder / 'head.log').read_text()}")
