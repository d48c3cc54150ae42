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

from still_ray.actors.pool.polling import Polls
from still_ray.sampler.protocol import SamplerStats

LOOKS = 8
"""How often a replica is asked for its load within the time that it has. Source: ours."""
LONGEST_LOOK_S = 2.0
"""Time between two looks at most, since they are also what a person sees of responses that are not finished."""


class HangDetector:
    """Watches the replicas of one pass through the pipeline.

    Attributes:
        stats: What each replica said of its load at the last look that it answered.
    """

    def __init__(self, timeout_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Watches no replica yet.

        Args:
            timeout_s: Seconds without progress after which a replica hangs; None: it may take as long as it likes.
            clock: Seconds.
        """
        self._timeout_s = math.inf if timeout_s is None else timeout_s
        self._clock = clock
        self.stats: dict[str, SamplerStats] = {}
        self._since: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._looks = Polls()
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
        if now - self._looked_at < self.look_every_s:
            return False
        self._looked_at = now
        return True

    def look(self, handles: dict[str, Any]) -> list[tuple[str, SamplerStats]]:
        """Takes in what has come of earlier looks, which it returns, and asks busy replicas for their load again.

        One that does not answer is not asked again. One that cannot answer any more is dead: its calls will say so.
        """
        came = self._looks.answers()
        for name, stats in came:
            self.stats[name] = stats
            self.counted(name, stats.num_steps)
        for name, handle in handles.items():
            self._looks.ask(name, handle.stats.remote)
        return came
