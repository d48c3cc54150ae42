"""One driver for each run directory: the kernel's lock on a file system, a lease in an object store.

A lease is the object `.lock`, which its owner writes again every few seconds. Whoever finds one watches it: if it
changes, its owner lives; if it does not for `STALE_S`, the owner is gone. So no clocks are compared. An owner on this
machine is looked up among the processes instead.

The lease is no perfect lock: pyarrow offers no put that fails where an object is already. Two drivers that find no
lock at the same moment both write theirs, wait, and read again: the one whose lease was overwritten gives up. Only a
driver that stands still for longer than `SETTLE_S` between looking and writing could come in beside another; that
other one notices at its next heartbeat and stops.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import psutil

from still_ray.location import Location, ObjectPath
from still_ray.types import InputError, RunError

LOCK = ".lock"
HEARTBEAT_S = 15.0
STALE_S = 120.0
"""Eight heartbeats. Source: ours; a driver that cannot reach its store for so long could not store its results."""
SETTLE_S = 1.0
POLL_S = 1.0
LOOK_S = 0.2
"""Longest that a look at the lock, which takes it for a moment, may keep a driver from it."""


@contextmanager
def locked(folder: Location, note: Callable[[str], None]) -> Iterator[None]:
    """Holds a folder for one driver.

    Args:
        folder: The run directory.
        note: Told why this waits, if it does.

    Raises:
        InputError: Another process works in this folder.
        RunError: The lease went to another process, because this one stood still for too long.
    """
    with Lease(folder, note).held() if isinstance(folder, ObjectPath) else _file_lock(folder):
        yield


def is_held(folder: Location, note: Callable[[str], None]) -> bool:
    """Whether a driver holds a folder at this moment: by the kernel, or by a lease whose owner lives.

    Args:
        folder: The run directory.
        note: Told why this waits, if it does.
    """
    if isinstance(folder, ObjectPath):
        return Lease(folder, note).is_held()
    try:
        with (folder / LOCK).open() as handle:
            return not _taken(handle, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def taken_over(folder: Location) -> bool:
    """Whether the lease of a folder in an object store has gone to another process than this one."""
    if not isinstance(folder, ObjectPath):
        return False  # the kernel gives its lock to nobody else
    found = Lease(folder, lambda _: None).claim()
    return found is not None and (found.machine, found.pid) != (_machine(), os.getpid())


@contextmanager
def _file_lock(folder: Path) -> Iterator[None]:
    """The kernel lets go when the process ends, however it ends."""
    with (folder / LOCK).open("a+") as handle:
        deadline = time.monotonic() + LOOK_S
        while not _taken(handle, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise InputError(f"{folder}: another still-ray works in this folder; wait for it or stop it")
            time.sleep(LOOK_S / 4)
        yield


def _taken(handle: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True, kw_only=True)
class LeaseClaim:
    """What a lease says.

    Attributes:
        owner: A number of its own for each driver.
        host: Where the driver runs.
        machine: This boot of the machine and its process namespace; "" where the system does not say.
        pid: The driver's process.
        started: When that process started, seconds since 1970, as the system says it.
        beat: Counts the heartbeats.
    """

    owner: str
    host: str
    machine: str
    pid: int
    started: float
    beat: int = 0

    @classmethod
    def of_this_process(cls) -> LeaseClaim:
        """The first claim of a new lease."""
        return cls(
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
        )

    def owner_lives(self) -> bool | None:
        """Whether the owner's process runs; None if it is on another machine."""
        if not self.machine or self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < 1.0
        except psutil.NoSuchProcess:
            return False


