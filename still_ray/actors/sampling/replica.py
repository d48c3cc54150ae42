"""A sampler replica: the Ray actor around one engine.

consumes     rollout requests, weight updates
produces     rollouts, each naming the policy version that made it; log-probabilities of probe sequences
waits for    its engine
unblocked by new requests; an engine that dies takes the actor down, and the pool replaces it
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from still_ray.actors.monitoring import metrics
from still_ray.actors.pool.causes import cause_of
from still_ray.algo.devices import Device, Devices
from still_ray.causes import Place, may_pass
from still_ray.config import PromptConfig, SamplerConfig
from still_ray.formats.prompt import ChatRenderer, prompt_as_it_comes
from still_ray.formats.tokenizer import load_tokenizer
from still_ray.sampler.engine_settings import EngineSettings
from still_ray.sampler.protocol import (
    NO_DIGESTS,
    NO_WEIGHTS,
    SampledTokens,
    Sampler,
    SamplerDeadError,
    SamplerStats,
    WeightPayload,
)
from still_ray.store.cache import local_model
from still_ray.types import (
    Completion,
    FinishReason,
    FormatDefect,
    ParsedResponse,
    PartialResponse,
    ProbeSequence,
    Rollout,
    RolloutRequest,
    RunError,
    StillRayError,
    TrajectoryKey,
    packed_tokens,
)
from still_ray.weight_sync.checkpoint import iterate
from still_ray.weight_sync.digests import digests_of, update_digest
from still_ray.weight_sync.transports import FALLBACK
from still_ray.weight_sync.transports.checkpoint import Checkpoint

HERE = Place(kind="replica")


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What a replica is built from.

    Attributes:
        engine: The engine's settings.
        prompt: The prompt.
        run: The recipe's name, for the metrics.
    """

    engine: EngineSettings
    prompt: PromptConfig
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class GenerationStatus:
    """The small half of a generation's result; the rollouts themselves go straight to a verifier.

    Attributes:
        num_rollouts: Responses.
        num_tokens: Theirs.
        num_finished_early: As of `SamplerStats`, once this request is done.
    """

    num_rollouts: int
    num_tokens: int
    num_finished_early: int = 0


@dataclass(frozen=True, kw_only=True)
class UpdateReceipt:
    """What a replica says after it was brought to a policy version.

    Attributes:
        policy_version: The version it now serves.
        scores_before: Log-probabilities of the probes under the previous weights; none if these were dropped.
        scores_after: The same under the new ones.
        transport: How the new weights came: what the offer calls itself, or "checkpoint"; "" if it had them.
        fallback: Why they came by the checkpoint although another way was offered; "" if not so.
        digests: Of what each rank received of this version; of the files that they were started from, one for all
            ranks, where they had the version from the start. None where no digests were asked for.
    """

    policy_version: int
    scores_before: tuple[tuple[float, ...], ...]
    scores_after: tuple[tuple[float, ...], ...]
    transport: str = ""
    fallback: str = ""
    digests: tuple[str, ...] = ()


Known = tuple[int, int]
"""Of a response: the policy version whose tokens of it somebody has, and how many."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Sampling:
    """A request in the engine: its samples' completions, and what the request brought of each."""

    request: RolloutRequest
    futures: Mapping[TrajectoryKey, Future[Completion]]
    prefixes: Mapping[TrajectoryKey, PartialResponse]
    started_at: float


