"""Runs that share stages: the real driver and real run directories over fakes that sample and train."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from still_ray.algo.ablation.sharing import AblationRun, InputDigests, stage_digests
from still_ray.algo.stages import plan_stages
from still_ray.cli.ablate.command import PreparedRun, carry_out
from still_ray.cli.preflight.resume import FREE_KEYS
from still_ray.config import Recipe
from still_ray.driver.ports import Progress, TrainOrder
from still_ray.driver.rounds import Driver
from still_ray.facts import ADOPTED, Adoption
from still_ray.location import Location, location
from still_ray.store import stage_reuse as adoption
from still_ray.store.atomic import read_json, write_text
from still_ray.store.manifest import read_manifest
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore, read_state
from still_ray.store.stage_reuse import reuse_stage
from still_ray.types import RunError, TrainResult
from tests.fakes import BACKBONE, Crashed, Disk, FakeWorld, Fuse, make_recipe, make_trajectory, stage_facts

INPUTS = InputDigests(model="m", template="t", demonstrations="d", problems="p", test="e")
EXPLORE = {"samples_per_problem": 3, "skip_solved": False, "num_problems": 5}
VARIATIONS: dict[str, list[dict[str, Any]]] = {
    "long": [{}, {"sft": {"select": {"max_examples": 3}}}],
    "pairs": [{"method": "dpo"}],
    "capped": [{}, {"sft": {"select": {"max_examples": 1}}}],
}
STAGES = {
    "long": ["000-backbone", "000-imitate", "001-explore", "001-sft", "002-explore", "002-sft"],
    "pairs": ["001-dpo"],
    "capped": ["002-sft"],
}
"""What each variation has to compute when they are done in this order."""


class OnDisk(dict[str, TrainResult]):
    """Checkpoints that are there, whoever trained them."""

    def __contains__(self, path: object) -> bool:
        return (location(str(path)) / "weights").exists()


@dataclass
class WritingTrainer:
    """Writes a checkpoint that follows from the order; one that is there is never trained again."""

    trained: list[str] = field(default_factory=list)

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        weights = location(order.checkpoint) / "weights"
        if not weights.exists():
            data = hashlib.sha256(location(order.data_path).read_bytes()).hexdigest()
            start = location(order.init_model) / "weights"
            origin = start.read_text() if start.exists() else order.init_model
            made = hashlib.sha256(f"{origin} {data} {order.seed} {order.settings}".encode()).hexdigest()
            write_text(weights, made)
            self.trained.append(order.checkpoint)
        return TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.5, seconds=1.0)


@dataclass
class Laboratory:
    """An ablation on a disk; each `run` is a new process.

    Attributes:
        root: Where the runs are.
        names: The variations, in order.
        trainer: Remembers what was trained by any of the processes.
        computed: Every stage that a process finished, by run.
    """

    root: Path
    names: Iterable[str] = tuple(VARIATIONS)
    seeds: tuple[int, ...] = (1, 2)
    trainer: WritingTrainer = field(default_factory=WritingTrainer)
    computed: Counter[str] = field(default_factory=Counter)

    def prepared(self) -> list[PreparedRun]:
        return [self._prepared(name, seed) for seed in self.seeds for name in self.names]

    def directory(self, run: str) -> RunDirectory:
        return RunDirectory(self.root / "runs" / run)

    def run(self, fuse: Fuse | None = None) -> None:
        carry_out(self.prepared(), lambda one: self._perform(one, fuse), note=lambda text: None)

    def _prepared(self, name: str, seed: int) -> PreparedRun:
        recipe = make_recipe(rounds=VARIATIONS[name], explore=EXPLORE, seed=seed)
        run = AblationRun(name=name, seed=seed, recipe=recipe)
        directory = self.directory(run.id)
        directory.create()
        digests = stage_digests(recipe, INPUTS, free=FREE_KEYS)
        return PreparedRun(run=run, directory=directory, recipe=recipe, files=cast(Any, None), digests=digests)

    def _perform(self, one: PreparedRun, fuse: Fuse | None) -> None:
        store = RunStore(one.directory, one.run.stages)
        before = set(store.completed())
        world = FakeWorld(one.recipe, disk=Disk(checkpoints=OnDisk()))
        ports = replace(world.ports(fuse), store=store, trainer=self.trainer)
        try:
            Driver(one.recipe, ports, backbone=BACKBONE).run()
        finally:
            self.computed.update(f"{one.run.id}/{name}" for name in set(store.completed()) - before)

    def result(self) -> dict[str, Any]:
        """Everything that the runs hold, without clocks and without who computed it."""
        return {one.run.id: content(one.directory, one.recipe) for one in self.prepared()}


def content(directory: RunDirectory, recipe: Recipe) -> dict[str, Any]:
    plan = plan_stages(recipe)
    manifests: dict[str, dict[str, Any]] = {
        stage.name: read_json(directory.stage(stage) / "manifest.json") if read_manifest(directory.stage(stage)) else {}
        for stage in plan
    }
    files = {
        str(path.relative_to(str(directory.root))): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(str(directory.root)).rglob("*"))
        if path.is_file() and path.name in ("weights", "training_set.parquet", "pairs.parquet", "all.parquet")
    }
    clockless = {
        name: {key: value for key, value in manifest.items() if key not in ("seconds", "files", ADOPTED)}
        for name, manifest in manifests.items()
    }
    state = read_state(directory)
    return {"facts": clockless, "files": files, "state": state and state.status}


def test_every_stage_that_runs_have_in_common_is_computed_once(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path)
    lab.run()
    expected = {f"{name}-seed{seed}/{stage}" for name, stages in STAGES.items() for stage in stages for seed in (1, 2)}
    expected.remove("long-seed2/000-backbone")  # a greedy evaluation on the same problems, whatever the seed
    assert set(lab.computed) == expected
    assert set(lab.computed.values()) == {1}
    assert len(lab.trainer.trained) == len(set(lab.trainer.trained)) == 2 * 5


def test_shared_work_gives_the_result_of_each_run_alone(tmp_path: Path) -> None:
    together = Laboratory(tmp_path / "together", seeds=(1,))
    together.run()
    for name in VARIATIONS:
        alone = Laboratory(tmp_path / name, names=[name], seeds=(1,))
        alone.run()
        assert alone.result()[f"{name}-seed1"] == together.result()[f"{name}-seed1"]
        assert together.result()[f"{name}-seed1"]["state"] == "complete"


def test_a_stage_taken_over_says_whose_it_is_and_costs_no_time(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path, seeds=(1,))
    lab.run()
    long, capped = (lab.directory(f"{name}-seed1") for name in ("long", "capped"))
    for stage in plan_stages(lab.prepared()[0].recipe)[:-1]:
        theirs, ours = (read_json(one.stage(stage) / "manifest.json") for one in (long, capped))
        assert ours[ADOPTED] == {"from": "long-seed1", "seconds": theirs["seconds"]}
        assert ours["seconds"] == 0.0
        assert ADOPTED not in theirs
    weights = "rounds/001-sft/checkpoint/weights"
    assert (Path(str(long.root)) / weights).samefile(Path(str(capped.root)) / weights)
    seconds = {line["name"]: line["seconds"] for line in read_json(capped.summary)["stages"]}
    assert [name for name, taken in seconds.items() if taken] in ([], ["002-sft"])


def test_an_ablation_killed_anywhere_resumes_without_doing_anything_twice(tmp_path: Path) -> None:
    whole = Laboratory(tmp_path / "whole", seeds=(1,))
    fuse = Fuse()
    whole.run(fuse)
    num_moments = len(fuse.moments)
    for moment in range(7, num_moments, num_moments // 5):
        lab = Laboratory(tmp_path / str(moment), seeds=(1,))
        with pytest.raises(Crashed):
            lab.run(Fuse(blows_at=moment))
        lab.run()
        assert lab.result() == whole.result()
        assert set(lab.computed.values()) == {1}
        assert len(lab.trainer.trained) == len(set(lab.trainer.trained)) == 5


def test_a_failure_names_the_run_that_it_came_from(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path, seeds=(1,))

    def perform(one: PreparedRun) -> None:
        if one.run.name == "pairs":
            raise RunError("replica-0 died")
        lab._perform(one, None)

    with pytest.raises(RunError, match=r"^pairs-seed1: replica-0 died$"):
        carry_out(lab.prepared(), perform, note=lambda text: None)


def test_a_crash_while_a_stage_is_taken_over_leaves_it_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Laboratory(tmp_path, seeds=(1,))

    def crash(path: Location, value: Any) -> None:
        raise Crashed(str(path))

    with monkeypatch.context() as patch:
        patch.setattr(adoption, "store_manifest", crash)
        with pytest.raises(Crashed):
            lab.run()
    assert RunStore(lab.directory("pairs-seed1"), lab.prepared()[1].run.stages).completed() == {}
    lab.run()
    assert {run: stages for run, stages in lab.computed.items() if stages > 1} == {}
    assert lab.result()["pairs-seed1"]["state"] == "complete"


def test_a_damaged_stage_is_not_taken_over_but_done_again(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path, names=["long"], seeds=(1,))
    lab.run()
    weights = tmp_path / "runs" / "long-seed1" / "rounds" / "000-imitate" / "checkpoint" / "weights"
    weights.write_text("damaged")
    source, target = lab.directory("long-seed1"), RunDirectory(tmp_path / "other")
    imitate = lab.prepared()[0].run.stages[1]
    with pytest.raises(RunError, match="000-imitate: is not complete"):
        reuse_stage(source, target, imitate, origin="long-seed1")
    assert not target.stage(imitate).exists()


def test_a_round_is_taken_over_with_its_trajectories_on_disks_and_in_object_stores(place: Location) -> None:
    plan = plan_stages(make_recipe(rounds=[{}]))
    explore = plan[2]
    source, target = RunDirectory(place / "a"), RunDirectory(place / "b")
    store = RunStore(source, plan)
    store.begin(explore, 1)
    store.commit(1, [make_trajectory(f"p{number}") for number in range(3)])
    store.close_round(1)
    write_text(source.stage(explore) / "notes" / "one.txt", "kept")
    store.finish(explore, stage_facts(explore, seconds=12.5))
    write_text(target.stage(explore) / "left-behind.txt", "of an interrupted stage")
    adopted = reuse_stage(source, target, explore, origin="a-seed1")
    assert adopted.facts.adopted == Adoption(origin="a-seed1", seconds=12.5)
    assert (target.stage(explore) / "notes" / "one.txt").read_text() == "kept"
    assert not (target.stage(explore) / "left-behind.txt").exists()
    taken = RunStore(target, plan)
    assert taken.explored(1) == store.explored(1)
    assert len(taken.explored(1)) == 3
    again = reuse_stage(target, RunDirectory(place / "c"), explore, origin="b-seed1")
    assert again.facts.adopted == Adoption(origin="a-seed1", seconds=12.5)
