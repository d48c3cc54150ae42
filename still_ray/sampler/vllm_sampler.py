"""A sampler over vLLM's synchronous engine, owned and stepped by one thread."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from still_ray.algo.seeds import continuation_seed
from still_ray.sampler import vllm_engine
from still_ray.sampler.engine_settings import EngineSettings
from still_ray.sampler.protocol import (
    NO_DIGESTS,
    NO_WEIGHTS,
    SampledTokens,
    SamplerDeadError,
    SamplerError,
    SamplerStats,
    WeightPayload,
)
from still_ray.types import Completion, FinishReason, PartialResponse, SamplingSettings

OnDead = Callable[[BaseException], None]


@dataclass(kw_only=True)
class _Request:
    """One sequence on its way through the engine; `read` turns vLLM's output into the future's result."""

    prompt_ids: list[int]
    params: Any
    read: Callable[[Any, _Request], Any]
    prefix: PartialResponse | None = None
    future: Future[Any] = field(default_factory=Future)
    submitted_at: float = field(default_factory=time.monotonic)


@dataclass(kw_only=True)
class _Exclusive:
    """Work that needs the engine idle: it starts when all earlier requests are done, and later ones wait for it."""

    work: Callable[[], tuple[str, ...]]
    future: Future[tuple[str, ...]] = field(default_factory=Future)


@dataclass(kw_only=True)
class _Look:
    """Work that reads the engine between two steps, whatever it decodes."""

    work: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)


class _Stop:
    """Asks the engine's thread to end."""


class _WorkerDied:
    """Tells the engine's thread that a worker process of the engine is gone."""


_Item = TypeVar("_Item", _Request, _Exclusive, _Look)


