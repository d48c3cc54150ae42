"""Writes down what became of each attempt, and holds back refusals that may be the settings' fault."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from still_ray.distill.convert import REFUSED
from still_ray.distill.journal import Answered, Begun, Failed, Header, Journal, SampleKey
from still_ray.distill.retry import AttemptError
from still_ray.distill.task import Task
from still_ray.distill.teacher import Reply

REFUSALS_WITHOUT_ANSWER: Final = 5
"""So many refusals before the first answer are not about the questions: the settings are wrong."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One request under way.

    Attributes:
        key: The sample.
        number: 1 for the first attempt at it, over all invocations.
        reserved_tokens: The most that it can cost.
        started: Monotonic time of sending, seconds.
    """

    key: SampleKey
    number: int
    reserved_tokens: int
    started: float


class Recorder:
    """The only one that writes attempts and answers into the journal."""

    def __init__(self, task: Task, journal: Journal) -> None:
        """Notes what is asked, if the journal does not say it yet."""
        self._task = task
        self._journal = journal
        self._held: list[tuple[Attempt, AttemptError]] = []
        header = Header(asks=task.asks())
        if journal.ledger.header != header:
            journal.append(header)

    def begin(self, key: SampleKey, reserved_tokens: int) -> Attempt:
        """Notes an attempt that is about to be sent."""
        number = self._journal.ledger.attempts[key] + 1
        begun = Begun(
            question_id=key.question_id,
            sample_index=key.sample_index,
            attempt=number,
            reserved_tokens=reserved_tokens,
            at=utc_now(),
        )
        self._journal.append(begun)
        return Attempt(key=key, number=number, reserved_tokens=reserved_tokens, started=time.monotonic())

    def failed(self, attempt: Attempt, error: AttemptError) -> int:
        """Notes an attempt without an answer; returns the tokens that it counts for."""
        charged = attempt.reserved_tokens if error.may_have_cost else 0
        failed = Failed(
            question_id=attempt.key.question_id,
            sample_index=attempt.key.sample_index,
            attempt=attempt.number,
            reason=error.reason,
            detail=error.detail,
            charged_tokens=charged,
            at=utc_now(),
        )
        self._journal.append(failed)
        return charged

    def answered(self, attempt: Attempt, reply: Reply) -> Answered:
        """Makes an answer durable, and the refusals that waited for a first one."""
        answer = self._answer(attempt, reply, _charge(reply, attempt.reserved_tokens))
        self._journal.append(answer, durable=True)
        while self._held:
            self._write_refusal(*self._held.pop())
        return answer

    @property
    def doubts(self) -> bool:
        """Whether nothing but refusals has come, and so many that it can hardly be the questions' fault."""
        return len(self._held) >= REFUSALS_WITHOUT_ANSWER

    def refused(self, attempt: Attempt, error: AttemptError) -> None:
        """Takes note of a refusal, and holds it back as long as there is no answer."""
        if self._journal.ledger.num_answered:
            self._write_refusal(attempt, error)
        else:
            self._held.append((attempt, error))

    def close(self) -> AttemptError | None:
        """Ends the invocation; gives the first refusal if there was no answer at all. Held ones are asked again."""
        held, self._held = self._held, []
        for attempt, error in held:
            self.failed(attempt, error)
        return held[0][1] if held else None

    def _write_refusal(self, attempt: Attempt, error: AttemptError) -> None:
        reply = Reply(
            reasoning="",
            content=f"{error.reason}: {error.detail}",
            finish_reason=REFUSED,
            prompt_tokens=None,
            completion_tokens=None,
        )
        charged = attempt.reserved_tokens if error.may_have_cost else 0
        self._journal.append(self._answer(attempt, reply, charged), durable=True)

    def _answer(self, attempt: Attempt, reply: Reply, charged_tokens: int) -> Answered:
        return Answered(
            question_id=attempt.key.question_id,
            sample_index=attempt.key.sample_index,
            attempt=attempt.number,
            reasoning=reply.reasoning,
            content=reply.content,
            finish_reason=reply.finish_reason,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            charged_tokens=charged_tokens,
            served_model=reply.served_model,
            response_id=reply.response_id,
            endpoint=self._task.endpoint,
            seed=self._task.seed(attempt.key),
            latency_s=time.monotonic() - attempt.started,
            at=utc_now(),
        )


def _charge(reply: Reply, reserved_tokens: int) -> int:
    """What the endpoint reports, or else the most that it can have been."""
    if reply.prompt_tokens is None or reply.completion_tokens is None:
        return reserved_tokens
    return reply.prompt_tokens + reply.completion_tokens


def utc_now() -> str:
    """UTC time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
