"""`rehearse` before and after Ray: its rows, its refusals, and the checks of a run directory."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from still_ray.algo.rehearsal.faults import Fault, FaultKind
from still_ray.algo.rehearsal.held import Held, Observation
from still_ray.algo.rehearsal.sizes import Sizes, cut
from still_ray.algo.stages import plan_stages
from still_ray.cli.main import app
from still_ray.cli.rehearse.checks import round_checks, survivals
from still_ray.cli.rehearse.data import write_data
from still_ray.config import Recipe
from still_ray.formats.demonstrations import read_demonstrations
from still_ray.formats.problems import read_problems, write_problems
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import Problem, Verdict
from tests.fakes import make_problem, make_recipe, make_trajectory

ROOT = Path(__file__).resolve().parents[2]
DEMO = str(ROOT / "jobs" / "demo.yaml")
SIZES = Sizes(problems=3, samples=2, test=4, demonstrations=5)


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def small_recipe(**sections: Any) -> Recipe:
    recipe = make_recipe(**{"rounds": [{"method": "sft"}, {"method": "sft"}], **sections})
    return cut(recipe, SIZES, has_gpus=False)[0]


def written_problems(folder: Path, problems: list[Problem]) -> str:
    path = folder / "given.jsonl"
    write_problems(path, problems)
    return str(path)


# -- rows -------------------------------------------------------------------------------------------------------------


def test_rows_of_the_recipes_files_are_taken_where_they_are_and_others_are_generated(tmp_path: Path) -> None:
    given = [make_problem(f"p{i}", question=f"What is {i}?", level=i) for i in range(20)]
    paths = {"demonstrations": "/nowhere/d.jsonl", "problems": written_problems(tmp_path, given), "test": "/nowhere/t"}
    recipe = small_recipe(data=paths, explore={"levels": [10, 19]})
    data = write_data(recipe, RunDirectory(tmp_path / "run"), SIZES)
    explored = list(read_problems(str(data.recipe.data.problems)))
    assert len(explored) == 6, "three for each of two rounds"
    assert {problem.id for problem in explored} <= {f"p{i}" for i in range(10, 20)}, "of the levels that are explored"
    assert len(list(read_problems(str(data.recipe.data.test)))) == 4
    assert data.answers[explored[0].question] == explored[0].answer
    assert "data.demonstrations: 5 rows of the tiny world; /nowhere/d.jsonl is not here" in data.notes
    assert f"data.problems: 6 rows of {paths['problems']}" in data.notes


def test_a_source_of_a_small_weight_still_gives_a_row_of_few(tmp_path: Path) -> None:
    sources = [{"path": "/nowhere/a.jsonl", "weight": 0.01}, {"path": "/nowhere/b.jsonl", "weight": 2.0}]
    recipe = small_recipe(data={"demonstrations": sources, "problems": "/nowhere/p.jsonl", "test": "/nowhere/t.jsonl"})
    kept = write_data(recipe, RunDirectory(tmp_path / "run"), SIZES).recipe.data.sources
    rows = [len(list(read_demonstrations(str(source.path)))) for source in kept]
    assert [number * source.weight for number, source in zip(rows, kept, strict=True)] == [1, rows[1] * 2.0]


def test_levels_of_other_problems_do_not_choose_among_generated_ones(tmp_path: Path) -> None:
    data = write_data(small_recipe(explore={"levels": [90, 99]}), RunDirectory(tmp_path / "run"), SIZES)
    assert all(explore.levels is None for _, explore in data.recipe.explorations)
    assert len(list(read_problems(str(data.recipe.data.problems)))) == 6


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--run-dir", "s3://bucket/run"], "a rehearsal writes to this machine alone"),
        (["--cluster", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["--cluster", DEMO, "--nodes", "2"], "--cluster describes the machines"),
        (["--cluster", DEMO], "neither a cluster-launcher file"),
        (["--cpus-per-node", "1", "--set", "trainer.cpus_per_worker=2"], "one trainer asks for 0 GPUs and 2 CPUs"),
    ],
)
def test_wrong_options_are_one_line_and_status_two(options: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["rehearse", DEMO, *options])
    assert result.exit_code == 2, result.output
    assert said in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("recipe.yaml", "rehearsal: true\n", "holds an earlier rehearsal"),
        ("recipe.yaml", "name: x\n", "holds a run"),
        ("notes.txt", "mine", "is not empty"),
    ],
)
def test_a_rehearsal_starts_in_an_empty_folder(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    result = CliRunner().invoke(app, ["rehearse", DEMO, "--run-dir", str(tmp_path)])
    assert result.exit_code == 2 and said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing was touched"


# -- checks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def explored(tmp_path: Path) -> tuple[Recipe, RunDirectory]:
    """One round of three problems with two samples each, all stored."""
    problems = [make_problem(f"p{i}") for i in range(3)]
    data = {"demonstrations": "/d", "problems": written_problems(tmp_path, problems), "test": "/t"}
    recipe = small_recipe(rounds=[{"method": "sft"}], data=data)
    directory = RunDirectory(tmp_path / "run")
    store = RunStore(directory, plan_stages(recipe))
    store.commit(1, [make_trajectory(f"p{i}", sample) for i in range(3) for sample in range(2)])
    store.close_round(1)
    return recipe, directory


def first_check(recipe: Recipe, directory: RunDirectory) -> tuple[bool, str]:
    (check,) = round_checks(recipe, RunStore(directory, plan_stages(recipe)))
    return check.holds, check.detail


def test_a_whole_round_holds(explored: tuple[Recipe, RunDirectory]) -> None:
    assert first_check(*explored) == (True, "6 rollouts of 3 problems")


def test_a_sample_that_is_stored_twice_is_found(explored: tuple[Recipe, RunDirectory]) -> None:
    recipe, directory = explored
    folder = Path(str(directory.trajectories(1)))
    whole = (folder / "all.parquet").read_bytes()
    assert RunStore(directory, plan_stages(recipe)).explored(1)[make_trajectory("p0", 0).key] is Verdict.CORRECT
    shutil.rmtree(folder)
    folder.mkdir()
    for name in ("part-00000.parquet", "part-00001.parquet"):
        (folder / name).write_bytes(whole)
    holds, detail = first_check(recipe, directory)
    assert not holds and "6 twice" in detail


def test_a_sample_that_is_missing_and_one_of_a_strange_problem_are_found(tmp_path: Path) -> None:
    problems = [make_problem(f"p{i}") for i in range(3)]
    data = {"demonstrations": "/d", "problems": written_problems(tmp_path, problems), "test": "/t"}
    recipe = small_recipe(rounds=[{"method": "sft"}], data=data)
    directory = RunDirectory(tmp_path / "run")
    store = RunStore(directory, plan_stages(recipe))
    store.commit(1, [make_trajectory("p0", 0), make_trajectory("p1", 0), make_trajectory("p1", 1)])
    store.commit(1, [make_trajectory("p2", 0), make_trajectory("p2", 1), make_trajectory("p9", 0)])
    store.close_round(1)
    holds, detail = first_check(recipe, directory)
    assert not holds and "1 incomplete, e.g. p0" in detail and "1 of no chosen problem" in detail


# -- deaths -----------------------------------------------------------------------------------------------------------


def survived(placement: str, *, seen: list[str], replaced: dict[str, str], stage: str = "001-explore") -> bool:
    """Whether the death of replica-0 beside replica-1 counts as survived, by who was seen later."""
    from still_ray.actors.rehearsal.fault_injector import Death

    held = tuple(Held(role="sampler", name=name, node_id="a", cpus=1, gpus=1) for name in seen)
    fault = Fault(kind=FaultKind.REPLICA, stage="001-explore")
    names = frozenset({"replica-0", "replica-1"})
    death = Death(fault=fault, victim="replica-0", lost=("replica-0",), num_observations=0, names=names)
    later = (Observation(stage=stage, activity="explored", held=held, machines={}),)
    rehearsed: Any = SimpleNamespace(deaths=(death,), observations=later, replaced=replaced, num_rebuilt=0)
    ((_, holds, _),) = survivals(make_recipe(placement=placement), rehearsed)
    return holds


def test_a_replica_that_died_has_to_be_replaced() -> None:
    launched = {"replica-0": "replica-2"}
    for placement in ("dedicated", "shared"):
        assert survived(placement, seen=["replica-1", "replica-2"], replaced=launched)
        assert not survived(placement, seen=["replica-1"], replaced={})
    assert not survived("dedicated", seen=["replica-1"], replaced=launched), "it never came up"


def test_where_replicas_end_with_the_round_the_others_may_be_done_before_the_new_one_is_up() -> None:
    launched = {"replica-0": "replica-2"}
    assert survived("shared", seen=["replica-1"], replaced=launched)
    assert not survived("shared", seen=[], replaced=launched), "nobody was left to end the round"
