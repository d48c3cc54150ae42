"""Trainers that share devices with the samplers, or let an autoscaler have the samplers' nodes in the meantime.

consumes     train orders
produces     what the trainer inside produces
waits for    that trainer
unblocked by -
"""

from __future__ import annotations

from collections.abc import Callable

from still_ray.actors.pool.actor_pool import ActorPool
from still_ray.actors.training.live_trainer import LiveTrainer
from still_ray.algo.stages import Stage
from still_ray.driver.ports import Progress, TrainOrder
from still_ray.store.policy import read_policy_record
from still_ray.types import TrainResult
from still_ray.weight_sync.transports.exchange import PublishedWeights


class StartedForEachStage:
    """A trainer group that holds its devices only while a stage is trained; a start takes about a minute."""

    def __init__(self, start: Callable[[Stage], LiveTrainer]) -> None:
        """Starts nothing yet.

        Args:
            start: Launches the group of one stage.
        """
        self._start = start

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        record = read_policy_record(order.checkpoint)
        if record is not None:
            return record.result
        trainer = self._start(order.stage)
        try:
            return trainer.train(order, progress=progress)
        finally:
            trainer.close()

    def published(self) -> PublishedWeights | None:
        """Nothing is held after a stage: replicas read the checkpoint."""
        return None

    def close(self) -> None:
        """Nothing runs between stages."""


class SamplersReleased:
    """A trainer during whose work there are no samplers; the next weight sync launches them with the new version."""

    def __init__(self, trainer: LiveTrainer, samplers: ActorPool) -> None:
        """Connects the two.

        Args:
            trainer: Does the work.
            samplers: The pool that makes room.
        """
        self._trainer = trainer
        self._samplers = samplers

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        self._samplers.release()
        return self._trainer.train(order, progress=progress)

    def published(self) -> PublishedWeights | None:
        """See `LiveTrainer`."""
        return self._trainer.published()

    def close(self) -> None:
        """See `LiveTrainer`."""
        self._trainer.close()
