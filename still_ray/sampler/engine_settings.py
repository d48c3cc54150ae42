"""What it takes to start one replica's engine, and the environment its process needs before vLLM is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from still_ray.algo.resolved import ResolvedSampler

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Everything that one replica's engine is built from.

    Attributes:
        model_path: A HF model directory, or a hub id.
        name: The replica's name, as trajectories and logs show it.
        sampler: The recipe's sampler section.
        max_model_len: Longest prompt + response, tokens.
        seed: Seed of the engine; requests bring their own.
        policy_version: Which weights `model_path` holds; 0 is the backbone.
        device: "cpu" or "cuda".
        trust_remote_code: Whether to run Python code that comes with the model.
        stop_token_ids: What ends a response besides the eos of the model's tokenizer and generation_config.json, at
            which vLLM stops by itself: the end of a turn of its chat template.
        sleeps: Whether the engine may be asked to sleep; on a GPU it then allocates so that it can.
    """

    model_path: str
    name: str
    sampler: ResolvedSampler
    max_model_len: int
    seed: int
    policy_version: int = 0
    device: Device = "cpu"
    trust_remote_code: bool = False
    stop_token_ids: tuple[int, ...] = ()
    sleeps: bool = False

    @property
    def num_ranks(self) -> int:
        """Worker processes that share the model between them; 1: the engine's own process is the worker."""
        return self.sampler.tensor_parallel_size


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """The variables that must be in the environment of the replica's process before vLLM is imported."""
    variables = _common_environment()
    if Path(settings.model_path).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    if settings.device == "cpu":
        variables |= _cpu_environment(settings.sampler)
    return variables


def _common_environment() -> dict[str, str]:
    return {
        # The engine core lives in this process: weight payloads are handed over without a copy, and a dead replica
        # leaves no engine behind. On CPU it also starts in 2 s instead of 20.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Workers of a tensor-parallel engine; a fork of a process that runs threads, as actors do, is not safe.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _cpu_environment(sampler: ResolvedSampler) -> dict[str, str]:
    return {
        "TORCHDYNAMO_DISABLE": "1",  # else the first batch is spent on compilation (32 s)
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else every start warns of its own NUMA binding
        "VLLM_CPU_KVCACHE_SPACE": str(sampler.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else each worker of a tensor-parallel engine wants a NUMA node
        # An engine in its own process is not bound to cores by vLLM; with this many threads it need not be.
        "OMP_NUM_THREADS": str(sampler.threads),
        "MKL_NUM_THREADS": str(sampler.threads),
    }
