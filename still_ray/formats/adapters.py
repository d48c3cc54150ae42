"""Rows as other projects publish them, recognised by their columns.

| shape | columns | e.g. |
|---|---|---|
| released | question, combined_text, domain | STILL-2 |
| apart | question, thought (reasoning_content, reasoning, thinking), solution (response, ...) | distilled by an API |
| R1 style | question, response (output, generation, completion, text) with think tags | DeepSeek-R1 and its kin |
| chat | messages or conversations: role and content, or from and value | OpenR1-Math, OpenThoughts, Sky-T1, Bespoke |
| problem | problem, answer, or a solution with a box | MATH, AIME, NuminaMath |

A column named by the user wins over all that is recognised. Names are recognised in capitals as well.
"""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from still_ray.boxed import last_boxed
from still_ray.config.prepare import FieldsConfig, Kind
from still_ray.formats.control import KNOWN
from still_ray.formats.foreign_responses import Defect, Parts, checked_parts, cut_response, looks_thought
from still_ray.formats.problems import RELEASED_LABELS, problem_from_row
from still_ray.formats.response import BEGIN_SOLUTION
from still_ray.formats.unique import ID_KEYS, row_id
from still_ray.types import Demonstration, Domain, InputError, Problem
from still_ray.values import Flaw, is_answer, json_value, no_answer

QUESTION_COLUMNS: Final = ("question", "problem", "prompt", "instruction", "query", "input")
RESPONSE_COLUMNS: Final = ("combined_text", "response", "output", "generation", "completion", "text")
THOUGHT_COLUMNS: Final = ("thought", "reasoning_content", "reasoning", "thinking")
SOLUTION_COLUMNS: Final = ("solution", "response", "output", "content")
ANSWER_COLUMNS: Final = ("answer", "reference", "reference_answer", "expected_answer", "final_answer", "ground_truth")
CHAT_COLUMNS: Final = ("messages", "conversations", "conversation")

_USERS: Final = frozenset({"user", "human"})
_ASSISTANTS: Final = frozenset({"assistant", "gpt", "model", "bot"})
_THOUGHT_PARTS: Final = frozenset({"thinking", "thought", "reasoning"})
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
_MARKED_ANSWER: Final = re.compile(r"(?:^|\n)[ \t]*####[ \t]*(\S[^\n]*)\s*\Z")
"""GSM8K writes the worked solution into the answer, and what is the answer after this sign on the last line."""
_MAX_COLUMNS_NAMED: Final = 8


@dataclass(frozen=True, kw_only=True)
class AdaptedDemonstration:
    """A row that has a question and a response.

    Attributes:
        shown: The demonstration; with a defect, thought and solution as far as they can be told.
        defect: Why it cannot be written as a demonstration, or None.
        reference: The problem with its reference answer, where the row has one that a verifier understands.
    """

    shown: Demonstration
    defect: Defect | None
    reference: Problem | None


Adapted = AdaptedDemonstration | Problem
Fields = Mapping[str, Any]


class _Chat(NamedTuple):
    question: str
    response: str
    thought: str
    num_exchanges: int


def adapt_row(row: Fields, *, kind: Kind, fields: FieldsConfig, where: str, own: Container[str] = ()) -> Adapted:
    """Makes a demonstration or a problem of a row.

    Args:
        row: The row as it was read.
        kind: What is wanted; auto: a demonstration of a row that shows a thought, else a problem of one with an answer.
        fields: The user's names of columns.
        where: The file and the row, for errors.
        own: The domains that have a verifier of the user's own; a row of any other label is judged by its reference.

    Raises:
        InputError: No known shape, or a column does not hold what it should.
    """
    source = _Source(row, fields, where, own)
    if kind == "problems":
        return source.problem()
    parts = source.parts()
    if kind == "auto" and source.is_problem(parts):
        return source.problem()
    if parts is None:
        if source.chat_error is not None:
            raise source.chat_error
        source.require_no_void_answer()
        raise InputError(f"{where}: no known shape: neither a response nor an answer; columns: {_named(row)}")
    return source.demonstration(parts)


def question_of(row: Fields, *, fields: FieldsConfig, where: str) -> str:
    """The question of a row of any known shape, e.g. of an evaluation set.

    Raises:
        InputError: There is none.
    """
    return _Source(row, fields, where).question()


