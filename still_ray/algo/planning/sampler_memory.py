"""Memory of one device of a sampler replica: weights, what vLLM sets aside, and how many sequences the rest holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from still_ray.algo.planning.findings import GIB, Part, total_bytes
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.resolved import ResolvedRecipe, ResolvedSampler

BLOCK_TOKENS: Final = 16
"""Tokens of one KV block on a GPU. Source: vLLM's default."""
CPU_BLOCK_TOKENS: Final = 128
"""The same on a CPU. Source: vLLM's CPU platform."""
_GPU_BATCHED_TOKENS: Final = 16_384
"""Tokens of one engine step on a GPU. Source: vLLM's default for offline use on a GPU of 70 GiB and more."""
_CPU_BATCHED_TOKENS: Final = 8192
"""The same on a CPU, unless a sequence is longer. Source: ours."""
ENGINE_RUNTIME_BYTES: Final = 3 * GIB
"""CUDA context, NCCL and CUDA graphs of one worker, which an engine that sleeps keeps. Source: ours, an assumption."""
_CACHE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
"""Of a number of the KV cache, by `kv_cache_dtype`. Source: vLLM's; those of other types carry scales beside them."""
COUNTED_ARGUMENTS: Final = frozenset({"kv_cache_dtype", "block_size", "max_num_batched_tokens"})
"""Of `sampler.engine`: those that are counted with here."""
_FLOAT32: Final = 4
_LOGIT_BYTES: Final = 12
"""Of one logit on a CPU: itself, its log-softmax and the temporary between them, in float32. Source: read in vLLM."""
_PROBE_TOKENS: Final = 256
"""Of a sequence that is scored at once. Source: still_ray.actors.training.train_loop."""


