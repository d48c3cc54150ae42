"""Parquet tables whose columns are the fields of a frozen record.

The Arrow schema follows from the record's annotations, so a column can neither be forgotten nor drift in type.
"""

from __future__ import annotations

import types as python_types
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import fields
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from still_ray.location import Location, ObjectPath
from still_ray.store.atomic import write_atomically
from still_ray.types import SCHEMA_VERSION, InputError

Record = TypeVar("Record")

ARROW_TYPES: dict[type, pa.DataType] = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


@cache
def schema_of(record: type) -> pa.Schema:
    """The Arrow schema of a record type; its metadata carries the record's name and the schema version."""
    columns = [pa.field(name, _arrow_type(kind), nullable=optional) for name, kind, optional in columns_of(record)]
    return pa.schema(columns, metadata={"record": record.__name__, "schema_version": str(SCHEMA_VERSION)})


def write_table(path: Location, rows: Sequence[Any], record: type) -> None:
    """Writes records as one Parquet file, atomically."""
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(record)}
    table = pa.table(columns, schema=schema_of(record))
    write_atomically(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_table(path: Location, record: type[Record]) -> list[Record]:
    """All records of a Parquet file."""
    return list(iter_table(path, record))


def iter_table(path: Location, record: type[Record], *, batch_rows: int = 1024) -> Iterator[Record]:
    """Streams the records of a Parquet file, one batch in memory at a time.

    Raises:
        InputError: The file holds another record or another schema version.
    """
    with open_table(path) as file:
        check_schema(path, file.schema_arrow, record)
        for batch in file.iter_batches(batch_rows):
            yield from _records(batch.to_pylist(), record)


def open_table(path: Location) -> pq.ParquetFile:
    """A Parquet file, wherever it is."""
    return pq.ParquetFile(path.random_access() if isinstance(path, ObjectPath) else path)


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


def _records(rows: Iterable[dict[str, Any]], record: type[Record]) -> Iterator[Record]:
    enums = {name: kind for name, kind, _ in columns_of(cast(Hashable, record)) if issubclass(kind, StrEnum)}
    for row in rows:
        for name, kind in enums.items():
            row[name] = kind(row[name]) if row[name] is not None else None
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
    return pa.string() if issubclass(kind, StrEnum) else ARROW_TYPES[kind]
