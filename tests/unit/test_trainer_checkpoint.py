"""What lies on disk while a stage runs and after it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from still_ray.algo.placement import resolve_trainer
from still_ray.config.schema import LoraConfig, TrainerConfig
from still_ray.methods.sft import SFT, SftConfig
from still_ray.trainer.checkpoint import (
    complete_state,
    job_digest,
    open_state,
    publish,
    state_of,
    write_checkpoint,
)
from still_ray.trainer.environment import trainer_environment
from still_ray.trainer.job import ModelFilesError, TrainJob
from still_ray.trainer.saving import StartConfigs, _write
from still_ray.types import RunError
from tests.tiny_model import build_tiny_checkpoint

JOB = TrainJob(
    name="001-sft",
    method="sft",
    training_path=SFT.trainer,
    model_path="m",
    output_dir="o",
    settings=SftConfig(),
    trainer=TrainerConfig(),
    seed=0,
)


def test_a_state_that_was_saved_before_there_were_adapters_is_known_again_and_one_of_adapters_is_another() -> None:
    """The digest of a release whose trainer section had no `lora`."""
    adapted = replace(JOB, trainer=TrainerConfig(lora=LoraConfig()))
    assert job_digest(JOB, 3, 9) == "d62ee641373cdd55ac12fbfd40d6c1fb0785226aa31125182db8263319ffb7c9"
    assert job_digest(adapted, 3, 9) != job_digest(JOB, 3, 9)


def test_how_a_step_is_computed_belongs_to_a_job_and_where_it_is_kept_does_not() -> None:
    packed = replace(JOB, settings=JOB.settings.model_copy(update={"micro_batch_tokens": 4096}))
    assert job_digest(packed, 3, 9) != job_digest(JOB, 3, 9)
    spared = JOB.trainer.model_copy(update={"num_mlp_tiles": 8, "offload_activations": True})
    assert job_digest(replace(JOB, trainer=spared), 3, 9) == job_digest(JOB, 3, 9)


def _checkpoint(state: Path, step: int) -> Path:
    path = state / f"checkpoint-{step}"
    path.mkdir()
    return path


def test_publishing_replaces_a_whole_directory(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").touch()
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "fresh").touch()
    publish(tmp_path / "prepared", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["fresh"]


WEIGHTS = b"w" * 100_000


def write_weights(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)


def test_a_checkpoint_that_its_disk_does_not_take_goes_to_the_spare_folder(small_disk: Path, tmp_path: Path) -> None:
    spare = tmp_path / "scratch" / "checkpoint"
    job = replace(JOB, output_dir=str(small_disk / "checkpoint"), spare_dir=str(spare))
    refusal = write_checkpoint(write_weights, job, num_bytes=7)
    assert refusal == (
        f"{small_disk}/checkpoint: a checkpoint of 100,000 bytes cannot be written, 65,536 are free there: "
        "[Errno 28] No space left on device"
    )
    assert (spare / "model.safetensors").read_bytes() == WEIGHTS
    assert list(small_disk.iterdir()) == [], "half a checkpoint does not fill the disk"
    assert [path.name for path in spare.parent.iterdir()] == ["checkpoint"]


def test_a_checkpoint_that_fits_is_in_its_place_alone(tmp_path: Path) -> None:
    job = replace(JOB, output_dir=str(tmp_path / "run/checkpoint"), spare_dir=str(tmp_path / "spare"))
    assert write_checkpoint(write_weights, job, num_bytes=7) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run/checkpoint/model.safetensors").read_bytes() == WEIGHTS


def test_a_checkpoint_that_fits_nowhere_is_an_error_that_names_both_places(small_disk: Path) -> None:
    job = replace(JOB, output_dir=str(small_disk / "checkpoint"), spare_dir=str(small_disk / "spare/checkpoint"))
    with pytest.raises(
        ModelFilesError, match=rf"^{small_disk}/checkpoint: .* of 7 bytes .*; nor to {small_disk}/spare"
    ):
        write_checkpoint(write_weights, job, num_bytes=7)


def test_a_state_that_a_rank_did_not_finish_is_not_resumed_from(tmp_path: Path) -> None:
    open_state(tmp_path, "job")
    complete_state(_checkpoint(tmp_path, 20))
    _checkpoint(tmp_path, 100)
    assert open_state(tmp_path, "job") == 20


def test_a_complete_state_replaces_the_older_ones(tmp_path: Path) -> None:
    open_state(tmp_path, "job")
    complete_state(_checkpoint(tmp_path, 20))
    complete_state(_checkpoint(tmp_path, 100))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-100"]


@pytest.fixture(params=[0o002, 0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes_in(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def test_the_weights_of_a_checkpoint_have_the_mode_of_its_other_files(tmp_path: Path, umask: int) -> None:
    build_tiny_checkpoint(tmp_path / "start", seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "start")
    job = replace(JOB, model_path=str(tmp_path / "start"))
    configs = StartConfigs(model=model.config, generation=model.generation_config)
    _write(model, model.state_dict(), job, configs, tmp_path / "saved")
    assert (tmp_path / "saved/model.safetensors").exists()
    assert modes_in(tmp_path / "saved") == {0o666 & ~umask}


def test_the_weights_of_a_state_have_the_mode_of_its_other_files(tmp_path: Path, umask: int) -> None:
    state = _checkpoint(tmp_path, 20)
    save_file({"weight": torch.zeros(2)}, state / "model-00001-of-00001.safetensors")
    complete_state(state)
    assert modes_in(state) == {0o666 & ~umask}


def test_opening_again_keeps_the_state_of_the_same_job_alone(tmp_path: Path) -> None:
    assert open_state(tmp_path, "job") is None
    complete_state(_checkpoint(tmp_path, 20))
    assert open_state(tmp_path, "job") == 20
    assert open_state(tmp_path, "another job") is None
    assert open_state(tmp_path, "job") is None


def test_a_state_that_a_machine_does_not_see_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"checkpoint-20: .* does not see the state that rank 0 continues from"):
        state_of(tmp_path, 20)


def test_how_long_a_rank_waits_may_change_between_a_state_and_its_continuation() -> None:
    longer = replace(JOB, trainer=TrainerConfig(collective_timeout_s=10 * JOB.trainer.collective_timeout_s))
    assert job_digest(longer, 10, 100) == job_digest(JOB, 10, 100)


@pytest.mark.parametrize(
    "other",
    [
        replace(JOB, seed=1),
        replace(JOB, model_path="n"),
        replace(JOB, settings=SftConfig(epochs=4.0)),
        replace(JOB, trainer=TrainerConfig(num_workers=4)),
    ],
)
def test_a_state_belongs_to_one_seed_start_recipe_and_number_of_ranks(other: TrainJob) -> None:
    assert job_digest(other, 10, 100) != job_digest(JOB, 10, 100)
    assert job_digest(JOB, 11, 100) != job_digest(JOB, 10, 100)
    handed_on = replace(JOB, trainer=TrainerConfig(trl={"optim": "adamw_torch"}))
    assert job_digest(handed_on, 10, 100) != job_digest(JOB, 10, 100)
    assert job_digest(replace(JOB, output_dir="elsewhere"), 10, 100) == job_digest(JOB, 10, 100)


def test_a_state_belongs_to_a_start_wherever_its_copy_lies() -> None:
    here, there = (replace(JOB, model_path=folder, model_name="s3://bucket/m") for folder in ("/a/m", "/b/m"))
    assert job_digest(here, 10, 100) == job_digest(there, 10, 100)
    assert job_digest(replace(here, model_name="s3://bucket/n"), 10, 100) != job_digest(here, 10, 100)


def test_only_a_cpu_rank_picks_the_cpu_accelerator() -> None:
    cpu = trainer_environment(resolve_trainer(TrainerConfig(threads=3), has_gpus=False), use_gpu=False)
    assert (cpu["DS_ACCELERATOR"], cpu["OMP_NUM_THREADS"]) == ("cpu", "3")
    gpu = trainer_environment(resolve_trainer(TrainerConfig(), has_gpus=True), use_gpu=True)
    assert gpu["DS_ACCELERATOR"] == "cuda"
    assert "OMP_NUM_THREADS" not in gpu
