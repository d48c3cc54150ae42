"""Rows come out by rank, whatever lies on disk in between, and not much of them is in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.store import external_sort
from still_ray.store.external_sort import Numbers, in_order


def small_limits(patched: pytest.MonkeyPatch, run: int, group: int, batch: int) -> None:
    for name, value in (("RUN_BYTES", run), ("GROUP_BYTES", group), ("BATCH_BYTES", batch)):
        patched.setattr(external_sort, name, value)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=80),
    limits=st.tuples(st.integers(1, 900), st.integers(1, 300), st.integers(1, 100)),
    seed=st.integers(0, 5),
    table_rows=st.integers(1, 9),
)
def test_rows_come_by_rank_whatever_the_sizes(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    limits: tuple[int, int, int],
    seed: int,
    table_rows: int,
) -> None:
    draw = random.Random(seed)
    ranks = draw.sample(range(1000), len(lengths))
    texts = [f"{rank} {'é' * length}" if length % 7 else None for rank, length in zip(ranks, lengths, strict=True)]
    table = pa.table({"rank": ranks, "text": texts}, schema=pa.schema({"rank": pa.int64(), "text": pa.string()}))
    rows = [
        (table.slice(start, table_rows), np.array(ranks[start : start + table_rows], dtype=np.int64))
        for start in range(0, len(ranks), table_rows)
    ]
    folder = tmp_path_factory.mktemp("sort")
    with pytest.MonkeyPatch.context() as patched:
        small_limits(patched, *limits)
        found = [row for part in in_order(rows, folder) for row in part.to_pylist()]
    assert found == table.sort_by("rank").to_pylist()
    assert not list(folder.iterdir())


def test_no_rows_are_no_tables(tmp_path: Path) -> None:
    empty = pa.table({"text": pa.array([], pa.string())})
    assert list(in_order([], tmp_path)) == list(in_order([(empty, np.array([], dtype=np.int64))], tmp_path)) == []


def test_the_groups_keep_to_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(monkeypatch, run=10_000, group=4_000, batch=500)
    tables = [(pa.table({"text": ["x" * 92] * 10}), np.arange(start, start + 10)) for start in range(0, 1000, 10)]
    sizes = [len(table) for table in in_order(tables, tmp_path)]
    assert sizes == [40] * 25, "100 bytes a row"


def test_sorting_holds_a_small_share_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(monkeypatch, run=2**20, group=2**18, batch=2**14)

    def rows() -> Iterator[tuple[pa.Table, Numbers]]:
        for number in range(1000):
            ranks = np.array([number, 1999 - number], dtype=np.int64)
            yield pa.table({"text": [random.Random(int(rank)).randbytes(32_000).hex() for rank in ranks]}), ranks

    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() - before for _ in in_order(rows(), tmp_path))
    assert most < 16 * 2**20, f"of 122 MB, {most:,} bytes were held"