class _Source:
    """One row, its columns found by name.

    Attributes:
        chat_error: Why a column of turns is none, for rows that nothing else gives a shape; None if it is one.
    """

    def __init__(self, row: Fields, fields: FieldsConfig, where: str, own: Container[str] = ()) -> None:
        self._own = own
        capitals = {name.lower(): value for name, value in row.items() if not name.islower()}  # e.g. "Problem"
        self._row, self._fields, self._where = {**capitals, **row} if capitals else row, fields, where
        self.chat_error: InputError | None = None
        self._chat = self._read_chat()

    def question(self) -> str:
        """The question: a column of its own, else the first turn of the chat."""
        name = self._column("question", QUESTION_COLUMNS, of=lambda value: isinstance(value, str) and value.strip())
        if name is None:
            if self._chat is not None and self._chat.question.strip():
                return self._chat.question.strip()
            if self.chat_error is not None:
                raise self.chat_error
            raise InputError(
                f"{self._where}: no question: none of the columns {', '.join(QUESTION_COLUMNS)}, messages or "
                f"conversations holds text; columns: {_named(self._row)}"
            )
        text = self._stripped(name, "question")
        extra = self._row.get("input") if name == "instruction" else None  # Alpaca's two columns
        return f"{text}\n\n{extra.strip()}" if isinstance(extra, str) and extra.strip() else text

    def parts(self) -> Parts | None:
        """Thought and solution; None for a row without a response."""
        thought = self._text("thought", THOUGHT_COLUMNS)
        if thought is not None:
            solution = self._text("solution", SOLUTION_COLUMNS)
            return checked_parts(Parts(thought, solution or ""))
        named = self._fields.response is not None
        response = self._text("response", RESPONSE_COLUMNS)
        if self._chat is not None and not named and (response is None or not looks_thought(response)):
            return _chat_parts(self._chat)
        if response is None:
            solution = self._text("solution", ("solution",))
            return cut_response(solution) if solution is not None and looks_thought(solution) else None
        return cut_response(response)

    def demonstration(self, parts: Parts) -> AdaptedDemonstration:
        """The demonstration with these parts."""
        question = KNOWN.stripped(self.question())
        domain = self._domain()
        if parts.defect is None and KNOWN.held(question):
            parts = parts._replace(defect=Defect.CONTROL)
        shown = Demonstration(
            id=row_id(self._identified(), (question, parts.thought, parts.solution)),
            domain="math" if domain is None else domain,
            question=question,
            thought=parts.thought,
            solution=parts.solution,
        )
        return AdaptedDemonstration(shown=shown, defect=parts.defect, reference=self._reference(question))

    def problem(self) -> Problem:
        """The problem with its reference."""
        return problem_from_row(
            {**self._identified(), **self._judged_by(self.question())}, where=self._where, own=self._own
        )

    def is_problem(self, parts: Parts | None) -> bool:
        """Whether a row of unsaid kind is a problem: it has an answer, and shows no thought but a worked solution.

        The box in what a model answered in a chat is no reference: nobody has said that it is right.
        """
        worked = self._text("solution", ("solution",))
        without_thought = parts is None or (parts.defect is Defect.NO_THOUGHT and worked is not None)
        return without_thought and (self._has_answer() or last_boxed(worked or "") is not None)

    def require_no_void_answer(self) -> None:
        """Says of a row that is nothing that it would be a problem, did its answer say anything.

        Raises:
            InputError: It holds an answer such as "None".
        """
        if not self._has_answer() and any(name in self._row for name in ANSWER_COLUMNS):
            raise InputError(f"{self._where}: {no_answer(self._answer())}", reason=Flaw.NO_ANSWER)

    def _reference(self, question: str) -> Problem | None:
        """The reference of a demonstration; an answer that no verifier understands is none."""
        if not self._has_answer():
            return None
        try:
            return problem_from_row(self._judged_by(question), where=self._where, own=self._own)
        except InputError:
            return None

    def _judged_by(self, question: str) -> dict[str, Any]:
        """What `problem_from_row` needs; with a label that it does not know, the reference decides how to judge."""
        label, subject = self._domain(), self._row.get("subject")
        known = label is None or label in (*Domain, *RELEASED_LABELS) or label in self._own
        return {
            "question": question,
            "answer": self._answer(),
            "solution": self._worked(),
            "domain": label if known else RELEASED_LABELS[0],
            "subject": subject if known else subject or label,
            "level": self._row.get("level"),
        }

    def _worked(self) -> str | None:
        """A worked solution that may hold the answer in a box."""
        solution = self._text("solution", ("solution",))
        return solution if solution is not None or self._chat is None else self._chat.response or None

    def _domain(self) -> str | None:
        value = _value(self._row, self._fields.domain or "domain")
        return None if value in (None, "") else str(value)

    def _has_answer(self) -> bool:
        return is_answer(self._answer(), self._domain(), own=self._own)

    def _answer(self) -> Any:
        domain = self._domain()
        name = self._column("answer", ANSWER_COLUMNS, of=lambda value: is_answer(value, domain, own=self._own))
        name = name or self._column("answer", ANSWER_COLUMNS)
        value = None if name in (None, self._fields.solution) else _value(self._row, str(name))
        marked = _MARKED_ANSWER.search(value) if isinstance(value, str) else None
        return marked[1].strip() if marked else value

    def _identified(self) -> dict[str, Any]:
        if self._fields.id is not None:
            return {"id": _value(self._row, self._fields.id)}
        return {key: self._row[key] for key in ID_KEYS if isinstance(self._row.get(key), str | int)}

    def _text(self, field: str, columns: Sequence[str]) -> str | None:
        """The stripped text of the first of these columns that holds one."""
        name = self._column(field, columns, of=lambda value: isinstance(value, str) and value != "")
        if name is None:
            return None
        return self._stripped(name, field)

    def _stripped(self, name: str, field: str) -> str:
        value = _value(self._row, name)
        if not isinstance(value, str):
            raise InputError(f'{self._where}: key "{name}" (fields.{field}) must be a text')
        return value.strip()

    def _column(self, field: str, columns: Sequence[str], of: Callable[[Any], Any] | None = None) -> str | None:
        """The column named by the user, or the first of these that is there (and that `of` accepts)."""
        named = getattr(self._fields, field)
        if named is not None:
            if _value(self._row, named) is None:
                raise InputError(f'{self._where}: missing key "{named}", which is named as fields.{field}')
            return str(named)
        present = (name for name in columns if self._row.get(name) is not None)
        return next((name for name in present if of is None or of(self._row[name])), None)

    def _read_chat(self) -> _Chat | None:
        """The chat, if there is one; of a column that the user did not name, what is wrong with it is only noted."""
        name = self._column("messages", CHAT_COLUMNS, of=_turns)
        if name is not None:
            try:
                return _chat(_turns(_value(self._row, name)), f'{self._where}: key "{name}"')
            except InputError as error:
                if self._fields.messages is not None:
                    raise
                self.chat_error = error
                return None
        prompt, completion = self._row.get("prompt"), self._row.get("completion")
        if isinstance(prompt, list):  # the conversational form of TRL and verl
            return _chat(_turns(prompt) + (_turns(completion) or []), f'{self._where}: key "prompt"')
        return None


