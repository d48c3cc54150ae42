"""One class for every path of a run directory, and its lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from still_ray.algo.stages import Stage
from still_ray.location import Location, ObjectPath, location
from still_ray.store.lock import is_held, locked
from still_ray.store.scratch import run_scratch
from still_ray.types import InputError

GENERAL = "general"
"""Key of evaluation.json: what is otherwise for the general problems."""


class RunDirectory:
    """Where everything of a run is; on this machine's file system, or in an object store."""

    def __init__(self, root: str | Location) -> None:
        """Names the folder; creates nothing.

        Raises:
            InputError: The URI is of a kind that is not known, is not complete, or holds credentials.
        """
        place = location(root)
        self.root: Location = place.resolve() if isinstance(place, Path) else place
        self.recipe = self.root / "recipe.yaml"
        self.state = self.root / "state.json"
        self.summary = self.root / "summary.json"
        self.metrics = self.root / "metrics.jsonl"
        self.inputs = self.root / "inputs.json"
        self.evaluation_settings = self.root / "evaluation.json"
        self.world = self.root / "world"
        self.rounds = self.root / "rounds"

    @property
    def logs(self) -> Path:
        """Folder of what Ray prints; on this machine, wherever the run is."""
        return run_scratch(self.root, "logs") if isinstance(self.root, ObjectPath) else self.root / "logs"

    @property
    def ray_train(self) -> Path:
        """Folder of Ray Train's own files, which no other process reads; on this machine, wherever the run is."""
        return run_scratch(self.root, "ray_train") if isinstance(self.root, ObjectPath) else self.root / "ray_train"

    @property
    def trackers(self) -> Path:
        """Folder of experiment trackers; for a run in an object store, on the machine of the trainer's first rank."""
        return run_scratch(self.root, "trackers") if isinstance(self.root, ObjectPath) else self.root / "trackers"

    @property
    def prompt_date(self) -> Location:
        """The day that chat templates are told, where one asks for it."""
        return self.root / "prompt_date.txt"

    def stage(self, stage: Stage) -> Location:
        """Folder of a stage."""
        return self.rounds / stage.name

    def trajectories(self, round_number: int) -> Location:
        """Folder of a round's trajectories."""
        return self.root / "trajectories" / f"round={round_number:03d}"

    def partial_responses(self, stage: Stage) -> Location:
        """Folder of what there is of an exploration's responses that are not finished; gone with its end."""
        return self.stage(stage) / "partial"

    def training_data(self, stage: Stage) -> Location:
        """The table that a training stage learns from."""
        return self.stage(stage) / stage.table

    def checkpoint(self, stage: Stage) -> Location:
        """HF checkpoint of a training stage."""
        return self.stage(stage) / "checkpoint"

    def evaluation_rows(self, stage: Stage, *, general: bool = False) -> Location:
        """The judged responses of an evaluation: of the held-out problems, or of the general ones."""
        return self.stage(stage) / ("eval-general.parquet" if general else "eval.parquet")

    def evaluation(self, stage: Stage, *, general: bool = False) -> Location:
        """The summary of an evaluation."""
        return self.stage(stage) / ("eval-general.json" if general else "eval.json")

    def create(self, option: str = "") -> None:
        """Creates the folder.

        Args:
            option: The option that named an object store, for the message.

        Raises:
            InputError: It cannot be created or written to.
        """
        if isinstance(self.root, ObjectPath):
            self.root.require_writable(option)
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"{self.root}: cannot be written to ({error.strerror}); give another folder") from None

    def locked(self, note: Callable[[str], None] = lambda _: None) -> AbstractContextManager[None]:
        """Holds the folder for one driver.

        Args:
            note: Told why this waits, if it does.

        Raises:
            InputError: Another process works in this folder.
            RunError: On an object store, another process took the folder over, because this one stood still.
        """
        return locked(self.root, note)

    def is_held(self, note: Callable[[str], None] = lambda _: None) -> bool:
        """Whether a driver holds the folder at this moment.

        Args:
            note: Told why this waits, if it does.
        """
        return is_held(self.root, note)
