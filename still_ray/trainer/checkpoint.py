"""What a stage leaves on disk: the gathered checkpoint, and the state to resume from while it runs."""

import hashlib
import json
import shutil
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from still_ray.config.library_arguments import is_unused, used_settings
from still_ray.trainer.job import ModelFilesError, TrainJob
from still_ray.types import RunError

ADAPTER_FOLDER = "adapter"
"""Below the checkpoint of a stage with `trainer.lora`: what it trained, for the model that it started from."""
_COMPLETE = "still-ray-complete"
_JOB = "still-ray-job"


class StateStorage(Protocol):
    """Storage that keeps the states of a stage when its ranks write to folders of their own machines."""

    def open(self, digest: str) -> int | None:
        """Throws away the states of another job; returns the step of the newest whole one. For the first rank."""
        ...

    def fetch(self, step: int | None) -> None:
        """Brings what this rank needs of the state of a step into its state directory, and no other state."""
        ...

    def keep(self) -> None:
        """Stores what this rank wrote to its state directory since the last time."""
        ...

    def complete(self, step: int) -> None:
        """Marks the state of a step as whole, once every rank has kept its part; for the first rank."""
        ...


def share_weights(directory: Path, *, like: Path) -> None:
    """Gives the weights the mode of a file beside them: safetensors writes 0600, whatever the umask says."""
    mode = stat.S_IMODE(like.stat().st_mode)
    for path in directory.glob("*.safetensors"):
        path.chmod(mode)


def publish(prepared: Path, target: Path) -> None:
    """Puts a finished directory in its place; what lay there goes only once the new one stands."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    prepared.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def write_checkpoint(write: Callable[[Path], None], job: TrainJob, *, num_bytes: int) -> str:
    """Lets `write` fill a directory and puts it in the job's place for it, or else in the job's spare folder.

    Args:
        write: Fills a directory that does not exist yet.
        job: Names both places.
        num_bytes: Size of the weights, tied ones counted twice; said where nothing could be written.

    Returns:
        Why the checkpoint is in the spare folder; "" if it is in its place.

    Raises:
        ModelFilesError: Neither can take it, or there is no spare folder.
    """
    place, spare = Path(job.output_dir), Path(job.spare_dir)
    error = _put(write, place)
    if error is None:
        return ""
    free, second = _free(place), _put(write, spare) if job.spare_dir else None
    if job.spare_dir and second is None:
        num_bytes = sum(path.stat().st_size for path in spare.rglob("*"))
    refusal = f"{place}: a checkpoint of {num_bytes:,} bytes cannot be written, {free}: {_line(error)}"
    if second is not None:
        raise ModelFilesError(f"{refusal}; nor to {spare}, {_free(spare)}: {_line(second)}") from error
    if not job.spare_dir:
        raise ModelFilesError(refusal) from error
    return refusal


def _put(write: Callable[[Path], None], place: Path) -> Exception | None:
    """Fills a directory beside its place and moves it there; what went wrong is returned, and leaves nothing behind."""
    prepared = place.with_name(f"{place.name}.unfinished")
    shutil.rmtree(prepared, ignore_errors=True)
    try:
        write(prepared)
        publish(prepared, place)
    except Exception as error:  # named policy: the caller has another place, or says what failed
        shutil.rmtree(prepared, ignore_errors=True)
        return error
    return None


def _free(place: Path) -> str:
    """How much room is left around a place that could not be written to."""
    for folder in place.parents:
        with suppress(OSError):
            return f"{shutil.disk_usage(folder).free:,} are free there"
    return "its disk does not answer"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_FREE_TRAINER_KEYS = {
    "cpus_per_worker",
    "threads",
    "logging_steps",
    "report_to",
    "node_labels",
    "collective_timeout_s",
    "num_mlp_tiles",
    "offload_activations",
    "sequence_parallel_size",
}
"""What may change between a state and its continuation: where the ranks run and keep things, how they share rows, and
who is told. DeepSpeed's shards are by the number of all ranks, and a step has the same rows whoever computes them."""


def job_digest(job: TrainJob, num_rows: int, num_tokens: int) -> str:
    """Tells whether a saved state belongs to this job: same settings, same start, same rows, same number of ranks."""
    trainer = job.trainer.model_dump(mode="json", exclude=_FREE_TRAINER_KEYS)
    identity: dict[str, Any] = {
        "name": job.name,
        "kind": job.method,
        "model_path": job.model_name or job.model_path,
        "settings": used_settings(job.settings.model_dump(mode="json")),
        "trainer": {name: value for name, value in trainer.items() if not is_unused(f"trainer.{name}", value)},
        "seed": job.seed,
        "rows": [num_rows, num_tokens],
    }
    if job.reference:
        identity["reference"] = job.reference
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def open_state(state_dir: Path, digest: str) -> int | None:
    """Makes the state directory this job's own; a state of another job is thrown away.

    Returns:
        The step of the newest checkpoint that every rank finished writing, or None.
    """
    marker = state_dir / _JOB
    if state_dir.exists() and (not marker.exists() or marker.read_text(encoding="utf-8") != digest):
        shutil.rmtree(state_dir)
    state_dir.mkdir(parents=True, exist_ok=True)
    marker.write_text(digest, encoding="utf-8")
    return max((_step(path.parent) for path in state_dir.glob(f"checkpoint-*/{_COMPLETE}")), default=None)


def state_of(state_dir: Path, step: int) -> Path:
    """The checkpoint of a step, as this machine sees it.

    Raises:
        RunError: It is not there.
    """
    path = state_dir / f"checkpoint-{step}"
    if not path.is_dir():
        raise RunError(f"{path}: {socket.gethostname()} does not see the state that rank 0 continues from")
    return path


def complete_state(checkpoint: Path) -> None:
    """Marks a checkpoint as whole and drops the older ones."""
    mark = checkpoint / _COMPLETE
    mark.touch()
    share_weights(checkpoint, like=mark)
    for path in checkpoint.parent.glob("checkpoint-*"):
        if path != checkpoint:
            shutil.rmtree(path)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
