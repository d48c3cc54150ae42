"""Memory of one device of a sampler replica: weights, what vLLM sets aside, and how many sequences the rest holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from still_ray.algo.planning.findings import GIB, Part, total_bytes
from still_ray.algo.planning.model import ModelShape
from still_ray.config import SamplerConfig

BLOCK_TOKENS: Final = 16
"""Tokens of one KV block on a GPU. Source: vLLM's default."""
CPU_BLOCK_TOKENS: Final = 128
"""The same on a CPU. Source: vLLM's CPU platform."""
_GPU_BATCHED_TOKENS: Final = 16_384
"""Tokens of one engine step on a GPU. Source: vLLM's default for offline use on a GPU of 70 GiB and more."""
_CPU_BATCHED_TOKENS: Final = 8192
"""The same on a CPU, unless a sequence is longer. Source: ours."""
_RUNTIME_BYTES: Final = 3 * GIB
"""CUDA context, NCCL and CUDA graphs of one worker. Source: ours, an assumption."""
_FLOAT32: Final = 4
_PLAIN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
_OTHER_CACHES: Final = ("kv_lora_rank", "num_kv_shared_layers", "global_head_dim", "layers_block_type", "mamba_d_state")
"""Keys of a config.json whose model keeps something else than keys and values of every layer and head."""


