"""The trainer group: one long Ray Train fit whose workers take stages from a mailbox, so that they stay warm.

consumes     train orders, one at a time, and between them orders to transfer the weights
produces     checkpoints with their policy record, events, weights by the recipe's transport
waits for    the mailbox; never inside a torch collective, which would time out
unblocked by the next order; a dead worker makes Ray Train build the group again, which finds the order unfinished
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import ControllerError, RunConfig, ScalingConfig, TrainingFailedError, UserCallback, WorkerGroupError
from ray.train import FailureConfig as TrainFailureConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RestartingState, TrainControllerState

from still_ray.actors.pool.causes import cause_of, has_reason, innermost
from still_ray.actors.pool.cluster import beside_driver, ray_environment
from still_ray.actors.training.device_sharing import has_lost, selectors_of
from still_ray.actors.training.live_trainer import DevicesLostError
from still_ray.actors.training.mailbox import Mailbox, MailboxNews
from still_ray.actors.training.train_loop import TrainLoopSettings, place_of, train_loop
from still_ray.causes import Place
from still_ray.driver.ports import Progress, TrainOrder
from still_ray.store.policy import read_policy_record
from still_ray.trainer.environment import trainer_environment
from still_ray.types import RunError, TrainResult
from still_ray.weight_sync.transports.exchange import PublishedWeights, TransferOrder

POLL_S = 0.5


class TrainerGroup:
    """The driver's `Trainer` on Ray Train."""

    def __init__(
        self,
        settings: TrainLoopSettings,
        *,
        name: str,
        storage: Path,
        max_restarts: int,
    ) -> None:
        """Starts the mailbox and the fit; does not wait for the workers.

        Args:
            settings: What every worker needs.
            name: Name of the Train run; a name that was used before would resume that run.
            storage: Folder for Ray Train's own files.
            max_restarts: Times that the group may be built again.
        """
        self._wanted = wanted(settings)
        self._devices = settings.devices
        mailbox = ray.remote(Mailbox).options(
            num_cpus=0,
            max_restarts=0,
            max_concurrency=1000,
            scheduling_strategy=beside_driver(),
            name=f"mailbox-{name}",
        )
        self._mailbox: Any = mailbox.remote(name)
        host = ray.remote(FitHost).options(
            num_cpus=0,
            max_restarts=0,
            scheduling_strategy=beside_driver(),
            runtime_env={"env_vars": ray_environment()},
            name=f"trainer-group-{name}",
        )
        self._host: Any = host.remote(name)
        self._fit: ray.ObjectRef = self._host.fit.remote(
            replace(settings, mailbox=self._mailbox), name, storage, max_restarts
        )

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        record = read_policy_record(order.checkpoint)
        if record is not None:
            return record.result
        ray.get(self._mailbox.post.options(name=f"{order.stage.name}: train").remote(order))
        activity = _Activity(self._wanted, progress)
        while True:
            news: MailboxNews = ray.get(self._mailbox.news.remote())
            activity.show(news)
            for event in news.events:
                progress.event(event)
            for report in news.progress:
                progress.trained(order.stage, report)
            for text in news.notes:
                progress.noted(text)
            if news.record is not None:
                return news.record.result
            self._raise_failure(news)
            time.sleep(POLL_S)

    def published(self) -> PublishedWeights | None:
        """The weights that the group still holds."""
        if ray.wait([self._fit], timeout=0)[0]:  # nobody would answer
            return None
        weights: PublishedWeights | None = ray.get(self._mailbox.weights.remote())
        return weights and replace(weights, trainer=self._mailbox)

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Lets the workers end and waits for them; whatever has not ended by then is killed."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._mailbox.stop.remote())
        ray.wait([self._fit], timeout=timeout_s)
        ray.kill(self._host)

    def _raise_failure(self, news: MailboxNews) -> None:
        if self._devices and not is_alive(news.leader) and has_lost(self._devices):
            raise DevicesLostError("a machine is lost on whose devices ranks worked")
        if news.failure:
            raise RunError(news.failure)
        if ray.wait([self._fit], timeout=0)[0]:
            host = self._host._actor_id.hex()
            raise RunError(f"the trainer group failed: {self._end_of_fit()}", actor_id=host)

    def _end_of_fit(self) -> str:
        try:
            failure: str = ray.get(self._fit)
        except ray.exceptions.RayError as error:
            failure = cause_of(error)
        return failure or "the trainer group ended"


class _Activity:
    """What a stage's trainer group does at present, for the person who waits."""

    def __init__(self, wanted: str, progress: Progress) -> None:
        self._wanted = wanted
        self._progress = progress
        self._step = self._total = 0
        self._shown = ""

    def show(self, news: MailboxNews) -> None:
        """Says it whenever it changes."""
        for report in news.progress:
            self._step, self._total = report.step, report.total_steps
        doing = self._doing(news.leader)
        if doing != self._shown:
            self._shown = doing
            self._progress.doing(doing)

    def _doing(self, leader: str) -> str:
        if not is_alive(leader):  # before the first group, or after the last one died
            self._step = self._total = 0
            return f"waiting for the trainer group: {self._wanted}"
        if not self._total:
            return "training: reading the rows, loading the model, the first steps"
        if self._step == self._total:
            return "training is over: scoring the probes, saving and publishing the weights"
        return "training"


