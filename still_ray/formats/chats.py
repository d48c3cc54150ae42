"""Chats: the turns of a row in `messages` (role, content) or `conversations` (from, value)."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from still_ray.formats.columns import CHAT_COLUMNS, THOUGHT_COLUMNS, Columns
from still_ray.types import InputError
from still_ray.values import json_value

_USERS: Final = frozenset({"user", "human"})
_ASSISTANTS: Final = frozenset({"assistant", "gpt", "model", "bot"})
_THOUGHT_PARTS: Final = frozenset({"thinking", "thought", "reasoning"})
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})


class Chat(NamedTuple):
    """The first exchange of a chat.

    Attributes:
        question: What the user asks, with the turns before the answer.
        response: What is answered; "" if nobody does.
        thought: The thought that stands beside the response; "" if there is none.
        num_exchanges: Turns of the user or of the assistant, whichever are more; 0 if nobody answers.
    """

    question: str
    response: str
    thought: str
    num_exchanges: int


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


def chat_of(turns: list[Mapping[str, Any]], where: str) -> Chat:
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
        return Chat(_content(turns[asked], where), "", "", 0)
    answer = turns[answered]
    thought = next((answer[key] for key in THOUGHT_COLUMNS if isinstance(answer.get(key), str)), "")
    thought = thought or _texts(answer.get("content"), _THOUGHT_PARTS)
    num_exchanges = max(sum(role in _USERS for role in roles), sum(role in _ASSISTANTS for role in roles))
    question = "\n\n".join(_content(turn, where) for turn in turns[asked:answered])
    return Chat(question, _content(answer, where).strip(), thought.strip(), num_exchanges)


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
