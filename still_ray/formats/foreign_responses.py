"""Responses as other projects write them, cut into thought and solution.

Understood: this project's four markers; ``<think>...</think>`` and the like before the solution, also without the
opening tag, which some chat templates put into the prompt; a solution in ``<answer>`` tags. `prepare`, `distill` and
`verify` all find tags here.
"""

import re
from dataclasses import replace
from enum import StrEnum
from typing import Final, NamedTuple

from still_ray.formats.control import KNOWN
from still_ray.formats.response import BEGIN_SOLUTION, BEGIN_THOUGHT, MARKERS, parse_response
from still_ray.types import FormatDefect, ParsedResponse, ResponseFormat


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


THINK_TAGS: Final = ("think", "thinking", "thought", "reason", "reasoning")
_TAG: Final = re.compile(rf"<(/?)({'|'.join(THINK_TAGS)})>", re.IGNORECASE)
_ANSWER: Final = re.compile(r"<answer>(.*)</answer>", re.IGNORECASE | re.DOTALL)


class _Tag(NamedTuple):
    name: str
    closes: bool
    start: int
    end: int


def looks_thought(text: str) -> bool:
    """Whether a text holds markers or tags of a thought, well placed or not."""
    return "<" in text and (BEGIN_THOUGHT in text or BEGIN_SOLUTION in text or holds_tag(text))


def holds_tag(text: str) -> bool:
    """Whether a text holds a tag that opens or closes a thought."""
    return _TAG.search(text) is not None


def format_of(text: str) -> ResponseFormat:
    """The format that a response has: that of its markers, else of its tags, else plain text."""
    if any(marker in text for marker in MARKERS):
        return ResponseFormat.MARKERS
    return ResponseFormat.THINK if holds_tag(text) else ResponseFormat.PLAIN


def read_response(text: str, form: ResponseFormat | None = None) -> ParsedResponse:
    """Cuts a response of any known format for a verifier, which judges a solution that is closed and the last thing.

    Args:
        text: The whole model output.
        form: Its format; None: what the text says.
    """
    parsed = _cut(KNOWN.stripped(text), form or format_of(text))
    return replace(parsed, solution=KNOWN.stripped(parsed.solution))


def _cut(text: str, form: ResponseFormat) -> ParsedResponse:
    if form is ResponseFormat.MARKERS:
        return parse_response(text)
    if form is ResponseFormat.PLAIN:
        return ParsedResponse(thought="", solution=text.strip())
    parts = _cut_at_tags(text)
    defect = FormatDefect[parts.defect.name] if parts.defect else None
    return ParsedResponse(thought=parts.thought, solution=parts.solution, defect=defect)


def split_thought(text: str) -> tuple[str, str | None]:
    """The thought before the tag that closes it, without one that opens it, and what is behind; None: never closed."""
    tags = _own_tags(text)
    closing = next((tag for tag in tags if tag.closes), None)
    thought = without_opening_tag(text[: closing.start if closing else len(text)])
    return thought, _unwrapped(text[closing.end :]) if closing else None


def without_opening_tag(thought: str) -> str:
    """A thought, stripped, without the opening tag that it may begin with."""
    text = thought.strip()
    tag = _TAG.match(text)
    return text[tag.end() :].lstrip() if tag and not tag[1] else text


def cut_response(text: str) -> Parts:
    """Cuts a response, in time linear in its length."""
    text = KNOWN.stripped(text)
    if BEGIN_THOUGHT in text or BEGIN_SOLUTION in text:
        parsed = parse_response(text)
        defect = None if parsed.defect is None else Defect[parsed.defect.name]
        return checked_parts(Parts(parsed.thought, parsed.solution, defect))
    return checked_parts(_cut_at_tags(text))


def checked_parts(parts: Parts) -> Parts:
    """Takes control tokens off the ends, and adds what only the parts show: one is empty or holds what it may not."""
    parts = Parts(KNOWN.stripped(parts.thought), KNOWN.stripped(parts.solution), parts.defect)
    if parts.defect is not None:
        return parts
    if not parts.thought:
        return parts._replace(defect=Defect.EMPTY_THOUGHT)
    if not parts.solution:
        return parts._replace(defect=Defect.EMPTY_SOLUTION)
    if any("<" in part and _holds_marker(part) for part in parts[:2]):
        return parts._replace(defect=Defect.MARKERS_INSIDE)
    if KNOWN.held(parts.thought) or KNOWN.held(parts.solution):
        return parts._replace(defect=Defect.CONTROL)
    return parts


def _holds_marker(part: str) -> bool:
    return any(marker in part for marker in MARKERS) or holds_tag(part)


def _own_tags(text: str) -> list[_Tag]:
    """The tags of the name that the thought is closed by; those of other names are text of the thought."""
    tags = [_Tag(match[2].lower(), match[1] == "/", *match.span()) for match in _TAG.finditer(text)]
    closed = {tag.name for tag in tags if tag.closes}
    name = next((tag.name for tag in tags if tag.name in closed), tags[0].name if tags else "")
    return [tag for tag in tags if tag.name == name]


def _cut_at_tags(text: str) -> Parts:
    """Thought and solution; of several thoughts, the first one and what is behind the last one."""
    tags = _own_tags(text)
    if not tags:
        return Parts("", text.strip(), Defect.NO_THOUGHT)
    opened = not tags[0].closes
    start = tags[0].end if opened else 0
    closing = next((tag for tag in tags if tag.closes), None)
    if closing is None:
        return Parts(text[start:].strip(), "", Defect.THOUGHT_NOT_CLOSED)
    solution = _unwrapped(text[tags[-1].end :]) if tags[-1].closes else ""
    parts = Parts(text[start : closing.start].strip(), solution)
    if len(tags) > 1 + opened:
        return parts._replace(defect=Defect.TWO_THOUGHTS)
    if opened and text[: tags[0].start].strip():
        return parts._replace(defect=Defect.TEXT_OUTSIDE)
    return parts


def _unwrapped(solution: str) -> str:
    wrapped = _ANSWER.fullmatch(solution.strip())
    alone = wrapped is not None and "<answer>" not in wrapped[1].lower()  # two answers are no wrapping
    return (wrapped[1] if wrapped and alone else solution).strip()
