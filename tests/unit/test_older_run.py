"""A run directory of an earlier release: it resumes, and is read by status and report, under today's code."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from still_ray.algo.stages import advance, plan_stages
from still_ray.cli.preflight.resume import check_same_recipe, is_complete, untrained, with_kept_format
from still_ray.config import Recipe, dump_recipe
from still_ray.config.loading import recipe_from
from still_ray.driver.rounds import Driver
from still_ray.facts import TrainFacts
from still_ray.formats.demonstrations import read_demonstrations
from still_ray.formats.problems import read_problems
from still_ray.report.facts import Inputs, read_run
from still_ray.store.atomic import write_text
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore, read_state, read_summary
from still_ray.types import SyncReport, TrainResult, TrajectoryKey, Verdict
from tests.fakes import BACKBONE, Disk, FakeData, FakeExplorer, FakeSync, FakeWorld, mixed_skill

DATA = Path(__file__).resolve().parents[1] / "data"
OLDER = DATA / "run-c998a02"
UNUSED = TrainResult(steps=0, num_examples=0, num_skipped=0, num_tokens=0, final_loss=0.0, seconds=0.0)
KEPT = ("000-backbone", "000-imitate", "001-explore", "001-sft")


class Sync(FakeSync):
    """Checkpoints are those of the run directory."""

    def sync(self, policy_version: int, checkpoint: str) -> SyncReport:
        assert policy_version == 0 or checkpoint in self._disk.checkpoints or Path(checkpoint).is_dir()
        self._disk.checkpoints.setdefault(checkpoint, UNUSED)
        return super().sync(policy_version, checkpoint)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    shutil.copytree(OLDER, tmp_path / "run")
    return RunDirectory(str(tmp_path / "run"))


@pytest.fixture
def recipe() -> Recipe:
    """The recipe as that release's user wrote it, read by today's schema."""
    text = re.search(r"```yaml\n(.*?)```", (DATA / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    return recipe_from(yaml.safe_load(text[1]), (), origin="README.md")


def files(directory: RunDirectory) -> dict[str, str]:
    root = Path(str(directory.root))
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_it_is_a_run_of_the_recipe_that_its_user_wrote(directory: RunDirectory, recipe: Recipe) -> None:
    kept = with_kept_format(directory, recipe)
    assert kept.prompt.format == "markers"  # the only one when it began, whatever its chat template tells today
    check_same_recipe(directory, kept)
    write_text(directory.recipe, dump_recipe(kept, {}))  # as every start of a run does
    assert with_kept_format(directory, recipe) == kept
    completed = RunStore(directory, plan_stages(recipe)).completed()
    assert tuple(completed) == KEPT
    assert [stage.name for stage in untrained(directory, recipe)] == ["002-dpo"]
    assert not is_complete(directory, recipe)
    trained = completed["001-sft"]
    assert isinstance(trained, TrainFacts)
    assert (trained.kind, trained.policy_version, trained.data["num_demonstrations"]) == ("sft", 2, 12)
    assert (trained.training.share_changed, trained.sync.weak, trained.sync.num_digests) == (None, False, 0)


def test_it_resumes_where_it_was_and_touches_nothing_that_is_complete(directory: RunDirectory, recipe: Recipe) -> None:
    before, stored = files(directory), RunStore(directory, plan_stages(recipe)).explored(2)
    assert len(stored) == 5
    world = FakeWorld(recipe, disk=Disk(data=defaultdict(tuple)))  # the rows are in the run directory
    data = FakeData(
        problems=tuple(read_problems(str(OLDER / "world" / "problems.jsonl"))),
        shown=tuple(read_demonstrations(str(OLDER / "world" / "demonstrations.jsonl"))),
    )
    sync, store = Sync(world.disk), RunStore(directory, plan_stages(recipe))
    explorer = FakeExplorer(data, sync, mixed_skill, num_test=4)
    ports = replace(world.ports(), store=store, data=data, sync=sync, explorer=explorer)
    Driver(recipe, ports, backbone=BACKBONE).run()
    assert advance(plan_stages(recipe), store.completed()) is None
    after = files(directory)
    kept = [name for name in before if name.startswith(tuple(f"rounds/{stage}/" for stage in KEPT))]
    assert len(kept) > 20 and {name: after[name] for name in kept} == {name: before[name] for name in kept}
    candidates = {row.key: row.verdict for row in store.candidates([2])}
    assert len(candidates) == 12 and all(candidates[key] is verdict for key, verdict in stored.items())
    assert {title.partition(" ")[0] for title in world.progress.titles} == {"002-explore", "002-dpo"}


def test_status_and_report_read_it(directory: RunDirectory) -> None:
    state = read_state(directory)
    assert state is not None and (state.stage, state.is_complete) == ("002-explore", False)
    assert [line.name for line in read_summary(directory)] == ["000-backbone", "000-imitate", "001-sft"]
    facts = read_run(directory, Inputs())
    assert [stage.name for stage in facts.stages if stage.facts] == list(KEPT)
    assert {number: len(rows) for number, rows in facts.rounds.items()} == {1: 12, 2: 5}
    assert [row.demonstration != "" for row in facts.stages[3].sources] == [True] * 12
    assert not facts.notes
    rows = {TrajectoryKey(row.round, row.problem_id, row.sample_index): row.verdict for row in facts.rounds[2]}
    assert set(rows.values()) <= {verdict.value for verdict in Verdict}