class VllmSampler:
    """The `Sampler` that is used for real.

    Consumes requests from a queue that any thread fills; produces completions through futures, which its own thread
    resolves; waits for the queue when nothing is in flight; unblocked by `submit`, `score`, `load_weights`, `close`.
    """

    def __init__(
        self, settings: EngineSettings, on_dead: OnDead | None = None, *, stat_loggers: Sequence[Any] = ()
    ) -> None:
        """Builds the engine and returns when it can serve; `engine_environment(settings)` must be in force.

        Args:
            settings: What to build.
            on_dead: Called once, on the engine's thread, after every future has failed because the engine broke.
            stat_loggers: vLLM's stat loggers; none: the engine keeps no statistics.
        """
        self._settings = settings
        self._stat_loggers = stat_loggers
        self._on_dead = on_dead
        self._policy_version = settings.policy_version
        self._queue: queue.SimpleQueue[_Request | _Exclusive | _Look | _Stop | _WorkerDied] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._in_flight: dict[str, _Request] = {}
        self._exclusive: _Exclusive | None = None
        self._stopping = False
        self._end: SamplerDeadError | None = None
        self._refusal: str | None = None
        self._asleep = False
        self._num_generated_tokens = 0
        self._num_steps = 0
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name=f"engine-{settings.name}", daemon=True)
        self._thread.start()
        self._started.result()

    @property
    def name(self) -> str:
        """The replica's name."""
        return self._settings.name

    @property
    def policy_version(self) -> int:
        """Which weights are loaded."""
        return self._policy_version

    def submit(
        self, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings, *, prefix: PartialResponse | None = None
    ) -> Future[Completion]:
        """Starts one response and returns at once; see `Sampler.submit`."""
        room = self._settings.max_model_len - len(prompt_ids)
        if room < 1 or not prompt_ids:
            return _failed(self._length_error("prompt", len(prompt_ids)))
        max_tokens = min(settings.max_tokens, room)
        if prefix is not None:
            reason = prefix.finish_reason or (FinishReason.LENGTH if prefix.num_tokens >= max_tokens else None)
            if reason is not None:
                return self._put(_Look(work=lambda: self._completion(prefix, (), 0.0, reason, latency_s=0.0))).future
            prompt_ids = (*prompt_ids, *prefix.token_ids)
            max_tokens -= prefix.num_tokens
            seed = continuation_seed(seed, prefix.num_tokens)
        try:
            params = vllm_engine.sampling_params(
                seed, settings, max_tokens=max_tokens, stop_token_ids=self._settings.stop_token_ids
            )
        except vllm_engine.request_errors() as error:
            return _failed(self._refused(error))
        request = _Request(prompt_ids=list(prompt_ids), params=params, read=self._read_completion, prefix=prefix)
        return self._put(request).future

    def sampled(self, starts: Mapping[Future[Completion], int]) -> Future[dict[Future[Completion], SampledTokens]]:
        """What there is of responses that are being decoded; see `Sampler.sampled`."""
        return self._put(_Look(work=lambda: self._sampled(starts))).future

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Natural log of p(token[i+1] | token[..i]) at every position of every sequence; see `Sampler.score`."""
        for sequence in sequences:
            if not 1 < len(sequence) < self._settings.max_model_len:
                raise self._length_error("sequence to score", len(sequence))
        params = vllm_engine.scoring_params()
        requests = [_Request(prompt_ids=list(ids), params=params, read=_read_prompt_logprobs) for ids in sequences]
        futures = [self._put(request).future for request in requests]
        return [future.result() for future in futures]

    def load_weights(
        self, payloads: Iterable[WeightPayload], policy_version: int, sent: Mapping[str, str] = NO_DIGESTS
    ) -> tuple[str, ...]:
        """Replaces the weights in place when all earlier requests are done; see `Sampler.load_weights`."""
        return self._put(_Exclusive(work=lambda: self._update(payloads, policy_version, sent))).future.result()

    def sleep(self, level: int) -> None:
        """Frees the device when all earlier requests are done; see `Sampler.sleep`."""
        self._put(_Exclusive(work=lambda: self._fall_asleep(level))).future.result()

    def wake(self) -> None:
        """Takes the device back; see `Sampler.wake`."""
        if self._asleep:
            self._put(_Exclusive(work=self._wake_up)).future.result()

    def stats(self) -> SamplerStats:
        """The present load."""
        num_running, num_waiting, num_tokens = vllm_engine.load(self._engine)
        return SamplerStats(
            num_running=num_running,
            num_waiting=num_waiting + self._queue.qsize(),
            num_generated_tokens=self._num_generated_tokens,
            num_running_tokens=num_tokens,
            num_steps=self._num_steps,
        )

    def close(self) -> None:
        """Ends the engine and its thread."""
        self._queue.put(_Stop())
        self._thread.join()

    def _put(self, item: _Item) -> _Item:
        with self._lock:
            if self._end is None:
                self._queue.put(item)
            else:
                item.future.set_exception(self._end)
        return item

    def _refused(self, error: Exception) -> SamplerError:
        return SamplerError(f"sampler {self.name} cannot serve the request: {error}")

    def _length_error(self, what: str, num_tokens: int) -> SamplerError:
        return SamplerError(
            f"sampler {self.name}: {what} of {num_tokens} tokens does not fit max_model_len "
            f"{self._settings.max_model_len}"
        )

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        try:
            self._engine = vllm_engine.build(self._settings, self._stat_loggers)
        except BaseException as error:  # the constructor's caller is waiting for it
            self._started.set_exception(error)
            return
        vllm_engine.watch_workers(self._engine, lambda: self._queue.put(_WorkerDied()))
        self._started.set_result(None)
        try:
            self._serve()
        except BaseException as error:  # whatever breaks the engine must reach everyone who waits for it
            self._fail_everyone(f"the engine of sampler {self.name} died: {type(error).__name__}: {error}")
            if self._on_dead is not None:
                self._on_dead(error)
        else:
            self._fail_everyone(f"sampler {self.name} is closed")
        finally:
            vllm_engine.shut_down(self._engine)

    def _serve(self) -> None:
        while not self._stopping:
            self._take_in()
            if self._in_flight:
                outputs = self._engine.step()
                self._num_steps += 1
                for output in outputs:
                    self._resolve(output)

    def _take_in(self) -> None:
        """Moves queued work into the engine; blocks only when there is nothing else to do."""
        while self._exclusive is None and not self._stopping:
            try:
                self._accept(self._queue.get(block=not self._in_flight))
            except queue.Empty:
                return
        if self._exclusive is not None and not self._in_flight:
            exclusive, self._exclusive = self._exclusive, None
            _carry_out(exclusive)

    def _accept(self, item: _Request | _Exclusive | _Look | _Stop | _WorkerDied) -> None:
        if isinstance(item, _Stop):
            self._stopping = True
        elif isinstance(item, _WorkerDied):
            raise RuntimeError("one of its worker processes died")
        elif not item.future.set_running_or_notify_cancel():
            return
        elif isinstance(item, _Look):
            _carry_out(item)
        elif isinstance(item, _Exclusive):
            self._exclusive = item
        elif self._refusal is not None:
            item.future.set_exception(SamplerError(self._refusal))
        else:
            self._start(item)

    def _start(self, request: _Request) -> None:
        request_id = str(next(self._ids))
        try:
            vllm_engine.add(self._engine, request_id, request.prompt_ids, request.params)
        except vllm_engine.request_errors() as error:
            request.future.set_exception(self._refused(error))
        else:
            self._in_flight[request_id] = request

    def _resolve(self, output: Any) -> None:
        if output.finished:
            request = self._in_flight.pop(output.request_id)
            request.future.set_result(request.read(output, request))

    def _read_completion(self, output: Any, request: _Request) -> Completion:
        sampled = output.outputs[0]
        return self._completion(
            request.prefix,
            tuple(sampled.token_ids),
            sampled.cumulative_logprob,
            FinishReason(sampled.finish_reason),
            latency_s=time.monotonic() - request.submitted_at,
        )

    def _completion(
        self,
        prefix: PartialResponse | None,
        sampled_ids: tuple[int, ...],
        sum_logprob: float,
        finish_reason: FinishReason,
        *,
        latency_s: float,
    ) -> Completion:
        """A whole response; its text is decoded in one go, since a cut may lie within a character."""
        self._num_generated_tokens += len(sampled_ids)
        token_ids = sampled_ids if prefix is None else (*prefix.token_ids, *sampled_ids)
        spoken = token_ids[:-1] if finish_reason is FinishReason.STOP else token_ids
        return Completion(
            text=vllm_engine.decode(self._engine, spoken),
            token_ids=token_ids,
            sum_logprob=sum_logprob + (prefix.sum_logprob if prefix else 0.0),
            finish_reason=finish_reason,
            latency_s=latency_s + (prefix.latency_s if prefix else 0.0),
        )

    def _sampled(self, starts: Mapping[Future[Completion], int]) -> dict[Future[Completion], SampledTokens]:
        found = {}
        for request_id, request in self._in_flight.items():
            if request.future in starts:
                before = request.prefix.num_tokens if request.prefix else 0
                start = max(before, starts[request.future])
                token_ids, sum_logprob = vllm_engine.sampled(self._engine, request_id, start - before)
                if token_ids:
                    found[request.future] = SampledTokens(
                        start=start, token_ids=tuple(token_ids), sum_logprob=sum_logprob
                    )
        return found

    def _update(
        self, payloads: Iterable[WeightPayload], policy_version: int, sent: Mapping[str, str]
    ) -> tuple[str, ...]:
        self._refusal = (
            f"sampler {self.name} refuses requests: its update to policy version {policy_version} failed and "
            "left its weights incomplete"
        )
        received = vllm_engine.update_weights(self._engine, payloads, sent)
        self._policy_version = policy_version
        self._refusal = None
        return received

    def _fall_asleep(self, level: int) -> tuple[str, ...]:
        if self._asleep:
            return ()
        self._asleep, self._refusal = True, f"sampler {self.name} sleeps"
        if not vllm_engine.sleep(self._engine, level):
            self._policy_version = NO_WEIGHTS
        return ()

    def _wake_up(self) -> tuple[str, ...]:
        vllm_engine.wake(self._engine)
        dropped = f"sampler {self.name} refuses requests: it dropped its weights when it fell asleep"
        self._asleep, self._refusal = False, dropped if self._policy_version == NO_WEIGHTS else None
        return ()

    def _fail_everyone(self, message: str) -> None:
        with self._lock:
            self._end = SamplerDeadError(message)
        for request in self._in_flight.values():
            request.future.set_exception(self._end)
        self._in_flight.clear()
        if self._exclusive is not None:
            self._exclusive.future.set_exception(self._end)
        while not self._queue.empty():
            item = self._queue.get()
            if not isinstance(item, _Stop | _WorkerDied) and item.future.set_running_or_notify_cancel():
                item.future.set_exception(self._end)


def _read_prompt_logprobs(output: Any, request: _Request) -> tuple[float, ...]:
    """The log-probability of each prompt token but the first, which has none."""
    return tuple(
        position[token_id].logprob
        for token_id, position in zip(request.prompt_ids[1:], output.prompt_logprobs[1:], strict=True)
    )


def _carry_out(item: _Exclusive | _Look) -> None:
    try:
        result = item.work()
    except Exception as error:  # whoever asked for it is waiting; the engine can try again
        item.future.set_exception(error)
        if isinstance(error, SamplerDeadError):
            raise
    else:
        item.future.set_result(result)


def _failed(error: SamplerError) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
