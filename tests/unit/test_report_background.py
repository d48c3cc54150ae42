"""The report while a run goes on: it never holds the run up, never fails it, and is up to date at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from still_ray.report.background import BackgroundReport

COUNT = "import sys, time; time.sleep({pause}); open(sys.argv[1], 'a').write('x')"
FAIL = "import sys; print('one', file=sys.stderr); print('still-ray: no such folder', file=sys.stderr); sys.exit(2)"

FIRST_HANGS = """
import os, sys, time
if os.path.exists({mark!r}):
    open(sys.argv[1], "w").write("last")
else:
    with open({mark!r} + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename({mark!r} + ".new", {mark!r})
    time.sleep(60)
"""
"""The first report takes a minute, after it has left its process id; the next is made at once."""


def alive(process: int) -> bool:
    """Whether a process runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Waits until something holds."""
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "it did not come to hold in time"
        time.sleep(0.02)


class Watched(BackgroundReport):
    """With what was noted."""

    def __init__(self, program: str, file: Path, *, last_wait_s: float = 30.0) -> None:
        self.notes: list[str] = []
        command = [sys.executable, "-c", program, str(file)]
        super().__init__(command, self.notes.append, where=str(file), last_wait_s=last_wait_s)


def test_a_refresh_returns_at_once_and_the_end_waits(tmp_path: Path) -> None:
    file = tmp_path / "made"
    began = time.monotonic()
    with Watched(COUNT.format(pause=0.3), file) as report:
        report.refresh()
        assert time.monotonic() - began < 0.2 and not file.exists()
    assert file.read_text() == "x" and report.notes == [f"report: {file}"]


def test_what_changes_while_a_report_is_made_is_in_one_more(tmp_path: Path) -> None:
    file = tmp_path / "made"
    with Watched(COUNT.format(pause=0.3), file) as report:
        report.refresh()
        time.sleep(0.15)
        for _ in range(5):
            report.refresh()
    assert file.read_text() == "xx"


def test_a_failure_is_one_line(tmp_path: Path) -> None:
    with Watched(FAIL, tmp_path) as report:
        report.refresh()
    assert report.notes == ["the report could not be written, the run goes on: still-ray: no such folder"]


def test_a_program_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    notes: list[str] = []
    with BackgroundReport([str(tmp_path / "nothing")], notes.append, where="x") as report:
        report.refresh()
    assert len(notes) == 1 and notes[0].startswith("the report could not be written, the run goes on: ")


def test_the_end_does_not_wait_for_ever(tmp_path: Path) -> None:
    with Watched(COUNT.format(pause=3), tmp_path / "made", last_wait_s=0.2) as report:
        report.refresh()
    assert report.notes == [f"the report is still being written; it will be at {tmp_path / 'made'}"]


def test_the_last_report_is_made_even_if_the_one_before_takes_too_long(tmp_path: Path) -> None:
    """What is busy gives way: it would write what is out of date, and perhaps after the last one."""
    file, busy = tmp_path / "made", tmp_path / "busy"
    report = Watched(FIRST_HANGS.format(mark=str(busy)), file, last_wait_s=0.2)
    with report:
        report.refresh()
        wait_for(busy.exists)
        report.refresh()
    assert report.notes == [f"the report is still being written; it will be at {file}"]
    wait_for(lambda: file.exists() and file.read_text() == "last")
    wait_for(lambda: not alive(int(busy.read_text())))


def test_a_run_that_fails_leaves_no_process_that_writes_later(tmp_path: Path) -> None:
    """A run that resumes makes newer reports, which it would replace."""
    file, busy = tmp_path / "made", tmp_path / "busy"
    report = Watched(FIRST_HANGS.format(mark=str(busy)), file)
    report.refresh()
    wait_for(busy.exists)
    report.refresh()
    report.__exit__(KeyError, KeyError(), None)
    wait_for(lambda: not alive(int(busy.read_text())))
    time.sleep(0.3)
    assert not file.exists() and report.notes == []


def test_a_run_that_fails_waits_for_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    report = Watched(COUNT.format(pause=3), tmp_path / "made")
    report.refresh()
    report.__exit__(KeyError, KeyError(), None)
    assert time.monotonic() - began < 1.0 and report.notes == []


def test_a_run_without_stages_has_no_report(tmp_path: Path) -> None:
    with Watched(COUNT.format(pause=0), tmp_path / "made") as report:
        pass
    assert report.notes == [] and not (tmp_path / "made").exists()
