"""Commands that are entrypoints of a job: where their results may go, and which recipe is the same recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from still_ray.cli.evaluate.command import evaluate_models
from still_ray.cli.evaluate.request import EvaluateOptions
from still_ray.cli.preflight.models import BACKBONE
from still_ray.cli.preflight.ray_job import check_kept, shipped_path
from still_ray.cli.run import run_recipe
from still_ray.config import dump_recipe, load_recipe
from still_ray.location import location
from still_ray.tiny_world.arithmetic import write_world
from still_ray.types import InputError


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """Where a Ray session unpacks what jobs ship."""
    return tmp_path / "ray" / "session_1" / "runtime_resources" / "working_dir_files"


def unpacked(session: Path, package: str, *, template: str = "template.txt") -> Path:
    """What a job ships, unpacked; returns its recipe."""
    jobs = session / package / "jobs"
    jobs.mkdir(parents=True)
    (jobs / template).write_text("Think.\n{question}")
    recipe = {
        "model": {"path": "builtin:tiny", "max_length": 256},
        "prompt": {"template": template},
        "data": {"tiny_world": {}},
        "explore": {"max_tokens": 200},
        "evaluate": {"max_tokens": 200},
        "rounds": [{}],
    }
    (jobs / "demo.yaml").write_text(yaml.safe_dump(recipe))
    return jobs / "demo.yaml"


def test_a_relative_run_directory_in_a_job_that_ships_its_working_directory_is_refused(
    session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = unpacked(session, "_ray_pkg_1")
    monkeypatch.chdir(session / "_ray_pkg_1")
    with pytest.raises(InputError, match=r"_ray_pkg_1/runs/demo: .*Ray deletes; give --run-dir .*/shared/demo"):
        run_recipe(recipe, "runs/demo", [])
    assert not (session / "_ray_pkg_1" / "runs").exists()


def test_results_of_evaluate_are_kept_too(session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_world(tmp_path, 0, num_demonstrations=1, num_problems=1, num_test=2)
    folder = session / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    benchmark = str(tmp_path / "test.jsonl")
    with pytest.raises(InputError, match=r"evaluations/backbone/test: .*give --output"):
        evaluate_models(EvaluateOptions(models=(str(BACKBONE),), benchmarks=(benchmark,)))


def test_other_places_are_fine(session: Path, tmp_path: Path) -> None:
    for place in (str(tmp_path / "runs"), "s3://bucket/working_dir_files/runs", str(session.parent / "runs")):
        check_kept(location(place), option="--run-dir")


def test_a_recipe_is_the_same_wherever_ray_unpacks_it(session: Path, tmp_path: Path) -> None:
    """A changed working tree is shipped under another name, and so are all paths in it."""
    first, second = unpacked(session, "_ray_pkg_1"), unpacked(session, "_ray_pkg_2")
    other = unpacked(session, "_ray_pkg_3", template="other.txt")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text(dump_recipe(load_recipe(first), {}))
    assert load_recipe(first) != load_recipe(second)

    with pytest.raises(InputError, match=r"another recipe \(prompt.template differs\)"):
        run_recipe(other, str(run_dir), [])
    with pytest.raises(InputError, match=r"another recipe \(seed differs\)"):
        run_recipe(second, str(run_dir), ["seed=2"])


@pytest.mark.parametrize("path", ["/data/problems.jsonl", "/x/working_dir_files/a", "relative", "s3://bucket/a"])
def test_a_path_outside_of_a_job_is_itself(path: str) -> None:
    assert shipped_path(path) == path
