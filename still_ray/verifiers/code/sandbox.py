"""Running one Python program where it can do no harm: in bubblewrap, or in another sandbox that passes the same probe.

What a program sees is in `still_ray.verifiers.code.bubblewrap`, what it may ask of the kernel in
`still_ray.verifiers.code.seccomp`, how much it may use in `SandboxLimits`. Everything in a sandbox dies with the thread
that started it.

stdin, stdout and stderr are the only descriptors that cross, so any sandbox can stand in for bubblewrap:
`Sandbox(command=[...])` puts a command in front of the interpreter's. It must pass the same probe.
"""

import functools
import marshal
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import IO, Any, Final, Literal

from still_ray.verifiers.code.bubblewrap import ENVIRONMENT, FLAGS, bubblewrap_options, interpreter
from still_ray.verifiers.code.exchange import Ending, Exchange
from still_ray.verifiers.code.seccomp import system_call_filter

Role = Literal["program", "serve", "check"]

_MIB: Final = 1 << 20
_PACKAGE: Final = "still_ray.verifiers.code.inside"
_UNPRIVILEGED_IDS: Final = range(61184, 65520)
"""Users that belong to nobody: systemd hands them out to short-lived services."""

_CPU_GRACE_S: Final = 2
_STACK_MIB: Final = 64
_PROBE_TIMEOUT_S: Final = 20.0
_LEAST_MEMORY_MIB: Final = 512


@dataclass(frozen=True, kw_only=True)
class SandboxLimits:
    """What one sandboxed process may use.

    Attributes:
        timeout_s: Wall time, seconds. Default: LiveCodeBench's for one test.
        memory_mib: Address space, MiB; there is one process, so this is all of its memory. Default: ours.
        threads: Threads, the first included. Default: ours.
        output_mib: Output before it is killed, stdout and stderr together, MiB. Default: ours.
        tmp_mib: Size of its /tmp, and of one file, MiB. Default: ours.
        open_files: Open descriptors. Default: ours.
    """

    timeout_s: float = 6.0
    memory_mib: int = 1024
    threads: int = 16
    output_mib: int = 16
    tmp_mib: int = 32
    open_files: int = 64

    def as_rlimits(self) -> dict[str, int]:
        """The part that the kernel enforces on the process itself, as names of the `resource` module."""
        return {
            "RLIMIT_AS": self.memory_mib * _MIB,
            "RLIMIT_CORE": 0,
            "RLIMIT_CPU": int(self.timeout_s) + _CPU_GRACE_S,
            "RLIMIT_FSIZE": self.tmp_mib * _MIB,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_NPROC": self.threads + 1,  # in a user namespace, bubblewrap's own process counts
            "RLIMIT_STACK": _STACK_MIB * _MIB,
        }


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a program ended.

    Attributes:
        ending: DONE if it ended by itself.
        status: Exit status, 128 + signal if a signal ended it; None unless it ended by itself.
        started: Whether the sandbox stood and the limits were set; if not, nothing of the program ran.
        stdout: What it printed.
        stderr: What it printed there, or what the sandbox complained of.
    """

    ending: Ending
    status: int | None
    started: bool
    stdout: bytes
    stderr: bytes


class Sandbox:
    """Starts programs in the sandbox; safe to use from several threads.

    Args:
        executable: Name or path of bubblewrap, 0.7 or newer; "none": there is no sandbox.
        command: Another sandbox: what to put in front of the interpreter's command line. It must pass stdin, stdout and
            stderr, show the interpreter at its own path, and hold by itself against everything that the probe tries.
    """

    def __init__(self, executable: str = "bwrap", command: Sequence[str] | None = None) -> None:
        self._executable = executable
        self._command = tuple(command) if command is not None else None
        self._lock = threading.Lock()
        self._problem: str | None = None
        self._is_probed = False

    def problem(self) -> str | None:
        """Why this sandbox cannot be trusted, in one line; None if it can. Tried once."""
        with self._lock:
            if not self._is_probed:
                self._problem = self._tried()
                self._is_probed = True
            return self._problem

    def run(
        self, source: str, stdin: bytes, limits: SandboxLimits, *, max_stdout_bytes: int = 0, cancel: int | None = None
    ) -> Run:
        """Runs a whole program and waits for it.

        Args:
            source: Python source.
            stdin: Its input.
            limits: What it may use.
            max_stdout_bytes: Lets it print so much even where `limits.output_mib` is less.
            cancel: A descriptor that becomes readable when the run is to end at once.
        """
        job = Job(role="program", source=source)
        deadline = time.monotonic() + limits.timeout_s
        with self.start(limits) as process:
            exchange = Exchange(deadline, max(limits.output_mib * _MIB, max_stdout_bytes), cancel)
            exchange.send(process.stdin, job.message(limits) + stdin)
            stdout, stderr = exchange.receive(process.stdout), exchange.receive(process.stderr)
            ending = exchange.go_on()
            status = process.ended(deadline) if ending is Ending.DONE else None
        if ending is Ending.DONE and status is None:
            ending = Ending.TIMEOUT
        started, complaints = job.split(bytes(stderr))
        return Run(ending=ending, status=status, started=started, stdout=bytes(stdout), stderr=complaints)

    def start(
        self, limits: SandboxLimits, *, stdin: int = subprocess.PIPE, stdout: int = subprocess.PIPE
    ) -> "SandboxProcess":
        """Starts the interpreter in the sandbox; it waits for a `Job.message` with the same limits on stdin.

        Raises:
            OSError: The sandbox's program cannot be started.
        """
        filter_pipe = _pipe_holding(system_call_filter() or b"") if self._command is None else None
        try:
            command = [*self._prefix(limits, filter_pipe), *_interpreter_command()]
            return SandboxProcess(
                command, stdin=stdin, stdout=stdout, passed=() if filter_pipe is None else (filter_pipe,)
            )
        finally:
            if filter_pipe is not None:
                os.close(filter_pipe)

    def _prefix(self, limits: SandboxLimits, filter_pipe: int | None) -> list[str]:
        if self._command is not None:
            return list(self._command)
        return [self._executable, *bubblewrap_options(limits.tmp_mib * _MIB), "--seccomp", str(filter_pipe), "--"]

    def _tried(self) -> str | None:
        if self._command is None and self._executable == "none":
            return "the recipe says so (verifier.code.sandbox: none)"
        if self._command is None and system_call_filter() is None:
            return "no system call filter for this processor"
        try:
            return _probe(self)
        except OSError as error:
            return f"{self._command[0] if self._command else self._executable}: {error.strerror or error}"
        except subprocess.SubprocessError as error:
            return f"the interpreter's files are not known: {error}"


class Job:
    """What one sandboxed interpreter is to do.

    Attributes:
        role: "program" runs a whole program; "serve" and "check" are the two sides of assertion code.
    """

    def __init__(self, *, role: Role, source: str) -> None:
        self.role = role
        self._source = source
        self._token = f"<{secrets.token_hex(16)}>".encode()

    def message(self, limits: SandboxLimits) -> bytes:
        """What `inside/boot.py` reads first."""
        job: dict[str, Any] = {
            "role": self.role if self.role == "program" else f"{_PACKAGE}.{self.role}",
            "source": self._source,
            "limits": limits.as_rlimits(),
            "uid": secrets.choice(_UNPRIVILEGED_IDS),
            "token": self._token,
            "modules": {} if self.role == "program" else _modules(self.role),
        }
        content = marshal.dumps(job)
        return len(content).to_bytes(8, "little") + content

    def split(self, stderr: bytes) -> tuple[bool, bytes]:
        """Whether the job's process said that its limits are set, and what else it printed."""
        before, found, after = stderr.partition(self._token)
        return bool(found) and not before.strip(), after if found else before


