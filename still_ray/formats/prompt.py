"""The user turn around a question, and the token ids of prompts and responses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from still_ray.config import PromptConfig
from still_ray.formats.chat_template import CHAT_TEMPLATE_FILE, STAND_IN, ChatTemplate, Message, Tokenizer, user_turn
from still_ray.formats.control import ControlTokens, tokens_of
from still_ray.formats.responses.base import ResponseFormat
from still_ray.formats.responses.markers import MARKED, MARKERS_PROMPT
from still_ray.formats.responses.reading import format_of, looks_thought
from still_ray.formats.responses.table import FORMATS, DecidedFormat, decided_format, format_named
from still_ray.formats.tokenizer import json_object
from still_ray.location import Location, location
from still_ray.types import FormatDefect, InputError, ParsedResponse, Turn

PLACEHOLDER: Final = "{question}"
TEMPLATE_FILE: Final = "prompt_template.txt"
PROMPT_FILE: Final = "prompt.json"


@dataclass(frozen=True, kw_only=True)
class PromptTemplate:
    """A text around the question.

    Attributes:
        text: Holds "{question}" where the question goes; without it, the question follows after a blank line.
    """

    text: str = MARKERS_PROMPT

    def render(self, question: str) -> str:
        """The user turn for one question; braces other than the placeholder mean themselves."""
        if PLACEHOLDER in self.text:
            return self.text.replace(PLACEHOLDER, question)
        return f"{self.text.rstrip()}\n\n{question}"


def load_template(path: str | Location | None, *, default: str = MARKERS_PROMPT) -> PromptTemplate:
    """Reads a prompt template; line breaks at the end of the file do not belong to it.

    Args:
        path: A text file, also a URI, or None for the default.
        default: Text of the default, which asks for the response format in use.

    Raises:
        InputError: The file is missing, not UTF-8 or blank.
    """
    if path is None:
        return PromptTemplate(text=default)
    text = _read_text(location(path), "the prompt template").rstrip("\r\n")
    if not text.strip():
        raise InputError(f"{path}: the prompt template is empty, a text with or without {PLACEHOLDER} is expected")
    return PromptTemplate(text=text)


def _read_text(path: Location, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {what} is not UTF-8: {error.reason} at byte {error.start}") from error


def chat_template_of(tokenizer: Tokenizer, prompt: PromptConfig) -> ChatTemplate:
    """A model's chat template, or the recipe's own in its place, as a recipe uses it.

    Args:
        tokenizer: The model's; takes the recipe's own template.
        prompt: The recipe's section.

    Raises:
        InputError: See `ChatTemplate`; or the file of the recipe's own cannot be read.
    """
    if prompt.chat_template is not None:
        tokenizer.chat_template = _read_text(location(prompt.chat_template), "the chat template")
    return ChatTemplate(tokenizer, system=prompt.system, variables=prompt.chat_template_kwargs, day=prompt.date)


def format_of_prompt(chat: ChatTemplate, prompt: PromptConfig, *, default: str = MARKED.name) -> DecidedFormat:
    """The response format that a recipe asks a model for; with `auto`, what its prompt or the chat template tells.

    Args:
        chat: The model's chat template.
        prompt: The recipe's section.
        default: The format where neither tells one.

    Raises:
        InputError: There is no such format, or the prompt template cannot be read.
    """
    if prompt.format != "auto":
        format_named(prompt.format)
        return DecidedFormat(name=prompt.format, why="the recipe says so")
    if prompt.template is not None and MARKED.claims(load_template(prompt.template).text):
        return DecidedFormat(name=MARKED.name, why="the prompt template asks for its markers")
    return native_format(chat, default=default)


def native_format(chat: ChatTemplate, *, default: str) -> DecidedFormat:
    """The response format that a model has by itself, as its chat template tells; `default` where it tells none."""
    return decided_format(chat.facts, default=default)


def prompt_as_it_comes(prompt: PromptConfig, name: str) -> PromptConfig:
    """How a model is asked for a format that it has by itself: not by a template that asks for delimiters.

    Args:
        prompt: The section of a recipe, for models that it has taught a format.
        name: The model's own format.

    Raises:
        InputError: The prompt template cannot be read.
    """
    asks = prompt.template is not None and looks_thought(load_template(prompt.template).text)
    return prompt.model_copy(update={"format": name, **({"template": None} if asks else {})})


def response_format(chat: ChatTemplate, name: str) -> ResponseFormat:
    """A response format as a model writes it: behind its generation prompt, with its chat template's tags.

    Raises:
        InputError: There is no such format.
    """
    return format_named(name).fitted(chat.facts)


def write_prompt_beside_model(directory: Path, renderer: ChatRenderer, prompt: PromptConfig) -> None:
    """Puts into a checkpoint what it was trained with, so that whoever samples from it can ask it likewise.

    Args:
        directory: The checkpoint's.
        renderer: Has the user turn and the response format.
        prompt: The recipe's section.
    """
    (directory / TEMPLATE_FILE).write_text(renderer.template.text, encoding="utf-8")
    name = prompt.format if prompt.format != "auto" else renderer.form.name
    told = {"format": name, "system": prompt.system, "chat_template_kwargs": prompt.chat_template_kwargs}
    (directory / PROMPT_FILE).write_text(f"{json.dumps(told, ensure_ascii=False, indent=2)}\n", encoding="utf-8")
    if prompt.chat_template is not None:
        text = _read_text(location(prompt.chat_template), "the chat template")
        (directory / CHAT_TEMPLATE_FILE).write_text(text, encoding="utf-8")


def prompt_beside_model(directory: Location, *, names_format: bool = False) -> dict[str, Any]:
    """The values of a recipe's section `prompt` that a checkpoint brings; {} for a model that was not trained here.

    Checkpoints without `prompt.json` are of releases that knew one response format, markers.

    Args:
        directory: The model's.
        names_format: Whether the user names the response format, so that the checkpoint's does not count.

    Raises:
        InputError: `prompt.json` is no JSON object, or names a format that is not built in.
    """
    if not (directory / TEMPLATE_FILE).is_file():
        return {}
    found: dict[str, Any] = {"format": MARKED.name}
    path = directory / PROMPT_FILE
    if path.is_file():
        found = json_object(path)
        if (
            found.get("format") not in FORMATS and not names_format
        ):  # a checkpoint is data: it may not name code to be loaded
            raise InputError(
                f'{path}: key "format" is {json.dumps(found.get("format"))}, which is not built in; give the same by '
                "--set prompt.format, if you trust it"
            )
    return {**found, "template": str(directory / TEMPLATE_FILE)}


class _Around(NamedTuple):
    """A conversation without its texts.

    Attributes:
        parts: What is rendered, in order; the place of a text among the conversation's where that stands.
        num_control: Control tokens in it.
    """

    parts: tuple[str | int, ...]
    num_control: int


class ChatRenderer:
    """Turns questions and responses into token ids, the same for sampling and for training."""

    def __init__(self, chat: ChatTemplate, template: PromptTemplate, form: ResponseFormat = MARKED) -> None:
        """Learns what ends a turn.

        Args:
            chat: The model's chat template.
            template: The user turn.
            form: The response format, as the model writes it; see `response_format`.

        Raises:
            InputError: Nothing says how a turn ends.
        """
        self.form = form
        self.template = template
        self.chat = chat
        self._tokenizer = chat.tokenizer
        self._control = tokens_of(chat.tokenizer, self.end_token_id)
        self._in_responses = tokens_of(chat.tokenizer, self.end_token_id, own=form.delimiters)
        self._around: dict[tuple[tuple[str, ...], bool], _Around] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: PromptConfig) -> ChatRenderer:
        """The renderer that a recipe asks for.

        Raises:
            InputError: See `chat_template_of`, `response_format` and `load_template`.
        """
        chat = chat_template_of(tokenizer, prompt)
        form = response_format(chat, format_of_prompt(chat, prompt).name)
        return cls(chat, load_template(prompt.template, default=form.prompt), form)

    @property
    def end_token_id(self) -> int:
        """The token that the chat template puts right after the assistant's text, at which sampling stops."""
        return self.chat.end_token_id

    def prompt_text(self, question: str) -> str:
        """The rendered user turn with the start of the assistant's turn."""
        return self.chat.prompt_text(self._conversation((), [self.without_end(question)], general=False))

    def prompt_ids(self, question: str, *, turns: Sequence[Turn] = (), general: bool = False) -> list[int]:
        """Token ids of what a model is asked; a control token in a text is encoded as the text that it is.

        Args:
            question: Of the last user turn.
            turns: Those before it; one of a system takes the place of the recipe's.
            general: Whether the question stands as it is, without the prompt template.

        Raises:
            InputError: The chat template refuses such turns.
        """
        roles = tuple(turn.role for turn in turns)
        texts = [self.without_end(text) for text in (*(turn.content for turn in turns), question)]
        ids = self.chat.prompt_ids(self._conversation(roles, texts, general=general))
        around = self._surroundings(roles, general=general)
        if self._control.num_in(ids) == around.num_control:
            return ids
        parts = (
            self._as_text(texts[part], self._control) if isinstance(part, int) else self._encoded(part)
            for part in around.parts
        )
        return [token_id for part in parts for token_id in part]

    def parse(self, text: str, *, general: bool = False, truncated: bool = False) -> ParsedResponse:
        """Cuts what a model answered to `prompt_ids`: in the run's format, or to a general question in any.

        Args:
            text: The response.
            general: As it was asked.
            truncated: Whether the token limit ended it.
        """
        parsed = self.form.parse(text, truncated=truncated)
        if general and parsed.defect is FormatDefect.NO_THOUGHT:
            return format_of(text).parse(text, truncated=truncated)
        return parsed

    def _conversation(self, roles: Sequence[str], texts: Sequence[str], *, general: bool) -> list[Message]:
        before = [{"role": role, "content": text} for role, text in zip(roles, texts[:-1], strict=True)]
        return [*before, *user_turn(texts[-1] if general else self.template.render(texts[-1]))]

    def _surroundings(self, roles: tuple[str, ...], *, general: bool) -> _Around:
        """What the prompt template and the chat template put around the texts of a conversation of these turns."""
        key = roles, general
        if key not in self._around:
            names = [f"{STAND_IN}-{place}-" for place in range(len(roles) + 1)]
            shown = self.chat.prompt_text(self._conversation(roles, names, general=general))
            pieces = re.split(rf"{STAND_IN}-(\d+)-", shown)
            parts = tuple(int(piece) if place % 2 else piece for place, piece in enumerate(pieces))
            num_control = sum(self._control.num_in(self._encoded(part)) for part in parts if isinstance(part, str))
            self._around[key] = _Around(parts, num_control)
        return self._around[key]

    def completion_ids(self, text: str) -> list[int]:
        """Token ids of a response and the end of its turn: what a model should answer to `prompt_ids`.

        The end of the turn is the only control token, beside those that the response format is made of; one that the
        text holds is encoded as text.
        """
        return [*self._as_text(text, self._in_responses), self.end_token_id]

    def thought_tokens(self, thought: str) -> int:
        """How many tokens a thought's text has."""
        return len(self._encoded(thought))

    def held_control(self, text: str) -> str:
        """The first control token of the tokenizer that stands in a text; "" if there is none."""
        return self._control.held(text)

    def held_in_response(self, text: str) -> str:
        """The same of a whole response, whose format may be made of some."""
        return self._in_responses.held(text)

    def without_end(self, text: str) -> str:
        """A text without the control tokens that end it."""
        return self._control.stripped(text)

    def _encoded(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _as_text(self, text: str, control: ControlTokens) -> list[int]:
        """Token ids of a text without any of the control tokens: it is cut within each, so that none is seen."""
        ids = self._encoded(text)
        if len(text) < 2 or not control.num_in(ids):  # noqa: PLR2004 - one character cannot be cut
            return ids
        within = [match.start() + 1 for match in control.pattern.finditer(text)]
        cuts = within or [len(text) // 2]  # a tokenizer that normalizes sees tokens that are not spelled so
        pieces = (text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True))
        return [token_id for piece in pieces for token_id in self._as_text(piece, control)]
