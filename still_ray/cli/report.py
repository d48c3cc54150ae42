"""`report`: one HTML file about a run, from its directory alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from still_ray.formats.problems import read_problems
from still_ray.location import Location, ObjectPath, location
from still_ray.report import REPORT_FILE
from still_ray.report.facts import Inputs
from still_ray.report.page import write_report
from still_ray.store.atomic import read_json
from still_ray.store.run_directory import RunDirectory
from still_ray.types import InputError, RunError

WORLD: Final = {"problems": "problems.jsonl", "test": "test.jsonl"}
PREPARED: Final = "report.json"
"""What `still-ray prepare` leaves beside its tables."""


def report(run_dir: str, output: str | None) -> None:
    """Writes the report of a run and says where it is.

    Raises:
        InputError: The directory holds no run, or the output cannot be written.
    """
    directory = RunDirectory(run_dir)
    target = directory.root / REPORT_FILE if output is None else _target(output)
    try:
        write_report(directory, target, read_inputs(directory))
    except OSError as error:
        raise InputError(f"{target}: cannot be written to ({error.strerror}); give another --output") from None
    print(f"written: {target}")  # noqa: T201 - the command's result


def read_inputs(directory: RunDirectory) -> Inputs:
    """What the files of a run's data say besides: levels of problems, counts of their preparation.

    A file that is gone costs the levels, not the report.
    """
    levels: dict[str, Mapping[str, int]] = {}
    prepared: dict[str, Mapping[str, Any]] = {}
    notes = []
    recipe = yaml.safe_load(directory.recipe.read_text(encoding="utf-8")) if directory.recipe.exists() else {}
    own = (recipe.get("verifier") or {}).get("custom") or {}
    for name, place in _data_files(directory, recipe.get("data") or {}):
        try:
            levels[name] = {one.id: one.level for one in read_problems(place, own=own) if one.level is not None}
        except (InputError, RunError, OSError) as error:
            notes.append(f"The levels of the {name} file are unknown: {error}.")
            continue
        counts = _counts_beside(place)
        if counts:
            prepared[name] = counts
    return Inputs(
        problem_levels=levels.get("problems", {}),
        test_levels=levels.get("test", {}),
        prepared=prepared,
        notes=tuple(notes),
    )


def _data_files(directory: RunDirectory, data: Mapping[str, Any]) -> Iterator[tuple[str, Location]]:
    """The files of problems that a run explores and is evaluated on, by the recipe's section."""
    for name, file in WORLD.items():
        if data.get(name):
            yield name, location(data[name])
        elif data.get("tiny_world"):
            yield name, directory.world / file


def _counts_beside(place: Location) -> Mapping[str, Any] | None:
    try:
        found = read_json(place.parent / PREPARED)
    except (InputError, RunError, OSError):
        return None
    return found if isinstance(found, dict) and {"rows", "filters"} <= found.keys() else None


def _target(output: str) -> Location:
    """The output as a place whose folder is there.

    Raises:
        InputError: It is a folder, or its folder is not there.
    """
    place = location(output)
    if isinstance(place, ObjectPath):
        return place
    if place.is_dir():
        raise InputError(f"--output {output}: is a folder; give a file, e.g. {place / REPORT_FILE}")
    if not place.parent.is_dir():
        raise InputError(f"--output {output}: there is no folder {place.parent}; create it, or give another file")
    return place
