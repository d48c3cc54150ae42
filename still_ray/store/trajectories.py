"""The trajectory store of one round: each (round, problem, sample) once, durable as soon as it is flushed.

Rows lie in trajectories/round=NNN/part-NNNNN-WWWWWWWW.parquet while sampling goes on, in all.parquet at the end.

There is one writer, the driver, which holds the lock of the run directory; Ray only promises at-least-once, and the
first write of a key wins. Rows between two flushes are work in flight: a crash loses at most those, and they are asked
for again.

Only the lease of an object store may leave two writers for some seconds, when one stood still and is taken over. So a
part's name ends with a number of its writer's own, and neither puts its part over the other's. Where both brought a
key, every reader takes the first: the merged file's, then that of the lowest part.
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from still_ray.location import Location, ObjectPath
from still_ray.store.external_sort import Numbers, in_order
from still_ray.store.tables import (
    BATCH_ROWS,
    check_schema,
    iter_table,
    open_table,
    records_of,
    schema_of,
    with_every_column,
    write_arrow,
    write_table,
)
from still_ray.types import Candidate, CandidateColumns, RunError, Trajectory, TrajectoryKey, Verdict, candidate_of

FLUSH_ROWS = 256
FLUSH_S = 2.0
REMOTE_FLUSH_ROWS = 1024
REMOTE_FLUSH_S = 10.0
"""In an object store each part costs requests when it is written and when a resumed run reads it. Source: ours."""
FLUSH_CHARS = 16 * 2**20
"""Of text, however few the rows."""
PARALLEL_READS = 16
MERGED = "all.parquet"

_PART = re.compile(r"part-(\d+)")
"""Of a part's name, with its writer behind the number or, as older releases wrote it, without."""

_KEY = ["round", "problem_id", "sample_index"]

Keyed = TypeVar("Keyed", Trajectory, CandidateColumns)


