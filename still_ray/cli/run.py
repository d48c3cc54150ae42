"""`run` and `demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from still_ray.cli.console.background_report import reported
from still_ray.cli.console.progress import ConsoleProgress, print_note
from still_ray.cli.console.tables import print_final_table
from still_ray.cli.preflight.files import RunFiles, check_files, with_world
from still_ray.cli.preflight.inputs import run_inputs
from still_ray.cli.preflight.machines import check_room, check_trackers
from still_ray.cli.preflight.models import check_model, date_notes, end_of_turn_notes, resolve_backbone, with_date
from still_ray.cli.preflight.own_code import check_own_objects
from still_ray.cli.preflight.provenance import package_versions, run_settings
from still_ray.cli.preflight.ray_job import check_kept
from still_ray.cli.preflight.resume import check_same_recipe, is_complete, untrained
from still_ray.cli.preflight.verifiers import sandbox_problem
from still_ray.config import Recipe, dump_recipe, load_recipe
from still_ray.store.atomic import write_json, write_text
from still_ray.store.metrics_log import MetricsLog
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_inputs import hold_inputs


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
    check_own_objects(recipe)
    directory.create(option="--run-dir")
    with directory.locked(note=print_note):
        recipe = with_date(recipe, directory, asks=model.asks_date)
        check_same_recipe(directory, recipe)
        num_checkpoints = len(untrained(directory, recipe))
        check_room(directory.root, recipe, num_checkpoints=num_checkpoints, num_parameters=model.num_parameters)
        resolved = with_world(recipe, directory)
        files = check_files(resolved.data, own=recipe.verifier.custom)
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
                from still_ray.actors.session import RunInputs, Session

                settings = run_settings(resolved, backbone, files.test, package_versions())
                write_json(directory.evaluation_settings, settings)
                inputs = RunInputs(recipe=resolved, backbone=backbone, data=files, test_ids=files.test.ids)
                with Session(directory) as session:
                    session.run(inputs, directory, progress, reporter=reporter)
    print_final_table(directory, recipe)


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
