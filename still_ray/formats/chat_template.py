"""A model's chat template with what a recipe tells it: what surrounds a prompt, and what ends a turn.

Training and sampling both put a response's token ids behind the ids of the rendered prompt, so a template need not
render an answer as it was: one that drops thoughts from earlier turns is as good as any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

from still_ray.formats.responses.base import Layout, TemplateFacts
from still_ray.formats.tokenizer import generation_eos_ids, vocabulary_size
from still_ray.types import InputError

CHAT_TEMPLATE_FILE: Final = "chat_template.jinja"
"""Beside a model; transformers and vLLM read it in preference to the one within tokenizer_config.json."""
STAND_IN: Final = "qzvxkjwq"
"""Stands where a question or an answer goes, in order to find the place; a word of no language."""
_THOUGHT: Final = "wqjkxvzq"
"""Likewise for a thought."""
_BYTE_ORDER_MARK: Final = "\ufeff"
_THOUGHT_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")
"""Where templates look for the thought of an assistant's turn."""

Message = Mapping[str, str]
"""A turn as templates take it: role, content, and what else they read."""


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


class ChatTemplate:
    """Renders conversations for one model."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        system: str | None = None,
        variables: Mapping[str, Any] | None = None,
        day: str | None = None,
    ) -> None:
        """Checks the template.

        Args:
            tokenizer: The model's.
            system: Content of a system's turn in front of every conversation that brings none; None: none.
            variables: Further variables of the template, e.g. {"enable_thinking": False}.
            day: What a template that asks for the date is told, YYYY-MM-DD; None: today.

        Raises:
            InputError: There is no chat template or none by default, it is no template or refuses a conversation, it
                does not read a variable, or a prompt does not show the question.
        """
        self.tokenizer = tokenizer
        self._system = system
        self._variables = dict(variables or {})
        self._calendar = Calendar(day)
        self._check()

    @property
    def model(self) -> str:
        """What the tokenizer was loaded from."""
        return self.tokenizer.name_or_path

    @property
    def source(self) -> str:
        """The template's text."""
        templates = self.tokenizer.chat_template
        return str(templates["default"] if isinstance(templates, Mapping) else templates)

    def prompt_text(self, turns: Sequence[Message]) -> str:
        """The turns with the generation prompt: what begins the assistant's turn."""
        return str(self._applied(turns, tokenize=False, add_generation_prompt=True))

    def prompt_ids(self, turns: Sequence[Message]) -> list[int]:
        """Token ids of `prompt_text`."""
        return list(self._applied(turns, tokenize=True, return_dict=False, add_generation_prompt=True))

    def conversation(self, turns: Sequence[Message]) -> str:
        """The turns alone, the last of which may be the assistant's."""
        return str(self._applied(turns, tokenize=False, add_generation_prompt=False))

    @cached_property
    def asks_date(self) -> bool:
        """Whether it writes the date into a conversation."""
        self._calendar.asked = False
        self.prompt_text(user_turn(STAND_IN))
        self.conversation(_exchange(content=STAND_IN))
        return self._calendar.asked

    @cached_property
    def end_token_id(self) -> int:
        """The control token right after the assistant's text, or eos where the template puts none.

        Text that a template puts there, e.g. "###", is no end: its first token also begins other words.

        Raises:
            InputError: Neither says how a turn ends.
        """
        tokenizer = self.tokenizer
        rest = self.conversation(_exchange(content=STAND_IN)).rpartition(STAND_IN)[2].lstrip()
        first = tokenizer.encode(rest, add_special_tokens=False)[0] if rest else None
        if first is not None and (first in tokenizer.all_special_ids or first in tokenizer.added_tokens_decoder):
            return first
        if isinstance(tokenizer.eos_token_id, int):
            return tokenizer.eos_token_id
        raise InputError(f"{self.model}: neither the chat template nor eos_token says how a turn ends")

    @cached_property
    def facts(self) -> TemplateFacts:
        """What it tells of the model's responses; its escapes for line breaks are read."""
        return TemplateFacts(
            generation_prompt=self.prompt_text(user_turn(STAND_IN)).rpartition(STAND_IN)[2],
            layout=self._layout(),
            source=self.source.replace("\\n", "\n"),
            thinks=bool(self._variables.get("enable_thinking")),
        )

    def _layout(self) -> Layout | None:
        """See `TemplateFacts.layout`."""
        prompt = self.prompt_text(user_turn(STAND_IN))
        for name in _THOUGHT_FIELDS:
            shown = self.conversation(_exchange(content=STAND_IN, **{name: _THOUGHT}))
            before, found, rest = shown.removeprefix(prompt).partition(_THOUGHT)
            if shown.startswith(prompt) and found and STAND_IN in rest:
                return Layout(before=before, between=rest.partition(STAND_IN)[0], alone=self._alone(prompt))
        return None

    def _alone(self, prompt: str) -> str:
        """What it puts in front of an answer without a thought."""
        shown = self.conversation(_exchange(content=STAND_IN))
        return shown.removeprefix(prompt).partition(STAND_IN)[0] if shown.startswith(prompt) else ""

    def _check(self) -> None:
        templates = self.tokenizer.chat_template
        if not templates:
            raise InputError(
                f"{self.model}: the tokenizer has no chat template; use an instruct model, give the recipe a "
                f"prompt.chat_template, or add {CHAT_TEMPLATE_FILE} beside the model"
            )
        if isinstance(templates, Mapping) and "default" not in templates:
            names = ", ".join(sorted(templates))
            raise InputError(
                f"{self.model}: the tokenizer has chat templates named {names} and none that is the default; call the "
                f'one that is meant "default", or put it beside the model as {CHAT_TEMPLATE_FILE}'
            )
        for name in self._variables:
            if not re.search(rf"\b{re.escape(name)}\b", self.source):
                raise InputError(
                    f"prompt.chat_template_kwargs: the chat template of {self.model} does not read {name}; take it out"
                )
        prompt = self.prompt_text(user_turn(STAND_IN))
        if prompt.startswith(_BYTE_ORDER_MARK):
            raise InputError(f"{self._place}: begins with a byte-order mark; save it as UTF-8 without one")
        if STAND_IN not in prompt:
            raise InputError(
                f"{self._place}: the chat template does not show the text of a question, as those of models for images "
                "do that want typed parts; give the recipe a prompt.chat_template that renders a user's turn of text"
            )

    def _applied(self, turns: Sequence[Message], **options: Any) -> Any:
        """A conversation through the chat template.

        Raises:
            InputError: The template refuses it, or is none.
        """
        told: Sequence[Message] = turns
        if self._system is not None and turns[0]["role"] != "system":
            told = [{"role": "system", "content": self._system}, *turns]
        try:
            return self.tokenizer.apply_chat_template(told, strftime_now=self._calendar, **self._variables, **options)
        except Exception as error:  # named policy: a template is a program of the model's, which may raise anything
            why, line = " ".join(str(error).split()) or type(error).__name__, getattr(error, "lineno", None)
            what = f"is no Jinja template (line {line}): {why}" if line else f"refuses {_named_turns(told)}: {why}"
            raise InputError(
                f"{self._place}: the chat template {what}; give the recipe a prompt.chat_template that renders a "
                "user's turn and the assistant's answer"
            ) from error

    @property
    def _place(self) -> str:
        """The file that the template is in, as far as it can be told."""
        folder = Path(self.model)
        if (folder / CHAT_TEMPLATE_FILE).is_file():
            return str(folder / CHAT_TEMPLATE_FILE)
        if (folder / "tokenizer_config.json").is_file():
            return f'{folder / "tokenizer_config.json"}: key "chat_template"'
        return self.model


def end_of_turn(chat: ChatTemplate, model: str) -> EndOfTurn:
    """What ends a response of a model.

    Args:
        chat: Its chat template.
        model: Its directory or hub id.

    Raises:
        InputError: Neither the chat template nor eos says how a turn ends, an eos_token_id is no token id, or the model
            has no embedding for the token.
    """
    token_id, eos = chat.end_token_id, chat.tokenizer.eos_token_id
    token = str(chat.tokenizer.convert_ids_to_tokens(token_id))
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


def user_turn(content: str) -> list[Message]:
    """A conversation that a user begins."""
    return [{"role": "user", "content": content}]


def _exchange(**answer: str) -> list[Message]:
    return [*user_turn(STAND_IN), {"role": "assistant", **answer}]


def _named_turns(turns: Sequence[Message]) -> str:
    return "a conversation of " + " and ".join(f"one {turn['role']}'s turn" for turn in turns)


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
