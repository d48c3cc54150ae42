"""The schema of a recipe: documented to the last field, strict, and rounds that inherit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from still_ray.config import LoraConfig, Recipe
from still_ray.config.recipe import recipe_type
from still_ray.config.schema import Section, merged
from still_ray.methods.sft import SftConfig
from tests.fakes import make_recipe, raw_recipe


def section(of: BaseModel, name: str) -> Any:
    """The section of a training method: which there are depends on the recipe."""
    return getattr(of, name)


def sections_below(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    yield path or "recipe", section
    for name, field in section.model_fields.items():
        for inner in models_in(field.annotation):
            yield from sections_below(inner, f"{path}.{name}".lstrip("."))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


SECTIONS = dict(sections_below(recipe_type({})))


def test_the_walk_over_the_sections_reaches_the_deepest() -> None:
    assert {"imitate.select", "rounds.dpo.optimizer", "data.tiny_world", "rounds.explore"} <= SECTIONS.keys()


@pytest.mark.parametrize("path", SECTIONS)
def test_every_field_says_what_it_means_and_where_its_default_comes_from(path: str) -> None:
    for name, field in SECTIONS[path].model_fields.items():
        meaning, found, source = (field.description or "").partition("Source: ")
        assert found, f"{path}.{name} names no source"
        assert meaning.strip(), f"{path}.{name} says nothing of its meaning"
        assert source.endswith("."), f"{path}.{name}: {source}"


@pytest.mark.parametrize("path", SECTIONS)
def test_every_section_is_strict_frozen_and_documented(path: str) -> None:
    section = SECTIONS[path]
    assert issubclass(section, Section)
    assert section.__doc__
    assert section.__doc__ != Section.__doc__
    config = section.model_config
    assert (config["extra"], config["frozen"], config["strict"]) == ("forbid", True, True)


def test_a_recipe_cannot_be_changed_after_loading() -> None:
    recipe = make_recipe()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.sampler.num_replicas = 3  # type: ignore[misc]


# -- defaults that come from the paper --------------------------------------------------------------------------------


def test_defaults_are_the_published_ones() -> None:
    recipe = make_recipe()
    assert recipe.imitate.optimizer.learning_rate == 1e-5
    assert recipe.imitate.global_batch_size == 96
    assert recipe.explore.samples_per_problem == 20
    assert recipe.trainer.zero_stage == 3
    sft, dpo = section(recipe, "sft"), section(recipe, "dpo")
    assert (sft.init, dpo.init) == ("backbone", "previous")
    assert (sft.scope, dpo.scope) == ("whole", "thought")
    assert dpo.sft_weight == 0
    assert recipe.seed == 42


# -- rounds -----------------------------------------------------------------------------------------------------------


def test_a_round_takes_what_it_leaves_out_from_the_recipe() -> None:
    recipe = make_recipe(
        explore={"samples_per_problem": 7, "temperature": 0.7, "levels": [1, 3]},
        sft={"epochs": 2.0, "select": {"max_per_problem": 4, "strategy": "random"}},
        rounds=[{}, {"explore": {"temperature": 0.2}, "sft": {"select": {"strategy": "lowest_perplexity"}}}],
    )
    plain, changed = recipe.rounds
    assert plain.explore == recipe.explore
    assert section(plain, "sft") == section(recipe, "sft")
    assert changed.explore == recipe.explore.model_copy(update={"temperature": 0.2})
    assert isinstance(section(changed, "sft"), SftConfig)
    assert section(changed, "sft").epochs == 2.0
    select = section(recipe, "sft").select.model_copy(update={"strategy": "lowest_perplexity"})
    assert section(changed, "sft").select == select


def test_a_round_can_take_a_limit_of_the_recipe_back() -> None:
    recipe = make_recipe(explore={"num_problems": 5, "levels": [1, 2]}, rounds=[{"explore": {"num_problems": None}}])
    ((_, explore),) = recipe.explorations
    assert explore.num_problems is None
    assert explore.levels == (1, 2)


def test_one_round_does_not_change_another() -> None:
    recipe = make_recipe(rounds=[{"explore": {"max_tokens": 10}}, {}])
    assert [explore.longest for _, explore in recipe.explorations] == [10, 20_000]


def test_a_round_has_only_the_section_of_its_method() -> None:
    sft, dpo = make_recipe(rounds=[{}, {"method": "dpo"}]).rounds
    assert (sft.train, section(sft, "dpo")) == (("sft",), None)
    assert (dpo.train, section(dpo, "sft")) == (("dpo",), None)


def test_dpo_keeps_its_own_learning_rate_when_only_a_part_of_the_optimizer_is_given() -> None:
    recipe = make_recipe(
        dpo={"optimizer": {"warmup_ratio": 0.3}},
        rounds=[{"method": "dpo"}, {"method": "dpo", "dpo": {"optimizer": {"weight_decay": 0.0}}}],
    )
    assert section(recipe, "dpo").optimizer.learning_rate == 5e-7
    _, first, second = (step.settings.optimizer for step in recipe.steps)
    assert (first.learning_rate, first.warmup_ratio) == (5e-7, 0.3)
    assert (second.learning_rate, second.warmup_ratio, second.weight_decay) == (5e-7, 0.3, 0.0)


@pytest.mark.parametrize(
    ("base", "override", "expected"),
    [
        (None, None, {}),
        ({"a": 1}, None, {"a": 1}),
        (None, {"a": 1}, {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": {"b": 1}}, {"a": 5}, {"a": 5}),
        ({"a": 5}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        ({"a": 5}, {"a": None}, {"a": None}),
    ],
)
def test_merging(base: Any, override: Any, expected: Any) -> None:
    assert merged(base, override) == expected


def test_merging_leaves_its_inputs_as_they_are() -> None:
    base, override = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merged(base, override) == {"a": {"b": 1, "c": 2}}
    assert (base, override) == ({"a": {"b": 1}}, {"a": {"c": 2}})


# -- numbers that must agree ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"imitate": {"global_batch_size": 6, "per_device_batch_size": 4}}, "imitate"),
        ({"rounds": [{}, {"sft": {"global_batch_size": 7}}]}, "rounds.1.sft"),
        ({"dpo": {"global_batch_size": 3}, "rounds": [{"method": "dpo"}]}, "rounds.0.dpo"),
    ],
)
def test_the_global_batch_is_a_multiple_of_what_the_workers_take_at_once(sections: Any, where: str) -> None:
    with pytest.raises(ValidationError, match=rf"{where}\.global_batch_size .* must be a multiple of"):
        make_recipe(trainer={"num_workers": 2}, **sections)


def test_ranks_that_share_rows_divide_all_and_take_one_batch_together() -> None:
    shared = {"num_workers": 8, "sequence_parallel_size": 4}
    six = make_recipe(trainer=shared, imitate={"global_batch_size": 6, "per_device_batch_size": 3}, rounds=[])
    assert six.imitate.global_batch_size == 6, "three rows for each of two groups"
    with pytest.raises(ValidationError, match=r"x trainer.num_workers / trainer.sequence_parallel_size \(2 x 8 / 4\)"):
        make_recipe(trainer=shared, imitate={"global_batch_size": 6, "per_device_batch_size": 2}, rounds=[])
    with pytest.raises(ValidationError, match=r"sequence_parallel_size \(3\) must divide trainer.num_workers \(8\)"):
        make_recipe(trainer=shared | {"sequence_parallel_size": 3})


def test_a_global_batch_that_divides_is_accepted() -> None:
    recipe = make_recipe(trainer={"num_workers": 3}, imitate={"global_batch_size": 12, "per_device_batch_size": 2})
    assert recipe.imitate.global_batch_size == 12


def test_a_section_that_no_stage_uses_need_not_divide() -> None:
    assert section(make_recipe(dpo={"global_batch_size": 7}, rounds=[{}]), "dpo").global_batch_size == 7


@pytest.mark.parametrize(
    ("sections", "where"),
    [
        ({"evaluate": {"max_tokens": 3000}}, "evaluate"),
        ({"rounds": [{"explore": {"max_tokens": 3000}}]}, "rounds.0.explore"),
    ],
)
def test_a_response_leaves_room_for_the_prompt(sections: Any, where: str) -> None:
    with pytest.raises(ValidationError, match=rf"{where}\.max_tokens \(3000\) must leave room"):
        make_recipe(model={"path": "x", "max_length": 3000}, **sections)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"sampler": {"release_while_training": True}}, "sampler.release_while_training ends engines that placement"),
        ({"sync": {"transport": "nccl"}}, "sync.transport: broadcast sends what the ranks hold on their devices"),
    ],
)
def test_engines_that_sleep_neither_end_nor_take_what_ranks_hold(sections: Any, said: str) -> None:
    assert make_recipe(placement="dedicated", **sections)
    with pytest.raises(ValidationError, match=said):
        make_recipe(placement="elastic", **sections)


def test_data_is_files_or_a_tiny_world_and_not_both() -> None:
    for data in ({}, {"demonstrations": "a", "problems": "b"}):
        with pytest.raises(ValidationError, match="are needed"):
            Recipe.model_validate({**raw_recipe(), "data": data})
    with pytest.raises(ValidationError, match="not both"):
        Recipe.model_validate({**raw_recipe(), "data": {"test": "a", "tiny_world": {}}})
    assert Recipe.model_validate({**raw_recipe(), "data": {"tiny_world": {}}}).data.tiny_world is not None


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", True, float("inf")])
def test_a_count_is_a_positive_whole_number(value: Any) -> None:
    with pytest.raises(ValidationError):
        make_recipe(explore={"samples_per_problem": value})


@pytest.mark.parametrize("value", [[3, 1], [1], [1, 2, 3], ["1", 2], 5])
def test_a_range_of_levels_is_two_ascending_numbers(value: Any) -> None:
    with pytest.raises(ValidationError):
        make_recipe(explore={"levels": value})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0, "1e-5", True])
def test_a_learning_rate_is_a_finite_positive_number(value: Any) -> None:
    with pytest.raises(ValidationError):
        make_recipe(imitate={"optimizer": {"learning_rate": value}})


@pytest.mark.parametrize(
    "value", [{"rank": 0}, {"targets": "attention"}, {"targets": []}, {"dropout": 1.0}, {"dora": True}, True]
)
def test_adapters_have_a_rank_and_targets(value: Any) -> None:
    with pytest.raises(ValidationError):
        make_recipe(trainer={"lora": value})


def test_the_product_of_an_adapter_is_scaled_as_the_papers_have_it() -> None:
    assert LoraConfig(rank=16, alpha=32).scale == 2.0
    assert LoraConfig(rank=16, alpha=32, rslora=True).scale == 8.0


@pytest.mark.parametrize(
    ("sections", "needed"),
    [
        ({"placement": "shared"}, "placement: dedicated, not shared"),
        ({"sampler": {"release_while_training": True}}, "false"),
    ],
)
def test_samplers_that_make_room_for_the_trainer_cannot_overlap_with_it(sections: Any, needed: str) -> None:
    rounds = [{"method": "sft"}] * 2
    with pytest.raises(ValidationError, match=rf"rounds\.1\.explore\.overlap: 1 .* it needs .*{needed}"):
        make_recipe(rounds=rounds, explore={"overlap": 1}, **sections)
    make_recipe(rounds=rounds[:1], explore={"overlap": 1}, **sections)  # nothing that it could overlap with


def test_adaptive_waves_beyond_the_cap_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"at most samples_per_problem \(4\)"):
        make_recipe(explore={"samples_per_problem": 4, "adaptive": {"initial": 5}})
