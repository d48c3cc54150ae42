"""How much of a model a stage changed: its weights against the start model's, in the type of the checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

_CHUNK: Final = 2**24
"""Weights compared at a time: what the comparison holds of the start model."""


def share_changed(model: PreTrainedModel, start: str) -> float | None:
    """Share of all weights, from 0 to 1, that are not what they were in the start model; collective.

    Each rank compares its own part of every tensor, read from the start model's mapped files, so that no copy of the
    start model is held and each rank reads no more than its part. The start is rounded to the type in which the model
    is trained and saved: a weight whose float32 master moved by less than half a unit in the last place has not
    changed.

    Args:
        model: The trained model, sharded or whole.
        start: HF model directory, or hub id whose files are in the cache.

    Returns:
        None where the start model cannot be compared: it has no safetensors, or names its tensors otherwise.
    """
    try:
        files = _files(start)
    except (OSError, ValueError, SafetensorError):  # named policy: what cannot be read costs the figure, not the stage
        files = {}
    mine = [_compared(files.get(name), name, parameter) for name, parameter in model.named_parameters()]
    counts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(counts, [sum(kind) for kind in zip(*mine, strict=True)])
    num_changed, num_compared, num_unknown = (sum(kind) for kind in zip(*counts, strict=True))
    return None if num_unknown or not num_compared else num_changed / num_compared


def _files(start: str) -> dict[str, str]:
    """The file that holds each tensor; empty where there is no safetensors checkpoint."""
    index = _local(start, SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        names: Mapping[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        return {name: str(Path(index).with_name(file)) for name, file in names.items()}
    whole = _local(start, SAFE_WEIGHTS_NAME)
    if whole is None:
        return {}
    with safe_open(whole, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), whole)


def _local(start: str, file: str) -> str | None:
    found: str | None = cached_file(
        start,
        file,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


def _compared(file: str | None, name: str, parameter: Any) -> list[int]:
    """Weights of this rank's part that changed, that were compared, and that are unknown."""
    part, begin = _part(parameter)
    try:
        before = None if file is None else _tensor(file, name)
    except (OSError, SafetensorError):  # the same policy
        before = None
    if before is None or before.numel() != getattr(parameter, "ds_numel", parameter.numel()):
        return [0, 0, part.numel()]
    pieces = zip(torch.split(part, _CHUNK), torch.split(before[begin : begin + part.numel()], _CHUNK), strict=True)
    return [sum(_num_unequal(after, piece) for after, piece in pieces), part.numel(), 0]


def _part(parameter: Any) -> tuple[Tensor, int]:
    """This rank's share of a parameter, flat and without padding, and where it begins in the whole."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if hasattr(parameter, "ds_tensor"):
        flat, size, numel = parameter.ds_tensor.detach(), parameter.ds_tensor.ds_numel, parameter.ds_numel
        begin = min(rank * size, numel)
        return flat[: min(size, numel - begin)], begin
    flat = parameter.detach().view(-1)
    size = -(-flat.numel() // world)
    begin = min(rank * size, flat.numel())
    return flat[begin : begin + size], begin


def _tensor(file: str, name: str) -> Tensor:
    """A flat view of a tensor in a mapped file: only what is looked at is read."""
    with safe_open(file, framework="pt") as opened:
        found: Tensor = opened.get_tensor(name)
        return found.view(-1)


def _num_unequal(after: Tensor, before: Tensor) -> int:
    return int((after != before.to(device=after.device, dtype=after.dtype)).sum())
