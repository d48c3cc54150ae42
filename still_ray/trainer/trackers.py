"""Experiment trackers by transformers' own callbacks: W&B, TensorBoard and MLflow; none unless the recipe says so.

Each training stage is one run of the tracker, named after the run and the stage. Whatever a tracker writes to disk goes
into one folder of the run directory; what is to leave the machine needs the user's own key or address.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from still_ray.trainer.job import TrainJob

WANDB_PROJECT = "still-ray"


def tracker_environment(job: TrainJob, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that the callbacks of a stage read when they are built; the user's own values hold.

    Without WANDB_API_KEY or WANDB_MODE, W&B writes to its folder only (`wandb sync` sends that later); without
    MLFLOW_TRACKING_URI, MLflow writes files.

    Args:
        job: The stage.
        environment: What is set already.
    """
    folder = Path(job.tracker_dir)
    wanted = {
        "wandb": {
            "WANDB_PROJECT": WANDB_PROJECT,
            "WANDB_RUN_GROUP": job.run,
            "WANDB_DIR": str(folder),
            "WANDB_SILENT": "true",
            **({} if "WANDB_API_KEY" in environment else {"WANDB_MODE": "offline"}),
        },
        "mlflow": {
            "MLFLOW_EXPERIMENT_NAME": job.run,
            "MLFLOW_TRACKING_URI": (folder / "mlflow").as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",  # files need no database package
        },
    }
    found: dict[str, str] = {}
    for name in job.trainer.report_to:
        found |= {key: value for key, value in wanted.get(name, {}).items() if key not in environment}
    if "tensorboard" in job.trainer.report_to:  # one folder a stage, so never what an earlier stage set
        found["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard" / job.name)
    return found


def open_trackers(job: TrainJob) -> None:
    """Prepares this process for the callbacks of a stage; before TRL's trainer is built."""
    if job.trainer.report_to:
        os.environ.update(tracker_environment(job))
        Path(job.tracker_dir).mkdir(parents=True, exist_ok=True)


def close_trackers(job: TrainJob) -> None:
    """Ends what a callback leaves open: W&B's would go on into the next stage."""
    if "wandb" in job.trainer.report_to:
        import wandb  # type: ignore[import-not-found, unused-ignore]

        wandb.finish()
