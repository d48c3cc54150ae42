"""What `plan` accepts and counts is what DeepSpeed's and vLLM's own configuration objects say of the same recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from still_ray.algo.placement import resolve, resolve_sampler, resolve_trainer
from still_ray.algo.planning.fit import parallel_findings
from still_ray.algo.planning.model import KNOWN_SHAPES
from still_ray.algo.planning.sampler_memory import (
    CPU_BLOCK_TOKENS,
    cpu_sampler_memory,
    kv_bytes_per_token,
    longest_fitting,
)
from still_ray.algo.planning.trainer_memory import Batch, trainer_memory
from still_ray.config import Recipe, load_recipe
from still_ray.sampler.engine_settings import EngineSettings, engine_environment
from still_ray.trainer.environment import trainer_environment
from tests.model_configs import config_of

pytestmark = pytest.mark.integration

JOBS = Path(__file__).resolve().parents[2] / "jobs"
CACHE_GIB = 5
"""Too little for 30,000 tokens of the 32B model, of 256 KiB each."""
SIZES = (1, 2, 3, 4, 5, 6, 8, 16)
"""Tensor-parallel sizes; some cut the 32B model unevenly."""

DEEPSPEED_PROGRAM = """
import json, sys
from deepspeed.runtime.config import DeepSpeedConfig
import deepspeed, torch
from torch.testing._internal.distributed.fake_pg import FakeStore
from still_ray.config import load_recipe
from still_ray.trainer.quiet import skip_cpu_kernels
from still_ray.trainer.schedule import gradient_accumulation_steps
from still_ray.trainer.zero_config import zero_config

skip_cpu_kernels()
recipe = load_recipe(sys.argv[1])
ranks = recipe.trainer.num_workers
torch.distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
found = {}
for name, section in ((step.where, step.settings) for step in recipe.steps):
    config = zero_config(recipe.trainer, use_gpu=True)
    zero = config["zero_optimization"]
    zero |= {key: int(sys.argv[2]) for key, value in zero.items() if value == "auto"}
    config |= {
        "train_batch_size": section.global_batch_size,
        "train_micro_batch_size_per_gpu": section.per_device_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps(
            global_batch_size=section.global_batch_size,
            per_device_batch_size=section.per_device_batch_size,
            num_workers=ranks,
        ),
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
    }
    built = DeepSpeedConfig(config)
    refused = ""
    try:
        DeepSpeedConfig(config | {"train_batch_size": section.global_batch_size + 1})
    except AssertionError as error:
        refused = str(error)
    found[name] = {
        "world_size": built.world_size,
        "batches": [built.train_batch_size, built.train_micro_batch_size_per_gpu, built.gradient_accumulation_steps],
        "stage": int(built.zero_config.stage),
        "max_live_parameters": built.zero_config.max_live_parameters,
        "sub_group_size": built.zero_config.sub_group_size,
        "grad_accum_dtype": built.grad_accum_dtype,
        "communication_data_type": str(built.communication_data_type),
        "refused": refused,
    }
print(json.dumps(found))
"""

VLLM_PROGRAM = """
import json, sys
from types import SimpleNamespace
import torch
from vllm.config import ModelConfig, ParallelConfig
from vllm.v1.core.kv_cache_utils import estimate_max_model_len
from vllm.v1.kv_cache_interface import FullAttentionSpec

model = ModelConfig(model=sys.argv[1], tokenizer=sys.argv[1], skip_tokenizer_init=True, dtype="bfloat16",
                    max_model_len=30_000)
found = {}
for size in json.loads(sys.argv[2]):
    parallel = ParallelConfig(tensor_parallel_size=size, distributed_executor_backend="mp")
    try:
        model.verify_with_parallel_config(parallel)
    except ValueError as error:
        found[size] = str(error)
        continue
    spec = FullAttentionSpec(block_size=int(sys.argv[3]), num_kv_heads=model.get_num_kv_heads(parallel),
                             head_size=model.get_head_size(), dtype=torch.bfloat16)
    found[size] = spec.page_size_bytes * model.get_num_layers(parallel)
    if size == 1:
        specs = {str(layer): spec for layer in range(model.get_num_layers(parallel))}
        config = SimpleNamespace(model_config=model, parallel_config=parallel)
        cache = int(sys.argv[4]) - found[size]  # the block that vLLM keeps back, see check_enough_kv_cache_memory
        found["longest"] = estimate_max_model_len(config, specs, cache)
