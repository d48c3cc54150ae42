"""The journal of a distillation: every attempt, answer and verdict, in the order in which they became durable.

It is journal.jsonl, one JSON object a line, only ever appended to, by the one process that holds the folder's lock.

An attempt is noted before its request is sent, so that the budget survives any end of the process; an answer is on disk
before anything is made of it. A line that a crash cut short is dropped on opening: it was in flight. Of two answers to
one (question, sample) the first counts, of two verdicts the last.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, NamedTuple, Self

from still_ray.distill.convert import REFUSED
from still_ray.distill.counts import token_count
from still_ray.types import InputError, RunError, Verdict

JOURNAL_SCHEMA: Final = 1
ANSWERED: Final = "answered"


class SampleKey(NamedTuple):
    """What makes an answer unique within a folder."""

    question_id: str
    sample_index: int


@dataclass(frozen=True, kw_only=True)
class JournalEvent:
    """One line about one sample."""

    NAME: ClassVar[str]

    question_id: str
    sample_index: int

    @property
    def key(self) -> SampleKey:
        """The sample that it is about."""
        return SampleKey(self.question_id, self.sample_index)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What this folder asks: everything that a resumed invocation may not change.

    Attributes:
        asks: Settings by their names.
    """

    NAME: ClassVar[str] = "header"

    asks: Mapping[str, Any]
    schema_version: int = JOURNAL_SCHEMA


@dataclass(frozen=True, kw_only=True)
class Begun(JournalEvent):
    """An attempt, before it is sent.

    Attributes:
        attempt: 1 for the first attempt at this sample, over all invocations.
        reserved_tokens: The most that it can cost.
        at: UTC time in ISO 8601.
    """

    NAME: ClassVar[str] = "begun"

    attempt: int
    reserved_tokens: int
    at: str


@dataclass(frozen=True, kw_only=True)
class Failed(JournalEvent):
    """An attempt that brought no answer.

    Attributes:
        attempt: Which.
        reason: "429", "connection lost", ...
        detail: One line, free of secrets.
        charged_tokens: What it counts for in the budget.
        at: UTC time in ISO 8601.
    """

    NAME: ClassVar[str] = "failed"

    attempt: int
    reason: str
    detail: str
    charged_tokens: int
    at: str


@dataclass(frozen=True, kw_only=True)
class Answered(JournalEvent):
    """An answer, or the endpoint's refusal to give one (finish_reason "refused").

    Attributes:
        attempt: Which attempt brought it.
        reasoning: See `still_ray.distill.teacher.Reply`, also for the next ones.
        content: The message's text; of a refusal, the endpoint's reason.
        finish_reason: The endpoint's word.
        prompt_tokens: As the endpoint counts them; None if it does not say.
        completion_tokens: Likewise.
        charged_tokens: What it counts for in the budget.
        served_model: The model that the endpoint says it was.
        response_id: The endpoint's name of the answer.
        endpoint: Where it came from, without credentials.
        seed: The sample's seed.
        latency_s: Seconds from sending to the whole answer.
        at: UTC time in ISO 8601.
    """

    NAME: ClassVar[str] = "answered"

    attempt: int
    reasoning: str
    content: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    charged_tokens: int
    served_model: str
    response_id: str
    endpoint: str
    seed: int
    latency_s: float
    at: str


@dataclass(frozen=True, kw_only=True)
class Judged(JournalEvent):
    """The verifier's finding on an answer; fields as in `still_ray.types.Judgement`."""

    NAME: ClassVar[str] = "judged"

    verdict: Verdict
    extracted: str | None
    detail: str


AnyEvent = Header | Begun | Failed | Answered | Judged
_EVENTS: Final[dict[str, type[AnyEvent]]] = {each.NAME: each for each in (Header, Begun, Failed, Answered, Judged)}


