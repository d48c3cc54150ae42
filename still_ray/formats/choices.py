"""Questions whose right and wrong options stand in columns of their own, as in GPQA: shuffled and lettered."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any, Final

from still_ray.algo.seeds import derived_seed
from still_ray.formats.unique import question_text, required_text, row_id
from still_ray.types import Domain, InputError, Problem

LETTERS: Final = "ABCDEFGH"

_RIGHT: Final = re.compile(r"correct[ _]answer", re.IGNORECASE)
_WRONG: Final = re.compile(r"incorrect[ _]answer[ _]?\d*", re.IGNORECASE)
_QUESTIONS: Final = ("Question", "question", "problem")
_IDS: Final = ("Record ID", "unique_id", "id")
_SUBJECTS: Final = ("High-level domain", "Subdomain", "subject")


def has_options_apart(row: Mapping[str, Any]) -> bool:
    """Whether a row names its right option and its wrong ones in columns such as "Incorrect Answer 1"."""
    return any(_RIGHT.fullmatch(name) for name in row) and any(_WRONG.fullmatch(name) for name in row)


def problem_of_options(row: Mapping[str, Any], *, seed: int, where: str) -> Problem:
    """The question with its options behind it, in an order that follows from the seed and the row's id alone.

    The order of the columns does not matter.

    Args:
        row: A row with options apart.
        seed: Of the order.
        where: The file and the row, for errors.

    Raises:
        InputError: The question or an option is missing or no text, or two options are the same.
    """
    question = question_text(row, _QUESTIONS, where)
    right_name = next(name for name in row if _RIGHT.fullmatch(name))
    wrong_names = sorted(name for name in row if _WRONG.fullmatch(name) and row[name] not in (None, ""))
    right = _option(row, right_name, where)
    options = [right, *(_option(row, name, where) for name in wrong_names)]
    if len(set(options)) < len(options) or not 1 < len(options) <= len(LETTERS):
        raise InputError(f"{where}: 2 to {len(LETTERS)} different options are expected, found {len(set(options))}")
    named = next((str(row[name]) for name in _IDS if row.get(name) not in (None, "")), None)
    problem_id = named or row_id({}, (question, right))
    random.Random(derived_seed(seed, "options", problem_id)).shuffle(options)
    lines = [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return Problem(
        id=problem_id,
        domain=Domain.CHOICE,
        question="\n".join([question, "", *lines]),
        answer=LETTERS[options.index(right)],
        subject=next((str(row[name]) for name in _SUBJECTS if row.get(name)), ""),
    )


def _option(row: Mapping[str, Any], name: str, where: str) -> str:
    """An option in one line, so that each line of the question holds one."""
    return " ".join(required_text(row, (name,), where).split())
