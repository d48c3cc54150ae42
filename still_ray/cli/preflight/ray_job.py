"""What a command has to mind when it is the entrypoint of a submitted Ray job (jobs/README.md)."""

from __future__ import annotations

import re
from pathlib import Path

from still_ray.location import Location
from still_ray.types import InputError

_UNPACKED = re.compile(r"^.*/runtime_resources/working_dir_files/[^/]+(?=/|$)")
"""Where Ray unpacks the working directory that a job ships; the last part names its content and changes with it."""


def check_kept(folder: Location, *, option: str) -> None:
    """Refuses to write results where Ray deletes them.

    Args:
        folder: Where the results would go.
        option: What names the folder on the command line.

    Raises:
        InputError: The folder is inside a job's unpacked working directory.
    """
    if isinstance(folder, Path) and _UNPACKED.match(str(folder.resolve())):
        raise InputError(
            f"{folder}: is inside the job's working directory, a copy that Ray deletes; give {option} an absolute path "
            f"that every node sees, e.g. {option} /shared/{folder.name}"
        )


def shipped_path(path: str) -> str:
    """A path in a form that is the same in every job that ships the same file.

    Args:
        path: Absolute; one that is not inside a job's working directory is returned as it is.
    """
    return _UNPACKED.sub("working_dir:", path)
