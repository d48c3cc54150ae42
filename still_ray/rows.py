"""The rows of a user's files: the only reader of them, with what is wrong with a row said where it is read.

Read are JSON Lines, JSON (an array of objects), CSV, all three also gzip-compressed, Parquet and Arrow streams; text is
UTF-8 with or without a byte-order mark. A file may be an object, e.g. in S3. Rows are numbered from 1 in their file:
lines in JSON Lines, else rows. Whatever the file, a row that reaches a caller holds no half of a surrogate pair, no key
twice, no NaN and not too many levels (`still_ray.values`).
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO, Final, NamedTuple, cast

from still_ray.location import Location, ObjectPath, location
from still_ray.types import InputError
from still_ray.values import UTF8_MARK, Flaw, Number, check_encoding, check_fields, cleaned, decoded_json

SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".arrow")
_BATCH_ROWS: Final = 64
_HEAD_BYTES: Final = 1 << 20
WHOLE_FILE: Final = sys.maxsize
"""End of a piece that is a whole file."""


class Form(StrEnum):
    """How a file is read."""

    LINES = "lines"
    GZIP = "gzip"
    ARRAY = "array"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a file.

    Attributes:
        path: The file.
        form: How it is read.
        start: First byte (lines), row group (Parquet) or record batch (Arrow); the lines that start in it are read.
        end: One past the last.
        first_row: Number of its first row; 0: not known yet (see `still_ray.formats.file_splits.with_first_rows`).
        num_bytes: About how much is read, for progress.
    """

    path: str
    form: Form
    start: int
    end: int
    first_row: int
    num_bytes: int


class Damage(NamedTuple):
    """A part of a file that cannot be read at all.

    Attributes:
        num_lost: Rows in it, where the file says so; None where nobody can tell.
        why: What the reader said.
    """

    num_lost: int | None
    why: str


class SourceRow(NamedTuple):
    """A row as it was read.

    Attributes:
        number: Its number in the file.
        fields: What it holds; None if that cannot be told.
        broken: Why it cannot be used, naming file and row; "" if it can.
        reason: The same in few words, see `still_ray.values.Flaw`.
        damage: Where the file is damaged, which is more than one broken row; None elsewhere.
    """

    number: int
    fields: Mapping[str, Any] | None
    broken: str = ""
    reason: str = ""
    damage: Damage | None = None


class Row(NamedTuple):
    """A row that can be used.

    Attributes:
        where: The file and the row as a person is told of them, e.g. "problems.jsonl, row 12".
        fields: What the row holds.
    """

    where: str
    fields: Mapping[str, Any]


class _Unreadable(NamedTuple):
    """Stands for a row that its reader could not decode."""

    why: str
    reason: str


def read_rows(path: Location) -> Iterator[Row]:
    """Streams the rows of a file.

    Raises:
        InputError: The file is missing, a directory, empty, of an unknown kind, or broken at some row.
    """
    for row in read_source_rows(path):
        if row.fields is None or row.broken:
            raise InputError(row.broken, reason=row.reason)
        yield Row(f"{path}, row {row.number}", row.fields)


def read_source_rows(path: Location) -> Iterator[SourceRow]:
    """Streams the rows of a file; one that is broken comes as such.

    Raises:
        InputError: The file is missing, a directory, empty or of an unknown kind.
    """
    num_rows = 0
    for row in read_piece(_whole(path)):
        num_rows += 1
        yield row
    if num_rows == 0:
        raise empty_file(path)


