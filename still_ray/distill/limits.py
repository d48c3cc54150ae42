"""How fast and how much: pacing by requests and tokens, and a budget that nothing can overdraw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

_SOON_S: Final = 1e-6
"""A shorter wait is none: what is left of a debt after rounding must not hold anyone."""

_LONGEST_NAP_S: Final = 1.0
"""A paced request looks again after this time at the latest, since a refund may have freed it."""


class Pace:
    """Spreads a cost over time: the next may start when all before it has been worked off.

    In any span of t seconds, at most t / 60 * per_minute + one cost is started.
    """

    def __init__(self, per_minute: float | None) -> None:
        """Starts without debt.

        Args:
            per_minute: What is worked off in a minute; None: no limit.
        """
        self._per_s = None if per_minute is None else per_minute / 60
        self._debt = 0.0
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        """Seconds until the next may start, as it looks now."""
        if self._per_s is None:
            return 0.0
        self._work_off(now)
        wait_s = self._debt / self._per_s
        return wait_s if wait_s > _SOON_S else 0.0

    def start(self, cost: float, now: float) -> None:
        """Books a cost."""
        self._work_off(now)
        self._debt += cost

    def refund(self, cost: float, now: float) -> None:
        """Takes back what was booked and not used."""
        self._work_off(now)
        self._debt = max(0.0, self._debt - cost)

    def _work_off(self, now: float) -> None:
        if self._per_s is not None:
            self._debt = max(0.0, self._debt - (now - self._at) * self._per_s)
        self._at = now


class Turnstile:
    """Lets requests start one after the other, as two paces and the endpoint's own wishes allow."""

    def __init__(
        self,
        requests: Pace,
        tokens: Pace,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Joins the two paces; `clock` and `sleep` are replaced in tests."""
        self._requests = requests
        self._tokens = tokens
        self._held_until = float("-inf")
        self._clock = clock
        self._sleep = sleep
        self._queue = asyncio.Lock()
        self._is_open = asyncio.Event()
        self._is_open.set()

    async def pass_through(self, tokens: int, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Waits for one's turn, first come first served, and books one request and so many tokens.

        Args:
            tokens: The most that the request can cost.
            unless: Ends the wait early when it becomes true.
        """
        async with self._queue:
            await self._is_open.wait()
            while (wait_s := self._wait_s()) > 0 and not unless():
                await self._sleep(min(wait_s, _LONGEST_NAP_S))
                await self._is_open.wait()
            now = self._clock()
            self._requests.start(1, now)
            self._tokens.start(tokens, now)

    def refund(self, tokens: int) -> None:
        """Takes back tokens that were booked and not used."""
        self._tokens.refund(tokens, self._clock())

    def hold(self, seconds: float) -> None:
        """Starts nothing for so long: an endpoint that asks one request to wait means all of them."""
        self._held_until = max(self._held_until, self._clock() + seconds)

    def shut(self) -> None:
        """Starts nothing until it is opened again."""
        self._is_open.clear()

    def open(self) -> None:
        """Ends `shut`."""
        self._is_open.set()

    def _wait_s(self) -> float:
        now = self._clock()
        return max(self._requests.wait_s(now), self._tokens.wait_s(now), self._held_until - now)


class Budget:
    """What may still be spent: attempts, and tokens as long as each attempt stays within its reservation.

    Attributes:
        spent_requests: Attempts begun.
        spent_tokens: Tokens of attempts that have ended.
        reserved_tokens: Most that the attempts in flight can spend.
    """

    def __init__(
        self,
        *,
        max_requests: int | None,
        max_tokens: int | None,
        spent_requests: int = 0,
        spent_tokens: int = 0,
    ) -> None:
        """Goes on from what earlier invocations spent."""
        self.spent_requests = spent_requests
        self.spent_tokens = spent_tokens
        self.reserved_tokens = 0
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._in_flight = 0
        self._changed = asyncio.Condition()

    def fits(self, tokens: int) -> bool:
        """Whether another attempt with such a reservation cannot overdraw the budget."""
        if self._requests_used_up():
            return False
        return self._max_tokens is None or self.spent_tokens + self.reserved_tokens + tokens <= self._max_tokens

    async def reserve(self, tokens: int) -> bool:
        """Books an attempt, waiting for those in flight to give back what they do not need.

        Returns:
            False: it cannot fit any more, whatever they give back.
        """
        async with self._changed:
            while not self.fits(tokens):
                if self._requests_used_up() or not self._in_flight:
                    return False
                await self._changed.wait()
            self.spent_requests += 1
            self.reserved_tokens += tokens
            self._in_flight += 1
            return True

    async def settle(self, reserved: int, spent: int) -> None:
        """Ends an attempt."""
        async with self._changed:
            self.reserved_tokens -= reserved
            self.spent_tokens += spent
            self._in_flight -= 1
            self._changed.notify_all()

    def _requests_used_up(self) -> bool:
        return self._max_requests is not None and self.spent_requests >= self._max_requests
