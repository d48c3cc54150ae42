"""Folders of this machine alone: caches, files on their way to an object store, logs of runs that live in one."""

from __future__ import annotations

import hashlib
import os
import pwd
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from still_ray.location import ObjectPath
from still_ray.types import InputError

SCRATCH_VARIABLE = "STILL_RAY_SCRATCH"
"""Names the folder; without it, one in the system's folder for temporary files."""

_FOLDER_VARIABLES: Final = ("TMPDIR", "RAY_TMPDIR")
_SHORT_FOLDERS: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - a folder of this user's own in it
LONGEST_FOLDER_BYTES: Final = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""A Unix socket's path has 107 bytes at most on Linux. The name is Ray's, with the largest process number."""

_READ_AT_HOME: Final = (".aws", ".cache/huggingface", ".config/gcloud", ".netrc", ".ray/auth_token")
"""Credentials, and models that were downloaded before."""


def scratch(*names: str) -> Path:
    """A folder below the scratch folder of this user, made if it is not there.

    Raises:
        InputError: The folder cannot be made, or somebody else owns it and could change what lies there.
    """
    given = os.environ.get(SCRATCH_VARIABLE)
    root = Path(given) if given else Path(tempfile.gettempdir()) / f"still-ray-{os.getuid()}"
    folder = root.joinpath(*names)
    try:
        _make_own(root, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another {SCRATCH_VARIABLE}") from None
    return folder


def _make_own(root: Path, folder: Path) -> None:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise InputError(f"{root}: belongs to another user; give another {SCRATCH_VARIABLE}")


def _is_writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def settle_temporary_folders() -> str:
    """Makes the folders for temporary files such that sockets fit into them; where one does not, by a short link to it.

    Ray, vLLM and multiprocessing put sockets there, and Ray reads TMPDIR as it is, be it no folder at all.

    Returns:
        What was done, for a person; "" if there was nothing to do.

    Raises:
        InputError: There is no folder that a file can be written to; names the variable.
    """
    done = []
    for name in _FOLDER_VARIABLES:
        given = os.environ.pop(name, "")
        if not given:
            continue
        if not (Path(given).is_absolute() and _is_writable(Path(given))):
            done.append(f"{name} ({given}) is no folder that can be written to: it is not used")
            continue
        os.environ[name] = given if len(os.fsencode(given)) <= LONGEST_FOLDER_BYTES else _link_to(given, name)
    tempfile.tempdir = None  # Python looks again
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise InputError(f"TMPDIR: {error.strerror or error}; name a folder that can be written to") from None
    return "; ".join(done)


def _link_to(folder: str, variable: str) -> str:
    """A short name of a folder whose own is too long for a socket in it."""
    for short in _SHORT_FOLDERS:
        links = Path(short) / f"still-ray-{os.getuid()}"
        with suppress(OSError, InputError):
            _make_own(links, links)
            link = links / short_digest(folder)[:6]
            with suppress(FileExistsError):
                link.symlink_to(folder)
            return str(link)
    raise InputError(
        f"{variable} ({folder}): is too long for Ray's sockets; name a folder of at most {LONGEST_FOLDER_BYTES} bytes"
    )


def settle_home() -> str:
    """Gives libraries a home folder for their caches and tokens where HOME cannot be written to.

    transformers, torch, triton, vLLM, matplotlib and Ray each write below it. What they only read is linked there.

    Returns:
        What was done, for a person; "" if there was nothing to do.

    Raises:
        InputError: The scratch folder, which takes its place, cannot be made either.
    """
    home = _home()
    if home is not None and _is_writable(home):
        os.environ["HOME"] = str(home)
        return ""
    place = scratch("home")
    for name in _READ_AT_HOME:
        if home is not None and os.access(home / name, os.R_OK) and not (place / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).unlink(missing_ok=True)
            (place / name).symlink_to(home / name)
    os.environ["HOME"] = str(place)
    return f"HOME ({home or 'not set'}) cannot be written to: caches and tokens go to {place}"


def _home() -> Path | None:
    """The home folder as the environment or the system says it; a user whom the system does not know gets a name."""
    home = os.environ.get("HOME")
    try:
        known = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # as in containers that run under any number
        os.environ.setdefault("USER", f"uid-{os.getuid()}")
        known = ""
    return Path(home or known) if home or known else None


def short_digest(text: str) -> str:
    """16 letters that stand for a text in the name of a folder."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_scratch(root: ObjectPath, *names: str) -> Path:
    """The scratch folder of a run in an object store."""
    return scratch("runs", short_digest(str(root)), *names)
