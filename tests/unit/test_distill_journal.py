"""The journal: what a crash leaves of it, and that each sample is answered exactly once whatever dies."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from pathlib import Path

import pytest

from still_ray.config.distill import DistillConfig
from still_ray.distill.journal import Answered, AnyEvent, Begun, Failed, Header, Journal, Judged, Ledger, SampleKey
from still_ray.distill.questions import Question, QuestionFile
from still_ray.distill.retry import AttemptError
from still_ray.distill.run import Distillation, Status
from still_ray.distill.tables import RawAnswer, write_tables
from still_ray.distill.task import Task
from still_ray.distill.teacher import Reply
from still_ray.formats.prompt import PromptTemplate
from still_ray.store.tables import read_table
from still_ray.types import Domain, InputError, RunError, Verdict


def begun(name: str, attempt: int = 1) -> Begun:
    return Begun(question_id=name, sample_index=0, attempt=attempt, reserved_tokens=100, at="now")


def answered(name: str, content: str = "text", attempt: int = 1) -> Answered:
    return Answered(
        question_id=name,
        sample_index=0,
        attempt=attempt,
        reasoning="",
        content=content,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=4,
        charged_tokens=7,
        served_model="m",
        response_id="r",
        endpoint="http://h/v1",
        seed=1,
        latency_s=0.5,
        at="now",
    )


EVENTS: list[AnyEvent] = [
    Header(asks={"seed": 1}),
    begun("a"),
    begun("b"),
    Failed(question_id="a", sample_index=0, attempt=1, reason="timeout", detail="late", charged_tokens=100, at="now"),
    answered("b", "größer\nals \N{REPLACEMENT CHARACTER}"),
    Judged(question_id="b", sample_index=0, verdict=Verdict.ERROR, extracted=None, detail="dead"),
    begun("a", 2),
    Judged(question_id="b", sample_index=0, verdict=Verdict.CORRECT, extracted="4", detail="same"),
]


def state(ledger: Ledger) -> dict[str, object]:
    return {name.lstrip("_"): value for name, value in vars(ledger).items()}


def expected(events: list[AnyEvent], offsets: list[int]) -> dict[str, object]:
    ledger = Ledger()
    for event, offset in zip(events, offsets, strict=False):
        ledger.apply(event, offset)
    return state(ledger)


def test_a_crash_at_any_byte_loses_only_the_line_that_was_being_written(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    with Journal(whole) as journal:
        for event in EVENTS:
            journal.append(event)
    data = whole.read_bytes()
    ends = [position + 1 for position, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == len(EVENTS)
    offsets = [0, *ends[:-1]]
    for cut in range(len(data) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(data[:cut])
        survived = [event for event, end in zip(EVENTS, ends, strict=True) if end <= cut]
        with Journal(path) as journal:
            assert state(journal.ledger) == expected(survived, offsets)
            for event in EVENTS[len(survived) :]:
                journal.append(event)
        assert path.read_bytes() == data


def test_what_a_ledger_counts(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for event in EVENTS:
            journal.append(event, durable=True)
        ledger = journal.ledger
        assert journal.answer(SampleKey("b", 0)) == EVENTS[4]
    assert (ledger.num_requests, ledger.num_answered, ledger.in_flight) == (3, 1, 1)
    assert ledger.outcomes == {"timeout": 1, "answered": 1}
    assert ledger.charged_tokens == 100 + 7 + 100
    assert ledger.verdicts[SampleKey("b", 0)].verdict is Verdict.CORRECT


def test_a_ledger_knows_its_number_of_requests_without_counting_them() -> None:
    ledger = Ledger()
    for number in range(50_000):
        ledger.apply(begun(f"question {number}"), number)
    start = time.process_time()
    assert {ledger.num_requests for _ in range(20_000)} == {50_000}
    assert time.process_time() - start < 1  # a sum each time takes 4 s or more


def test_the_first_answer_to_a_sample_counts(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(answered("a", "first"))
        journal.append(answered("a", "second"))
        assert journal.answer(SampleKey("a", 0)).content == "first"
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.answer(SampleKey("a", 0)).content == "first"


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"event": "guessed"}', '{"event": "begun"}', '{"event": "header"}'])
def test_a_line_that_is_none_of_its_own_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.append(begun("a"))
    size = path.stat().st_size
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(InputError, match=f"journal.jsonl, byte {size}: not a line of this journal"):
        Journal(path)


def test_a_journal_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"event": "header", "asks": {}, "schema_version": 2}) + "\n")
    with pytest.raises(InputError, match="schema version 2, needed: 1"):
        Journal(path)


def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.append(begun("a"))
        size = path.stat().st_size
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))  # half of the next line fits
            with pytest.raises(RunError, match=r"journal\.jsonl: cannot be written: File too large"):
                journal.append(answered("a"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.stat().st_size == size
        journal.append(answered("a"))
    with Journal(path) as journal:
        assert journal.ledger.num_answered == 1


# -- a crash between any two writes -----------------------------------------------------------------------------------


class CrashError(BaseException):
    """Stands for the end of the process."""


class CrashingJournal(Journal):
    """Ends the process right before or right after its n-th write."""

    def __init__(self, path: Path, crash_at: int, *, after: bool) -> None:
        super().__init__(path)
        self._left = crash_at
        self._after = after

    def append(self, event: AnyEvent, *, durable: bool = False) -> None:
        self._left -= 1
        if self._left <= 0 and not (self._after and self._left == 0):
            raise CrashError
        super().append(event, durable=durable)
        if self._left <= 0:
            raise CrashError


class CountingTeacher:
    """Fails every third request, and counts."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self.num_answers = 0

    async def ask(self, prompt: str, seed: int) -> Reply:
        self.sent.append((prompt, seed))
        fails = len(self.sent) % 3 == 0
        await asyncio.sleep(0)
        if fails:
            raise AttemptError("500", "bad luck")
        self.num_answers += 1
        content = r"<think>Let me see.</think>\boxed{1}"
        return Reply(reasoning="", content=content, finish_reason="stop", prompt_tokens=2, completion_tokens=3)


