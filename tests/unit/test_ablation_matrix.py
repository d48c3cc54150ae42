"""Ablation matrices: what is refused and how, which runs come out, and which work they share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from still_ray.algo.ablation.sharing import (
    ALWAYS_DECIDING,
    AblationRun,
    InputDigests,
    digests_of,
    expand,
    plan_sharing,
    reusable,
    stage_digests,
)
from still_ray.algo.stages import plan_stages
from still_ray.cli.preflight.inputs import InputReader, named_inputs
from still_ray.cli.preflight.own_code import check_own_objects
from still_ray.cli.preflight.resume import FREE_KEYS
from still_ray.config import Recipe
from still_ray.config.ablation import Matrix, load_matrix, load_run
from still_ray.config.library_arguments import LIBRARY_KEYS
from still_ray.config.methods import METHODS
from still_ray.types import InputError
from tests.fakes import make_recipe, raw_recipe

JOBS = Path(__file__).resolve().parents[2] / "jobs"
MATRICES = sorted(JOBS.glob("ablate-*.yaml"))
INPUTS = InputDigests(model="m", template="t", demonstrations="d", problems="p", test="e")
ROUNDS = [{"method": "sft"}, {"method": "dpo"}]


def raw_matrix(**changes: Any) -> dict[str, Any]:
    return {
        "name": "little",
        "recipe": "base.yaml",
        "seeds": [1, 2, 3],
        "runs": {"long": {"rounds": [{}, {}]}, "short": {"rounds": []}},
        "rows": [
            {"name": "before", "run": "short", "stage": "000-imitate"},
            {"name": "after", "run": "long", "stage": "002-sft"},
        ],
        **changes,
    }


def written(folder: Path, **changes: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(raw_recipe()))
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump(raw_matrix(**changes)))
    return path


def runs_of(path: Path) -> tuple[AblationRun, ...]:
    matrix = load_matrix(path)
    return expand(matrix, lambda run, seed: load_run(matrix, run, seed, origin=str(path)), origin=str(path))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": [1]}, "seed: unknown key; did you mean seeds?"),
        ({"seeds": [1, 2, 1]}, "seeds: each seed once: [1, 2, 1]"),
        ({"seeds": []}, "seeds: Tuple should have at least 1 item"),
        ({"rows": [{"name": "a", "run": "lnog", "stage": "000-imitate"}]}, "rows.0.run: there is no run 'lnog'"),
        ({"runs": {"long": {}, "short": {}, "spare": {}}}, "runs.spare: no row uses it"),
        ({"runs": {"../up": {}}}, "runs"),
        (
            {"comparisons": [{"first": "before", "second": "affter"}]},
            "comparisons.0.second: there is no row 'affter'",
        ),
        ({"comparisons": [{"first": "after", "second": "after"}]}, "comparisons.0: 'after' is compared with itself"),
        ({"rows": raw_matrix()["rows"] * 2}, "rows: two are named 'before'"),
        ({"overrides": {"seed": 5}}, "overrides.seed: the matrix gives it: put it into `seeds`"),
        (
            {"runs": {"long": {"rounds": [{}, {}], "name": "x"}, "short": {}}},
            "runs.long.name: it is made of the matrix",
        ),
    ],
)
def test_what_is_wrong_with_a_matrix_is_said_with_file_and_key(
    tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(InputError) as error:
        load_matrix(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["seed=5", "name=mine"])
def test_the_command_line_cannot_give_every_run_the_same_seed_or_name(tmp_path: Path, text: str) -> None:
    path = written(tmp_path)
    with pytest.raises(InputError, match=f"^--set {text}: {text.partition('=')[0]}: "):
        load_run(load_matrix(path), "long", 1, (text,), origin=str(path))


def test_a_wrong_key_of_a_run_is_said_with_the_run(tmp_path: Path) -> None:
    path = written(tmp_path, runs={"long": {"rounds": [{}, {}]}, "short": {"rounds": [], "imitate": {"epoch": 1}}})
    with pytest.raises(InputError, match=r"matrix.yaml: runs.short: imitate.epoch: unknown key; did you mean epochs\?"):
        runs_of(path)


def test_a_row_needs_a_stage_that_its_run_evaluates(tmp_path: Path) -> None:
    rows = [{"name": "a", "run": "long", "stage": "001-explore"}, {"name": "b", "run": "short", "stage": "000-imitate"}]
    with pytest.raises(InputError, match=r"rows.0.stage: run long evaluates no stage '001-explore'; 000-backbone, "):
        runs_of(written(tmp_path, rows=rows))


# -- runs -------------------------------------------------------------------------------------------------------------


def test_every_run_comes_once_for_each_seed_and_a_whole_table_before_the_next_seed(tmp_path: Path) -> None:
    found = [run.id for run in runs_of(written(tmp_path, seeds=[4, 9]))]
    assert found == ["long-seed4", "short-seed4", "long-seed9", "short-seed9"]


def test_a_run_is_the_recipe_with_the_overrides_of_all_and_then_its_own(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        overrides={"imitate": {"epochs": 5, "scope": "thought"}, "evaluate": {"max_tokens": 300}},
        runs={"long": {"imitate": {"epochs": 7}, "rounds": [{}, {}]}, "short": {"rounds": []}},
    )
    long, short = runs_of(path)[:2]
    assert (long.recipe.imitate.epochs, long.recipe.imitate.scope) == (7, "thought")
    assert (short.recipe.imitate.epochs, short.recipe.imitate.scope) == (5, "thought")
    assert long.recipe.evaluate.max_tokens == short.recipe.evaluate.max_tokens == 300
    assert (long.recipe.seed, len(long.recipe.rounds), len(short.recipe.rounds)) == (1, 2, 0)


def test_paths_of_a_matrix_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, runs={"long": {"rounds": [{}, {}], "data": {"test": "held.jsonl"}}, "short": {}})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert runs_of(path)[0].recipe.data.test == str(tmp_path / "held.jsonl")


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_the_committed_matrices_are_in_order(path: Path) -> None:
    matrix = load_matrix(path)
    runs = runs_of(path)
    assert len(matrix.seeds) >= 3
    assert len(runs) == len(matrix.seeds) * len(matrix.runs)


def test_the_tables_of_the_paper_share_what_they_have_in_common() -> None:
    """Imitation is trained once for each seed and demonstrations, exploration once for what starts from it."""
    for name, num_imitations, num_explorations in (("ablate-table2", 3, 3), ("ablate-table4", 1, 1)):
        runs = runs_of(JOBS / f"{name}.yaml")
        digested = [
            (run, stage_digests(run.recipe, named_inputs(run.recipe), free=FREE_KEYS))
            for run in runs
            if run.seed == runs[0].seed
        ]
        computed = [stage for planned in plan_sharing(digested) for stage in planned.computed]
        assert computed.count("000-backbone") == 1
        assert computed.count("000-imitate") == num_imitations
        assert sum(stage.endswith("explore") for stage in computed) == num_explorations


# -- digests ----------------------------------------------------------------------------------------------------------


def digests(recipe: Recipe, inputs: InputDigests = INPUTS) -> dict[str, str]:
    return stage_digests(recipe, inputs, free=FREE_KEYS)


def shared(first: dict[str, str], second: dict[str, str]) -> list[str]:
    return [name for name, digest in first.items() if second.get(name) == digest]


def changed(values: dict[str, Any], dotted: str) -> dict[str, Any]:
    """A recipe's values with another one at a dotted place."""
    other = copy.deepcopy(values)
    *sections, last = dotted.split(".")
    node: Any = other
    for section in sections:
        node = node[int(section)] if isinstance(node, list) else node[section]
    node[last] = "another"
    return other


