"""Rows as other projects publish them, recognised by their columns.

| shape | columns | e.g. |
|---|---|---|
| released | question, combined_text, domain | STILL-2 |
| apart | question, thought (reasoning_content, reasoning, thinking), solution (response, ...) | distilled by an API |
| R1 style | question, response (output, generation, completion, text) with think tags | DeepSeek-R1 and its kin |
| chat | messages or conversations: role and content, or from and value | OpenR1-Math, OpenThoughts, Sky-T1, Bespoke |
| problem | problem, answer, or a worked solution; see `still_ray.formats.problems` | MATH, GSM8K, NuminaMath |

A column named by the user wins over all that is recognised. Names are recognised in capitals as well.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from still_ray.config.prepare import FieldsConfig, Kind
from still_ray.formats.chats import Chat, earlier_turns
from still_ray.formats.columns import ANSWER_COLUMNS, RESPONSE_COLUMNS, SOLUTION_COLUMNS, THOUGHT_COLUMNS, Columns
from still_ray.formats.control import KNOWN
from still_ray.formats.problems import ProblemRow
from still_ray.formats.responses.markers import BEGIN_SOLUTION
from still_ray.formats.responses.reading import Defect, Parts, checked_parts, cut_response, looks_thought
from still_ray.types import Demonstration, InputError, Problem, Turn


@dataclass(frozen=True, kw_only=True)
class AdaptedDemonstration:
    """A row that has a question and a response.

    Attributes:
        shown: The demonstration; with a defect, thought and solution as far as they can be told.
        defect: Why it cannot be written as a demonstration, or None.
        reference: The problem with its reference answer, where the row has one that a verifier understands.
        place: Where the response is, for errors: `key "response"`.
    """

    shown: Demonstration
    defect: Defect | None
    reference: Problem | None
    place: str


Adapted = AdaptedDemonstration | Problem
Fields = Mapping[str, Any]
_WITHOUT_THOUGHT: Final = (Defect.NO_THOUGHT, Defect.EMPTY_THOUGHT)


def adapt_row(
    row: Fields,
    *,
    kind: Kind,
    fields: FieldsConfig,
    where: str,
    own: Container[str] = (),
    general: bool = False,
) -> Adapted:
    """Makes a demonstration or a problem of a row.

    Args:
        row: The row as it was read.
        kind: What is wanted; auto: a demonstration of a row that shows a thought, else a problem of one with an answer.
        fields: The user's names of columns.
        where: The file and the row, for errors.
        own: The domains that have a verifier of the user's own; a row of any other label is judged by its reference.
        general: Whether a demonstration may lack a thought.

    Raises:
        InputError: No known shape, or a column does not hold what it should.
    """
    source = _Source(row, fields, where, own, general=general)
    asked = source.asked
    if kind == "problems":
        return asked.problem()
    shown = source.shown()
    if kind == "auto" and source.is_problem(shown):
        return asked.problem()
    if shown is None:
        if asked.chat_error is not None:
            raise asked.chat_error
        asked.require_no_void_answer()
        lacking = (
            'missing key "combined_text" (or "thought" and "solution", a response, or a chat)'
            if kind == "demonstrations"
            else "no known shape: neither a response nor an answer"
        )
        raise InputError(f"{where}: {lacking}; columns: {asked.columns.names}")
    return source.demonstration(shown)


def question_of(row: Fields, *, fields: FieldsConfig, where: str) -> str:
    """The question of a row of any known shape, e.g. of an evaluation set.

    Raises:
        InputError: There is none.
    """
    return ProblemRow(Columns(row, fields, where)).asked()


class _Shown(NamedTuple):
    """Thought and solution of a row, and where they are, for errors."""

    parts: Parts
    place: str


class _Source:
    """One row, as a demonstration or as a problem."""

    def __init__(
        self, row: Fields, fields: FieldsConfig, where: str, own: Container[str] = (), *, general: bool = False
    ) -> None:
        self._columns = Columns(row, fields, where)
        self._general = general
        self.asked = ProblemRow(self._columns, own=own)

    def shown(self) -> _Shown | None:
        """Thought and solution; None for a row without a response."""
        shown = self._thoughtful()
        if not self._general:
            return shown
        if shown is None:
            answer = self._columns.named_text("answer", ("solution", *ANSWER_COLUMNS))
            shown = answer and _Shown(Parts("", answer[1], Defect.NO_THOUGHT), f'key "{answer[0]}"')
        if shown is None or shown.parts.defect not in _WITHOUT_THOUGHT:
            return shown
        return shown._replace(parts=_checked_answer(shown.parts.solution))

    def _thoughtful(self) -> _Shown | None:
        """Thought and solution as a row has them that should show a thought."""
        columns = self._columns
        thought = columns.named_text("thought", THOUGHT_COLUMNS)
        if thought is not None:
            return self._apart(*thought)
        if self._answering is not None:
            parts = _chat_parts(self._answering)
            return None if parts is None else _Shown(parts, "the last answer of the chat")
        response = columns.named_text("response", RESPONSE_COLUMNS)
        if response is not None:
            return _Shown(cut_response(response[1], columns.fields.response_format), f'key "{response[0]}"')
        solution = columns.named_text("solution", ("solution",))
        if solution is None or not looks_thought(solution[1]):
            return None
        return _Shown(cut_response(solution[1]), f'key "{solution[0]}"')

    def _apart(self, name: str, thought: str) -> _Shown:
        """A thought in a column of its own; an empty solution is the fault of the solution's column."""
        solution = self._columns.named_text("solution", SOLUTION_COLUMNS)
        parts = checked_parts(Parts(thought, "" if solution is None else solution[1]))
        if parts.solution or not (thought or self._general):
            return _Shown(parts, f'key "{name}"')
        return _Shown(
            parts, f'key "solution" (missing beside "{name}")' if solution is None else f'key "{solution[0]}"'
        )

    @cached_property
    def _answering(self) -> Chat | None:
        """The chat, where its answer is the response of the row."""
        text = self._columns.text
        if self._columns.fields.response is not None or text("thought", THOUGHT_COLUMNS) is not None:
            return None
        response = text("response", RESPONSE_COLUMNS)
        return None if response is not None and looks_thought(response) else self.asked.chat

    def demonstration(self, found: _Shown) -> AdaptedDemonstration:
        """The demonstration with these parts."""
        parts = found.parts
        turns, question = self._asked()
        question = KNOWN.stripped(question)
        before = tuple(turn.content for turn in turns)
        if parts.defect is None and any(map(KNOWN.held, (*before, question))):
            parts = parts._replace(defect=Defect.CONTROL)
        shown = Demonstration(
            id=self._columns.id_of(*before, question, parts.thought, parts.solution),
            domain=self.asked.label() or ("general" if self._general else "math"),
            question=question,
            thought=parts.thought,
            solution=parts.solution,
            turns=turns,
            general=self._general,
        )
        return AdaptedDemonstration(shown=shown, defect=parts.defect, reference=self._reference(), place=found.place)

    def _asked(self) -> tuple[tuple[Turn, ...], str]:
        """The turns before the question, and the question: that of the chat where the chat answers several."""
        chat = self._answering
        turns = earlier_turns(self._columns, chat)
        return turns, chat.question if chat is not None and chat.asked_before else self.asked.last_question()

    def is_problem(self, shown: _Shown | None) -> bool:
        """Whether a row of unsaid kind is a problem: it has an answer, and shows no thought but a worked solution.

        The box in what a model answered in a chat is no reference: nobody has said that it is right.
        """
        worked = self._columns.text("solution", ("solution",))
        without_thought = shown is None or (shown.parts.defect is Defect.NO_THOUGHT and worked is not None)
        return without_thought and self.asked.has_reference()

    def _reference(self) -> Problem | None:
        """The reference of a demonstration; an answer that no verifier understands is none.

        Nor is one to a question in a column of its own where the chat's last of several is learnt.
        """
        if self._answering is not None and self._answering.asked_before:
            return None
        try:
            return self.asked.problem() if self.asked.states_answer() else None
        except InputError:
            return None


def _checked_answer(text: str) -> Parts:
    """An answer without a thought, as `checked_parts` looks at both."""
    checked = checked_parts(Parts("-", text))
    return checked._replace(thought="")


def _chat_parts(chat: Chat) -> Parts | None:
    """The parts of a chat's one answer; None where nobody answers."""
    if not chat.response and not chat.thought:
        return None
    if chat.thought and BEGIN_SOLUTION not in chat.response:
        return checked_parts(Parts(chat.thought, chat.response))
    return cut_response(chat.response)