QUESTIONS = QuestionFile(
    questions=tuple(
        Question(id=name, text=f"Which is {name}?", label="math", answer="1", domain=Domain.MATH) for name in "abc"
    ),
    num_duplicates=0,
    digest="0",
)
TASK = Task(
    config=DistillConfig(samples_per_question=2, concurrency=2, first_backoff_s=1e-6, max_backoff_s=1e-6),
    source=QUESTIONS,
    model="m",
    endpoint="http://h/v1",
    prompt=PromptTemplate(text="{question}"),
)


def invoked(journal: Journal, teacher: CountingTeacher) -> Status:
    async def invocation() -> Status:
        return await Distillation(TASK, teacher, journal).run()

    return asyncio.run(invocation())


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_write_repeats_at_most_what_was_in_flight(tmp_path: Path, after: bool) -> None:
    write = 0
    crashed = True
    while crashed:
        write += 1
        path, teacher = tmp_path / f"{write}.jsonl", CountingTeacher()
        crashed = False
        try:
            with CrashingJournal(path, write, after=after) as journal:
                invoked(journal, teacher)
        except* CrashError:
            crashed = True
        in_flight = len(teacher.sent)
        with Journal(path) as journal:
            in_flight -= journal.ledger.outcomes.total()
            assert 0 <= in_flight <= 2
            known = set(journal.ledger.answers)
            assert invoked(journal, teacher) is Status.COMPLETE
            assert journal.ledger.num_requests >= len(teacher.sent)
            assert journal.ledger.num_requests <= len(teacher.sent) + 2
            write_tables(tmp_path, TASK, journal)
        rows = read_table(tmp_path / "raw.parquet", RawAnswer)
        assert [(row.question_id, row.sample_index) for row in rows] == [(name, i) for name in "abc" for i in (0, 1)]
        assert known <= {(row.question_id, row.sample_index) for row in rows}
        assert 6 <= teacher.num_answers <= 6 + in_flight
    assert write > 12
