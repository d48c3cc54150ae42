"""Pace and budget, on a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.distill.limits import Budget, Pace, Turnstile


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        await asyncio.sleep(0)


def turnstile(clock: Clock, requests: float | None = None, tokens: float | None = None) -> Turnstile:
    return Turnstile(Pace(requests), Pace(tokens), clock=clock, sleep=clock.sleep)


def starts(gate: Turnstile, clock: Clock, costs: list[int]) -> list[float]:
    """When each of several waiting requests started."""
    times: list[float] = []

    async def one(cost: int) -> None:
        await gate.pass_through(cost)
        times.append(clock.now)

    async def all_of_them() -> None:
        await asyncio.gather(*(one(cost) for cost in costs))

    asyncio.run(all_of_them())
    return times


@given(st.floats(0.5, 600), st.integers(2, 40))
def test_no_minute_has_more_requests_than_allowed_and_one(per_minute: float, number: int) -> None:
    clock = Clock()
    times = starts(turnstile(clock, requests=per_minute), clock, [0] * number)
    assert times == sorted(times)
    for i, begin in enumerate(times):
        assert sum(begin <= time < begin + 60 - 1e-3 for time in times[i:]) <= per_minute + 1
    assert times[-1] - times[0] == pytest.approx((number - 1) * 60 / per_minute, rel=1e-3)


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=30))
def test_no_minute_has_more_tokens_than_allowed_and_one_request(costs: list[int]) -> None:
    clock = Clock()
    times = starts(turnstile(clock, tokens=6000), clock, costs)
    for i, begin in enumerate(times):
        inside = [cost for time, cost in zip(times[i:], costs[i:], strict=True) if time < begin + 60 - 1e-3]
        assert sum(inside) <= 6000 + max(costs)


def test_tokens_that_were_not_used_let_the_next_one_start_sooner() -> None:
    clock = Clock()
    gate = turnstile(clock, tokens=60)

    async def scenario() -> float:
        await gate.pass_through(600)  # ten minutes' worth
        waiting = asyncio.create_task(gate.pass_through(1))
        await asyncio.sleep(0)
        gate.refund(590)
        await waiting
        return clock.now - 1000

    assert 10 <= asyncio.run(scenario()) <= 12


def test_a_wish_of_the_endpoint_holds_everyone() -> None:
    clock = Clock()
    gate = turnstile(clock)
    gate.hold(30)
    gate.hold(10)
    assert starts(gate, clock, [1, 1, 1]) == [1030.0] * 3


def test_nothing_starts_while_it_is_shut_and_the_pace_holds_when_it_opens() -> None:
    clock = Clock()
    gate = turnstile(clock, requests=60)
    times: list[float] = []

    async def one() -> None:
        await gate.pass_through(1)
        times.append(clock.now)

    async def scenario() -> None:
        gate.shut()
        waiting = [asyncio.create_task(one()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert times == []
        gate.open()
        await asyncio.gather(*waiting)

    asyncio.run(scenario())
    assert times == pytest.approx([1000.0, 1001.0, 1002.0])


def test_a_stopped_run_does_not_wait_for_its_turn() -> None:
    clock = Clock()
    gate = turnstile(clock)
    gate.hold(1e9)
    asyncio.run(gate.pass_through(1, unless=lambda: clock.now >= 1003))
    assert clock.now == 1003


Requests = st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1), st.integers(0, 3)), max_size=40)


@given(Requests, st.integers(0, 300), st.integers(0, 20), st.integers(1, 8))
def test_the_budget_is_never_overdrawn_and_not_left_unused(
    requests: list[tuple[int, float, int]], max_tokens: int, max_requests: int, concurrency: int
) -> None:
    """Each request reserves tokens, spends a share of them, and takes a few turns of the loop."""
    budget = Budget(max_requests=max_requests, max_tokens=max_tokens)
    queue = iter(requests)
    refused: list[int] = []

    async def worker() -> None:
        for reserved, share, turns in queue:
            if not await budget.reserve(reserved):
                refused.append(reserved)
                continue
            assert budget.spent_tokens + budget.reserved_tokens <= max_tokens
            assert budget.spent_requests <= max_requests
            for _ in range(turns):
                await asyncio.sleep(0)
            await budget.settle(reserved, int(reserved * share))

    async def all_workers() -> None:
        await asyncio.wait_for(asyncio.gather(*(worker() for _ in range(concurrency))), 10)

    asyncio.run(all_workers())
    assert budget.reserved_tokens == 0
    assert budget.spent_tokens <= max_tokens
    assert budget.spent_requests + len(refused) == len(requests)
    if budget.spent_requests < max_requests and concurrency == 1:
        assert all(reserved + budget.spent_tokens > max_tokens for reserved in refused[-1:])


def test_a_budget_goes_on_from_what_was_spent_before() -> None:
    budget = Budget(max_requests=10, max_tokens=100, spent_requests=9, spent_tokens=60)
    assert not budget.fits(41)
    assert asyncio.run(budget.reserve(40))
    assert not asyncio.run(budget.reserve(0))
