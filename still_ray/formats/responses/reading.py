"""Reading responses whose format nobody has said: rows of dumps, of benchmarks' logs, of teachers.

A row at a time: the format is that of the delimiters that its text holds.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from still_ray.formats.control import KNOWN
from still_ray.formats.responses.base import ResponseFormat
from still_ray.formats.responses.channels import CHANNELS
from still_ray.formats.responses.markers import BEGIN_SOLUTION, BEGIN_THOUGHT, MARKED
from still_ray.formats.responses.plain import PLAIN
from still_ray.formats.responses.table import format_named
from still_ray.formats.responses.think import THINK
from still_ray.types import ParsedResponse


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
    CONTROL = "control_token"
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


def format_of(text: str) -> ResponseFormat:
    """The format that a response has: that whose delimiters it holds, else plain text.

    A thought between markers may speak of tags, and one between tags of a marker that ends something. Of channels and
    tags that is meant which comes first: the other is what a thought speaks of.
    """
    if BEGIN_THOUGHT in text or BEGIN_SOLUTION in text:
        return MARKED
    head = CHANNELS.first_head(text)
    if head is not None and not THINK.claims(text[:head]):
        return CHANNELS
    return next((known for known in (THINK, MARKED) if known.claims(text)), PLAIN)


def looks_thought(text: str) -> bool:
    """Whether a text holds delimiters of a thought, well placed or not."""
    return format_of(text) is not PLAIN


def read_response(text: str, name: str = "") -> ParsedResponse:
    """Cuts a response for a verifier, which judges a solution that is whole and the last thing.

    Args:
        text: The whole model output.
        name: Its format; "": what the text says.
    """
    told = format_named(name) if name else format_of(text)
    parsed = told.parse(KNOWN.stripped(text))
    return replace(parsed, solution=KNOWN.stripped(parsed.solution))


def cut_response(text: str, name: str = "auto") -> Parts:
    """Cuts a response of a row that must show a thought, in time linear in its length.

    Args:
        text: The response.
        name: Its format; "auto": what the text says.
    """
    text = KNOWN.stripped(text)
    told = format_of(text) if name == "auto" else format_named(name)
    parsed = (THINK if told is PLAIN else told).parse(text)
    defect = None if parsed.defect is None else Defect[parsed.defect.name]
    return checked_parts(Parts(parsed.thought, parsed.solution, defect))


def checked_parts(parts: Parts) -> Parts:
    """Takes control tokens off the ends, and adds what only the parts show: one is empty or holds what it may not."""
    parts = Parts(KNOWN.stripped(parts.thought), KNOWN.stripped(parts.solution), parts.defect)
    if parts.defect is not None:
        return parts
    if not parts.thought:
        return parts._replace(defect=Defect.EMPTY_THOUGHT)
    if not parts.solution:
        return parts._replace(defect=Defect.EMPTY_SOLUTION)
    if looks_thought(parts.thought) or looks_thought(parts.solution):
        return parts._replace(defect=Defect.MARKERS_INSIDE)
    if KNOWN.held(parts.thought) or KNOWN.held(parts.solution):
        return parts._replace(defect=Defect.CONTROL)
    return parts
