"""Questions of multiple choice: options in columns of their own, as in GPQA, or listed in one, as in MMLU and ARC."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Final

from still_ray.algo.seeds import derived_seed
from still_ray.formats.columns import Columns, checked_question, required_text
from still_ray.types import Domain, InputError, Problem
from still_ray.values import json_value, stated_answer

LETTERS: Final = ascii_uppercase

_RIGHT: Final = re.compile(r"correct[ _]answer", re.IGNORECASE)
_WRONG: Final = re.compile(r"incorrect[ _]answer[ _]?\d*|distractor[ _]?\d*", re.IGNORECASE)
_QUESTIONS: Final = ("Question", "question", "problem")
_IDS: Final = ("Record ID", "unique_id", "id")
_SUBJECTS: Final = ("High-level domain", "Subdomain", "subject")
_LISTS: Final = ("choices", "options")
_NO_OPTIONS: Final[tuple[Any, ...]] = (None, "", [], (), {}, "[]", "{}", "null")
"""What stands in a column of options in rows that have none, also as JSON text."""
_LISTED_APART: Final = (("opa", "opb", "opc", "opd"), ("A", "B", "C", "D"))
_NAMING: Final = (
    *("answerkey", "answer_key", "answer_idx", "answer_letter", "answer", "correct_option", "correct", "cop"),
    "answer_index",
)
"""Columns that name the right option, by its letter, its place from 0 or its text."""
_LETTERED: Final = re.compile(r"\(?([A-Z])[).:]\s*(?=\S)")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a question.

    Attributes:
        texts: One line each, in order.
        right: The letter of the right one.
    """

    texts: tuple[str, ...]
    right: str

    def behind(self, question: str) -> str:
        """The question with the options behind it, unless it lists them itself."""
        lettered = list(zip(LETTERS, self.texts, strict=False))
        if all(re.search(rf"\(?{letter}[).:]\s*{re.escape(text)}", question) for letter, text in lettered):
            return question
        return "\n".join([question, "", *(f"({letter}) {text}" for letter, text in lettered)])


def option_columns(columns: Columns) -> tuple[str, ...]:
    """The columns that list options: one, or one for each; none where they are empty."""
    row = columns.row
    listing = next((name for name in _LISTS if row.get(name) not in _NO_OPTIONS), None)
    if listing is not None:
        return (listing,)
    apart = (names for names in _LISTED_APART if all(row.get(name) is not None for name in names))
    return next((names for names in apart if any(row[name] != "" for name in names)), ())


def listed_options(columns: Columns) -> Options | None:
    """The options that columns list, in their order, and which is right; None where none is said to be.

    Understood are a list of texts, an object of texts by letter or with `text` and `label`, and a list of such objects,
    each also as JSON text.

    Raises:
        InputError: Columns are there that list options, and they cannot be read.
    """
    names = option_columns(columns)
    if not names:
        return None
    labels, texts = _labelled(columns, names)
    if not 1 < len(texts) <= len(LETTERS) or not all(texts):
        keys = " to ".join(f'"{name}"' for name in dict.fromkeys((names[0], names[-1])))
        raise InputError(
            f"{columns.where}: key {keys} must list 2 to {len(LETTERS)} options, none of them blank, as a list of "
            'texts, an object of texts by letter, or "text" and "label" (no option is read where "domain" is "math")'
        )
    places = (_place(columns.value(name), labels, texts) for name in (columns.fields.answer or "", *_NAMING))
    right = next((place for place in places if place is not None), None)
    return None if right is None else Options(texts=tuple(texts), right=LETTERS[right])


def _listed(value: Any) -> Any:
    """What a column of options holds, also as JSON text, as tables without lists write them."""
    if not isinstance(value, str):
        return value
    try:
        return json_value(value)
    except (ValueError, RecursionError):
        return None


