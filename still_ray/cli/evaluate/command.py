"""`evaluate`: models on benchmarks, side by side, with results that say what they are the results of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from still_ray.cli.console.progress import ConsoleProgress
from still_ray.cli.evaluate.printing import compared, differing_settings, print_comparisons, print_results
from still_ray.cli.evaluate.request import (
    EvaluateOptions,
    check_models,
    dated_models,
    default_output,
    notes_of,
    planned_models,
    planned_sources,
    read_benchmark,
    settled_models,
)
from still_ray.cli.preflight.evaluated import EvaluatedBenchmark, EvaluatedModel
from still_ray.cli.preflight.machines import crowding, sandbox_problem
from still_ray.cli.preflight.provenance import package_versions, result_of, settings_of
from still_ray.cli.preflight.ray_job import check_kept
from still_ray.facts import EvaluationFacts
from still_ray.location import Location
from still_ray.store.evaluations import EvaluationFolder
from still_ray.store.run_directory import RunDirectory
from still_ray.types import InputError, Trajectory


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model on one benchmark.

    Attributes:
        model: The model.
        benchmark: The benchmark.
        folder: Where its result is, or will be.
        settings: What decides the result.
    """

    model: EvaluatedModel
    benchmark: EvaluatedBenchmark
    folder: EvaluationFolder
    settings: dict[str, Any]

    @property
    def title(self) -> str:
        """What a person is told."""
        config = self.model.recipe.evaluate
        samples = f" x {config.num_samples} samples" if config.num_samples > 1 else ""
        num_problems = self.settings["benchmark"]["num_problems"]
        return f"evaluate {self.model.name} on {self.benchmark.name}: {num_problems} problems{samples}"

    def finish(self, rows: list[Trajectory], summary: EvaluationFacts) -> None:
        """Writes the result."""
        facts = result_of(self.settings, self.model, self.benchmark, rows, summary)
        self.folder.finish(rows, {**facts, "versions": package_versions()})


def evaluate_models(options: EvaluateOptions) -> None:
    """Evaluates, or resumes what the output folder holds, and prints results and comparisons.

    Raises:
        InputError: A model, a benchmark or an option is wrong, or the folder holds other evaluations.
        RunError: The evaluation failed.
    """
    if not options.models or not options.benchmarks:
        raise InputError("evaluate: give --model and --benchmark, or --repeat RESULT")
    models = planned_models(options)
    sources = planned_sources(options)
    checked = check_models(models)
    models, sizes = settled_models(models, checked)
    directory = RunDirectory(options.output or default_output(models, sources))
    check_kept(directory.root, option="--output")
    directory.create(option="--output")
    with ConsoleProgress(None) as progress, directory.locked(progress.noted):
        models = dated_models(models, checked, directory)
        for note in (*notes_of(models, checked), *sizes):
            progress.noted(note)
        seed, own = models[0].recipe.evaluate.seed, models[0].recipe.verifier.custom
        place = directory.root / "benchmarks"
        benchmarks = [read_benchmark(source, place, seed=seed, own=own) for source in sources]
        cells = _cells(models, benchmarks, directory.root)
        carry_out(cells, directory, progress)
    results = [cell.folder.result() or {} for cell in cells]
    print_results(results, directory.root)
    if len(models) > 1:
        print_comparisons(compared(results, directory.root), differing_settings(results))


def _cells(models: Sequence[EvaluatedModel], benchmarks: Sequence[EvaluatedBenchmark], root: Location) -> list[Cell]:
    """Every model on every benchmark; a single one has the whole folder for itself, and keeps it beside later ones."""
    alone = len(models) == len(benchmarks) == 1

    def cell_of(model: EvaluatedModel, benchmark: EvaluatedBenchmark) -> Cell:
        settings, whole = settings_of(model, benchmark, package_versions()), EvaluationFolder(root)
        own = EvaluationFolder(root / model.name / benchmark.name)
        folder = whole if alone or whole.holds(settings) else own
        return Cell(model=model, benchmark=benchmark, folder=folder, settings=settings)

    return [cell_of(model, benchmark) for model in models for benchmark in benchmarks]


def carry_out(cells: Sequence[Cell], directory: RunDirectory, progress: ConsoleProgress) -> None:
    """Evaluates what is not complete yet.

    Raises:
        InputError: A folder holds an evaluation with other settings; nothing has started then.
        RunError: The evaluation failed.
    """
    for cell in cells:
        cell.folder.open(cell.settings)
    unfinished = [cell for cell in cells if cell.folder.result() is None]
    for benchmark in {cell.benchmark.name: cell.benchmark for cell in cells}.values():
        if repeated := benchmark.index.num_duplicates:
            progress.noted(f"{repeated} rows of {benchmark.name} repeat earlier ones and are left out")
    for cell in cells:
        _announce(cell, progress, complete=cell not in unfinished)
    if not unfinished:
        return
    for model in {cell.model.name: cell.model for cell in unfinished}.values():
        for note in crowding(model.recipe, model.at_hand, trains=False):
            progress.noted(f"{model.name}: {note}")
    from still_ray.actors.evaluations import BenchmarkJob, ModelJob
    from still_ray.actors.evaluations import evaluate_models as evaluate_on_ray

    def job_of(cell: Cell) -> BenchmarkJob:
        return BenchmarkJob(
            title=cell.title,
            path=cell.benchmark.path,
            ids=cell.benchmark.ids(cell.model.recipe.evaluate.num_problems),
            journal=cell.folder,
            finished=cell.finish,
        )

    by_model: dict[str, list[Cell]] = {}
    for cell in unfinished:
        by_model.setdefault(cell.model.name, []).append(cell)
    jobs = [
        ModelJob(
            recipe=mine[0].model.recipe,
            backbone=mine[0].model.backbone,
            benchmarks=[job_of(cell) for cell in mine],
            at_hand=mine[0].model.at_hand,
        )
        for mine in by_model.values()
    ]
    evaluate_on_ray(jobs, directory, progress)


def _announce(cell: Cell, progress: ConsoleProgress, *, complete: bool) -> None:
    if complete:
        progress.noted(f"{cell.title}: complete already")
        return
    if kept := len(cell.folder.keys()):
        progress.noted(f"{cell.title}: {kept} responses are there, going on")
    if problem := sandbox_problem(cell.benchmark.files, cell.model.recipe.verifier):
        progress.noted(f"warning: every verdict on code will be error: no sandbox: {problem}")