def test_runs_share_what_comes_before_their_first_difference() -> None:
    long = digests(make_recipe(rounds=[{}, {}, {}]))
    capped = digests(make_recipe(rounds=[{}, {"sft": {"select": {"max_examples": 9}}}, {}]))
    paired = digests(make_recipe(rounds=[{"method": "dpo"}]))
    assert shared(long, capped) == ["000-backbone", "000-imitate", "001-explore", "001-sft", "002-explore"]
    assert shared(long, paired) == ["000-backbone", "000-imitate", "001-explore"]


def test_stages_after_a_difference_are_never_shared_though_their_own_settings_are_equal() -> None:
    first = digests(make_recipe(rounds=[{}, {}]))
    second = digests(make_recipe(rounds=[{"explore": {"temperature": 0.5}}, {}]))
    assert shared(first, second) == ["000-backbone", "000-imitate"]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"model": "x"}, []),
        ({"template": "x"}, []),
        ({"verifiers": "x"}, []),
        ({"test": "x"}, []),
        ({"demonstrations": "x"}, ["000-backbone"]),
        ({"problems": "x"}, ["000-backbone", "000-imitate"]),
    ],
)
def test_a_file_counts_from_the_stage_that_reads_it_on(inputs: dict[str, str], expected: list[str]) -> None:
    recipe = make_recipe(rounds=ROUNDS)
    other = InputDigests(**{**{name: getattr(INPUTS, name) for name in INPUTS.__annotations__}, **inputs})
    assert shared(digests(recipe), digests(recipe, other)) == expected