def read_piece(piece: Piece) -> Iterator[SourceRow]:
    """Streams the rows of a piece; what cannot be read comes as a broken row."""
    readers: dict[Form, Callable[[Piece], Iterator[tuple[int, Any]]]] = {
        Form.LINES: _lines,
        Form.GZIP: _lines,
        Form.ARRAY: _array,
        Form.CSV: _csv,
        Form.PARQUET: _parquet,
        Form.ARROW: _arrow,
    }
    number = piece.first_row - 1
    try:
        for number, value in readers[piece.form](piece):
            yield _source_row(piece.path, number, value)
    except (InputError, OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        yield _source_row(piece.path, number + 1, Damage(None, _one_line(error)))


def checked_fields(value: Any, where: str) -> Mapping[str, Any]:
    """What a row holds, if it can be used.

    Raises:
        InputError: It is no object, or see `still_ray.values.check_fields`.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where}: a JSON object is expected, found {_kind(value)}", reason=Flaw.NO_OBJECT)
    check_fields(value, where)
    return cleaned(value)


def form_of(path: Location) -> Form:
    """How a file is read: told by its suffix and, of JSON, by how it begins.

    Raises:
        InputError: The suffix is unknown, or the text is in UTF-16 or UTF-32.
    """
    if not path.name.endswith(SUFFIXES):
        raise InputError(f'{path}: unknown suffix "{path.suffix}", one of {", ".join(SUFFIXES)} is expected')
    if path.suffix in (".parquet", ".arrow"):
        return Form(path.suffix[1:])
    begins = _beginning(path)
    check_encoding(begins, str(path))
    if path.name.endswith((".csv", ".csv.gz")):
        return Form.CSV
    if path.name.endswith((".json", ".json.gz")) and _bare(begins)[:1] == b"[":
        return Form.ARRAY
    return Form.GZIP if path.suffix == ".gz" else Form.LINES


def is_blank(path: Location) -> bool:
    """Whether a file of text holds nothing but white space; reads up to the first character of another kind."""
    try:
        with _opened(path) as file:
            mark = file.read(len(UTF8_MARK))
            if _bare(mark):
                return False
            while data := file.read(_HEAD_BYTES):
                if data.strip():
                    return False
    except (OSError, EOFError, zlib.error):  # damaged, which is said where it is read
        return False
    return True


def _whole(path: Location) -> Piece:
    """A file as one piece.

    Raises:
        InputError: See `read_source_rows`.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a directory, a file of rows is expected")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not isinstance(path, ObjectPath) and not os.access(path, os.R_OK):
        raise InputError(f"{path}: cannot be read: permission denied")
    form = form_of(path)
    if form in (Form.PARQUET, Form.ARROW):
        return _table(path, form)
    if is_blank(path):
        raise empty_file(path)
    return Piece(path=str(path), form=form, start=0, end=WHOLE_FILE, first_row=1, num_bytes=0)


def _table(path: Location, form: Form) -> Piece:
    parts = parquet_parts(path) if form is Form.PARQUET else arrow_parts(path)
    return Piece(path=str(path), form=form, start=0, end=len(parts), first_row=1, num_bytes=0)


def empty_file(path: Location) -> InputError:
    """What to say of a file without rows."""
    return InputError(f"{path}: the file is empty, at least one row is expected")


def parquet_parts(path: Location) -> list[tuple[int, int]]:
    """Rows and bytes of each row group.

    Raises:
        InputError: It is no Parquet file.
    """
    import pyarrow

    try:
        with _parquet_file(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            return [(group.num_rows, group.total_byte_size) for group in groups]
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {_one_line(error)}") from None


def arrow_parts(path: Location) -> list[tuple[int, int]]:
    """Rows and bytes of each record batch.

    Raises:
        InputError: It is no Arrow stream.
    """
    import pyarrow

    try:
        with _arrow_stream(path) as reader:
            return [(batch.num_rows, batch.nbytes) for batch in reader]
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not an Arrow stream that can be read: {_one_line(error)}") from None


def _source_row(path: str, number: int, value: Any) -> SourceRow:
    where = f"{path}, row {number}"
    if isinstance(value, Damage):
        extent = "on" if value.num_lost is None else f"to row {number + value.num_lost - 1}"
        said = f"{where}: the file is damaged from here {extent}: {value.why}"
        return SourceRow(number, None, said, Flaw.DAMAGED, value)
    if isinstance(value, _Unreadable):
        return SourceRow(number, None, f"{where}: {value.why}", value.reason)
    try:
        if isinstance(value, bytes):
            value = decoded_json(value, where)
        return SourceRow(number, checked_fields(value, where))
    except InputError as error:
        return SourceRow(number, value if isinstance(value, Mapping) else None, str(error), error.reason)


# Text


@contextmanager
def _opened(path: Location, start: int = 0) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed; from a place on, in a file that is not compressed."""
    with path.open(start=start) if isinstance(path, ObjectPath) else path.open("rb") as file:
        if not isinstance(path, ObjectPath):
            file.seek(start)
        if path.suffix != ".gz":
            yield file
            return
        with gzip.open(file, "rb") as content:
            yield cast(BinaryIO, content)


def _beginning(path: Location) -> bytes:
    try:
        with _opened(path) as file:
            return file.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):  # damaged, which is said where it is read
        return b""


def _bare(content: bytes) -> bytes:
    """Without a byte-order mark and the white space around."""
    return content.removeprefix(UTF8_MARK).strip()


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    with _opened(location(piece.path), max(0, piece.start - 1)) as file:
        position, number = piece.start, piece.first_row
        if piece.start:
            position += len(file.readline()) - 1  # the line that started in an earlier piece
        while position < piece.end and (line := file.readline()):
            position += len(line)
            if _bare(line):
                yield number, line
            number += 1


def _array(piece: Piece) -> Iterator[tuple[int, Any]]:
    with _opened(location(piece.path)) as file:
        values = decoded_json(file.read(), "an array that is read whole")
    yield from enumerate(values, start=1)


def _csv(piece: Piece) -> Iterator[tuple[int, Any]]:
    """Rows under their headings; what is not UTF-8 is carried through the parser so that its row can be named."""
    csv.field_size_limit(sys.maxsize)  # the module's own limit is 131,072 characters a cell
    with (
        _opened(location(piece.path)) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        records = (cells for cells in csv.reader(text, strict=True) if cells)
        headings = next(records, [])
        repeated = next((name for name in headings if headings.count(name) > 1), None)
        if repeated is not None:
            raise InputError(f'the heading names the column "{repeated}" twice')
        for number, cells in enumerate(records, start=1):
            yield number, _under(headings, cells)


def _under(headings: list[str], cells: list[str]) -> dict[str, str | None] | _Unreadable:
    if any("\udc80" <= character <= "\udcff" for cell in cells if not cell.isascii() for character in cell):
        return _Unreadable("not UTF-8", Flaw.NOT_UTF8)
    if any(cells[len(headings) :]):
        said = f"{len(cells)} cells under {len(headings)} headings; a cell with a comma stands in double quotes"
        return _Unreadable(said, Flaw.WRONG_CELLS)
    missing = [None] * (len(headings) - len(cells))
    return dict(zip(headings, [*cells, *missing], strict=False))


# Tables


def _parquet_file(path: Location) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path.random_access() if isinstance(path, ObjectPath) else path)


@contextmanager
def _arrow_stream(path: Location) -> Iterator[Any]:
    import pyarrow

    opened: AbstractContextManager[Any] = (
        path.random_access() if isinstance(path, ObjectPath) else pyarrow.memory_map(str(path))
    )
    with opened as source, pyarrow.ipc.open_stream(source) as reader:
        yield reader


def _parquet(piece: Piece) -> Iterator[tuple[int, Any]]:
    """The rows of the piece's row groups; of one that cannot be decoded, those before the damage."""
    with _parquet_file(location(piece.path)) as file:
        number = piece.first_row
        for group in range(piece.start, piece.end):
            num_rows = file.metadata.row_group(group).num_rows
            yield from _part(number, num_rows, file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]))
            number += num_rows


