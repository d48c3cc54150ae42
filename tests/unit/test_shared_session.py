"""What is forgotten between two runs on the same actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import ray

from still_ray.actors.monitoring.run_monitor import RunMonitor
from still_ray.actors.monitoring.status_board import RunStatus
from still_ray.actors.pool.actor_pool import ActorPool, NoProgressError, PoolCounts
from still_ray.actors.session import forget_version
from still_ray.actors.training.live_trainer import LiveTrainer, SessionTrainer
from still_ray.algo.devices import Devices
from still_ray.algo.placement import resolve
from still_ray.algo.stages import plan_stages
from still_ray.driver.ports import Progress, TrainOrder
from still_ray.store.policy import PolicyRecord, write_policy_record
from still_ray.types import RunError, TrainResult
from still_ray.weight_sync.transports.exchange import PublishedWeights
from tests.fakes import FakeProgress, make_recipe

RESULT = TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.5, seconds=1.0)
HELD = PublishedWeights(policy_version=2, num_bytes=8)


class Group:
    """A trainer group that still holds version 2 of the run before."""

    def __init__(self) -> None:
        self.is_closed = False

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        return RESULT

    def published(self) -> PublishedWeights:
        return HELD

    def close(self) -> None:
        self.is_closed = True


def order(folder: Path) -> TrainOrder:
    recipe = make_recipe(rounds=[{}])
    return TrainOrder(
        stage=plan_stages(recipe)[3],
        method="sft",
        settings=recipe.step(1, "sft").settings,
        init_model="backbone",
        data_path="rows",
        checkpoint=str(folder / "checkpoint"),
        seed=1,
    )


def test_weights_of_the_run_before_are_not_offered(tmp_path: Path) -> None:
    group = Group()
    trainer = SessionTrainer(lambda suffix, devices: group, each_stage=False)
    for _ in range(2):
        trainer.begin_run()
        assert trainer.published() is None
        trainer.train(order(tmp_path), progress=FakeProgress())
        assert trainer.published() == HELD
        assert not group.is_closed


def test_a_checkpoint_that_was_there_already_does_not_make_them_this_runs(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    record = PolicyRecord(policy_version=2, stage="001-sft", result=RESULT, probes=())
    write_policy_record(str(tmp_path / "checkpoint"), record)
    trainer = SessionTrainer(lambda suffix, devices: Group(), each_stage=False)
    trainer.begin_run()
    trainer.train(order(tmp_path), progress=FakeProgress())
    assert trainer.published() is None


def test_one_group_goes_on_and_where_devices_are_shared_each_stage_has_its_own(tmp_path: Path) -> None:
    launched: list[tuple[str, Group]] = []

    def launch(suffix: str, devices: Devices) -> LiveTrainer:
        launched.append((suffix, Group()))
        return launched[-1][1]

    kept = SessionTrainer(launch, each_stage=False)
    shared = SessionTrainer(launch, each_stage=True, make_room=lambda: launched.append(("room", Group())))
    for trainer in (kept, shared):
        for _ in range(2):
            trainer.begin_run()
            trainer.train(order(tmp_path), progress=FakeProgress())
    suffixes = [suffix for suffix, _ in launched]
    assert suffixes == ["", *(["room", "-001-sft"] * 2)], "devices are free before the group asks for them"
    assert [group.is_closed for suffix, group in launched if suffix != "room"] == [False, True, True]
    assert kept.published() == HELD and shared.published() is None
    kept.close()
    assert launched[0][1].is_closed


class Calls:
    """A pool of replicas and a weight sync that remember what was asked of them."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def sync(self, policy_version: int, checkpoint: str) -> None:
        self.made.append((policy_version, checkpoint))

    def release(self) -> None:
        self.made.append("release")


@pytest.mark.parametrize("placement", ["dedicated", "shared"])
@pytest.mark.parametrize("backbone", ["folder", "Qwen/Qwen2.5-32B-Instruct", "s3://bucket/model"])
def test_replicas_go_back_to_the_backbone_or_end(tmp_path: Path, placement: str, backbone: str) -> None:
    """A hub id names no folder that a running engine could load from, and shared samplers end anyway."""
    model = str(tmp_path) if backbone == "folder" else backbone
    calls = Calls()
    recipe = resolve(make_recipe(placement=placement), has_gpus=False)
    forget_version(recipe, model, cast(Any, calls), cast(Any, calls))
    in_place = placement == "dedicated" and "Qwen" not in model
    assert calls.made == ([(0, model)] if in_place else ["release"])


class Actor:
    """An actor that is never up."""

    @property
    def ready(self) -> Actor:
        return self

    def remote(self) -> Actor:
        return self


def test_every_run_has_the_whole_budget_of_replacements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    counts: list[PoolCounts] = []
    pool = ActorPool(
        "replica", lambda name: Actor(), size=1, max_restarts=2, on_change=lambda _, now: counts.append(now)
    )
    pool.resume()

    def lose() -> None:
        pool.replace(pool.members()[0].name, NoProgressError("hangs"))

    for _ in range(2):
        lose()
    pool.begin_run()
    for _ in range(2):
        lose()
    assert counts[-1].num_died == 4
    with pytest.raises(RunError, match=r"max_replica_restarts \(2\) is used up"):
        lose()


def test_no_stage_of_the_run_before_is_on_between_two_runs() -> None:
    posted: list[RunStatus] = []
    status = RunStatus(name="x", run_dir="/runs/x", dashboard="", started_at=1.0, updated_at=1.0)
    watch = RunMonitor(FakeProgress(), status, posted.append)
    watch.stage_started(plan_stages(make_recipe(rounds=[]))[0], "evaluate")
    watch.run_ended()
    assert watch.stage == posted[-1].stage == ""
