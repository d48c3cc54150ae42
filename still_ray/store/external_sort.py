"""Rows put in order with a bounded share of them in memory.

Rows are gathered into runs of some 16 MB. Each run is sorted and appended to one temporary file in small batches; then
all runs are read side by side, a batch of each in memory. What fits into one run never touches the disk. Beside the
run, memory grows by one small batch a run: by some 2 MB a gigabyte.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

RUN_BYTES = 16 * 2**20
"""Sorted in memory; twice as much is there while a run is sorted."""
GROUP_BYTES = 8 * 2**20
"""Of one table that comes out."""
BATCH_BYTES = 64 * 2**10
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
    with tempfile.TemporaryFile(dir=folder) as file:
        spill: _Spill | None = None
        for run in _runs(rows):
            if spill is None and run.is_last:
                yield from run.tables(GROUP_BYTES)
                return
            spill = spill or _Spill(file, run.table.schema)
            spill.add(run)
            del run
        if spill is not None:
            yield from spill.merged()


@dataclass(frozen=True)
class _Run:
    """Rows in memory.

    Attributes:
        table: The rows, in one chunk, as they came.
        order: The numbers of its rows by rank.
        ranks: Their ranks in that order.
        row_bytes: Their bytes in that order.
        is_last: Whether it holds what was left at the end, and not a full run.
    """

    table: pa.Table
    order: Numbers
    ranks: Numbers
    row_bytes: Numbers
    is_last: bool

    def tables(self, limit: int) -> Iterator[pa.Table]:
        """Its rows by rank, in tables of so many bytes."""
        start = 0
        for stop in _cuts(self.row_bytes, limit):
            yield self.table.take(pa.array(self.order[start:stop]))
            start = stop


def _runs(rows: Iterable[tuple[pa.Table, Numbers]]) -> Iterator[_Run]:
    """Runs of about `RUN_BYTES` each."""
    tables: list[pa.Table] = []
    ranks: list[Numbers] = []
    num_bytes = 0
    for table, of_table in rows:
        tables.append(table)
        ranks.append(of_table)
        num_bytes += int(_row_bytes(table).sum())
        if num_bytes >= RUN_BYTES:
            together, of_rows = pa.concat_tables(tables).combine_chunks(), np.concatenate(ranks)
            tables, ranks, num_bytes = [], [], 0
            yield _run(together, of_rows, is_last=False)
            del together
    if any(len(table) for table in tables):
        yield _run(pa.concat_tables(tables).combine_chunks(), np.concatenate(ranks), is_last=True)


def _run(table: pa.Table, ranks: Numbers, *, is_last: bool) -> _Run:
    order = np.argsort(ranks)
    return _Run(table, order, ranks[order], _row_bytes(table)[order], is_last)


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

    def add(self, run: _Run) -> None:
        """Appends a run."""
        self._runs.append((self._num_batches, run.ranks, run.row_bytes))
        for table in run.tables(BATCH_BYTES):
            self._writer.write_table(table)
            self._num_batches += 1

    def merged(self) -> Iterator[pa.Table]:
        """The rows of all runs by rank."""
        self._writer.close()
        self._file.seek(0)
        reader = pa.ipc.open_file(pa.PythonFile(self._file, mode="r"))
        ranks = np.concatenate([of_run for _, of_run, _ in self._runs])
        row_bytes = np.concatenate([of_run for _, _, of_run in self._runs])
        order = np.argsort(ranks)
        runs = [_StoredRun(reader, first, of_run) for first, of_run, _ in self._runs]
        for stop in _cuts(row_bytes[order], GROUP_BYTES):
            parts = [run.up_to(ranks[order[stop - 1]]) for run in runs]
            rows = pa.Table.from_batches([batch for batches, _ in parts for batch in batches])
            yield rows.take(pa.array(np.argsort(np.concatenate([of_run for _, of_run in parts]))))


class _StoredRun:
    """A run while it is merged: a batch of it is in memory."""

    def __init__(self, reader: Any, first_batch: int, ranks: Numbers) -> None:
        """Stands before its first row.

        Args:
            reader: Of the file that it lies in.
            first_batch: Number of its first batch there.
            ranks: Of its rows, ascending.
        """
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
