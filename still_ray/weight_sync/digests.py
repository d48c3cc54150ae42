"""Digests of weights: that what a rank received is, bit by bit, what the trainer held.

A tensor's digest covers its name, type, shape and bytes; that of a whole update covers the digests of its tensors, in
the order of their names, so that it does not matter in which order they came. The hash is XXH3 with 128 bits: it is
there to find accidents, not forgers, and takes several times as many bytes a second as SHA-256 or BLAKE2b, which 60 GiB
for each rank would be long for.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from still_ray.weight_sync import checkpoint
from still_ray.weight_sync.errors import SyncError

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 64 * 2**20
"""Bytes of a tensor on a GPU that are copied to the host at a time. Source: ours."""
MAX_THREADS = 4
"""Threads that take digests; hashing leaves the interpreter's lock. Source: ours."""

_SHOWN = 3


def tensor_digest(name: str, tensor: torch.Tensor) -> str:
    """The digest of one tensor, in hexadecimal; the same wherever it lies.

    Args:
        name: Parameter name of the HF checkpoint.
        tensor: On any device; of one on a GPU `CHUNK_BYTES` at a time are copied.
    """
    dtype = str(tensor.dtype).removeprefix("torch.")
    digest = xxhash.xxh3_128(f"{name}\0{dtype}\0{tuple(tensor.shape)}\0".encode())
    raw = _raw_bytes(tensor)
    for start in range(0, len(raw), CHUNK_BYTES):
        digest.update(raw[start : start + CHUNK_BYTES].cpu().numpy().data)
    return digest.hexdigest()


def _raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def update_digest(digests: Mapping[str, str]) -> str:
    """The digest of a whole update from those of its tensors."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return xxhash.xxh3_128(lines.encode()).hexdigest()


class DigestLog:
    """Takes the digests of a stream of tensors on threads, beside whatever is done with the tensors."""

    def __init__(self) -> None:
        """Has seen nothing yet."""
        self._num_threads = max(1, min(MAX_THREADS, os.cpu_count() or 1))
        self._threads = ThreadPoolExecutor(self._num_threads, thread_name_prefix="digest")
        self._digests: dict[str, Future[str]] = {}
        self._running: deque[Future[str]] = deque()

    def noted(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Passes the stream on, holding no more tensors than there are threads; they must not be written to."""
        for name, tensor in tensors:
            if len(self._running) == self._num_threads:
                self._running.popleft().result()
            self._digests[name] = self._threads.submit(tensor_digest, name, tensor)
            self._running.append(self._digests[name])
            yield name, tensor

    def digests(self) -> dict[str, str]:
        """What was seen, by name; waits for what is not taken yet, and ends the threads."""
        self._threads.shutdown()
        return {name: future.result() for name, future in self._digests.items()}


def digests_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, str]:
    """Digests of a stream of tensors by name."""
    log = DigestLog()
    deque(log.noted(tensors), maxlen=0)
    return log.digests()


def saved_digests(directory: Path, held: Mapping[str, str]) -> dict[str, str]:
    """What readers of a checkpoint must find: the digests of what the trainer held.

    A parameter that is saved under another name than it has in the trainer, as experts of some models are, has the
    digest of what was written.

    Args:
        directory: The checkpoint.
        held: Digests of the trainer's parameters.

    Raises:
        SyncError: The checkpoint has no safetensors files, or lacks some.
    """
    names = checkpoint.shapes(directory).keys()
    renamed = digests_of((name, tensor) for name, tensor in checkpoint.iterate(directory, names - held.keys()))
    return {name: held[name] for name in names if name in held} | renamed


def require_equal(sent: Mapping[str, str], received: Mapping[str, str]) -> None:
    """Compares what was received with what was sent.

    Args:
        sent: Digests of what was sent by name; empty: nobody took them.
        received: Those of what was received.

    Raises:
        SyncError: They differ; names the first tensors.
    """
    differing = [name for name, digest in sent.items() if received.get(name) != digest]
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise SyncError(f"weight update refused: what came is not what was sent: {', '.join(differing[:_SHOWN])}{more}")