@dataclass(frozen=True, kw_only=True)
class SamplerMemory:
    """Memory of one device of a replica.

    Attributes:
        parts: Weights and what is set aside, the KV cache left out.
        kv_bytes: What is left for the KV cache; negative if nothing is.
        kv_bytes_per_token: Of one token on one device, while every layer holds it.
        block_tokens: Tokens of one KV block.
        sequence_tokens: Longest sequence.
        sequence_bytes: KV cache of such a one: of a layer with a sliding window no more than that.
    """

    parts: tuple[Part, ...]
    kv_bytes: int
    kv_bytes_per_token: int
    block_tokens: int
    sequence_tokens: int
    sequence_bytes: int

    @property
    def num_sequences(self) -> int:
        """Sequences of the greatest length that fit at once; a block is kept back by vLLM, and filled by nobody."""
        kept_back = self.block_tokens * self.kv_bytes_per_token
        return max(0, (self.kv_bytes - kept_back) // self.sequence_bytes)


def batched_tokens(sampler: ResolvedSampler, *, max_length: int, on_gpu: bool) -> int:
    """Most tokens of one engine step, which engines are given and plans count with.

    An engine that is not told, and is built outside vLLM's own front ends, takes 2,048 on a GPU. On a CPU prompts are
    not cut into steps, so the longest sequence must fit into one. vLLM wants at least a token for every sequence,
    and warns of more than all sequences have.

    Args:
        sampler: The recipe's section.
        max_length: Longest prompt + response, tokens.
        on_gpu: Whether the engine has a GPU.
    """
    asked = _number(sampler, "max_num_batched_tokens")
    if asked is not None:
        return asked
    wanted = _GPU_BATCHED_TOKENS if on_gpu else max(_CPU_BATCHED_TOKENS, max_length)
    return max(sampler.max_num_seqs, min(wanted, sampler.max_num_seqs * max_length))


def _number(sampler: ResolvedSampler, argument: str) -> int | None:
    """A number that is handed on to the engine; None: none is."""
    value = sampler.engine.get(argument)
    return value if type(value) is int else None


def _cache_width(sampler: ResolvedSampler, width: int) -> int:
    """Bytes of a number of the KV cache: the weights' `width` unless the recipe hands on another type."""
    return _CACHE_BYTES.get(str(sampler.engine.get("kv_cache_dtype")), width)


def kv_bytes_per_token(shape: ModelShape, *, tensor_parallel_size: int = 1, width: int = 2) -> int:
    """Keys and values of one token in all layers, on one device; fewer KV heads than devices are repeated.

    Source: 2 x layers x KV heads x head_dim x width, as vLLM's attention specification computes a page.
    """
    heads = max(1, shape.num_kv_heads // tensor_parallel_size)
    return 2 * shape.num_layers * heads * shape.head_dim * width


def sequence_bytes(shape: ModelShape, *, tokens: int, step_tokens: int, block_tokens: int, bytes_per_token: int) -> int:
    """KV cache of one sequence on one device.

    vLLM hands the cache out by the block (PagedAttention, arXiv 2309.06180). A layer with a sliding window lets go of
    what lies behind it only after a step, so it holds the window and what one step computes, and one block more, since
    the window may begin inside one. Source: vLLM's `SlidingWindowSpec`.

    Args:
        shape: The model.
        tokens: Of the sequence.
        step_tokens: Most tokens of an engine step.
        block_tokens: Of one block.
        bytes_per_token: Of one token in all layers.
    """
    whole = math.ceil(tokens / block_tokens)
    within = math.ceil(min(shape.window - 1 + step_tokens, tokens) / block_tokens) + 1
    num_windows = shape.num_window_layers
    blocks = (shape.num_layers - num_windows) * whole + num_windows * within
    return blocks * block_tokens * bytes_per_token // shape.num_layers


def longest_fitting(memory_at: Callable[[int], SamplerMemory], most: int) -> int:
    """Longest sequence of which one fits the KV cache, tokens; 0 if none does.

    Args:
        memory_at: A replica's memory by the length of its longest sequence.
        most: No longer one is wanted.
    """
    if memory_at(most).num_sequences:
        return most
    least, blocks = 0, most // CPU_BLOCK_TOKENS + 1
    while blocks - least > 1:
        middle = (least + blocks) // 2
        fits = memory_at(middle * CPU_BLOCK_TOKENS).num_sequences > 0
        least, blocks = (middle, blocks) if fits else (least, middle)
    return least * CPU_BLOCK_TOKENS


def gpu_sampler_memory(
    shape: ModelShape, sampler: ResolvedSampler, *, max_length: int, device_bytes: int
) -> SamplerMemory:
    """Memory of one GPU of a replica.

    Args:
        shape: The model.
        sampler: The recipe's section.
        max_length: Longest prompt + response, tokens.
        device_bytes: Memory of the GPU.
    """
    width = _FLOAT32 if sampler.dtype == "float32" else 2
    devices = sampler.tensor_parallel_size
    block_tokens = _number(sampler, "block_size") or BLOCK_TOKENS
    step_tokens = batched_tokens(sampler, max_length=max_length, on_gpu=True)
    per_token = kv_bytes_per_token(shape, tensor_parallel_size=devices, width=_cache_width(sampler, width))
    parts = (
        Part(
            name="weights",
            num_bytes=math.ceil(width * shape.num_parameters / devices),
            source=f"{width} B x parameters / tensor_parallel_size",
        ),
        _profiled(shape, sampler, width=width, num_tokens=step_tokens),
        Part(name="CUDA context, NCCL, CUDA graphs", num_bytes=ENGINE_RUNTIME_BYTES, source="ours, an assumption"),
    )
    return SamplerMemory(
        parts=parts,
        kv_bytes=int(device_bytes * sampler.gpu_memory_utilization) - total_bytes(parts),
        kv_bytes_per_token=per_token,
        block_tokens=block_tokens,
        sequence_tokens=max_length,
        sequence_bytes=sequence_bytes(
            shape, tokens=max_length, step_tokens=step_tokens, block_tokens=block_tokens, bytes_per_token=per_token
        ),
    )


def _profiled(shape: ModelShape, sampler: ResolvedSampler, *, width: int, num_tokens: int) -> Part:
    """What vLLM's profiling run finds: one full step without gradients, and the logits of all sequences."""
    inner = (2 * shape.intermediate_size + shape.query_size) // sampler.tensor_parallel_size
    logits = sampler.max_num_seqs * shape.vocab_size * (width + 2 * _FLOAT32)
    return Part(
        name="activations and logits of one step",
        num_bytes=num_tokens * (2 * shape.hidden_size + inner) * width + logits,
        source=f"{num_tokens:,} tokens x (residual, gate and up) + max_num_seqs x vocabulary x 10 B; vLLM profiles the "
        "same",
    )


def _step_on_cpu(shape: ModelShape, sampler: ResolvedSampler, *, width: int, num_tokens: int) -> Part:
    """One full step, and the logits of all sequences, or of the probes that prove new weights, with their copies."""
    inner = (2 * shape.intermediate_size + shape.query_size) // sampler.tensor_parallel_size
    num_rows = max(sampler.max_num_seqs, _PROBE_TOKENS)
    return Part(
        name="activations and logits of one step",
        num_bytes=num_tokens * (2 * shape.hidden_size + inner) * width + num_rows * shape.vocab_size * _LOGIT_BYTES,
        source=f"{num_tokens:,} tokens x (residual, gate and up) + {num_rows} rows x vocabulary x {_LOGIT_BYTES} B",
    )


def cpu_sampler_memory(shape: ModelShape, sampler: ResolvedSampler, *, max_length: int) -> SamplerMemory:
    """Memory of a CPU replica: float32 unless the recipe says otherwise, a cache of `kv_cache_gib` at most."""
    width = 2 if sampler.dtype == "bfloat16" else _FLOAT32
    devices = sampler.tensor_parallel_size
    per_token = kv_bytes_per_token(shape, tensor_parallel_size=devices, width=_cache_width(sampler, width))
    block_tokens = _number(sampler, "block_size") or CPU_BLOCK_TOKENS
    step_tokens = batched_tokens(sampler, max_length=max_length, on_gpu=False)
    # No larger than the longest sequences can fill, as still_ray.sampler.vllm_engine shrinks it.
    blocks = (sampler.max_num_seqs + 1) * (math.ceil(max_length / block_tokens) + 1)
    weights = Part(
        name="weights",
        num_bytes=math.ceil(width * shape.num_parameters / devices),
        source=f"{width} B x parameters / tensor_parallel_size",
    )
    head = Part(
        name="packed LM head",
        num_bytes=math.ceil(width * shape.num_embedding / devices),
        source=f"{width} B x vocabulary x hidden size: vLLM packs it for its matrix product and keeps the one it has",
    )
    return SamplerMemory(
        parts=(weights, head, _step_on_cpu(shape, sampler, width=width, num_tokens=step_tokens)),
        kv_bytes=min(sampler.kv_cache_gib * GIB, blocks * block_tokens * per_token),
        kv_bytes_per_token=per_token,
        block_tokens=block_tokens,
        sequence_tokens=max_length,
        sequence_bytes=sequence_bytes(
            shape, tokens=max_length, step_tokens=step_tokens, block_tokens=block_tokens, bytes_per_token=per_token
        ),
    )


def replica_memory(recipe: ResolvedRecipe, shape: ModelShape, *, device_bytes: int) -> SamplerMemory:
    """Memory of one device of a replica, on a GPU or a CPU as the recipe's actors would choose.

    Args:
        recipe: The recipe.
        shape: The model.
        device_bytes: Memory of a GPU.
    """
    length = recipe.model.longest
    if not recipe.sampler.on_gpu:
        return cpu_sampler_memory(shape, recipe.sampler, max_length=length)
    return gpu_sampler_memory(shape, recipe.sampler, max_length=length, device_bytes=device_bytes)