print(json.dumps(found))
"""


def answer(program: str, *arguments: str, environment: dict[str, str]) -> Any:
    """The JSON value that a program prints last, from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        cwd=JOBS.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_deepspeed_builds_the_stages_of_a_planned_recipe() -> None:
    path = JOBS / "qwen2.5-32b.yaml"
    recipe = load_recipe(path)
    assert resolve(recipe, has_gpus=True).trainer.use_gpu
    environment = trainer_environment(resolve_trainer(recipe.trainer, has_gpus=True), use_gpu=False)
    found = answer(DEEPSPEED_PROGRAM, str(path), "10000000", environment=environment)
    ranks = recipe.trainer.num_workers
    for stage, section in ((step.where, step.settings) for step in recipe.steps):
        batch, rows, steps = found[stage]["batches"]
        assert found[stage]["world_size"] == ranks
        assert (batch, rows) == (section.global_batch_size, section.per_device_batch_size)
        assert rows * steps * ranks == batch
        assert found[stage]["stage"] == recipe.trainer.zero_stage
        assert found[stage]["grad_accum_dtype"] == "fp32"  # the plan counts 4 bytes
        assert found[stage]["communication_data_type"] == "torch.float32"
        assert "train_batch_size" in found[stage]["refused"]
        assert_sizes(recipe, found[stage])


def assert_sizes(recipe: Recipe, found: dict[str, Any]) -> None:
    """The limits that DeepSpeed will work by are those that the plan counts with."""
    shape = KNOWN_SHAPES[recipe.model.path]
    trainer = resolve_trainer(recipe.trainer, has_gpus=True)
    memory = trainer_memory(shape, trainer, Batch(rows=1, tokens=1000))
    parts = {part.name: part.num_bytes for part in (*memory.passing, *memory.stepping)}
    share = -(-shape.num_parameters // trainer.num_workers)
    assert parts["optimizer step"] == 4 * min(share, found["sub_group_size"])
    if trainer.num_workers > 1:
        head = 0 if shape.tied else shape.num_embedding
        live = min(shape.num_parameters, found["max_live_parameters"] + head)
        assert parts["gathered parameters"] == 2 * live


def test_vllm_cuts_the_model_where_the_plan_does(tmp_path: Path) -> None:
    recipe = load_recipe(JOBS / "qwen2.5-32b.yaml")
    shape = KNOWN_SHAPES[recipe.model.path]
    (tmp_path / "config.json").write_text(json.dumps(hub_config()))
    asked = resolve_sampler(recipe.sampler, has_gpus=False)
    settings = EngineSettings(model_path=str(tmp_path), name="replica", sampler=asked, max_model_len=1, seed=0)
    found = answer(
        *(VLLM_PROGRAM, str(tmp_path), json.dumps(SIZES), str(CPU_BLOCK_TOKENS), str(CACHE_GIB * 2**30)),
        environment=engine_environment(settings),
    )
    on_cpu = asked.model_copy(update={"dtype": "bfloat16", "kv_cache_gib": CACHE_GIB, "tensor_parallel_size": 1})
    longest = found.pop("longest")
    assert longest < 30_000
    assert longest == longest_fitting(lambda length: cpu_sampler_memory(shape, on_cpu, max_length=length), 30_000)
    for size in SIZES:
        sampler = recipe.sampler.model_copy(update={"tensor_parallel_size": size})
        refused = parallel_findings(resolve(recipe.model_copy(update={"sampler": sampler}), has_gpus=True), shape)
        if isinstance(found[str(size)], str):
            assert refused, (size, found[str(size)])
        elif not refused:  # what else does not divide, vLLM notices only when it builds layers
            assert found[str(size)] == CPU_BLOCK_TOKENS * kv_bytes_per_token(shape, tensor_parallel_size=size)
    assert [size for size in SIZES if isinstance(found[str(size)], int)] == [1, 2, 4, 5, 8]


def hub_config() -> dict[str, Any]:
    """What plan knows of the 32B model, as a config.json."""
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-32B-Instruct"]
    return {**config_of(shape), "architectures": ["Qwen2ForCausalLM"], "torch_dtype": "bfloat16"}
