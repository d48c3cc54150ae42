"""The report of a run that goes on: made by `still-ray report` in a process of its own, after each stage."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from still_ray.cli.console.progress import ConsoleProgress
from still_ray.location import ObjectPath
from still_ray.report import REPORT_FILE
from still_ray.report.background import TIME_LIMIT_S, BackgroundReport
from still_ray.store.run_directory import RunDirectory

PROGRAM: Final = (
    f"import os, signal; signal.alarm({TIME_LIMIT_S:.0f}); os.nice(19); from still_ray.cli import main; main()"
)
"""The command line, with less claim on the processor than what the run does: Ray gives its workers a niceness of 15.

The alarm ends it even where the run has ended and nobody waits.
"""


class RunReport(BackgroundReport):
    """The background report of one run directory."""

    def __init__(self, directory: RunDirectory, progress: ConsoleProgress) -> None:
        """Starts nothing yet."""
        self._file = directory.root / REPORT_FILE
        super().__init__(
            [sys.executable, "-c", PROGRAM, "report", str(directory.root)], progress.noted, where=str(self._file)
        )

    def make_missing(self) -> None:
        """Makes the report of a complete run that has none."""
        if not self._file.exists():
            self.refresh()


@contextmanager
def reported(directory: RunDirectory, progress: ConsoleProgress) -> Iterator[RunReport]:
    """A report that is up to date when this ends well; goes around the progress, whose events it shows."""
    with RunReport(directory, progress) as report:
        yield report
        if isinstance(directory.root, ObjectPath) and report.was_asked:  # its last events are stored only now
            report.refresh()
