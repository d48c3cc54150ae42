"""Demonstrations: a teacher's thoughts and solutions, in the released format or with thought and solution apart."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from still_ray.formats.columns import RECOGNISED, Columns, IdIndex, checked_question, required_text
from still_ray.formats.control import KNOWN, without_control
from still_ray.formats.response import parse_response, render_response
from still_ray.location import Location, location
from still_ray.rows import read_rows
from still_ray.types import Demonstration, InputError, ParsedResponse
from still_ray.values import Flaw


@dataclass(frozen=True, kw_only=True)
class DemonstrationIndex:
    """What a run needs to know of a file of demonstrations before it starts.

    Attributes:
        ids: One for each demonstration, in the file's order.
        domains: Their problem types.
        num_duplicates: Rows left out because an equal row came before.
        num_control: Rows left out because a control token stands in them as text.
    """

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    num_duplicates: int
    num_control: int

    @property
    def count(self) -> int:
        """How many demonstrations there are."""
        return len(self.ids)


def validate_demonstrations(path: str | Location) -> DemonstrationIndex:
    """Reads a file of demonstrations to its end, keeping none of the text.

    Raises:
        InputError: A row is wrong, or two different demonstrations have the same id.
    """
    index, left_out = IdIndex(), Counter[str]()
    kept = [(shown.id, shown.domain) for shown in _unique_demonstrations(location(path), index, left_out)]
    ids, domains = zip(*kept, strict=True)
    return DemonstrationIndex(
        ids=ids, domains=domains, num_duplicates=index.num_duplicates, num_control=left_out.total()
    )


def read_demonstrations(path: str | Location, left_out: Counter[str] | None = None) -> Iterator[Demonstration]:
    """Streams the demonstrations of a file, equal rows once and those with a control token as text not at all.

    Args:
        path: The file.
        left_out: Counts the latter, by reason.

    Raises:
        InputError: See `validate_demonstrations`; or no row is left.
    """
    return _unique_demonstrations(location(path), IdIndex(), Counter() if left_out is None else left_out)


def _unique_demonstrations(path: Location, index: IdIndex, left_out: Counter[str]) -> Iterator[Demonstration]:
    error = None
    num_kept = 0
    for where, fields in read_rows(path):
        try:
            shown = demonstration_from_row(fields, where=where)
        except InputError as flawed:
            if flawed.reason != Flaw.CONTROL:
                raise
            error = flawed
            left_out[flawed.reason] += 1
            continue
        num_kept += 1
        if index.is_new(shown.id, (shown.question, shown.thought, shown.solution), where):
            yield shown
    if error is not None and not num_kept:
        raise error


def demonstration_from_row(row: Mapping[str, Any], *, where: str) -> Demonstration:
    """Makes a demonstration of a row with `question` and either `combined_text` or `thought` and `solution`.

    Args:
        row: A row of a file.
        where: The file and the row, for errors.

    Raises:
        InputError: A key is missing, the response is not a thought followed by a solution, or a control token stands in
            the text other than at the end of a part.
    """
    question = checked_question(required_text(row, ("question", "problem"), where), where)
    parts = _response(row, where)
    return Demonstration(
        id=Columns(row, RECOGNISED, where).id_of(question, parts.thought, parts.solution),
        domain=str(row.get("domain") or "math"),
        question=question,
        thought=parts.thought,
        solution=parts.solution,
    )


def _response(row: Mapping[str, Any], where: str) -> ParsedResponse:
    if row.get("combined_text") is None and not {"thought", "solution"} & row.keys():
        raise InputError(f'{where}: missing key "combined_text" (or "thought" and "solution")')
    if row.get("combined_text") is not None:
        key, text = "combined_text", required_text(row, ["combined_text"], where)
    else:
        thought, solution = (required_text(row, [key], where) for key in ("thought", "solution"))
        key, text = "thought", render_response(thought, solution)
    parsed = parse_response(KNOWN.stripped(text))
    if parsed.defect is not None:
        raise InputError(f'{where}: key "{key}" is not a thought followed by a solution: {parsed.defect.value}')
    thought, solution = (without_control(part, f'{where}: key "{key}"') for part in (parsed.thought, parsed.solution))
    if not thought or not solution:
        raise InputError(f'{where}: key "{key}" has an empty {"solution" if thought else "thought"}')
    return ParsedResponse(thought=thought, solution=solution)


def demonstration_row(shown: Demonstration) -> dict[str, str]:
    """The row in the released format, with its id, that `demonstration_from_row` reads back as the same."""
    return {
        "id": shown.id,
        "question": shown.question,
        "combined_text": render_response(shown.thought, shown.solution),
        "domain": shown.domain,
    }


def write_demonstrations(path: str | Path, demonstrations: Iterable[Demonstration]) -> None:
    """Writes JSON Lines that `read_demonstrations` reads back."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(demonstration_row(shown)) + "\n" for shown in demonstrations)
