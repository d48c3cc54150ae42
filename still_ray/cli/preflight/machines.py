"""What the machines and their packages offer, against what a run asks of them."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import yaml

from still_ray.algo.placement import resolve
from still_ray.algo.planning.cluster import Fleet, fleet_of
from still_ray.algo.planning.disk import STATE_BYTES
from still_ray.cli.preflight.files import RunFiles
from still_ray.config import Recipe, TrainerConfig, VerifierConfig
from still_ray.location import Location, ObjectPath
from still_ray.types import Domain, InputError

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
"""What a machine with GPUs of NVIDIA or AMD has."""


def may_have_gpus() -> bool:
    """Whether the cluster may have GPUs, as far as can be told before it is joined: another's may, or this machine."""
    return bool(os.environ.get("RAY_ADDRESS")) or any(Path(device).exists() for device in GPU_DEVICES)


def check_room(root: Location, recipe: Recipe, *, num_checkpoints: int, num_parameters: int) -> None:
    """Whether the disk of a run has room for the checkpoints that are still to be written; all of them are kept.

    Args:
        root: The run directory; of an object store nobody can tell.
        recipe: Says how wide a weight is, and whether a stage keeps its state as well.
        num_checkpoints: Training stages to come.
        num_parameters: Of the model; 0 if that is not known.

    Raises:
        InputError: It has not.
    """
    if isinstance(root, ObjectPath) or not num_checkpoints:
        return
    size = resolve(recipe, has_gpus=may_have_gpus()).trainer.precision.width * num_parameters
    has_state = any(step.settings.save_steps for step in recipe.steps)
    needed = num_checkpoints * size + (size + STATE_BYTES * num_parameters if has_state else 0)
    free = shutil.disk_usage(root).free
    if needed > free:
        state = ", and the state of one stage," if has_state else ""
        raise InputError(
            f"{root}: {num_checkpoints} checkpoints of {size:,} bytes are to be written{state} and {free:,} bytes are "
            f"free, {needed - free:,} too few; make room, or put the run directory on a larger disk"
        )


TRACKER_PACKAGES = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}
"""What transformers' callbacks need: one of these packages."""


def check_trackers(config: TrainerConfig) -> None:
    """Sees whether the packages of the experiment trackers are installed.

    Raises:
        InputError: One is not.
    """
    for name in config.report_to:
        packages = TRACKER_PACKAGES[name]
        if not any(find_spec(package) for package in packages):
            raise InputError(f"trainer.report_to: {name} is not installed; pip install {packages[0]}, or leave it out")


def cluster_fleet(path: Path) -> Fleet:
    """The machines of a cluster file.

    Raises:
        InputError: It cannot be read, or is of no kind that is known.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    return fleet_of(documents, where=str(path))


def sandbox_problem(files: RunFiles, config: VerifierConfig) -> str | None:
    """Why this machine cannot judge code, if a run has any to judge here; None if it can or need not."""
    domains = {*files.problems.domains, *files.test.domains} - {*config.custom}
    if Domain.CODE not in domains:
        return None
    from still_ray.verifiers.code.sandbox import Sandbox

    return Sandbox(config.code.sandbox, config.code.sandbox_command).problem()
