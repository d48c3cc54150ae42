"""Folders of this machine alone: caches, files on their way to an object store, logs of runs that live in one."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from still_ray.location import ObjectPath
from still_ray.types import InputError

SCRATCH_VARIABLE = "STILL_RAY_SCRATCH"
"""Names the folder; without it, one in the system's folder for temporary files."""


def scratch(*names: str) -> Path:
    """A folder below the scratch folder of this user, made if it is not there.

    Raises:
        InputError: The folder cannot be made, or somebody else owns it and could change what lies there.
    """
    given = os.environ.get(SCRATCH_VARIABLE)
    root = Path(given) if given else Path(tempfile.gettempdir()) / f"still-ray-{os.getuid()}"
    folder = root.joinpath(*names)
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        owner = root.stat().st_uid
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another {SCRATCH_VARIABLE}") from None
    if owner != os.getuid():
        raise InputError(f"{root}: belongs to another user; give another {SCRATCH_VARIABLE}")
    return folder


def short_digest(text: str) -> str:
    """16 letters that stand for a text in the name of a folder."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_scratch(root: ObjectPath, *names: str) -> Path:
    """The scratch folder of a run in an object store."""
    return scratch("runs", short_digest(str(root)), *names)
