"""Tensors packed into flat buckets of bytes that travel through Ray's object store, and views of them on arrival."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

ALIGNMENT = 64
"""Bytes to which a tensor's start is rounded up: a cache line, as plasma and torch align their own memory."""

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Where a tensor lies in its bucket.

    Attributes:
        name: Parameter name of the HF checkpoint.
        dtype: torch's name of it, e.g. "bfloat16".
        shape: Shape; () for a scalar.
        offset: First byte, a multiple of `ALIGNMENT`.
        nbytes: Size in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Tensors in one contiguous array.

    Attributes:
        data: uint8 array of one dimension.
        specs: What lies where.
    """

    data: Bytes
    specs: tuple[TensorSpec, ...]


def pack(tensors: Iterable[tuple[str, torch.Tensor]], bucket_bytes: int) -> Iterator[Bucket]:
    """Packs a stream of named tensors, in order, holding one bucket at a time.

    Args:
        tensors: Names and tensors, on any device; each is copied and let go at once.
        bucket_bytes: Largest size of a bucket; a larger tensor gets a bucket of its own.
    """
    writer = _BucketWriter(bucket_bytes)
    for name, tensor in tensors:
        raw = _raw_bytes(tensor)
        if not writer.has_room(raw.nbytes):
            yield writer.take()
            writer = _BucketWriter(max(bucket_bytes, raw.nbytes))
        writer.append(name, tensor, raw)
    if writer.specs:
        yield writer.take()


class _BucketWriter:
    """One bucket being filled; the memory behind what is never filled is never touched."""

    def __init__(self, capacity: int) -> None:
        self._data = np.empty(capacity, dtype=np.uint8)
        self._used = 0
        self.specs: list[TensorSpec] = []

    def has_room(self, nbytes: int) -> bool:
        return not self.specs or self._next_offset() + nbytes <= len(self._data)

    def append(self, name: str, tensor: torch.Tensor, raw: Bytes) -> None:
        offset = self._next_offset()
        if offset + raw.nbytes > len(self._data):  # the first tensor may be larger than a bucket
            self._data = np.empty(raw.nbytes, dtype=np.uint8)
        self._data[self._used : offset] = 0
        self._data[offset : offset + raw.nbytes] = raw
        self._used = offset + raw.nbytes
        self.specs.append(
            TensorSpec(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                offset=offset,
                nbytes=raw.nbytes,
            )
        )

    def take(self) -> Bucket:
        return Bucket(data=self._data[: self._used], specs=tuple(self.specs))

    def _next_offset(self) -> int:
        return _aligned(self._used)


def _aligned(offset: int) -> int:
    return math.ceil(offset / ALIGNMENT) * ALIGNMENT


def _raw_bytes(tensor: torch.Tensor) -> Bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    raw: Bytes = flat.view(torch.uint8).numpy()
    return raw


def layout(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> tuple[TensorSpec, ...]:
    """Where tensors of these names, types and shapes lie, one after another, in memory of `extent` bytes."""
    specs: list[TensorSpec] = []
    for name, dtype, shape in tensors:
        spec = TensorSpec(
            name=name,
            dtype=str(dtype).removeprefix("torch."),
            shape=tuple(shape),
            offset=_aligned(extent(specs)),
            nbytes=math.prod(shape) * dtype.itemsize,
        )
        specs.append(spec)
    return tuple(specs)


def extent(specs: Sequence[TensorSpec]) -> int:
    """Bytes up to the end of the last tensor."""
    return specs[-1].offset + specs[-1].nbytes if specs else 0


def views(memory: torch.Tensor, specs: Iterable[TensorSpec]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that lie in a block of bytes, without a copy.

    Args:
        memory: uint8, one dimension, on any device.
        specs: What lies where.
    """
    for spec in specs:
        raw = memory[spec.offset : spec.offset + spec.nbytes]
        yield spec.name, raw.view(getattr(torch, spec.dtype)).reshape(tuple(spec.shape))


def unpack(bucket: Bytes, specs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of a bucket's tensors, without a copy; they keep the bucket alive and must not be written to.

    Args:
        bucket: uint8 array; may be read-only, as arrays from the object store are.
        specs: The fields of each `TensorSpec`.
    """
    return views(_as_tensor(bucket), (TensorSpec(**spec) for spec in specs))


def _as_tensor(bucket: Bytes) -> torch.Tensor:
    """`torch.from_numpy` warns about every read-only array; this states that we know and keeps the array alive."""
    if not bucket.size:
        return torch.empty(0, dtype=torch.uint8)
    memory = (ctypes.c_uint8 * bucket.nbytes).from_address(bucket.ctypes.data)
    memory.owner = bucket  # type: ignore[attr-defined]
    return torch.frombuffer(memory, dtype=torch.uint8)
