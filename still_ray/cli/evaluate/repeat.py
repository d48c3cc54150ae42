"""`evaluate --repeat`: a result made again from what it says of itself, and whether it is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from still_ray.algo.evaluation.repetition import INPUTS, Repetition, compare_repetition
from still_ray.cli.console.progress import ConsoleProgress
from still_ray.cli.console.tables import result_console
from still_ray.cli.evaluate.command import Cell, carry_out
from still_ray.cli.evaluate.request import (
    EvaluateOptions,
    check_models,
    dated_models,
    notes_of,
    read_benchmark,
    settled_models,
)
from still_ray.cli.preflight.evaluated import EvaluatedModel
from still_ray.cli.preflight.provenance import package_versions, settings_of
from still_ray.cli.preflight.ray_job import check_kept
from still_ray.config import Recipe
from still_ray.formats.benchmarks import BenchmarkSource, find_benchmarks
from still_ray.formats.responses.markers import MARKED
from still_ray.location import Location, location
from still_ray.store.atomic import read_json, write_json, write_text
from still_ray.store.evaluations import RESULT, EvaluationFolder
from still_ray.store.run_directory import RunDirectory
from still_ray.types import SCHEMA_VERSION, InputError

REPEAT = "repeat.json"
PROMPT = "prompt_template.txt"
SHOWN_PROBLEMS = 10
NEEDED = ("model", "benchmark", "prompt", "chat_template", "verifier", "versions", "recipe", "raw_outputs", "accuracy")
"""Keys of a result that can be repeated."""


def repeat_result(options: EvaluateOptions) -> None:
    """Does a result again, prints what is the same and what is not, and writes repeat.json.

    Raises:
        InputError: There is no such result, or what it names is gone.
        RunError: The evaluation failed.
        typer.Exit: With status 1, where the repetition does not match.
    """
    assert options.repeat is not None, "asked for"
    _refuse_others(options)
    first = EvaluationFolder(_folder_of(options.repeat))
    before = _result_of(first)
    rows_before = first.raw()
    directory = RunDirectory(options.output or str(_next_folder(first.root)))
    check_kept(directory.root, option="--output")
    directory.create(option="--output")
    with ConsoleProgress(None) as progress, directory.locked(progress.noted):
        _refuse_finished(directory.root, first.root)
        cell, notes = _cell(before, directory)
        for note in notes:
            progress.noted(note)
        carry_out([cell], directory, progress)
    now = cell.folder.result() or {}
    repetition = compare_repetition(before, now, rows_before, cell.folder.raw())
    record = {"schema_version": SCHEMA_VERSION, "repeats": str(first.root), "matches": repetition.matches}
    write_json(directory.root / REPEAT, {**record, **asdict(repetition)})
    for line in lines_of(repetition):
        result_console().print(line, markup=False)
    if not repetition.matches:
        raise typer.Exit(1)


def lines_of(repetition: Repetition) -> list[str]:
    """One line for each thing that was compared, and one that says whether all of them are the same."""
    lines = [f"{name}: {_input_line(repetition, name)}" for name in INPUTS]
    lines += [f"{name}: version {before}, now {now}" for name, (before, now) in repetition.versions.items()]
    lines.append(f"responses: {repetition.num_same} of {repetition.num_responses} the same, word for word")
    lines += [f"response differs: {_shown(repetition.other_text)}"] if repetition.other_text else []
    lines += [f"verdict differs: {_shown(repetition.other_verdict)}"] if repetition.other_verdict else []
    before, now = repetition.accuracy
    lines.append(f"accuracy: {before:.1%}, now {now:.1%}")
    return [*lines, "it matches" if repetition.matches else "it does not match"]


def _input_line(repetition: Repetition, name: str) -> str:
    if name not in repetition.inputs:
        return "the same"
    before, now = repetition.inputs[name]
    return f"differs: sha256 {before}, now {now}" if before and now else "cannot be told: no digest"


def _shown(problems: Sequence[str]) -> str:
    more = f" and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
    return f"{len(problems)} problems: {', '.join(problems[:SHOWN_PROBLEMS])}{more}"


def _refuse_others(options: EvaluateOptions) -> None:
    """A repetition takes everything from the result."""
    asked = EvaluateOptions(repeat=options.repeat, output=options.output)
    for name, value in asdict(options).items():
        if value != getattr(asked, name):
            option = {"models": "model", "benchmarks": "benchmark", "overrides": "set"}.get(name, name)
            raise InputError(f"--repeat takes everything from the result: leave --{option.replace('_', '-')} out")


def _folder_of(given: str) -> Location:
    place = location(given)
    place = place.parent if place.name == RESULT else place
    return place.resolve() if isinstance(place, Path) else place


def _result_of(folder: EvaluationFolder) -> dict[str, Any]:
    """A result with everything that a repetition needs.

    Raises:
        InputError: There is none, or it is not of this command.
    """
    result = folder.result()
    if result is None:
        raise InputError(f"{folder.root}: holds no {RESULT}; give the folder of one model on one benchmark")
    missing = [key for key in NEEDED if key not in result]
    if missing:
        raise InputError(
            f"{folder.root / RESULT}: cannot be repeated: it lacks {missing[0]}, which still-ray evaluate writes"
        )
    return result


def _refuse_finished(root: Location, first: Location) -> None:
    """Refuses a folder that holds a result already: nothing would be sampled, and it would be compared with itself.

    A repetition that ended between its result and its comparison is none: it has its prompt, and no repeat.json.
    """
    compared_yet = (root / REPEAT).exists() or not (root / PROMPT).exists()
    if (root / RESULT).exists() and (root == first or compared_yet):
        raise InputError(f"{root}: holds a result already, which would not be made again; give another --output")


def _next_folder(root: Location) -> Location:
    """repeat-001 beside the result, or the next number; one that is not finished is resumed."""
    number = 1
    while read_json(root / f"repeat-{number:03d}" / REPEAT) is not None:
        number += 1
    return root / f"repeat-{number:03d}"


def _cell(before: dict[str, Any], directory: RunDirectory) -> tuple[Cell, list[str]]:
    """The same model on the same benchmark, under the prompt as it was, and what a person should know of it."""
    template = directory.root / PROMPT
    write_text(template, before["prompt"]["text"])
    recipe = _recipe(before["recipe"], template)
    model = EvaluatedModel(before["model"]["name"], before["model"]["path"], recipe)
    checked = check_models([model])
    (model,), sizes = settled_models([model], checked)
    (model,) = dated_models([model], checked, directory)
    seed = before["benchmark"]["options_seed"]
    source = _source(before["benchmark"])
    seed = recipe.evaluate.seed if seed is None else seed
    own = recipe.verifier.custom
    benchmark = read_benchmark(source, directory.root / "benchmarks", seed=seed, own=own)
    folder = EvaluationFolder(directory.root)
    settings = settings_of(model, benchmark, package_versions())
    notes = notes_of([model], checked) + sizes
    return Cell(model=model, benchmark=benchmark, folder=folder, settings=settings), notes


def _recipe(recorded: dict[str, Any], template: Location) -> Recipe:
    prompt = {"format": MARKED.name, **recorded.get("prompt", {})}  # the only one before results named it
    raw = {**recorded, "prompt": {**prompt, "template": str(template)}}
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(f"{RESULT}: the recipe in it is of another release: {where}") from None


def _source(recorded: dict[str, Any]) -> BenchmarkSource:
    """Where the benchmark was, under the name that it had.

    Raises:
        InputError: It is gone.
    """
    (found,) = find_benchmarks(recorded["source"], None)
    return BenchmarkSource(name=recorded["name"], source=found.source, domain=recorded["domain"])
