"""The form of a response: a thought and then a solution, each between its two markers."""

from typing import Final

from still_ray.types import FormatDefect, ParsedResponse

BEGIN_THOUGHT: Final = "<|begin_of_thought|>"
END_THOUGHT: Final = "<|end_of_thought|>"
BEGIN_SOLUTION: Final = "<|begin_of_solution|>"
END_SOLUTION: Final = "<|end_of_solution|>"
MARKERS: Final = (BEGIN_THOUGHT, END_THOUGHT, BEGIN_SOLUTION, END_SOLUTION)


def render_thought(thought: str) -> str:
    """The first half of a response, up to the end of its thought."""
    return f"{BEGIN_THOUGHT}\n\n{thought}\n\n{END_THOUGHT}"


def render_response(thought: str, solution: str) -> str:
    """The whole response; `parse_response` gives back the stripped thought and solution if they hold no marker."""
    return f"{render_thought(thought)}\n\n{BEGIN_SOLUTION}\n\n{solution}\n\n{END_SOLUTION}"


def render_cut_off(thought: str) -> str:
    """A response that the token limit cut off within its thought: nothing closes it."""
    return f"{BEGIN_THOUGHT}\n\n{thought}"


def parse_response(text: str, *, truncated: bool = False) -> ParsedResponse:
    """Cuts a response at its markers, in time linear in its length.

    Of several defects, one that leaves no closed solution is named first, so that a verifier may rely on this: with a
    defect of the thought or of what is around (`NO_THOUGHT`, `THOUGHT_NOT_CLOSED`, `TWO_THOUGHTS`, `OUT_OF_ORDER`,
    `TEXT_OUTSIDE`), a solution that is not empty is closed and the only one.

    Args:
        text: The whole model output, without the end token.
        truncated: Whether the token limit ended it.

    Returns:
        The parts, stripped, and the defect.
    """
    thought_start, thought_end, thought = _section(text, BEGIN_THOUGHT, END_THOUGHT, stop=BEGIN_SOLUTION)
    solution_start, solution_end, solution = _section(text, BEGIN_SOLUTION, END_SOLUTION)
    defect = (
        _solution_defect(text, solution_start, solution_end, truncated=truncated)
        or _thought_defect(text, thought_start, thought_end)
        or _order_defect(text, thought_start, thought_end, solution_start, solution_end)
    )
    return ParsedResponse(thought=thought, solution=solution, defect=defect)


def _section(text: str, begin: str, end: str, stop: str | None = None) -> tuple[int, int, str]:
    """The position of a begin marker, that of the end marker after it, and the text from one to the other.

    A position is -1 for a marker that is missing. A section that is not closed reaches to the `stop` marker, if there
    is one, or to the end.
    """
    start = text.find(begin)
    if start < 0:
        return -1, -1, ""
    start_of_content = start + len(begin)
    close = text.find(end, start_of_content)
    until = close if close >= 0 or stop is None else text.find(stop, start_of_content)
    return start, close, text[start_of_content : until if until >= 0 else len(text)].strip()


def _solution_defect(text: str, start: int, end: int, *, truncated: bool) -> FormatDefect | None:
    num_begins, num_ends = text.count(BEGIN_SOLUTION), text.count(END_SOLUTION)
    if truncated and (end < 0 or num_begins > num_ends):
        return FormatDefect.TRUNCATED
    if start < 0:
        return _missing_solution(text)
    if num_begins > 1 or num_ends > 1:
        return FormatDefect.TWO_SOLUTIONS
    return FormatDefect.SOLUTION_NOT_CLOSED if end < 0 else None


def _missing_solution(text: str) -> FormatDefect:
    """Without a solution, what is wrong with the thought says more of where the response went astray."""
    if BEGIN_THOUGHT not in text:
        return FormatDefect.NO_THOUGHT
    return FormatDefect.NO_SOLUTION if END_THOUGHT in text else FormatDefect.THOUGHT_NOT_CLOSED


def _thought_defect(text: str, start: int, end: int) -> FormatDefect | None:
    if start < 0:
        return FormatDefect.NO_THOUGHT
    if end < 0:
        return FormatDefect.THOUGHT_NOT_CLOSED
    if text.count(BEGIN_THOUGHT) > 1 or text.count(END_THOUGHT) > 1:
        return FormatDefect.TWO_THOUGHTS
    return None


def _order_defect(
    text: str, thought_start: int, thought_end: int, solution_start: int, solution_end: int
) -> FormatDefect | None:
    if solution_start < thought_end:
        return FormatDefect.OUT_OF_ORDER
    outside = (
        text[:thought_start],
        text[thought_end + len(END_THOUGHT) : solution_start],
        text[solution_end + len(END_SOLUTION) :],
    )
    return FormatDefect.TEXT_OUTSIDE if any(part.strip() for part in outside) else None
