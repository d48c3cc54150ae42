"""Responses as other projects write them, cut into thought and solution.

Understood: this project's four markers; ``<think>...</think>`` and the like before the solution, also without the
opening tag, which some chat templates put into the prompt; a solution in ``<answer>`` tags.
"""

import re
from enum import StrEnum
from typing import Final, NamedTuple

from still_ray.formats.response import BEGIN_SOLUTION, BEGIN_THOUGHT, MARKERS, parse_response


class Defect(StrEnum):
    """Why a response is not one thought and then one solution; the values are those of the report."""

    NO_THOUGHT = "no_thought"
    THOUGHT_NOT_CLOSED = "thought_not_closed"
    NO_SOLUTION = "no_solution"
    SOLUTION_NOT_CLOSED = "solution_not_closed"
    TWO_THOUGHTS = "two_thoughts"
    TWO_SOLUTIONS = "two_solutions"
    OUT_OF_ORDER = "out_of_order"
    TEXT_OUTSIDE = "text_outside"
    EMPTY_THOUGHT = "empty_thought"
    EMPTY_SOLUTION = "empty_solution"
    MARKERS_INSIDE = "markers_inside"
    SEVERAL_TURNS = "several_turns"
    NO_BOX = "no_box"


class Parts(NamedTuple):
    """A response cut in two, as far as it can be.

    Attributes:
        thought: Stripped.
        solution: Stripped.
        defect: What is wrong, or None.
    """

    thought: str
    solution: str
    defect: Defect | None = None


_TAG: Final = re.compile(r"<(/?)(?:think|thinking|thought|reason|reasoning)>", re.IGNORECASE)
_ANSWER: Final = re.compile(r"<answer>(.*)</answer>", re.IGNORECASE | re.DOTALL)


def looks_thought(text: str) -> bool:
    """Whether a text holds markers or tags of a thought, well placed or not."""
    return "<" in text and (BEGIN_THOUGHT in text or BEGIN_SOLUTION in text or _TAG.search(text) is not None)


def cut_response(text: str) -> Parts:
    """Cuts a response, in time linear in its length."""
    if BEGIN_THOUGHT in text or BEGIN_SOLUTION in text:
        parsed = parse_response(text)
        defect = None if parsed.defect is None else Defect[parsed.defect.name]
        return checked_parts(Parts(parsed.thought, parsed.solution, defect))
    return checked_parts(_cut_at_tags(text))


def checked_parts(parts: Parts) -> Parts:
    """Adds what only the parts themselves show: that one is empty, or holds a marker of its own."""
    if parts.defect is not None:
        return parts
    if not parts.thought:
        return parts._replace(defect=Defect.EMPTY_THOUGHT)
    if not parts.solution:
        return parts._replace(defect=Defect.EMPTY_SOLUTION)
    if any("<" in part and _holds_marker(part) for part in parts[:2]):
        return parts._replace(defect=Defect.MARKERS_INSIDE)
    return parts


def _holds_marker(part: str) -> bool:
    return any(marker in part for marker in MARKERS) or _TAG.search(part) is not None


def _cut_at_tags(text: str) -> Parts:
    tags = [(match[1] == "/", *match.span()) for match in _TAG.finditer(text)]
    if not tags:
        return Parts("", text.strip(), Defect.NO_THOUGHT)
    opened = not tags[0][0]
    start = tags[0][2] if opened else 0
    closing = next((tag for tag in tags if tag[0]), None)
    if closing is None:
        return Parts(text[start:].strip(), "", Defect.THOUGHT_NOT_CLOSED)
    parts = Parts(text[start : closing[1]].strip(), _unwrapped(text[closing[2] :]))
    if len(tags) > 1 + opened:
        return parts._replace(defect=Defect.TWO_THOUGHTS)
    if opened and text[: tags[0][1]].strip():
        return parts._replace(defect=Defect.TEXT_OUTSIDE)
    return parts


def _unwrapped(solution: str) -> str:
    wrapped = _ANSWER.fullmatch(solution.strip())
    alone = wrapped is not None and "<answer>" not in wrapped[1].lower()  # two answers are no wrapping
    return (wrapped[1] if wrapped and alone else solution).strip()
