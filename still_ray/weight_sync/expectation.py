"""Which parameters an update must bring: all of them, each in its shape, and no others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from still_ray.weight_sync.errors import SyncError

if TYPE_CHECKING:
    import torch

_SHOWN = 3
_OUTPUT_HEAD = "lm_head.weight"


class UpdateExpectation:
    """Checks one update's parameters against those of the checkpoint that the engine was started from.

    A model with tied embeddings has no output head of its own: an update may name it or not, and it is left out.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, tied: bool) -> None:
        """Expects every name of `shapes` (HF names), except the output head of a model with tied embeddings."""
        self._ignored = {_OUTPUT_HEAD} if tied else set[str]()
        self._shapes = {name: shape for name, shape in shapes.items() if name not in self._ignored}
        self._seen: set[str] = set()

    def checked(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Passes on what the model is to load, noting it.

        Raises:
            SyncError: A name is unknown or comes twice, or a shape is wrong.
        """
        for name, tensor in tensors:
            if name in self._ignored:
                continue
            self._note(name, tuple(tensor.shape))
            yield name, tensor

    def _note(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._shapes:
            raise SyncError(f"weight update refused: the model has no parameter {name}")
        if shape != self._shapes[name]:
            raise SyncError(f"weight update refused: {name} has shape {shape}, the model's is {self._shapes[name]}")
        if name in self._seen:
            raise SyncError(f"weight update refused: {name} came twice")
        self._seen.add(name)

    def require_complete(self) -> None:
        """Ends the update.

        Raises:
            SyncError: Parameters are missing; names the first ones.
        """
        missing = [name for name in self._shapes if name not in self._seen]
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise SyncError(f"weight update refused: it lacks {', '.join(missing[:_SHOWN])}{more}")
