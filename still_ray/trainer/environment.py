"""Environment variables that a trainer rank needs before torch, DeepSpeed or TRL are imported."""

from still_ray.algo.resolved import ResolvedTrainer


def trainer_environment(trainer: ResolvedTrainer, *, use_gpu: bool) -> dict[str, str]:
    """The variables to set in every rank's process before it imports anything heavy.

    Args:
        trainer: The trainer group's section of the recipe.
        use_gpu: Whether the ranks hold GPUs.

    Returns:
        Names and values; on a CPU they pick DeepSpeed's CPU accelerator and pin the number of threads.
    """
    wandb = {} if "wandb" in trainer.report_to else {"WANDB_DISABLED": "true"}
    return _QUIET | wandb | (_gpu_environment() if use_gpu else _cpu_environment(trainer.threads))


_QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TQDM_DISABLE": "1",
    "DS_LOG_LEVEL": "warning",
}


def _cpu_environment(threads: int) -> dict[str, str]:
    return {
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TORCHDYNAMO_DISABLE": "1",  # nothing is compiled; its import alone costs seconds
        # Without this DeepSpeed runs numactl in a process of its own, on every step, to count NUMA nodes.
        "LOCAL_SIZE": "1",
    }


def _gpu_environment() -> dict[str, str]:
    return {"DS_ACCELERATOR": "cuda", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
