"""The paper's format: a thought and then a solution, each between its two markers, which are plain text."""

from __future__ import annotations

from typing import ClassVar, Final

from still_ray.formats.responses.base import ResponseFormat
from still_ray.types import FormatDefect, ParsedResponse

BEGIN_THOUGHT: Final = "<|begin_of_thought|>"
END_THOUGHT: Final = "<|end_of_thought|>"
BEGIN_SOLUTION: Final = "<|begin_of_solution|>"
END_SOLUTION: Final = "<|end_of_solution|>"
MARKERS: Final = (BEGIN_THOUGHT, END_THOUGHT, BEGIN_SOLUTION, END_SOLUTION)


MARKERS_PROMPT: Final = r"""Solve the problem at the end in two parts.

First think it through at length, in small steps with a blank line between them: try an idea, check what it gives, go back when something looks wrong, and go on until you are sure. Write this between the two thought markers:

<|begin_of_thought|>

the steps of your thinking

<|end_of_thought|>

Then write a short, clean solution that leads to the result, with the final answer inside \boxed{}. Write it between the two solution markers:

<|begin_of_solution|>

the solution, ending in \boxed{the final answer}

<|end_of_solution|>

Problem:

{question}"""  # noqa: E501 - a line of a prompt is a paragraph


class Markers(ResponseFormat):
    """A thought and a solution between markers. Source: paper (the released data)."""

    name: ClassVar[str] = "markers"
    prompt: ClassVar[str] = MARKERS_PROMPT

    @property
    def delimiters(self) -> tuple[str, ...]:
        """The four markers."""
        return MARKERS

    def parse(self, text: str, *, truncated: bool = False) -> ParsedResponse:
        """Cuts a response at its markers; of several defects, one that leaves no closed solution is named first."""
        thought_start, thought_end, thought = _section(text, BEGIN_THOUGHT, END_THOUGHT, stop=BEGIN_SOLUTION)
        solution_start, solution_end, solution = _section(text, BEGIN_SOLUTION, END_SOLUTION)
        defect = (
            _solution_defect(text, solution_start, solution_end, truncated=truncated)
            or _thought_defect(text, thought_start, thought_end)
            or _order_defect(text, thought_start, thought_end, solution_start, solution_end)
        )
        return ParsedResponse(thought=thought, solution=solution, defect=defect)

    def render(self, thought: str, solution: str) -> str:
        """Both parts between their markers; a solution without a thought is bare, as a row of general data has it."""
        if not thought:
            return solution
        return f"{self.render_thought(thought)}\n\n{BEGIN_SOLUTION}\n\n{solution}\n\n{END_SOLUTION}"

    def render_thought(self, thought: str) -> str:
        """The thought between its markers."""
        return f"{BEGIN_THOUGHT}\n\n{thought}\n\n{END_THOUGHT}"

    def render_cut_off(self, thought: str) -> str:
        """The thought behind the marker that begins it."""
        return f"{BEGIN_THOUGHT}\n\n{thought}"


MARKED: Final = Markers()


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


parse_response: Final = MARKED.parse
"""Cuts a response in the released format; see `ResponseFormat.parse`."""
render_response: Final = MARKED.render
"""Writes a response in the released format; see `ResponseFormat.render`."""
