"""Manifests: the last file of a stage, naming every other with its size and digest.

A stage whose manifest is valid is complete and is skipped on resume.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from still_ray.store.atomic import read_json, write_json
from still_ray.types import SCHEMA_VERSION, InputError

MANIFEST = "manifest.json"
DIGEST_LIMIT_BYTES = 64 * 2**20
"""Larger files are checked by size alone: hashing a 65 GB checkpoint at every start would cost minutes."""


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the manifest of a finished stage: its facts, and size and SHA-256 of its files."""
    files = {str(path.relative_to(folder)): _fingerprint(path) for path in _files(folder)}
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **facts, "files": files})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage if there is one and every file it names is as it says, else None."""
    try:
        manifest = read_json(folder / MANIFEST)
    except InputError:  # a damaged file, this one too, makes the stage incomplete
        return None
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        return None
    for name, fingerprint in manifest["files"].items():
        if not (folder / name).is_file() or _fingerprint(folder / name) != fingerprint:
            return None
    return manifest


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def _fingerprint(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > DIGEST_LIMIT_BYTES:
        return {"bytes": size}
    return {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
