"""The command as a whole, with fakes in the place of engines and trainers: files, table, resumption, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from still_ray.cli.ablate import command
from still_ray.cli.ablate.command import AblateOptions, Perform, PreparedRun, ablate
from still_ray.driver.rounds import Driver
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import InputError
from tests.fakes import BACKBONE, Crashed, Disk, FakeWorld
from tests.runs import small_recipe
from tests.s3_server import S3Server
from tests.unit.test_ablation_sharing import OnDisk, WritingTrainer

WORLD = {"tiny_world": {"num_demonstrations": 6, "num_problems": 8, "num_test": 4}}
MATRIX: dict[str, Any] = {
    "name": "little",
    "title": "A little table",
    "recipe": "base.yaml",
    "seeds": [1, 2, 3],
    "runs": {"long": {"rounds": [{}]}, "pairs": {"rounds": [{"method": "dpo"}]}},
    "rows": [
        {"name": "SFT", "run": "long", "stage": "000-imitate", "paper": {"label": "1.1k", "scores": {"AIME": 33.3}}},
        {"name": "one round", "run": "long", "stage": "001-sft"},
        {"name": "DPO", "run": "pairs", "stage": "001-dpo"},
    ],
    "comparisons": [{"first": "one round", "second": "SFT"}],
}


@pytest.fixture
def performed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that had something left to do, in order; fakes do it."""
    done: list[str] = []
    trainer = WritingTrainer()

    def perform(one: PreparedRun) -> None:
        done.append(one.run.id)
        world = FakeWorld(one.recipe, disk=Disk(checkpoints=OnDisk()), num_test=40)
        store = RunStore(one.directory, one.run.stages)
        Driver(one.recipe, replace(world.ports(), store=store, trainer=trainer), backbone=BACKBONE).run()

    @contextmanager
    def performing(root: RunDirectory, name: str) -> Iterator[Perform]:
        yield perform

    monkeypatch.setattr(command, "_performing", performing)
    return done


def options(folder: Path, **changes: Any) -> AblateOptions:
    (folder / "base.yaml").write_text(yaml.safe_dump(small_recipe(data=WORLD)))
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump({**MATRIX, **changes}, sort_keys=False))
    return AblateOptions(matrix=path, run_dir=str(folder / "out"), plan=False, overrides=())