@dataclass(frozen=True, kw_only=True)
class SamplerMemory:
    """Memory of one device of a replica.

    Attributes:
        parts: Weights and what is set aside, the KV cache left out.
        kv_bytes: What is left for the KV cache; negative if nothing is.
        kv_bytes_per_token: Of one token on one device.
        block_tokens: Tokens of one KV block.
        sequence_tokens: Longest sequence.
    """

    parts: tuple[Part, ...]
    kv_bytes: int
    kv_bytes_per_token: int
    block_tokens: int
    sequence_tokens: int

    @property
    def num_blocks(self) -> int:
        """KV blocks of a replica: vLLM hands the cache out by the block (PagedAttention, arXiv 2309.06180)."""
        return max(0, self.kv_bytes // (self.block_tokens * self.kv_bytes_per_token))

    @property
    def num_sequences(self) -> int:
        """Sequences of the greatest length that fit at once."""
        return self.num_blocks // math.ceil(self.sequence_tokens / self.block_tokens)


def batched_tokens(sampler: SamplerConfig, *, max_length: int, on_gpu: bool) -> int:
    """Most tokens of one engine step, which engines are given and plans count with.

    An engine that is not told, and is built outside vLLM's own front ends, takes 2,048 on a GPU. On a CPU prompts are
    not cut into steps, so the longest sequence must fit into one. vLLM wants at least a token for every sequence,
    and warns of more than all sequences have.

    Args:
        sampler: The recipe's section.
        max_length: Longest prompt + response, tokens.
        on_gpu: Whether the engine has a GPU.
    """
    wanted = _GPU_BATCHED_TOKENS if on_gpu else max(_CPU_BATCHED_TOKENS, max_length)
    return max(sampler.max_num_seqs, min(wanted, sampler.max_num_seqs * max_length))


def kv_bytes_per_token(shape: ModelShape, *, tensor_parallel_size: int = 1, width: int = 2) -> int:
    """Keys and values of one token in all layers, on one device; fewer KV heads than devices are repeated.

    Source: 2 x layers x KV heads x head_dim x width, as vLLM's attention specification computes a page.
    """
    heads = max(1, shape.num_kv_heads // tensor_parallel_size)
    return 2 * shape.num_layers * heads * shape.head_dim * width


def gpu_sampler_memory(
    shape: ModelShape, sampler: SamplerConfig, *, max_length: int, device_bytes: int
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
    parts = (
        Part(
            name="weights",
            num_bytes=math.ceil(width * shape.num_parameters / devices),
            source=f"{width} B x parameters / tensor_parallel_size",
        ),
        _profiled(shape, sampler, width=width, num_tokens=batched_tokens(sampler, max_length=max_length, on_gpu=True)),
        Part(name="CUDA context, NCCL, CUDA graphs", num_bytes=_RUNTIME_BYTES, source="ours, an assumption"),
    )
    return SamplerMemory(
        parts=parts,
        kv_bytes=int(device_bytes * sampler.gpu_memory_utilization) - total_bytes(parts),
        kv_bytes_per_token=kv_bytes_per_token(shape, tensor_parallel_size=devices, width=width),
        block_tokens=BLOCK_TOKENS,
        sequence_tokens=max_length,
    )


def _profiled(shape: ModelShape, sampler: SamplerConfig, *, width: int, num_tokens: int) -> Part:
    """What vLLM's profiling run finds: one full step without gradients, and the logits of all sequences."""
    inner = (2 * shape.intermediate_size + shape.query_size) // sampler.tensor_parallel_size
    logits = sampler.max_num_seqs * shape.vocab_size * (width + 2 * _FLOAT32)
    return Part(
        name="activations and logits of one step",
        num_bytes=num_tokens * (2 * shape.hidden_size + inner) * width + logits,
        source=f"{num_tokens:,} tokens x (residual, gate and up) + max_num_seqs x vocabulary x 10 B; vLLM profiles the "
        "same",
    )


def cpu_sampler_memory(shape: ModelShape, sampler: SamplerConfig, *, max_length: int) -> SamplerMemory:
    """Memory of a CPU replica: float32 unless the recipe says otherwise, a cache of `kv_cache_gib` at most."""
    width = 2 if sampler.dtype == "bfloat16" else _FLOAT32
    per_token = kv_bytes_per_token(shape, width=width)
    # No larger than the longest sequences can fill, as still_ray.sampler.vllm_engine shrinks it.
    blocks = (sampler.max_num_seqs + 1) * (math.ceil(max_length / CPU_BLOCK_TOKENS) + 1)
    weights = Part(name="weights", num_bytes=width * shape.num_parameters, source=f"{width} B x parameters")
    runtime = Part(name="process", num_bytes=2 * GIB, source="vLLM and torch in a process; ours, measured at 1-2 GiB")
    return SamplerMemory(
        parts=(weights, runtime),
        kv_bytes=min(sampler.kv_cache_gib * GIB, blocks * CPU_BLOCK_TOKENS * per_token),
        kv_bytes_per_token=per_token,
        block_tokens=CPU_BLOCK_TOKENS,
        sequence_tokens=max_length,
    )


def longest_cached(config: Mapping[str, Any], sampler: SamplerConfig) -> int | None:
    """Longest sequence that the cache of a CPU replica holds, tokens; vLLM does not start with a longer one.

    Of `kv_cache_gib`, vLLM keeps one block back; a layer with a sliding window may need one more than its tokens fill,
    and on a CPU, where a prompt is computed in one step, no fewer.

    Args:
        config: The model's config.json, of any family.
        sampler: The recipe's section.

    Returns:
        A multiple of the block's tokens; None for a model whose cache is of another kind.
    """
    text = config.get("text_config") or config
    per_token = _cached_bytes(text, sampler)
    if per_token is None:
        return None
    spare = 2 if "sliding_attention" in (text.get("layer_types") or ()) else 1
    blocks = sampler.kv_cache_gib * GIB // (CPU_BLOCK_TOKENS * per_token) - spare
    return max(0, blocks) * CPU_BLOCK_TOKENS


def _cached_bytes(text: Mapping[str, Any], sampler: SamplerConfig) -> int | None:
    """Keys and values of one token in all layers, on one worker; None if the config does not say."""
    heads = text.get("num_key_value_heads") or text.get("num_attention_heads")
    layers, queries, hidden = text.get("num_hidden_layers"), text.get("num_attention_heads"), text.get("hidden_size")
    size = text.get("head_dim") or (hidden // queries if hidden and queries else None)
    plain = _PLAIN_LAYERS.issuperset(text.get("layer_types") or ())
    is_other = any(text.get(key) for key in _OTHER_CACHES) or not plain
    if is_other or not (heads and layers and size):
        return None
    width = 2 if sampler.dtype == "bfloat16" else _FLOAT32
    return int(2 * layers * max(1, heads // sampler.tensor_parallel_size) * size * width)
