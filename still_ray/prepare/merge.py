"""The second pass: which rows repeat an earlier one, and the rest into one file, in input order.

It reads the shards and arrays of the first pass, and writes demonstrations.parquet, problems.parquet and the counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from still_ray.config.prepare import PrepareConfig
from still_ray.formats.chats import EARLIER_TURNS
from still_ray.prepare.counts import Counts, Samples
from still_ray.prepare.duplicates import Flags, Indices, first_equals, first_similars
from still_ray.prepare.filters.words import Hashes
from still_ray.prepare.minhash import estimated_jaccard
from still_ray.prepare.sift import DEMONSTRATIONS, PROBLEMS, Shard, sample_row

FATES: Final = ("kept", "exact_duplicates", "near_duplicates")
COLUMNS: Final = {
    DEMONSTRATIONS: (
        *("id", EARLIER_TURNS, "question", "combined_text", "domain", "answer", "source_file", "source_row"),
    ),
    PROBLEMS: ("id", "question", "answer", "domain", "subject", "level", "source_file", "source_row"),
}
GROUP_ROWS: Final = 8192
GROUP_BYTES: Final = 64 << 20
_PAIRS: Final = 1 << 16


def resolve_duplicates(config: PrepareConfig, shards: Sequence[Shard]) -> NDArray[np.int64]:
    """The fate of every row of the shards, in input order.

    Returns:
        An array of shape (rows, 3): index into `FATES`, the row that it repeats (its own index if none), and whether
        an earlier kept row has its id.
    """
    keys = np.concatenate([np.load(shard.file("keys.npy")) for shard in shards])
    own = np.arange(len(keys), dtype=np.int64)
    roots, fates = own.copy(), np.zeros(len(keys), np.int64)
    if config.exact_duplicates.enabled:
        roots = first_equals(keys[:, 0])
        fates[roots != own] = FATES.index("exact_duplicates")
    if config.near_duplicates.enabled:
        left = np.flatnonzero(fates == 0).astype(np.int64)
        near = left[_near_roots(config, shards, left)]
        fates[left[near != left]] = FATES.index("near_duplicates")
        roots[left] = near
    kept = np.flatnonzero(fates == 0)
    same_id = np.zeros(len(keys), np.int64)
    same_id[kept] = first_equals(keys[kept, 1]) != np.arange(len(kept))
    return np.column_stack([fates, roots, same_id])


def _near_roots(config: PrepareConfig, shards: Sequence[Shard], rows: Indices) -> Indices:
    """For each of these rows the place among them of the first row of its cluster."""
    cut = np.concatenate([np.load(shard.file("cut.npy")) for shard in shards])[rows]
    bands = (_band(shards, band)[rows] for band in range(config.near_duplicates.bands))
    return first_similars(len(rows), bands, partial(_similar, cut, config.near_duplicates.threshold))


def _band(shards: Sequence[Shard], band: int) -> Hashes:
    return np.concatenate([np.load(shard.file("bands.npy"), mmap_mode="r")[band] for shard in shards])


def _similar(cut: NDArray[np.uint8], threshold: float, left: Indices, right: Indices) -> Flags:
    """Which pairs are near-duplicates, a slice of pairs at a time."""
    found = [
        estimated_jaccard(cut[left[start : start + _PAIRS]], cut[right[start : start + _PAIRS]]) >= threshold
        for start in range(0, len(left), _PAIRS)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.bool_)


def write_kept(
    config: PrepareConfig, shards: Sequence[Shard], fates: NDArray[np.int64], folder: Path
) -> Iterator[Counts]:
    """Writes what is kept into `folder`; yields the counts of each shard once it is done."""
    sources = _Sources(shards)
    with ExitStack() as stack:
        writers = {kind: stack.enter_context(_Writer(folder / f"{kind}.parquet", kind)) for kind in COLUMNS}
        start = 0
        for shard in shards:
            counts = Counts(samples=Samples(number=config.sample_per_filter, seed=config.seed))
            with pq.ParquetFile(shard.file("rows.parquet")) as file:
                for batch in file.iter_batches(batch_size=1024):
                    table = pa.Table.from_batches([batch])
                    part = fates[start : start + len(table)]
                    start += len(table)
                    _count_duplicates(table, part, sources, counts)
                    _write(table, part, writers, counts)
            yield counts


class _Sources:
    """File and row of any row of the shards, for saying what a duplicate repeats."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        sizes = [len(np.load(shard.file("keys.npy"), mmap_mode="r")) for shard in shards]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def where(self, index: int) -> str:
        """A row's file and number."""
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        keys = np.load(self._shards[place].file("keys.npy"), mmap_mode="r")
        return f"{self._shards[place].source}, row {int(keys[index - self._starts[place], 2])}"


