"""A fake sampler replica: the real one's methods around a sampler without a model; its tokens are bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from still_ray.actors.monitoring import metrics
from still_ray.actors.sampling.replica import ReplicaSettings, SamplerReplica
from still_ray.formats.prompt import PromptTemplate, load_template
from still_ray.sampler.fake import FakeSampler, FakeSkill, table_respond


@dataclass(frozen=True, kw_only=True)
class FakeReplicaSettings(ReplicaSettings):
    """What a fake replica is built from.

    Attributes:
        answers: Reference answer by question.
        skill: How often it is right.
        latency_s: Seconds that a response takes.
    """

    answers: Mapping[str, str]
    skill: FakeSkill
    latency_s: float


class FakeReplica(SamplerReplica):
    """A `SamplerReplica` without an engine and a tokenizer; its process loads neither torch nor vLLM."""

    def __init__(self, settings: FakeReplicaSettings) -> None:
        """Ready at once; the base class would load a model."""
        self._settings = settings.engine
        self._checkpoint = settings.engine.model_path
        self._renderer = ByteRenderer(load_template(settings.prompt.template))  # type: ignore[assignment]
        table = {tuple(self._renderer.prompt_ids(asked)): answer for asked, answer in settings.answers.items()}
        self._sampler = FakeSampler(
            name=settings.engine.name,
            respond=table_respond(table, settings.skill),
            latency_s=settings.latency_s,
            policy_version=settings.engine.policy_version,
        )
        self._updating = asyncio.Lock()
        self._metrics = metrics.MetricsRecorder(settings.run, replica=settings.engine.name)


class ByteRenderer:
    """Stands in for `still_ray.formats.prompt.ChatRenderer`: the recipe's prompt without a chat template, as bytes."""

    def __init__(self, template: PromptTemplate) -> None:
        """Remembers the template."""
        self._template = template

    def prompt_ids(self, question: str) -> list[int]:
        """The bytes of the prompt."""
        return list(self._template.render(question).encode())

    def thought_tokens(self, thought: str) -> int:
        """How many bytes a thought has."""
        return len(thought.encode())

    def held_control(self, text: str) -> str:
        """None: bytes have no control tokens."""
        return ""
