"""`rehearse`: the whole run of a recipe on declared machines, with fake engines and trainers, faults and all."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from still_ray.algo.placement import resolve
from still_ray.algo.planning.budget import DeviceCounts, RunCost, Speed
from still_ray.algo.planning.plan import run_cost
from still_ray.algo.planning.workload import ASSUMED
from still_ray.algo.rehearsal.faults import NO_FAULTS, plan_faults
from still_ray.algo.rehearsal.machines import Machine, machines_of_fleet, machines_of_options
from still_ray.algo.rehearsal.sizes import Sizes, cut
from still_ray.cli.console.background_report import reported
from still_ray.cli.console.progress import ConsoleProgress, print_note
from still_ray.cli.preflight.files import check_files
from still_ray.cli.preflight.library_arguments import check_library_arguments
from still_ray.cli.preflight.models import check_scopes, shape_of
from still_ray.cli.preflight.own_code import check_own_objects
from still_ray.cli.rehearse.checks import Check, checks_of
from still_ray.cli.rehearse.data import RehearsalData, write_data
from still_ray.cli.rehearse.printing import print_rehearsal, rehearsal_as_json
from still_ray.cli.rehearse.rehearsal import Rehearsal
from still_ray.config import Recipe, dump_recipe, load_recipe
from still_ray.formats.prompt import load_template
from still_ray.location import is_uri
from still_ray.store.atomic import write_json, write_text
from still_ray.store.metrics_log import MetricsLog
from still_ray.store.run_directory import RunDirectory
from still_ray.types import InputError, RunError

if TYPE_CHECKING:
    from still_ray.actors.rehearsal.run import RehearsalRun

MARK: Final = "rehearsal"
"""Key of recipe.yaml and state.json that tells a rehearsal from a run; `run` knows no such key."""


@dataclass(frozen=True, kw_only=True)
class RehearseOptions:
    """What the command line says; see its help."""

    recipe: Path
    cluster: Path | None
    nodes: int | None
    devices_per_node: int | None
    cpus_per_node: int | None
    problems: int
    faults: bool
    run_dir: str | None
    overrides: tuple[str, ...]
    as_json: bool


def rehearse(options: RehearseOptions) -> None:
    """Rehearses a recipe and prints what was seen.

    Raises:
        InputError: The recipe, a file or an option is wrong, or the recipe does not fit the machines.
        RunError: The run failed, or something did not hold.
    """
    recipe = load_recipe(options.recipe, options.overrides)
    load_template(recipe.prompt.template)
    check_own_objects(recipe)
    check_scopes(recipe, recipe.prompt.format)
    machines = _machines(recipe, options)
    has_gpus = any(machine.gpus for machine in machines)
    for note in check_library_arguments(recipe, has_gpus=has_gpus):
        print_note(note)
    small, cuts = cut(recipe, Sizes(problems=options.problems), has_gpus=has_gpus)
    plan = plan_faults(small, num_workers=len(machines) - 1) if options.faults else NO_FAULTS
    directory = _empty_directory(options)
    with directory.locked():
        data = write_data(small, directory, Sizes(problems=options.problems))
        rehearsal = Rehearsal(recipe=data.recipe, machines=machines, cuts=cuts, plan=plan)
        _mark(directory, rehearsal)
        rehearsed = _performed(rehearsal, data, directory)
        checks = checks_of(rehearsal.recipe, directory, rehearsed, has_gpus=rehearsal.has_gpus)
        planned = _planned(recipe, rehearsal, rehearsed)
        result = rehearsal_as_json(rehearsal, data, directory, rehearsed, checks, planned=planned)
        write_json(directory.root / "rehearsal.json", result)
    if options.as_json:
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    else:
        print_rehearsal(result)
    _require(checks)


def _planned(recipe: Recipe, rehearsal: Rehearsal, rehearsed: RehearsalRun) -> RunCost | None:
    """What `plan` counts for the recipe at its own size, on as many devices as were seen at work and held.

    None without GPUs, and for a model whose shape is not known here.
    """
    if not rehearsal.has_gpus:
        return None
    try:
        shape = shape_of(recipe.model.path)
    except InputError:
        return None
    seen = rehearsed.devices
    devices = DeviceCounts(sampling=seen.num_sampling, training=seen.num_training, held=seen.num_held)
    return run_cost(resolve(recipe, has_gpus=True), shape, ASSUMED, Speed(), devices)


def _require(checks: Sequence[Check]) -> None:
    if failed := [check for check in checks if not check.holds]:
        raise RunError("the rehearsal did not hold: " + "; ".join(f"{one.name}: {one.detail}" for one in failed))


def _machines(recipe: Recipe, options: RehearseOptions) -> tuple[Machine, ...]:
    if options.cluster is None:
        return machines_of_options(
            recipe, nodes=options.nodes, devices=options.devices_per_node, cpus=options.cpus_per_node
        )
    if (options.nodes, options.devices_per_node, options.cpus_per_node) != (None, None, None):
        raise InputError("--cluster describes the machines: leave --nodes, --devices-per-node and --cpus-per-node out")
    from still_ray.cli.preflight.machines import cluster_fleet

    fleet = cluster_fleet(options.cluster)
    documents = yaml.safe_load_all(options.cluster.read_text(encoding="utf-8"))
    heads = (one["head_node_type"] for one in documents if isinstance(one, dict) and "head_node_type" in one)
    return machines_of_fleet(recipe, fleet, head=str(next(heads, "head")), where=str(options.cluster))


def _empty_directory(options: RehearseOptions) -> RunDirectory:
    """The run directory: a new folder, unless one is given.

    Raises:
        InputError: It holds something, or is not on this machine.
    """
    if options.run_dir is None:
        return RunDirectory(tempfile.mkdtemp(prefix="still-ray-rehearsal-"))
    if is_uri(options.run_dir):
        raise InputError(f"--run-dir {options.run_dir}: a rehearsal writes to this machine alone; give a folder")
    directory = RunDirectory(options.run_dir)
    root = Path(str(directory.root))
    if (root / "recipe.yaml").exists():
        held = "an earlier rehearsal" if is_rehearsal(directory) else "a run"
        raise InputError(f"{root}: holds {held}; a rehearsal starts in an empty folder, give another --run-dir")
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root}: is not empty; a rehearsal starts in an empty folder, give another --run-dir")
    directory.create(option="--run-dir")
    return directory


def is_rehearsal(directory: RunDirectory) -> bool:
    """Whether a run directory was made by fakes."""
    if not directory.recipe.exists():
        return False
    stored = yaml.safe_load(directory.recipe.read_text(encoding="utf-8"))
    return isinstance(stored, dict) and bool(stored.get(MARK))


def _mark(directory: RunDirectory, rehearsal: Rehearsal) -> None:
    """Writes recipe.yaml, which `run` does not take."""
    head = "# The recipe of a rehearsal, at its size: every checkpoint and response beside it was made by fakes.\n"
    write_text(directory.recipe, f"{head}{MARK}: true\n{dump_recipe(rehearsal.recipe, {})}")


def _performed(rehearsal: Rehearsal, data: RehearsalData, directory: RunDirectory) -> RehearsalRun:
    recipe = rehearsal.recipe
    files = check_files(recipe.data, seed=recipe.seed, own=recipe.verifier.custom)
    progress = ConsoleProgress(MetricsLog(directory.metrics))
    with reported(directory, progress) as reporter, progress:
        _announce(progress, rehearsal, data, directory)
        from still_ray.actors.rehearsal.run import rehearse as rehearse_on_ray
        from still_ray.actors.session import RunInputs

        inputs = RunInputs(
            recipe=recipe,
            backbone=recipe.model.path,
            data=files,
            test_ids=files.test.ids,
            forgetting_ids=files.forgetting_ids,
        )
        return rehearse_on_ray(
            inputs,
            directory,
            rehearsal.machines,
            rehearsal.plan,
            answers=data.answers,
            progress=progress,
            reporter=reporter,
        )


def _announce(progress: ConsoleProgress, rehearsal: Rehearsal, data: RehearsalData, directory: RunDirectory) -> None:
    workers = rehearsal.machines[1:]
    progress.noted(
        f"rehearsal of {rehearsal.recipe.name} on {len(workers)} declared machines and a head, "
        f"{sum(machine.gpus for machine in workers):g} GPUs: engines and trainers are fakes; in {directory.root}"
    )
    for line in (*data.notes, *(f"{one.key}: {one.before} -> {one.after}" for one in rehearsal.cuts)):
        progress.noted(f"rehearsal size: {line}")
    for line in rehearsal.plan.left_out:
        progress.noted(f"not rehearsed: death of a {line}")