class Ledger:
    """What follows from the events so far, without any text.

    Attributes:
        header: What the folder asks; None before the first.
        answers: Where in the journal each answer or refusal is, bytes.
        refused: Those of `answers` that are refusals.
        verdicts: The last verdict on each answer.
        attempts: Attempts at each sample.
        num_requests: Attempts begun, of all samples.
        outcomes: Attempts by how they ended; those of `in_flight` are not among them.
        prompt_tokens: Reported by the endpoint.
        completion_tokens: Likewise.
        assumed_tokens: Charged where the endpoint reported nothing.
    """

    def __init__(self) -> None:
        self.header: Header | None = None
        self.answers: dict[SampleKey, int] = {}
        self.refused: set[SampleKey] = set()
        self.verdicts: dict[SampleKey, Judged] = {}
        self.attempts: Counter[SampleKey] = Counter()
        self.num_requests = 0
        self.outcomes: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.assumed_tokens = 0
        self._open: dict[tuple[SampleKey, int], int] = {}

    @property
    def num_answered(self) -> int:
        """Attempts that brought an answer that is no refusal."""
        return self.outcomes[ANSWERED]

    @property
    def in_flight(self) -> int:
        """Attempts whose end is not noted: in flight, or in flight when the process was killed."""
        return len(self._open)

    @property
    def in_flight_tokens(self) -> int:
        """The most that those can have cost."""
        return sum(self._open.values())

    @property
    def charged_tokens(self) -> int:
        """What the budget counts: reported, assumed, and the most that attempts without an end can have cost."""
        return self.prompt_tokens + self.completion_tokens + self.assumed_tokens + self.in_flight_tokens

    def apply(self, event: AnyEvent, offset: int) -> None:
        """Takes one more event in."""
        match event:
            case Header():
                self.header = event
            case Begun():
                self.attempts[event.key] += 1
                self.num_requests += 1
                self._open[event.key, event.attempt] = event.reserved_tokens
            case Failed():
                self._end(event.key, event.attempt, event.reason)
                self.assumed_tokens += event.charged_tokens
            case Answered():
                reserved = self._end(event.key, event.attempt, REFUSED if is_refusal(event) else ANSWERED)
                self._charge(event, reserved)
                if is_refusal(event) and event.key not in self.answers:
                    self.refused.add(event.key)
                self.answers.setdefault(event.key, offset)
            case Judged():
                self.verdicts[event.key] = event

    def _end(self, key: SampleKey, attempt: int, outcome: str) -> int:
        """Notes how an attempt ended; returns what it had reserved."""
        self.outcomes[outcome] += 1
        return self._open.pop((key, attempt), 0)

    def _charge(self, event: Answered, reserved: int) -> None:
        prompt, completion = token_count(event.prompt_tokens), token_count(event.completion_tokens)
        is_plausible = (prompt, completion) == (event.prompt_tokens, event.completion_tokens)
        charged = event.charged_tokens if is_plausible else reserved  # older journals hold whatever was reported
        self.prompt_tokens += prompt or 0
        self.completion_tokens += completion or 0
        self.assumed_tokens += max(0, charged - (prompt or 0) - (completion or 0))


def is_refusal(event: Answered) -> bool:
    """Whether the endpoint would not answer the question."""
    return event.finish_reason == REFUSED


class Journal:
    """The journal of one folder; one process at a time may hold it open."""

    def __init__(self, path: Path) -> None:
        """Opens or creates the journal, drops a line that a crash cut short, and reads what is there.

        Raises:
            InputError: A line in the middle is not one of these events: the file was edited, or the disk is damaged.
        """
        self.path = path
        self.ledger = Ledger()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._end = 0
        for offset, line in _whole_lines(path):
            self.ledger.apply(_event(line, f"{path}, byte {offset}"), offset)
            self._end = offset + len(line)
        os.ftruncate(self._file, self._end)

    def append(self, event: AnyEvent, *, durable: bool = False) -> None:
        """Notes an event; a durable one is on disk on return, another survives the process but not the machine.

        Raises:
            RunError: The disk is full or broken; the journal ends with the event before.
        """
        line = (json.dumps({"event": event.NAME, **asdict(event)}) + "\n").encode()
        try:
            _write_all(self._file, line)
            if durable:
                os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from error
        self.ledger.apply(event, self._end)
        self._end += len(line)

    def answer(self, key: SampleKey) -> Answered:
        """Reads one answer back."""
        offset = self.ledger.answers[key]
        with self.path.open("rb") as file:
            file.seek(offset)
            event = _event(file.readline(), f"{self.path}, byte {offset}")
        assert isinstance(event, Answered)
        return event

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line that ends in a line break, and where it begins."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def _event(line: bytes, where: str) -> AnyEvent:
    try:
        fields = json.loads(line)
        kind = _EVENTS[fields.pop("event")]
        if kind is Judged:
            fields["verdict"] = Verdict(fields["verdict"])
        event = kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{where}: not a line of this journal; restore the file or give another --output") from None
    if isinstance(event, Header) and event.schema_version != JOURNAL_SCHEMA:
        raise InputError(f"{where}: schema version {event.schema_version}, needed: {JOURNAL_SCHEMA}")
    return event


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
