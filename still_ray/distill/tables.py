"""What is made of the journal: every answer with its provenance, the demonstrations, the report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, Final

from still_ray.config.distill import DistillConfig
from still_ray.distill.convert import Converted, converted
from still_ray.distill.counts import token_count
from still_ray.distill.journal import Answered, Journal, Judged, SampleKey
from still_ray.distill.run import Status
from still_ray.distill.task import Task
from still_ray.formats.responses.markers import render_response
from still_ray.store.atomic import write_atomically
from still_ray.types import Verdict

RAW_FILE: Final = "raw.parquet"
DEMONSTRATIONS_FILE: Final = "demonstrations.parquet"

UNVERIFIED: Final = "not verified"
REPEATED: Final = "the same text as an earlier sample"

_BATCH_ROWS: Final = 256


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an answer comes from; on every row of both tables.

    Attributes:
        question_id: The question's id.
        sample_index: 0-based; unique together with the question.
        model: The name that was asked for.
        served_model: The name that the endpoint says it was; "" if it does not say.
        endpoint: Scheme, host, port and path.
        response_id: The endpoint's name of the answer.
        temperature: As sent; None: left to the endpoint, also for top_p.
        top_p: Nucleus mass.
        max_tokens: Limit of the whole answer.
        seed: Of this sample.
        seed_sent: Whether the endpoint was told.
        prompt_sha256: Of system prompt, template and further keys of the request, which report.json has in full.
        finish_reason: The endpoint's word.
        prompt_tokens: As the endpoint counts them; None if it does not say, also for the next.
        completion_tokens: Reasoning included.
        attempts: Attempts that it took.
        latency_s: Seconds from sending to the whole answer.
        created_at: UTC time in ISO 8601.
        verdict: The verifier's word; None: not verified.
        extracted: The answer found in the solution.
    """

    question_id: str
    sample_index: int
    model: str
    served_model: str
    endpoint: str
    response_id: str
    temperature: float | None
    top_p: float | None
    max_tokens: int
    seed: int
    seed_sent: bool
    prompt_sha256: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    attempts: int
    latency_s: float
    created_at: str
    verdict: Verdict | None
    extracted: str | None


@dataclass(frozen=True, kw_only=True)
class RawAnswer(Provenance):
    """One row of raw.parquet: an answer as it came, and what was made of it.

    Attributes:
        id: "question_id/sample_index".
        domain: The source's problem type.
        question: Without the prompt template.
        answer: The reference; None if there is none.
        reasoning: The reasoning that came in a field of its own.
        content: The message's text.
        thought: What was found of a thought.
        solution: What was found of a solution.
        detail: The verifier's reason.
        dropped: Why it is no demonstration; "" if it is one.
    """

    id: str
    domain: str
    question: str
    answer: str | None
    reasoning: str
    content: str
    thought: str
    solution: str
    detail: str
    dropped: str


@dataclass(frozen=True, kw_only=True)
class DistilledDemonstration(Provenance):
    """One row of demonstrations.parquet, in the released format and with its provenance; see `RawAnswer`."""

    id: str
    question: str
    combined_text: str
    domain: str


@dataclass(kw_only=True)
class AnswerCounts:
    """Counts of what was written.

    Attributes:
        num_demonstrations: Rows of demonstrations.parquet.
        num_questions: Questions that have at least one.
        dropped: Answers and refusals that are none, by reason.
        verdicts: Answers by verdict.
    """

    num_demonstrations: int = 0
    num_questions: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)


def write_tables(folder: Path, task: Task, journal: Journal) -> AnswerCounts:
    """Makes both tables anew from the journal, questions in their file's order, a batch in memory at a time."""
    counts = AnswerCounts()
    rows = _rows(task, journal, counts)
    raw, kept = folder / RAW_FILE, folder / DEMONSTRATIONS_FILE
    write_atomically(raw, lambda raw_part: write_atomically(kept, lambda kept_part: _stream(rows, raw_part, kept_part)))
    return counts


