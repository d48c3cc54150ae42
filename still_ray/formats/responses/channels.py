"""Responses in channels: each part is a message whose head names whom it is for, as gpt-oss and its like write them.

The heads are control tokens of these models, so engines must not leave them out of the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, NamedTuple, Self

from still_ray.formats.responses.base import Layout, ResponseFormat, TemplateFacts
from still_ray.types import FormatDefect, ParsedResponse


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """What a family of models writes around the messages of a turn.

    Attributes:
        thought: Head of a message that is thought.
        solution: Head of the one that is the solution; "" where that is what stands behind the thought.
        ends: What ends a message.
        layout: What stands around the parts behind a generation prompt.
        thought_head: The thought's head as responses write it, which may say more and may have to stand somewhere.
        solution_head: The solution's; None where it has none.
    """

    thought: str
    solution: str
    ends: tuple[str, ...]
    layout: Layout
    thought_head: re.Pattern[str] = field(repr=False)
    solution_head: re.Pattern[str] | None = field(repr=False)

    @property
    def delimiters(self) -> tuple[str, ...]:
        """Heads and ends."""
        return tuple(filter(None, (self.thought, self.solution, *self.ends)))

    @property
    def heads(self) -> tuple[re.Pattern[str], ...]:
        """Both heads as responses write them."""
        return (self.thought_head,) if self.solution_head is None else (self.thought_head, self.solution_head)

    def first_head(self, response: str) -> int | None:
        """Where the first head of a response begins; None without one."""
        found = (head.search(response) for head in self.heads)
        return min((head.start() for head in found if head), default=None)


def _channel(name: str) -> re.Pattern[str]:
    """A head of gpt-oss, which may say what its content is constrained to, e.g. json."""
    return re.compile(rf"<\|channel\|>{name}(?: ?<\|constrain\|>\w+)?<\|message\|>")


def _recipient(name: str) -> re.Pattern[str]:
    """A head that begins with no control token, so that it is one only where a message begins."""
    return re.compile(rf"(?:\A\s*|(?<=<\|start\|>assistant) )to={name}<\|message\|>")


HARMONY: Final = Dialect(
    thought="<|channel|>analysis<|message|>",
    solution="<|channel|>final<|message|>",
    ends=("<|end|>", "<|return|>"),
    layout=Layout(
        before="<|channel|>analysis<|message|>",
        between="<|end|><|start|>assistant<|channel|>final<|message|>",
        alone="<|channel|>final<|message|>",
    ),
    thought_head=_channel("analysis"),
    solution_head=_channel("final"),
)
"""gpt-oss. Source: its chat template, as TRL ships it."""
GEMMA: Final = Dialect(
    thought="<|channel>thought\n",
    solution="",
    ends=("<channel|>",),
    layout=Layout(before="<|channel>thought\n", between="\n<channel|>"),
    thought_head=re.compile(r"<\|channel>thought\n"),
    solution_head=None,
)
"""Gemma 4. Source: its chat template, as TRL ships it."""
RECIPIENTS: Final = Dialect(
    thought=" to=self<|message|>",
    solution=" to=user<|message|>",
    ends=("<|eom|>", "<|eot|>"),
    layout=Layout(
        before=" to=self<|message|>",
        between="<|eom|><|start|>assistant to=user<|message|>",
        alone=" to=user<|message|>",
    ),
    thought_head=_recipient("self"),
    solution_head=_recipient("user"),
)
"""Muse Glimmer, which names the recipient. Source: its chat template, as TRL ships it."""
DIALECTS: Final = (HARMONY, GEMMA, RECIPIENTS)
_START: Final = "<|start|>"
"""Begins the next message, also where nothing has ended the one before."""

_WITHOUT_TOKENS: Final = re.compile(r"\s*analysis(.*?)assistantfinal(.*)", re.DOTALL)
"""What is left of gpt-oss's response where an engine has left its control tokens out."""


