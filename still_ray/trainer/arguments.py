"""From a job to TRL's configuration objects."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments

from still_ray.algo.optimizer_steps import warmup_steps
from still_ray.trainer.job import TrainJob
from still_ray.trainer.schedule import gradient_accumulation_steps
from still_ray.trainer.zero_config import zero_config

_NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the recipe's "auto" values come down to on this rank's device."""

    use_gpu: bool
    bf16: bool
    gradient_checkpointing: bool

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights in forward and backward passes."""
        return torch.bfloat16 if self.bf16 else torch.float32


def device_of(job: TrainJob, *, use_gpu: bool) -> Device:
    """Resolves "auto": bfloat16 and gradient checkpointing on GPUs, neither on a CPU."""
    bf16, checkpointing = job.trainer.bf16, job.trainer.gradient_checkpointing
    return Device(
        use_gpu=use_gpu,
        bf16=use_gpu if bf16 == "auto" else bf16,
        gradient_checkpointing=use_gpu if checkpointing == "auto" else checkpointing,
    )


def training_arguments(job: TrainJob, *, device: Device, total_steps: int) -> TrainingArguments:
    """TRL's configuration of the job.

    Building it tells transformers that a ZeRO-3 model comes: build it before the model, and keep it.
    """
    return job.training.arguments(_common(job, device=device, total_steps=total_steps))


def _common(job: TrainJob, *, device: Device, total_steps: int) -> dict[str, Any]:
    return (
        _optimisation(job, total_steps=total_steps)
        | _bookkeeping(job)
        | {
            "seed": job.seed,
            "use_cpu": not device.use_gpu,
            "bf16": device.bf16,
            "gradient_checkpointing": device.gradient_checkpointing,
            "deepspeed": zero_config(job.trainer, use_gpu=device.use_gpu),
            "dataloader_pin_memory": device.use_gpu,
            "max_length": None,  # rows over the limit are left out and counted before
            "train_sampling_strategy": "sequential",  # the rows come in the order of `schedule.row_order`
            "remove_unused_columns": False,
        }
    )


def _optimisation(job: TrainJob, *, total_steps: int) -> dict[str, Any]:
    settings, optimizer = job.settings, job.settings.optimizer
    return {
        "max_steps": total_steps,
        "per_device_train_batch_size": settings.per_device_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps(
            global_batch_size=settings.global_batch_size,
            per_device_batch_size=settings.per_device_batch_size,
            num_workers=job.trainer.num_workers,
        ),
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": warmup_steps(total_steps=total_steps, warmup_ratio=optimizer.warmup_ratio),
        "optim": "adamw_torch",
        "weight_decay": optimizer.weight_decay,
        "adam_beta2": optimizer.adam_beta2,
        "max_grad_norm": optimizer.max_grad_norm,
    }


def _bookkeeping(job: TrainJob) -> dict[str, Any]:
    save_steps = job.settings.save_steps
    return {
        "output_dir": job.state_dir,
        "logging_steps": job.trainer.logging_steps,
        "logging_nan_inf_filter": False,  # a diverged loss must be seen
        "save_strategy": "no" if save_steps is None else "steps",
        "save_steps": save_steps or _NEVER,
        "report_to": list(job.trainer.report_to),
        "run_name": f"{job.run} {job.name}".strip(),
        "disable_tqdm": True,
        "log_level": "warning",
    }
