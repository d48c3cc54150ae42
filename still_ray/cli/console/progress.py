"""What a person sees while a run goes on: a live line on a terminal, plain lines otherwise; on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from still_ray.algo.stages import Stage
from still_ray.store.metrics_log import MetricsLog
from still_ray.types import Event, RunError, TrainProgress

PLAIN_INTERVAL_S = (5.0, 60.0)
"""Least time between two plain progress lines: at first, and after ten minutes of an activity."""
QUIET_S = (10.0, 300.0)
"""Time without any line after which one says what goes on: the first of a silence, and, doubled each time, the last."""


def print_note(text: str) -> None:
    """Says a line on stderr before any progress is drawn."""
    print(f"still-ray: {text}", file=sys.stderr, flush=True)  # noqa: T201 - nothing is drawn yet


class ConsoleProgress:
    """The driver's `Progress` on stderr, and metrics.jsonl."""

    def __init__(
        self,
        metrics: MetricsLog | None,
        console: Console | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the display.

        Args:
            metrics: Where events are written; None: nowhere.
            console: Where to draw; stderr by default.
            clock: Seconds.
        """
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._metrics = metrics
        self._clock = clock
        self._started = self._begun_at = self._doing_since = clock()
        self._printed_at = self._started
        self._advanced_at: dict[str, float] = {}
        self._quiet_s = QUIET_S[0]
        self._stage = self._doing = ""
        self._ended = threading.Event()
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Starts the live display, or the thread that breaks long silences."""
        self._live.start()
        if not self._console.is_terminal:
            threading.Thread(target=self._break_silences, name="progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the live display."""
        self._ended.set()
        self._live.stop()
        if self._metrics is not None:
            with suppress(RunError) if error is not None else nullcontext():  # what failed first is what is said
                self._metrics.close()

    def stage_started(self, stage: Stage, title: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.begun(stage.name, title)

    def begun(self, name: str, title: str) -> None:
        """Begins a part of the work and says so."""
        self._stage, self._doing = name, title
        self._begun_at = self._doing_since = self._clock()
        self._advanced_at = {}
        self._line(f"[bold]{name}[/bold]  {escape(title)}")
        if self._metrics is not None:
            self._metrics.flush()
        for task in self._tasks.values():
            self._live.remove_task(task)
        self._tasks = {name: self._live.add_task(name, total=None, facts="starting")}

    def doing(self, what: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        if what != self._doing:
            self._doing, self._doing_since = what, self._clock()
            self._quiet_s = QUIET_S[0]
        if self._stage in self._tasks:
            self._live.update(self._tasks[self._stage], facts=escape(what))

    def break_silence(self) -> None:
        """Says what goes on, and for how long, if nothing was printed for so long; the next time later."""
        now = self._clock()
        if self._doing and now - self._printed_at >= self._quiet_s:
            self._line(
                f"{escape(self._stage)}  {escape(self._doing)} ({_elapsed(now - self._doing_since)})", quiet=True
            )

    def _break_silences(self) -> None:
        while not self._ended.wait(1.0):
            self.break_silence()

    def advanced(self, done: float, total: float, facts: Mapping[str, str], *, beside: Stage | None = None) -> None:
        """See `still_ray.driver.ports.Progress`."""
        text = ", ".join(f"{name} {value}" for name, value in facts.items())
        name = beside.name if beside else self._stage
        if name not in self._tasks:
            self._tasks[name] = self._live.add_task(name, total=None)
        self._live.update(self._tasks[name], completed=done, total=total, facts=text)
        now = self._clock()
        least, most = PLAIN_INTERVAL_S
        interval_s = min(most, max(least, (now - self._begun_at) / 10))
        is_due = now - self._advanced_at.get(name, self._begun_at) >= interval_s
        if not self._console.is_terminal and (is_due or done >= total):
            self._advanced_at[name], quiet_s = now, self._quiet_s
            self._line(f"{name}  {escape(text)}")
            self._quiet_s = quiet_s  # numbers that come rarely are no reason to say more often that it lives

    def trained(self, stage: Stage, report: TrainProgress) -> None:
        """See `still_ray.driver.ports.Progress`."""
        for event in report.events(stage.name):
            self.event(event)
        facts = {
            "step": f"{report.step}/{report.total_steps}",
            "loss": f"{report.loss:.3f}",
            "tokens/s": f"{report.tokens_per_s:,.0f}",
        }
        self.advanced(report.step, report.total_steps, facts)

    def event(self, event: Event) -> None:
        """See `still_ray.driver.ports.Progress`."""
        if self._metrics is not None:
            self._metrics.append(event)

    def noted(self, text: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self._line(f"  {escape(text)}")

    def _line(self, text: str, *, quiet: bool = False) -> None:
        self._printed_at = self._clock()
        self._quiet_s = min(2 * self._quiet_s, QUIET_S[1]) if quiet else QUIET_S[0]
        minutes, seconds = divmod(int(self._printed_at - self._started), 60)
        self._console.print(f"[dim]{minutes:3d}:{seconds:02d}[/dim]  {text}")


def _elapsed(seconds: float) -> str:
    """A duration for a person, e.g. "40 s" or "3 min 20 s"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
