"""Finding input files, and cutting them into pieces that tasks read side by side (`still_ray.rows.read_piece`).

Inputs are files of rows, directories that `datasets` has saved, and plain directories of such files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from still_ray.location import Location, ObjectPath
from still_ray.rows import SUFFIXES, WHOLE_FILE, Form, Piece, arrow_parts, empty_file, form_of, is_blank, parquet_parts
from still_ray.types import InputError

METADATA: Final = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets` writes beside rows: never data, though its suffix is that of data."""
_COUNT_BYTES: Final = 1 << 20


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


def cut_files(files: Sequence[Location], block_bytes: int) -> list[Piece]:
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


def _pieces(path: Location, block_bytes: int) -> Iterator[Piece]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    form, size = form_of(path), path.size() if isinstance(path, ObjectPath) else path.stat().st_size
    if form is Form.PARQUET:
        yield from _bundled(path, form, parquet_parts(path), block_bytes)
    elif form is Form.ARROW:
        yield from _bundled(path, form, arrow_parts(path), block_bytes)
    elif size == 0 or is_blank(path):
        raise empty_file(path)
    elif form is not Form.LINES:
        yield Piece(path=str(path), form=form, start=0, end=WHOLE_FILE, first_row=1, num_bytes=size)
    else:
        for start in range(0, size, block_bytes):
            end, first_row = min(start + block_bytes, size), 1 if start == 0 else 0
            yield Piece(path=str(path), form=form, start=start, end=end, first_row=first_row, num_bytes=end - start)


def _bundled(path: Location, form: Form, parts: list[tuple[int, int]], block_bytes: int) -> Iterator[Piece]:
    """Pieces of neighbouring parts (rows, bytes) that reach the size of a block together."""
    if not sum(rows for rows, _ in parts):
        raise empty_file(path)
    start, first_row, rows, size = 0, 1, 0, 0
    for index, (num_rows, num_bytes) in enumerate(parts):
        rows, size = rows + num_rows, size + num_bytes
        if size >= block_bytes or index == len(parts) - 1:
            end = index + 1
            yield Piece(path=str(path), form=form, start=start, end=end, first_row=first_row, num_bytes=size)
            start, first_row, rows, size = end, first_row + rows, 0, 0