def _labelled(columns: Columns, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The labels and the texts of the options in these columns, each text in one line."""
    listed = _listed(columns.row[names[0]]) if len(names) == 1 else [columns.row[name] for name in names]
    if isinstance(listed, Mapping):
        labels, texts = listed.get("label"), listed.get("text")
        if not isinstance(labels, list | tuple) or not isinstance(texts, list | tuple):
            labels, texts = list(listed), list(listed.values())
    elif isinstance(listed, list | tuple) and all(isinstance(option, Mapping) for option in listed):
        labels, texts = [option.get("label") for option in listed], [option.get("text") for option in listed]
    else:
        labels, texts = LETTERS, listed if isinstance(listed, list | tuple) else ()
    lines = [" ".join(str(text).split()) if _is_option(text) else "" for text in texts]
    return [str(label) for label in labels][: len(lines)], _without_letters(lines)


def _is_option(text: Any) -> bool:
    return isinstance(text, str | int | float) and not isinstance(text, bool)


def _without_letters(lines: list[str]) -> list[str]:
    """Options that bring their letters, such as "A)21", without them."""
    found = [_LETTERED.match(line) for line in lines]
    if all(match and match[1] == letter for match, letter in zip(found, LETTERS, strict=False)):
        return [line[match.end() :] for line, match in zip(lines, found, strict=True) if match]
    return lines


def _place(value: Any, labels: Sequence[str], texts: list[str]) -> int | None:
    """The place of the option that a value names: by its label, by its text, or by its place from 0.

    A text of digits, which CSV makes of a number, is a place where it is no option's text. Where the labels are
    numbers, a number is a label and no place.
    """
    value = stated_answer(value)
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    line = " ".join(value.split()) if isinstance(value, str) else f"{value:g}"
    named = line.strip("().").strip()
    names = [label.strip("().") for label in labels]
    if named in names or named.upper() in names:
        return names.index(named if named in names else named.upper())
    bare = [text.strip("$").strip() for text in texts]
    for options in (texts, bare) if isinstance(value, str) else ():
        if line in options:
            return options.index(line) if options.count(line) == 1 else None
    counted = re.fullmatch(r"[0-9]{1,2}", line) and not any(name.isdecimal() for name in names)
    return int(line) if counted and int(line) < len(texts) else None


def has_options_apart(row: Mapping[str, Any]) -> bool:
    """Whether a row names its right option and its wrong ones in columns such as "Incorrect Answer 1"."""
    return any(_RIGHT.fullmatch(name) for name in row) and any(_WRONG.fullmatch(name) for name in row)


def problem_of_options(columns: Columns, *, seed: int) -> Problem:
    """The question with its options behind it, in an order that follows from the seed and the row's id alone.

    The order of the columns does not matter.

    Args:
        columns: A row with options apart.
        seed: Of the order.

    Raises:
        InputError: The question or an option is missing or no text, or two options are the same.
    """
    row, where = columns.raw, columns.where
    names = (columns.fields.question,) if columns.fields.question else _QUESTIONS
    question = checked_question(required_text(row, names, where), where)
    right_name = next(name for name in row if _RIGHT.fullmatch(name))
    wrong_names = sorted(name for name in row if _WRONG.fullmatch(name) and row[name] not in (None, ""))
    right = _option(row, right_name, where)
    texts = [right, *(_option(row, name, where) for name in wrong_names)]
    if len(set(texts)) < len(texts) or not 1 < len(texts) <= len(LETTERS):
        raise InputError(f"{where}: 2 to {len(LETTERS)} different options are expected, found {len(set(texts))}")
    named = next((str(row[name]) for name in _IDS if row.get(name) not in (None, "")), None)
    problem_id = named or columns.id_of(question, right)
    random.Random(derived_seed(seed, "options", problem_id)).shuffle(texts)
    options = Options(texts=tuple(texts), right=LETTERS[texts.index(right)])
    return Problem(
        id=problem_id,
        domain=Domain.CHOICE,
        question=options.behind(question),
        answer=options.right,
        subject=next((str(row[name]) for name in _SUBJECTS if row.get(name)), ""),
    )


def _option(row: Mapping[str, Any], name: str, where: str) -> str:
    """An option in one line, so that each line of the question holds one."""
    return " ".join(required_text(row, (name,), where).split())
