"""Device-hours of a run from stated assumptions about speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.workload import StageWork

_SAMPLER_TOKENS_TIMES_PARAMETERS: Final = 1.6e13
GPU_TFLOPS: Final = 989.0
"""Dense bfloat16. Source: NVIDIA's data sheet of the H100 SXM."""
CPU_TFLOPS: Final = 0.1
"""Of one core, float32. Source: ours: a tiny model trained at 0.04 in it, see Speed.mfu."""
CPU_SAMPLER_TOKENS_PER_S: Final = 2_600.0
"""Of a CPU replica. Source: ours, measured for a model of a million parameters."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast devices are.

    Attributes:
        device_tflops: Peak of a device, 1e12 operations per second.
        mfu: Share of the peak that training reaches (model FLOPs utilisation). Default: an assumption.
        sampler_tokens_per_s: Tokens per second of one device of a replica; None: 16,000 over the model's 1e9
            parameters, an assumption.
    """

    device_tflops: float = GPU_TFLOPS
    mfu: float = 0.35
    sampler_tokens_per_s: float | None = None

    def tokens_per_s(self, shape: ModelShape) -> float:
        """Tokens per second of one sampler device."""
        return self.sampler_tokens_per_s or _SAMPLER_TOKENS_TIMES_PARAMETERS / shape.num_parameters


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Time of one stage.

    Attributes:
        work: What it does.
        device_hours: Devices busy, times hours.
        hours: Wall time when all devices of that kind share the work evenly.
    """

    work: StageWork
    device_hours: float
    hours: float


def flops_per_token(shape: ModelShape, *, mean_tokens: int) -> float:
    """Operations of training on one token, recomputation not counted, as MFU is defined.

    Source: 6 x parameters that multiply, plus 12 x layers x query width x mean context / 2 for causal attention
    (PaLM, arXiv 2204.02311 appendix B; halved for the causal mask).
    """
    multiplied = shape.num_parameters - (0 if shape.tied else shape.num_embedding)
    return 6.0 * multiplied + 6.0 * shape.num_layers * shape.query_size * mean_tokens


def stage_costs(
    works: Sequence[StageWork],
    shape: ModelShape,
    speed: Speed,
    *,
    sampler_devices: float,
    trainer_devices: int,
    mean_tokens: int,
) -> tuple[StageCost, ...]:
    """Device-hours and wall time of every stage.

    Args:
        works: The stages.
        shape: The model.
        speed: The assumptions.
        sampler_devices: Devices of all replicas.
        trainer_devices: Ranks.
        mean_tokens: Mean length of a training row.
    """
    operations = flops_per_token(shape, mean_tokens=mean_tokens)
    per_s = speed.device_tflops * 1e12 * speed.mfu / operations
    costs = []
    for work in works:
        sampling = work.sampled_tokens / speed.tokens_per_s(shape) / 3600
        training = work.trained_tokens / per_s / 3600
        hours = sampling / max(sampler_devices, 1) + training / trainer_devices
        costs.append(StageCost(work=work, device_hours=sampling + training, hours=hours))
    return tuple(costs)
