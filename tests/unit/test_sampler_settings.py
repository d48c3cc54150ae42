from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from still_ray.algo.placement import resolve_sampler
from still_ray.algo.planning.model import KNOWN_SHAPES
from still_ray.algo.planning.sampler_memory import gpu_sampler_memory
from still_ray.config.schema import SamplerConfig
from still_ray.sampler.engine_settings import Device, EngineSettings, engine_environment
from still_ray.sampler.vllm_engine import engine_arguments


def engine_settings(model_path: str, device: Device = "cpu") -> EngineSettings:
    return EngineSettings(
        model_path=model_path,
        name="sampler-0",
        sampler=resolve_sampler(SamplerConfig(threads=3, kv_cache_gib=2), has_gpus=False),
        max_model_len=512,
        seed=1,
        device=device,
    )


def test_settings_survive_a_process_boundary() -> None:
    settings = engine_settings("model")
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_only_a_local_model_keeps_the_hub_out(tmp_path: Path) -> None:
    assert engine_environment(engine_settings(str(tmp_path)))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine_environment(engine_settings("Qwen/Qwen2.5-32B-Instruct"))


def test_the_cpu_environment_follows_the_recipe() -> None:
    environment = engine_environment(engine_settings("model"))
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"


def test_workers_of_a_tensor_parallel_engine_are_spawned_and_keep_to_no_core() -> None:
    settings = engine_settings("model")
    shared = replace(settings, sampler=settings.sampler.model_copy(update={"tensor_parallel_size": 4}))
    assert (settings.num_ranks, shared.num_ranks) == (1, 4)
    environment = engine_environment(shared)
    assert environment["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn", "a forked actor would share its threads' locks"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind", "bound workers want a NUMA node each"


def test_what_the_recipe_hands_on_replaces_no_more_than_what_it_may() -> None:
    """Everything else that engines are given cannot be handed on."""
    free = {"max_num_batched_tokens", "enforce_eager", "enable_chunked_prefill", "enable_prefix_caching"}
    for device in ("cpu", "cuda"):
        given = engine_arguments(engine_settings("model", device)).keys()
        assert {name for name in given if accepts(name)} == free & given
    settings = engine_settings("model")
    engine = {"enable_prefix_caching": True, "block_size": 32}
    changed = replace(settings, sampler=settings.sampler.model_copy(update={"engine": engine}))
    assert engine_arguments(changed) == engine_arguments(settings) | engine


def test_an_engine_on_a_gpu_is_built_so_that_it_can_sleep_where_it_has_to() -> None:
    for device in ("cpu", "cuda"):
        awake, sleeps = (
            engine_arguments(replace(engine_settings("model", device), sleeps=one)) for one in (False, True)
        )
        assert sleeps == awake | ({"enable_sleep_mode": True} if device == "cuda" else {}), "vLLM refuses it on a CPU"
    assert not accepts("enable_sleep_mode")


def accepts(name: str) -> bool:
    try:
        SamplerConfig.model_validate({"engine": {name: 1}})
    except ValidationError:
        return False
    return True


def test_a_gpu_keeps_its_compiler() -> None:
    assert "TORCHDYNAMO_DISABLE" not in engine_environment(engine_settings("model", "cuda"))


@pytest.mark.parametrize("max_num_seqs", [16, 256, 20_000])
def test_an_engine_takes_as_many_tokens_a_step_as_the_plan_counts(max_num_seqs: int) -> None:
    sampler = resolve_sampler(SamplerConfig(max_num_seqs=max_num_seqs, dtype="bfloat16"), has_gpus=True)
    settings = replace(engine_settings("model", "cuda"), sampler=sampler)
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]
    memory = gpu_sampler_memory(shape, sampler, max_length=settings.max_model_len, device_bytes=2**36)
    step = next(part.num_bytes for part in memory.parts if part.name == "activations and logits of one step")
    of_a_token = 2 * (2 * shape.hidden_size + 2 * shape.intermediate_size + shape.query_size)
    counted = (step - max_num_seqs * shape.vocab_size * 10) / of_a_token
    assert engine_arguments(settings)["max_num_batched_tokens"] == counted >= max_num_seqs


@pytest.mark.parametrize(
    "module",
    [
        "still_ray.sampler.protocol",
        "still_ray.sampler.vllm_sampler",
        "still_ray.sampler.fake",
        "still_ray.weight_sync.transports.broadcast",
        "still_ray.weight_sync.transports.object_store",
        "still_ray.weight_sync.proof",
        "still_ray.weight_sync.checkpoint",
        "still_ray.weight_sync.plugin",
    ],
)
def test_imports_stay_light(module: str) -> None:
    heavy = "{'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules)"
    command = f"import sys, {module}; sys.exit(' '.join({heavy}) or 0)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
