"""`run` and `demo`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from still_ray.cli.console.background_report import reported
from still_ray.cli.console.progress import ConsoleProgress, print_note
from still_ray.cli.console.tables import print_final_table
from still_ray.cli.preflight.files import RunFiles
from still_ray.cli.preflight.machines import sandbox_problem
from still_ray.cli.preflight.provenance import this_command
from still_ray.cli.preflight.resume import is_complete
from still_ray.cli.preflight.run import ready_run
from still_ray.config import Recipe, load_recipe
from still_ray.store.metrics_log import MetricsLog


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
    with ready_run(load_recipe(path, overrides), run_dir, option="--run-dir", note=print_note) as ready:
        directory, recipe = ready.directory, ready.recipe
        progress = ConsoleProgress(MetricsLog(directory.metrics))
        with reported(directory, progress) as reporter, progress:
            _announce(progress, recipe, ready.files, run_dir)
            for note in ready.notes:
                progress.noted(note)
            if is_complete(directory, recipe):
                progress.noted("complete already: nothing to do; give another --run-dir to run again")
                reporter.make_missing()
            else:
                from still_ray.actors.session import RunInputs, Session

                inputs = RunInputs(
                    recipe=ready.resolved,
                    backbone=ready.backbone,
                    data=ready.files,
                    test_ids=ready.files.test.ids,
                    forgetting_ids=ready.files.forgetting_ids,
                    baseline=ready.baseline,
                    command=this_command(),
                    at_hand=ready.at_hand,
                )
                with Session(directory) as session:
                    session.run(inputs, directory, progress, reporter=reporter)
    print_final_table(directory, recipe)


def _announce(progress: ConsoleProgress, recipe: Recipe, files: RunFiles, run_dir: str) -> None:
    progress.noted(
        f"{recipe.name}: {files.num_demonstrations} demonstrations, {files.problems.count} problems, "
        f"{files.test.count} held-out problems; run directory {run_dir}"
    )
    if len(files.shown) > 1:
        progress.noted(f"demonstrations of an epoch: {', '.join(file.said for file in files.shown)}")
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
    if files.forgetting is not None and files.num_leaked_general:
        progress.noted(
            f"warning: {files.num_leaked_general} of {files.forgetting.count} general problems are also among the "
            "demonstrations or problems: forgetting cannot be told from them"
        )
    if problem := sandbox_problem(files, recipe.verifier):
        progress.noted(f"warning: every verdict on code will be error: no sandbox: {problem}")
