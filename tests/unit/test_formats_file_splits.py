"""Cutting files into pieces: every row once, with its number, whatever the size of a piece and the kind of file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from still_ray.formats.file_splits import (
    count_newlines,
    cut_files,
    find_files,
    needs_counting,
    with_first_rows,
)
from still_ray.location import Location
from still_ray.rows import SUFFIXES, read_piece
from still_ray.store.atomic import write_text
from still_ray.types import InputError
from tests.raw_rows import write_damaged_table

ROWS = [{"n": n, "text": "x" * (n % 7)} for n in range(40)]


def read(path: Path, block_bytes: int) -> list[tuple[int, Mapping[str, Any] | None]]:
    pieces = cut_files(find_files([path]).files, block_bytes)
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
    if not path.read_text().strip():
        return
    expected = [(number, json.loads(line)) for number, line in enumerate(content, start=1) if line.strip()]
    assert read(path, block_bytes) == expected


def write_saved(folder: Path, rows: list[dict[str, Any]]) -> None:
    import datasets

    datasets.Dataset.from_list(rows).save_to_disk(str(folder), num_shards=2)


@pytest.mark.parametrize("block_bytes", [1, 200, 10**9])
@pytest.mark.parametrize("kind", ["lines", "gzip", "array", "csv", "parquet", "arrow"])
def test_every_kind_of_file(tmp_path: Path, kind: str, block_bytes: int) -> None:
    suffixes = {"lines": "jsonl", "gzip": "jsonl.gz", "array": "json"}
    path = tmp_path / f"a.{suffixes.get(kind, kind)}"
    table = pa.Table.from_pylist(ROWS)
    if kind == "lines":
        path.write_text(lines(ROWS))
    elif kind == "gzip":
        path.write_bytes(gzip.compress(lines(ROWS).encode()))
    elif kind == "array":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "csv":
        path.write_text("n,text\n" + "".join(f"{row['n']},{row['text']}\n" for row in ROWS))
        assert read(path, block_bytes) == [
            (n, {"n": str(row["n"]), "text": row["text"]}) for n, row in enumerate(ROWS, 1)
        ]
        return
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
    files, skipped = find_files([tmp_path / "one"])
    assert skipped == []
    assert [path.name for path in files] == ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    assert [fields for path in files for _, fields in read(path, 10**9)] == ROWS
    for split in ("train", "test"):
        write_saved(tmp_path / "both" / split, ROWS[:4])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert [path.parent.name for path in find_files([tmp_path / "both"]).files] == ["train"] * 2 + ["test"] * 2


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("{}\n")


def named(folder: Path, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(folder)) for path in paths]


def test_a_plain_directory_gives_its_files_of_every_suffix_by_name_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    data = [f"x{suffix}" for suffix in sorted(SUFFIXES)]
    touch(tmp_path, "sub/c.jsonl", "b.jsonl", "a.json", *data, ".hidden/d.jsonl", "notes.txt")
    touch(tmp_path, "sub/state.json", "sub/dataset_info.json", ".lock")
    found = find_files([tmp_path])
    assert named(tmp_path, found.files) == ["a.json", "b.jsonl", "sub/c.jsonl", *data]
    assert named(tmp_path, found.skipped) == ["notes.txt", "sub/dataset_info.json", "sub/state.json"]


def test_the_output_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl", "out/demonstrations.parquet", "out/dropped/format.jsonl", "out2/b.jsonl")
    found = find_files([tmp_path], tmp_path / "sub" / ".." / "out")
    assert named(tmp_path, found.files) == ["a.jsonl", "out2/b.jsonl"]
    assert named(tmp_path, found.skipped) == ["out"]
    with pytest.raises(InputError, match="is the output as well"):
        find_files([tmp_path / "out"], tmp_path / "out")


def test_saved_datasets_below_a_directory_are_read_as_such_without_their_caches(tmp_path: Path) -> None:
    for name in ("deep/one", "two"):
        write_saved(tmp_path / name, ROWS[:4])
        touch(tmp_path, f"{name}/cache-0123.arrow")
    touch(tmp_path, "three/dataset_dict.json")
    (tmp_path / "three" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    write_saved(tmp_path / "three" / "train", ROWS[:4])
    touch(tmp_path, "three/other/a.jsonl")
    found = find_files([tmp_path])
    shards = [f"data-0000{n}-of-00002.arrow" for n in range(2)]
    folders = ("deep/one", "three/train", "two")
    assert named(tmp_path, found.files) == [f"{folder}/{shard}" for folder in folders for shard in shards]
    caches = ["deep/one/cache-0123.arrow", "three/other", "two/cache-0123.arrow"]
    assert named(tmp_path, found.skipped) == caches


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("state.json", '{"_data_files": [{}]}', "_data_files"),
        ("state.json", '{"_data_files": [{"filename": "a.arrow"}, 3]}', "_data_files"),
        ("state.json", '{"_data_files": "a.arrow"}', "_data_files"),
        ("dataset_dict.json", '{"splits": null}', "splits"),
        ("dataset_dict.json", '{"splits": [1]}', "splits"),
        ("dataset_dict.json", '{"splits": ["gone"]}', "gone"),
    ],
)
def test_odd_lists_of_saved_datasets_are_named(tmp_path: Path, name: str, content: str, key: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=key) as caught:
        find_files([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_rows_that_cannot_be_read_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n"\xff"\n{"a": 2}')
    rows = [row for piece in cut_files([path], 10**6) for row in read_piece(piece)]
    assert [row.fields for row in rows] == [{"a": 1}, None, None, None, {"a": 2}]
    for row, why in zip(
        rows[1:4], ("not valid JSON", "a JSON object is expected, found a list", "not UTF-8"), strict=True
    ):
        assert row.broken.startswith(f"{path}, row {row.number}: ")
        assert why in row.broken


@pytest.mark.parametrize("kind", ["gzip", "array"])
def test_a_file_that_ends_too_early_is_damaged_from_there_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.jsonl.gz" if kind == "gzip" else "a.json")
    path.write_bytes(
        gzip.compress(lines(ROWS * 50).encode())[:-40] if kind == "gzip" else json.dumps(ROWS)[:-9].encode()
    )
    rows = [row for piece in cut_files([path], 10**6) for row in read_piece(piece)]
    assert rows[-1].fields is None
    assert f"row {rows[-1].number}: the file is damaged from here on" in rows[-1].broken
    assert rows[-1].damage is not None and rows[-1].damage.num_lost is None
    assert all(row.fields is not None and row.damage is None for row in rows[:-1])


def test_rows_behind_a_row_group_that_cannot_be_decoded_are_read(tmp_path: Path) -> None:
    path = write_damaged_table(tmp_path / "a.parquet", [{"n": n, "text": f"text {n}"} for n in range(40)], group=1)
    rows = [row for piece in cut_files([path], 10**9) for row in read_piece(piece)]
    assert [row.number for row in rows if row.fields] == [*range(1, 11), *range(21, 41)]
    (lost,) = (row for row in rows if row.fields is None)
    assert lost.damage is not None and (lost.number, lost.damage.num_lost) == (11, 10)
    assert lost.broken.startswith(f"{path}, row 11: the file is damaged from here to row 20: ")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("missing.jsonl", None, "no such file or directory"),
        ("a.tsv", b"x", "unknown suffix"),
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n  \n\n", "the file is empty"),
        ("a.jsonl.gz", gzip.compress(b"\n\n", mtime=0), "the file is empty"),
        ("a.parquet", b"nothing", "not a Parquet file"),
        ("a.arrow", b"nothing", "not an Arrow stream"),
    ],
)
def test_wrong_inputs_are_named(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=why) as caught:
        cut_files(find_files([path]).files, 100)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_directory_and_a_file_given_twice_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a saved"):
        find_files([tmp_path])
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="given twice"):
        find_files([tmp_path, tmp_path / "a.jsonl"])


def test_the_pieces_of_a_file_hold_its_rows_wherever_it_is(place: Location) -> None:
    lines = [json.dumps({"a": number, "b": "é" * (number % 7)}, ensure_ascii=False) + "\n" for number in range(50)]
    path = place / "rows.jsonl"
    write_text(path, "".join(lines))
    for block_bytes in (1, 40, 1000, 10**6):
        pieces = cut_files([path], block_bytes)
        assert [row.fields["a"] for piece in pieces for row in read_piece(piece) if row.fields] == list(range(50))
