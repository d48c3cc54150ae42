"""The trajectory store of one round: each (round, problem, sample) once, durable as soon as it is flushed.

    consumes     judged trajectories, in any order, some perhaps twice
    produces     trajectories/round=NNN/part-NNNNN-WWWWWWWW.parquet while sampling goes on, all.parquet at the end
    waits for    nothing
    unblocked by -

There is one writer, the driver, which holds the lock of the run directory; Ray only promises at-least-once, and the
first write of a key wins. Rows between two flushes are work in flight: a crash loses at most those, and they are asked
for again.

Only the lease of an object store may leave two writers for some seconds, when one stood still and is taken over. So a
part's name ends with a number of its writer's own, and neither puts its part over the other's. Where both brought a
key, every reader takes the first: the merged file's, then that of the lowest part.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from still_ray.location import Location, ObjectPath
from still_ray.store.tables import check_schema, iter_table, open_table, read_table, write_table
from still_ray.types import Trajectory, TrajectoryKey, Verdict

FLUSH_ROWS = 256
FLUSH_S = 2.0
REMOTE_FLUSH_ROWS = 1024
REMOTE_FLUSH_S = 10.0
"""In an object store each part costs requests when it is written and when a resumed run reads it. Source: ours."""
PARALLEL_READS = 16
MERGED = "all.parquet"

_PART = re.compile(r"part-(\d+)")
"""Of a part's name, with its writer behind the number or, as older releases wrote it, without."""

Result = TypeVar("Result")


class TrajectoryStore:
    """The trajectories of one round."""

    def __init__(self, folder: Location) -> None:
        """Opens the folder, completes an interrupted merge and reads what is already durable: keys and verdicts."""
        self._folder = folder
        self._buffer: list[Trajectory] = []
        self._flushed_at = time.monotonic()
        self._limits = (REMOTE_FLUSH_ROWS, REMOTE_FLUSH_S) if isinstance(folder, ObjectPath) else (FLUSH_ROWS, FLUSH_S)
        self._drop_merged_parts()
        files = self._files()
        self._writer = uuid.uuid4().hex[:8]
        self._next_part = 1 + max((_part_number(path) for path in files), default=-1)
        self._verdicts: dict[TrajectoryKey, Verdict] = {}
        for rows in _of_each(files, _verdicts):
            for key, verdict in rows:
                self._verdicts.setdefault(key, verdict)

    @property
    def verdicts(self) -> Mapping[TrajectoryKey, Verdict]:
        """Every key committed so far, buffered ones included, with its verdict."""
        return self._verdicts

    def commit(self, rows: Sequence[Trajectory]) -> list[Trajectory]:
        """Takes trajectories in; returns those that were new. The first write of a key wins."""
        fresh = []
        for row in rows:
            if row.key not in self._verdicts:
                self._verdicts[row.key] = row.verdict
                fresh.append(row)
        self._buffer += fresh
        rows_limit, seconds_limit = self._limits
        if len(self._buffer) >= rows_limit or time.monotonic() - self._flushed_at >= seconds_limit:
            self.flush()
        return fresh

    def flush(self) -> None:
        """Makes everything committed durable."""
        if self._buffer:
            name = f"part-{self._next_part:05d}-{self._writer}.parquet"
            write_table(self._folder / name, self._buffer, Trajectory)
            self._next_part += 1
            self._buffer = []
        self._flushed_at = time.monotonic()

    def merge(self) -> None:
        """Merges the parts of a finished round into one sorted file; a crash in between is mended on opening."""
        self.flush()
        parts = self._files()
        if not parts or parts == [self._folder / MERGED]:
            return
        tables = _of_each(parts, lambda path: read_table(path, Trajectory))
        rows = sorted(_first_of_each(row for table in tables for row in table), key=lambda row: row.key)
        write_table(self._folder / MERGED, rows, Trajectory)
        self._drop_merged_parts()

    def __iter__(self) -> Iterator[Trajectory]:
        """Streams the durable trajectories, each key once."""
        yield from _first_of_each(row for path in self._files() for row in iter_table(path, Trajectory))

    def stored_keys(self) -> list[TrajectoryKey]:
        """The key of every row that lies there; one comes twice only where two writers brought it."""
        return [key for rows in _of_each(self._files(), _verdicts) for key, _ in rows]

    def _files(self) -> list[Location]:
        """In the order in which readers take them."""
        return sorted(self._folder.glob("*.parquet"), key=lambda path: (_part_number(path), path.name))

    def _drop_merged_parts(self) -> None:
        """Drops the copies that a merge leaves when it is interrupted between its rename and its clean-up.

        A part that was written after the merge holds other keys and stays.
        """
        merged = self._folder / MERGED
        if not merged.exists():
            return
        keys = {key for key, _ in _verdicts(merged)}
        parts = [path for path in self._files() if path.name != MERGED]
        for part, rows in zip(parts, _of_each(parts, _verdicts), strict=True):
            if keys.issuperset(key for key, _ in rows):
                part.unlink()


def _part_number(path: Location) -> int:
    """5 of part-00005-1a2b3c4d.parquet; -1 of the merged file."""
    part = _PART.match(path.name)
    return int(part[1]) if part else -1


def _first_of_each(rows: Iterable[Trajectory]) -> Iterator[Trajectory]:
    seen: set[TrajectoryKey] = set()
    for row in rows:
        if row.key not in seen:
            seen.add(row.key)
            yield row


def _verdicts(path: Location) -> list[tuple[TrajectoryKey, Verdict]]:
    with open_table(path) as file:
        check_schema(path, file.schema_arrow, Trajectory)
        table = file.read(columns=["round", "problem_id", "sample_index", "verdict"])
    return [
        (TrajectoryKey(row["round"], row["problem_id"], row["sample_index"]), Verdict(row["verdict"]))
        for row in table.to_pylist()
    ]


def _of_each(paths: Sequence[Location], read: Callable[[Location], Result]) -> list[Result]:
    """What is read of each file; objects are fetched side by side, since each takes several round trips."""
    if not any(isinstance(path, ObjectPath) for path in paths):
        return [read(path) for path in paths]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return list(pool.map(read, paths))
