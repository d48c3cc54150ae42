"""Parquet tables whose columns are the fields of a frozen record.

The Arrow schema follows from the record's annotations, so a column can neither be forgotten nor drift in type.
"""

from __future__ import annotations

import types as python_types
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from still_ray.location import Location, ObjectPath
from still_ray.store.atomic import write_atomically
from still_ray.types import SCHEMA_VERSION, InputError

Record = TypeVar("Record")

GROUP_CHARS = 4 * 2**20
"""Of text in one row group: what a writer, and a reader of one batch, hold in memory. Smaller tables have one group, so
that their bytes do not depend on it. Source: ours."""
BATCH_ROWS = 64
"""Read at a time; a row of a 32B run has up to 160 KB of text."""
READ_BYTES = 2**20
"""Of a column read at a time. Without it a column of a row group is read as a whole, and tables that earlier releases
wrote have one group however long they are."""

ARROW_TYPES: dict[type, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
    bytes: pa.binary(),
}


@cache
def schema_of(record: type) -> pa.Schema:
    """The Arrow schema of a record type; its metadata carries the record's name and the schema version."""
    columns = [pa.field(name, _arrow_type(kind), nullable=optional) for name, kind, optional in columns_of(record)]
    return pa.schema(columns, metadata={"record": record.__name__, "schema_version": str(SCHEMA_VERSION)})


def write_table(path: Location, rows: Iterable[Any], record: type) -> int:
    """Writes records as one Parquet file, atomically, with one row group in memory at a time.

    Args:
        path: The file.
        rows: The records; taken once, so an iterator will do.
        record: Their type.

    Returns:
        The number of records.
    """
    return write_arrow(path, _groups(rows, record), schema_of(record))


def write_arrow(path: Location, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Writes Arrow tables of one schema as one Parquet file, atomically, each as a row group; returns the rows."""
    num_rows = 0

    def write(temporary: Path) -> None:
        nonlocal num_rows
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for table in tables:
                writer.write_table(table)
                num_rows += len(table)

    write_atomically(path, write)
    return num_rows


def _groups(rows: Iterable[Any], record: type) -> Iterator[pa.Table]:
    """Records as Arrow tables, each the size of a row group; a single empty one where there are no records."""
    texts = [name for name, kind, _ in columns_of(cast(Hashable, record)) if kind in (str, bytes)]
    group: list[Any] = []
    num_groups = num_chars = 0
    for row in rows:
        group.append(row)
        num_chars += sum(len(getattr(row, name) or "") for name in texts)
        if num_chars >= GROUP_CHARS:
            yield _table(group, record)
            group, num_chars, num_groups = [], 0, num_groups + 1
    if group or not num_groups:
        yield _table(group, record)


def _table(rows: Sequence[Any], record: type) -> pa.Table:
    lists = {name for name, kind, _ in columns_of(cast(Hashable, record)) if get_origin(kind) is tuple}

    def cell(row: Any, name: str) -> Any:
        value = getattr(row, name)
        return [vars(item) for item in value] if name in lists else value

    columns = {field.name: [cell(row, field.name) for row in rows] for field in fields(cast(Any, record))}
    return pa.table(columns, schema=schema_of(record))


def read_table(path: Location, record: type[Record]) -> list[Record]:
    """All records of a Parquet file."""
    return list(iter_table(path, record))


def iter_table(
    path: Location, record: type[Record], *, batch_rows: int = BATCH_ROWS, part_of: type | None = None
) -> Iterator[Record]:
    """Streams the records of a Parquet file, one batch in memory at a time.

    Args:
        path: The file.
        record: What its rows are read as.
        batch_rows: Rows of a batch.
        part_of: The record that the file holds, where `record` has only some of its fields; only these are read.

    Raises:
        InputError: The file holds another record or another schema version.
    """
    with open_table(path) as file:
        check_schema(path, file.schema_arrow, part_of or record)
        columns = [name for name, _, _ in columns_of(cast(Hashable, record))] if part_of else None
        for group in range(file.num_row_groups):  # asked for all groups at once, pyarrow holds far more than a batch
            for batch in file.iter_batches(batch_rows, row_groups=[group], columns=columns):
                yield from records_of(batch, record)


def open_table(path: Location) -> pq.ParquetFile:
    """A Parquet file, wherever it is."""
    return pq.ParquetFile(path.random_access() if isinstance(path, ObjectPath) else path, buffer_size=READ_BYTES)


def check_schema(path: Location, schema: pa.Schema, record: type) -> None:
    """Makes sure that a file holds a record of this schema version.

    Raises:
        InputError: It holds something else.
    """
    metadata = schema.metadata or {}
    found = metadata.get(b"record", b"?").decode(), metadata.get(b"schema_version", b"?").decode()
    if found != (record.__name__, str(SCHEMA_VERSION)):
        raise InputError(
            f"{path}: holds {found[0]} rows of schema version {found[1]}; needed: {record.__name__} of {SCHEMA_VERSION}"
        )


def with_every_column(table: pa.Table, record: type) -> pa.Table:
    """A table with the columns that an earlier release's table of the record lacks, at their defaults."""
    for field in fields(cast(Any, record)):
        if field.name not in table.column_names:
            column = pa.array([field.default] * len(table), schema_of(record).field(field.name).type)
            table = table.append_column(schema_of(record).field(field.name), column)
    return table.select(schema_of(record).names).replace_schema_metadata(schema_of(record).metadata)


def records_of(batch: pa.Table | pa.RecordBatch, record: type[Record]) -> Iterator[Record]:
    """The rows of an Arrow table as records."""
    columns = columns_of(cast(Hashable, record))
    enums = {name: kind for name, kind, _ in columns if get_origin(kind) is None and issubclass(kind, StrEnum)}
    lists = {name: get_args(kind)[0] for name, kind, _ in columns if get_origin(kind) is tuple}
    for row in batch.to_pylist():
        for name, kind in enums.items():
            row[name] = kind(row[name]) if row[name] is not None else None
        for name, item in lists.items():
            if name in row:  # an earlier release's table has no such column
                row[name] = tuple(item(**one) for one in row[name])
        yield record(**row)


@cache
def columns_of(record: Hashable) -> tuple[tuple[str, type, bool], ...]:
    """Name, Python type and nullability of every field."""
    hints = get_type_hints(record)
    return tuple((name, *_unwrapped(hint)) for name, hint in hints.items())


def _unwrapped(annotation: Any) -> tuple[type, bool]:
    """`str | None` as (str, True); `str` as (str, False)."""
    if get_origin(annotation) in (Union, python_types.UnionType):
        (inner,) = (arg for arg in get_args(annotation) if arg is not type(None))
        return inner, True
    return annotation, False


def _arrow_type(kind: type) -> pa.DataType:
    """The Arrow type of a column; of a tuple of records, such as `tuple[Turn, ...]`, a list of their fields."""
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not is_dataclass(item):
            raise TypeError(f"a column holds texts, numbers, booleans or records, not {kind}")
        return pa.list_(pa.struct(list(schema_of(cast(type, item)))))
    return pa.string() if issubclass(kind, StrEnum) else ARROW_TYPES[kind]
