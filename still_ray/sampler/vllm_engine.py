"""The few calls into vLLM that a sampler needs; all of them belong on the thread that owns the engine."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterable, Sequence
from typing import Any

from still_ray.sampler.engine_settings import EngineSettings
from still_ray.sampler.protocol import WeightPayload
from still_ray.sampler.quiet import quiet_vllm
from still_ray.types import SamplingSettings

WEIGHT_TRANSFER_BACKEND = "still_ray"
"""Name under which the plug-in of the entry-point group `vllm.general_plugins` registers our weight transfer."""

_MIN_BATCHED_TOKENS = 8192
_NUM_SEEDS = 2**63  # vLLM takes seed -1 for "no seed", and torch wants 64 bits


def build(settings: EngineSettings) -> Any:
    """Builds a synchronous engine; the caller's thread owns it from here on."""
    quiet_vllm()
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    gc.freeze()  # what the imports left behind: vLLM collects five times on its way up, 0.2 s each
    config = EngineArgs(**_arguments(settings)).create_engine_config()
    if settings.device == "cpu":
        _shrink_kv_cache(config)
    return LLMEngine.from_vllm_config(config, disable_log_stats=True)


def _arguments(settings: EngineSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": settings.model_path,
        "trust_remote_code": settings.trust_remote_code,
        "dtype": settings.sampler.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.sampler.max_num_seqs,
        "seed": settings.seed,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "weight_transfer_config": {"backend": WEIGHT_TRANSFER_BACKEND},
    }
    return arguments | (_cpu_arguments(settings) if settings.device == "cpu" else _cuda_arguments(settings))


def _cpu_arguments(settings: EngineSettings) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "enforce_eager": True,
        # vLLM 0.32 dies of a seeded request whose prompt is computed in two steps: it rewinds the request's random
        # generator, and a CPU generator cannot be rewound. Whole prompts only, then.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(settings.max_model_len, _MIN_BATCHED_TOKENS),
        # Its bookkeeping costs a tiny model a fifth of its speed, and blocks of 128 tokens share few prompts.
        "enable_prefix_caching": False,
    }
    return arguments | ({"dtype": "float32"} if settings.sampler.dtype == "auto" else {})


def _cuda_arguments(settings: EngineSettings) -> dict[str, Any]:
    return {
        "tensor_parallel_size": settings.sampler.tensor_parallel_size,
        "gpu_memory_utilization": settings.sampler.gpu_memory_utilization,
    }


def _shrink_kv_cache(config: Any) -> None:
    """Takes no more memory than the longest sequences can fill: a CPU engine writes zeros to all of it at its start."""
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    width = model.get_num_layers(parallel) * model.get_num_kv_heads(parallel) * model.get_head_size()
    blocks_per_sequence = math.ceil(model.max_model_len / cache.block_size) + 1
    num_blocks = (config.scheduler_config.max_num_seqs + 1) * blocks_per_sequence
    most = num_blocks * cache.block_size * 2 * width * model.dtype.itemsize
    cache.kv_cache_memory_bytes = min(cache.kv_cache_memory_bytes, most)


def sampling_params(seed: int, settings: SamplingSettings, *, max_tokens: int) -> Any:
    """Parameters of one response; text is decoded from the token ids when it is complete."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        seed=None if settings.temperature == 0 else seed % _NUM_SEEDS,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=max_tokens,
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


def decode(engine: Any, token_ids: Sequence[int]) -> str:
    """Text of the tokens, special tokens and markers kept."""
    text = engine.get_tokenizer().decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return str(text)


def update_weights(engine: Any, payloads: Iterable[WeightPayload]) -> None:
    """Runs one weight update from start to finish; the engine must be idle."""
    engine.collective_rpc("start_weight_update")
    try:
        for payload in payloads:
            _send(engine, payload)
        _send(engine, {"transport": "end"})
    except BaseException:
        with contextlib.suppress(Exception):  # a worker that raised has given the update up already
            _send(engine, {"transport": "abort"})
        raise
    engine.collective_rpc("finish_weight_update")
    engine.reset_prefix_cache()


def _send(engine: Any, payload: WeightPayload) -> None:
    engine.collective_rpc("update_weights", kwargs={"update_info": payload})


def shut_down(engine: Any) -> None:
    """Frees the engine and ends its worker processes, if it has any."""
    engine.engine_core.shutdown()
