"""The settings of `still-ray distill`: what is asked of a teacher, how fast, how much, and what is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from still_ray.config.loading import load_section
from still_ray.config.names import OwnVerifiers
from still_ray.config.schema import PositiveFloat, PositiveInt, Section

MARKERS_PROMPT: Final = "builtin:markers"
"""In `prompt`: the default template of still_ray.formats, which asks for the four markers."""

OWN_KEYS: Final = ("model", "messages", "n", "stream", "seed", "temperature", "top_p", "max_tokens")
"""Keys of a request that have a setting of their own, so that `extra_body` may not give them."""


class DistillConfig(Section):
    """What is asked of a teacher, how fast, how much, and what is kept."""

    samples_per_question: PositiveInt = Field(
        default=4, description="Answers of one question; may grow when a folder is resumed. Source: ours."
    )
    seed: Annotated[int, Field(ge=0)] = Field(
        default=42, description="Every request's seed follows from this, its question and its sample. Source: ours."
    )
    send_seed: bool = Field(
        default=True, description="Send the seed; off for an endpoint that refuses the key. Source: ours."
    )
    prompt: str | None = Field(
        default=None,
        description="Path of a text with {question} in it, or to which the question is appended; builtin:markers for a "
        "teacher that does not return its reasoning apart; null: the question and a line that asks for a box. "
        "Source: ours.",
    )
    system_prompt: str | None = Field(default=None, description="A system message; null: none. Source: ours.")
    temperature: Annotated[float, Field(ge=0)] | None = Field(
        default=0.6, description="Sampling temperature; null: not sent. Source: ours (what DeepSeek advises for R1)."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=0.95, description="Nucleus mass; null: not sent. Source: ours (what DeepSeek advises for R1)."
    )
    max_tokens: PositiveInt = Field(
        default=20_000, description="Longest answer, thought included, tokens. Source: paper (evaluation max_tokens)."
    )
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="What the endpoint calls that limit. Source: ours (vLLM takes both)."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further keys of every request, e.g. chat_template_kwargs; no secrets, it is written down. "
        "Source: ours.",
    )
    concurrency: PositiveInt = Field(default=16, description="Requests in flight at a time. Source: ours.")
    requests_per_minute: PositiveFloat | None = Field(
        default=None, description="Attempts started in a minute, evenly spaced; null: no limit. Source: ours."
    )
    tokens_per_minute: PositiveFloat | None = Field(
        default=None,
        description="Prompt and answer tokens of a minute; an attempt weighs its longest answer until it ends. "
        "null: no limit. Source: ours.",
    )
    max_requests: PositiveInt | None = Field(
        default=None,
        description="Most attempts over the whole life of the folder, failed ones included; null: no limit. "
        "Source: ours.",
    )
    max_total_tokens: PositiveInt | None = Field(
        default=None,
        description="Most prompt and answer tokens over the whole life of the folder; an attempt whose end nobody saw "
        "counts as the longest answer. null: no limit. Source: ours.",
    )
    max_attempts: PositiveInt = Field(default=10, description="Attempts at one sample in one go. Source: ours.")
    first_backoff_s: PositiveFloat = Field(
        default=1.0, description="Longest wait before the second attempt, seconds; doubles each time. Source: ours."
    )
    max_backoff_s: PositiveFloat = Field(
        default=60.0, description="Longest wait between two attempts, seconds. Source: ours."
    )
    max_retry_after_s: PositiveFloat = Field(
        default=600.0,
        description="Longest wait that the endpoint may ask for, seconds; beyond it the run stops. Source: ours.",
    )
    timeout_s: PositiveFloat = Field(default=1800.0, description="Time for one attempt, seconds. Source: ours.")
    max_given_up: Annotated[int, Field(ge=0)] = Field(
        default=10, description="Samples given up after max_attempts before the run stops. Source: ours."
    )
    verify: bool = Field(default=True, description="Judge answers whose question has a reference. Source: ours.")
    verifier_processes: PositiveInt = Field(default=1, description="Answers judged at a time. Source: ours.")
    verifier_timeout_s: PositiveFloat = Field(default=5.0, description="Time for one verdict, seconds. Source: ours.")
    verifier_custom: OwnVerifiers = Field(
        default_factory=dict,
        description="Verifiers of your own by domain, as in a recipe's verifier.custom. Source: ours.",
    )
    keep: Literal["correct", "correct_or_unverified", "all"] = Field(
        default="correct",
        description="Which well-formed, complete answers become demonstrations: correct ones; also those of questions "
        "without a reference; or all, whatever the verdict. Source: paper (correct answers), else ours.",
    )

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.keep == "correct" and not self.verify:
            raise ValueError("keep: correct needs verify: true; or set keep to correct_or_unverified or all")
        taken = [key for key in (*OWN_KEYS, "max_completion_tokens") if key in self.extra_body]
        if taken:
            raise ValueError(f"extra_body may not hold {taken[0]}, which has a setting of its own")
        if not _is_json(self.extra_body):
            raise ValueError("extra_body must hold JSON values only: no dates, no .nan or .inf, keys that are texts")
        return self


def _is_json(value: Any) -> bool:
    """Whether a value can be sent, and comes back from a file as it was."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return bool(json.loads(text) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def load_distill_config(path: Path | None, overrides: Sequence[str] = ()) -> DistillConfig:
    """The settings of a YAML file, or the defaults, with overrides.

    Args:
        path: YAML file; None: defaults.
        overrides: "key=value" texts, the value read as YAML.

    Returns:
        The settings; `prompt` is absolute, from the file's folder, or from the working directory in an override.

    Raises:
        InputError: The file, a key or a value is wrong; one line.
    """
    return load_section(DistillConfig, path, overrides, resolve=_absolute_prompt)


def _absolute_prompt(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    prompt = raw.get("prompt")
    if not isinstance(prompt, str) or prompt.startswith("builtin:"):
        return raw
    return {**raw, "prompt": os.path.normpath(folder.resolve() / Path(prompt).expanduser())}
