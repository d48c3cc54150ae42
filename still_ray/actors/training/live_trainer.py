"""The trainer of a session: when its group holds resources, and whose weights it offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from still_ray.driver.ports import Progress, TrainOrder
from still_ray.store.policy import read_policy_record
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


class SessionTrainer:
    """The driver's `Trainer`: one group for the whole session, or one for each stage where devices are shared.

    A start takes about a minute, so a group goes on from run to run.
    """

    def __init__(
        self, launch: Callable[[str], LiveTrainer], *, each_stage: bool, make_room: Callable[[], None] | None = None
    ) -> None:
        """Launches nothing: `begin_run` does.

        Args:
            launch: Launches a group; its argument goes behind the group's name.
            each_stage: Whether a group holds its devices only while a stage is trained.
            make_room: Ends the samplers, where they have to make room for training; the weight sync that follows
                launches them again.
        """
        self._launch = launch
        self._each_stage = each_stage
        self._make_room = make_room
        self._group: LiveTrainer | None = None
        self._offers = False

    def begin_run(self) -> None:
        """Launches the group unless it is there; what it still holds of another run is not offered."""
        self._offers = False
        if self._group is None and not self._each_stage:
            self._group = self._launch("")

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        record = read_policy_record(order.checkpoint)
        if record is not None:
            return record.result
        if self._make_room is not None:
            self._make_room()
        group = self._group or self._launch(f"-{order.stage.name}")
        try:
            result = group.train(order, progress=progress)
        finally:
            if group is not self._group:
                group.close()
        self._offers = group is self._group  # of a closed group replicas read the checkpoint
        return result

    def published(self) -> PublishedWeights | None:
        """The weights that the group still holds of this run."""
        return self._group.published() if self._group is not None and self._offers else None

    def close(self) -> None:
        """Ends the group."""
        if self._group is not None:
            self._group.close()
            self._group = None
