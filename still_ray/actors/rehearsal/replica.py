"""A fake sampler replica: the real one's methods around a sampler without a model; its tokens are bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from still_ray.actors.monitoring import metrics
from still_ray.actors.rehearsal.device_log import DeviceLog
from still_ray.actors.sampling.replica import GenerationStatus, ReplicaSettings, SamplerReplica, UpdateReceipt
from still_ray.algo.rehearsal.device_time import SAMPLING, SYNC
from still_ray.formats.prompt import PromptTemplate, load_template
from still_ray.formats.responses.base import ResponseFormat
from still_ray.formats.responses.markers import MARKED
from still_ray.formats.responses.table import format_named
from still_ray.sampler.fake import FakeSampler, FakeSkill, table_respond
from still_ray.types import ParsedResponse, Rollout, RolloutRequest


@dataclass(frozen=True, kw_only=True)
class FakeReplicaSettings(ReplicaSettings):
    """What a fake replica is built from.

    Attributes:
        answers: Reference answer by question.
        skill: How often it is right.
        latency_s: Seconds that a response takes.
        device_logs: Folder of the files that say what devices were busy with; "": none.
    """

    answers: Mapping[str, str]
    skill: FakeSkill
    latency_s: float
    device_logs: str = ""


class FakeReplica(SamplerReplica):
    """A `SamplerReplica` without an engine and a tokenizer; its process loads neither torch nor vLLM."""

    def __init__(self, settings: FakeReplicaSettings) -> None:
        """Ready at once; the base class would load a model."""
        self._settings = settings.engine
        self._checkpoint = settings.engine.model_path
        self._prompt = settings.prompt
        self._byte_renderers: dict[str, ByteRenderer] = {}
        own = self._renderer("")
        self._answers = {
            tuple(own.prompt_ids(asked, general=general)): answer
            for asked, answer in settings.answers.items()
            for general in (False, True)
        }
        self._sampler = FakeSampler(
            name=settings.engine.name,
            respond=table_respond(self._answers, settings.skill, say=own.form.render),
            latency_s=settings.latency_s,
            policy_version=settings.engine.policy_version,
        )
        self._updating = asyncio.Lock()
        self._in_flight = []
        self._log = DeviceLog(settings.device_logs)
        self._metrics = metrics.MetricsRecorder(settings.run, replica=settings.engine.name)

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    async def generate(self, request: RolloutRequest) -> tuple[GenerationStatus, list[Rollout]]:
        """See `SamplerReplica`."""
        with self._log.busy(SAMPLING):
            found: tuple[GenerationStatus, list[Rollout]] = await super().generate(request)
        return found

    async def update(self, *arguments: Any, **options: Any) -> UpdateReceipt:
        """See `SamplerReplica`."""
        with self._log.busy(SYNC):
            return await super().update(*arguments, **options)

    def _renderer(self, form: str) -> ByteRenderer:  # type: ignore[override]
        """See `SamplerReplica`; the fake answers prompts of every format in the run's."""
        if form not in self._byte_renderers:
            named = form or self._prompt.format
            asked = MARKED if named == "auto" else format_named(named)
            template = load_template(None if form else self._prompt.template, default=asked.prompt)
            self._byte_renderers[form] = ByteRenderer(template, asked)
        return self._byte_renderers[form]


class ByteRenderer:
    """Stands in for `still_ray.formats.prompt.ChatRenderer`: the recipe's prompt without a chat template, as bytes."""

    def __init__(self, template: PromptTemplate, form: ResponseFormat) -> None:
        """Remembers the template and the response format."""
        self._template = template
        self.form = form

    def prompt_ids(self, question: str, *, general: bool = False) -> list[int]:
        """The bytes of the prompt."""
        return list((question if general else self._template.render(question)).encode())

    def parse(self, text: str, *, general: bool = False, truncated: bool = False) -> ParsedResponse:
        """In the recipe's format, which is what a fake answers in."""
        return self.form.parse(text, truncated=truncated)

    def thought_tokens(self, thought: str) -> int:
        """How many bytes a thought has."""
        return len(thought.encode())

    def held_in_response(self, text: str) -> str:
        """None: bytes have no control tokens."""
        return ""