class SamplerReplica:
    """One engine, its tokenizer and its prompt; becomes an actor in `replica_pool`."""

    _received: tuple[str, ...] = ()
    """Digests of the weights that the engine holds; empty before anybody asked for them."""
    _in_flight: list[_Sampling]
    """The requests in the engine."""

    def __init__(self, settings: ReplicaSettings) -> None:
        """Starts the engine; takes seconds.

        Raises:
            SamplerDeadError: It failed for a reason that another try may not meet.
            RunError: It failed, and would fail again.
        """
        self._settings = settings.engine  # Ray asks for the name also when the start fails
        try:
            self._start(settings)
        except Exception as error:
            raise (SamplerDeadError if may_pass(error) else RunError)(cause_of(error, HERE)) from error

    def _start(self, settings: ReplicaSettings) -> None:
        model = local_model(settings.engine.model_path)
        self._tokenizer = load_tokenizer(model, trust_remote_code=settings.engine.trust_remote_code)
        self._prompt = settings.prompt
        self._renderers = {"": ChatRenderer.of(self._tokenizer, settings.prompt)}
        stop = (self._renderers[""].end_token_id,)
        self._settings = replace(settings.engine, model_path=model, stop_token_ids=stop)
        self._sampler = start_engine(self._settings)
        self._checkpoint = settings.engine.model_path
        self._updating = asyncio.Lock()
        self._in_flight = []
        self._metrics = metrics.MetricsRecorder(settings.run, replica=settings.engine.name)

    def __repr__(self) -> str:
        """The name that Ray puts in front of log lines."""
        return self._settings.name

    async def ready(self) -> int:
        """Answers once the engine is up, with the policy version that it serves."""
        return self._sampler.policy_version

    async def stats(self) -> SamplerStats:
        """The engine's load; a replica with work whose number of steps stands still hangs."""
        return replace(self._sampler.stats(), num_finished_early=self._num_finished_early)

    async def devices(self) -> Devices:
        """The GPUs that Ray gave it."""
        node_id = ray.get_runtime_context().get_node_id()
        return tuple(Device(node_id=node_id, gpu=str(gpu)) for gpu in ray.get_gpu_ids())

    async def sleep(self) -> None:
        """Lets go of its device until the next update; see `still_ray.sampler.protocol.Sampler.sleep`."""
        async with self._updating:
            await asyncio.to_thread(self._sampler.sleep, self._settings.sampler.sleep_level)

    @ray.method(num_returns=2)  # type: ignore[untyped-decorator]
    async def generate(self, request: RolloutRequest) -> tuple[GenerationStatus, list[Rollout]]:
        """Samples every response of a request."""
        renderer = self._renderer(request.form)
        prompt_ids = renderer.prompt_ids(request.problem.question, general=request.general)
        room = self._settings.max_model_len - len(prompt_ids)
        if room < 1:
            rollouts = [self._too_long(request, i, len(prompt_ids)) for i in range(len(request.seeds))]
            return GenerationStatus(num_rollouts=len(rollouts), num_tokens=0), rollouts
        settings = replace(request.settings, max_tokens=min(request.settings.max_tokens, room))
        version = self._sampler.policy_version
        prefixes = {prefix.key: prefix for prefix in request.prefixes if prefix.policy_version == version}
        futures = {
            key: self._sampler.submit(prompt_ids, seed, settings, prefix=prefixes.get(key))
            for key, seed in zip(request.keys, request.seeds, strict=True)
        }
        sampling = _Sampling(request=request, futures=futures, prefixes=prefixes, started_at=time.monotonic())
        self._record_queue()
        completions = await self._completed(sampling)
        num_new = sum(c.num_tokens for c in completions) - sum(prefix.num_tokens for prefix in prefixes.values())
        self._record(completions, num_new)
        rollouts = [
            self._rollout(request, i, completion, prefixes.get(key))
            for i, (key, completion) in enumerate(zip(request.keys, completions, strict=True))
        ]
        status = GenerationStatus(
            num_rollouts=len(rollouts), num_tokens=num_new, num_finished_early=self._num_finished_early
        )
        return status, rollouts

    @property
    def _num_finished_early(self) -> int:
        return sum(future.done() for sampling in self._in_flight for future in sampling.futures.values())

    async def _completed(self, sampling: _Sampling) -> list[Completion]:
        """Waits for every sample of a request, whose tokens `partial_responses` finds meanwhile."""
        self._in_flight.append(sampling)
        try:
            return await asyncio.gather(*(asyncio.wrap_future(future) for future in sampling.futures.values()))
        finally:
            self._in_flight.remove(sampling)

    async def partial_responses(self, known: Mapping[TrajectoryKey, Known]) -> list[PartialResponse]:
        """What the responses in flight have so far, and those that wait for others of their request.

        Args:
            known: What the caller has of them already, and is left out.
        """
        futures = {key: future for sampling in self._in_flight for key, future in sampling.futures.items()}
        version = self._sampler.policy_version
        starts = {key: num_tokens for key, (of_version, num_tokens) in known.items() if of_version == version}
        sampled = await asyncio.wrap_future(
            self._sampler.sampled({future: starts.get(key, 0) for key, future in futures.items()})
        )
        parts = [
            self._partial_response(sampling, key, starts.get(key, 0), sampled.get(future))
            for sampling in self._in_flight
            for key, future in sampling.futures.items()
        ]
        return [part for part in parts if part is not None]

    def _partial_response(
        self, sampling: _Sampling, key: TrajectoryKey, start: int, sampled: SampledTokens | None
    ) -> PartialResponse | None:
        """What one response has beyond the first `start` tokens; None where that is nothing."""
        future, prefix = sampling.futures[key], sampling.prefixes.get(key)
        latency_s = time.monotonic() - sampling.started_at + (prefix.latency_s if prefix else 0.0)
        finish_reason = None
        if future.done() and future.exception() is None:
            whole = future.result()
            if whole.num_tokens <= start:
                return None
            sampled = SampledTokens(start=0, token_ids=whole.token_ids, sum_logprob=whole.sum_logprob)
            finish_reason, latency_s = whole.finish_reason, whole.latency_s
        if sampled is None:
            return None
        return PartialResponse(
            round=key.round,
            problem_id=key.problem_id,
            sample_index=key.sample_index,
            policy_version=self._sampler.policy_version,
            start=sampled.start,
            tokens=packed_tokens(sampled.token_ids),
            sum_logprob=sampled.sum_logprob,
            latency_s=latency_s,
            continued_at=prefix.cut_here if prefix else "",
            finish_reason=finish_reason,
        )

    def _renderer(self, form: str) -> ChatRenderer:
        """The renderer of the run, or of the format that the model has by itself."""
        if form not in self._renderers:
            self._renderers[form] = ChatRenderer.of(self._tokenizer, prompt_as_it_comes(self._prompt, form))
        return self._renderers[form]

    def _record(self, completions: Sequence[Completion], num_new_tokens: int) -> None:
        reasons = Counter(completion.finish_reason.value for completion in completions)
        for reason, count in reasons.items():
            self._metrics.count(metrics.ROLLOUTS, count, finish_reason=reason)
        self._metrics.count(metrics.GENERATED_TOKENS, num_new_tokens)
        self._record_queue()

    def _record_queue(self) -> None:
        stats = self._sampler.stats()
        self._metrics.set(metrics.REPLICA_REQUESTS, stats.num_running, state="running")
        self._metrics.set(metrics.REPLICA_REQUESTS, stats.num_waiting, state="waiting")

    async def update(
        self,
        policy_version: int,
        payloads: Sequence[Any],
        checkpoint: str,
        probes: Sequence[ProbeSequence],
        *,
        carrier: str = "",
        digests: Mapping[str, str] = NO_DIGESTS,
    ) -> UpdateReceipt:
        """Brings the engine to a policy in place, unless it is there, and scores the probes before and after.

        One that sleeps wakes for it, and has nothing to score before if it dropped its weights.

        One update after another, in the order in which they were asked for: the last one holds. A version of the same
        number from another checkpoint is another policy: runs that share replicas count their versions alike.

        Args:
            policy_version: The version wanted.
            payloads: The update as the trainer offers it, or references to it; none: the checkpoint is read.
            checkpoint: HF model directory that holds the version.
            probes: Sequences to score.
            carrier: What the offer calls itself in reports.
            digests: Of the version's tensors by name, as the trainer held them; empty: it took none.
        """
        sequences = [probe.token_ids for probe in probes]
        transport = fallback = ""
        async with self._updating:
            await asyncio.to_thread(self._sampler.wake)
            has_weights = self._sampler.policy_version != NO_WEIGHTS
            before = await asyncio.to_thread(self._score, sequences) if has_weights else ()
            if (self._sampler.policy_version, self._checkpoint) != (policy_version, checkpoint):
                offered = (payloads, carrier)
                transport, fallback = await asyncio.to_thread(self._load, policy_version, offered, checkpoint, digests)
                self._checkpoint = checkpoint
            elif digests and not self._received:
                self._received = (await asyncio.to_thread(_digest_of, checkpoint),)
            after = await asyncio.to_thread(self._score, sequences)
            served = self._sampler.policy_version
        return UpdateReceipt(
            policy_version=served,
            scores_before=before,
            scores_after=after,
            transport=transport,
            fallback=fallback,
            digests=self._received,
        )

    def _load(
        self,
        policy_version: int,
        offered: tuple[Sequence[Any], str],
        checkpoint: str,
        digests: Mapping[str, str],
    ) -> tuple[str, str]:
        """From what the trainer offers while it is there, else from the checkpoint; returns the way, and what failed.

        Named policy: whatever goes wrong on the trainer's way leads to the checkpoint, which needs nobody and is final.
        """
        failure = ""
        payloads, carrier = offered
        if payloads:
            try:
                self._received = self._sampler.load_weights(_fetched(payloads), policy_version, digests)
                return carrier, ""
            except SamplerDeadError:
                raise
            except (ray.exceptions.RayError, StillRayError) as error:
                failure = cause_of(error, HERE)
        files = Checkpoint(FALLBACK).payload(local_model(checkpoint))
        self._received = self._sampler.load_weights([files], policy_version, digests)
        return FALLBACK, failure

    def _score(self, sequences: list[tuple[int, ...]]) -> tuple[tuple[float, ...], ...]:
        return tuple(self._sampler.score(sequences)) if sequences else ()

    def _rollout(
        self, request: RolloutRequest, position: int, completion: Completion, prefix: PartialResponse | None = None
    ) -> Rollout:
        truncated = completion.finish_reason is FinishReason.LENGTH
        renderer = self._renderer(request.form)
        parsed = renderer.parse(completion.text, general=request.general, truncated=truncated)
        if parsed.defect is None and renderer.held_in_response(completion.text):
            parsed = replace(parsed, defect=FormatDefect.CONTROL)
        return Rollout(
            round=request.round,
            problem=request.problem,
            sample_index=request.sample_indices[position],
            seed=request.seeds[position],
            response=completion.text,
            parsed=parsed,
            num_tokens=completion.num_tokens,
            thought_tokens=renderer.thought_tokens(parsed.thought) if renderer.form.has_thought else 0,
            mean_logprob=completion.sum_logprob / max(completion.num_tokens, 1),
            finish_reason=completion.finish_reason,
            policy_version=self._sampler.policy_version,
            sampler=self._settings.name,
            latency_s=completion.latency_s,
            continued_at=prefix.cut_here if prefix else "",
        )

    def _too_long(self, request: RolloutRequest, position: int, prompt_tokens: int) -> Rollout:
        limit = self._settings.max_model_len
        return Rollout(
            round=request.round,
            problem=request.problem,
            sample_index=request.sample_indices[position],
            seed=request.seeds[position],
            response="",
            parsed=ParsedResponse(thought="", solution=""),
            num_tokens=0,
            thought_tokens=0,
            mean_logprob=0.0,
            finish_reason=FinishReason.LENGTH,
            policy_version=self._sampler.policy_version,
            sampler=self._settings.name,
            latency_s=0.0,
            failure=f"not sampled: the prompt has {prompt_tokens} tokens, model.max_length is {limit}",
        )