class Lease:
    """The lease of one driver on a run directory in an object store."""

    def __init__(
        self,
        folder: ObjectPath,
        note: Callable[[str], None],
        *,
        heartbeat_s: float = HEARTBEAT_S,
        stale_s: float = STALE_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        """Takes nothing yet.

        Args:
            folder: The run directory.
            note: Told why this waits, if it does.
            heartbeat_s: Seconds between two writes of the lease.
            stale_s: Seconds after which a lease that does not change is nobody's.
            settle_s: Seconds between writing the first claim and reading it back.
        """
        self._folder = folder
        self._object = folder / LOCK
        self._note = note
        self._heartbeat_s = heartbeat_s
        self._stale_s = stale_s
        self._settle_s = settle_s
        self._claim = LeaseClaim.of_this_process()
        self._released = threading.Event()
        self._lost_to: LeaseClaim | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Takes the lease, keeps it and lets go.

        Raises:
            InputError: Another driver has it.
            RunError: It went to another driver meanwhile.
        """
        try:
            self._take()
        except BaseException:  # an interrupt too leaves no lease behind
            self._let_go()
            raise
        keeper = threading.Thread(target=self._keep, name="lease", daemon=True)
        keeper.start()
        try:
            yield
        except (KeyboardInterrupt, SystemExit):  # whatever the program makes of the signal
            if self._lost_to is not None:
                raise RunError(f"{self._folder}: stopped: {_named(self._lost_to)} took this folder over") from None
            raise
        finally:
            self._released.set()
            keeper.join()
            self._let_go()

    def claim(self) -> LeaseClaim | None:
        """What the lease says now; None if there is none."""
        return self._read()

    def is_held(self) -> bool:
        """Whether another driver has it: a living process of this machine, or one that writes its heartbeats."""
        found = self._read()
        return found is not None and self._heartbeat_after(found, 2 * self._heartbeat_s) is not None

    def _take(self) -> None:
        found = self._read()
        if found is not None and (living := self._heartbeat_after(found, self._stale_s)) is not None:
            raise self._refusal(living)
        self._write()
        time.sleep(self._settle_s)
        if (now := self._read()) is not None and now.owner != self._claim.owner:
            raise self._refusal(now)

    def _heartbeat_after(self, found: LeaseClaim, within_s: float) -> LeaseClaim | None:
        """The claim of a driver that lives; None if the owner's process is gone, or nothing changes for so long."""
        lives = found.owner_lives()
        if lives is not None:
            return found if lives else None
        self._note(f"{self._folder}: looking for {within_s:.0f} s whether {_named(found)} still works there")
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            time.sleep(min(POLL_S, self._heartbeat_s))
            now = self._read()
            if now != found:
                return now
        return None

    def _refusal(self, claim: LeaseClaim) -> InputError:
        return InputError(f"{self._folder}: {_named(claim)} works in this folder; wait for it or stop it")

    def _keep(self) -> None:
        """Writes the lease again and again; one that went to somebody else ends the run as an interrupt does."""
        while not self._released.wait(self._heartbeat_s):
            try:
                now = self._read()
                if now is not None and now.owner != self._claim.owner:
                    self._lost_to = now
                    signal.pthread_kill(threading.main_thread().ident or 0, _interrupting_signal())
                    return
                self._claim = replace(self._claim, beat=self._claim.beat + 1)
                self._write()
            except RunError:  # named policy: the store may come back before the lease is stale
                continue

    def _let_go(self) -> None:
        """A lease that cannot be removed becomes stale by itself."""
        with contextlib.suppress(RunError):
            now = self._read()
            if now is not None and now.owner == self._claim.owner:
                self._object.unlink(missing_ok=True)

    def _read(self) -> LeaseClaim | None:
        try:
            return LeaseClaim(**json.loads(self._object.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # somebody else's object, or another release's: watched as any other
            return LeaseClaim(owner="", host="an unknown host", machine="", pid=0, started=0.0)

    def _write(self) -> None:
        self._object.write_bytes(json.dumps(asdict(self._claim)).encode())


def _named(claim: LeaseClaim) -> str:
    return f"another still-ray (process {claim.pid} on {claim.host})"


def _machine() -> str:
    """Containers of one machine may share its name and its boot, but not their process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _interrupting_signal() -> signal.Signals:
    """SIGTERM where the program handles it: Ray starts jobs, and shells their background jobs, without SIGINT."""
    return signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
