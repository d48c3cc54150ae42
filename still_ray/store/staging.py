"""Checkpoints on their way into the run directory.

On a file system the trainer writes them in their place. For an object store each rank writes into a folder of its own
machine: the first rank puts the finished checkpoint, its policy record last, and every rank puts its part of the state
that an interrupted stage continues from.

On that machine: runs/DIGEST/staged/STAGE/rank-N/, with DIGEST of the run's folder of stages. A checkpoint that was
trained stays there, with a note of which order it belongs to, until the store has it. The first rank of a run on a file
system puts a checkpoint there too, if its place cannot take it, e.g. because the disk is full.
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
from still_ray.store.policy import POLICY_FILE, PolicyRecord, read_policy_record, write_policy_record
from still_ray.store.retry import with_retries
from still_ray.store.scratch import run_scratch, scratch, short_digest
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
        spare: On a file system, where the first rank keeps a checkpoint that `folder` cannot take.
    """

    folder: Path
    target: ObjectPath | None
    states: StoredStates | None
    spare: Path | None = None

    def keep(self, record: PolicyRecord, identity: str) -> None:
        """Notes that the checkpoint in the folder is whole and waits for its store; for the first rank.

        Args:
            record: Its record.
            identity: Tells the order that it belongs to from any other.
        """
        if self.target is not None:
            write_policy_record(self.folder, record)
            write_text(self._kept_for, identity)

    def keep_aside(self, record: PolicyRecord, identity: str, *, is_there: bool) -> None:
        """Keeps a checkpoint that its place on a file system could not take; for the first rank.

        Args:
            record: Its record.
            identity: Tells the order that it belongs to from any other.
            is_there: Whether the trainer has written it to the spare folder; else it is moved there.

        Raises:
            RunError: The spare folder cannot take it either.
        """
        assert self.spare is not None, "a run on a file system"
        try:
            if not is_there:
                _move(self.folder, self.spare)
            write_policy_record(self.spare, record)
            write_text(self._kept_for, identity)
        except OSError as error:
            raise RunError(f"{self.spare}: cannot be written: {error.strerror}; nothing is kept") from error

    def kept(self, identity: str) -> PolicyRecord | None:
        """The record of a checkpoint that was kept for the same order and is not stored yet; for the first rank."""
        if not self.is_kept:
            return None
        if self._kept_for.read_text(encoding="utf-8") == identity:
            return read_policy_record(self._waiting)
        self._kept_for.unlink()
        return None

    @property
    def whereabouts(self) -> str:
        """Where a checkpoint is kept, for a person."""
        where = f"{self._waiting} on {socket.gethostname()}"
        stores = "stores" if self.target is None else "uploads"
        return f"the trained checkpoint is kept in {where}; the same command {stores} it if rank 0 is there again"

    def publish(self, record: PolicyRecord) -> str:
        """Puts the checkpoint in its place, the record last; for the first rank.

        Returns:
            What of the stage's states could not be removed, for a person; "" if nothing is left.

        Raises:
            RunError: The store does not take a file, however often it is asked, or the file system does not.
        """
        if self.target is None or self.states is None:
            return self._publish_on_disk(record)
        target, states = self.target, self.states
        with_retries(lambda: (target / POLICY_FILE).unlink(missing_ok=True))  # from here on it counts as unfinished
        with_retries(target.remove_all)  # what an interrupted upload left
        upload(self.folder, target, [name for name in files_below(self.folder) if name != POLICY_FILE])
        write_policy_record(target, record)
        self._kept_for.unlink(missing_ok=True)
        with suppress(RunError, InputError, OSError):  # the stage is complete; this only saves time
            adopt(self.folder, target)
        return states.discard()

    def _publish_on_disk(self, record: PolicyRecord) -> str:
        try:
            if self.is_kept:
                _move(self._waiting, self.folder)
            write_policy_record(str(self.folder), record)
        except OSError as error:
            free = shutil.disk_usage(self.folder.parent).free
            why = f"{error.strerror or error}, {free:,} bytes are free there"
            raise RunError(f"{self.folder}: the checkpoint cannot be written: {why}") from error
        if self.is_kept:
            self._kept_for.unlink()
        return _removed(_states_beside(self.folder))

    @property
    def _waiting(self) -> Path:
        """Where a checkpoint that is kept lies."""
        return self.folder if self.spare is None else self.spare

    @property
    def _kept_for(self) -> Path:
        return self._waiting.with_name("kept-for")

    @property
    def is_kept(self) -> bool:
        """Whether a checkpoint waits on this machine; on a file system without a spare folder none ever does."""
        return (self.target is not None or self.spare is not None) and self._kept_for.exists()

    def close(self) -> None:
        """Removes what is left on this machine, unless it is kept; for every rank."""
        if (self.target is not None or self.spare is not None) and not self.is_kept:
            shutil.rmtree(self._waiting.parent, ignore_errors=True)
            with suppress(OSError):  # other ranks of this machine still have theirs
                self._waiting.parent.parent.rmdir()


def staging_of(checkpoint: str, rank: int) -> Staging:
    """The staging of a stage's checkpoint on one rank.

    Args:
        checkpoint: Path or URI.
        rank: Of all ranks of the trainer group.
    """
    place = location(checkpoint)
    if isinstance(place, Path):
        return Staging(folder=place, target=None, states=None, spare=None if rank else _spare(place))
    folder = run_scratch(_stages(place), STAGED, place.parent.name, f"rank-{rank}") / place.name
    state_folder = _states_beside(folder)
    states = StoredStates(place.with_name(state_folder.name), state_folder, rank)
    return Staging(folder=folder, target=place, states=states)


def _spare(checkpoint: Path) -> Path | None:
    """The spare folder of a checkpoint on a file system, which is not made yet; None on a machine without scratch."""
    try:
        runs = scratch("runs")
    except InputError:  # named policy: no run on a file system needs it before its disk is full
        return None
    stage = checkpoint.parent
    return runs / short_digest(str(stage.parent.resolve())) / STAGED / stage.name / "rank-0" / checkpoint.name


def _move(source: Path, target: Path) -> None:
    """Moves a checkpoint to another file system: whole under its name there, or not at all."""
    unfinished = target.with_name(f"{target.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise _os_error(error) from error
    shutil.rmtree(source)


def _os_error(error: OSError | shutil.Error) -> OSError:
    """The first cause of a copy that failed; `shutil` makes a list of them."""
    first = error.args[0][0][2] if isinstance(error, shutil.Error) and error.args else None
    return error if first is None else OSError(error.errno, str(first))


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

    def open(self, digest: str) -> int | None:
        """Makes the stored states this job's own, for the first rank; states of another job are thrown away.

        Returns:
            The step of the newest whole state.
        """
        job = self._stored / _JOB
        try:
            same = job.read_text() == digest
        except FileNotFoundError:
            same = False
        if not same:
            self._stored.remove_all()
            job.write_bytes(digest.encode())
        marks = [name for name in self._stored.files() if name.startswith("complete-")]
        return max((int(name.rpartition("-")[2]) for name in marks), default=None)

    def fetch(self, step: int | None) -> None:
        """Brings the state of a step, and what belongs to no step, into this rank's folder, and nothing else."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        wanted = [name for name in self._stored.files() if self._is_wanted(name, step)]
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
