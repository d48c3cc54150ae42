"""Responses whose thought stands in tags: ``<think>...</think>`` and then the solution, as R1, Qwen3 or GLM write them.

The opening tag may be in the response, in the generation prompt, or absent; a solution may stand in ``<answer>`` tags.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Final, NamedTuple, Self

from still_ray.formats.responses.base import Layout, ResponseFormat, TemplateFacts
from still_ray.types import FormatDefect, ParsedResponse

THINK_TAGS: Final = ("think", "thinking", "thought", "reason", "reasoning")
_NAMES: Final = "|".join(THINK_TAGS)
_TAG: Final = re.compile(rf"<(/?)({_NAMES})>", re.IGNORECASE)
_OPENED: Final = re.compile(rf"<({_NAMES})>(\s*)\Z", re.IGNORECASE)
_EMPTY: Final = re.compile(rf"<({_NAMES})>\s*</\1>\s*\Z", re.IGNORECASE)
_ANSWER: Final = re.compile(r"<answer>(.*)</answer>", re.IGNORECASE | re.DOTALL)

_LAYOUT: Final = Layout(before="<think>\n", between="\n</think>\n\n")


@dataclass(frozen=True)
class Think(ResponseFormat):
    """A thought in tags, and then the solution.

    Attributes:
        tag: The tags' name, for what is rendered; all names are read.
        layout: What stands around the parts.
        opened: Whether the generation prompt has opened the thought, so that a response without a tag is an unfinished
            thought.
    """

    tag: str = "think"
    layout: Layout = _LAYOUT
    opened: bool = False
    name: ClassVar[str] = "think"

    @property
    def delimiters(self) -> tuple[str, ...]:
        """The two tags."""
        return f"<{self.tag}>", f"</{self.tag}>"

    def parse(self, text: str, *, truncated: bool = False) -> ParsedResponse:
        """Cuts a response at its tags; of several thoughts, the first one and what is behind the last one."""
        if self.opened and not holds_tag(text):
            parsed = ParsedResponse(thought=text.strip(), solution="", defect=FormatDefect.THOUGHT_NOT_CLOSED)
        else:
            parsed = _cut(text)
        return replace(parsed, defect=FormatDefect.TRUNCATED) if truncated else parsed

    def render(self, thought: str, solution: str) -> str:
        """The thought in its tags, then the solution."""
        if not thought:
            return f"{self.layout.alone}{solution}"
        return f"{self.layout.before}{thought}{self.layout.between}{solution}"

    def render_thought(self, thought: str) -> str:
        """The thought up to its closing tag."""
        return f"{self.layout.before}{thought}{self.layout.between}".rstrip()

    def render_cut_off(self, thought: str) -> str:
        """The thought behind its opening tag."""
        return f"{self.layout.before}{thought}"

    def claims(self, text: str) -> bool:
        """Whether a text holds a tag of any of the names."""
        return holds_tag(text)

    def fitted(self, template: TemplateFacts) -> Self:
        """With the template's tags, and without the opening one where the generation prompt ends in it."""
        found = _OPENED.search(template.generation_prompt)
        opened = self if found is None else self._behind(found[1], newline=not found[2])
        layout = template.layout
        closed = layout and next((tag for tag in _TAG.finditer(layout.between) if tag[1]), None)
        if not layout or not closed:
            return opened
        if opened.opened and not holds_tag(layout.alone):  # an answer without a thought still has to close it
            layout = replace(layout, alone=layout.between)
        return replace(opened, tag=closed[2], layout=layout)

    def _behind(self, tag: str, *, newline: bool) -> Self:
        """Behind a generation prompt that ends in the opening tag."""
        close = f"\n</{tag}>\n\n"
        layout = Layout(before="\n" if newline else "", between=close, alone=close)
        return replace(self, tag=tag, layout=layout, opened=True)


THINK: Final = Think()


def holds_tag(text: str) -> bool:
    """Whether a text holds a tag that opens or closes a thought."""
    return "<" in text and _TAG.search(text) is not None


def ends_in_opening_tag(prompt: str) -> bool:
    """Whether a generation prompt has opened a thought."""
    return _OPENED.search(prompt) is not None


def ends_in_empty_thought(prompt: str) -> bool:
    """Whether a generation prompt has opened and closed a thought, as templates do whose thinking is switched off."""
    return _EMPTY.search(prompt) is not None


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


class _Tag(NamedTuple):
    name: str
    closes: bool
    start: int
    end: int


def _own_tags(text: str) -> list[_Tag]:
    """The tags of the name that the thought is closed by; those of other names are text of the thought."""
    tags = [_Tag(match[2].lower(), match[1] == "/", *match.span()) for match in _TAG.finditer(text)]
    closed = {tag.name for tag in tags if tag.closes}
    name = next((tag.name for tag in tags if tag.name in closed), tags[0].name if tags else "")
    return [tag for tag in tags if tag.name == name]


def _cut(text: str) -> ParsedResponse:
    """Thought and solution; of several thoughts, the first one and what is behind the last one."""
    tags = _own_tags(text)
    if not tags:
        return ParsedResponse(thought="", solution=text.strip(), defect=FormatDefect.NO_THOUGHT)
    opened = not tags[0].closes
    start = tags[0].end if opened else 0
    closing = next((tag for tag in tags if tag.closes), None)
    if closing is None:
        return ParsedResponse(thought=text[start:].strip(), solution="", defect=FormatDefect.THOUGHT_NOT_CLOSED)
    solution = _unwrapped(text[tags[-1].end :]) if tags[-1].closes else ""
    defect = None
    if len(tags) > 1 + opened:
        defect = FormatDefect.TWO_THOUGHTS
    elif opened and text[: tags[0].start].strip():
        defect = FormatDefect.TEXT_OUTSIDE
    return ParsedResponse(thought=text[start : closing.start].strip(), solution=solution, defect=defect)


def _unwrapped(solution: str) -> str:
    wrapped = _ANSWER.fullmatch(solution.strip())
    alone = wrapped is not None and "<answer>" not in wrapped[1].lower()  # two answers are no wrapping
    return (wrapped[1] if wrapped and alone else solution).strip()