def _count_duplicates(table: pa.Table, fates: NDArray[np.int64], sources: _Sources, counts: Counts) -> None:
    places = np.flatnonzero(fates[:, 0])
    if not len(places):
        return
    rows = table.take(pa.array(places)).to_pylist()
    for row, (fate, root, _) in zip(rows, fates[places].tolist(), strict=True):
        name = FATES[fate]
        sample = sample_row(row, row["kind"], "")
        counts.drop(name, row["kind"], {**sample, "repeats": root})
    for kept in counts.samples.kept.values():
        for _, sample in kept:
            if isinstance(sample.get("repeats"), int):
                sample["detail"] = f"repeats {sources.where(sample.pop('repeats'))}"


def _write(table: pa.Table, fates: NDArray[np.int64], writers: dict[str, _Writer], counts: Counts) -> None:
    kept = fates[:, 0] == 0
    table, same_id = table.filter(pa.array(kept)), fates[kept, 2]
    if not len(table):
        return
    if same_id.any():
        table = _renamed(table, same_id)
    _count_kept(table, counts)
    for kind, writer in writers.items():
        writer.add(table.filter(pc.equal(table["kind"], kind)))


def _renamed(table: pa.Table, same_id: NDArray[np.int64]) -> pa.Table:
    """Gives rows whose id an earlier row has one of their own: readers refuse one id for two contents."""
    columns = (table[name].to_pylist() for name in ("id", "source_file", "source_row"))
    ids = [
        hashlib.sha256(f"{name}\0{file}\0{row}".encode()).hexdigest()[:16] if taken else name
        for name, file, row, taken in zip(*columns, same_id.tolist(), strict=True)
    ]
    return table.set_column(table.schema.get_field_index("id"), "id", pa.array(ids, pa.string()))


def _count_kept(table: pa.Table, counts: Counts) -> None:
    questions = pc.utf8_length(table["question"]).to_pylist()
    names = ("kind", "domain", "thought_chars", "solution_chars", "response_tokens")
    columns = [table[name].to_pylist() for name in names]
    for kind, domain, thought, solution, tokens, question in zip(*columns, questions, strict=True):
        lengths: dict[str, Any] = {"question_chars": question, "thought_chars": thought, "solution_chars": solution}
        if thought is not None:
            lengths |= {"response_chars": thought + solution, "response_tokens": tokens}
        counts.rows_out.add(kind, domain, lengths)


class _Writer:
    """One output file, written row group by row group; no file without rows."""

    def __init__(self, path: Path, kind: str) -> None:
        self._path, self._columns = path, list(COLUMNS[kind])
        self._tables: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush()
        if self._writer is not None:
            self._writer.close()

    def add(self, table: pa.Table) -> None:
        """Takes rows, in order."""
        if not len(table):
            return
        self._tables.append(table.select(self._columns))
        num_rows = sum(len(part) for part in self._tables)
        if num_rows >= GROUP_ROWS or sum(part.nbytes for part in self._tables) >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._tables:
            return
        table = pa.concat_tables(self._tables)
        self._tables = []
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)
