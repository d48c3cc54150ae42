"""The report, made again in a process of its own while a run goes on.

consumes     word that the run directory has changed
produces     report.html, by the command that a person would give
waits for    nothing while the run goes on; at its end for the last report, not for ever
unblocked by the end of that process, or its time limit

A process whose report would be out of date is ended: when the run fails, for the run that resumes makes newer ones; and
when time is up at the end while a newer report is due.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

TIME_LIMIT_S: Final = 900.0
"""Of one report: reading the texts of a large pool from an object store takes minutes."""
LAST_WAIT_S: Final = 60.0
"""How long the end of a run is held up at most; a report that takes longer is finished by its process alone.

That process has nobody who ends it: the command itself must keep to the time limit.
"""


class BackgroundReport:
    """A driver's `Reporter`: one report at a time; what changes meanwhile is in the next."""

    def __init__(
        self, command: Sequence[str], note: Callable[[str], None], *, where: str = "", last_wait_s: float = LAST_WAIT_S
    ) -> None:
        """Starts nothing yet.

        Args:
            command: Makes the report.
            note: Takes a line for the person who watches; called from the thread that calls this.
            where: The report's place, said at the end of the run; "" to say nothing.
            last_wait_s: How long `close` waits.
        """
        self._command = list(command)
        self._note = note
        self._where = where
        self._last_wait_s = last_wait_s
        self._changed = threading.Condition()
        self._is_due = False
        self._is_busy = False
        self._is_over = False
        self._process: subprocess.Popen[str] | None = None
        self._failure = ""
        self._last_failed = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Nothing to do."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for the last report, unless the run failed: then the one in the making is ended and none is made."""
        if error is None:
            self.close()
        else:
            self._stop()

    @property
    def was_asked(self) -> bool:
        """Whether there was anything to report."""
        return self._thread is not None

    def refresh(self) -> None:
        """See `still_ray.driver.ports.Reporter`."""
        self._say_failure()
        with self._changed:
            self._is_due = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="report", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Waits for the report that is due, and says where it is or why there is none.

        If time is up while an earlier one is still in the making, that one gives way to the last, which nobody waits
        for.
        """
        if self._thread is None:
            return
        with self._changed:
            ended = self._changed.wait_for(lambda: not self._is_due and not self._is_busy, self._last_wait_s)
            is_due = self._is_due
        failure = self._last_alone() if is_due else ""
        self._say_failure()
        if failure:
            self._note(f"the report could not be written: {failure}")
        elif not ended:
            self._note(f"the report is still being written; it will be at {self._where}")
        elif self._where and not self._last_failed:
            self._note(f"report: {self._where}")

    def _last_alone(self) -> str:
        """Starts the last report in a process that outlives this one; returns why it could not."""
        self._stop()
        try:
            self._popen(stderr=subprocess.DEVNULL)
        except OSError as error:
            return str(error)
        return ""

    def _stop(self) -> None:
        """Ends the report in the making, and makes no more."""
        with self._changed:
            self._is_over, self._is_due = True, False
            if self._process is not None:
                self._process.terminate()
            self._changed.notify_all()

    def _say_failure(self) -> None:
        failure, self._failure = self._failure, ""
        if failure:
            self._note(f"the report could not be written, the run goes on: {failure}")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_due or self._is_over)
                if self._is_over:
                    return
                self._is_due, self._is_busy = False, True
                failure = self._start()
            if self._process is not None:
                failure = _outcome(self._process)
            with self._changed:
                self._process = None
                if not self._is_over:  # else it was ended on purpose
                    self._failure, self._last_failed = failure, bool(failure)
                self._is_busy = False
                self._changed.notify_all()

    def _start(self) -> str:
        """Starts one report; returns why it could not."""
        try:
            self._process = self._popen(stderr=subprocess.PIPE)
        except OSError as error:
            return str(error)
        return ""

    def _popen(self, *, stderr: int) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
            start_new_session=True,  # an interrupt of the run is none of the report's business
        )


def _outcome(process: subprocess.Popen[str]) -> str:
    """Waits for a report; returns why it failed, "" if it did not."""
    try:
        _, errors = process.communicate(timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return f"it took more than {TIME_LIMIT_S:.0f} s"
    lines = errors.strip().splitlines()
    return "" if process.returncode == 0 else (lines[-1] if lines else f"exit status {process.returncode}")