class SandboxProcess:
    """A running sandbox; leaving the context kills everything in it and waits for that."""

    def __init__(self, command: Sequence[str], *, stdin: int, stdout: int, passed: tuple[int, ...]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            pass_fds=passed,
            cwd="/",
            start_new_session=True,
        )

    @property
    def stdin(self) -> IO[bytes]:
        """The end that leads to its stdin."""
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        """The end of its stdout."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """The end of its stderr."""
        assert self._process.stderr is not None
        return self._process.stderr

    @property
    def pid(self) -> int:
        """Process id of the sandbox's own program, outside."""
        return self._process.pid

    def ended(self, deadline: float) -> int | None:
        """Its exit status, or 128 + signal; None if it goes on at the deadline (of the monotonic clock)."""
        try:
            status = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None
        return status if status >= 0 else 128 - status

    def stop(self) -> None:
        """Kills it; the end of its first process is the end of all."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                _close(stream)

    def __enter__(self) -> "SandboxProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except BrokenPipeError:  # closing flushes; nobody reads any more
        return


def _pipe_holding(content: bytes) -> int:
    """The reading end of a pipe that holds so much already."""
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "wb") as file:
        file.write(content)
    return ours


@functools.cache
def _interpreter_command() -> tuple[str, ...]:
    boot = resources.files(_PACKAGE).joinpath("boot.py").read_text(encoding="utf-8")
    return (interpreter(), *FLAGS, "-c", boot)


@functools.cache
def _modules(role: Role) -> dict[str, str]:
    """Texts of the modules that a role needs, in the order of their imports."""
    packages = ["still_ray", "still_ray.verifiers", _PACKAGE]
    inside = resources.files(_PACKAGE)
    texts = {
        f"{_PACKAGE}.{name}": inside.joinpath(f"{name}.py").read_text(encoding="utf-8") for name in ("codec", role)
    }
    return {**dict.fromkeys(packages, ""), **texts}


def _probe(sandbox: Sandbox) -> str | None:
    """Tries from inside what must not work; returns the first thing that does, or why nothing ran."""
    limits = SandboxLimits(timeout_s=_PROBE_TIMEOUT_S, memory_mib=_LEAST_MEMORY_MIB)
    with (
        tempfile.NamedTemporaryFile(prefix="still-ray-probe-") as secret,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        settings = {
            "secret": secret.name,
            "address": server.getsockname(),
            "environment": sorted(ENVIRONMENT),
            "threads": limits.threads + 1,
        }
        text = resources.files(_PACKAGE).joinpath("probe.py").read_text(encoding="utf-8")
        run = sandbox.run(f"SETTINGS = {settings!r}\n{text}", b"", limits)
    if not run.started:
        complaint = " ".join(run.stderr.decode(errors="replace").split()) or f"status {run.status}"
        return f"it does not start: {complaint[-150:]}"
    if run.ending is not Ending.DONE or run.status != 0:
        return (
            f"the probe failed: {run.ending.value}, status {run.status}, {run.stderr[-150:].decode(errors='replace')}"
        )
    found = run.stdout.decode(errors="replace").strip()
    return None if found == "contained" else f"it does not contain programs: {found[:150]}"
