"""What of a run its directory holds already, and whether it may go on with a recipe."""

from __future__ import annotations

from typing import Any

import yaml

from still_ray.algo.stages import Stage, advance, plan_stages
from still_ray.cli.preflight.models import with_format
from still_ray.cli.preflight.ray_job import shipped_path
from still_ray.config import Recipe, dump_recipe
from still_ray.config.loading import recipe_from
from still_ray.formats.responses.markers import MARKED
from still_ray.store.policy import read_policy_record
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore, read_state
from still_ray.types import InputError

FREE_KEYS = (
    *("name", "placement", "sampler", "trainer", "sync", "failures"),
    *(f"verifier.{key}" for key in ("num_workers", "processes_per_worker", "cpus_per_worker", "timeout_s")),
    *("verifier.node_labels", "verifier.memory_mib", "verifier.code"),
)
"""What may change between a run and its resumption: resources and time limits, never what is computed."""
HELD_KEYS = ("sampler.engine", "trainer.trl", "trainer.lora")
"""What may not, within those sections: it decides what is sampled and learnt."""


def untrained(directory: RunDirectory, recipe: Recipe) -> list[Stage]:
    """The training stages of a run whose checkpoint is not there."""
    stages = [stage for stage in plan_stages(recipe) if stage.trains]
    done = RunStore(directory, plan_stages(recipe)).completed()  # a stage may be complete without one, having no rows
    return [s for s in stages if s.name not in done and read_policy_record(directory.checkpoint(s)) is None]


def is_complete(directory: RunDirectory, recipe: Recipe) -> bool:
    """Whether every stage of the recipe has a valid manifest, and the run came to its last line after that."""
    plan = plan_stages(recipe)
    state = read_state(directory)
    return state is not None and state.is_complete and advance(plan, RunStore(directory, plan).completed()) is None


def check_same_recipe(directory: RunDirectory, recipe: Recipe) -> None:
    """A run directory belongs to one recipe.

    Raises:
        InputError: The directory holds a run of another recipe; names the first key that differs.
    """
    if not directory.recipe.exists():
        return
    stored = yaml.safe_load(directory.recipe.read_text(encoding="utf-8"))
    if stored.get("rehearsal"):
        raise InputError(f"{directory.root}: holds a rehearsal, which fakes made; give another --run-dir")
    before, now = with_new_keys(stored, recipe), yaml.safe_load(dump_recipe(recipe, {}))
    key = _first_difference(before, now) or next((key for key in HELD_KEYS if _at(before, key) != _at(now, key)), None)
    if key is not None:
        raise InputError(
            f"{directory.root}: holds a run of another recipe ({key} differs); give another --run-dir, or that recipe"
        )


def _at(values: Any, key: str) -> Any:
    """The value of a dotted key; None where it is not there."""
    for name in key.split("."):
        values = values.get(name) if isinstance(values, dict) else None
    return values


def with_kept_format(directory: RunDirectory, recipe: Recipe) -> Recipe:
    """The recipe with the response format that its run was begun with, where it leaves that to "auto".

    A run of a release whose recipes named none was begun with markers, the only one.
    """
    if recipe.prompt.format != "auto" or not directory.recipe.exists():
        return recipe
    stored = yaml.safe_load(directory.recipe.read_text(encoding="utf-8"))
    return with_format(recipe, _stored_format(stored))


def _stored_format(stored: dict[str, Any]) -> str:
    return str((stored.get("prompt") or {}).get("format", MARKED.name))


def with_kept_lengths(directory: RunDirectory, recipe: Recipe) -> Recipe:
    """The recipe with the lengths that its run was begun with, where it leaves them to "auto".

    Raises:
        InputError: They are at odds with what the recipe says.
    """
    if not directory.recipe.exists():
        return recipe
    values = recipe.model_dump(mode="json")
    kept = _kept(values, yaml.safe_load(directory.recipe.read_text(encoding="utf-8")))
    return recipe if kept == values else recipe_from(kept, (), origin=f"with the lengths of {directory.recipe}")


def _kept(value: Any, stored: Any) -> Any:
    """A dumped recipe whose open lengths are those of a stored one."""
    if isinstance(value, list) and isinstance(stored, list):
        return [_kept(inner, other) for inner, other in zip(value, stored, strict=False)] + value[len(stored) :]
    if not isinstance(value, dict) or not isinstance(stored, dict):
        return value
    return {
        key: stored[key] if _is_open_length(key, inner) and key in stored else _kept(inner, stored.get(key))
        for key, inner in value.items()
    }


def _is_open_length(key: str, value: Any) -> bool:
    return key in {"max_length", "max_tokens"} and value == "auto"


def with_new_keys(stored: dict[str, Any], wanted: Recipe) -> dict[str, Any]:
    """A stored recipe with the defaults of keys that came since; left alone if today's schema refuses it.

    Of a run that began before the day was kept that chat templates are told, it is the wanted one: nobody knows better.
    So are lengths that it leaves to "auto". One that began before recipes named a response format had markers.
    """
    try:
        recipe = recipe_from(stored, (), origin="stored")
    except InputError:
        return stored
    recipe = with_format(recipe, _stored_format(stored))
    if recipe.prompt.date is None:
        recipe = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"date": wanted.prompt.date})})
    return _kept(recipe.model_dump(mode="json"), wanted.model_dump(mode="json"))  # type: ignore[no-any-return]


def _first_difference(stored: Any, wanted: Any, prefix: str = "") -> str | None:
    """Dotted name of the first value that differs, free keys left out."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in [*stored, *(key for key in wanted if key not in stored)]:
            if f"{prefix}{key}" in FREE_KEYS:
                continue
            found = _first_difference(stored.get(key), wanted.get(key), f"{prefix}{key}.")
            if found is not None:
                return found
        return None
    if prefix == "data.demonstrations." and isinstance(stored, list) and isinstance(wanted, list):
        return _first_difference(dict(enumerate(stored)), dict(enumerate(wanted)), prefix)
    if isinstance(stored, str) and isinstance(wanted, str):
        stored, wanted = shipped_path(stored), shipped_path(wanted)
    return None if stored == wanted else prefix.rstrip(".")
