"""The few calls into vLLM that a sampler needs; all of them belong on the thread that owns the engine."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from still_ray.algo.planning.sampler_memory import batched_tokens
from still_ray.sampler.engine_settings import EngineSettings
from still_ray.sampler.protocol import SamplerDeadError, SamplerError, WeightPayload
from still_ray.sampler.quiet import quiet_vllm
from still_ray.types import SamplingSettings, StillRayError

WEIGHT_TRANSFER_BACKEND = "still_ray"
"""Name under which the plug-in of the entry-point group `vllm.general_plugins` registers our weight transfer."""

_NUM_SEEDS = 2**63  # vLLM takes seed -1 for "no seed", and torch wants 64 bits


def build(settings: EngineSettings, stat_loggers: Sequence[Any] = ()) -> Any:
    """Builds a synchronous engine; the caller's thread owns it from here on.

    Args:
        settings: What to build.
        stat_loggers: vLLM's stat loggers; none: the engine keeps no statistics.
    """
    quiet_vllm()
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    gc.freeze()  # what the imports left behind: vLLM collects five times on its way up, 0.2 s each
    config = EngineArgs(**engine_arguments(settings)).create_engine_config()
    if settings.device == "cpu":
        _shrink_kv_cache(config)
    loggers = list(stat_loggers) or None
    return LLMEngine.from_vllm_config(config, stat_loggers=loggers, disable_log_stats=not stat_loggers)


def engine_arguments(settings: EngineSettings) -> dict[str, Any]:
    """What vLLM's `EngineArgs` are given: what the recipe yields, and on top of it what it hands on."""
    arguments: dict[str, Any] = {
        "model": settings.model_path,
        "trust_remote_code": settings.trust_remote_code,
        "dtype": settings.sampler.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.sampler.max_num_seqs,
        "max_num_batched_tokens": batched_tokens(
            settings.sampler, max_length=settings.max_model_len, on_gpu=settings.device == "cuda"
        ),
        "seed": settings.seed,
        "use_tqdm_on_load": False,
        "weight_transfer_config": {"backend": WEIGHT_TRANSFER_BACKEND},
    }
    if settings.num_ranks > 1:
        # Child processes: left to itself, vLLM would start Ray actors where this one is in a placement group.
        arguments |= {"tensor_parallel_size": settings.num_ranks, "distributed_executor_backend": "mp"}
    arguments |= _cpu_arguments(settings) if settings.device == "cpu" else _cuda_arguments(settings)
    return arguments | settings.sampler.engine


def _cpu_arguments(settings: EngineSettings) -> dict[str, Any]:
    return {
        "enforce_eager": True,
        # vLLM 0.32 dies of a seeded request whose prompt is computed in two steps: it rewinds the request's random
        # generator, and a CPU generator cannot be rewound. Whole prompts only, then.
        "enable_chunked_prefill": False,
        # Its bookkeeping costs a tiny model a fifth of its speed, and blocks of 128 tokens share few prompts.
        "enable_prefix_caching": False,
    }


def _cuda_arguments(settings: EngineSettings) -> dict[str, Any]:
    memory: dict[str, Any] = {"gpu_memory_utilization": settings.sampler.gpu_memory_utilization}
    return memory | ({"enable_sleep_mode": True} if settings.sleeps else {})


def _shrink_kv_cache(config: Any) -> None:
    """Takes no more memory than the longest sequences can fill: a CPU engine writes zeros to all of it at its start."""
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE

    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    width = model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
    blocks_per_sequence = math.ceil(model.max_model_len / cache.block_size) + 1
    num_blocks = (config.scheduler_config.max_num_seqs + 1) * blocks_per_sequence
    dtype = STR_DTYPE_TO_TORCH_DTYPE.get(cache.cache_dtype, model.dtype)
    most = num_blocks * cache.block_size * 2 * width * dtype.itemsize
    cache.kv_cache_memory_bytes = min(cache.kv_cache_memory_bytes, most)


def sampling_params(seed: int, settings: SamplingSettings, *, max_tokens: int, stop_token_ids: Sequence[int]) -> Any:
    """Parameters of one response; text is decoded from the token ids when it is complete.

    Args:
        seed: The response's.
        settings: How to sample.
        max_tokens: Longest response.
        stop_token_ids: What ends it besides the model's own eos; it is the last of the response's token ids then.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        seed=None if settings.temperature == 0 else seed % _NUM_SEEDS,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=max_tokens,
        stop_token_ids=list(stop_token_ids),
        logprobs=0,  # the sampled token's, before temperature
        flat_logprobs=True,  # lists instead of an object for each token
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params() -> Any:
    """Parameters of one pass over a given sequence."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )


def request_errors() -> tuple[type[Exception], ...]:
    """How vLLM refuses one request; the engine lives on."""
    from vllm.exceptions import VLLMClientError

    return (ValueError, TypeError, VLLMClientError)


