"""SHA-256 of files and of models, so that a result can say what exactly it is the result of.

A model's digest is that of one line for each safetensors file, "NAME SIZE SHA256", in the order of the names. So it can
also be made from what a hub says of its files, and it does not change when a model is copied. What stands beside the
weights and also decides a response, e.g. the tokenizer, has a digest of its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from still_ray.location import Location, ObjectPath, is_uri, location
from still_ray.store.atomic import read_json, write_json
from still_ray.store.scratch import scratch, short_digest
from still_ray.types import InputError

CHUNK_BYTES = 2**22
REMEMBERED_BYTES = 64 * 2**20
"""Digests of larger files are kept, until the file's size or time changes: 65 GB take minutes. Source: ours."""
SAMPLED_BYTES = 32 * 2**20
SAMPLE_BYTES = 2**18
NUM_SAMPLES = 24
"""Pieces of a large file of weights that stand for it. Source: ours; 24 requests to an object store a file."""
WEIGHTS = "*.safetensors"
BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*.py",
)
"""Files of a model's folder that decide a response beside the weights: settings, tokenizer, templates, its own code."""


@dataclass(frozen=True, kw_only=True)
class Digest:
    """What identifies bytes.

    Attributes:
        sha256: In hexadecimal.
        num_bytes: How many they are.
    """

    sha256: str
    num_bytes: int


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def file_digest(place: Location) -> Digest:
    """The digest of a file or an object; that of a large file is remembered on this machine.

    Raises:
        InputError: It cannot be read.
    """
    try:
        if isinstance(place, ObjectPath) or place.stat().st_size < REMEMBERED_BYTES:
            return _hashed(place)
        return _remembered(place)
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror or error}") from None


def content_digest(place: Location) -> str:
    """SHA-256 of a file or an object that is read anew, so that nothing is taken for granted.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return _hashed(place).sha256
    except OSError as error:
        raise InputError(f"{place}: cannot be read: {error.strerror or error}") from None


def weights_sample_digest(model: str) -> str | None:
    """SHA-256 of a model's weights, of large files by samples: it tells models apart and takes a moment.

    Of a safetensors file above `SAMPLED_BYTES`, the size, the beginning with its header, and pieces at equal distances
    count. Training changes every matrix, so other weights differ in them.

    Args:
        model: A model directory or its URI; of a hub id, whose files are not here, nothing is known.

    Returns:
        In hexadecimal; None if nothing is known.

    Raises:
        InputError: A file cannot be read.
    """
    if not _is_place(model):
        return None
    files: list[Location] = sorted(location(model).glob(WEIGHTS), key=lambda path: path.name)
    return text_digest("".join(f"{path.name} {_sampled(path)}\n" for path in files)) if files else None


def _sampled(place: Location) -> str:
    size = place.size() if isinstance(place, ObjectPath) else place.stat().st_size
    if size <= SAMPLED_BYTES:
        return content_digest(place)
    digest = hashlib.sha256(str(size).encode())
    with place.random_access() if isinstance(place, ObjectPath) else place.open("rb") as file:
        for number in range(NUM_SAMPLES):
            file.seek((size - SAMPLE_BYTES) * number // (NUM_SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def model_digest(model: str) -> Digest | None:
    """The digest of a model's weights; None where nobody can tell, e.g. for a hub id without a connection.

    Args:
        model: A model directory, its URI, or a hub id.

    Raises:
        InputError: A file cannot be read.
    """
    files = _files(location(model)) if _is_place(model) else _hub_files(model)
    return _combined(files) if files else None


def model_files_digest(model: str) -> str | None:
    """SHA-256 of what stands beside a model's weights, made like that of the weights; None where nobody can tell.

    Of a hub id these files, which are small, are fetched if they are not there.

    Args:
        model: A model directory, its URI, or a hub id.

    Raises:
        InputError: A file cannot be read.
    """
    folder = location(model) if _is_place(model) else _fetched_beside_weights(model)
    if folder is None:
        return None
    found = {path.name: path for pattern in BESIDE_WEIGHTS for path in folder.glob(pattern) if path.is_file()}
    files = [(name, file_digest(found[name])) for name in sorted(found)]
    return _combined(files).sha256 if files else None


def source_digest(*places: Path) -> str:
    """SHA-256 of Python code, by name: which code it was, whatever its version says.

    Args:
        places: Folders, of which the Python files below count, and single files.

    Raises:
        InputError: A file cannot be read.
    """
    lines = [f"{name} {file_digest(path).sha256}\n" for place in places for name, path in _sources(place)]
    return text_digest("".join(lines))


def _sources(place: Path) -> list[tuple[str, Path]]:
    if not place.is_dir():
        return [(place.name, place)]
    return [(str(path.relative_to(place)), path) for path in sorted(place.rglob("*.py"))]


def _is_place(model: str) -> bool:
    """Whether a model is a directory or a URI, and not a hub id."""
    place = location(model)
    return is_uri(model) or place.exists() or str(place).startswith("/")


def _files(folder: Location) -> list[tuple[str, Digest]]:
    paths: list[Location] = list(folder.glob(WEIGHTS))
    return sorted(((path.name, file_digest(path)) for path in paths), key=lambda file: file[0])


def _combined(files: list[tuple[str, Digest]]) -> Digest:
    lines = (f"{name} {digest.num_bytes} {digest.sha256}\n" for name, digest in files)
    return Digest(sha256=text_digest("".join(lines)), num_bytes=sum(digest.num_bytes for _, digest in files))


def _hashed(place: Location) -> Digest:
    digest, num_bytes = hashlib.sha256(), 0
    with place.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            num_bytes += len(chunk)
    return Digest(sha256=digest.hexdigest(), num_bytes=num_bytes)


def _remembered(path: Path) -> Digest:
    state = path.stat()
    seen = {"path": str(path.resolve()), "num_bytes": state.st_size, "mtime_ns": state.st_mtime_ns}
    note = scratch("digests") / f"{short_digest(str(path.resolve()))}.json"
    kept = _kept(note)
    if {name: kept.get(name) for name in seen} == seen:
        return Digest(sha256=kept["sha256"], num_bytes=kept["num_bytes"])
    digest = _hashed(path)
    write_json(note, {**seen, "sha256": digest.sha256})
    return digest


def _kept(note: Path) -> dict[str, Any]:
    try:
        kept = read_json(note)
    except InputError:  # a damaged note is none
        return {}
    return kept if isinstance(kept, dict) else {}


def _hub_files(model: str) -> list[tuple[str, Digest]]:
    """What the hub says of a model's weights, or else what of them was fetched before."""
    return _listed(model) or _fetched(model)


def _listed(model: str) -> list[tuple[str, Digest]]:
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().model_info(model, files_metadata=True, timeout=10).siblings or []
    except Exception:  # named policy: without the hub's word the fetched files are looked at
        return []
    large = [(file.rfilename, file.lfs) for file in siblings if Path(file.rfilename).match(WEIGHTS)]
    files = [(name, Digest(sha256=lfs.sha256, num_bytes=lfs.size)) for name, lfs in large if lfs is not None]
    return sorted(files, key=lambda file: file[0])


def _fetched(model: str) -> list[tuple[str, Digest]]:
    from huggingface_hub import snapshot_download

    try:
        return _files(Path(snapshot_download(model, local_files_only=True)))
    except Exception:  # named policy: a model that was never fetched has no digest here
        return []


def _fetched_beside_weights(model: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, allow_patterns=list(BESIDE_WEIGHTS)))
    except Exception:  # named policy: files that are neither at the hub nor here have no digest
        return None