class TrajectoryStore:
    """The trajectories of one round."""

    def __init__(self, folder: Location) -> None:
        """Opens the folder, completes an interrupted merge and reads what is already durable: keys and verdicts."""
        self._folder = folder
        self._buffer: list[Trajectory] = []
        self._buffered_chars = 0
        self._flushed_at = time.monotonic()
        self._limits = (REMOTE_FLUSH_ROWS, REMOTE_FLUSH_S) if isinstance(folder, ObjectPath) else (FLUSH_ROWS, FLUSH_S)
        self._drop_merged_parts()
        files = self._files()
        self._writer = uuid.uuid4().hex[:8]
        self._next_part = 1 + max((_part_number(path) for path in files), default=-1)
        self._candidates: list[Candidate] | None = None
        self._verdicts: dict[TrajectoryKey, Verdict] = {}
        self._read_verdicts()

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
        if fresh:
            self._candidates = None
        self._buffer += fresh
        self._buffered_chars += sum(len(row.response) + len(row.thought) + len(row.solution) for row in fresh)
        rows_limit, seconds_limit = self._limits
        is_full = len(self._buffer) >= rows_limit or self._buffered_chars >= FLUSH_CHARS
        if is_full or time.monotonic() - self._flushed_at >= seconds_limit:
            self.flush()
        return fresh

    def flush(self) -> None:
        """Makes everything committed durable."""
        if self._buffer:
            name = f"part-{self._next_part:05d}-{self._writer}.parquet"
            write_table(self._folder / name, self._buffer, Trajectory)
            self._next_part += 1
            self._buffer, self._buffered_chars = [], 0
        self._flushed_at = time.monotonic()

    def merge(self) -> None:
        """Merges the parts of a finished round into one sorted file; a crash in between is mended on opening.

        A bounded share of the rows is in memory at a time: see `external_sort`.
        """
        self.flush()
        parts = self._files()
        if not parts or parts == [self._folder / MERGED]:
            return
        self._read_verdicts()  # a writer that was taken over may have added a part
        ranks = {key: rank for rank, key in enumerate(sorted(self._verdicts))}
        tables = in_order(self.ranked(ranks), sort_folder(self._folder))
        write_arrow(self._folder / MERGED, tables, schema_of(Trajectory))
        if ranks:  # each is taken out with its row; the parts stay, so nothing is lost
            raise RunError(f"{self._folder}: no row of {next(iter(ranks))} was found while the round was merged")
        for part in parts:
            if part.name != MERGED:
                part.unlink()
        self._candidates = None

    def __iter__(self) -> Iterator[Trajectory]:
        """Streams the durable trajectories, each key once."""
        return _first_of_each(row for path in self._files() for row in iter_table(path, Trajectory))

    def candidates(self) -> Sequence[Candidate]:
        """The trajectories without their texts, which are read once and again only after a change."""
        self.flush()
        if self._candidates is None:
            rows = (row for path in self._files() for row in iter_table(path, CandidateColumns, part_of=Trajectory))
            self._candidates = [candidate_of(row) for row in _first_of_each(rows)]
        return self._candidates

    def num_tokens(self) -> dict[TrajectoryKey, int]:
        """Tokens of every response committed so far, as the first write of its key says."""
        self.flush()
        found: dict[TrajectoryKey, int] = {}
        for path, file in _opened(self._files()):
            check_schema(path, file.schema_arrow, Trajectory)
            table = file.read(columns=[*_KEY, "num_tokens"])
            for key, num_tokens in zip(_keys(table), table["num_tokens"].to_pylist(), strict=True):
                found.setdefault(key, num_tokens)
        return found

    def ranked(self, ranks: dict[TrajectoryKey, int]) -> Iterator[tuple[pa.Table, Numbers]]:
        """Streams the durable rows of some keys as stored.

        Args:
            ranks: Of the keys; a key is taken out once its row is found, so that the first row of a key counts.

        Yields:
            Tables of few rows, and the ranks of their rows.
        """
        for path, file in _opened(self._files()):
            check_schema(path, file.schema_arrow, Trajectory)
            for group in range(file.num_row_groups):
                keys = enumerate(_keys(file.read_row_group(group, columns=_KEY)))
                found = [(row, rank) for row, key in keys if (rank := ranks.pop(key, None)) is not None]
                if found:
                    yield from _taken(file, group, np.array(found, dtype=np.int64))

    def stored_keys(self) -> list[TrajectoryKey]:
        """The key of every row that lies there; one comes twice only where two writers brought it."""
        return [key for rows in _verdicts_of_each(self._files()) for key, _ in rows]

    def _read_verdicts(self) -> None:
        for rows in _verdicts_of_each(self._files()):
            for key, verdict in rows:
                self._verdicts.setdefault(key, verdict)

    def _files(self) -> list[Location]:
        """In the order in which readers take them."""
        return sorted(self._folder.glob("*.parquet"), key=lambda path: (_part_number(path), path.name))

    def _drop_merged_parts(self) -> None:
        """Drops the copies that a merge leaves when it is interrupted between its rename and its clean-up.

        A part that was written after the merge holds other keys and stays.
        """
        merged, *parts = self._files() or [self._folder / MERGED]
        if merged.name != MERGED or not parts:
            return
        keys = {key for key, _ in _verdicts(merged)}
        for part, rows in zip(parts, _verdicts_of_each(parts), strict=True):
            if keys.issuperset(key for key, _ in rows):
                part.unlink()


def _part_number(path: Location) -> int:
    """5 of part-00005-1a2b3c4d.parquet; -1 of the merged file."""
    part = _PART.match(path.name)
    return int(part[1]) if part else -1


def joined(stores: Iterable[TrajectoryStore], keys: Sequence[TrajectoryKey], folder: Location) -> Iterator[Trajectory]:
    """Streams the trajectories of some keys in the order of the keys, as often as each stands there.

    A bounded share of them is in memory at a time: see `external_sort`.

    Args:
        stores: Of the rounds of the keys.
        keys: Which trajectories.
        folder: Where temporary files may lie, unless it is in an object store.

    Raises:
        KeyError: A key is not stored.
    """
    ranks: dict[TrajectoryKey, int] = {}
    again: dict[int, list[int]] = {}
    for rank, key in enumerate(keys):
        if (first := ranks.setdefault(key, rank)) != rank:
            again.setdefault(first, []).append(rank)
    rows = (_repeated(*found, again) for store in stores for found in store.ranked(ranks))
    for table in in_order(rows, sort_folder(folder)):
        for batch in table.to_batches(max_chunksize=BATCH_ROWS):
            yield from records_of(batch, Trajectory)
    if ranks:
        raise KeyError(next(iter(ranks)))


