"""Checkpoints on their way into the run directory.

On a file system the trainer writes them in their place. For an object store each rank writes into a folder of its own
machine: the first rank puts the finished checkpoint, its policy record last, and every rank puts its part of the state
that an interrupted stage continues from.

On that machine: runs/DIGEST/staged/STAGE/rank-N/, with DIGEST of the run's folder of stages. A checkpoint that was
trained stays there, with a note of which order it belongs to, until the store has it.
"""

from __future__ import annotations

import re
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from still_ray.location import ObjectPath, location
from still_ray.store.atomic import write_text
from still_ray.store.cache import adopt
from still_ray.store.patience import patiently
from still_ray.store.policy import POLICY_FILE, PolicyRecord, read_policy_record, write_policy_record
from still_ray.store.scratch import run_scratch
from still_ray.store.transfer import download, files_below, upload
from still_ray.types import InputError, RunError

_RANK = re.compile(r"(?:zero_pp_rank_|rng_state_)(\d+)")
"""In the name of a file that belongs to one rank: DeepSpeed's shards, transformers' random states."""
_STATE = re.compile(r"^checkpoint-(\d+)/")
STAGED = "staged"
_COMPLETE = "complete-{}"
_JOB = "job"


@dataclass(frozen=True, kw_only=True)
class Staging:
    """Where a rank writes the checkpoint of a stage.

    Attributes:
        folder: What the trainer writes to.
        target: Where the checkpoint belongs, if that is an object store.
        states: What outlives this machine of a stage with `save_steps`, if the run is in an object store.
    """

    folder: Path
    target: ObjectPath | None
    states: StoredStates | None

    def keep(self, record: PolicyRecord, identity: str) -> None:
        """Notes that the checkpoint in the folder is whole and waits for its store; for the first rank.

        Args:
            record: Its record.
            identity: Tells the order that it belongs to from any other.
        """
        if self.target is not None:
            write_policy_record(self.folder, record)
            write_text(self._kept_for, identity)

    def kept(self, identity: str) -> PolicyRecord | None:
        """The record of a checkpoint that was kept for the same order and is not stored yet; for the first rank."""
        if self.target is None or not self._kept_for.exists():
            return None
        if self._kept_for.read_text(encoding="utf-8") == identity:
            return read_policy_record(self.folder)
        self._kept_for.unlink()
        return None

    @property
    def whereabouts(self) -> str:
        """Where a checkpoint is kept, for a person."""
        where = f"{self.folder} on {socket.gethostname()}"
        return f"the trained checkpoint is kept in {where}; the same command uploads it if rank 0 is there again"

    def publish(self, record: PolicyRecord) -> str:
        """Puts the checkpoint in its place, the record last; for the first rank.

        Returns:
            What of the stage's states could not be removed, for a person; "" if nothing is left.

        Raises:
            RunError: The store does not take a file, however often it is asked.
        """
        if self.target is None or self.states is None:
            write_policy_record(str(self.folder), record)
            return _removed(_states_beside(self.folder))
        target, states = self.target, self.states
        patiently(lambda: (target / POLICY_FILE).unlink(missing_ok=True))  # from here on it counts as unfinished
        patiently(target.remove_all)  # what an interrupted upload left
        upload(self.folder, target, [name for name in files_below(self.folder) if name != POLICY_FILE])
        write_policy_record(target, record)
        self._kept_for.unlink(missing_ok=True)
        with suppress(RunError, InputError, OSError):  # the stage is complete; this only saves time
            adopt(self.folder, target)
        return states.discard()

    @property
    def _kept_for(self) -> Path:
        return self.folder.with_name("kept-for")

    def close(self) -> None:
        """Removes what is left on this machine, unless it is kept; for every rank."""
        if self.target is not None and not self._kept_for.exists():
            shutil.rmtree(self.folder.parent, ignore_errors=True)
            with suppress(OSError):  # other ranks of this machine still have theirs
                self.folder.parent.parent.rmdir()


def staging_of(checkpoint: str, rank: int) -> Staging:
    """The staging of a stage's checkpoint on one rank.

    Args:
        checkpoint: Path or URI.
        rank: Of all ranks of the trainer group.
    """
    place = location(checkpoint)
    if isinstance(place, Path):
        return Staging(folder=place, target=None, states=None)
    folder = run_scratch(_stages(place), STAGED, place.parent.name, f"rank-{rank}") / place.name
    state_folder = _states_beside(folder)
    states = StoredStates(place.with_name(state_folder.name), state_folder, rank)
    return Staging(folder=folder, target=place, states=states)


