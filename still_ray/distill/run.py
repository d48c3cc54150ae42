"""The loop: asks for every sample that is not in the journal yet, within pace and budget, and has answers judged.

consumes     questions, the journal of earlier invocations
produces     events in the journal
waits for    the endpoint, the budget, the pace; for verdicts only at its end
unblocked by the first error or the end of the budget; what is in flight is taken in, since it is paid for
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Final

from still_ray.algo.seeds import derived_seed
from still_ray.distill.convert import converted
from still_ray.distill.journal import Answered, Journal, Judged, SampleKey
from still_ray.distill.limits import Budget, Pace, Turnstile
from still_ray.distill.recorder import Attempt, Recorder
from still_ray.distill.retry import AttemptError, BackOff, Consequence
from still_ray.distill.task import Task
from still_ray.distill.teacher import Teacher
from still_ray.types import InputError, RunError, StillRayError, Verdict
from still_ray.verifiers.pool import VerifierPool

_SEEDS: Final = 2**31
_MAX_JUDGING: Final = 64


class Status(StrEnum):
    """How an invocation ended."""

    COMPLETE = "complete"
    BUDGET = "budget spent"
    GIVEN_UP = "samples given up"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class Distillation:
    """One invocation.

    Attributes:
        given_up: Why each sample was given up that used all its attempts.
        failures: Attempts that failed, by their reason.
        first_failures: The first of each reason.
        error: What ended the invocation early; None: nothing did, or the budget.
        status: How it ended; interrupted as long as it has not.
    """

    def __init__(
        self,
        task: Task,
        teacher: Teacher,
        journal: Journal,
        *,
        pool: VerifierPool | None = None,
        turnstile: Turnstile | None = None,
        on_progress: Callable[[], None] = lambda: None,
        on_failure: Callable[[AttemptError], None] = lambda error: None,
    ) -> None:
        """Prepares an invocation.

        Args:
            task: What is to be asked.
            teacher: Whom.
            journal: What is known already, and where to note the rest.
            pool: Judges answers; None: nothing is judged.
            turnstile: Replaces that of the settings.
            on_progress: Called after each attempt and each verdict.
            on_failure: Takes the first failure of each reason, when it happens.
        """
        config = task.config
        self.given_up: dict[SampleKey, str] = {}
        self.failures: Counter[str] = Counter()
        self.first_failures: dict[str, AttemptError] = {}
        self.error: StillRayError | None = None
        self.status = Status.INTERRUPTED
        self._task = task
        self._teacher = teacher
        self._journal = journal
        self._recorder = Recorder(task, journal)
        self._pool = pool
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._budget = Budget(
            max_requests=config.max_requests,
            max_tokens=config.max_total_tokens,
            spent_requests=journal.ledger.num_requests,
            spent_tokens=journal.ledger.charged_tokens,
        )
        self._turnstile = turnstile or Turnstile(Pace(config.requests_per_minute), Pace(config.tokens_per_minute))
        self._back_off = BackOff(first_s=config.first_backoff_s, longest_s=config.max_backoff_s)
        self._stopped = asyncio.Event()
        self._num_in_flight = 0
        self._out_of_budget = False
        self._judging = asyncio.Semaphore(_MAX_JUDGING)

    async def run(self) -> Status:
        """Asks and judges until nothing is left, the budget is spent or something is wrong; then see `error`.

        Raises:
            RunError: The journal cannot be written.
        """
        keys = pending(self._task, self._journal)
        try:
            async with asyncio.TaskGroup() as group:
                for key in list(unjudged(self._task, self._journal)) if self._pool else ():
                    group.create_task(self._judge(key))
                for _ in range(min(self._task.config.concurrency, self._task.num_samples)):
                    group.create_task(self._work(keys, group))
        except ExceptionGroup as failures:
            self.status = Status.FAILED
            raise _first_leaf(failures) from None
        except asyncio.CancelledError:
            self._recorder.close()
            raise
        self._check_refusals()
        self._check_any_answer()
        self.status = self._final_status()
        return self.status

    def _final_status(self) -> Status:
        if self.error is not None:
            return Status.FAILED
        if self._out_of_budget:
            return Status.BUDGET
        if self.given_up:
            return Status.GIVEN_UP
        return Status.COMPLETE if next(pending(self._task, self._journal), None) is None else Status.INTERRUPTED

    async def _work(self, keys: Iterator[SampleKey], group: asyncio.TaskGroup) -> None:
        """One of `concurrency` workers; it keeps its place while it waits to try again, which spares the endpoint."""
        for key in keys:
            if await self._sample(key) and self._pool and self._task.questions[key.question_id].answer is not None:
                group.create_task(self._judge(key))
            if self._stopped.is_set():
                return

    async def _sample(self, key: SampleKey) -> bool:
        """Tries one sample until it is refused, given up, the run is stopped, or it is answered (True)."""
        for attempt in range(1, self._task.config.max_attempts + 1):
            outcome = await self._attempt(key)
            self._on_progress()
            if not isinstance(outcome, AttemptError):
                return outcome is not None
            if outcome.consequence is not Consequence.RETRY or self._stopped.is_set():
                return False
            if attempt == self._task.config.max_attempts:
                self._give_up(key, outcome)
            elif not await self._pause(key, attempt, outcome):
                return False
        return False

    async def _attempt(self, key: SampleKey) -> Answered | AttemptError | None:
        """One request; None: nothing was sent, since the run was stopped or the budget is spent."""
        prompt = self._task.user_turn(key)
        reserved = self._task.reservation(prompt)
        if self._stopped.is_set() or not await self._may_spend(reserved):
            return None
        spent = 0
        try:
            await self._turnstile.pass_through(reserved, unless=self._stopped.is_set)
            if self._stopped.is_set():
                return None
            outcome, spent = await self._asked(key, prompt, reserved)
            return outcome
        finally:
            await self._budget.settle(reserved, spent)
            self._turnstile.refund(max(0, reserved - spent))

    async def _may_spend(self, tokens: int) -> bool:
        if await self._budget.reserve(tokens):
            return True
        self._out_of_budget = True
        self._stopped.set()
        return False

    async def _asked(self, key: SampleKey, prompt: str, reserved: int) -> tuple[Answered | AttemptError, int]:
        """Sends a request, writes down what became of it, and gives that and the tokens that it counts for."""
        attempt = self._recorder.begin(key, reserved)
        self._num_in_flight += 1
        try:
            reply = await self._teacher.ask(prompt, self._task.seed(key))
            answer = self._recorder.answered(attempt, reply)
        except AttemptError as error:
            return error, self._noted(attempt, error)
        finally:
            self._num_in_flight -= 1
            self._weigh_refusals()
        return answer, answer.charged_tokens

    def _noted(self, attempt: Attempt, error: AttemptError) -> int:
        """Writes a failure down and does what it calls for; returns the tokens that it counts for."""
        self.failures[error.reason] += 1
        if error.reason not in self.first_failures:
            self.first_failures[error.reason] = error
            self._on_failure(error)
        if error.consequence is Consequence.REFUSED:
            self._recorder.refused(attempt, error)
            return attempt.reserved_tokens if error.may_have_cost else 0
        charged = self._recorder.failed(attempt, error)
        self._draw_consequence(error)
        return charged

    def _weigh_refusals(self) -> None:
        """With nothing but refusals, what is in flight decides: until one is answered, nothing more is sent."""
        if self._recorder.doubts and self._num_in_flight == 0:
            self._stopped.set()
        if self._recorder.doubts and self._num_in_flight > 0:
            self._turnstile.shut()
        else:
            self._turnstile.open()

    def _draw_consequence(self, error: AttemptError) -> None:
        longest_s = self._task.config.max_retry_after_s
        if error.consequence is Consequence.WRONG_SETTINGS:
            self._stop(InputError(f"--endpoint {self._task.endpoint}: {error}{_hint(error.reason)}"))
        elif error.consequence is Consequence.STOP:
            self._stop(RunError(f"the endpoint answers no more: {error}; every attempt is in {self._journal.path}"))
        elif error.retry_after_s is not None and error.retry_after_s > longest_s:
            wait = f"asks to wait {error.retry_after_s:.0f} s, more than max_retry_after_s ({longest_s:g})"
            self._stop(RunError(f"the endpoint {wait}: {error}; every attempt is in {self._journal.path}"))
        elif error.retry_after_s is not None:
            self._turnstile.hold(error.retry_after_s)

    def _check_refusals(self) -> None:
        refusal = self._recorder.close()
        if refusal is not None:
            self._stop(InputError(f"--endpoint {self._task.endpoint}: no request was answered: {refusal}"))

    def _check_any_answer(self) -> None:
        """Samples that are given up are no failure of the run, unless nothing else ever came of it."""
        if self.given_up and not self._journal.ledger.num_answered:
            counted = f"no request was answered, {len(self.given_up)} samples were given up"
            why = next(reversed(self.given_up.values()))
            self._stop(RunError(f"{counted}, the last one: {why}; every attempt is in {self._journal.path}"))

    def _give_up(self, key: SampleKey, error: AttemptError) -> None:
        self.given_up[key] = str(error)
        if len(self.given_up) > self._task.config.max_given_up:
            counted = f"{len(self.given_up)} samples were given up after {self._task.config.max_attempts} attempts each"
            self._stop(RunError(f"{counted}, the last one: {error}; every attempt is in {self._journal.path}"))

    def _stop(self, error: StillRayError) -> None:
        """Sends nothing more; the first error is the one that is told."""
        self.error = self.error or error
        self._stopped.set()

    async def _pause(self, key: SampleKey, attempt: int, error: AttemptError) -> bool:
        """Waits to try again; False: the run was stopped meanwhile."""
        seed = derived_seed(self._task.config.seed, "back-off", key.question_id, key.sample_index, attempt)
        delay_s = self._back_off.delay_s(attempt, seed / _SEEDS, error.retry_after_s)
        try:
            await asyncio.wait_for(self._stopped.wait(), delay_s)
        except TimeoutError:
            return True
        return False

    async def _judge(self, key: SampleKey) -> None:
        """Has one answer judged and notes the verdict."""
        assert self._pool is not None
        question = self._task.questions[key.question_id]
        async with self._judging:
            answer = self._journal.answer(key)
            parsed = converted(answer.reasoning, answer.content, answer.finish_reason).parsed
            future = self._pool.submit(parsed, question.domain, question.answer or "", question.text)
            judgement = await asyncio.wrap_future(future)
        judged = Judged(
            question_id=key.question_id,
            sample_index=key.sample_index,
            verdict=judgement.verdict,
            extracted=judgement.extracted,
            detail=judgement.detail,
        )
        self._journal.append(judged)
        self._on_progress()


def pending(task: Task, journal: Journal) -> Iterator[SampleKey]:
    """Samples without an answer or a refusal."""
    return (key for key in task.samples() if key not in journal.ledger.answers)


def unjudged(task: Task, journal: Journal) -> Iterator[SampleKey]:
    """Answers with a reference that have no verdict yet, or one that says that judging failed; refusals are none."""
    ledger = journal.ledger
    for key in task.samples():
        judged = ledger.verdicts.get(key)
        is_open = judged is None or judged.verdict is Verdict.ERROR
        is_answered = key in ledger.answers and key not in ledger.refused
        if is_open and is_answered and task.questions[key.question_id].answer is not None:
            yield key


def _hint(reason: str) -> str:
    hints = {
        "401": "; is the key right? it is read from the variable that --api-key-env names, OPENAI_API_KEY without it",
        "403": "; is the key right? it is read from the variable that --api-key-env names, OPENAI_API_KEY without it",
        "404": "; is --model a name that the endpoint serves, and the path right? vLLM's is http://HOST:8000/v1",
    }
    return hints.get(reason, "")


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first_leaf(first) if isinstance(first, BaseExceptionGroup) else first
