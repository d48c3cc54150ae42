"""Tensors that a program holds: all of them now, or at their peak the bytes of the storages that operations return."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def live_tensors() -> list[str]:
    """Shapes and types of all tensors that anything in this process still holds."""
    gc.collect()
    # By class: `isinstance` would ask every lazy stand-in in the process what it stands for.
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return sorted(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in tensors)


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that come to life within it; those that stood before count where they are passed to `count`.

    Views share their storage and count once. What an operation frees before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def count(self, *tensors: torch.Tensor) -> None:
        """Counts storages that exist already."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known or not storage.nbytes():
                continue
            self._known.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self.live)

    def ignore(self, *tensors: torch.Tensor) -> None:
        """Never counts the storages of these."""
        self._known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def _freed(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.live -= num_bytes

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(*(leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)))
        return result
