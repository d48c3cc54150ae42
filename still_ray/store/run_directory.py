"""One class for every path of a run directory, and its lock."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from still_ray.algo.stages import Stage
from still_ray.types import InputError, StageKind


class RunDirectory:
    """Where everything of a run is."""

    def __init__(self, root: Path) -> None:
        """Names the folder; creates nothing."""
        self.root = root.resolve()
        self.recipe = self.root / "recipe.yaml"
        self.state = self.root / "state.json"
        self.summary = self.root / "summary.json"
        self.metrics = self.root / "metrics.jsonl"
        self.logs = self.root / "logs"
        self.world = self.root / "world"
        self.rounds = self.root / "rounds"
        self._lock = self.root / ".lock"

    def stage(self, stage: Stage) -> Path:
        """Folder of a stage."""
        return self.rounds / stage.name

    def trajectories(self, round_number: int) -> Path:
        """Folder of a round's trajectories."""
        return self.root / "trajectories" / f"round={round_number:03d}"

    def training_data(self, stage: Stage) -> Path:
        """The table that a training stage learns from."""
        name = "pairs.parquet" if stage.kind is StageKind.DPO else "training_set.parquet"
        return self.stage(stage) / name

    def checkpoint(self, stage: Stage) -> Path:
        """HF checkpoint of a training stage."""
        return self.stage(stage) / "checkpoint"

    def evaluation_rows(self, stage: Stage) -> Path:
        """The judged responses of an evaluation."""
        return self.stage(stage) / "eval.parquet"

    def evaluation(self, stage: Stage) -> Path:
        """The summary of an evaluation."""
        return self.stage(stage) / "eval.json"

    def create(self) -> None:
        """Creates the folder.

        Raises:
            InputError: It cannot be created or written to.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"{self.root}: cannot be written to ({error.strerror}); give another folder") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one driver; the kernel lets go when the process ends, however it ends.

        Raises:
            InputError: Another process works in this folder.
        """
        with self._lock.open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{self.root}: another still-ray works in this folder; wait for it or stop it"
                ) from None
            yield
