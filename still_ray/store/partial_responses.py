"""Partial responses on disk: what was sampled of responses that were in flight when the driver was killed.

They lie in rounds/NNN-explore/partial/part-NNNNN-WWWWWWWW.parquet, each part with what was sampled since the one
before, about 4 bytes a token. After some parts everything that is still of use is written as one, and the others go;
with the end of the exploration all of them do.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Sequence

from still_ray.algo.partial_responses import PartialResponses
from still_ray.location import Location, ObjectPath
from still_ray.store.tables import iter_table, write_table
from still_ray.store.trajectories import FLUSH_S, REMOTE_FLUSH_S
from still_ray.types import PartialResponse

MOST_PARTS = 64
"""Until they are joined. Source: ours; what is in flight is then rewritten every two minutes, or every ten in an object
store, which is less than what is appended meanwhile unless responses take much longer."""


class StoredPartialResponses(PartialResponses):
    """`PartialResponses` that are written down every few seconds; one writer, the driver."""

    def __init__(self, folder: Location) -> None:
        """Reads what the folder holds; makes nothing yet."""
        super().__init__()
        self._folder = folder
        self._interval_s = REMOTE_FLUSH_S if isinstance(folder, ObjectPath) else FLUSH_S / 2
        self._written_at = time.monotonic()
        self._unwritten: list[PartialResponse] = []
        self._writer = uuid.uuid4().hex[:8]
        self._parts = _parts(folder)
        self._next_part = 1 + max((int(path.name.split("-")[1]) for path in self._parts), default=-1)
        for path in self._parts:
            super().take(list(iter_table(path, PartialResponse)))

    def take(self, parts: Sequence[PartialResponse]) -> None:
        """See `PartialResponses`; also writes them down, unless it did so a moment ago."""
        super().take(parts)
        self._unwritten += parts
        if self._unwritten and time.monotonic() - self._written_at >= self._interval_s:
            self._write()

    def _write(self) -> None:
        is_join = len(self._parts) >= MOST_PARTS
        path = self._folder / f"part-{self._next_part:05d}-{self._writer}.parquet"
        write_table(path, self.all() if is_join else self._unwritten, PartialResponse)
        self._next_part += 1
        self._unwritten = []
        if is_join:  # it holds all that those did, so nothing is lost wherever this ends
            for older in self._parts:
                older.unlink()
            self._parts = []
        self._parts.append(path)
        self._written_at = time.monotonic()


def drop_partial_responses(folder: Location) -> None:
    """Removes them all, and on a disk what a killed driver left of one that it was writing."""
    for path in _parts(folder):
        path.unlink()
    if not isinstance(folder, ObjectPath):
        shutil.rmtree(folder, ignore_errors=True)


def _parts(folder: Location) -> list[Location]:
    return sorted(folder.glob("part-*.parquet"), key=lambda path: path.name)