def test_the_seed_counts_from_imitation_on() -> None:
    first, second = (digests(make_recipe(rounds=ROUNDS, seed=seed)) for seed in (1, 2))
    assert shared(first, second) == ["000-backbone"]


def leaves(value: Any, prefix: str = "") -> list[str]:
    if isinstance(value, dict) and value:
        return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{prefix}{key}.")]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [leaf for index, inner in enumerate(value) for leaf in leaves(inner, f"{prefix}{index}.")]
    return [prefix.rstrip(".")]


def is_free(key: str) -> bool:
    below_free, below_deciding = (
        any(key == section or key.startswith(f"{section}.") for section in sections)
        for sections in (FREE_KEYS, ALWAYS_DECIDING)
    )
    return below_free and not below_deciding


def without_effect(key: str) -> bool:
    """Defaults of rounds, which count where the rounds have them; names of files, which count by content."""
    trained = ("rounds.0.sft", "rounds.1.dpo")
    unused = (f"rounds.{number}.{name}" for number in (0, 1) for name in (*METHODS, "train"))
    defaults = tuple(f"{section}." for section in ("explore", "data", "prompt", *METHODS))
    return key.startswith(defaults) or key == "model.path" or (key in unused and key not in trained)


def test_every_key_that_decides_changes_the_last_digest_and_no_free_key_does() -> None:
    recipe = make_recipe(rounds=ROUNDS)
    values, plan = recipe.model_dump(mode="json"), plan_stages(recipe)

    def last(of: dict[str, Any]) -> str:
        return digests_of(of, plan, INPUTS, free=FREE_KEYS)["002-dpo"]

    keys = [key for key in leaves(values) if not without_effect(key)]
    assert {"rounds.1.dpo.pairs.rule", "seed", "imitate.epochs", "trainer.num_workers", "trainer.bf16"} <= {*keys}
    for key in keys:
        assert (last(changed(values, key)) == last(values)) == is_free(key), key


@pytest.mark.parametrize(
    "key",
    [
        "sampler.dtype",
        "sampler.tensor_parallel_size",
        "trainer.bf16",
        *LIBRARY_KEYS,
        "trainer.lora",
        "verifier.timeout_s",
        "verifier.memory_mib",
        "verifier.code.timeout_s",
    ],
)
def test_what_changes_numbers_or_verdicts_is_never_shared_though_a_resumed_run_may_change_it(key: str) -> None:
    recipe = make_recipe(rounds=ROUNDS)
    values, plan = recipe.model_dump(mode="json"), plan_stages(recipe)
    first, second = (digests_of(one, plan, INPUTS, free=FREE_KEYS) for one in (values, changed(values, key)))
    assert shared(first, second) == []


def test_arguments_of_libraries_that_nobody_gives_leave_digests_as_they_were_before_there_were_any() -> None:
    recipe = make_recipe(rounds=ROUNDS)
    values = recipe.model_dump(mode="json")
    before = copy.deepcopy(values)
    for section, name in (key.split(".") for key in LIBRARY_KEYS):
        assert before[section].pop(name) == {}
    now, then = (digests_of(one, plan_stages(recipe), INPUTS, free=FREE_KEYS) for one in (values, before))
    assert now == then


