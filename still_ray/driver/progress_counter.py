"""The running count of a sampling activity."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from still_ray.driver.ports import SamplingLoad
from still_ray.types import Trajectory, TrajectoryKey, Verdict

REPORT_INTERVAL_S = 1.0
"""Least time between two reports to metrics.jsonl: thousands of prompts answer in one round."""


NOTHING_BROUGHT: Final[Mapping[TrajectoryKey, int]] = {}


class ProgressCounter:
    """Counts rollouts and correct ones, those of before included, and the tokens of those that arrive."""

    def __init__(
        self,
        *,
        total: int,
        already: int,
        already_correct: int,
        brought: Mapping[TrajectoryKey, int] = NOTHING_BROUGHT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts to count.

        Args:
            total: Rollouts expected.
            already: Those of them that were stored before.
            already_correct: And were judged correct.
            brought: Tokens of responses that go on where an earlier process was killed.
            clock: Seconds, monotonic.
        """
        self.total = total
        self.done = already
        self._brought = brought
        self._clock = clock
        self._started = clock()
        self._num_correct = already_correct
        self._num_tokens = 0
        self._load = SamplingLoad(num_running=0, num_waiting=0, num_tokens=0)
        self._reported = float("-inf")

    def add(self, rows: Sequence[Trajectory]) -> None:
        """Counts trajectories that have just been judged."""
        self.done += len(rows)
        self._num_correct += sum(row.verdict is Verdict.CORRECT for row in rows)
        self._num_tokens += sum(row.num_tokens - self._brought.get(row.key, 0) for row in rows)

    def loaded(self, load: SamplingLoad) -> None:
        """Takes in what the replicas do; the last look may be older than the last trajectory."""
        self._load = load

    @property
    def num_tokens(self) -> int:
        """Tokens decoded so far, of responses that are not finished too."""
        return max(self._num_tokens, self._load.num_tokens)

    def facts(self) -> dict[str, str]:
        """What the progress line shows."""
        share = self._num_correct / self.done if self.done else 0.0
        return {
            "rollouts": f"{self.done}/{self.total}",
            **({"running": f"{self._load.num_running}"} if self.done < self.total else {}),
            "tokens": f"{self.num_tokens:,}",
            "tokens/s": f"{self._tokens_per_s():,.0f}",
            "correct so far": f"{self._num_correct} ({share:.0%})",
        }

    def events(self) -> Iterator[tuple[str, float]]:
        """The same as numbers; at most once a second, and at the end."""
        if self._clock() - self._reported < REPORT_INTERVAL_S and self.done < self.total:
            return
        self._reported = self._clock()
        yield "rollouts", float(self.done)
        yield "tokens_per_s", self._tokens_per_s()
        yield "correct", float(self._num_correct)

    def _tokens_per_s(self) -> float:
        return self.num_tokens / max(self._clock() - self._started, 1e-9)
