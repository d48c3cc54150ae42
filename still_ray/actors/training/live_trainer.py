"""The trainer of a session: when its group holds resources, on which devices, and whose weights it offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from still_ray.algo.devices import Devices
from still_ray.driver.ports import Progress, TrainOrder
from still_ray.store.policy import read_policy_record
from still_ray.types import RunError, StillRayError, TrainResult
from still_ray.weight_sync.transports.exchange import PublishedWeights


class DevicesLostError(StillRayError):
    """The machine of a device is gone that a rank was to work on: the group has to go elsewhere."""


class LiveTrainer(Protocol):
    """A trainer group that holds its resources until it is closed."""

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`.

        Raises:
            DevicesLostError: One of the devices that it was launched on is gone.
        """
        ...

    def published(self) -> PublishedWeights | None:
        """The weights of the last order that it still holds."""
        ...

    def close(self) -> None:
        """Ends its workers."""
        ...


class Sharing(Protocol):
    """See `still_ray.actors.training.device_sharing.DeviceSharing`."""

    def present(self, preferred: Devices) -> Devices | None:
        """The devices that ranks would work on; None while there are too few."""
        ...

    def vacate(self, preferred: Devices) -> Devices:
        """The same once every engine on them sleeps."""
        ...


class SessionTrainer:
    """The driver's `Trainer`: one group for the whole session, or one for each stage where devices are shared.

    A start takes about a minute, so a group goes on from run to run, and from stage to stage wherever it can: on the
    devices of engines that sleep it stays while these are there.
    """

    def __init__(
        self,
        launch: Callable[[str, Devices], LiveTrainer],
        *,
        each_stage: bool,
        make_room: Callable[[], None] | None = None,
        sharing: Sharing | None = None,
        max_moves: int = 0,
    ) -> None:
        """Launches nothing: `begin_run` does, or `replicas_are_up`.

        Args:
            launch: Launches a group; its arguments are what goes behind the group's name, and the devices of its ranks.
            each_stage: Whether a group holds its devices only while a stage is trained.
            make_room: Ends the samplers, where they have to make room for training; the weight sync that follows
                launches them again.
            sharing: Has the samplers sleep instead, where ranks work on their devices.
            max_moves: How often a stage may go on elsewhere because a machine of such devices is lost.
        """
        self._launch = launch
        self._each_stage = each_stage
        self._make_room = make_room
        self._sharing = sharing
        self._max_moves = max_moves
        self._group: LiveTrainer | None = None
        self._devices: Devices = ()
        self._num_launched = 0
        self._is_used = False
        self._offers = False

    def begin_run(self) -> None:
        """Launches the group unless it is there; what it still holds of another run is not offered."""
        self._is_used, self._offers = True, False
        if self._group is None and not self._each_stage and self._sharing is None:
            self._group = self._launch("", ())

    def replicas_are_up(self) -> None:
        """Launches a group that works on their devices, so that it starts while they sample; does not wait for it.

        Nothing happens before the first run: replicas of models that are only evaluated need no trainer.
        """
        if self._sharing is None or self._group is not None or not self._is_used:
            return
        devices = self._sharing.present(())
        if devices is not None:
            self._group_on(devices)

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        record = read_policy_record(order.checkpoint)
        if record is not None:
            return record.result
        if self._sharing is not None:
            result = self._train_on_shared(self._sharing, order, progress)
        else:
            result = self._train_on_own(order, progress)
        self._offers = self._group is not None  # of a closed group replicas read the checkpoint
        return result

    def _train_on_own(self, order: TrainOrder, progress: Progress) -> TrainResult:
        """By the group that is there, or by one for this stage alone."""
        if self._make_room is not None:
            self._make_room()
        group = self._group or self._launch(f"-{order.stage.name}", ())
        try:
            return group.train(order, progress=progress)
        finally:
            if group is not self._group:
                group.close()

    def _train_on_shared(self, sharing: Sharing, order: TrainOrder, progress: Progress) -> TrainResult:
        """By a group on the devices of engines that sleep; it moves when a machine of these is lost."""
        for num_moves in range(self._max_moves + 1):
            progress.doing("putting engines to sleep whose devices the trainer needs")
            group = self._group_on(sharing.vacate(self._devices))
            try:
                return group.train(order, progress=progress)
            except DevicesLostError as lost:
                self.close()
                if num_moves == self._max_moves:
                    limit = f"failures.max_trainer_restarts ({self._max_moves}) is used up"
                    raise RunError(f"{lost}, and {limit}") from lost
                progress.noted(f"{lost}; the trainer group is built again elsewhere")
        raise AssertionError("the last try returns or raises")

    def _group_on(self, devices: Devices) -> LiveTrainer:
        """The group that is there if it works on these devices, else another in its place."""
        if self._group is not None and devices != self._devices:
            self.close()
        if self._group is None:
            self._group = self._launch(f"-{self._num_launched}" if self._num_launched else "", devices)
            self._devices = devices
            self._num_launched += 1
        return self._group

    def published(self) -> PublishedWeights | None:
        """The weights that the group still holds of this run."""
        return self._group.published() if self._group is not None and self._offers else None

    def close(self) -> None:
        """Ends the group."""
        if self._group is not None:
            self._group.close()
            self._group = None
