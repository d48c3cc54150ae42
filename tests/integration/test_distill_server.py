"""`still-ray distill` against vLLM's own server on the CPU: 429 and 500 from a proxy, server and client both killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import psutil
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from still_ray.cli.preflight.models import BACKBONE
from still_ray.formats.problems import read_problems, write_problems
from still_ray.tiny_world.arithmetic import write_world
from tests.runs import COMMAND
from tests.teacher_server import ThreadedServer, failure

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

NUM_QUESTIONS = 20
NUM_SAMPLES = 3
CONCURRENCY = 4
SERVER_DIES_AT = 12
CLIENT_DIES_AT = 30
START_TIMEOUT_S = 180.0

DOCUMENTED = re.compile(r"^(TORCHDYNAMO_DISABLE=.*) python (-m vllm\.\S+api_server) \\\n\s*(.*)$", re.MULTILINE)
"""The command of docs/distill.md for an environment for CPUs: variables, module, options."""
OPTIONS = "--served-model-name tiny --host 127.0.0.1 --max-num-seqs 8 --distributed-executor-backend uni"
"""Besides: less of everything, for a machine that tests run on."""
ENVIRONMENT = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
GUARD = 'exec 3<&0; "$@" <&- 3<&- & cat <&3; kill -KILL -- -$$'
"""Ends its whole process group when its standard input closes, which the end of this process does in any case."""


def documented(port: int) -> tuple[dict[str, str], list[str]]:
    """Variables and arguments of the documented server, for the tiny world's model and a port."""
    found = DOCUMENTED.search((ROOT / "docs" / "distill.md").read_text())
    assert found is not None
    variables = dict(pair.split("=") for pair in found[1].split())
    options = found[3].replace("MODEL", str(BACKBONE)).replace("--port 8000", f"--port {port}")
    return variables | {"VLLM_CPU_KVCACHE_SPACE": "1"}, [*found[2].split(), *options.split(), *OPTIONS.split()]


