"""How a benchmark prints a figure, one JSON line, and watches its memory."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from typing import Final

import psutil

INTERVAL_S: Final = 0.002
"""Between two looks at the memory."""


def print_figure(name: str, *, value: float, unit: str, baseline: float) -> None:
    """Prints a figure, its baseline and their ratio (value over baseline)."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    figure = {
        "name": name,
        "value": round(value, 3),
        "unit": unit,
        "baseline": round(baseline, 3),
        "ratio": round(value / baseline, 3),
        "machine": machine,
    }
    sys.stdout.write(json.dumps(figure) + "\n")
    sys.stdout.flush()


def print_failure(name: str, cause: str) -> None:
    """Prints that something could not be measured, and why."""
    sys.stdout.write(json.dumps({"name": name, "failed": cause}) + "\n")
    sys.stdout.flush()


class PeakMemory:
    """Most resident memory of this process above what it held at the start of a block.

    Attributes:
        peak_bytes: That, at most so far.
    """

    def __init__(self) -> None:
        """Watches from the start of the block on."""
        self.peak_bytes = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        """Begins to watch."""
        self._start = self._process.memory_info().rss
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends to watch."""
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss - self._start)
