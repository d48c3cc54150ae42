"""Chats: the turns of a row in `messages` (role, content) or `conversations` (from, value).

The last answer is learnt, and all before it is read: a system's turn, and earlier questions with their answers. The
thoughts of these are left out, as the chat templates of reasoning models do: a model that is sampled does not see them.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from still_ray.formats.columns import CHAT_COLUMNS, THOUGHT_COLUMNS, Columns
from still_ray.formats.responses.reading import cut_response, looks_thought
from still_ray.types import InputError, Turn
from still_ray.values import json_value

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
EARLIER_TURNS: Final = "earlier_turns"
"""Column of the turns before a question."""
_ROLES: Final = {
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("user", "human"), USER),
    **dict.fromkeys(("assistant", "gpt", "model", "bot"), ASSISTANT),
}
_THOUGHT_PARTS: Final = frozenset({"thinking", "thought", "reasoning"})
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})


class Chat(NamedTuple):
    """The last exchange of a chat and what was said before it.

    Attributes:
        turns: Before the question.
        question: What the user asks; several turns in a row are one.
        response: What is answered; "" if nobody does.
        thought: The thought that stands beside the response; "" if there is none.
        num_questions: Of the whole chat; one that nobody answers counts.
    """

    turns: tuple[Turn, ...]
    question: str
    response: str
    thought: str
    num_questions: int

    @property
    def asked_before(self) -> tuple[str, ...]:
        """Earlier questions."""
        return tuple(turn.content for turn in self.turns if turn.role == USER)


def read_chat(columns: Columns) -> tuple[Chat | None, InputError | None]:
    """The chat of a row, or why a column of turns that the user did not name is none; nothing where there is none.

    Raises:
        InputError: The column that the user named, or the one called "prompt", holds no chat.
    """
    name = columns.find("messages", CHAT_COLUMNS, of=turns_of)
    if name is not None:
        try:
            return chat_of(turns_of(columns.value(name)), f'{columns.where}: key "{name}"'), None
        except InputError as error:
            if columns.fields.messages is not None:
                raise
            return None, error
    prompt, completion = columns.row.get("prompt"), columns.row.get("completion")
    if isinstance(prompt, list):  # the conversational form of TRL and verl
        return chat_of(turns_of(prompt) + turns_of(completion), f'{columns.where}: key "prompt"'), None
    return None, None


def earlier_turns(columns: Columns, chat: Chat | None) -> tuple[Turn, ...]:
    """The turns before the question: those of the chat, or of a column that `prepare` writes.

    A system's turn may stand in a column of its own, as ShareGPT has it.

    Args:
        columns: The row.
        chat: The chat that the row's response is in, or None.

    Raises:
        InputError: The column holds turns that cannot be before a question.
    """
    if chat is not None:
        turns = chat.turns
    elif given := turns_of(columns.row.get(EARLIER_TURNS)):
        last = [{"role": USER, "content": "?"}, {"role": ASSISTANT, "content": "!"}]
        turns = chat_of([*given, *last], f'{columns.where}: key "{EARLIER_TURNS}"').turns
    else:
        turns = ()
    text = columns.row.get("system")
    if isinstance(text, str) and text.strip() and not any(turn.role == SYSTEM for turn in turns):
        return Turn(role=SYSTEM, content=text.strip()), *turns
    return turns


def chat_of(turns: Sequence[Mapping[str, Any]], where: str) -> Chat:
    """The last exchange of a chat; what an assistant says before anybody asks, and what nobody answers, is left out.

    Raises:
        InputError: It has no user's turn, turns of another role or out of order, or a turn that is no text.
    """
    named = [(_role(turn, where), turn) for turn in turns]
    if not any(role == USER for role, _ in named):
        raise InputError(f"{where} holds no turn of a user (role/content or from/value)")
    last = max((place for place, (role, _) in enumerate(named) if role == ASSISTANT), default=len(named))
    asked = [place for place, (role, _) in enumerate(named[:last]) if role == USER]
    if not asked:  # an assistant speaks, and then somebody asks: nobody answers
        last, asked = len(named), [place for place, (role, _) in enumerate(named) if role == USER]
    before = [turn for turn in _in_order(named[:last], where) if turn.content or turn.role != SYSTEM]
    answer = named[last][1] if last < len(named) else {}
    thought = next((answer[key] for key in THOUGHT_COLUMNS if isinstance(answer.get(key), str)), "")
    thought = thought or _texts(answer.get("content"), _THOUGHT_PARTS)
    if before[-1].role != USER:
        raise InputError(f"{where} holds two turns of an assistant in a row")
    num_questions = sum(role == USER for role, _ in groupby(role for role, _ in named))
    return Chat(tuple(before[:-1]), before[-1].content, _content(answer, where).strip(), thought.strip(), num_questions)


def _role(turn: Mapping[str, Any], where: str) -> str:
    named = str(turn.get("role") or turn.get("from") or "").lower()
    if named not in _ROLES:
        raise InputError(f'{where} holds a turn of "{named}"; known are {", ".join(_ROLES)}')
    return _ROLES[named]


def _in_order(named: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> list[Turn]:
    """The turns as chat templates take them: a system's first, then a user and an assistant by turns.

    Raises:
        InputError: They do not come so.
    """
    turns = [
        Turn(role=role, content="\n\n".join(_said(role, turn, where) for _, turn in group).strip())
        for role, group in groupby(named, key=lambda one: one[0])
    ]
    system = turns[:1] if turns[0].role == SYSTEM else []
    rest = turns[len(system) :]
    if any(turn.role == SYSTEM for turn in rest):
        raise InputError(f"{where} holds a turn of a system behind others")
    return [*system, *(rest[1:] if rest[0].role == ASSISTANT else rest)]


def _said(role: str, turn: Mapping[str, Any], where: str) -> str:
    """What a turn says; of an assistant's without the thought."""
    text = _content(turn, where)
    cut = cut_response(text) if role == ASSISTANT and looks_thought(text) else None
    return text if cut is None or cut.defect is not None else cut.solution


def turns_of(value: Any) -> list[Mapping[str, Any]]:
    """The turns of a chat, also of one that is stored as JSON text; what is none is left out."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json_value(value)
        except (ValueError, RecursionError):
            return []
    return [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list | tuple) else []


def _content(turn: Mapping[str, Any], where: str) -> str:
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
