"""From a job to TRL's configuration objects."""

import dataclasses
from typing import Any

from transformers import TrainingArguments

from still_ray.algo.optimizer_steps import warmup_steps
from still_ray.algo.resolved import ResolvedTrainer
from still_ray.trainer.job import TrainJob
from still_ray.trainer.schedule import gradient_accumulation_steps
from still_ray.trainer.zero_config import zero_config

_NEVER = 10**9


def training_arguments(job: TrainJob, *, group: ResolvedTrainer, total_steps: int) -> TrainingArguments:
    """TRL's configuration of the job.

    Building it tells transformers that a ZeRO-3 model comes: build it before the model, and keep it.
    """
    known = {field.name for field in dataclasses.fields(job.training.config)}
    handed_on = {name: value for name, value in job.trainer.trl.items() if name in known}
    return job.training.arguments(_common(job, group=group, total_steps=total_steps) | handed_on)


def _common(job: TrainJob, *, group: ResolvedTrainer, total_steps: int) -> dict[str, Any]:
    return (
        _optimisation(job, num_workers=group.data_parallel_size, total_steps=total_steps)
        | _bookkeeping(job)
        | {
            "seed": job.seed,
            "use_cpu": not group.use_gpu,
            "bf16": group.bf16,
            "gradient_checkpointing": group.gradient_checkpointing,
            "deepspeed": zero_config(job.trainer, use_gpu=group.use_gpu),
            "dataloader_pin_memory": group.use_gpu,
            "max_length": None,  # rows over the limit are left out and counted before
            "train_sampling_strategy": "sequential",  # the rows come in the order of `schedule.row_order`
            "remove_unused_columns": False,
        }
    )


def _optimisation(job: TrainJob, *, num_workers: int, total_steps: int) -> dict[str, Any]:
    settings, optimizer = job.settings, job.settings.optimizer
    per_device, passes = (
        settings.least_rows,
        gradient_accumulation_steps(
            global_batch_size=settings.global_batch_size,
            per_device_batch_size=settings.least_rows,
            num_workers=num_workers,
        ),
    )
    if settings.micro_batch_tokens is not None:  # the Trainer takes a whole step for one batch: see `trl_trainers`
        per_device, passes = per_device * passes, 1
    return {
        "max_steps": total_steps,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": passes,
        "learning_rate": optimizer.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": warmup_steps(total_steps=total_steps, warmup_ratio=optimizer.warmup_ratio),
        "optim": "adamw_torch_fused",  # in place: the plain one holds two more copies of the weights in its step
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
