"""What the ranks of a trainer group send each other in a step, and what that costs at a measured rate."""

from __future__ import annotations

import math
from typing import Final

from still_ray.algo.planning.findings import size_text
from still_ray.algo.planning.model import ModelShape
from still_ray.config.schema import TrainingSection

ZERO_3: Final = 3
GRADIENT_BYTES: Final = 4
"""Of one gradient on its way: they are reduced in float32. Source: still_ray.trainer.zero_config."""

PCIE_BYTES_PER_S: Final = 25e9
"""Between a GPU and its host, one way. Source: ours, an assumption: PCIe 4.0 x16 carries 32e9 and some of it is
protocol; 5.0 has twice as much, which two GPUs may have to share."""

TCP_BYTES_PER_S: Final = 10e9
"""What ranks on several machines reach over TCP at best. Source: 100 Gbit/s Ethernet carries 12.5e9 bytes/s and its
protocols take some of it; a machine of eight GPUs on InfiniBand, RoCE or EFA reaches several times as much."""


def passes_per_step(settings: TrainingSection, *, num_sequences: int, num_ranks: int, row_tokens: float) -> int:
    """Forward passes that each rank makes for an optimizer step.

    Args:
        settings: The stage's section.
        num_sequences: Sequences that a row puts through the model.
        num_ranks: Ranks with rows of their own.
        row_tokens: Tokens of one of these sequences, if tokens decide how many rows share a pass.
    """
    together = settings.per_device_batch_size
    if settings.micro_batch_tokens is not None:
        together = max(1, int(settings.micro_batch_tokens / (num_sequences * row_tokens)))
    return max(1, math.ceil(settings.global_batch_size / (together * num_ranks)))


def received_bytes(
    num_parameters: int,
    *,
    num_ranks: int,
    micro_batches: int,
    zero_stage: int,
    parameter_bytes: int,
    num_trained: int | None = None,
) -> int:
    """Bytes that each rank receives in one optimizer step.

    ZeRO-3 gathers the parameters for the forward pass and once more for the backward pass (which recomputes activations
    with the same ones), and reduces the gradients to their owners, in every micro-batch. ZeRO-2 reduces them there too
    and gathers the new parameters once, after the step. A rank has its own share already. Source: ZeRO, arXiv
    1910.02054, section 7; micro-batches as DeepSpeed does them.

    Args:
        num_parameters: Of the model.
        num_ranks: Of the group.
        micro_batches: Gradient accumulation steps.
        zero_stage: 2 or 3.
        parameter_bytes: Bytes of one parameter in forward and backward passes.
        num_trained: Those that have gradients, and under ZeRO-2 are new after a step; None: all.
    """
    trained = num_parameters if num_trained is None else num_trained
    gathered = 2 * micro_batches * num_parameters if zero_stage == ZERO_3 else trained
    moved = gathered * parameter_bytes + micro_batches * trained * GRADIENT_BYTES
    return moved * (num_ranks - 1) // num_ranks


def key_copies(num_kv_heads: int, sequence_parallel_size: int) -> int:
    """How often each key and value head is repeated before heads are divided over ranks that have slices of a row.

    Up to the least common multiple of heads and ranks: then each rank has as many, and those that its query heads look
    at. Head i of the repeated ones is head i // copies of the model's.

    Args:
        num_kv_heads: Of the model, a divisor of its query heads.
        sequence_parallel_size: Ranks that share a row, a divisor of the query heads too.
    """
    return math.lcm(num_kv_heads, sequence_parallel_size) // num_kv_heads


def exchanged_bytes(
    shape: ModelShape, *, num_tokens: int, sequence_parallel_size: int, activation_bytes: int, recomputes: bool
) -> int:
    """Bytes that each rank receives through the all-to-alls of one forward and backward pass over shared rows.

    In every layer queries, keys and values go one way and the attention's output the other, once more where layers are
    recomputed, and their gradients back. A rank has its own part already. Source: Ulysses, arXiv 2309.14509, section 3.

    Args:
        shape: The model.
        num_tokens: Of the rows, padded.
        sequence_parallel_size: Ranks that share them.
        activation_bytes: Bytes of one activation.
        recomputes: Whether the backward pass computes layers once more.
    """
    copies = key_copies(shape.num_kv_heads, sequence_parallel_size)
    width = 2 * shape.query_size + 2 * copies * shape.kv_size
    passes = 3 if recomputes else 2
    sent = passes * shape.num_layers * width * activation_bytes * -(-num_tokens // sequence_parallel_size)
    return sent * (sequence_parallel_size - 1) // sequence_parallel_size


def rate_text(bytes_per_s: float, *, num_ranks: int, num_machines: int, use_gpu: bool) -> str:
    """The measured rate in words; with a warning where it is what GPUs on several machines get by TCP."""
    where = f"{num_ranks} ranks on {num_machines} machine{'s' if num_machines > 1 else ''}"
    text = f"{where}: an all-gather brings {bytes_per_s / 1e9:.2f} GB/s to each"
    if use_gpu and num_machines > 1 and bytes_per_s < TCP_BYTES_PER_S:
        return (
            f"warning: {text}, as over TCP; no InfiniBand, RoCE or EFA seems to be in use: docs/clusters.md, the fabric"
        )
    return text


def step_text(num_bytes: int, bytes_per_s: float) -> str:
    """What a step costs at that rate, in words."""
    seconds = num_bytes / bytes_per_s
    return f"a step brings {size_text(num_bytes)} to each rank: {seconds:.2g} s at that rate, less what overlaps"
