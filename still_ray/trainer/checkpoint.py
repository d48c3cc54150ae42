"""What a stage leaves on disk: the gathered checkpoint, and the state to resume from while it runs."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from still_ray.trainer.job import TrainJob

_COMPLETE = "still-ray-complete"
_JOB = "still-ray-job"


def publish(prepared: Path, target: Path) -> None:
    """Puts a finished directory in its place; what lay there goes only once the new one stands."""
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    prepared.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def job_digest(job: TrainJob, num_rows: int, num_tokens: int) -> str:
    """Tells whether a saved state belongs to this job: same settings, same start, same rows, same number of ranks."""
    identity: dict[str, Any] = {
        "name": job.name,
        "kind": job.kind,
        "model_path": job.model_path,
        "settings": job.settings.model_dump(mode="json"),
        "trainer": job.trainer.model_dump(mode="json"),
        "seed": job.seed,
        "rows": [num_rows, num_tokens],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def open_state(state_dir: Path, digest: str) -> None:
    """Makes the state directory this job's own; a state of another job is thrown away."""
    marker = state_dir / _JOB
    if state_dir.exists() and (not marker.exists() or marker.read_text(encoding="utf-8") != digest):
        shutil.rmtree(state_dir)
    state_dir.mkdir(parents=True, exist_ok=True)
    marker.write_text(digest, encoding="utf-8")


def latest_state(state_dir: Path) -> Path | None:
    """The newest checkpoint that every rank finished writing, or None."""
    complete = [path.parent for path in state_dir.glob(f"checkpoint-*/{_COMPLETE}")]
    return max(complete, key=_step, default=None)


def complete_state(checkpoint: Path) -> None:
    """Marks a checkpoint as whole and drops the older ones."""
    (checkpoint / _COMPLETE).touch()
    for path in checkpoint.parent.glob("checkpoint-*"):
        if path != checkpoint:
            shutil.rmtree(path)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
