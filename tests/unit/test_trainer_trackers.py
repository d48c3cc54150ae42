"""Experiment trackers: what their callbacks find in the environment, and that a missing package is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest

from still_ray.algo.placement import resolve_trainer
from still_ray.cli.preflight.machines import TRACKER_PACKAGES, check_trackers
from still_ray.config import TrainerConfig
from still_ray.config.schema import Reporter
from still_ray.methods.sft import SFT, SftConfig
from still_ray.trainer.environment import trainer_environment
from still_ray.trainer.job import TrainJob
from still_ray.trainer.trackers import tracker_environment
from still_ray.types import InputError


def job(folder: Path, *reporters: Reporter, name: str = "001-sft") -> TrainJob:
    settings = SftConfig(epochs=1, global_batch_size=2, per_device_batch_size=1, max_length=8)
    trainer = TrainerConfig(report_to=reporters)
    return TrainJob(
        name=name,
        method="sft",
        training_path=SFT.trainer,
        model_path="m",
        output_dir="o",
        settings=settings,
        trainer=trainer,
        seed=0,
        run="demo",
        tracker_dir=str(folder),
    )


def test_nothing_is_set_where_nothing_is_reported(tmp_path: Path) -> None:
    assert tracker_environment(job(tmp_path), {}) == {}


def test_each_stage_has_a_tensorboard_folder_of_its_own(tmp_path: Path) -> None:
    first = tracker_environment(job(tmp_path, "tensorboard"), {})
    assert first == {"TENSORBOARD_LOGGING_DIR": f"{tmp_path}/tensorboard/001-sft"}
    second = tracker_environment(job(tmp_path, "tensorboard", name="002-dpo"), first)
    assert second == {"TENSORBOARD_LOGGING_DIR": f"{tmp_path}/tensorboard/002-dpo"}


def test_without_a_key_nothing_leaves_the_machine(tmp_path: Path) -> None:
    found = tracker_environment(job(tmp_path, "wandb", "mlflow"), {})
    assert found["WANDB_MODE"] == "offline" and found["WANDB_DIR"] == str(tmp_path)
    assert found["MLFLOW_TRACKING_URI"] == (tmp_path / "mlflow").as_uri()


def test_the_users_own_settings_hold(tmp_path: Path) -> None:
    own = {"WANDB_API_KEY": "k", "WANDB_PROJECT": "mine", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    found = tracker_environment(job(tmp_path, "wandb", "mlflow"), own)
    assert not found.keys() & {"WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"}
    assert found["WANDB_RUN_GROUP"] == found["MLFLOW_EXPERIMENT_NAME"] == "demo"
    assert tracker_environment(job(tmp_path, "wandb"), {"WANDB_MODE": "online"}).get("WANDB_MODE") is None


def test_wandb_is_disabled_unless_it_is_asked_for() -> None:
    assert (
        trainer_environment(resolve_trainer(TrainerConfig(), has_gpus=False), use_gpu=False)["WANDB_DISABLED"] == "true"
    )
    with_wandb = resolve_trainer(TrainerConfig(report_to=("wandb",)), has_gpus=False)
    assert "WANDB_DISABLED" not in trainer_environment(with_wandb, use_gpu=False)


@pytest.mark.parametrize("name", TRACKER_PACKAGES)
def test_a_tracker_that_is_not_installed_is_refused(name: str) -> None:
    config = TrainerConfig(report_to=(cast(Any, name),))
    if any(map(find_spec, TRACKER_PACKAGES[name])):
        check_trackers(config)
    else:
        with pytest.raises(InputError, match=f"trainer.report_to: {name} is not installed; pip install {name}"):
            check_trackers(config)
