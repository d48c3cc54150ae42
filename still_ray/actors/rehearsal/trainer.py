"""A fake trainer group: the placement group that Ray Train would ask for, and a light actor for each rank.

consumes     train orders; the tables of their rows
produces     events, and a folder with a policy record in the place of a checkpoint
waits for    its placement group and its ranks
unblocked by machines with room; a dead rank has the whole group built again, as Ray Train does

The ranks go step by step together, as a collective would keep them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from still_ray.actors.pool.causes import cause_of, is_death
from still_ray.actors.rehearsal.device_log import DeviceLog
from still_ray.actors.training.device_sharing import has_lost, selectors_of
from still_ray.actors.training.live_trainer import DevicesLostError
from still_ray.algo.devices import Device, Devices
from still_ray.algo.rehearsal.device_time import SYNC, TRAINING
from still_ray.config.methods import method_named
from still_ray.types import RunError, TrainProgress
from still_ray.weight_sync.transports import transport_named
from still_ray.weight_sync.transports.exchange import PublishedWeights

if TYPE_CHECKING:
    from still_ray.algo.resolved import ResolvedRecipe
    from still_ray.config import AnyMethod
    from still_ray.driver.ports import Progress, TrainOrder
    from still_ray.trainer.job import TrainJob
    from still_ray.types import TrainResult

PROBE_TOKENS = 256
"""Most bytes of a probe sequence, as many as the real group takes tokens."""
POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class FakeGroupSettings:
    """What a group is built from.

    Attributes:
        recipe: The rehearsed recipe.
        rebuilt: Called when the group is built again.
        device_logs: Folder of the files that say what devices were busy with; "": none.
        devices: What ranks work on although replicas hold it; none: what Ray gives them.
    """

    recipe: ResolvedRecipe
    rebuilt: Callable[[], None] = lambda: None
    device_logs: str = ""
    devices: Devices = ()

    @property
    def bundle(self) -> dict[str, float]:
        """What each rank asks for, as `still_ray.actors.training.trainer_group` does."""
        asks_for_gpu = self.recipe.trainer.use_gpu and not self.devices
        return {"CPU": self.recipe.trainer.cpus_per_worker, **({"GPU": 1.0} if asks_for_gpu else {})}

    @property
    def selectors(self) -> list[dict[str, str]] | None:
        """Labels of the machine of each rank, likewise."""
        if self.devices:
            return selectors_of(self.devices)
        config = self.recipe.trainer
        return [dict(config.node_labels)] * config.num_workers if config.node_labels else None


class FakeTrainerGroup:
    """A `LiveTrainer` that learns nothing."""

    def __init__(self, settings: FakeGroupSettings, *, name: str) -> None:
        """Asks for the resources; does not wait for them.

        Args:
            settings: What it is built from.
            name: Name of the group and, with a rank's number, of its actors.
        """
        self._settings = settings
        self._name = name
        self._num_restarts = 0
        self._published: PublishedWeights | None = None
        self._group: Any = None
        self._ranks: list[Any] = []
        self._form()

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """See `still_ray.driver.ports.Trainer`."""
        from still_ray.store.policy import read_policy_record

        self._published = None
        while True:
            record = read_policy_record(order.checkpoint)
            if record is not None:
                return record.result
            try:
                self._attempt(order, progress)
            except ray.exceptions.RayError as error:
                if not is_death(error):
                    raise RunError(f"stage {order.stage.name} cannot be trained: {cause_of(error)}") from error
                self._restart(error, progress)

    def published(self) -> PublishedWeights | None:
        """What the first rank published in the place of weights."""
        return self._published

    def close(self) -> None:
        """Ends the ranks and gives the resources back."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def _form(self) -> None:
        config = self._settings.recipe.trainer
        self._group = placement_group(
            bundles=[self._settings.bundle] * config.num_workers,
            strategy="PACK",
            name=self._name,
            bundle_label_selector=self._settings.selectors,
        )

    def _restart(self, cause: BaseException, progress: Progress) -> None:
        limit = self._settings.recipe.failures.max_trainer_restarts
        if self._num_restarts >= limit:
            raise RunError(
                f"a trainer rank died and failures.max_trainer_restarts ({limit}) is used up: {cause_of(cause)}"
            ) from cause
        self._num_restarts += 1
        progress.noted(f"the trainer group failed: {cause_of(cause)}; it is built again")
        self.close()
        self._form()
        self._settings.rebuilt()

    def _attempt(self, order: TrainOrder, progress: Progress) -> None:
        """One try at a stage, all ranks step by step."""
        self._start_ranks(progress)
        leader, *others = self._ranks
        led = leader.lead.remote(
            self._job(order), method_named(order.method), order.data_path, order.stage.policy_version, self._probes()
        )
        plan = ray.get([led, *(rank.follow.remote(order.data_path) for rank in others)])[0]
        for _ in range(plan["steps"]):
            report = ray.get([rank.step.remote(plan["step_s"]) for rank in self._ranks])[0]
            progress.trained(order.stage, report)
        ray.get([rank.ready.remote() for rank in self._ranks])  # gathering a checkpoint takes every rank
        ray.get(leader.finish.remote())
        self._published = ray.get(leader.publish.remote(self._settings.recipe.sync.transport))

    def _start_ranks(self, progress: Progress) -> None:
        """Waits for the resources and starts what is not up."""
        if self._ranks:
            return
        progress.doing(f"waiting for the trainer group: {self._wanted()}")
        while not self._group.wait(timeout_seconds=POLL_S):
            if self._settings.devices and has_lost(self._settings.devices):
                raise DevicesLostError("a machine is lost on whose devices ranks worked")
        self._ranks = [self._rank(index) for index in range(self._settings.recipe.trainer.num_workers)]
        ray.get([rank.ready.remote() for rank in self._ranks])

    def _wanted(self) -> str:
        bundle = ", ".join(f"{amount:g} {kind}" for kind, amount in self._settings.bundle.items())
        return f"{self._settings.recipe.trainer.num_workers} ranks of {bundle}"

    def _rank(self, index: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        bundle = self._settings.bundle
        actor = ray.remote(FakeRank).options(
            name=f"{self._name}-{self._num_restarts}-rank-{index}",
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=strategy,
            max_restarts=0,
        )
        devices = self._settings.devices
        return actor.remote(self._settings.device_logs, devices[index] if devices else None)

    def _job(self, order: TrainOrder) -> TrainJob:
        from still_ray.trainer.job import TrainJob

        return TrainJob(
            name=order.stage.name,
            method=order.stage.method,
            training_path=method_named(order.method).trainer,
            model_path=order.init_model,
            output_dir=order.checkpoint,
            settings=order.settings,
            trainer=self._settings.recipe.trainer.asked,
            seed=order.seed,
        )

    def _probes(self) -> Mapping[str, int]:
        recipe = self._settings.recipe
        return {"num_probes": recipe.sync.num_probes, "max_tokens": min(PROBE_TOKENS, recipe.model.longest - 1)}


class FakeRank:
    """One rank; the first leads: it reads the rows, reports, and leaves the checkpoint's folder."""

    def __init__(self, device_logs: str, device: Device | None) -> None:
        """Holds its resources and does nothing.

        Args:
            device_logs: Folder of the files that say what devices were busy with; "": none.
            device: What it works on although a replica holds it; None: what Ray gave it.
        """
        self._worker: Any = None
        self._log = DeviceLog(device_logs, device)

    def ready(self) -> None:
        """Answers once the process is up."""

    def lead(
        self, job: TrainJob, method: AnyMethod, data_path: str, policy_version: int, probes: Mapping[str, int]
    ) -> dict[str, Any]:
        """Reads the rows of a stage and begins it.

        Args:
            job: The stage.
            method: Its training method.
            data_path: Its table.
            policy_version: The version that it makes.
            probes: Number and length of the probes.

        Returns:
            The number of steps, and the seconds that each pretends to take.
        """
        from dataclasses import replace

        from still_ray.sampler.fake import fake_logprobs
        from still_ray.trainer.fake import FakeTrainerWorker, fake_probes

        rows = _rows(data_path, method)
        self._policy_version = policy_version
        self._job = replace(job, probe_sequences=fake_probes(rows, **probes))
        self._worker = FakeTrainerWorker(fake_logprobs, policy_version=policy_version)
        self._worker.begin(self._job, rows)
        return {"steps": self._worker.total_steps, "step_s": self._worker.step_s}

    def follow(self, data_path: str) -> None:
        """Sees whether the table is where this rank is, as it must be on shared storage."""
        Path(data_path).stat()

    def step(self, seconds: float) -> TrainProgress | None:
        """Pretends to make one step."""
        with self._log.busy(TRAINING):
            time.sleep(seconds)
            return self._worker.step() if self._worker is not None else None

    def finish(self) -> None:
        """Leaves the folder and, last, its policy record."""
        from still_ray.store.policy import PolicyRecord, write_policy_record

        with self._log.busy(TRAINING):
            outcome = self._worker.finish()
        record = PolicyRecord(
            policy_version=self._policy_version, stage=self._job.name, result=outcome.result, probes=outcome.probes
        )
        write_policy_record(self._job.output_dir, record)

    def publish(self, transport: str) -> PublishedWeights | None:
        """What a transport offers in the place of weights, which a fake sampler reads and forgets."""
        with self._log.busy(SYNC):
            return transport_named(transport).pretend(self._policy_version, ray.put)


def _rows(data_path: str, method: AnyMethod) -> list[tuple[str, ...]]:
    """The texts of the table's rows."""
    from still_ray.location import location
    from still_ray.store.tables import iter_table

    rows: Iterable[Any] = iter_table(location(data_path), method.record)
    return [method.texts(row) for row in rows]
