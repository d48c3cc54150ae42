"""Writes the trained model as one HF checkpoint."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from still_ray.trainer.checkpoint import ADAPTER_FOLDER, share_weights, write_checkpoint
from still_ray.trainer.job import TrainJob
from still_ray.trainer.lora import BASE_PREFIX, Adapter, base_model
from still_ray.trainer.model import load_tokenizer
from still_ray.trainer.ranks import from_first


@dataclass(frozen=True, kw_only=True)
class StartConfigs:
    """The start model's configurations: training changes special tokens in its own, and samplers must not see that."""

    model: PretrainedConfig
    generation: GenerationConfig | None


def save_gathered(trl: Any, job: TrainJob, configs: StartConfigs, adapter: Adapter | None = None) -> str:
    """Gathers the model on the first rank, which writes it beside its place and then moves it there; collective.

    Args:
        trl: The trainer whose engine holds the model.
        job: Names the place and the start model.
        configs: The start model's.
        adapter: What was trained and added to the weights, if they were frozen; it is saved beside them.

    Returns:
        Why the checkpoint is in the job's spare folder; "" if it is in its place.

    Raises:
        ModelFilesError: It could not be written.
    """
    found: dict[str, Tensor] = trl.accelerator.get_state_dict(trl.model_wrapped)
    weights = {name.removeprefix(BASE_PREFIX): tensor for name, tensor in (found or {}).items()}

    def write_all(folder: Path) -> None:
        _write(base_model(trl.model), weights, job, configs, folder)
        if adapter is not None:
            adapter.write(folder / ADAPTER_FOLDER, start=job.model_name or job.model_path)
            share_weights(folder / ADAPTER_FOLDER, like=folder / "config.json")

    def write() -> str:
        return write_checkpoint(write_all, job, num_bytes=sum(tensor.nbytes for tensor in weights.values()))

    return from_first(write)


def _write(
    model: PreTrainedModel, weights: dict[str, Tensor], job: TrainJob, configs: StartConfigs, directory: Path
) -> None:
    model.save_pretrained(directory, state_dict=weights)
    configs.model.save_pretrained(directory)
    generation_config(configs, job).save_pretrained(directory)
    load_tokenizer(job).save_pretrained(directory)
    share_weights(directory, like=directory / "config.json")


def generation_config(configs: StartConfigs, job: TrainJob) -> GenerationConfig:
    """The start model's, with the end of a turn among its eos: engines that read it know no chat template."""
    generation = copy.deepcopy(configs.generation or GenerationConfig())
    own = generation.eos_token_id
    if set(job.stop_token_ids) - set(own if isinstance(own, list) else [own]):
        generation.eos_token_id = list(job.stop_token_ids)
    return generation
