"""The trainer group as the session holds it."""

from __future__ import annotations

from typing import Protocol

from still_ray.driver.ports import Progress, TrainOrder
from still_ray.types import TrainResult
from still_ray.weight_sync.transports.exchange import PublishedWeights


class LiveTrainer(Protocol):
    """A trainer group that holds its resources until it is closed."""

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        ...

    def published(self) -> PublishedWeights | None:
        """The weights of the last order that it still holds."""
        ...

    def close(self) -> None:
        """Ends its workers."""
        ...
