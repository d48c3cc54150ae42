"""Responses without a thought of their own: base and instruct models, which answer and have done."""

from __future__ import annotations

from typing import ClassVar, Final

from still_ray.formats.responses.base import ResponseFormat
from still_ray.types import FormatDefect, ParsedResponse


class Plain(ResponseFormat):
    """The whole text is the solution."""

    name: ClassVar[str] = "plain"
    has_thought: ClassVar[bool] = False

    @property
    def delimiters(self) -> tuple[str, ...]:
        """None."""
        return ()

    def parse(self, text: str, *, truncated: bool = False) -> ParsedResponse:
        """All of it; of a response that the token limit cut off, what there is leads to a solution, and is none."""
        if truncated:
            return ParsedResponse(thought=text.strip(), solution="", defect=FormatDefect.TRUNCATED)
        return ParsedResponse(thought="", solution=text.strip())

    def render(self, thought: str, solution: str) -> str:
        """The solution; a demonstration's thought is written in front of it, as the steps that lead to it."""
        return f"{thought}\n\n{solution}" if thought else solution

    def render_thought(self, thought: str) -> str:
        """The thought, which nothing ends."""
        return thought

    def render_cut_off(self, thought: str) -> str:
        """The text up to the cut."""
        return thought


PLAIN: Final = Plain()