def test_a_matrix_becomes_a_table_and_its_files(
    tmp_path: Path, performed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ablate(options(tmp_path))
    assert performed == [f"{name}-seed{seed}" for seed in (1, 2, 3) for name in ("long", "pairs")]
    printed = capsys.readouterr()
    assert "A little table" in printed.out
    assert "paper: AIME" in printed.out
    assert "run 2 of 6: pairs-seed1; 000-backbone, 000-imitate, 001-explore from long-seed1" in printed.err
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert [row["name"] for row in found["rows"]] == ["SFT", "one round", "DPO"]
    for row in found["rows"]:
        shares = [seed["num_correct"] / seed["num_problems"] for seed in row["seeds"]]
        assert row["accuracy"]["by_seed"] == pytest.approx(shares)
        assert row["accuracy"]["mean"] == pytest.approx(sum(shares) / 3)
    assert {stage["adopted_from"] for stage in found["stages"] if stage["run"] == "pairs-seed2"} == {None, "long-seed2"}
    assert "| SFT | 5 |" in (tmp_path / "out" / "table.md").read_text()


def test_an_ablation_may_lie_in_an_object_store(s3: S3Server, tmp_path: Path, performed: list[str]) -> None:
    place = s3.place("ablation")
    ablate(replace(options(tmp_path, seeds=[1]), run_dir=str(place)))
    assert performed == ["long-seed1", "pairs-seed1"]
    found = place.files()
    assert {"ablation.json", "table.md", "accuracy.svg", "truncation.svg"} <= set(found)
    checkpoints = [f"runs/{run}-seed1/rounds/000-imitate/checkpoint/weights" for run in ("long", "pairs")]
    first, second = ((place / name).read_text() for name in checkpoints)
    assert first == second


def test_the_same_command_again_does_nothing_and_prints_the_same(
    tmp_path: Path, performed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ablate(options(tmp_path))
    first = capsys.readouterr().out
    written = (tmp_path / "out" / "table.md").read_text()
    performed.clear()
    ablate(options(tmp_path))
    again = capsys.readouterr()
    assert performed == []
    assert again.out == first
    assert (tmp_path / "out" / "table.md").read_text() == written
    assert "run 6 of 6: pairs-seed3 is complete already" in again.err


def test_seeds_and_rows_may_be_added_without_losing_anything(tmp_path: Path, performed: list[str]) -> None:
    ablate(options(tmp_path, seeds=[1]))
    performed.clear()
    rows = [*MATRIX["rows"], {"name": "two rounds", "run": "longer", "stage": "002-sft"}]
    ablate(options(tmp_path, seeds=[1, 2], runs={**MATRIX["runs"], "longer": {"rounds": [{}, {}]}}, rows=rows))
    assert performed == ["longer-seed1", "long-seed2", "pairs-seed2", "longer-seed2"]
    adopted = json.loads((tmp_path / "out" / "runs" / "longer-seed1" / "rounds/001-sft/manifest.json").read_text())
    assert adopted["adopted"]["from"] == "long-seed1"


def test_a_run_of_which_everything_is_taken_over_is_concluded_without_any_actor(
    tmp_path: Path, performed: list[str]
) -> None:
    rows = [*MATRIX["rows"], {"name": "again", "run": "short", "stage": "000-imitate"}]
    ablate(options(tmp_path, seeds=[1], runs={**MATRIX["runs"], "short": {"rounds": []}}, rows=rows))
    assert performed == ["long-seed1", "pairs-seed1"]
    summary = json.loads((tmp_path / "out" / "runs" / "short-seed1" / "summary.json").read_text())
    assert [(line["name"], line["seconds"]) for line in summary["stages"]] == [
        ("000-backbone", 0.0),
        ("000-imitate", 0.0),
    ]


def test_a_plan_starts_nothing_and_writes_nothing(
    tmp_path: Path, performed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ablate(replace(options(tmp_path), plan=True))
    assert "6 runs, 15 stages to compute, 9 shared; 3 rows." in capsys.readouterr().out
    assert performed == []
    assert not (tmp_path / "out").exists()


def test_other_files_or_another_recipe_in_the_same_folder_are_refused(tmp_path: Path, performed: list[str]) -> None:
    template = tmp_path / "prompt.txt"
    template.write_text("Solve: {question}")
    asked = {"overrides": {"prompt": {"template": "prompt.txt"}}, "seeds": [1]}
    ablate(options(tmp_path, **asked))
    template.write_text("Please solve: {question}")
    with pytest.raises(InputError, match=r"long-seed1: was begun with another content of prompt\.template; give"):
        ablate(options(tmp_path, **asked))
    template.write_text("Solve: {question}")
    overrides = {**asked["overrides"], "imitate": {"epochs": 1}}  # type: ignore[dict-item]
    with pytest.raises(InputError, match=r"long-seed1: holds a run of another recipe \(imitate.epochs differs\)"):
        ablate(options(tmp_path, seeds=[1], overrides=overrides))


def test_resources_may_change_between_a_start_and_its_resumption(tmp_path: Path, performed: list[str]) -> None:
    ablate(options(tmp_path, seeds=[1]))
    performed.clear()
    ablate(replace(options(tmp_path, seeds=[1]), overrides=("sampler.num_replicas=1", "trainer.num_workers=1")))
    assert performed == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("trainer.bf16=true", "trainer.bf16 auto, not True, which decides results"),
        ("sampler.dtype=bfloat16", "sampler.dtype auto, not bfloat16, which decides results"),
        ("verifier.timeout_s=77.0", "not 77.0, which decides results"),
    ],
)
def test_a_resumption_with_another_key_that_decides_is_refused_by_its_name(
    tmp_path: Path, performed: list[str], change: str, expected: str
) -> None:
    ablate(options(tmp_path, seeds=[1]))
    with pytest.raises(InputError) as error:
        ablate(replace(options(tmp_path, seeds=[1]), overrides=(change,)))
    assert f"long-seed1: was begun with {change.partition('=')[0]} " in str(error.value)
    assert expected in str(error.value)


def test_an_ablation_goes_on_after_the_schema_has_grown(tmp_path: Path, performed: list[str]) -> None:
    """Keys and inputs that were not there when it was begun changed every digest; they are at their defaults."""
    ablate(options(tmp_path, seeds=[1]))
    performed.clear()
    for run in (tmp_path / "out" / "runs").iterdir():
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        del (
            recipe["verifier"]["memory_mib"],
            recipe["sampler"]["tensor_parallel_size"],
            recipe["evaluate"]["num_samples"],
        )
        (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        begun = json.loads((run / "stages.json").read_text())
        del begun["inputs"]["verifiers"]
        stages = dict.fromkeys(begun["stages"], "digest of an older schema")
        (run / "stages.json").write_text(json.dumps({**begun, "stages": stages}))
    ablate(options(tmp_path, seeds=[1]))
    assert performed == []


def test_a_run_that_did_not_note_its_inputs_is_refused(tmp_path: Path, performed: list[str]) -> None:
    ablate(options(tmp_path, seeds=[1]))
    noted = tmp_path / "out" / "runs" / "long-seed1" / "stages.json"
    noted.write_text(json.dumps(json.loads(noted.read_text())["stages"]))
    with pytest.raises(InputError, match="long-seed1: was begun by a version that did not note what its files hold"):
        ablate(options(tmp_path, seeds=[1]))


@pytest.mark.parametrize("num_writes", range(4))
def test_a_crash_while_a_run_is_prepared_does_not_lock_the_ablation_out(
    tmp_path: Path, performed: list[str], monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    done: list[Any] = []

    def crashing(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: Any) -> None:
            if len(done) == num_writes:
                raise Crashed
            done.append(arguments)
            write(*arguments)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("write_json", "write_text"):
            patch.setattr(command, name, crashing(getattr(command, name)))
        with pytest.raises(Crashed):
            ablate(options(tmp_path, seeds=[1]))
    assert len(done) == num_writes
    ablate(options(tmp_path, seeds=[1]))
    assert performed == ["long-seed1", "pairs-seed1"]


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ({"evaluate": {"num_samples": 2}}, "evaluate.num_samples"),
        ({"evaluate": {"num_problems": 3}}, "evaluate.num_problems"),
        ({"data": {"tiny_world": {**WORLD["tiny_world"], "num_test": 5}}}, "data.test"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused_before_anything_is_begun(
    tmp_path: Path, performed: list[str], own: dict[str, Any], key: str
) -> None:
    asked = {
        "seeds": [1],
        "runs": {**MATRIX["runs"], "pairs": {**MATRIX["runs"]["pairs"], **own}},
        "comparisons": [{"first": "one round", "second": "SFT"}, {"first": "DPO", "second": "one round"}],
    }
    with pytest.raises(InputError) as error:
        ablate(options(tmp_path, **asked))
    said = f"comparisons.1: runs pairs and long differ in {key} under seed 1, so they cannot be compared"
    assert said in str(error.value)
    assert performed == []
    ablate(options(tmp_path, seeds=[1]))
    assert performed == ["long-seed1", "pairs-seed1"]


def test_as_many_problems_as_there_are_is_all_of_them(tmp_path: Path, performed: list[str]) -> None:
    runs = {**MATRIX["runs"], "pairs": {**MATRIX["runs"]["pairs"], "evaluate": {"num_problems": 40}}}
    asked = {"runs": runs, "comparisons": [{"first": "DPO", "second": "one round"}]}
    ablate(options(tmp_path, seeds=[1], overrides={"data": {"tiny_world": {"num_test": 40}}}, **asked))
    assert performed == ["long-seed1", "pairs-seed1"]


def test_the_folder_of_a_run_is_refused(tmp_path: Path, performed: list[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text("name: x")
    with pytest.raises(InputError, match="out: holds a run, not an ablation; give another --run-dir"):
        ablate(options(tmp_path))
    assert performed == []


def test_whatever_is_wrong_with_any_run_is_said_before_the_first_starts(tmp_path: Path, performed: list[str]) -> None:
    runs = {**MATRIX["runs"], "pairs": {"rounds": [{"method": "dpo"}], "model": {"path": "nowhere/at/all/model"}}}
    with pytest.raises(InputError, match="nowhere"):
        ablate(options(tmp_path, runs=runs))
    assert performed == []
