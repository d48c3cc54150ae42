"""From what a teacher answered to a thought and a solution, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from still_ray.formats.control import KNOWN
from still_ray.formats.responses.channels import CHANNELS
from still_ray.formats.responses.markers import MARKED
from still_ray.formats.responses.reading import format_of
from still_ray.formats.responses.think import holds_tag, split_thought, without_opening_tag
from still_ray.types import FormatDefect, ParsedResponse

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
    CONTROL = "a control token as text"
    STRAY_TAG = "a stray <think> or </think>"
    EMPTY_THOUGHT = "an empty thought"
    EMPTY_SOLUTION = "no solution after the thought"


_ENDINGS: Final[Mapping[str, AnswerDefect | None]] = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"), None),
    **dict.fromkeys(("length", "max_tokens"), AnswerDefect.TRUNCATED),
    **dict.fromkeys(("content_filter", "safety"), AnswerDefect.FILTERED),
    REFUSED: AnswerDefect.REFUSED,
}
"""Finish reasons in small letters: OpenAI's, and those that gateways pass on from TGI, Anthropic, Cohere and Gemini."""


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
    """Finds thought and solution: in a field of reasoning, around </think> or the like, or between the markers.

    Args:
        reasoning: The reasoning that came apart; "" if there was none.
        content: The message's text.
        finish_reason: The endpoint's word.
    """
    ending = _ENDINGS.get(finish_reason.casefold(), AnswerDefect.NOT_STOPPED)
    reasoning, content = KNOWN.stripped(reasoning), KNOWN.stripped(content)
    parsed = _split(reasoning, content, truncated=ending is AnswerDefect.TRUNCATED)
    parsed = replace(parsed, thought=KNOWN.stripped(parsed.thought), solution=KNOWN.stripped(parsed.solution))
    defect = ending or _text_defect(parsed, f"{reasoning}{content}")
    return Converted(parsed=parsed, defect=str(defect or ""))


def _split(reasoning: str, content: str, *, truncated: bool) -> ParsedResponse:
    told = format_of(content)
    if not reasoning.strip() and told in (MARKED, CHANNELS):
        return told.parse(content, truncated=truncated)
    thought, solution, defect = _halves(reasoning, content)
    if truncated:
        defect = FormatDefect.TRUNCATED
    return ParsedResponse(thought=thought, solution=solution, defect=defect)


def _halves(reasoning: str, content: str) -> tuple[str, str, FormatDefect | None]:
    """Thought and solution, stripped; R1's chat template puts the opening tag into the prompt, so it may be missing."""
    thought, solution = split_thought(content)
    if reasoning.strip():
        apart = without_opening_tag(reasoning)
        is_repeated = solution is not None and thought.split() in ([], apart.split())
        return apart, (solution if is_repeated and solution is not None else content).strip(), None
    if solution is not None:
        return thought, solution, None
    if without_opening_tag(content) != content.strip():
        return thought, "", FormatDefect.THOUGHT_NOT_CLOSED
    return "", content.strip(), FormatDefect.NO_THOUGHT


def _text_defect(parsed: ParsedResponse, text: str) -> AnswerDefect | FormatDefect | None:
    if _LOST in text:
        return AnswerDefect.LOST_CHARACTERS
    if parsed.defect is not None:
        no_markers = parsed.defect is FormatDefect.NO_THOUGHT and not MARKED.claims(text)
        return AnswerDefect.NO_THOUGHT if no_markers else parsed.defect
    if not parsed.thought or not parsed.solution:
        return AnswerDefect.EMPTY_SOLUTION if parsed.thought else AnswerDefect.EMPTY_THOUGHT
    if holds_tag(parsed.thought) or holds_tag(parsed.solution):
        return AnswerDefect.STRAY_TAG
    if KNOWN.held(parsed.thought) or KNOWN.held(parsed.solution):
        return AnswerDefect.CONTROL
    return MARKED.parse(MARKED.render(parsed.thought, parsed.solution)).defect  # a marker inside a part