def add(engine: Any, request_id: str, prompt_ids: list[int], params: Any) -> None:
    """Hands one request to the engine."""
    from vllm.inputs import tokens_input

    engine.add_request(request_id, tokens_input(prompt_ids), params)


def sampled(engine: Any, request_id: str, start: int) -> tuple[list[int], float]:
    """Token ids that a request in flight has from a position on, and the sum of their log-probabilities."""
    processor = engine.output_processor
    state = processor.request_states[processor.external_req_ids[request_id][0]]
    token_ids = state.detokenizer.output_token_ids[start:]
    return token_ids, sum(state.logprobs_processor.logprobs.logprobs[start:])  # one a token: logprobs=0, flat


def decode(engine: Any, token_ids: Sequence[int]) -> str:
    """Text of the tokens, special tokens and markers kept."""
    text = engine.get_tokenizer().decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def update_weights(engine: Any, payloads: Iterable[WeightPayload], sent: Mapping[str, str]) -> tuple[str, ...]:
    """Runs one weight update from start to finish; the engine must be idle.

    Args:
        engine: The engine.
        payloads: The update.
        sent: Digests of its tensors as they were sent, by name; empty: nobody took them.

    Returns:
        The digest of what each rank received.

    Raises:
        SamplerError: The engine holds on to what it cached under the old weights.
        StillRayError: The update does not fit the model, or is not what was sent.
    """
    _on_every_worker(engine, "start_weight_update")
    try:
        for payload in payloads:
            _send(engine, payload)
        _send(engine, {"transport": "end", "digests": dict(sent)})
    except BaseException:
        with contextlib.suppress(Exception):  # a worker that raised has given the update up already
            _send(engine, {"transport": "abort"})
        raise
    _on_every_worker(engine, "finish_weight_update")
    if not engine.reset_prefix_cache():
        raise SamplerError(
            "weight update failed: the cache of prefixes, computed by the old weights, cannot be emptied"
        )
    return tuple(_of_every_worker(engine, "what it received", _received))


def sleep(engine: Any, level: int) -> bool:
    """Has an idle engine free its device, and whatever it cached; returns whether it still has its weights.

    vLLM's CPU worker frees nothing: there the engine merely schedules nothing until it wakes.
    """
    from vllm.platforms import current_platform

    engine.sleep(level)
    return level == 1 or not current_platform.is_sleep_mode_available()


def wake(engine: Any) -> None:
    """Maps the memory of weights and cache again; dropped weights hold anything then."""
    engine.wake_up()


def _send(engine: Any, payload: WeightPayload) -> None:
    _on_every_worker(engine, "update_weights", update_info=payload)


def _on_every_worker(engine: Any, method: str, **arguments: Any) -> None:
    """Calls a method of every worker and raises what one of them raised.

    An error that crossed vLLM's queue from a worker process as such would leave the answers of the others in theirs, to
    be taken for answers to the next call; so workers return their errors.
    """
    for errors in _of_every_worker(engine, method, _error_of, method, arguments):
        for error in errors:
            raise error


def _of_every_worker(engine: Any, what: str, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function returns for every worker; it runs in the worker's process and may not raise."""
    try:
        return list(engine.collective_rpc(function, args=arguments))
    except Exception as end:  # this is the end of a worker process
        raise SamplerDeadError(f"the engine broke in {what}: {type(end).__name__}: {end}") from end


def _received(worker: Any) -> str:
    return str(worker.weight_transfer_engine.received)


def _error_of(worker: Any, method: str, arguments: dict[str, Any]) -> tuple[Exception, ...]:
    """Runs in the worker; an exception that is not ours goes as text, since it may not survive the journey."""
    try:
        getattr(worker, method)(**arguments)
    except StillRayError as error:
        return (error,)
    except Exception as error:
        return (SamplerError(f"weight update failed: {type(error).__name__}: {error}"),)
    return ()


def load(engine: Any) -> tuple[int, int, int]:
    """Requests in the present batch, requests that wait for room in it, and the tokens that all of them have so far.

    May be called on any thread: each of the three is right, though perhaps of another moment than the next.
    """
    running, waiting = engine.engine_core.engine_core.scheduler.get_request_counts()
    states = list(engine.output_processor.request_states.values())
    num_tokens = sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer is not None)
    return running, waiting, num_tokens


def watch_workers(engine: Any, on_death: Callable[[], None]) -> None:
    """Calls back, on any thread, when a worker process of a tensor-parallel engine dies, which an idle one misses."""
    engine.engine_core.engine_core.model_executor.register_failure_callback(on_death)


def shut_down(engine: Any) -> None:
    """Frees the engine and ends its worker processes, if it has any."""
    engine.engine_core.shutdown()
