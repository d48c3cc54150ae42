"""A run directory, taken for a recipe: everything that is checked and written before the first actor starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from still_ray.algo.placement import AtHand
from still_ray.cli.preflight.files import RunFiles, check_files, with_world
from still_ray.cli.preflight.inputs import run_inputs
from still_ray.cli.preflight.library_arguments import check_library_arguments
from still_ray.cli.preflight.machines import check_room, check_trackers, crowding, finds_gpus, settled_lengths
from still_ray.cli.preflight.models import (
    adapter_notes,
    check_model,
    check_turns,
    date_notes,
    end_of_turn_notes,
    format_notes,
    resolve_backbone,
    with_date,
    with_format,
)
from still_ray.cli.preflight.own_code import check_own_objects
from still_ray.cli.preflight.provenance import package_versions, run_settings
from still_ray.cli.preflight.ray_job import check_kept
from still_ray.cli.preflight.resume import (
    check_same_recipe,
    is_complete,
    untrained,
    with_kept_format,
    with_kept_lengths,
)
from still_ray.config import Recipe, dump_recipe
from still_ray.store.atomic import write_json, write_text
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_inputs import hold_inputs


@dataclass(frozen=True, kw_only=True)
class ReadyRun:
    """A run that may start.

    Attributes:
        recipe: As recipe.yaml has it.
        resolved: With the paths of generated files filled in.
        backbone: Model directory or hub id of policy version 0.
        files: Its data.
        directory: The run directory, locked.
        notes: What a person should know of the model and of sizes, a line each.
        at_hand: What sizes follow from.
        baseline: Response format that the backbone is asked for first, see `Driver`.
    """

    recipe: Recipe
    resolved: Recipe
    backbone: str
    files: RunFiles
    directory: RunDirectory
    notes: tuple[str, ...]
    at_hand: AtHand
    baseline: str = ""


@contextmanager
def ready_run(recipe: Recipe, run_dir: str, *, option: str, note: Callable[[str], None]) -> Iterator[ReadyRun]:
    """Checks a recipe against its files, its model and the run directory, which it holds locked for the block.

    Args:
        recipe: The recipe.
        run_dir: The run directory; made if it is not there.
        option: What named it, for errors.
        note: Told why this waits for the lock, if it does.

    Raises:
        InputError: The recipe, a file or the run directory is wrong.
    """
    directory = RunDirectory(run_dir)
    check_kept(directory.root, option=option)
    backbone = resolve_backbone(recipe.model.path)
    recipe = with_kept_format(directory, recipe)
    model = check_model(backbone, recipe)
    recipe, at_hand, sizes = settled_lengths(
        with_kept_lengths(directory, recipe), model.shape, must_fit=not is_complete(directory, recipe)
    )
    check_trackers(recipe.trainer)
    check_own_objects(recipe)
    unasked = check_library_arguments(recipe, has_gpus=finds_gpus(at_hand))
    notes = (*end_of_turn_notes(backbone, model.end), *sizes, *unasked, *adapter_notes(recipe, model))
    directory.create(option=option)
    with directory.locked(note=note):
        recipe = with_date(recipe, directory, asks=model.asks_date)
        check_same_recipe(directory, recipe)
        check_room(directory.root, recipe, at_hand, num_checkpoints=len(untrained(directory, recipe)))
        resolved = with_format(with_world(recipe, directory), model.format.name)
        files = check_files(resolved.data, seed=recipe.seed, own=recipe.verifier.custom)
        check_turns(model, files)
        hold_inputs(directory, run_inputs(resolved, backbone, files))
        write_text(directory.recipe, dump_recipe(recipe, package_versions()))
        if not is_complete(directory, recipe):
            notes = (*notes, *crowding(recipe, at_hand))
            settings = run_settings(resolved, backbone, files, package_versions(), at_hand=at_hand)
            write_json(directory.evaluation_settings, settings)
        yield ReadyRun(
            recipe=recipe,
            resolved=resolved,
            backbone=backbone,
            files=files,
            directory=directory,
            notes=(*notes, *format_notes(model), *date_notes(recipe, asks=model.asks_date)),
            baseline=model.baseline(recipe),
            at_hand=at_hand,
        )
