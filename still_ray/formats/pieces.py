"""Cutting input files into pieces that tasks read side by side, with the source row of everything that is read.

Read are JSON Lines (also gzip-compressed), JSON (an array of objects), Parquet, directories that `datasets` has saved,
and plain directories of such files. Rows are numbered from 1 in their file: lines in JSON Lines, else rows.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from still_ray.rows import decoded_json
from still_ray.types import InputError

SUFFIXES: Final = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet", ".arrow")
METADATA: Final = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside rows: never data, though its suffix is that of data."""
_COUNT_BYTES: Final = 1 << 20
_BATCH_ROWS: Final = 64


class Form(StrEnum):
    """How a file is read."""

    LINES = "lines"
    GZIP = "gzip"
    ARRAY = "array"
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
        first_row: Number of its first row; 0: not known yet (see `with_first_rows`).
        num_bytes: About how much is read, for progress.
    """

    path: str
    form: Form
    start: int
    end: int
    first_row: int
    num_bytes: int


class SourceRow(NamedTuple):
    """A row as it was read.

    Attributes:
        number: Its number in the file.
        fields: What it holds; None for a broken row.
        broken: Why it cannot be read, naming file and row; "" if it can.
        damage: Where the file is damaged, which is more than one broken row; None elsewhere.
    """

    number: int
    fields: dict[str, Any] | None
    broken: str
    damage: Damage | None = None


class Damage(NamedTuple):
    """A part of a file that cannot be read at all.

    Attributes:
        num_lost: Rows in it, where the file says so; None where nobody can tell.
        why: What the reader said.
    """

    num_lost: int | None
    why: str


class Found(NamedTuple):
    """What lies behind the inputs.

    Attributes:
        files: The files that are read, in order.
        skipped: The files and folders inside the inputs that are not.
    """

    files: list[Path]
    skipped: list[Path]


def find_files(inputs: Sequence[Path], output: Path | None = None) -> Found:
    """The files behind the inputs, in the order given, those of a directory by name.

    Args:
        inputs: Files and directories.
        output: A folder that is left out of the directories: what the command has written is no input of it.

    Raises:
        InputError: An input is missing, of an unknown kind, given twice, a directory without data, or the output.
    """
    found = Found([], [])
    for given in inputs:
        if output is not None and given.resolve() == output.resolve():
            raise InputError(f"{given}: is the output as well; give another --output")
        _find(given, output, found)
    seen: set[Path] = set()
    for path in found.files:
        if path.resolve() in seen:
            raise InputError(f"{path}: is given twice; each file may be read once")
        seen.add(path.resolve())
    return found


def cut_files(files: Sequence[Path], block_bytes: int) -> list[Piece]:
    """Cuts files into pieces of about this many bytes; reads footers and headers, no data.

    Raises:
        InputError: A file is empty or not what its name says.
    """
    return [piece for path in files for piece in _pieces(path, block_bytes)]


def with_first_rows(pieces: Sequence[Piece], num_newlines: Sequence[int]) -> list[Piece]:
    """Fills in the first rows of pieces of lines, given what `count_newlines` says of each piece."""
    result: list[Piece] = []
    line = 1
    for piece, count in zip(pieces, num_newlines, strict=True):
        if piece.form is not Form.LINES:
            result.append(piece)
            continue
        # The newline before the first line of a later piece is counted with the piece before.
        line = 1 if piece.start == 0 else line
        result.append(Piece(**{**vars(piece), "first_row": line + (piece.start > 0)}))
        line += count
    return result


def needs_counting(pieces: Sequence[Piece]) -> bool:
    """Whether some file of lines is cut, so that the rows of its later pieces are not known."""
    return any(piece.first_row == 0 for piece in pieces)


def count_newlines(piece: Piece) -> int:
    """Newlines that end before the last byte of a piece of lines, from the byte before its first; else 0."""
    if piece.form is not Form.LINES:
        return 0
    count = 0
    with Path(piece.path).open("rb") as file:
        position = max(0, piece.start - 1)
        file.seek(position)
        while position < piece.end - 1:
            data = file.read(min(_COUNT_BYTES, piece.end - 1 - position))
            if not data:
                break
            count += data.count(b"\n")
            position += len(data)
    return count


def read_piece(piece: Piece) -> Iterator[SourceRow]:
    """Streams the rows of a piece; what cannot be read comes as a broken row."""
    readers: dict[Form, Callable[[Piece], Iterator[tuple[int, Any]]]] = {
        Form.LINES: _lines,
        Form.GZIP: _gzip_lines,
        Form.ARRAY: _array,
        Form.PARQUET: _parquet,
        Form.ARROW: _arrow,
    }
    number = piece.first_row - 1
    try:
        for number, value in readers[piece.form](piece):
            yield _source_row(piece.path, number, value)
    except (InputError, OSError, EOFError, zlib.error, ValueError) as error:
        yield _source_row(piece.path, number + 1, Damage(None, _one_line(error)))


def _source_row(path: str, number: int, value: Any) -> SourceRow:
    where = f"{path}, row {number}"
    if isinstance(value, Damage):
        extent = "on" if value.num_lost is None else f"to row {number + value.num_lost - 1}"
        return SourceRow(number, None, f"{where}: the file is damaged from here {extent}: {value.why}", value)
    if isinstance(value, bytes):
        try:
            value = decoded_json(value, where)
        except InputError as error:
            return SourceRow(number, None, str(error))
    if not isinstance(value, dict):
        return SourceRow(number, None, f"{where}: a JSON object is expected, found {type(value).__name__}")
    return SourceRow(number, value, "")


# Finding files


def _find(given: Path, output: Path | None, found: Found) -> None:
    """Adds what lies behind an input."""
    if given.is_dir():
        before = len(found.files)
        _walk(given, None if output is None else output.resolve(), found)
        if len(found.files) == before:
            raise InputError(f"{given}: neither a saved `datasets` directory nor one with {', '.join(SUFFIXES)} files")
        return
    if not given.exists():
        raise InputError(f"{given}: no such file or directory")
    if not given.name.endswith(SUFFIXES):
        raise InputError(f"{given}: unknown suffix, one of {', '.join(SUFFIXES)} or a directory is expected")
    if not os.access(given, os.R_OK):
        raise InputError(f"{given}: cannot be read: permission denied")
    found.files.append(given)


def _walk(folder: Path, output: Path | None, found: Found) -> None:
    """Adds the data files of a directory and those below: those that `datasets` has listed, else by suffix."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from None
    listed, splits = _listed(folder), _splits(folder)
    if listed or splits:
        taken = {name.split("/")[0] for name in (*listed, *splits)}
        found.skipped.extend(
            path for path in entries if path.name not in taken and path.name not in METADATA and not _is_hidden(path)
        )
        found.files.extend(folder / name for name in listed)
        for name in splits:
            _find(folder / name, output, found)
        return
    for path in entries:
        if path.is_dir() and not (path.resolve() == output or path.is_symlink() or path.name.startswith(".")):
            _walk(path, output, found)
        elif path.is_file() and path.name.endswith(SUFFIXES) and path.name not in METADATA and path.name[0] != ".":
            found.files.append(path)
        elif not _is_hidden(path):
            found.skipped.append(path)


