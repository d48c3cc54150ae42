"""Reading rows of JSON Lines and Parquet files, with errors that name the file and the row.

A file may be an object, e.g. in S3.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from still_ray.location import Location, ObjectPath
from still_ray.types import InputError

JSON_SUFFIXES: Final = (".jsonl", ".json")
PARQUET_SUFFIX: Final = ".parquet"
_PARQUET_BATCH: Final = 256


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        where: The file and the row as a person is told of them, e.g. "problems.jsonl, row 12".
        fields: What the row holds.
    """

    where: str
    fields: Mapping[str, Any]


def read_rows(path: Location) -> Iterator[Row]:
    """Streams the rows of a file; row numbers start at 1 and are line numbers in JSON Lines.

    Raises:
        InputError: The file is missing, a directory, empty, of an unknown kind, or broken at some row.
    """
    reader = _reader(path)
    number = 0
    for number, fields in reader(path):
        where = f"{path}, row {number}"
        if not isinstance(fields, dict):
            raise InputError(f"{where}: a JSON object is expected on each line, found {_kind(fields)}")
        yield Row(where, fields)
    if number == 0:
        raise InputError(f"{path}: the file is empty, at least one row is expected")


def _reader(path: Location) -> Callable[[Location], Iterator[tuple[int, Any]]]:
    if path.is_dir():
        raise InputError(f"{path}: is a directory, a file of JSON Lines or Parquet is expected")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not isinstance(path, ObjectPath) and not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read: permission denied")
    if path.suffix in JSON_SUFFIXES:
        return _json_lines
    if path.suffix == PARQUET_SUFFIX:
        return _parquet_rows
    raise InputError(f'{path}: unknown suffix "{path.suffix}", .jsonl, .json or .parquet is expected')


def _json_lines(path: Location) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, decoded_json(line, f"{path}, row {number}")


def decoded_json(line: bytes, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        InputError: It is not JSON in UTF-8.
    """
    try:
        return json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON: nested too deeply") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise InputError(f"{where}: not valid JSON: {error}") from error


def _parquet_rows(path: Location) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        source = path.random_access() if isinstance(path, ObjectPath) else path
        with pyarrow.parquet.ParquetFile(source) as file:
            batches = file.iter_batches(batch_size=_PARQUET_BATCH)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
    return names.get(type(value), type(value).__name__)