@dataclass(frozen=True)
class Channels(ResponseFormat):
    """A message of thought and a message with the solution.

    Attributes:
        dialect: That of what is rendered; all are read.
    """

    dialect: Dialect = HARMONY
    name: ClassVar[str] = "channels"

    @property
    def delimiters(self) -> tuple[str, ...]:
        """Those of its dialect, and what it puts around the parts."""
        layout = self.dialect.layout
        return (*self.dialect.delimiters, *filter(None, (layout.before, layout.between, layout.alone)))

    def parse(self, text: str, *, truncated: bool = False) -> ParsedResponse:
        """Cuts a response at the heads of its messages; of several thoughts, the first one."""
        spoken = _WITHOUT_TOKENS.fullmatch(text)
        if spoken is not None:
            parsed = ParsedResponse(thought=spoken[1].strip(), solution=spoken[2].strip())
        else:
            heads = [(at, known) for known in DIALECTS if (at := known.first_head(text)) is not None]
            parsed = _cut(text, min(heads, key=lambda head: head[0])[1] if heads else self.dialect)
        return replace(parsed, defect=FormatDefect.TRUNCATED) if truncated else parsed

    def render(self, thought: str, solution: str) -> str:
        """Both messages; the solution's alone without a thought."""
        layout = self.dialect.layout
        return f"{layout.before}{thought}{layout.between}{solution}" if thought else f"{layout.alone}{solution}"

    def render_thought(self, thought: str) -> str:
        """The message of the thought."""
        between, end = self.dialect.layout.between, self.dialect.ends[0]
        return f"{self.dialect.layout.before}{thought}{between[: between.index(end) + len(end)]}"

    def render_cut_off(self, thought: str) -> str:
        """The thought behind its head."""
        return f"{self.dialect.layout.before}{thought}"

    def first_head(self, text: str) -> int | None:
        """Where the first head of any dialect begins; None without one."""
        return min((at for known in DIALECTS if (at := known.first_head(text)) is not None), default=None)

    def claims(self, text: str) -> bool:
        """Whether a text holds a head of any dialect."""
        return self.first_head(text) is not None

    def fitted(self, template: TemplateFacts) -> Self:
        """In the dialect of the template, which it shows around a thought or speaks of."""
        layout = template.layout
        shown = "" if layout is None else f"{layout.before}\0{layout.between}"
        for known in DIALECTS:
            if layout is not None and known.thought in shown and known.ends[0] in shown:
                return replace(self, dialect=replace(known, layout=layout))
        return replace(self, dialect=dialect_of_template(template.source) or self.dialect)


CHANNELS: Final = Channels()


def dialect_of_template(source: str) -> Dialect | None:
    """The dialect that a chat template speaks of, whatever stands in front of its heads there; None: of none."""
    return next(
        (known for known in DIALECTS if known.thought in source or (known.solution and known.solution in source)), None
    )


class _Message(NamedTuple):
    start: int
    text: str
    closed: bool


def _cut(text: str, dialect: Dialect) -> ParsedResponse:
    """Thought and solution of a text of one dialect; without any head it is a solution."""
    thoughts = _messages(text, dialect.thought_head, dialect)
    head = dialect.solution_head
    solutions = _behind(text, thoughts, dialect) if head is None else _messages(text, head, dialect)
    if not thoughts and not solutions:
        return ParsedResponse(thought="", solution=text.strip(), defect=FormatDefect.NO_THOUGHT)
    thought = thoughts[0].text if thoughts else ""
    if not solutions:
        defect = FormatDefect.NO_SOLUTION if thoughts[-1].closed else FormatDefect.THOUGHT_NOT_CLOSED
        return ParsedResponse(thought=thought, solution="", defect=defect)
    return ParsedResponse(thought=thought, solution=solutions[0].text, defect=_defect(text, thoughts, solutions))


def _messages(text: str, head: re.Pattern[str], dialect: Dialect) -> list[_Message]:
    """The messages behind a head, each up to what ends it, to the head of another, or to the end of the text."""
    found, begun = [], head.search(text)
    marks = (re.escape(mark) for mark in (*dialect.ends, _START))
    stops = re.compile("|".join((*(other.pattern for other in dialect.heads), *marks)))
    while begun:
        stop = stops.search(text, begun.end())
        until = stop.start() if stop else len(text)
        closed = stop is not None and stop[0] in dialect.ends
        found.append(_Message(begun.start(), text[begun.end() : until].strip(), closed=closed))
        begun = head.search(text, until)
    return found


def _behind(text: str, thoughts: Sequence[_Message], dialect: Dialect) -> list[_Message]:
    """The solution that has no head: what is behind the last thought."""
    if not thoughts or not thoughts[-1].closed:
        return []
    start = text.rindex(dialect.ends[0]) + len(dialect.ends[0])
    return [_Message(start, text[start:].strip(), closed=True)]


def _defect(text: str, thoughts: Sequence[_Message], solutions: Sequence[_Message]) -> FormatDefect | None:
    if len(solutions) > 1:
        return FormatDefect.TWO_SOLUTIONS
    if not thoughts:
        return FormatDefect.NO_THOUGHT
    if len(thoughts) > 1:
        return FormatDefect.TWO_THOUGHTS
    if thoughts[0].start > solutions[0].start:
        return FormatDefect.OUT_OF_ORDER
    return FormatDefect.TEXT_OUTSIDE if text[: thoughts[0].start].strip() else None