def test_verifiers_of_ones_own_count_by_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {kind: str(tmp_path / f"{kind}.jsonl") for kind in ("demonstrations", "problems", "test")}
    for path in paths.values():
        Path(path).write_text("one")
    monkeypatch.chdir(tmp_path)
    judge = tmp_path / "own_judge_of_this_test.py"
    recipe = make_recipe(data=paths, verifier={"custom": {"exact": f"{judge.stem}:same"}})
    found = []
    for verdict in ("True", "False", "False"):
        judge.write_text(f"def same(solution, reference, question):\n    return {verdict}\n")
        found.append(digests(recipe, InputReader().digests(recipe)))
    assert shared(found[0], found[1]) == []
    assert found[1] == found[2]


def test_a_pair_rule_of_ones_own_counts_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {kind: str(tmp_path / f"{kind}.jsonl") for kind in ("demonstrations", "problems", "test")}
    for path in paths.values():
        Path(path).write_text("one")
    monkeypatch.chdir(tmp_path)
    rule = tmp_path / "own_rule_of_this_test.py"
    rounds = [{"method": "dpo", "dpo": {"pairs": {"rule": f"{rule.stem}:none"}}}]
    recipe = make_recipe(data=paths, rounds=rounds)
    found = []
    for pairs in ("()", "[]", "[]"):
        rule.write_text(f"def none(responses, draw):\n    return {pairs}\n")
        found.append(digests(recipe, InputReader().digests(recipe)))
    assert shared(found[0], found[1]) == []
    assert found[1] == found[2]
    assert InputReader().digests(make_recipe(data=paths)).own_code == ""


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("no_such_module:rule", "rounds.0.dpo.pairs.rule: no_such_module:rule cannot be loaded: ModuleNotFoundError"),
        ("os:sep", "rounds.0.dpo.pairs.rule: os:sep is no function but str"),
    ],
)
def test_a_rule_that_cannot_be_loaded_is_named_before_anything_starts(path: str, complaint: str) -> None:
    recipe = make_recipe(rounds=[{"method": "dpo", "dpo": {"pairs": {"rule": path}}}])
    with pytest.raises(InputError) as error:
        check_own_objects(recipe)
    assert str(error.value).startswith(complaint)


def test_files_count_by_their_content_wherever_they_are(tmp_path: Path) -> None:
    recipes = []
    for name, text in (("a", "one"), ("b", "one"), ("c", "two")):
        folder = tmp_path / name
        folder.mkdir()
        paths = {kind: str(folder / f"{kind}.jsonl") for kind in ("demonstrations", "problems", "test")}
        for path in paths.values():
            Path(path).write_text(text)
        recipes.append(make_recipe(data=paths))
    first, second, third = (InputReader().digests(recipe) for recipe in recipes)
    assert first == second
    assert first.problems != third.problems
    assert first.model == third.model


# -- taking over ------------------------------------------------------------------------------------------------------


def test_a_run_takes_over_what_it_lacks_up_to_the_first_stage_that_nobody_has() -> None:
    recipe = make_recipe(rounds=[{}])
    run = AblationRun(name="a", seed=1, recipe=recipe)
    own = digests(recipe)
    owners = {own["000-backbone"]: "x", own["000-imitate"]: "y", own["001-sft"]: "z"}
    found = [(stage.name, owner) for stage, owner in reusable(run.stages, own, {"000-backbone"}, owners)]
    assert found == [("000-imitate", "y")]


def test_a_matrix_is_what_the_schema_says() -> None:
    matrix = Matrix.model_validate(
        raw_matrix(
            rows=[
                {"name": "a", "run": "long", "stage": "002-sft", "paper": {"label": "A", "scores": {"AIME": 40}}},
                {"name": "b", "run": "short", "stage": "000-imitate", "paper": {"label": "B", "scores": {"MATH": 1.5}}},
            ]
        )
    )
    assert matrix.benchmarks == ("AIME", "MATH")