def discard_finished(checkpoint: str) -> None:
    """Removes from this machine what killed ranks left of other stages of the run, as far as these are finished.

    Args:
        checkpoint: Path or URI of the stage that begins.
    """
    place = location(checkpoint)
    if isinstance(place, Path):
        return
    stages = _stages(place)
    for folder in run_scratch(stages, STAGED).iterdir():
        if folder.name != place.parent.name and _is_finished(stages / folder.name / place.name):
            shutil.rmtree(folder, ignore_errors=True)


def _is_finished(checkpoint: ObjectPath) -> bool:
    try:
        return read_policy_record(checkpoint) is not None
    except (RunError, InputError):  # whoever begins the next stage asks again
        return False


def _stages(checkpoint: ObjectPath) -> ObjectPath:
    """The folder of all stages, in which each has one that holds its checkpoint."""
    return checkpoint.parent.parent


def _removed(folder: Path) -> str:
    """Removes a folder; returns what is left, for a person."""
    shutil.rmtree(folder, ignore_errors=True)
    return f"{folder}: could not be removed; it is of no use any more" if folder.exists() else ""


def _states_beside(checkpoint: Path) -> Path:
    """Where `still_ray.trainer.job.TrainJob.state_dir` keeps the states of an unfinished checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}.partial-state")


class StoredStates:
    """The states of an unfinished stage in an object store; see `still_ray.trainer.checkpoint.StateStorage`.

    Each rank has a folder of its own, so ranks of one machine do not mind each other. A rank fetches what belongs to
    no rank and what belongs to itself: under ZeRO, a shard.
    """

    def __init__(self, stored: ObjectPath, folder: Path, rank: int) -> None:
        """Fetches nothing yet.

        Args:
            stored: Where the states are stored.
            folder: This rank's folder on this machine.
            rank: Of all ranks.
        """
        self._stored = stored
        self._folder = folder
        self._rank = rank
        self._sent: dict[str, int] = {}

    def open(self, digest: str) -> None:
        """Makes the stored states this job's own, for the first rank; states of another job are thrown away."""
        job = self._stored / _JOB
        try:
            same = job.read_text() == digest
        except FileNotFoundError:
            same = False
        if not same:
            self._stored.remove_all()
            job.write_bytes(digest.encode())

    def fetch(self) -> None:
        """Brings the newest whole state into this rank's folder, and nothing else."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        names = self._stored.files()
        step = max((int(name.rpartition("-")[2]) for name in names if name.startswith("complete-")), default=None)
        wanted = [name for name in names if self._is_wanted(name, step)]
        download(self._stored, self._folder, wanted)
        self._sent = {name: (self._folder / name).stat().st_mtime_ns for name in wanted}

    def keep(self) -> None:
        """Puts what this rank wrote since the last time."""
        times = {name: (self._folder / name).stat().st_mtime_ns for name in files_below(self._folder)}
        fresh = [name for name, changed in times.items() if self._sent.get(name) != changed]
        upload(self._folder, self._stored, fresh)
        self._sent |= {name: times[name] for name in fresh}

    def complete(self, step: int) -> None:
        """Marks the state of a step, which every rank has put, as whole, and drops the others; for the first rank."""
        mark = _COMPLETE.format(step)
        (self._stored / mark).write_bytes(b"whole\n")
        for name in self._stored.files():
            older = _STATE.match(name)
            if (older and int(older[1]) != step) or (name.startswith("complete-") and name != mark):
                (self._stored / name).unlink(missing_ok=True)

    def discard(self) -> str:
        """Removes every state, for the first rank; returns what is left, for a person."""
        try:
            self._stored.remove_all()
        except RunError as error:  # named policy: the stage is complete, and states only take room
            return f"{error}; it is of no use any more"
        return ""

    def _is_wanted(self, name: str, step: int | None) -> bool:
        if name == _JOB or name.startswith("complete-"):
            return False
        state = _STATE.match(name)
        if state and int(state[1]) != step:
            return False
        owner = _RANK.search(name.rpartition("/")[2])
        return owner is None or int(owner[1]) == self._rank
