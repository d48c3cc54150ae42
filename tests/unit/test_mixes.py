"""Several files of demonstrations: what a weight takes, what is counted, and who may know of general rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from still_ray.algo.mix import copies, num_mixed
from still_ray.algo.rehearsal.sizes import Sizes
from still_ray.algo.selection.select import demonstrated
from still_ray.cli.preflight.files import RunFiles, check_files
from still_ray.cli.preflight.inputs import InputReader, run_inputs
from still_ray.cli.preflight.resume import check_same_recipe
from still_ray.cli.rehearse.data import write_data
from still_ray.config import DataConfig, Recipe, dump_recipe
from still_ray.config.loading import recipe_from
from still_ray.config.methods import Prepared, Request
from still_ray.formats.demonstrations import read_demonstrations
from still_ray.methods.sft import SFT, SftConfig
from still_ray.store.atomic import write_text
from still_ray.store.run_directory import RunDirectory
from still_ray.types import Candidate, InputError, TrainingExample, Trajectory, TrajectoryKey
from tests.fakes import make_demonstration, make_recipe


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Ten reasoning rows, ten general ones, a problem and a held-out problem."""
    chat = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    rows: dict[str, list[dict[str, Any]]] = {
        "reasoning": [
            {"id": n, "question": f"{n}+1?", "thought": "t" * 100, "solution": str(n + 1)} for n in range(10)
        ],
        "general": [
            {
                "id": n,
                "messages": [*chat, {"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": "S"}],
            }
            for n in range(10)
        ],
        "problems": [{"id": "p", "question": "What is 1+1?", "answer": "2"}],
        "test": [{"id": "t", "question": "Say 3.", "answer": "3"}],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return {name: str(tmp_path / f"{name}.jsonl") for name in rows}


def mixed(files: dict[str, str], *demonstrations: Any, seed: int = 0) -> RunFiles:
    return check_files(config(files, *demonstrations), seed=seed)


def config(files: dict[str, str], *demonstrations: Any) -> DataConfig:
    values = {"problems": files["problems"], "test": files["test"], "demonstrations": list(demonstrations)}
    return DataConfig.model_validate(values)


def general(files: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {"path": files["general"], "general": True, **changes}


class ShownAlone:
    """A pool of nothing but demonstrations."""

    def __init__(self, run: RunFiles) -> None:
        self.demonstrations, self.num_left_out = run.demonstrations, run.num_left_out

    def candidates(self, rounds: Iterable[int]) -> Iterator[Candidate]:
        return iter(())

    def trajectories(self, keys: Sequence[TrajectoryKey]) -> Iterator[Trajectory]:
        return iter(())


def prepared(run: RunFiles) -> Prepared[TrainingExample]:
    return SFT.prepare(ShownAlone(run), Request(settings=SftConfig(), explored=(), num_explored=None, seed=0))


def rows_of(run: RunFiles) -> list[TrainingExample]:
    return list(prepared(run).rows)


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.7])
def test_a_weight_takes_its_share_of_the_rows_and_the_same_ones_each_time(weight: float) -> None:
    times = [copies(40, weight, seed=7, name="x")(place) for place in range(40)]
    assert sum(times) == num_mixed(40, weight) == round(40 * weight)
    assert max(times) - min(times) <= 1
    assert times == [copies(40, weight, seed=7, name="x")(place) for place in range(40)]


def test_another_seed_or_file_takes_other_rows() -> None:
    def drawn(seed: int, name: str) -> list[int]:
        return [place for place in range(100) if copies(100, 0.5, seed=seed, name=name)(place)]

    assert drawn(1, "a") != drawn(2, "a") != drawn(2, "b") != drawn(1, "a")


def test_a_path_alone_is_all_of_its_rows_once_and_has_no_name(files: dict[str, str]) -> None:
    values = {"problems": files["problems"], "test": files["test"], "demonstrations": files["reasoning"]}
    run = check_files(DataConfig.model_validate(values), seed=0)
    assert list(run.demonstrations()) == list(read_demonstrations(files["reasoning"]))
    assert {row.dataset for row in rows_of(run)} == {""}


def test_a_weight_that_takes_nothing_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"general\.jsonl: weight 0\.01 takes none of its 10 rows"):
        mixed(files, files["reasoning"], general(files, weight=0.01))


# -- what is learnt ---------------------------------------------------------------------------------------------------


def test_every_row_names_its_file_and_weighs_what_the_recipe_says(files: dict[str, str]) -> None:
    run = mixed(files, {"path": files["reasoning"], "weight": 2}, general(files, weight=0.3, name="chat"))
    rows = rows_of(run)
    assert Counter(row.dataset for row in rows) == {"reasoning": 20, "chat": 3}
    assert set(Counter(row.source_id for row in rows if row.dataset == "reasoning").values()) == {2}
    assert {(row.general, row.thought, len(row.turns)) for row in rows if row.dataset == "chat"} == {(True, "", 2)}
    assert {SFT.source(row).dataset for row in rows} == {"reasoning", "chat"}