def _repeated(table: pa.Table, ranks: Numbers, again: Mapping[int, Sequence[int]]) -> tuple[pa.Table, Numbers]:
    """Adds the rows that stand at further ranks than their first."""
    further = [(row, other) for row, rank in enumerate(ranks.tolist()) for other in again.get(rank, ())]
    if not further:
        return table, ranks
    rows, others = np.array(further, dtype=np.int64).T
    return pa.concat_tables([table, table.take(pa.array(rows))]), np.concatenate([ranks, others])


def sort_folder(folder: Location) -> Path | None:
    """Where rows of a folder are sorted: there, since they fit there; else where the system puts temporary files."""
    return folder if isinstance(folder, Path) else None


def _taken(file: pq.ParquetFile, group: int, found: Numbers) -> Iterator[tuple[pa.Table, Numbers]]:
    """Some rows of a row group.

    Args:
        file: The file.
        group: Number of the row group.
        found: Two columns: a row's number in the group, ascending, and its rank.
    """
    start = 0
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
        first, last = np.searchsorted(found[:, 0], (start, start + batch.num_rows))
        if first < last:
            rows = pa.array(found[first:last, 0] - start)
            table = with_every_column(pa.Table.from_batches([batch]).take(rows), Trajectory)
            yield table, found[first:last, 1]
        start += batch.num_rows


def _opened(paths: Sequence[Location]) -> Iterator[tuple[Location, pq.ParquetFile]]:
    """Opens files one after another; parts in an object store are fetched ahead, some side by side."""

    def opened(path: Location) -> pq.ParquetFile:
        if isinstance(path, ObjectPath) and path.name != MERGED:
            return pq.ParquetFile(pa.BufferReader(path.read_bytes()))
        return open_table(path)

    ahead = PARALLEL_READS if any(isinstance(path, ObjectPath) for path in paths) else 1
    with ThreadPoolExecutor(ahead) as pool:
        waiting = deque(pool.submit(opened, path) for path in paths[:ahead])
        for number, path in enumerate(paths):
            with waiting.popleft().result() as file:
                yield path, file
            waiting.extend(pool.submit(opened, later) for later in paths[number + ahead : number + ahead + 1])


def _first_of_each(rows: Iterable[Keyed]) -> Iterator[Keyed]:
    seen: set[TrajectoryKey] = set()
    for row in rows:
        if row.key not in seen:
            seen.add(row.key)
            yield row


def _keys(table: pa.Table) -> list[TrajectoryKey]:
    rounds, problems, samples = (table[name].to_pylist() for name in _KEY)
    return list(map(TrajectoryKey, rounds, map(sys.intern, problems), samples))  # an id is shared by many keys


def _verdicts(path: Location) -> Iterator[tuple[TrajectoryKey, Verdict]]:
    with open_table(path) as file:
        check_schema(path, file.schema_arrow, Trajectory)
        groups = range(file.num_row_groups)
        is_object = isinstance(path, ObjectPath)  # each read is several round trips
        for some in [groups] if is_object else ([group] for group in groups):
            table = file.read_row_groups(some, columns=[*_KEY, "verdict"])
            yield from zip(_keys(table), map(Verdict, table["verdict"].to_pylist()), strict=True)


def _verdicts_of_each(paths: Sequence[Location]) -> Iterable[Iterable[tuple[TrajectoryKey, Verdict]]]:
    """Keys and verdicts of each file; objects are fetched side by side, since each takes several round trips."""
    if not any(isinstance(path, ObjectPath) for path in paths):
        return map(_verdicts, paths)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return list(pool.map(lambda path: list(_verdicts(path)), paths))