class Vllm:
    """vLLM's OpenAI server in a process group of its own."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._log = log
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        variables, arguments = documented(self.port)
        with self._log.open("ab") as log:
            self._guard = subprocess.Popen(
                ["sh", "-c", GUARD, "guard", sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT, **variables},
                start_new_session=True,
            )

    def wait_until_it_serves(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._guard is not None and self._guard.poll() is None, self._log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)
        raise AssertionError(self._log.read_text()[-3000:])

    def kill(self) -> list[psutil.Process]:
        """Kills the whole group at once and gives what was in it."""
        assert self._guard is not None
        group = [psutil.Process(self._guard.pid), *psutil.Process(self._guard.pid).children(recursive=True)]
        os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait(10)
        self._guard = None
        return group

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._guard is not None:
            self.kill()


class Proxy(ThreadedServer):
    """Stands between client and server: fails now and then, kills one of them at a time, and counts.

    Attributes:
        vllm: The server behind it; after its death nothing answers until another is put here.
    """

    def __init__(self, vllm: Vllm) -> None:
        super().__init__(self._handle)
        self.seen: Counter[str] = Counter()
        self.bodies: dict[int, set[str]] = {}
        self.server_died = threading.Event()
        self.client_should_die = threading.Event()
        self.killed: list[psutil.Process] = []
        self.vllm = vllm

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.seen["requests"] += 1
        self.bodies.setdefault(json.loads(body)["seed"], set()).add(body.decode())
        if self.seen["requests"] % 7 == 3:
            return self._failing(429, Retry_After="1")
        if self.seen["requests"] % 11 == 5:
            return self._failing(500)
        if self.seen["answers"] >= SERVER_DIES_AT and not self.server_died.is_set():
            self.killed = self.vllm.kill()
            self.server_died.set()
        if self.seen["answers"] >= CLIENT_DIES_AT and not self.client_should_die.is_set():
            self.client_should_die.set()
            await request.content.wait_eof()
        return await self._forwarded(request, body)

    def wait_for(self, *, lost: int, timeout_s: float = 60.0) -> None:
        """Waits until so many requests have met a dead server."""
        deadline = time.monotonic() + timeout_s
        while self.seen["lost"] < lost:
            assert time.monotonic() < deadline, f"the client gave up: {self.seen}"
            time.sleep(0.05)

    def _failing(self, status: int, **headers: str) -> web.Response:
        self.seen[str(status)] += 1
        return failure(status, **headers)

    async def _forwarded(self, request: web.Request, body: bytes) -> web.StreamResponse:
        try:
            url = f"http://127.0.0.1:{self.vllm.port}{request.path_qs}"
            headers = {"Content-Type": "application/json"}
            async with (
                aiohttp.ClientSession() as session,
                session.post(url, data=body, headers=headers) as response,
            ):
                content = await response.read()
        except aiohttp.ClientError:
            self.seen["lost"] += 1
            assert request.transport is not None
            request.transport.abort()
            raise
        self.seen["answers"] += response.status == 200
        return web.Response(status=response.status, body=content, content_type="application/json")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Vllm, Vllm]]:
    """Two that start side by side, since a start takes half a minute: the second comes in the place of the first."""
    with Vllm(tmp_path / "first.log") as first, Vllm(tmp_path / "second.log") as second:
        for server in (first, second):
            server.wait_until_it_serves()
        yield first, second


def client(folder: Path, proxy: Proxy) -> subprocess.Popen[str]:
    options = {
        "--questions": "questions.jsonl",
        "--endpoint": f"http://nobody:not-a-secret-1@127.0.0.1:{proxy.port}/v1?key=also-no-secret",
        "--model": "tiny",
        "--output": "out",
    }
    settings = {
        "samples_per_question": NUM_SAMPLES,
        "prompt": Path(__file__).parents[2] / "jobs" / "demo-prompt.txt",
        "temperature": 0.8,
        "max_tokens": 64,
        "concurrency": CONCURRENCY,
        "requests_per_minute": 6000,
        "max_requests": 1500,
        "max_total_tokens": 1_000_000,
        "max_attempts": 300,
        "first_backoff_s": 0.1,
        "max_backoff_s": 2.0,
        "keep": "all",
    }
    arguments = [text for option in options.items() for text in option]
    arguments += [text for key, value in settings.items() for text in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        [COMMAND, "distill", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "OPENAI_API_KEY": "k-never-written-0"},
    )


def test_every_sample_once_although_server_and_client_die(tmp_path: Path, servers: tuple[Vllm, Vllm]) -> None:
    write_world(tmp_path, 0, num_demonstrations=1, num_problems=NUM_QUESTIONS, num_test=1)
    problems = list(read_problems(tmp_path / "problems.jsonl"))
    write_problems(tmp_path / "questions.jsonl", problems)
    with Proxy(servers[0]) as proxy:
        first = client(tmp_path, proxy)
        try:
            assert proxy.server_died.wait(60), first.communicate(timeout=10)
            proxy.wait_for(lost=3 * CONCURRENCY)
            proxy.vllm = servers[1]
            assert proxy.client_should_die.wait(60), "the client did not outlast the server"
        finally:
            first.kill()
            first.communicate(timeout=10)
        second = client(tmp_path, proxy)
        printed, said = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in proxy.killed)
    check_rows(tmp_path, [problem.id for problem in problems])
    check_report(json.loads((tmp_path / "out" / "report.json").read_text()), proxy)
    texts = [printed, said, *(path.read_bytes().decode(errors="replace") for path in (tmp_path / "out").iterdir())]
    assert not any(secret in text for secret in ("not-a-secret-1", "also-no-secret", "never-written") for text in texts)


def check_rows(folder: Path, question_ids: list[str]) -> None:
    rows: list[dict[str, Any]] = pq.read_table(folder / "out" / "raw.parquet").to_pylist()
    keys = [(row["question_id"], row["sample_index"]) for row in rows]
    assert keys == [(name, index) for name in question_ids for index in range(NUM_SAMPLES)]
    assert {row["served_model"] for row in rows} == {"tiny"}
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert {row["verdict"] for row in rows} <= {"correct", "incorrect", "unparsable"}
    assert sum(row["verdict"] in ("correct", "incorrect") for row in rows) > len(rows) / 2
    assert all(0 < row["completion_tokens"] <= 64 and row["content"] for row in rows)
    assert max(row["attempts"] for row in rows) > 2


def check_report(report: dict[str, Any], proxy: Proxy) -> None:
    requests, tokens = report["requests"], report["tokens"]
    assert (report["status"], report["samples_answered"]) == ("complete", NUM_QUESTIONS * NUM_SAMPLES)
    assert requests["outcomes"]["answered"] == NUM_QUESTIONS * NUM_SAMPLES
    assert 0 < requests["end_unknown"] <= 4
    assert sum(requests["outcomes"].values()) + requests["end_unknown"] == requests["sent"] <= 1500
    assert proxy.seen["requests"] <= requests["sent"] <= proxy.seen["requests"] + 4
    for status in ("429", "500"):
        assert proxy.seen[status] - 4 <= requests["outcomes"][status] <= proxy.seen[status]
    assert proxy.seen["lost"] - 4 <= requests["outcomes"]["connection lost"] <= proxy.seen["lost"]
    assert requests["outcomes"]["connection lost"] > 0
    assert tokens["charged"] <= 1_000_000
    assert tokens["assumed"] > 0
    assert len(proxy.bodies) == NUM_QUESTIONS * NUM_SAMPLES
    assert all(len(bodies) == 1 for bodies in proxy.bodies.values()), "a retried request is the same request"
