"""From what a teacher answered to a thought and a solution, or to the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from still_ray.formats.response import MARKERS, parse_response, render_response
from still_ray.types import FormatDefect, ParsedResponse

BEGIN_THINK: Final = "<think>"
END_THINK: Final = "</think>"
REFUSED: Final = "refused"
"""Finish reason of a question that the endpoint would not answer."""

_LOST: Final = "\N{REPLACEMENT CHARACTER}"


class AnswerDefect(StrEnum):
    """Why an answer is no demonstration, beside the format's own defects; the text is what a person reads."""

    REFUSED = "refused by the endpoint"
    FILTERED = "stopped by the endpoint's content filter"
    TRUNCATED = "truncated: the token limit was reached"
    NOT_STOPPED = "ended neither by the teacher nor by the token limit"
    LOST_CHARACTERS = "characters were lost: the text holds U+FFFD"
    NO_THOUGHT = "no thought: neither a field of reasoning nor </think> nor markers"
    STRAY_TAG = "a stray <think> or </think>"
    EMPTY_THOUGHT = "an empty thought"
    EMPTY_SOLUTION = "no solution after the thought"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """An answer in the format.

    Attributes:
        parsed: Thought and solution, as far as they are there, for the verifier.
        defect: Text of an `AnswerDefect` or `FormatDefect`; "" for an answer that may become a demonstration.
    """

    parsed: ParsedResponse
    defect: str


def converted(reasoning: str, content: str, finish_reason: str) -> Converted:
    """Finds thought and solution: in a field of reasoning, around </think>, or between the format's markers.

    Args:
        reasoning: The reasoning that came apart; "" if there was none.
        content: The message's text.
        finish_reason: The endpoint's word.
    """
    parsed = _split(reasoning, content, truncated=finish_reason == "length")
    defect = _ending(finish_reason) or _text_defect(parsed, f"{reasoning}{content}")
    return Converted(parsed=parsed, defect=str(defect or ""))


def _split(reasoning: str, content: str, *, truncated: bool) -> ParsedResponse:
    own = content if not reasoning.strip() and any(marker in content for marker in MARKERS) else None
    if own is not None:
        return parse_response(own, truncated=truncated)
    thought, solution, defect = _halves(reasoning, content)
    if truncated:
        defect = FormatDefect.TRUNCATED
    return ParsedResponse(thought=thought, solution=solution, defect=defect)


def _halves(reasoning: str, content: str) -> tuple[str, str, FormatDefect | None]:
    """Thought and solution, stripped; R1's chat template puts the opening tag into the prompt, so it may be missing."""
    if reasoning.strip():
        return reasoning.strip().removeprefix(BEGIN_THINK).strip(), content.strip(), None
    head, tag, tail = content.partition(END_THINK)
    thought = head.strip().removeprefix(BEGIN_THINK).strip()
    if tag:
        return thought, tail.strip(), None
    if head.lstrip().startswith(BEGIN_THINK):
        return thought, "", FormatDefect.THOUGHT_NOT_CLOSED
    return "", content.strip(), FormatDefect.NO_THOUGHT


def _ending(finish_reason: str) -> AnswerDefect | None:
    endings = {
        "stop": None,
        "length": AnswerDefect.TRUNCATED,
        REFUSED: AnswerDefect.REFUSED,
        "content_filter": AnswerDefect.FILTERED,
    }
    return endings.get(finish_reason, AnswerDefect.NOT_STOPPED)


def _text_defect(parsed: ParsedResponse, text: str) -> AnswerDefect | FormatDefect | None:
    if _LOST in text:
        return AnswerDefect.LOST_CHARACTERS
    if parsed.defect is not None:
        no_markers = parsed.defect is FormatDefect.NO_THOUGHT and not any(marker in text for marker in MARKERS)
        return AnswerDefect.NO_THOUGHT if no_markers else parsed.defect
    if not parsed.thought:
        return AnswerDefect.EMPTY_THOUGHT
    if not parsed.solution:
        return AnswerDefect.EMPTY_SOLUTION
    if any(tag in part for tag in (BEGIN_THINK, END_THINK) for part in (parsed.thought, parsed.solution)):
        return AnswerDefect.STRAY_TAG
    return parse_response(render_response(parsed.thought, parsed.solution)).defect  # a marker inside a part
