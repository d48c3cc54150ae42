"""Which replicas hang: they hold work and have made no progress for too long.

A replica that dies is noticed by its calls. One that hangs, in a collective or in a driver of its device, would keep
its requests for ever. A response may take long and still get on, so what counts is not the age of a request: the
engine's number of steps must grow, or an answer must come.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray

LOOKS = 8
"""How often a replica is asked for its steps within the time that it has. Source: ours."""
LONGEST_LOOK_S = 60.0


class HangDetector:
    """Watches the replicas of one pass through the pipeline."""

    def __init__(self, timeout_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Watches no replica yet.

        Args:
            timeout_s: Seconds without progress after which a replica hangs; None: it may take as long as it likes.
            clock: Seconds.
        """
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._clock = clock
        self._since: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._looks: dict[ray.ObjectRef, str] = {}
        self._looked_at = -math.inf

    @property
    def look_every_s(self) -> float:
        """Seconds between two looks."""
        return min(self._timeout_s / LOOKS, LONGEST_LOOK_S)

    def alive(self, name: str) -> None:
        """Takes in a sign of life: work that was taken up after a rest, or an answer."""
        self._since[name] = self._clock()

    def counted(self, name: str, steps: int) -> None:
        """Takes in how many steps a replica has made."""
        if self._steps.get(name) != steps:
            self._steps[name] = steps
            self.alive(name)

    def hanging(self, busy: Iterable[str]) -> list[str]:
        """Those that hold work and got on too long ago; who holds none is not expected to."""
        now = self._clock()
        self._since = {name: self._since.get(name, now) for name in busy}
        return [name for name, since in self._since.items() if now - since > self._timeout_s]

    def is_due(self) -> bool:
        """Whether it is time for another look; a yes is given once."""
        now = self._clock()
        if self._timeout_s == math.inf or now - self._looked_at < self.look_every_s:
            return False
        self._looked_at = now
        return True

    def look(self, handles: dict[str, Any]) -> None:
        """Takes in what has come of earlier looks, and asks busy replicas for their steps again.

        One that does not answer is not asked again. One that cannot answer any more is dead: its calls will say so.
        """
        answered = ray.wait(list(self._looks), num_returns=len(self._looks), timeout=0)[0] if self._looks else []
        for reference in answered:
            name = self._looks.pop(reference)
            try:
                self.counted(name, ray.get(reference))
            except ray.exceptions.RayError:
                continue
        asked = set(self._looks.values())
        self._looks |= {handle.steps.remote(): name for name, handle in handles.items() if name not in asked}
