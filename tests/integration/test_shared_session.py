"""Two runs on the same actors: Ray is real, engines and trainers are the fakes of a rehearsal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from still_ray.actors.rehearsal.launcher import RehearsalLauncher, Script
from still_ray.actors.session import RunInputs, Session
from still_ray.algo.ablation.sharing import AblationRun, stage_digests
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.cli.ablate.command import PreparedRun, carry_out
from still_ray.cli.preflight.files import check_files, with_world
from still_ray.cli.preflight.inputs import named_inputs
from still_ray.cli.preflight.models import resolve_backbone
from still_ray.cli.preflight.resume import FREE_KEYS
from still_ray.config import Recipe
from still_ray.config.loading import recipe_from
from still_ray.formats.problems import read_problems
from still_ray.store.run_directory import RunDirectory
from tests.fakes import FakeProgress
from tests.runs import json_of, small_recipe

pytestmark = pytest.mark.integration

WORLD = {"tiny_world": {"num_demonstrations": 20, "num_problems": 40, "num_test": 10}}
LONG = {"model": {"path": "builtin:tiny", "max_length": 8192}, "data": WORLD, "verifier": {"processes_per_worker": 2}}
ROUNDS: dict[str, list[dict[str, Any]]] = {"sft": [{"method": "sft"}], "dpo": [{"method": "dpo"}]}


def recipe_of(name: str) -> Recipe:
    explore = {"samples_per_problem": 4, "max_tokens": 1024, "num_problems": 20}
    raw = small_recipe(**LONG, rounds=ROUNDS[name], explore=explore, evaluate={"max_tokens": 1024})
    return recipe_from(raw, (), origin="test")


def prepared(root: Path, name: str) -> PreparedRun:
    run = AblationRun(name=name, seed=7, recipe=recipe_of(name))
    directory = RunDirectory(root / name)
    directory.create()
    resolved = with_world(run.recipe, directory)
    return PreparedRun(
        run=run,
        directory=directory,
        recipe=resolved,
        files=check_files(resolved.data, seed=resolved.seed),
        digests=stage_digests(run.recipe, named_inputs(run.recipe), free=FREE_KEYS),
    )


def test_the_next_run_starts_from_its_own_weights_on_the_actors_of_the_last(tmp_path: Path) -> None:
    """Both runs have a version 2, which are two models: a replica must not take the one it serves for the other."""
    runs = [prepared(tmp_path, name) for name in ("sft", "dpo")]
    answers = {
        problem.question: problem.answer
        for path in (runs[0].recipe.data.problems, runs[0].recipe.data.test)
        for problem in read_problems(str(path))
    }
    launchers = []

    def launcher_of(recipe: ResolvedRecipe) -> RehearsalLauncher:
        launchers.append(RehearsalLauncher(recipe, Script(answers=answers, rebuilt=lambda: None)))
        return launchers[-1]

    progress = FakeProgress()
    with Session(RunDirectory(tmp_path), name="both", launcher_of=launcher_of) as session:

        def perform(one: PreparedRun) -> None:
            inputs = RunInputs(
                recipe=one.recipe,
                backbone=resolve_backbone("builtin:tiny"),
                data=one.files,
                test_ids=one.files.test.ids,
            )
            session.run(inputs, one.directory, progress)

        carry_out(runs, perform, note=progress.noted)
    assert len(launchers) == 1
    assert "run 2 of 2: dpo-seed7; 000-backbone, 000-imitate, 001-explore from sft-seed7" in progress.notes
    for name in ("sft", "dpo"):
        manifest = json_of(tmp_path / name / "rounds" / f"001-{name}" / "manifest.json")
        assert manifest["sync"]["policy_version"] == 2
        assert (manifest["sync"]["transport"], manifest["sync"]["num_replicas"]) == ("object_store", 2)
    assert json_of(tmp_path / "dpo" / "state.json")["status"] == "complete"
    assert [line["policy_version"] for line in json_of(tmp_path / "dpo" / "summary.json")["stages"]] == [0, 1, 2]
