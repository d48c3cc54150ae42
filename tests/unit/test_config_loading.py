"""Loading a recipe: YAML, --set, paths, and one line that names the file, the key and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from still_ray.config import dump_recipe, load_recipe
from still_ray.config.loading import recipe_from
from still_ray.config.recipe import recipe_type
from still_ray.types import InputError
from tests.fakes import make_recipe, raw_recipe


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw_recipe(**sections)), encoding="utf-8")
    return path


def text_file(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    text = str(caught.value)
    assert len(text.splitlines()) == 1, text
    return text


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    text = complaint(tmp_path / "nowhere.yaml")
    assert text.startswith(f"{tmp_path}/nowhere.yaml: no such file")


def test_a_directory_is_not_a_recipe(tmp_path: Path) -> None:
    assert complaint(tmp_path).startswith(f"{tmp_path}: cannot be read")


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\n")
    assert complaint(path).startswith(f"{path}: cannot be read")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: x\nmodel: {path: a\nseed: 1\n", 3),
        ("name: x\nseed: 1: 2\n", 2),
        ("name: x\n\tseed: 1\n", 2),
        ("name: x\nseed: 1\nname: y\n", 3),
        ("model:\n  path: a\n  path: b\n", 3),
        ("model: !!python/object:os.system {}\n", 1),
    ],
)
def test_broken_yaml_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    path = text_file(tmp_path, text)
    assert complaint(path).startswith(f"{path}: line {line} is not YAML: ")


@pytest.mark.parametrize("text", ["name: a\0b", "seed: !!int x\n", "name: 2020-13-45\n", "[" * 1200])
def test_yaml_that_fails_without_a_line_is_still_one_complaint(tmp_path: Path, text: str) -> None:
    path = text_file(tmp_path, text)
    assert "is not YAML: " in complaint(path)


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "list"), ("", "NoneType"), ("42", "int")])
def test_a_recipe_is_a_mapping(tmp_path: Path, text: str, kind: str) -> None:
    assert complaint(text_file(tmp_path, text)).endswith(f"a recipe is a mapping of sections, not a {kind}")


@pytest.mark.parametrize("section", ["model", "data", "rounds"])
def test_a_missing_section_is_named(tmp_path: Path, section: str) -> None:
    raw = raw_recipe()
    del raw[section]
    path = text_file(tmp_path, yaml.safe_dump(raw))
    assert complaint(path) == f"{path}: {section}: missing; the recipe needs it"


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "dotted", "nearest"),
    [
        ({"smapler": {}}, "smapler", "sampler"),
        ({"sampler": {"num_replica": 3}}, "sampler.num_replica", "num_replicas"),
        ({"imitate": {"optimizer": {"learnin_rate": 1e-5}}}, "imitate.optimizer.learnin_rate", "learning_rate"),
        ({"rounds": [{}, {"metod": "sft"}]}, "rounds.1.metod", "method"),
        ({"rounds": [{"explore": {"temprature": 1.0}}]}, "rounds.0.explore.temprature", "temperature"),
        ({"rounds": [{"sft": {"select": {"strateg": "x"}}}]}, "rounds.0.sft.select.strateg", "strategy"),
        ({"rounds": [{"method": "dpo", "dpo": {"bta": 1.0}}]}, "rounds.0.dpo.bta", "beta"),
        (
            {"data": {"tiny_world": {"num_problem": 3}}},
            "data.tiny_world.num_problem",
            "num_problems",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    tmp_path: Path, sections: Any, dotted: str, nearest: str
) -> None:
    path = written(tmp_path, **sections)
    assert complaint(path) == f"{path}: {dotted}: unknown key; did you mean {nearest}?"


@pytest.mark.parametrize(
    ("override", "key", "right"),
    [
        ("explore.samples_per_problem=0", "explore.samples_per_problem", "greater than or equal to 1 (given: 0)"),
        ("sampler.num_replicas=two", "sampler.num_replicas", "a valid integer or 'auto' (given: 'two')"),
        ("sampler.num_replicas=2.0", "sampler.num_replicas", "integer"),
        ("rounds.0.method=ppo", "rounds.0.method", "did you mean dpo?"),
        ("sampler.gpus_per_replica=x", "sampler.gpus_per_replica", "a valid number or 'auto' (given: 'x')"),
        ("sampler.gpus_per_replica=-1", "sampler.gpus_per_replica", "greater than or equal to 0 or 'auto' (given: -1)"),
        ("trainer.use_gpu=3", "trainer.use_gpu", "a valid boolean or 'auto' (given: 3)"),
        ("explore.levels=[5, 1]", "explore.levels", "must be [least, greatest], e.g. [1, 5]"),
        ("sampler=", "sampler", "(given: None)"),
        ("rounds=x", "rounds", "tuple"),
        ("rounds.0=sft", "rounds.0", "(given: 'sft')"),
        ("imitate.epochs=.inf", "imitate.epochs", "finite"),
    ],
)
def test_a_wrong_value_names_its_key_and_what_would_be_right(
    tmp_path: Path, override: str, key: str, right: str
) -> None:
    path = written(tmp_path, rounds=[{}])
    text = complaint(path, override)
    assert text.startswith(f"{path}: {key}: ")
    assert right in text


def test_numbers_that_disagree_name_both_keys(tmp_path: Path) -> None:
    text = complaint(written(tmp_path, rounds=[{}]), "rounds.0.sft.global_batch_size=7", "trainer.num_workers=2")
    assert "rounds.0.sft.global_batch_size (7)" in text
    assert "trainer.num_workers (1 x 2)" in text


# -- numbers in YAML --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", ".00001", "0.00001", "1_0e-6"])
def test_a_small_number_may_be_written_as_people_write_it(tmp_path: Path, text: str) -> None:
    path = written(tmp_path)
    assert load_recipe(path, [f"imitate.optimizer.learning_rate={text}"]).imitate.optimizer.learning_rate == 1e-5
    inside = yaml.safe_dump(raw_recipe()) + f"imitate: {{optimizer: {{learning_rate: {text}}}}}\n"
    assert load_recipe(text_file(tmp_path, inside)).imitate.optimizer.learning_rate == 1e-5


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path), ["seed=7", "explore.max_tokens=1_000"])
    assert (recipe.seed, recipe.explore.max_tokens) == (7, 1000)
    assert isinstance(recipe.seed, int)


@pytest.mark.parametrize("text", ["1e5", "._", "v1.2", "1-2", "5e"])
def test_a_quoted_text_stays_a_text(tmp_path: Path, text: str) -> None:
    assert load_recipe(written(tmp_path), [f"name='{text}'"]).name == text


# -- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_reach_lists_sections_and_absent_sections(tmp_path: Path) -> None:
    recipe = load_recipe(
        written(tmp_path, rounds=[{}, {"explore": {"temperature": 0.5}}]),
        [
            "rounds.1.method=dpo",
            "rounds.0.sft.optimizer.learning_rate=2e-5",
            "sampler.num_replicas=3",
            "verifier={num_workers: 2, timeout_s: 1}",
            "explore.levels=[1, 2]",
            "explore.skip_solved=false",
            "explore.num_problems=null",
        ],
    )
    assert [entry.train for entry in recipe.rounds] == [("sft",), ("dpo",)]
    assert recipe.step(1, "sft").settings.optimizer.learning_rate == 2e-5
    (_, first), (_, second) = recipe.explorations
    assert second.temperature == 0.5
    assert (recipe.sampler.num_replicas, recipe.verifier.num_workers, recipe.verifier.timeout_s) == (3, 2, 1)
    assert recipe.explore.levels == first.levels == (1, 2)
    assert first.skip_solved is False


def test_the_last_override_of_a_key_wins_and_the_mapping_given_is_left_alone() -> None:
    raw = raw_recipe()
    assert recipe_from(raw, ["seed=1", "seed=2", "model.max_length=40000"], origin="x").seed == 2
    assert raw == raw_recipe()


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("sampler.num_replicas", "must be dotted.key=value"),
        ("=3", "must be dotted.key=value"),
        ("rounds.3.method=dpo", "3 is not an index of a list of 1"),
        ("rounds.-1.method=dpo", "-1 is not an index of a list of 1"),
        ("rounds.first.method=dpo", "first is not an index"),
        ("model.path.x=1", "x is inside a plain value"),
        ("seed=[1", "not YAML"),
        ("seed=1: 2: 3", "not YAML"),
        ("seed=!!int x", "not YAML"),
    ],
)
def test_a_wrong_override_is_quoted(tmp_path: Path, override: str, right: str) -> None:
    text = complaint(written(tmp_path, rounds=[{}]), override)
    assert text.startswith(f"--set {override}: ")
    assert right in text


def test_an_unknown_key_of_an_override_names_the_nearest(tmp_path: Path) -> None:
    assert "did you mean num_replicas?" in complaint(written(tmp_path), "sampler.replicas=4")


# -- paths ------------------------------------------------------------------------------------------------------------


def test_relative_paths_start_at_the_recipes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = {"demonstrations": "d.jsonl", "problems": "../p.jsonl", "test": "/abs/t.jsonl"}
    recipe = load_recipe(written(folder, data=data, model={"path": "./model"}, prompt={"template": "prompt.txt"}))
    assert recipe.data.demonstrations == str(folder / "d.jsonl")
    assert recipe.data.problems == str(tmp_path / "p.jsonl")
    assert recipe.data.test == "/abs/t.jsonl"
    assert recipe.model.path == str(folder / "model")
    assert recipe.prompt.template == str(folder / "prompt.txt")


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.problems=p.jsonl", "model.path=./m", "prompt.template=t.txt"],
        ["data={demonstrations: d, problems: p.jsonl, test: t}", "model={path: ./m}", "prompt={template: t.txt}"],
    ],
)
def test_relative_paths_of_overrides_start_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    (tmp_path / "jobs").mkdir()
    path = written(tmp_path / "jobs")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load_recipe(path, overrides)
    assert recipe.data.problems == str(tmp_path / "here" / "p.jsonl")
    assert recipe.model.path == str(tmp_path / "here" / "m")
    assert recipe.prompt.template == str(tmp_path / "here" / "t.txt")


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-32B-Instruct", "builtin:tiny", "s3://bucket/model"])
def test_names_that_are_not_files_stay_as_they_are(tmp_path: Path, model: str) -> None:
    assert load_recipe(written(tmp_path, model={"path": model})).model.path == model
    assert load_recipe(written(tmp_path), [f"model.path={model}"]).model.path == model


def test_a_folder_that_looks_like_a_hub_id_is_a_folder_when_it_is_there(tmp_path: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    recipe = load_recipe(written(tmp_path, model={"path": "models/tiny"}))
    assert recipe.model.path == str(tmp_path / "models" / "tiny")


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert load_recipe(written(tmp_path, model={"path": "~/m"})).model.path == "/home/somebody/m"


# -- the resolved recipe ----------------------------------------------------------------------------------------------

counts = st.integers(1, 50)
sections = st.fixed_dictionaries(
    {
        "name": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])) | st.from_regex(r"\d+e-?\d+"),
        "seed": st.integers(0, 2**40),
        "explore": st.fixed_dictionaries(
            {},
            optional={
                "num_problems": st.none() | counts,
                "levels": st.none() | st.tuples(st.integers(0, 3), st.integers(3, 9)).map(list),
                "temperature": st.floats(0, 2),
            },
        ),
        "imitate": st.fixed_dictionaries(
            {"optimizer": st.fixed_dictionaries({"learning_rate": st.floats(1e-9, 1)})},
        ),
        "rounds": st.lists(
            st.fixed_dictionaries(
                {"method": st.sampled_from(["sft", "dpo"])},
                optional={
                    "explore": st.fixed_dictionaries({}, optional={"num_problems": st.none() | counts}),
                    "sft": st.fixed_dictionaries({}, optional={"epochs": st.floats(0.1, 9)}),
                    "dpo": st.fixed_dictionaries({}, optional={"beta": st.floats(0.01, 1)}),
                },
            ),
            max_size=3,
        ),
    }
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=sections)
def test_the_resolved_recipe_loads_as_the_same_recipe(tmp_path: Path, values: dict[str, Any]) -> None:
    recipe = make_recipe(**values)
    path = tmp_path / "elsewhere.yaml"
    path.write_text(dump_recipe(recipe, {"ray": "2.60.0"}), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_the_resolved_recipe_writes_every_default_out_and_the_versions_above() -> None:
    text = dump_recipe(make_recipe(rounds=[{}]), {"ray": "2.60.0", "torch": "2.13"})
    assert text.startswith("# ray: 2.60.0\n# torch: 2.13\n")
    values = yaml.safe_load(text)
    assert values.keys() == recipe_type({}).model_fields.keys()
    assert values["rounds"][0]["explore"]["samples_per_problem"] == 20
    assert values["dpo"]["optimizer"]["learning_rate"] == 5e-7