def _is_hidden(path: Path) -> bool:
    """Whether nobody would look for rows in it: a hidden file or folder, unless its name is that of data."""
    return path.name.startswith(".") and not path.name.endswith(SUFFIXES)


def _listed(folder: Path) -> list[str]:
    """The data files that `datasets` has listed; none in another directory.

    Raises:
        InputError: The list is not one of files.
    """
    entries = _json_file(folder / "state.json").get("_data_files")
    if entries is None:
        return []
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    texts = [name for name in names if isinstance(name, str) and name]
    if not texts or len(texts) != len(entries):
        raise InputError(f'{folder / "state.json"}: key "_data_files" must be a list of objects with a "filename"')
    return texts


def _splits(folder: Path) -> list[str]:
    """The splits of a directory that `datasets` has saved; none in another one.

    Raises:
        InputError: They are not names.
    """
    path = folder / "dataset_dict.json"
    splits = _json_file(path).get("splits", [])
    if not isinstance(splits, list) or not all(isinstance(name, str) and name for name in splits):
        raise InputError(f'{path}: key "splits" must be a list of names')
    return splits


def _json_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


# Cutting


def _pieces(path: Path, block_bytes: int) -> Iterator[Piece]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    size = path.stat().st_size
    if size == 0 or _is_blank(path):
        raise InputError(f"{path}: the file is empty, at least one row is expected")
    if path.suffix == ".parquet":
        yield from _parquet_pieces(path, block_bytes)
    elif path.suffix == ".arrow":
        yield from _arrow_pieces(path, block_bytes)
    elif path.suffix == ".gz" or _is_array(path):
        form = Form.ARRAY if _is_array(path) else Form.GZIP
        yield Piece(path=str(path), form=form, start=0, end=1, first_row=1, num_bytes=size)
    else:
        for start in range(0, size, block_bytes):
            end = min(start + block_bytes, size)
            yield Piece(
                path=str(path),
                form=Form.LINES,
                start=start,
                end=end,
                first_row=1 if start == 0 else 0,
                num_bytes=end - start,
            )


