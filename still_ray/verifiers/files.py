"""``still-ray verify``: a verdict for every row of a file."""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from still_ray.rows import read_rows
from still_ray.types import Domain, InputError, Judgement, ParsedResponse, Verdict
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
    """

    id: str | int
    domain: Domain
    answer: str
    response: str
    question: str = ""


def verify_file(
    source: str | Path,
    target: str | Path,
    *,
    parse: Callable[[str], ParsedResponse],
    pool: VerifierPool,
    progress: Callable[[int], None] | None = None,
) -> Counter[Verdict]:
    """Writes one verdict for each row of the source, in order; the target appears when it is complete.

    Args:
        source: JSON Lines or Parquet with `id`, `domain`, `answer`, `response` and, if known, `question`.
        target: JSON Lines with `id`, `verdict`, `extracted` and `detail`.
        parse: Cuts a response at its markers.
        pool: Judges.
        progress: Called with the number of rows written after each.

    Returns:
        How many rows got which verdict.

    Raises:
        InputError: A row is wrong, found before anything is judged, or the target cannot be written.
    """
    source, target = Path(source), Path(target)
    for _ in _rows(source):
        pass
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    counts: Counter[Verdict] = Counter()
    try:
        with partial.open("w", encoding="utf-8") as lines:
            for row, judgement in _judged(source, parse, pool):
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


def _judged(
    source: Path, parse: Callable[[str], ParsedResponse], pool: VerifierPool
) -> Iterator[tuple[VerifyRow, Judgement]]:
    """Yields the rows in order, judging up to MAX_IN_FLIGHT of them side by side."""
    in_flight: deque[tuple[VerifyRow, Future[Judgement]]] = deque()
    for row in _rows(source):
        in_flight.append((row, pool.submit(parse(row.response), row.domain, row.answer, row.question)))
        while len(in_flight) >= MAX_IN_FLIGHT or (in_flight and in_flight[0][1].done()):
            oldest, future = in_flight.popleft()
            yield oldest, future.result()
    for oldest, future in in_flight:
        yield oldest, future.result()


def _verdict_row(row: VerifyRow, judgement: Judgement) -> dict[str, Any]:
    return {
        "id": row.id,
        "verdict": judgement.verdict.value,
        "extracted": judgement.extracted,
        "detail": judgement.detail,
    }


def _rows(source: Path) -> Iterator[VerifyRow]:
    for where, fields in read_rows(source):
        yield row_to_verify(fields, where=where)


def row_to_verify(fields: Mapping[str, Any], *, where: str) -> VerifyRow:
    """Checks one row.

    Raises:
        InputError: A key is missing or holds something else than it should.
    """
    for key in ("id", "domain", "answer", "response"):
        if fields.get(key) is None:
            raise InputError(f'{where}: missing key "{key}"')
    if fields["domain"] not in list(Domain):
        raise InputError(
            f'{where}: key "domain" is {json.dumps(fields["domain"])}, expected one of: {", ".join(Domain)}'
        )
    if not isinstance(fields["response"], str):
        raise InputError(f'{where}: key "response" must be a text')
    if not isinstance(fields.get("question") or "", str):
        raise InputError(f'{where}: key "question" must be a text')
    if isinstance(fields["id"], bool) or not isinstance(fields["id"], str | int):
        raise InputError(f'{where}: key "id" must be a text or a number')
    domain = Domain(fields["domain"])
    return VerifyRow(
        id=fields["id"],
        domain=domain,
        answer=_answer(fields["answer"], domain, where),
        response=fields["response"],
        question=fields.get("question") or "",
    )


def _answer(value: Any, domain: Domain, where: str) -> str:
    if domain is Domain.CODE and isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f'{where}: key "answer" must be text or a number, or an object where "domain" is "code"')
    if not str(value).strip():
        raise InputError(f'{where}: key "answer" is blank')
    return str(value)