def _chat_parts(chat: _Chat) -> Parts | None:
    """The parts of a chat's one answer; None where nobody answers."""
    if not chat.response and not chat.thought:
        return None
    if chat.num_exchanges > 1:
        return Parts(chat.thought, chat.response, Defect.SEVERAL_TURNS)
    if chat.thought and BEGIN_SOLUTION not in chat.response:
        return checked_parts(Parts(chat.thought, chat.response))
    return cut_response(chat.response)


def _chat(turns: list[Fields], where: str) -> _Chat:
    """The first exchange of a chat.

    Raises:
        InputError: It has no user's turn, or a turn is no text.
    """
    roles = [str(turn.get("role") or turn.get("from") or "").lower() for turn in turns]
    asked = next((place for place, role in enumerate(roles) if role in _USERS), None)
    if asked is None:
        raise InputError(f"{where} holds no turn of a user (role/content or from/value)")
    answered = next((place for place, role in enumerate(roles) if role in _ASSISTANTS and place > asked), None)
    if answered is None:
        return _Chat(_content(turns[asked], where), "", "", 0)
    answer = turns[answered]
    thought = next((answer[key] for key in THOUGHT_COLUMNS if isinstance(answer.get(key), str)), "")
    thought = thought or _texts(answer.get("content"), _THOUGHT_PARTS)
    num_exchanges = max(sum(role in _USERS for role in roles), sum(role in _ASSISTANTS for role in roles))
    question = "\n\n".join(_content(turn, where) for turn in turns[asked:answered])
    return _Chat(question, _content(answer, where).strip(), thought.strip(), num_exchanges)


def _turns(value: Any) -> list[Fields]:
    """The turns of a chat, also of one that is stored as JSON text; what is none is left out."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json_value(value)
        except (ValueError, RecursionError):
            return []
    return [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list | tuple) else []


def _content(turn: Fields, where: str) -> str:
    """What a turn says without its thought; "" for null, which is how an API writes that it said nothing."""
    value = turn.get("content", turn.get("value"))
    if isinstance(value, list | tuple):
        known = all(_type_of(part) in _TEXT_PARTS | _THOUGHT_PARTS for part in value)
        value = _texts(value, _TEXT_PARTS) if known else False
    if not isinstance(value, str | None):
        raise InputError(f"{where} holds a turn that is not text")
    return value or ""


def _texts(content: Any, types: frozenset[str]) -> str:
    """The texts of the parts of these types, if the content is made of parts."""
    if not isinstance(content, list | tuple):
        return ""
    parts = [part for part in content if _type_of(part) in types]
    texts = (part.get(str(part.get("type")).lower()) or part.get("text") for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def _type_of(part: Any) -> str:
    """The type of a part of a turn; "" for what is none."""
    if not isinstance(part, Mapping):
        return ""
    return str(part.get("type") or ("text" if isinstance(part.get("text"), str) else "")).lower()


def _value(row: Fields, name: str) -> Any:
    """What a column holds; "a.b" is looked up inside objects when there is no column of that name."""
    if name in row or "." not in name:
        return row.get(name)
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _named(row: Fields) -> str:
    names = [str(name) for name in row]
    return ", ".join(names[:_MAX_COLUMNS_NAMED]) + (", ..." if len(names) > _MAX_COLUMNS_NAMED else "") or "none"