def start_engine(settings: EngineSettings) -> Sampler:
    """Starts the engine; the actor ends with it."""
    from still_ray.sampler.vllm_sampler import VllmSampler

    return VllmSampler(settings, on_dead=_end_actor, stat_loggers=_stat_loggers(settings))


def _stat_loggers(settings: EngineSettings) -> Sequence[Any]:
    if not settings.sampler.engine_statistics:
        return ()
    from still_ray.actors.sampling.engine_statistics import stat_loggers

    return stat_loggers()


def _end_actor(error: BaseException) -> None:
    """A dead engine in a living actor would be asked again and again (ray issue 59522)."""
    print(f"the engine died: {error!r}", flush=True)  # noqa: T201 - the actor's log
    os._exit(1)


def _digest_of(checkpoint: str) -> str:
    """The digest of a checkpoint as it can be read here."""
    return update_digest(digests_of(iterate(Path(local_model(checkpoint)))))


def _fetched(payloads: Sequence[Any]) -> Iterator[WeightPayload]:
    """Fetches what is a reference, one at a time; on one node its arrays are views into the object store."""
    for payload in payloads:
        yield ray.get(payload) if isinstance(payload, ray.ObjectRef) else payload


def replica_actor(
    settings: ReplicaSettings,
    environment: dict[str, str],
    *,
    num_gpus: float,
    actor_class: type[SamplerReplica] = SamplerReplica,
) -> Any:
    """Starts a replica's actor on the resources that its recipe asks for; a rehearsal gives the class of a fake."""
    sampler: SamplerConfig = settings.engine.sampler
    actor = ray.remote(actor_class).options(
        name=settings.engine.name,
        num_cpus=sampler.cpus_per_replica,
        num_gpus=num_gpus,
        label_selector=sampler.node_labels,
        max_restarts=0,
        max_concurrency=1000,
        runtime_env={"env_vars": environment},
    )
    return actor.remote(settings)