def _stream(rows: Iterator[RawAnswer], raw: Path, kept: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from still_ray.store.tables import schema_of

    def table(batch: list[Any], record: type) -> Any:
        columns = {column.name: [getattr(row, column.name) for row in batch] for column in fields(record)}
        return pa.table(columns, schema=schema_of(record))

    with (
        pq.ParquetWriter(raw, schema_of(RawAnswer), compression="zstd") as raw_file,
        pq.ParquetWriter(kept, schema_of(DistilledDemonstration), compression="zstd") as kept_file,
    ):
        while batch := list(islice(rows, _BATCH_ROWS)):
            raw_file.write_table(table(batch, RawAnswer))
            shown = [demonstration_of(row) for row in batch if not row.dropped]
            kept_file.write_table(table(shown, DistilledDemonstration))


def _rows(task: Task, journal: Journal, counts: AnswerCounts) -> Iterator[RawAnswer]:
    digest = prompt_digest(task)
    for question in task.source.questions:
        seen: set[str] = set()
        for index in range(task.config.samples_per_question):
            key = SampleKey(question.id, index)
            if key not in journal.ledger.answers:
                continue
            is_refused = key in journal.ledger.refused
            judged = None if is_refused else journal.ledger.verdicts.get(key)  # older journals have refusals judged
            row = raw_answer(task, journal.answer(key), judged, seen, digest)
            _count(counts, row, is_refused=is_refused)
            yield row
        counts.num_questions += bool(seen)


def _count(counts: AnswerCounts, row: RawAnswer, *, is_refused: bool) -> None:
    if not is_refused:
        counts.verdicts[row.verdict.value if row.verdict else UNVERIFIED] += 1
    if row.dropped:
        counts.dropped[row.dropped] += 1
    else:
        counts.num_demonstrations += 1


def raw_answer(task: Task, answer: Answered, judged: Judged | None, seen: set[str], prompt_sha256: str) -> RawAnswer:
    """Joins an answer, its verdict and its provenance, and decides whether it becomes a demonstration.

    Args:
        task: What was asked.
        answer: The answer.
        judged: The verdict; None: not verified.
        seen: Texts of this question's demonstrations so far; grows.
        prompt_sha256: See `Provenance`.
    """
    question, config = task.questions[answer.question_id], task.config
    result = converted(answer.reasoning, answer.content, answer.finish_reason)
    return RawAnswer(
        id=f"{answer.question_id}/{answer.sample_index}",
        question_id=answer.question_id,
        sample_index=answer.sample_index,
        domain=question.label,
        question=question.text,
        answer=question.answer,
        reasoning=answer.reasoning,
        content=answer.content,
        thought=result.parsed.thought,
        solution=result.parsed.solution,
        verdict=judged.verdict if judged else None,
        extracted=judged.extracted if judged else None,
        detail=judged.detail if judged else "",
        dropped=_dropped(result, judged, config, seen),
        model=task.model,
        served_model=answer.served_model,
        endpoint=answer.endpoint,
        response_id=answer.response_id,
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        seed=answer.seed,
        seed_sent=config.send_seed,
        prompt_sha256=prompt_sha256,
        finish_reason=answer.finish_reason,
        prompt_tokens=token_count(answer.prompt_tokens),
        completion_tokens=token_count(answer.completion_tokens),
        attempts=answer.attempt,
        latency_s=answer.latency_s,
        created_at=answer.at,
    )


def _dropped(result: Converted, judged: Judged | None, config: DistillConfig, seen: set[str]) -> str:
    reason = result.defect or _verdict_reason(judged, config.keep)
    text = render_response(result.parsed.thought, result.parsed.solution)
    if not reason and text in seen:
        return REPEATED
    if not reason:
        seen.add(text)
    return reason


def _verdict_reason(judged: Judged | None, keep: str) -> str:
    if keep == "all":
        return ""
    if judged is None:
        return "" if keep == "correct_or_unverified" else UNVERIFIED
    return "" if judged.verdict is Verdict.CORRECT else f"verdict {judged.verdict.value}"


def demonstration_of(row: RawAnswer) -> DistilledDemonstration:
    """The row in the released format; `still_ray.formats.demonstrations` reads it."""
    shared = {column.name: getattr(row, column.name) for column in fields(Provenance)}
    text = render_response(row.thought, row.solution)
    return DistilledDemonstration(id=row.id, question=row.question, combined_text=text, domain=row.domain, **shared)


def prompt_digest(task: Task) -> str:
    """A fingerprint of everything around the question that the teacher was sent."""
    parts = (task.prompt.text, task.config.system_prompt or "", repr(sorted(task.config.extra_body.items())))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def report_of(
    task: Task, journal: Journal, counts: AnswerCounts, *, status: Status, given_up: Mapping[SampleKey, str]
) -> dict[str, Any]:
    """Counts over the whole life of the folder, and what was asked."""
    ledger, config = journal.ledger, task.config
    return {
        "status": status.value,
        "endpoint": task.endpoint,
        "asks": task.asks(),
        "questions": len(task.source.questions),
        "repeated_questions": task.source.num_duplicates,
        "questions_without_reference": sum(question.answer is None for question in task.source.questions),
        "samples_wanted": task.num_samples,
        "samples_answered": len(ledger.answers) - len(ledger.refused),
        "samples_refused": len(ledger.refused),
        "demonstrations": counts.num_demonstrations,
        "questions_with_demonstration": counts.num_questions,
        "dropped": dict(counts.dropped.most_common()),
        "verdicts": dict(counts.verdicts.most_common()),
        "requests": {
            "sent": ledger.num_requests,
            "limit": config.max_requests,
            "outcomes": dict(ledger.outcomes.most_common()),
            "end_unknown": ledger.in_flight,
        },
        "tokens": {
            "charged": ledger.charged_tokens,
            "limit": config.max_total_tokens,
            "prompt": ledger.prompt_tokens,
            "completion": ledger.completion_tokens,
            "assumed": ledger.assumed_tokens + ledger.in_flight_tokens,
        },
        "given_up": [
            {"id": f"{key.question_id}/{key.sample_index}", "why": given_up[key]}
            for key in (task.samples() if given_up else ())
            if key in given_up
        ],
    }
