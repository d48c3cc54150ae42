"""Demonstrations: questions with a teacher's thought and solution, in the forms of `still_ray.formats.adapters`."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from still_ray.formats.adapters import AdaptedDemonstration, adapt_row
from still_ray.formats.chats import EARLIER_TURNS
from still_ray.formats.columns import RECOGNISED, IdIndex
from still_ray.formats.control import without_control
from still_ray.formats.responses.markers import MARKERS, render_response
from still_ray.formats.responses.reading import Defect
from still_ray.location import Location, location
from still_ray.rows import read_rows
from still_ray.types import Demonstration, InputError
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


def validate_demonstrations(path: str | Location, *, general: bool = False) -> DemonstrationIndex:
    """Reads a file of demonstrations to its end, keeping none of the text.

    Args:
        path: The file.
        general: Whether its rows may lack a thought.

    Raises:
        InputError: A row is wrong, or two different demonstrations have the same id.
    """
    index, left_out = IdIndex(), Counter[str]()
    rows = _unique_demonstrations(location(path), index, left_out, general=general)
    kept = [(shown.id, shown.domain) for shown in rows]
    ids, domains = zip(*kept, strict=True)
    return DemonstrationIndex(
        ids=ids, domains=domains, num_duplicates=index.num_duplicates, num_control=left_out.total()
    )


def read_demonstrations(
    path: str | Location, left_out: Counter[str] | None = None, *, general: bool = False
) -> Iterator[Demonstration]:
    """Streams the demonstrations of a file, equal rows once and those with a control token as text not at all.

    Args:
        path: The file.
        left_out: Counts the latter, by reason.
        general: Whether rows may lack a thought.

    Raises:
        InputError: See `validate_demonstrations`; or no row is left.
    """
    counts = Counter[str]() if left_out is None else left_out
    return _unique_demonstrations(location(path), IdIndex(), counts, general=general)


def _unique_demonstrations(
    path: Location, index: IdIndex, left_out: Counter[str], *, general: bool
) -> Iterator[Demonstration]:
    error = None
    num_kept = 0
    for where, fields in read_rows(path):
        try:
            shown = demonstration_from_row(fields, where=where, general=general)
        except InputError as flawed:
            if flawed.reason != Flaw.CONTROL:
                raise
            error = flawed
            left_out[flawed.reason] += 1
            continue
        num_kept += 1
        if index.is_new(shown.id, shown.texts, where):
            yield shown
    if error is not None and not num_kept:
        raise error


def demonstration_from_row(row: Mapping[str, Any], *, where: str, general: bool = False) -> Demonstration:
    """Makes a demonstration of a row that has a question and a response with a thought.

    Args:
        row: A row of a file.
        where: The file and the row, for errors.
        general: Whether it may lack a thought.

    Raises:
        InputError: A key is missing, the response is not a thought followed by a solution, or a control token stands in
            the text other than at the end of a part.
    """
    adapted = adapt_row(row, kind="demonstrations", fields=RECOGNISED, where=where, general=general)
    assert isinstance(adapted, AdaptedDemonstration), "asked for demonstrations"
    shown, defect = adapted.shown, adapted.defect
    if defect is Defect.MARKERS_INSIDE and not any(marker in text for text in shown.texts for marker in MARKERS):
        return shown  # tags in a thought are text, unless the run's format parts responses by them
    if defect is Defect.CONTROL:
        for text in shown.texts:
            without_control(text, f"{where}: the row")
    if defect is not None:
        raise InputError(f"{where}: {adapted.place} {_said(defect, general=general)}")
    return shown


def _said(defect: Defect, *, general: bool) -> str:
    """What is wrong with a response."""
    name = defect.value.replace("_", " ")
    advice = _ADVICE if defect in (Defect.NO_THOUGHT, Defect.EMPTY_THOUGHT) else ""
    if defect in (Defect.EMPTY_THOUGHT, Defect.EMPTY_SOLUTION):
        return f"has an {name}{advice}"
    what = "an answer" if general else "a thought followed by a solution"
    return f"is not {what}: {name}{advice}"


_ADVICE = "; plain instruction data is read where data.demonstrations lists its file with general: true"


def demonstration_row(shown: Demonstration) -> dict[str, Any]:
    """The row, with its id, that `demonstration_from_row` reads back; with a thought in the released format."""
    turns = [vars(turn) for turn in shown.turns]
    response = (
        {"combined_text": render_response(shown.thought, shown.solution)}
        if shown.thought
        else {"response": shown.solution}
    )
    row = {"id": shown.id, "question": shown.question, **response, "domain": shown.domain}
    return {**row, EARLIER_TURNS: turns} if turns else row


def write_demonstrations(path: str | Path, demonstrations: Iterable[Demonstration]) -> int:
    """Writes JSON Lines that `read_demonstrations` reads back; returns their number."""
    lines = [json.dumps(demonstration_row(shown)) + "\n" for shown in demonstrations]
    Path(path).write_text("".join(lines), encoding="utf-8")
    return len(lines)
