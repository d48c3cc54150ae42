"""``still-ray verify``: a verdict for every row of a file."""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from still_ray.rows import read_source_rows
from still_ray.types import Domain, InputError, Judgement, ParsedResponse, Verdict
from still_ray.values import answer_text, is_answer, no_answer, stated_answer, unknown_domain
from still_ray.verifiers.judge import error_judgement
from still_ray.verifiers.pool import VerifierPool

MAX_IN_FLIGHT: Final = 256
"""Rows read ahead of the oldest one that has no verdict yet."""


@dataclass(frozen=True, kw_only=True)
class VerifyRow:
    """One row to verify.

    Attributes:
        id: As the row has it, text or number.
        domain: How the answer is compared.
        answer: The reference; JSON text for code.
        response: The whole model output.
        question: What was asked; "" if the row does not say.
        format: Name of the response's format; "": what its text says.
        error: Why the row cannot be judged, e.g. because its reference is none; "" if it can.
    """

    id: str | int | None
    domain: str
    answer: str
    response: str
    question: str = ""
    format: str = ""
    error: str = ""


Parse = Callable[[str, str], ParsedResponse]
"""Cuts a response of a format by its name; "": of the format that its text has."""


def verify_file(
    source: str | Path,
    target: str | Path,
    *,
    parse: Parse,
    formats: Collection[str],
    pool: VerifierPool,
    progress: Callable[[int], None] | None = None,
) -> Counter[Verdict]:
    """Writes one verdict for each row of the source, in order; the target appears when it is complete.

    Args:
        source: A file with `id`, `domain`, `answer`, `response` and, if known, `question` and `format`.
        target: JSON Lines with `id`, `verdict`, `extracted` and `detail`.
        parse: Cuts a response.
        formats: Names that the key `format` may have.
        pool: Judges.
        progress: Called with the number of rows written after each.

    Returns:
        How many rows got which verdict.

    Raises:
        InputError: A row is none that could be judged whatever its values, found before anything is judged; or the
            target cannot be written. A row whose values are at fault gets the verdict ERROR.
    """
    source, target = Path(source), Path(target)
    for _ in _rows(source, pool.own_domains, formats):
        pass
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    counts: Counter[Verdict] = Counter()
    try:
        with partial.open("w", encoding="utf-8") as lines:
            for row, judgement in _judged(_rows(source, pool.own_domains, formats), parse, pool):
                lines.write(json.dumps(_verdict_row(row, judgement)) + "\n")
                counts[judgement.verdict] += 1
                if progress is not None:
                    progress(counts.total())
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return counts


def _judged(rows: Iterator[VerifyRow], parse: Parse, pool: VerifierPool) -> Iterator[tuple[VerifyRow, Judgement]]:
    """Yields the rows in order, judging up to MAX_IN_FLIGHT of them side by side."""
    in_flight: deque[tuple[VerifyRow, Future[Judgement]]] = deque()
    for row in rows:
        in_flight.append((row, _submitted(row, parse, pool)))
        while len(in_flight) >= MAX_IN_FLIGHT or (in_flight and in_flight[0][1].done()):
            oldest, future = in_flight.popleft()
            yield oldest, future.result()
    for oldest, future in in_flight:
        yield oldest, future.result()


def _submitted(row: VerifyRow, parse: Parse, pool: VerifierPool) -> Future[Judgement]:
    if not row.error:
        return pool.submit(parse(row.response, row.format), row.domain, row.answer, row.question)
    known: Future[Judgement] = Future()
    known.set_result(error_judgement(row.error))
    return known


def _verdict_row(row: VerifyRow, judgement: Judgement) -> dict[str, Any]:
    return {
        "id": row.id,
        "verdict": judgement.verdict.value,
        "extracted": judgement.extracted,
        "detail": judgement.detail,
    }


def _rows(source: Path, own: Container[str], formats: Collection[str]) -> Iterator[VerifyRow]:
    for row in read_source_rows(source):
        if row.fields is None:
            raise InputError(row.broken, reason=row.reason)
        where = f"{source}, row {row.number}"
        if row.broken:
            yield _unjudged(row.fields, row.broken.removeprefix(f"{where}: "))
        else:
            yield row_to_verify(row.fields, where=where, formats=formats, own=own)


def _unjudged(fields: Mapping[str, Any], why: str) -> VerifyRow:
    row_id = fields.get("id")
    known = row_id if isinstance(row_id, str | int) else None
    return VerifyRow(id=known, domain=Domain.MATH, answer="", response="", error=why)


def row_to_verify(
    fields: Mapping[str, Any], *, where: str, formats: Collection[str], own: Container[str] = ()
) -> VerifyRow:
    """Checks one row.

    Args:
        fields: What it holds.
        where: The file and the row, for errors.
        formats: Names that the key `format` may have.
        own: The domains that have a verifier of the user's own.

    Raises:
        InputError: A key is missing or holds something else than it should, whatever the other rows hold.
    """
    _check_keys(fields, where, formats)
    domain = fields["domain"]
    if not isinstance(domain, str) or (domain not in own and domain not in list(Domain)):
        raise unknown_domain(domain, where)
    answer, error = _answer(fields["answer"], domain, own)
    return VerifyRow(
        id=fields["id"],
        domain=domain,
        answer=answer,
        response=fields["response"],
        question=fields.get("question") or "",
        format=fields.get("format") or "",
        error=error,
    )


def _check_keys(fields: Mapping[str, Any], where: str, formats: Collection[str]) -> None:
    for key in ("id", "domain", "response"):
        if fields.get(key) is None:
            raise InputError(f'{where}: missing key "{key}"')
    if "answer" not in fields:
        raise InputError(f'{where}: missing key "answer"')
    if fields.get("format") and fields["format"] not in list(formats):
        known = ", ".join(formats)
        raise InputError(f'{where}: key "format" is {json.dumps(fields["format"])}, expected one of: {known}')
    for key in ("response", "question"):
        if not isinstance(fields.get(key) or "", str):
            raise InputError(f'{where}: key "{key}" must be a text')
    if isinstance(fields["id"], bool) or not isinstance(fields["id"], str | int):
        raise InputError(f'{where}: key "id" must be a text or a number')


def _answer(value: Any, domain: str, own: Container[str]) -> tuple[str, str]:
    """The reference as text, and why there is none."""
    value = stated_answer(value, domain, own=own)
    if domain == Domain.CODE and isinstance(value, dict):
        return json.dumps(value), ""
    if not is_answer(value, domain, own=own):
        return "", no_answer(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return "", 'key "answer" must be text or a number, or an object where "domain" is "code"'
    return answer_text(value), ""
