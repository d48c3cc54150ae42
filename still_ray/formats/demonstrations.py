"""Demonstrations: a teacher's thoughts and solutions, in the released format or with thought and solution apart."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from still_ray.formats.response import parse_response, render_response
from still_ray.formats.unique import QUESTION_KEYS, IdIndex, required_text, row_id
from still_ray.location import Location, location
from still_ray.rows import read_rows
from still_ray.types import Demonstration, InputError, ParsedResponse


@dataclass(frozen=True, kw_only=True)
class DemonstrationIndex:
    """What a run needs to know of a file of demonstrations before it starts.

    Attributes:
        ids: One for each demonstration, in the file's order.
        domains: Their problem types.
        num_duplicates: Rows left out because an equal row came before.
    """

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    num_duplicates: int

    @property
    def count(self) -> int:
        """How many demonstrations there are."""
        return len(self.ids)


def validate_demonstrations(path: str | Location) -> DemonstrationIndex:
    """Reads a file of demonstrations to its end, keeping none of the text.

    Raises:
        InputError: A row is wrong, or two different demonstrations have the same id.
    """
    index = IdIndex()
    kept = [(shown.id, shown.domain) for shown in _unique_demonstrations(location(path), index)]
    ids, domains = zip(*kept, strict=True)
    return DemonstrationIndex(ids=ids, domains=domains, num_duplicates=index.num_duplicates)


def read_demonstrations(path: str | Location) -> Iterator[Demonstration]:
    """Streams the demonstrations of a file, equal rows once.

    Raises:
        InputError: See `validate_demonstrations`.
    """
    return _unique_demonstrations(location(path), IdIndex())


def _unique_demonstrations(path: Location, index: IdIndex) -> Iterator[Demonstration]:
    for where, fields in read_rows(path):
        shown = demonstration_from_row(fields, where=where)
        if index.is_new(shown.id, (shown.question, shown.thought, shown.solution), where):
            yield shown


def demonstration_from_row(row: Mapping[str, Any], *, where: str) -> Demonstration:
    """Makes a demonstration of a row with `question` and either `combined_text` or `thought` and `solution`.

    Args:
        row: A row of a file.
        where: The file and the row, for errors.

    Raises:
        InputError: A key is missing or the response is not a thought followed by a solution.
    """
    question = required_text(row, QUESTION_KEYS[::-1], where)
    parts = _response(row, where)
    return Demonstration(
        id=row_id(row, (question, parts.thought, parts.solution)),
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
    parsed = parse_response(text)
    if parsed.defect is not None:
        raise InputError(f'{where}: key "{key}" is not a thought followed by a solution: {parsed.defect.value}')
    if not parsed.thought or not parsed.solution:
        raise InputError(f'{where}: key "{key}" has an empty {"solution" if parsed.thought else "thought"}')
    return parsed


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
