"""Whole folders to and from an object store, several files at a time."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from still_ray.location import ObjectPath
from still_ray.store.retry import with_retries

PARALLEL_FILES = 8
"""Files under way at a time; each holds one chunk in memory. Source: ours."""


def files_below(folder: Path) -> list[str]:
    """Names of all files of a folder, seen from there, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def upload(folder: Path, target: ObjectPath, names: Iterable[str]) -> None:
    """Puts files of a folder below `target`, under the same names.

    Raises:
        RunError: The store does not take one; the others may be there or not.
    """

    def put(name: str) -> None:
        with_retries(lambda: (target / name).copy_from(folder / name))

    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        list(pool.map(put, names))


def download(source: ObjectPath, folder: Path, names: Iterable[str]) -> None:
    """Fetches objects below `source` into a folder, under the same names.

    Raises:
        FileNotFoundError: One is not there any more.
        RunError: The store does not give one.
    """

    def fetch(name: str) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (source / name).copy_to(file)

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        list(pool.map(fetch, names))