def _is_blank(path: Path) -> bool:
    """Whether a file of JSON holds nothing but white space; reads up to the first character of another kind."""
    if path.suffix not in (".jsonl", ".json", ".gz"):
        return False
    try:
        with _opened(path) as file:
            while data := file.read(_COUNT_BYTES):
                if data.strip():
                    return False
    except (OSError, EOFError, zlib.error):  # damaged, which is said where it is read
        return False
    return True


def _is_array(path: Path) -> bool:
    """Whether a file of JSON begins like an array."""
    if not path.name.endswith((".json", ".json.gz")):
        return False
    try:
        with _opened(path) as file:
            return bool(file.read(_COUNT_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[")
    except (OSError, EOFError, zlib.error):  # damaged, which is said where it is read
        return False


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _parquet_pieces(path: Path, block_bytes: int) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read: {_one_line(error)}") from None
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    yield from _bundled(path, Form.PARQUET, [(group.num_rows, group.total_byte_size) for group in groups], block_bytes)


def _arrow_pieces(path: Path, block_bytes: int) -> Iterator[Piece]:
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as reader:
            batches = [(batch.num_rows, batch.nbytes) for batch in reader]
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not an Arrow stream that can be read: {_one_line(error)}") from None
    yield from _bundled(path, Form.ARROW, batches, block_bytes)


def _bundled(path: Path, form: Form, parts: list[tuple[int, int]], block_bytes: int) -> Iterator[Piece]:
    """Pieces of neighbouring parts (rows, bytes) that reach the size of a block together."""
    if not sum(rows for rows, _ in parts):
        raise InputError(f"{path}: the file is empty, at least one row is expected")
    start, first_row, rows, size = 0, 1, 0, 0
    for index, (num_rows, num_bytes) in enumerate(parts):
        rows, size = rows + num_rows, size + num_bytes
        if size >= block_bytes or index == len(parts) - 1:
            end = index + 1
            yield Piece(path=str(path), form=form, start=start, end=end, first_row=first_row, num_bytes=size)
            start, first_row, rows, size = end, first_row + rows, 0, 0


# Reading


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    with Path(piece.path).open("rb") as file:
        if piece.start:
            file.seek(piece.start - 1)
            file.readline()  # the line that started in an earlier piece
        number = piece.first_row
        while file.tell() < piece.end and (line := file.readline()):
            if line.strip():
                yield number, line
            number += 1


def _gzip_lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    with gzip.open(piece.path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _array(piece: Piece) -> Iterator[tuple[int, Any]]:
    with _opened(Path(piece.path)) as file:
        values = decoded_json(file.read(), "an array that is read whole")
    yield from enumerate(values, start=1)


def _parquet(piece: Piece) -> Iterator[tuple[int, Any]]:
    """The rows of the piece's row groups; of one that cannot be decoded, those before the damage."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(piece.path) as file:
        number = piece.first_row
        for group in range(piece.start, piece.end):
            num_rows = file.metadata.row_group(group).num_rows
            batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group])
            yield from _part(number, num_rows, (batch.to_pylist() for batch in batches))
            number += num_rows


def _arrow(piece: Piece) -> Iterator[tuple[int, Any]]:
    import pyarrow

    with pyarrow.memory_map(piece.path) as source, pyarrow.ipc.open_stream(source) as reader:
        number = piece.first_row
        for index, batch in enumerate(reader):
            if index >= piece.end:
                return
            if index < piece.start:
                continue
            slices = (batch.slice(start, _BATCH_ROWS) for start in range(0, batch.num_rows, _BATCH_ROWS))
            yield from _part(number, batch.num_rows, (part.to_pylist() for part in slices))
            number += batch.num_rows


def _part(number: int, num_rows: int, lists: Iterable[list[Any]]) -> Iterator[tuple[int, Any]]:
    """So many rows from this number on, and where they cannot be read, the damage: what comes after may be whole."""
    import pyarrow

    end, why = number + num_rows, "fewer rows than the file says"
    try:
        for rows in lists:
            yield from enumerate(rows, start=number)
            number += len(rows)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        why = _one_line(error)
    if number < end:
        yield number, Damage(end - number, why)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
