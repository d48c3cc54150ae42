"""A Hugging Face checkpoint directory as a source of weights: safetensors only, one tensor in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from still_ray.weight_sync.errors import SyncError

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


def safetensors_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, in name order.

    Raises:
        SyncError: There are none, or the index names one that is not there.
    """
    if (directory / _INDEX).is_file():
        index = json.loads((directory / _INDEX).read_text(encoding="utf-8"))
        files = [directory / name for name in sorted(set(index["weight_map"].values()))]
    else:
        files = [directory / _SINGLE]
    for file in files:
        if not file.is_file():
            raise SyncError(f"checkpoint {directory} is not complete: {file.name} is missing")
    return files


def iterate(directory: Path, names: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and CPU tensors of a checkpoint, file by file.

    Args:
        directory: The checkpoint.
        names: Of the tensors that are wanted; None: all.

    Raises:
        SyncError: The checkpoint has no safetensors files, or lacks some.
    """
    for file in safetensors_files(directory):
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a mapping
                if names is None or name in names:
                    yield name, tensors.get_tensor(name)


def shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, from the files' headers alone.

    Raises:
        SyncError: The checkpoint has no safetensors files, or lacks some.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in safetensors_files(directory):
        with _opened(file) as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return found


def _opened(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(str(file), framework="pt")
