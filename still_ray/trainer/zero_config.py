"""The DeepSpeed configuration of a stage."""

from typing import Any

from still_ray.config.schema import TrainerConfig, merged

_CPU_BUCKET = 50_000_000


def zero_config(trainer: TrainerConfig, *, use_gpu: bool) -> dict[str, Any]:
    """DeepSpeed's configuration; "auto" values are filled in by transformers from the training arguments.

    Gradients are added up over forward passes and reduced over ranks in float32. DeepSpeed's own choice is the model's
    type: in bfloat16 the sum of a step's forward passes loses every gradient below 1/256 of what is there already.

    Args:
        trainer: Stage, off-loading, and what is merged in on top.
        use_gpu: Chooses sizes: on GPUs transformers' own, which grow with the hidden size. On a CPU every collective is
            a round trip through the network stack, and models are small, so there one gather fetches all that comes
            next and one reduction returns all gradients (a step of 80 ms became one of 50).
    """
    config = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
        "zero_optimization": _zero_section(trainer, use_gpu=use_gpu),
    }
    return dict(merged(config, trainer.deepspeed))


def _zero_section(trainer: TrainerConfig, *, use_gpu: bool) -> dict[str, Any]:
    section: dict[str, Any] = {
        "stage": trainer.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": use_gpu,
        "reduce_bucket_size": "auto" if use_gpu else _CPU_BUCKET,
    }
    if trainer.zero_stage == 3:  # noqa: PLR2004 - ZeRO stage 3
        section |= _stage_3(use_gpu=use_gpu)
    if use_gpu and trainer.offload == "cpu":
        section |= _offload(trainer.zero_stage)
    return section


def _stage_3(*, use_gpu: bool) -> dict[str, Any]:
    return {
        "stage3_gather_16bit_weights_on_model_save": True,
        "stage3_prefetch_bucket_size": "auto" if use_gpu else _CPU_BUCKET,
        "stage3_param_persistence_threshold": "auto" if use_gpu else 0,
        "memory_efficient_linear": use_gpu,
        "stage3_max_live_parameters": 1_000_000_000,
        "stage3_max_reuse_distance": 1_000_000_000,
    }


def _offload(stage: int) -> dict[str, Any]:
    target = {"device": "cpu", "pin_memory": True}
    return {"offload_optimizer": target} | ({"offload_param": target} if stage == 3 else {})  # noqa: PLR2004
