"""What is to be asked: every sample, its prompt, its seed and the most that it can cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from still_ray.algo.seeds import derived_seed
from still_ray.config.distill import MARKERS_PROMPT, DistillConfig
from still_ray.distill.journal import Ledger, SampleKey
from still_ray.distill.questions import Question, QuestionFile
from still_ray.formats.prompt import PLACEHOLDER, PromptTemplate, load_template
from still_ray.types import InputError

PLAIN_PROMPT: Final = f"{PLACEHOLDER}\n\nEnd with the final answer inside \\boxed{{}}."
"""The user turn for a teacher that reasons of its own accord."""

CHAT_TEMPLATE_TOKENS: Final = 256
"""Room in a reservation for what the endpoint's chat template adds to a prompt."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be asked.

    Attributes:
        config: The settings.
        source: The questions.
        model: The teacher's name at the endpoint.
        endpoint: What provenance says of where answers came from.
        prompt: The user turn around a question.
    """

    config: DistillConfig
    source: QuestionFile
    model: str
    endpoint: str
    prompt: PromptTemplate

    @cached_property
    def questions(self) -> Mapping[str, Question]:
        """By id, in the file's order."""
        return {question.id: question for question in self.source.questions}

    @property
    def num_samples(self) -> int:
        """Answers wanted in all."""
        return len(self.source.questions) * self.config.samples_per_question

    def samples(self) -> Iterator[SampleKey]:
        """Every sample wanted: each question once before any is asked again, so that a small budget goes round."""
        for index in range(self.config.samples_per_question):
            for question in self.source.questions:
                yield SampleKey(question.id, index)

    def user_turn(self, key: SampleKey) -> str:
        """What the teacher reads."""
        return self.prompt.render(self.questions[key.question_id].text)

    def seed(self, key: SampleKey) -> int:
        """The seed of a sample; every attempt at it is the same request."""
        return derived_seed(self.config.seed, "distill", key.question_id, key.sample_index)

    def reservation(self, prompt: str) -> int:
        """The most tokens that a request can cost: no tokenizer makes more tokens of a text than it has bytes."""
        system = self.config.system_prompt or ""
        return self.config.max_tokens + len(f"{system}{prompt}".encode()) + CHAT_TEMPLATE_TOKENS

    def asks(self) -> dict[str, Any]:
        """Everything that decides what is asked, and so may not change within a folder."""
        config = self.config
        return {
            "--model": self.model,
            "--questions": self.source.digest,
            "prompt": self.prompt.text,
            "system_prompt": config.system_prompt,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.max_tokens,
            "seed": config.seed,
            "send_seed": config.send_seed,
            "extra_body": config.extra_body,
        }


def load_prompt(prompt: str | None) -> PromptTemplate:
    """The template that the setting `prompt` names.

    Raises:
        InputError: The file is missing, not UTF-8 or blank.
    """
    if prompt is None:
        return PromptTemplate(text=PLAIN_PROMPT)
    return load_template(None if prompt == MARKERS_PROMPT else prompt)


def check_same_task(task: Task, ledger: Ledger, folder: str) -> None:
    """A folder belongs to one set of questions, one teacher and one way to ask; address and limits may change.

    Raises:
        InputError: It holds answers to something else; names the first key that differs.
    """
    if not ledger.answers or ledger.header is None:
        return
    asked = ledger.header.asks
    for key, value in task.asks().items():
        if asked.get(key) != value:
            before = f" (was {_short(asked.get(key))}, is {_short(value)})" if key != "--questions" else ""
            raise InputError(f"{folder}: holds answers to other requests: {key} differs{before}; give another --output")
    stored = 1 + max(key.sample_index for key in ledger.answers)
    if stored > task.config.samples_per_question:
        raise InputError(
            f"{folder}: holds {stored} samples of a question, samples_per_question is "
            f"{task.config.samples_per_question}: it may grow, not shrink"
        )


def check_budget(task: Task, ledger: Ledger) -> None:
    """A budget must fit one request, or nothing could ever be asked.

    Raises:
        InputError: `max_total_tokens` is less than what the first request reserves, and there is no answer yet.
    """
    limit, first = task.config.max_total_tokens, next(task.samples(), None)
    if limit is None or first is None or ledger.answers:
        return
    reserved = task.reservation(task.user_turn(first))
    if reserved > limit:
        raise InputError(
            f"max_total_tokens is {limit:,}, but one request reserves {reserved:,}: max_tokens "
            f"({task.config.max_tokens:,}), the bytes of its prompt and {CHAT_TEMPLATE_TOKENS}; raise the one or lower "
            "the other"
        )


def _short(value: Any, most: int = 60) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[:most]}..."
