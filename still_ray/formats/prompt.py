"""The user turn around a question, and the chat template around the user turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from still_ray.formats.control import tokens_of
from still_ray.formats.response import render_response
from still_ray.formats.tokenizer import generation_eos_ids, vocabulary_size
from still_ray.location import Location, location
from still_ray.types import InputError

PLACEHOLDER: Final = "{question}"
TEMPLATE_FILE: Final = "prompt_template.txt"

DEFAULT_TEMPLATE: Final = r"""Solve the problem at the end in two parts.

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

_STAND_IN: Final = "qzvxkjwq"
"""Stands where a question goes, in order to find the place; a word of no language."""
_BYTE_ORDER_MARK: Final = "\ufeff"
_PROBE_QUESTION: Final = "What is 2+2?"
_PROBE_RESPONSE: Final = render_response("2+1=3.\n\nWait, that is one step. 3+1=4.", r"The answer is \boxed{4}.")


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """A text around the question.

    Attributes:
        text: Holds "{question}" where the question goes; without it, the question follows after a blank line.
    """

    text: str = DEFAULT_TEMPLATE

    def render(self, question: str) -> str:
        """The user turn for one question; braces other than the placeholder mean themselves."""
        if PLACEHOLDER in self.text:
            return self.text.replace(PLACEHOLDER, question)
        return f"{self.text.rstrip()}\n\n{question}"


def load_template(path: str | Location | None) -> PromptTemplate:
    """Reads a prompt template; line breaks at the end of the file do not belong to it.

    Args:
        path: A text file, also a URI, or None for the default of this module.

    Raises:
        InputError: The file is missing, not UTF-8 or blank.
    """
    if path is None:
        return PromptTemplate()
    text = _read_text(location(path)).rstrip("\r\n")
    if not text.strip():
        raise InputError(f"{path}: the prompt template is empty, a text with or without {PLACEHOLDER} is expected")
    return PromptTemplate(text=text)


def _read_text(path: Location) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: the prompt template cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the prompt template is not UTF-8: {error.reason} at byte {error.start}") from error


def write_template_beside_model(directory: Path, template: PromptTemplate) -> None:
    """Puts the template into a checkpoint, so that the prompt it was trained with travels with it."""
    (directory / TEMPLATE_FILE).write_text(template.text, encoding="utf-8")


class Tokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    name_or_path: str
    chat_template: Any
    eos_token: Any
    eos_token_id: Any
    all_special_ids: Sequence[int]
    all_special_tokens: Sequence[str]
    added_tokens_decoder: Mapping[int, Any]

    def apply_chat_template(self, conversation: Sequence[Mapping[str, str]], **options: Any) -> Any:
        """Renders a conversation as text or, with tokenize, as token ids."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of a text."""

    def convert_ids_to_tokens(self, ids: int) -> Any:
        """The token of an id."""


@dataclass(frozen=True, kw_only=True)
class EndOfTurn:
    """What ends a response: the token that the chat template puts after it, which the model's eos need not be.

    Attributes:
        token: The chat template's, e.g. "<|im_end|>"; eos where the template puts none.
        token_id: Its id: training rows end in it, sampling stops at it.
        tokenizer_eos_id: The tokenizer's eos; None: it has none.
        generation_eos_ids: Eos of generation_config.json, or of config.json where that one names none.
    """

    token: str
    token_id: int
    tokenizer_eos_id: int | None
    generation_eos_ids: tuple[int, ...]

    @property
    def model_eos_ids(self) -> tuple[int, ...]:
        """The model's own, at which engines stop by themselves."""
        own = (*self.generation_eos_ids, self.tokenizer_eos_id)
        return tuple(dict.fromkeys(token_id for token_id in own if token_id is not None))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Everything that ends a response: the model's own eos, then the end of the turn."""
        return tuple(dict.fromkeys((*self.model_eos_ids, self.token_id)))

    @property
    def differs(self) -> bool:
        """Whether the tokenizer or the model's configuration ends a response with another token than the template."""
        return self.tokenizer_eos_id != self.token_id or self.token_id not in self.generation_eos_ids


