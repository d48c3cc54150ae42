"""A real Prometheus for tests: it scrapes a real run, and answers the queries of the Grafana dashboard."""

from __future__ import annotations

import functools
import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from still_ray.actors.monitoring.metrics import METRICS, VLLM_METRICS, Metric, Occasion

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = ROOT / "cluster" / "grafana" / "still-ray.json"
SCRAPE_INTERVAL_S = 2
START_TIMEOUT_S = 30.0
RATE_INTERVAL = "30s"
"""What a test takes for Grafana's $__rate_interval: Ray's processes report every 10 s."""


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """A running server.

    Attributes:
        url: Its address.
        started_at: Unix time.
    """

    url: str
    started_at: float

    def series(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression had at any time since the server started."""
        now = time.time()
        step = max(1.0, (now - self.started_at) / 1000)
        answer = self._get("query_range", query=expression, start=self.started_at, end=now, step=step)
        found: list[dict[str, Any]] = answer["result"]
        return found

    def names(self) -> set[str]:
        """Names of all metrics that it has seen."""
        answer: list[str] = self._get("label/__name__/values")
        return set(answer)

    def healthy_targets(self) -> int:
        """How many targets answered their last scrape."""
        return sum(target["health"] == "up" for target in self._get("targets")["activeTargets"])

    def _get(self, what: str, **parameters: Any) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{what}?{query}", timeout=30) as response:
            answer = json.load(response)
        assert answer["status"] == "success", answer
        return answer["data"]


@functools.cache
def binary() -> str | None:
    """Path of the server's program, or None where it cannot be had."""
    found = subprocess.run([str(ROOT / "tools" / "prometheus.sh")], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None if found.returncode == 0 else None


@contextmanager
def prometheus(folder: Path, discovery: Path) -> Iterator[Prometheus]:
    """Starts a server that scrapes a Ray cluster, and ends it.

    Args:
        folder: For its configuration and data.
        discovery: The file in which Ray names its exporters, `prom_metrics_service_discovery.json` in the folder of
            the Ray session; it may appear later.
    """
    program = binary()
    assert program is not None
    folder.mkdir(parents=True, exist_ok=True)
    found = {"files": [str(discovery)], "refresh_interval": "2s"}
    config = {
        "global": {"scrape_interval": f"{SCRAPE_INTERVAL_S}s"},
        "scrape_configs": [{"job_name": "ray", "file_sd_configs": [found]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    port = _free_port()
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=subprocess.STDOUT)
        try:
            server = Prometheus(url=f"http://127.0.0.1:{port}", started_at=time.time())
            _wait_until_ready(server, process, folder)
            yield server
        finally:
            process.terminate()
            process.wait(30)


def expressions() -> list[str]:
    """Every PromQL expression of the dashboard, its variables filled in."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    return [text.replace("$__rate_interval", RATE_INTERVAL).replace("$run", ".*") for text in found]


def metrics_of(expression: str) -> list[Metric]:
    """The metrics that an expression names; an unknown name is an error."""
    known = {metric.exported: metric for metric in (*METRICS, *VLLM_METRICS)}
    names = re.findall(r"\bray_\w+", expression)
    assert names, f"no metric in {expression}"
    return [known[name] if name in known else known[re.sub(r"_(bucket|sum|count)$", "", name)] for name in names]


def without_series(server: Prometheus, *, occasions: Sequence[Occasion]) -> list[str]:
    """The dashboard's expressions that had no series, of those whose metrics must have values on these occasions."""
    due = [text for text in expressions() if all(metric.occasion in occasions for metric in metrics_of(text))]
    return [text for text in due if not server.series(text)]


def _wait_until_ready(server: Prometheus, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        try:
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"not ready within {START_TIMEOUT_S} s: {(folder / 'prometheus.log').read_text()}")


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
