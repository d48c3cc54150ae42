"""Rows put in order with a bounded share of them in memory.

Rows are gathered into runs of some 64 MB. Each run is sorted and appended to one temporary file in small batches; then
all runs are read side by side, a batch of each in memory. What fits into one run never touches the disk. Beside the
run, memory grows by one small batch a run: by some 2 MB a gigabyte.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

RUN_BYTES = 64 * 2**20
"""Sorted in memory; twice as much is there while a run is sorted."""
GROUP_BYTES = 8 * 2**20
"""Of one table that comes out."""
BATCH_BYTES = 128 * 2**10
"""Of a run in memory while runs are merged."""

Numbers = npt.NDArray[np.int64]


def in_order(rows: Iterable[tuple[pa.Table, Numbers]], folder: Path | None) -> Iterator[pa.Table]:
    """Yields rows by rank, as tables of some megabytes.

    Args:
        rows: Tables of one schema and the rank of each of their rows; no rank comes twice.
        folder: Where the temporary file may lie, which has no name and is gone with the process; None: where the system
            puts such files.

    Yields:
        The rows, rank after rank; nothing where there are no rows.
    """
    runs = _runs(rows)
    first, second = next(runs, None), next(runs, None)
    if first is None:
        return
    if second is None:
        yield from _groups_of_one(*first)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        spilled = _Spill(file, first[0].schema)
        for table, ranks in (first, second):
            spilled.add(table, ranks)
        del first, second, table, ranks
        for table, ranks in runs:
            spilled.add(table, ranks)
        yield from spilled.merged()


def _runs(rows: Iterable[tuple[pa.Table, Numbers]]) -> Iterator[tuple[pa.Table, Numbers]]:
    """Sorted runs of at most about `RUN_BYTES` each."""
    tables: list[pa.Table] = []
    ranks: list[Numbers] = []
    num_bytes = 0
    for table, of_table in rows:
        tables.append(table)
        ranks.append(of_table)
        num_bytes += int(_row_bytes(table).sum())
        if num_bytes >= RUN_BYTES:
            yield _sorted(tables, ranks)
            tables, ranks, num_bytes = [], [], 0
    if any(len(table) for table in tables):
        yield _sorted(tables, ranks)


def _sorted(tables: list[pa.Table], ranks: list[Numbers]) -> tuple[pa.Table, Numbers]:
    together = np.concatenate(ranks)
    order = np.argsort(together)
    return pa.concat_tables(tables).take(pa.array(order)).combine_chunks(), together[order]


def _groups_of_one(table: pa.Table, ranks: Numbers) -> Iterator[pa.Table]:
    start = 0
    for stop in _cuts(_row_bytes(table), GROUP_BYTES):
        yield table.slice(start, stop - start)
        start = stop


def _row_bytes(table: pa.Table) -> Numbers:
    """Bytes of the texts of each row, and some for its numbers."""
    total = np.full(len(table), 8 * table.num_columns, dtype=np.int64)
    for column in table.columns:
        if pa.types.is_string(column.type):
            total += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    return total


def _cuts(row_bytes: Numbers, limit: int) -> list[int]:
    """Where each group of rows ends: a group has at most the limit, or a single row."""
    ends: list[int] = []
    held = 0
    for row, size in enumerate(row_bytes.tolist()):
        if held and held + size > limit:
            ends.append(row)
            held = 0
        held += size
    return [*ends, len(row_bytes)] if len(row_bytes) else ends


class _Spill:
    """Sorted runs in one temporary file."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        """Begins the file.

        Args:
            file: Written, then read.
            schema: Of all runs.
        """
        self._file = file
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema, options=options)
        self._num_batches = 0
        self._runs: list[tuple[int, Numbers, Numbers]] = []
        """Of each run: the number of its first batch, the ranks and the bytes of its rows."""

    def add(self, table: pa.Table, ranks: Numbers) -> None:
        """Appends a run."""
        row_bytes = _row_bytes(table)
        self._runs.append((self._num_batches, ranks, row_bytes))
        start = 0
        for stop in _cuts(row_bytes, BATCH_BYTES):
            (batch,) = table.slice(start, stop - start).to_batches()
            self._writer.write_batch(batch)
            self._num_batches += 1
            start = stop

    def merged(self) -> Iterator[pa.Table]:
        """The rows of all runs by rank."""
        self._writer.close()
        self._file.seek(0, io.SEEK_SET)
        reader = pa.ipc.open_file(pa.PythonFile(self._file, mode="r"))
        ranks = np.concatenate([of_run for _, of_run, _ in self._runs])
        row_bytes = np.concatenate([of_run for _, _, of_run in self._runs])
        order = np.argsort(ranks)
        runs = [_Run(reader, first, of_run) for first, of_run, _ in self._runs]
        lasts = [int(ranks[order[stop - 1]]) for stop in _cuts(row_bytes[order], GROUP_BYTES)]
        del ranks, row_bytes, order
        for last in lasts:
            parts = [run.up_to(last) for run in runs]
            batches = [batch for of_run, _ in parts for batch in of_run]
            order = np.argsort(np.concatenate([of_run for _, of_run in parts]))
            yield pa.Table.from_batches(batches).take(pa.array(order)).combine_chunks()


class _Run:
    """One run while it is merged: a batch of it is in memory."""

    def __init__(self, reader: Any, first_batch: int, ranks: Numbers) -> None:
        self._reader = reader
        self._next_batch = first_batch
        self._ranks = ranks
        self._row = 0
        self._batch: pa.RecordBatch | None = None

    def up_to(self, last: int) -> tuple[list[pa.RecordBatch], Numbers]:
        """Its next rows up to a rank, and their ranks."""
        stop = int(np.searchsorted(self._ranks, last, side="right"))
        ranks = self._ranks[self._row : stop]
        wanted, taken = len(ranks), []
        while wanted:
            if self._batch is None or not self._batch.num_rows:
                self._batch = self._reader.get_batch(self._next_batch)
                self._next_batch += 1
            part = self._batch.slice(0, wanted)
            taken.append(part)
            wanted -= part.num_rows
            self._batch = self._batch.slice(part.num_rows)
        self._row = stop
        return taken, ranks