def end_of_turn(tokenizer: Tokenizer, model: str) -> EndOfTurn:
    """What ends a response of a model.

    Args:
        tokenizer: The model's.
        model: Its directory or hub id.

    Raises:
        InputError: Neither the chat template nor eos says how a turn ends, an eos_token_id is no token id, or the model
            has no embedding for the token.
    """
    token_id, eos = _end_token_id(tokenizer), tokenizer.eos_token_id
    token = str(tokenizer.convert_ids_to_tokens(token_id))
    if token_id >= (vocabulary_size(model) or token_id + 1):
        raise InputError(
            f"{model}: a turn ends with {token} ({token_id}), for which the model has no embedding: vocab_size of "
            f"config.json is {vocabulary_size(model)}; resize the model to its tokenizer"
        )
    return EndOfTurn(
        token=token,
        token_id=token_id,
        tokenizer_eos_id=eos if isinstance(eos, int) else None,
        generation_eos_ids=generation_eos_ids(model),
    )


class ChatRenderer:
    """Turns questions and responses into token ids, the same for sampling and for training."""

    def __init__(self, tokenizer: Tokenizer, template: PromptTemplate, *, day: str | None = None) -> None:
        """Checks the chat template.

        Args:
            tokenizer: The model's.
            template: The user turn.
            day: What a chat template that asks for the date is told, YYYY-MM-DD; None: today.

        Raises:
            InputError: See `check_chat_template`.
        """
        check_chat_template(tokenizer)
        self._tokenizer = tokenizer
        self._template = template
        self._calendar = Calendar(day)
        self._end_token_id = _end_token_id(tokenizer)
        self._control, self._control_ids = tokens_of(tokenizer, self._end_token_id)
        self._before, _, self._after = self.prompt_text(_STAND_IN).partition(_STAND_IN)
        self._num_in_prompt = self._num_control(self._encoded(self._before) + self._encoded(self._after))

    @property
    def end_token_id(self) -> int:
        """The token that the chat template puts right after the assistant's text, at which sampling stops."""
        return self._end_token_id

    def prompt_text(self, question: str) -> str:
        """The rendered user turn with the start of the assistant's turn."""
        question = self.without_end(question)
        return _rendered(self._tokenizer, self._template.render(question), calendar=self._calendar)

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of `prompt_text`; a control token in the question is encoded as the text that it is."""
        question = self.without_end(question)
        turns, options = _user_turn(self._template.render(question)), {"tokenize": True, "return_dict": False}
        ids = list(_applied(self._tokenizer, turns, self._calendar, add_generation_prompt=True, **options))
        if self._num_control(ids) == self._num_in_prompt:
            return ids
        return [*self._encoded(self._before), *self._as_text(question), *self._encoded(self._after)]

    def completion_ids(self, text: str) -> list[int]:
        """Token ids of a response and the end of its turn: what a model should answer to `prompt_ids`.

        The end of the turn is the only control token; one that the text holds is encoded as text.
        """
        return [*self._as_text(text), self._end_token_id]

    def thought_tokens(self, thought: str) -> int:
        """How many tokens a thought's text has."""
        return len(self._encoded(thought))

    def held_control(self, text: str) -> str:
        """The first control token of the tokenizer that stands in a text; "" if there is none."""
        return self._control.held(text)

    def without_end(self, text: str) -> str:
        """A text without the control tokens that end it."""
        return self._control.stripped(text)

    def _encoded(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _num_control(self, ids: Sequence[int]) -> int:
        return sum(token_id in self._control_ids for token_id in ids)

    def _as_text(self, text: str) -> list[int]:
        """Token ids of a text without any control token: it is cut within each, so that none is seen."""
        ids = self._encoded(text)
        if len(text) < 2 or not self._num_control(ids):  # noqa: PLR2004 - one character cannot be cut
            return ids
        within = [match.start() + 1 for match in self._control.pattern.finditer(text)]
        cuts = within or [len(text) // 2]  # a tokenizer that normalizes sees tokens that are not spelled so
        pieces = (text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))
        return [token_id for piece in pieces for token_id in self._as_text(piece)]


def check_chat_template(tokenizer: Tokenizer) -> None:
    """Makes sure that a response goes through the chat template unchanged.

    Raises:
        InputError: There is no chat template or none by default, it is no template or refuses a conversation, or the
            rendered conversation is not the rendered prompt followed by the whole response (some templates drop a
            thought or put their own in its place).
    """
    model = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise InputError(
            f"{model}: the tokenizer has no chat template; use an instruct model or add chat_template.jinja beside it"
        )
    if isinstance(tokenizer.chat_template, Mapping) and "default" not in tokenizer.chat_template:
        names = ", ".join(sorted(tokenizer.chat_template))
        raise InputError(
            f"{model}: the tokenizer has chat templates named {names} and none that is the default; call the one that "
            'is meant "default", or put it beside the model as chat_template.jinja'
        )
    prompt = _rendered(tokenizer, _PROBE_QUESTION)
    if prompt.startswith(_BYTE_ORDER_MARK):
        raise InputError(f"{_template_place(tokenizer)}: begins with a byte-order mark; save it as UTF-8 without one")
    conversation = _rendered(tokenizer, _PROBE_QUESTION, _PROBE_RESPONSE)
    if not conversation.startswith(prompt + _PROBE_RESPONSE):
        what = (
            "drops or changes the thought" if _PROBE_RESPONSE not in conversation else "adds text before the response"
        )
        raise InputError(
            f"{model}: the chat template {what}; give the model a chat_template.jinja that renders the assistant's "
            "content unchanged right after the generation prompt"
        )


def _end_token_id(tokenizer: Tokenizer) -> int:
    """The control token right after the assistant's text, or eos where the template puts none.

    Text that a template puts there, e.g. "###", is no end: its first token also begins other words.
    """
    prompt = _rendered(tokenizer, _PROBE_QUESTION)
    conversation = _rendered(tokenizer, _PROBE_QUESTION, _PROBE_RESPONSE)
    rest = conversation[len(prompt) + len(_PROBE_RESPONSE) :].lstrip()
    first = tokenizer.encode(rest, add_special_tokens=False)[0] if rest else None
    if first is not None and (first in tokenizer.all_special_ids or first in tokenizer.added_tokens_decoder):
        return first
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token_id
    raise InputError(f"{tokenizer.name_or_path}: neither the chat template nor eos_token says how a turn ends")


def _user_turn(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


class Calendar:
    """Answers a chat template that asks for the date, with one day and its midnight whenever it asks.

    Attributes:
        asked: Whether any did.
    """

    def __init__(self, day: str | None = None) -> None:
        """Args: day: YYYY-MM-DD; None: today."""
        self._day = datetime.fromisoformat(day or date.today().isoformat())
        self.asked = False

    def __call__(self, form: str) -> str:
        """The date in a form of `strftime`; in place of transformers' own `strftime_now`, which reads the clock."""
        self.asked = True
        return self._day.strftime(form)


def asks_date(tokenizer: Tokenizer) -> bool:
    """Whether a chat template writes the date into a conversation.

    Raises:
        InputError: See `check_chat_template`.
    """
    calendar = Calendar()
    _rendered(tokenizer, _PROBE_QUESTION, calendar=calendar)
    _rendered(tokenizer, _PROBE_QUESTION, _PROBE_RESPONSE, calendar=calendar)
    return calendar.asked


def _rendered(
    tokenizer: Tokenizer, user: str, assistant: str | None = None, *, calendar: Calendar | None = None
) -> str:
    turns = _user_turn(user)
    if assistant is not None:
        turns.append({"role": "assistant", "content": assistant})
    options = {"tokenize": False, "add_generation_prompt": assistant is None}
    return str(_applied(tokenizer, turns, calendar or Calendar(), **options))


def _applied(tokenizer: Tokenizer, turns: Sequence[Mapping[str, str]], calendar: Calendar, **options: Any) -> Any:
    """A conversation through the chat template.

    Raises:
        InputError: The template refuses it, or is none.
    """
    try:
        return tokenizer.apply_chat_template(turns, strftime_now=calendar, **options)
    except Exception as error:  # named policy: a template is a program of the model's, which may raise anything
        why, line = " ".join(str(error).split()) or type(error).__name__, getattr(error, "lineno", None)
        what = f"is no Jinja template (line {line}): {why}" if line else f"refuses {_named_turns(turns)}: {why}"
        raise InputError(
            f"{_template_place(tokenizer)}: the chat template {what}; give the model a chat_template.jinja that "
            "renders a user's turn and the assistant's answer"
        ) from error


def _named_turns(turns: Sequence[Mapping[str, str]]) -> str:
    return "a conversation of " + " and ".join(f"one {turn['role']}'s turn" for turn in turns)


def _template_place(tokenizer: Tokenizer) -> str:
    """The file that the chat template is in, as far as it can be told."""
    folder = Path(tokenizer.name_or_path)
    if (folder / "chat_template.jinja").is_file():
        return str(folder / "chat_template.jinja")
    if (folder / "tokenizer_config.json").is_file():
        return f'{folder / "tokenizer_config.json"}: key "chat_template"'
    return tokenizer.name_or_path