def test_the_stage_says_what_each_file_gives(files: dict[str, str]) -> None:
    run = mixed(files, {"path": files["reasoning"], "weight": 2}, general(files))
    found = prepared(run)
    assert "30 demonstrations (reasoning 20, general 10) + 0 explored" in found.note
    counts = {name: found.counts[f"num_demonstrations/{name}"] for name in ("reasoning", "general")}
    assert (counts, found.counts["num_demonstrations"]) == ({"reasoning": 20, "general": 10}, 30)


def test_general_rows_do_not_bend_the_lengths_that_selection_follows(files: dict[str, str]) -> None:
    seen = demonstrated(mixed(files, files["reasoning"], general(files, weight=3)).demonstrations(), "whole")
    assert seen.thought_chars == {"math": [100] * 10}


def test_general_answers_to_one_question_differ_also_where_only_thoughts_are_learnt() -> None:
    shown = [make_demonstration(name, question="Q", thought="", solution=name, general=True) for name in "ab"]
    assert len(demonstrated(shown, "thought").digests) == 2


def test_a_held_out_question_is_found_in_a_chat_too(files: dict[str, str]) -> None:
    assert mixed(files, files["reasoning"], general(files)).num_leaked == 1
    assert mixed(files, files["reasoning"]).num_leaked == 0


# -- what decides a run -----------------------------------------------------------------------------------------------


def test_each_file_of_a_mix_is_held_to_what_the_run_began_with(files: dict[str, str]) -> None:
    recipe = with_data(files, files["reasoning"], general(files))
    held = run_inputs(recipe, "builtin:tiny", check_files(recipe.data, seed=0))
    assert {one.key: one.num_rows for one in held if one.key.startswith("data.demonstrations")} == {
        "data.demonstrations.0.path": 10,
        "data.demonstrations.1.path": 10,
    }


def test_runs_share_work_only_where_the_mix_is_the_same(files: dict[str, str]) -> None:
    def digest(*demonstrations: Any) -> str:
        return InputReader().digests(with_data(files, *demonstrations)).demonstrations

    first = digest(files["reasoning"], general(files))
    assert first == digest(files["reasoning"], general(files))
    assert len({first, digest(files["reasoning"], general(files, weight=2)), digest(files["reasoning"])}) == 3


def test_a_run_does_not_go_on_with_another_weight(files: dict[str, str], tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    write_text(directory.recipe, dump_recipe(with_data(files, files["reasoning"], general(files)), {}))
    check_same_recipe(directory, with_data(files, files["reasoning"], general(files)))
    with pytest.raises(InputError, match=r"another recipe \(data\.demonstrations\.1\.weight differs\)"):
        check_same_recipe(directory, with_data(files, files["reasoning"], general(files, weight=2)))


def with_data(files: dict[str, str], *demonstrations: Any) -> Recipe:
    return make_recipe(data={**{k: files[k] for k in ("problems", "test")}, "demonstrations": list(demonstrations)})


def test_a_rehearsal_takes_rows_of_every_file(files: dict[str, str], tmp_path: Path) -> None:
    recipe = with_data(files, {"path": files["reasoning"], "weight": 2}, general(files), "/nowhere/more.jsonl")
    data = write_data(recipe, RunDirectory(tmp_path / "run"), Sizes(demonstrations=6))
    sources = data.recipe.data.sources
    assert [(one.label, one.weight, one.general) for one in sources] == [
        ("reasoning", 2, False),
        ("general", 1, True),
        ("more", 1, False),
    ]
    assert check_files(data.recipe.data, seed=0).num_demonstrations == 2 * 2 + 2 + 2
    assert "data.demonstrations.2: 2 rows of the tiny world; /nowhere/more.jsonl is not here" in data.notes


# -- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["a.jsonl", {"path": "b", "weight": 0}], "data.demonstrations.1.weight: Input should be greater than 0"),
        ([{"path": "a", "genral": True}], "data.demonstrations.0.genral: unknown key; did you mean general?"),
        ([{"weight": 1}], "data.demonstrations.0.path: missing"),
        (["a.jsonl", "x/a.parquet"], "two files are called a; give one of them a name"),
        ([{"path": "a", "general": True}], "at least one file must have thoughts to imitate"),
        ([], "data.demonstrations: "),
    ],
)
def test_a_mix_that_is_none_is_named_by_its_key(given: list[Any], complaint: str) -> None:
    with pytest.raises(InputError) as error:
        recipe_from(raw(given), [], origin="r.yaml")
    assert complaint in str(error.value)


def test_paths_in_a_list_are_relative_to_the_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_from(raw(["/a.jsonl", {"path": "/b.jsonl"}]), ["data.demonstrations.1.path=c.jsonl"], origin="r")
    assert [one.path for one in recipe.data.sources] == ["/a.jsonl", str(tmp_path / "c.jsonl")]
    recipe = recipe_from(raw("/a"), ["data.demonstrations=[b, {path: c, weight: 2}]"], origin="r")
    assert [one.path for one in recipe.data.sources] == [str(tmp_path / "b"), str(tmp_path / "c")]


def raw(demonstrations: Any) -> dict[str, Any]:
    data = {"demonstrations": demonstrations, "problems": "/p", "test": "/t"}
    return {"model": {"path": "builtin:tiny"}, "rounds": [], "data": data}
