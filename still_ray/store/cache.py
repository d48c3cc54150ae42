"""Models of an object store in folders of this machine: what vLLM and transformers read.

A folder is named after the model's URI and after names, sizes and times of its objects, so that a model that was
written again gets another one. Processes of one machine fetch a model once: the others wait for the first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from still_ray.location import ObjectPath, is_uri, location
from still_ray.store.scratch import SCRATCH_VARIABLE, scratch, short_digest
from still_ray.store.transfer import download
from still_ray.types import InputError, RunError

WEIGHTS_SUFFIX = ".safetensors"
UNUSED_S = 3600.0
"""A folder that nobody asked for so long may be removed: whoever asked has loaded it by then. Source: ours."""
SPARE = 1.05
"""Free space wanted, over the model's size."""

_PARTIAL = ".partial"
_LOCK = ".lock"


def local_model(model: str, *, weights: bool = True) -> str:
    """The folder that holds a model on this machine; fetched first, if the model is in an object store.

    Args:
        model: A path or a hub id, which come back as they are, or a URI.
        weights: Whether the weights are needed, and not only configuration and tokenizer.

    Raises:
        InputError: There is nothing at the URI.
        RunError: The store fails, or there is no room on this machine.
    """
    if not is_uri(model):
        return model
    place = location(model)
    if not isinstance(place, ObjectPath):
        return str(place)
    files = {name: size for name, size in place.files().items() if weights or not name.endswith(WEIGHTS_SUFFIX)}
    if not files:
        raise InputError(f"{model}: no such model: there is nothing at this place")
    folder = _folder_of(place, weights=weights)
    with _locked(folder):
        if not folder.exists():
            _fetch(place, folder, files)
        os.utime(folder)
    return str(folder)


def adopt(folder: Path, model: ObjectPath) -> None:
    """Keeps a folder whose files were just put to `model`, so that this machine need not fetch them."""
    target = _folder_of(model, weights=True)
    with _locked(target):
        if not target.exists():
            with suppress(OSError):  # on another disk: it is fetched when somebody asks
                folder.rename(target)


def _folder_of(model: ObjectPath, *, weights: bool) -> Path:
    kind = "" if weights else "-no-weights"
    return scratch("models") / f"{short_digest(str(model))}-{model.listing_digest()}{kind}"


def _fetch(model: ObjectPath, folder: Path, files: dict[str, int]) -> None:
    _make_room(folder, sum(files.values()))
    partial = folder.with_name(folder.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        download(model, partial, files)
    except FileNotFoundError as error:
        raise RunError(f"{model}: changed while it was fetched: {error} is gone") from None
    partial.rename(folder)


def _make_room(folder: Path, num_bytes: int) -> None:
    """Removes what an older version or a dead process left, and, as long as the disk is short, what idles longest."""
    for path in _idle(folder.parent):
        if _is_superseded(path, folder) or _free_bytes(folder) < num_bytes * SPARE:
            _remove_unless_locked(path)
    if (free := _free_bytes(folder)) < num_bytes * SPARE:
        raise RunError(
            f"{folder.parent}: a model of {num_bytes / 2**30:.1f} GiB does not fit, {free / 2**30:.1f} GiB are free; "
            f"make room or give {SCRATCH_VARIABLE} on a larger disk"
        )


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder.parent).free


def _idle(models: Path) -> list[Path]:
    """Folders that were not used for a while, the longest first."""
    now = time.time()
    ages = {path: now - path.stat().st_mtime for path in models.iterdir() if path.is_dir()}
    return sorted((path for path, age in ages.items() if age > UNUSED_S), key=lambda path: -ages[path])


def _is_superseded(path: Path, by: Path) -> bool:
    """Whether it is a dead process's or another version's; with weights or without, a version is the same."""
    if path.name.endswith(_PARTIAL):
        return True
    (model, version), (wanted_model, wanted_version) = (name.split("-")[:2] for name in (path.name, by.name))
    return model == wanted_model and version != wanted_version


def _remove_unless_locked(folder: Path) -> None:
    with _lock_file(folder).open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with _lock_file(folder).open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name.removesuffix(_PARTIAL)}{_LOCK}")
