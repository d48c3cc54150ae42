"""Manifests: the last file of a stage, naming every other with its size and digest.

A stage whose manifest is valid is complete and is skipped on resume. In an object store a file has a size and no
digest: an object is whole or absent, its store guards it, and to hash it would mean to fetch it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from still_ray.location import Location, ObjectPath
from still_ray.store.atomic import read_json, write_json
from still_ray.store.retry import with_retries
from still_ray.types import SCHEMA_VERSION, InputError

MANIFEST = "manifest.json"
DIGEST_LIMIT_BYTES = 64 * 2**20
"""Larger files are checked by size alone: hashing a 65 GB checkpoint at every start would cost minutes."""


def write_manifest(folder: Location, facts: Mapping[str, Any]) -> None:
    """Writes the manifest of a finished stage: its facts, and size and SHA-256 of its files."""
    files = with_retries(lambda: _stored(folder)) if isinstance(folder, ObjectPath) else _hashed(folder)
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **facts, "files": files})


def read_manifest(folder: Location) -> dict[str, Any] | None:
    """The manifest of a stage if there is one and every file it names is as it says, else None."""
    try:
        manifest = read_json(folder / MANIFEST)
    except InputError:  # a damaged file, this one too, makes the stage incomplete
        return None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        return None
    return manifest if _is_whole(folder, manifest["files"]) else None


def _hashed(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): _fingerprint(path) for path in paths}


def _stored(folder: ObjectPath) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": size} for name, size in folder.files().items() if name.rpartition("/")[2] != MANIFEST}


def _is_whole(folder: Location, recorded: Mapping[str, Mapping[str, Any]]) -> bool:
    if isinstance(folder, ObjectPath):
        sizes = folder.files()
        return all(sizes.get(name) == fingerprint["bytes"] for name, fingerprint in recorded.items())
    return all(_is_same(folder / name, fingerprint) for name, fingerprint in recorded.items())


def _is_same(path: Path, recorded: Mapping[str, Any]) -> bool:
    """A file that was recorded in an object store and copied here has no digest."""
    if not path.is_file():
        return False
    return path.stat().st_size == recorded["bytes"] if "sha256" not in recorded else _fingerprint(path) == recorded


def _fingerprint(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > DIGEST_LIMIT_BYTES:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