def wanted(settings: TrainLoopSettings) -> str:
    """What a group asks Ray for, in words, e.g. "2 ranks of 8 CPU, 1 GPU each"."""
    config = settings.trainer
    bundle = ", ".join(f"{amount:g} {kind}" for kind, amount in _bundle(settings).items())
    where = ", ".join(f"{name}={value}" for name, value in config.node_labels.items())
    bundle += " each" + (" on the devices of engines that sleep" if settings.devices else "")
    return f"{config.num_workers} ranks of {bundle}" + (f" on nodes with {where}" if where else "")


def is_alive(actor_id: str) -> bool:
    """Whether an actor is up, by Ray's own table; "" is none."""
    return bool(actor_id) and ray._private.state.actors(actor_id=actor_id).get("State") == "ALIVE"


def _bundle(settings: TrainLoopSettings) -> dict[str, float]:
    """Of one rank; a GPU that a replica holds is not asked for."""
    return {"CPU": settings.trainer.cpus_per_worker, **({"GPU": 1.0} if _asks_for_gpu(settings) else {})}


def _asks_for_gpu(settings: TrainLoopSettings) -> bool:
    return settings.trainer.use_gpu and not settings.devices


def _selectors(settings: TrainLoopSettings) -> dict[str, str] | list[dict[str, str]] | None:
    """Labels of the machines of the ranks: those of the recipe, or for each rank that of the machine of its device."""
    if settings.devices:
        return selectors_of(settings.devices)
    return settings.trainer.node_labels or None


class FitHost:
    """Where the fit is called from: a process that ends whenever the run does.

    A thread of the driver's would go on calling Ray after an interrupted run has left it, and Ray ends a process
    that does so, with a status and a message of its own.
    """

    def __init__(self, name: str) -> None:
        """Remembers the name of the Train run."""
        self._name = name

    def __repr__(self) -> str:
        """The name that Ray shows."""
        return f"trainer group {self._name}"

    def fit(self, settings: TrainLoopSettings, name: str, storage: Path, max_restarts: int) -> str:
        """Runs the fit to its end; returns what failed, "" if nothing."""
        try:
            _ray_trainer(settings, name, storage, max_restarts).fit()
        except Exception as error:  # named policy: the driver says what failed, Ray's log of this actor holds the rest
            logging.getLogger(__name__).exception("the fit ended")
            return cause_of(error, _place(settings.mailbox))
        return ""


class DeathNotes(UserCallback):  # type: ignore[misc]
    """Tells the mailbox of every group that fails, when it does: Ray Train builds the next one without a word."""

    def __init__(self, mailbox: Any) -> None:
        """Remembers the mailbox."""
        self._mailbox = mailbox

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """See `ray.train.UserCallback`; called in Ray Train's controller."""
        _tell_death(self._mailbox, WorkerGroupError("", worker_exceptions))


class StartNotes(ControllerCallback):  # type: ignore[misc]
    """Tells the mailbox of every group whose ranks did not start, which Ray Train hands to no `UserCallback`."""

    def __init__(self, mailbox: Any) -> None:
        """Remembers the mailbox."""
        self._mailbox = mailbox

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Called in Ray Train's controller, also for the failures that `DeathNotes` tells, which are passed over."""
        begins_again = isinstance(current_state, (ReschedulingState, RestartingState))
        if begins_again and isinstance(current_state.training_failed_error, ControllerError):
            _tell_death(self._mailbox, current_state.training_failed_error)


def _tell_death(mailbox: Any, failure: TrainingFailedError) -> None:
    error = innermost(failure)
    ray.get(mailbox.died.remote(cause_of(error, _place(mailbox)), has_reason=has_reason(error)))


def _place(mailbox: Any) -> Place:
    """Where the trainer group is at work."""
    received: tuple[int, TrainOrder | TransferOrder] | None = ray.get(mailbox.newest_order.remote())
    order = received[1] if received else None
    return place_of(order) if isinstance(order, TrainOrder) else Place(kind="trainer")


def _ray_trainer(settings: TrainLoopSettings, name: str, storage: Path, max_restarts: int) -> TorchTrainer:
    config = settings.trainer
    environment = trainer_environment(config, use_gpu=settings.trainer.use_gpu)
    return TorchTrainer(
        train_loop,
        train_loop_config={"settings": settings},
        torch_config=TorchConfig(backend="nccl" if settings.trainer.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=_asks_for_gpu(settings),
            resources_per_worker=_bundle(settings),
            label_selector=_selectors(settings),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=TrainFailureConfig(max_failures=max_restarts, controller_failure_limit=max_restarts),
            callbacks=[DeathNotes(settings.mailbox), StartNotes(settings.mailbox)],
            worker_runtime_env={"env_vars": environment},
            logging_config=ray.train.LoggingConfig(log_level=logging.getLevelName(logging.WARNING)),
        ),
    )
