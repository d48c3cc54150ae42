"""What follows from a failed attempt: another one after a wait, one sample given up, or the end of the run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Final


class Consequence(StrEnum):
    """What a failed attempt means."""

    RETRY = "retry"
    REFUSED = "refused"
    """The endpoint will not answer this question: it is recorded as refused and not asked again."""
    WRONG_SETTINGS = "wrong settings"
    """Address, model or key are wrong: no request can succeed."""
    STOP = "stop"
    """Nothing is wrong with the requests, but there is no use in going on now: no credit, no quota."""


class AttemptError(Exception):
    """One attempt brought no answer.

    Attributes:
        reason: A short name, under which failures are counted: "429", "connection", ...
        detail: One line for a person, free of secrets.
        consequence: What follows.
        retry_after_s: The wait that the endpoint asks for, seconds; None: it names none.
        may_have_cost: Whether the teacher may have generated tokens that nobody reported.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        consequence: Consequence = Consequence.RETRY,
        *,
        retry_after_s: float | None = None,
        may_have_cost: bool = False,
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.consequence = consequence
        self.retry_after_s = retry_after_s
        self.may_have_cost = may_have_cost


_RETRIED: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
        HTTPStatus.TOO_EARLY,
        HTTPStatus.TOO_MANY_REQUESTS,
    }
)
_WRONG: Final = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.GONE,
    }
)
_NO_CREDIT: Final = ("insufficient_quota", "billing_hard_limit_reached")
_FIRST_ERROR: Final = 400
_FIRST_SERVER_ERROR: Final = 500


def consequence_of(status: int, code: str = "") -> Consequence:
    """What an HTTP status that does not say success means.

    Args:
        status: The status.
        code: The error code in the body, if there is one.
    """
    if status == HTTPStatus.PAYMENT_REQUIRED or code in _NO_CREDIT:
        return Consequence.STOP
    if status in _RETRIED or status >= _FIRST_SERVER_ERROR:
        return Consequence.RETRY
    if status in _WRONG or status < _FIRST_ERROR:
        return Consequence.WRONG_SETTINGS
    return Consequence.REFUSED


def parsed_retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or as a date; None for none or nonsense."""
    if header is None:
        return None
    text = header.strip()
    if text.replace(".", "", 1).isdecimal():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
        wait = (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
    except (ValueError, OverflowError):  # the latter for a year or an offset beyond any calendar
        return None
    return max(0.0, wait.total_seconds())


@dataclass(frozen=True, kw_only=True)
class BackOff:
    """Exponential back-off with full jitter (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015).

    Attributes:
        first_s: Longest wait after the first attempt, seconds; doubles with each attempt.
        longest_s: Longest wait of all, seconds.
    """

    first_s: float
    longest_s: float

    def delay_s(self, attempt: int, fraction: float, retry_after_s: float | None = None) -> float:
        """Seconds to wait after a failed attempt.

        Args:
            attempt: 1 for the first attempt.
            fraction: A random number in [0, 1).
            retry_after_s: What the endpoint asks for, the least wait; some jitter comes on top, so that not all return
                at once. A wish for less than the back-off, or for none, does not shorten it.
        """
        doublings = min(attempt - 1, 64)
        jitter = fraction * min(self.longest_s, self.first_s * 2.0**doublings)
        return jitter if retry_after_s is None else max(jitter, retry_after_s + min(jitter, self.first_s))
