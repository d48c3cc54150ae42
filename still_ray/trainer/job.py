"""The records that enter and leave a trainer rank; built from the standard library and the recipe's schema."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from still_ray.config.methods import GROUP
from still_ray.config.schema import TrainerConfig, TrainingSection
from still_ray.extensions import load_path
from still_ray.types import ProbeSequence, StillRayError, TrainResult

if TYPE_CHECKING:
    from still_ray.trainer.methods.base import TrainingMethod


def training_of(path: str, settings: TrainingSection) -> TrainingMethod[Any, Any, Any]:
    """The heavy half of a training method by its path, for a stage's section of the recipe; loads torch and TRL."""
    found: TrainingMethod[Any, Any, Any] = load_path(path, group=GROUP)(settings)
    return found


class ModelFilesError(StillRayError):
    """A model could not be loaded or a checkpoint not be written; the cause tells whether it would be so again."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training stage, the same on every rank.

    Attributes:
        name: The stage's name, e.g. "001-sft".
        model_path: HF checkpoint that the stage starts from.
        output_dir: Where the trained HF checkpoint goes, on storage that every rank sees.
        method: Name of the training method.
        training_path: Path of its heavy half.
        settings: The stage's section of the recipe, of the method's own type.
        trainer: The trainer group's section of the recipe.
        seed: Orders the rows and seeds torch.
        trust_remote_code: Whether Python code that comes with the model may run.
        probe_sequences: Token sequences whose log-probabilities under the trained model are wanted.
        run: Name of the run, for experiment trackers.
        tracker_dir: Folder that trackers write to; needed if the trainer reports to any.
        model_name: What `model_path` is a copy of, e.g. a URI; "" if it is itself.
        stop_token_ids: What ends a response of the trained model: the start model's eos and the end of a turn, for the
            checkpoint's generation_config.json; empty: the start model's stays as it is.
        reference_path: HF checkpoint whose log-probabilities a loss with a reference compares with; "": `model_path`.
        reference_name: What `reference_path` is a copy of; "" if it is itself.
        num_sequences: Sequences that one row puts through a forward pass: a preference pair is two.
        spare_dir: Where the checkpoint goes if its place cannot take it, e.g. because a disk is full; "": nowhere.
    """

    name: str
    model_path: str
    output_dir: str
    method: str
    training_path: str
    settings: TrainingSection
    trainer: TrainerConfig
    seed: int
    trust_remote_code: bool = False
    probe_sequences: tuple[tuple[int, ...], ...] = ()
    run: str = ""
    tracker_dir: str = ""
    model_name: str = ""
    stop_token_ids: tuple[int, ...] = ()
    reference_path: str = ""
    reference_name: str = ""
    num_sequences: int = 1
    spare_dir: str = ""

    @cached_property
    def training(self) -> TrainingMethod[Any, Any, Any]:
        """How the method trains."""
        return training_of(self.training_path, self.settings)

    @property
    def reference(self) -> str:
        """Which model is the reference, if it is not the one that the stage starts from; "" if it is."""
        return "" if self.reference_path in ("", self.model_path) else self.reference_name or self.reference_path

    @property
    def state_dir(self) -> str:
        """Where the resumable state of an unfinished stage lies."""
        return f"{self.output_dir}.partial-state"


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What a finished stage hands back, the same on every rank.

    Attributes:
        result: Steps, rows, tokens, loss and seconds of the training loop.
        resumed_from_step: Optimizer step that a saved state let the stage continue from; 0 for a fresh start.
        startup_s: From the call to the first optimizer step: model, engine, reference log-probabilities.
        save_s: Gathering and writing the checkpoint.
        probes: Log-probabilities of the job's probe sequences under the trained model.
        refusal: Why the checkpoint is in the job's spare folder and not in its place; "" if it is there.
    """

    result: TrainResult
    resumed_from_step: int
    startup_s: float
    save_s: float
    probes: tuple[ProbeSequence, ...]
    refusal: str = ""
