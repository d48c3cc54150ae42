"""What follows from a failed attempt, and how long to wait."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.distill.retry import BackOff, Consequence, consequence_of, parsed_retry_after

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BACK_OFF = BackOff(first_s=2.0, longest_s=30.0)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529, 599])
def test_what_may_pass_is_retried(status: int) -> None:
    assert consequence_of(status) is Consequence.RETRY


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 405, 410])
def test_what_is_wrong_with_every_request_ends_the_run_as_wrong_settings(status: int) -> None:
    assert consequence_of(status) is Consequence.WRONG_SETTINGS


@pytest.mark.parametrize("status", [400, 413, 422, 451])
def test_what_is_wrong_with_one_request_is_that_questions_refusal(status: int) -> None:
    assert consequence_of(status) is Consequence.REFUSED


def test_no_credit_stops_although_its_status_is_that_of_a_rate_limit() -> None:
    assert consequence_of(402) is Consequence.STOP
    assert consequence_of(429, "insufficient_quota") is Consequence.STOP
    assert consequence_of(429, "rate_limit_exceeded") is Consequence.RETRY


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0.25 ", 0.25),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:00:00 GMT", 0.0),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2026 07:28:00 +99999999999999", None),
        ("soon", None),
        ("-3", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    assert parsed_retry_after(header, NOW) == seconds


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_the_jitter_is_full_and_its_ceiling_doubles_up_to_the_longest(attempt: int, fraction: float) -> None:
    ceiling = min(30.0, 2.0 * 2 ** min(attempt - 1, 20))
    assert BACK_OFF.delay_s(attempt, fraction) == pytest.approx(fraction * ceiling)


@given(st.integers(1, 50), st.floats(0, 1, exclude_max=True), st.floats(0, 1e6))
def test_the_endpoints_wish_is_the_least_wait(attempt: int, fraction: float, wish_s: float) -> None:
    back_off_s = BACK_OFF.delay_s(attempt, fraction)
    delay_s = BACK_OFF.delay_s(attempt, fraction, wish_s)
    assert max(wish_s, back_off_s) <= delay_s <= max(wish_s + 2.0, back_off_s)


def test_a_wish_for_no_wait_does_not_switch_the_back_off_off() -> None:
    assert [BACK_OFF.delay_s(attempt, 0.5, 0.0) for attempt in (1, 2, 3, 9)] == [1.0, 2.0, 4.0, 15.0]