def _arrow(piece: Piece) -> Iterator[tuple[int, Any]]:
    with _arrow_stream(location(piece.path)) as reader:
        number = piece.first_row
        for index, batch in enumerate(reader):
            if index >= piece.end:
                return
            if index < piece.start:
                continue
            slices = (batch.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))
            yield from _part(number, batch.num_rows, slices)
            number += batch.num_rows


def _part(number: int, num_rows: int, batches: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """So many rows from this number on, and where they cannot be read, the damage: what comes after may be whole."""
    import pyarrow

    end, why = number + num_rows, "fewer rows than the file says"
    try:
        for batch in batches:
            yield from enumerate(_batch_rows(batch), start=number)
            number += batch.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = _one_line(error)
    if number < end:
        yield number, Damage(end - number, why)


def _batch_rows(batch: Any) -> list[Any]:
    """The rows of a batch; where a value of one cannot be told (no UTF-8, no date), the others are whole."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        if batch.num_rows > 1:
            return [row for place in range(batch.num_rows) for row in _batch_rows(batch.slice(place, 1))]
        reason = Flaw.NOT_UTF8 if isinstance(error, UnicodeDecodeError) else Flaw.UNREADABLE
        return [_Unreadable(f"{reason}: {_one_line(error)}", reason)]
    return _with_short_numbers(rows, batch.schema)


def _with_short_numbers(rows: list[Any], schema: Any) -> list[Any]:
    """The numbers of columns narrower than a float of Python as they were written: 0.1, not 0.10000000149011612."""
    import numpy
    import pyarrow

    narrow = {pyarrow.float16(): numpy.float16, pyarrow.float32(): numpy.float32}
    for field in (field for field in schema if field.type in narrow):
        for row in (row for row in rows if row[field.name] is not None):
            row[field.name] = Number(str(narrow[field.type](row[field.name])))
    return rows


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
    names[Number] = "a number"
    return names.get(type(value), type(value).__name__)
