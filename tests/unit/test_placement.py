"""What the "auto" of a recipe comes down to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from still_ray.algo.placement import resolve, resolve_sampler, resolve_trainer
from still_ray.config import Recipe, SamplerConfig, SyncConfig, TrainerConfig
from tests.fakes import make_recipe


def autos(value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys whose value is "auto"."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from autos(inner, f"{key}.{name}".lstrip("."))
    elif value == "auto":
        yield key


def read_behind(recipe: Recipe) -> dict[str, Any]:
    """The sections that actors are launched from."""
    sections = recipe.model_dump(mode="json", include={"sampler", "trainer", "sync"})
    sections["trainer"].pop("asked", None)
    return sections


@pytest.mark.parametrize("has_gpus", [False, True])
def test_nothing_is_left_to_the_cluster(has_gpus: bool) -> None:
    recipe = make_recipe()
    assert len([*autos(read_behind(recipe))]) == 8
    found = read_behind(resolve(recipe, has_gpus=has_gpus))
    assert [*autos(found)] == (["sampler.dtype"] if has_gpus else []), "of a checkpoint's dtype only vLLM knows"
    assert found["trainer"]["use_gpu"] == found["trainer"]["bf16"] == found["sampler"]["engine_statistics"] == has_gpus


def test_what_the_recipe_says_holds_and_a_second_time_changes_nothing() -> None:
    sections: dict[str, Any] = {
        "sampler": {"gpus_per_replica": 0.5, "dtype": "float32", "engine_statistics": False},
        "trainer": {"use_gpu": False, "bf16": True, "gradient_checkpointing": True},
        "sync": {"transport": "checkpoint", "tolerance": 0.5},
    }
    settled = resolve(make_recipe(**sections), has_gpus=True)
    for name, section in sections.items():
        assert section.items() <= getattr(settled, name).model_dump().items()
    again = resolve(settled, has_gpus=False)
    assert read_behind(again) == read_behind(settled)


def test_a_replica_has_a_gpu_for_each_of_its_devices_and_is_told_by_bfloat16_from_there() -> None:
    sampler = SamplerConfig(tensor_parallel_size=4)
    assert resolve_sampler(sampler, has_gpus=True).gpus_per_replica == 4.0
    assert not resolve_sampler(sampler, has_gpus=False).on_gpu
    tolerances = [resolve(make_recipe(), has_gpus=has_gpus).sync.tolerance for has_gpus in (False, True)]
    assert tolerances == [0.001, 0.1] and SyncConfig().tolerance == "auto"


def test_a_saved_state_is_known_by_the_section_as_it_was_asked_for() -> None:
    asked = TrainerConfig()
    assert resolve_trainer(asked, has_gpus=True).asked == resolve_trainer(asked, has_gpus=False).asked == asked
