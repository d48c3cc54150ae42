"""Manifests: the last file of a stage, naming every other with its size and digest.

A stage whose manifest is valid is complete and is skipped on resume. In an object store a file has a size and no
digest: an object is whole or absent, its store guards it, and to hash it would mean to fetch it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from still_ray.facts import StageFacts, check_version, facts_from_json, facts_to_json
from still_ray.location import Location, ObjectPath
from still_ray.store.atomic import read_json, write_json
from still_ray.store.retry import with_retries
from still_ray.types import SCHEMA_VERSION, InputError

MANIFEST = "manifest.json"
DIGEST_LIMIT_BYTES = 64 * 2**20
"""Larger files are checked by size alone: hashing a 65 GB checkpoint at every start would cost minutes."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says.

    Attributes:
        facts: What the stage leaves.
        files: Size, and SHA-256 where it is known, of each file below the stage's folder, by its path there.
    """

    facts: StageFacts
    files: Mapping[str, Mapping[str, Any]]


def write_manifest(folder: Location, facts: StageFacts) -> None:
    """Writes the manifest of a finished stage: its facts, and size and SHA-256 of its files."""
    files = with_retries(lambda: _stored(folder)) if isinstance(folder, ObjectPath) else _hashed(folder)
    store_manifest(folder, Manifest(facts=facts, files=files))


def store_manifest(folder: Location, manifest: Manifest) -> None:
    """Writes a manifest as it is."""
    raw = {"schema_version": SCHEMA_VERSION, **facts_to_json(manifest.facts), "files": manifest.files}
    write_json(folder / MANIFEST, raw)


def read_manifest(folder: Location) -> Manifest | None:
    """The manifest of a stage if there is one and every file it names is as it says, else None.

    Raises:
        InputError: A later release wrote it, or a value in it is missing or of another type.
    """
    try:
        raw = read_json(folder / MANIFEST)
    except InputError:  # a damaged file, this one too, makes the stage incomplete
        return None
    if not isinstance(raw, dict) or "schema_version" not in raw:
        return None
    check_version(raw, where=str(folder / MANIFEST))
    return _manifest(folder, raw) if _is_whole(folder, raw["files"]) else None


def recorded_manifest(folder: Location) -> Manifest | None:
    """The manifest of a stage whatever became of its files; None if there is none.

    Raises:
        InputError: It is damaged, or as in `read_manifest`.
    """
    raw = read_json(folder / MANIFEST)
    return _manifest(folder, raw) if isinstance(raw, dict) else None


def _manifest(folder: Location, raw: Mapping[str, Any]) -> Manifest:
    return Manifest(facts=facts_from_json(raw, where=str(folder / MANIFEST)), files=raw.get("files", {}))


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
