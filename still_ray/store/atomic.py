"""Writes that are whole or absent.

On a file system: a temporary file beside the target, flushed to disk, then renamed over it. In an object store: one
put, which is atomic by itself, and which is tried again if the store fails for the moment.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from still_ray.location import Location, ObjectPath
from still_ray.store.retry import with_retries
from still_ray.types import InputError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_REFUSED = _FULL | {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}


def is_full_disk(error: BaseException) -> bool:
    """Whether a file system takes no more."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_refused(error: BaseException) -> bool:
    """Whether a file system would refuse again what it refused, until a person does something."""
    return isinstance(error, OSError) and error.errno in _REFUSED


def full_disk_line(error: OSError, place: Location) -> str:
    """A full disk in a line for a person.

    Args:
        error: What was raised.
        place: The folder that was most probably written to.
    """
    room = "" if isinstance(place, ObjectPath) else f"; {shutil.disk_usage(place).free:,} bytes are free in {place}"
    return f"{error.filename or place}: cannot be written: {os.strerror(error.errno or 0)}{room}"


def write_atomically(path: Location, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file and puts it in its place once it is whole."""
    if isinstance(path, ObjectPath):
        _upload(path, write)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)


def write_text(path: Location, text: str) -> None:
    """Writes a text file atomically."""
    if isinstance(path, ObjectPath):
        with_retries(lambda: path.write_bytes(text.encode()))
        return
    write_atomically(path, lambda temporary: _write(temporary, text))


def write_json(path: Location, value: Any) -> None:
    """Writes JSON atomically, two-space indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Location) -> Any:
    """Reads a JSON file, or None when it is absent.

    Raises:
        InputError: It is not JSON: somebody else wrote it, or the disk is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from None


def _upload(path: ObjectPath, write: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix="still-ray-") as folder:
        temporary = Path(folder) / "content"
        write(temporary)
        with_retries(lambda: path.copy_from(temporary))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
