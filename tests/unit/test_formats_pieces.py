"""Cutting files into pieces: every row once, with its number, whatever the size of a piece and the kind of file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from still_ray.formats.pieces import count_newlines, cut_files, find_files, needs_counting, read_piece, with_first_rows
from still_ray.types import InputError

ROWS = [{"n": n, "text": "x" * (n % 7)} for n in range(40)]


def read(path: Path, block_bytes: int) -> list[tuple[int, dict[str, Any] | None]]:
    pieces = cut_files(find_files([path]), block_bytes)
    pieces = with_first_rows(pieces, [count_newlines(piece) for piece in pieces])
    assert not needs_counting(pieces)
    return [(row.number, row.fields) for piece in pieces for row in read_piece(piece)]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@given(
    st.lists(st.sampled_from(["", "{}", '{"a": 1}', '{"b": "' + "y" * 30 + '"}', "  "]), max_size=30),
    st.integers(1, 60),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_lines_are_read_once_with_their_numbers_for_any_size_of_a_piece(
    tmp_path: Path, content: list[str], block_bytes: int, ends: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(content) + ("\n" if ends else ""))
    if not path.stat().st_size:
        return
    expected = [(number, json.loads(line)) for number, line in enumerate(content, start=1) if line.strip()]
    assert read(path, block_bytes) == expected


def write_saved(folder: Path, rows: list[dict[str, Any]]) -> None:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder), num_shards=2)


@pytest.mark.parametrize("block_bytes", [1, 200, 10**9])
@pytest.mark.parametrize("kind", ["lines", "gzip", "array", "parquet", "arrow"])
def test_every_kind_of_file(tmp_path: Path, kind: str, block_bytes: int) -> None:
    name = {"lines": "a.jsonl", "gzip": "a.jsonl.gz", "array": "a.json", "parquet": "a.parquet", "arrow": "a.arrow"}[
        kind
    ]
    path = tmp_path / name
    table = pa.Table.from_pylist(ROWS)
    if kind == "lines":
        path.write_text(lines(ROWS))
    elif kind == "gzip":
        path.write_bytes(gzip.compress(lines(ROWS).encode()))
    elif kind == "array":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "parquet":
        pq.write_table(table, path, row_group_size=7)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=9)
    assert read(path, block_bytes) == list(enumerate(ROWS, start=1))
    if kind in ("lines", "parquet", "arrow") and block_bytes == 1:
        assert len(cut_files([path], block_bytes)) > 3


def test_a_saved_dataset_is_read_shard_by_shard_and_a_split_by_split(tmp_path: Path) -> None:
    write_saved(tmp_path / "one", ROWS)
    files = find_files([tmp_path / "one"])
    assert [path.name for path in files] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert [fields for path in files for _, fields in read(path, 10**9)] == ROWS
    for split in ("train", "test"):
        write_saved(tmp_path / "both" / split, ROWS[:4])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert [path.parent.name for path in find_files([tmp_path / "both"])] == ["train"] * 2 + ["test"] * 2


def test_a_plain_directory_gives_its_files_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden/d.jsonl", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    assert [str(path.relative_to(tmp_path)) for path in find_files([tmp_path])] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]


def test_rows_that_cannot_be_read_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n"\xff"\n{"a": 2}')
    rows = [row for piece in cut_files([path], 10**6) for row in read_piece(piece)]
    assert [row.fields for row in rows] == [{"a": 1}, None, None, None, {"a": 2}]
    for row, why in zip(
        rows[1:4], ("not valid JSON", "a JSON object is expected, found list", "not UTF-8"), strict=True
    ):
        assert row.broken.startswith(f"{path}, row {row.number}: ")
        assert why in row.broken


@pytest.mark.parametrize("kind", ["gzip", "array"])
def test_a_file_that_ends_too_early_is_one_broken_row_more(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.jsonl.gz" if kind == "gzip" else "a.json")
    path.write_bytes(
        gzip.compress(lines(ROWS * 50).encode())[:-40] if kind == "gzip" else json.dumps(ROWS)[:-9].encode()
    )
    rows = [row for piece in cut_files([path], 10**6) for row in read_piece(piece)]
    assert rows[-1].fields is None
    assert f"row {rows[-1].number}: the file is damaged from here on" in rows[-1].broken
    assert all(row.fields is not None for row in rows[:-1])


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("missing.jsonl", None, "no such file or directory"),
        ("a.csv", b"x", "unknown suffix"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.parquet", b"nothing", "not a Parquet file"),
        ("a.arrow", b"nothing", "not an Arrow stream"),
    ],
)
def test_wrong_inputs_are_named(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=why) as caught:
        cut_files(find_files([path]), 100)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_directory_and_a_file_given_twice_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a saved"):
        find_files([tmp_path])
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="given twice"):
        find_files([tmp_path, tmp_path / "a.jsonl"])
