"""The trajectory store of one round: each (round, problem, sample) once, durable as soon as it is flushed.

    consumes     judged trajectories, in any order, some perhaps twice
    produces     trajectories/round=NNN/part-NNNNN.parquet while sampling goes on, all.parquet at the end
    waits for    nothing
    unblocked by -

There is one writer, the driver, which holds the lock of the run directory; Ray only promises at-least-once, and the
first write of a key wins. Rows between two flushes are work in flight: a crash loses at most those, and they are asked
for again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from still_ray.store.tables import check_schema, iter_table, read_table, write_table
from still_ray.types import Trajectory, TrajectoryKey, Verdict

FLUSH_ROWS = 256
FLUSH_S = 2.0
MERGED = "all.parquet"


class TrajectoryStore:
    """The trajectories of one round."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder, completes an interrupted merge and reads what is already durable: keys and verdicts."""
        self._folder = folder
        self._buffer: list[Trajectory] = []
        self._flushed_at = time.monotonic()
        self._drop_merged_parts()
        self._next_part = 1 + max((_part_number(path) for path in self._files()), default=-1)
        self._verdicts = {key: verdict for path in self._files() for key, verdict in _verdicts(path)}

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
        if len(self._buffer) >= FLUSH_ROWS or time.monotonic() - self._flushed_at >= FLUSH_S:
            self.flush()
        return fresh

    def flush(self) -> None:
        """Makes everything committed durable."""
        if self._buffer:
            write_table(self._folder / f"part-{self._next_part:05d}.parquet", self._buffer, Trajectory)
            self._next_part += 1
            self._buffer = []
        self._flushed_at = time.monotonic()

    def merge(self) -> None:
        """Merges the parts of a finished round into one sorted file; a crash in between is mended on opening."""
        self.flush()
        parts = self._files()
        if not parts or parts == [self._folder / MERGED]:
            return
        rows = sorted((row for path in parts for row in read_table(path, Trajectory)), key=lambda row: row.key)
        write_table(self._folder / MERGED, rows, Trajectory)
        self._drop_merged_parts()

    def __iter__(self) -> Iterator[Trajectory]:
        """Streams the durable trajectories."""
        for path in self._files():
            yield from iter_table(path, Trajectory)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))

    def _drop_merged_parts(self) -> None:
        """Drops the copies that a merge leaves when it is interrupted between its rename and its clean-up.

        A part that was written after the merge holds other keys and stays.
        """
        merged = self._folder / MERGED
        if not merged.exists():
            return
        keys = {key for key, _ in _verdicts(merged)}
        for part in self._folder.glob("part-*.parquet"):
            if keys.issuperset(key for key, _ in _verdicts(part)):
                part.unlink()


def _part_number(path: Path) -> int:
    """5 of part-00005.parquet; -1 of the merged file."""
    return -1 if path.name == MERGED else int(path.stem.removeprefix("part-"))


def _verdicts(path: Path) -> Iterator[tuple[TrajectoryKey, Verdict]]:
    with pq.ParquetFile(path) as file:
        check_schema(path, file.schema_arrow, Trajectory)
        table = file.read(columns=["round", "problem_id", "sample_index", "verdict"])
    for row in table.to_pylist():
        yield TrajectoryKey(row["round"], row["problem_id"], row["sample_index"]), Verdict(row["verdict"])
