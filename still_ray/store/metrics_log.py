"""metrics.jsonl: one JSON object a line, appended; in an object store written anew at intervals, in the background."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from pathlib import Path

from still_ray.location import Location, ObjectPath
from still_ray.store.scratch import run_scratch
from still_ray.types import Event, RunError

UPLOAD_S = 10.0
"""At most so many seconds of events are lost when a driver is killed. Source: ours."""
UPLOAD_SHARE = 0.05
"""Most of the time that uploads may take: a long file, which goes up whole, goes up less often."""


class MetricsLog:
    """The events of a run, in order."""

    def __init__(self, path: Location) -> None:
        """Goes on behind what is there."""
        self._spool = _Spool(path) if isinstance(path, ObjectPath) else None
        self._path = self._spool.file if self._spool else path

    def append(self, event: Event) -> None:
        """Writes one line."""
        line = {"time": time.time(), "name": event.name, "value": event.value, "labels": event.labels}
        text = json.dumps(line) + "\n"
        if self._spool is not None:
            self._spool.append(text)
            return
        assert isinstance(self._path, Path)
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(text)

    def flush(self) -> None:
        """Has the events so far stored soon; does not wait."""
        if self._spool is not None:
            self._spool.due.set()

    def close(self) -> None:
        """Stores what is not stored yet.

        Raises:
            RunError: The store does not take it; names the file of this machine that holds it.
        """
        if self._spool is not None:
            self._spool.close()


class _Spool:
    """A file of this machine that is put into the store again and again."""

    def __init__(self, target: ObjectPath) -> None:
        self.file = run_scratch(target.parent) / target.name
        self.due = threading.Event()
        self._target = target
        self._lock = threading.Lock()
        self._closing = False
        self._stored_bytes = self._restore()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def append(self, text: str) -> None:
        with self._lock, self.file.open("a", encoding="utf-8") as handle:
            handle.write(text)

    def close(self) -> None:
        self._closing = True
        self.due.set()
        self._thread.join()
        try:
            self._upload()
        except RunError as error:
            raise RunError(f"{error}; the events are in {self.file}") from error
        self.file.unlink()

    def _restore(self) -> int:
        """Brings back what is stored, unless a driver that died here left the same and more."""
        try:
            stored = self._target.read_bytes()
        except FileNotFoundError:
            stored = b""
        left = self.file.read_bytes() if stored and self.file.exists() else b""
        if not left.startswith(stored) or not left.endswith(b"\n"):
            self.file.write_bytes(stored)
        return len(stored)

    def _run(self) -> None:
        pause_s = UPLOAD_S
        while not self._closing:
            self.due.wait(pause_s)
            self.due.clear()
            started = time.monotonic()
            with suppress(RunError):  # named policy: tried again after a pause, for the last time by `close`
                self._upload()
            pause_s = max(UPLOAD_S, (time.monotonic() - started) / UPLOAD_SHARE)

    def _upload(self) -> None:
        with self._lock:
            content = self.file.read_bytes() if self.file.exists() else b""
        if len(content) != self._stored_bytes:
            self._target.write_bytes(content)
            self._stored_bytes = len(content)
