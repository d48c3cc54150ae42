"""The strict schema of an ablation matrix: one recipe, several variations of it, several seeds, one table."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from still_ray.config.loading import absolute_paths, load_section, read_recipe, recipe_from
from still_ray.config.recipe import Recipe
from still_ray.config.schema import Section, merged
from still_ray.types import InputError

RunName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0)]
Overrides = dict[str, Any]
"""Sections of a recipe, merged into the base recipe key by key; a list such as `rounds` is replaced as a whole."""
GIVEN = {"seed": "the matrix gives it: put it into `seeds`", "name": "it is made of the matrix, the run and the seed"}
"""Keys of a recipe that no override may set, and why."""


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"each seed once: {list(seeds)}")
    return seeds


class PaperRow(Section):
    """What the paper says of a row, for display beside the measured figures."""

    label: str = Field(description="The row as the paper names it.")
    scores: dict[str, float] = Field(default_factory=dict, description="Per cent by benchmark.")


class RowConfig(Section):
    """One row of the table: one stage of one run, over all seeds."""

    name: str = Field(min_length=1, description="Heading of the row.")
    run: str = Field(description="Which of `runs`.")
    stage: str = Field(description="Which stage of it, e.g. 001-sft; its evaluation is the row's result.")
    paper: PaperRow | None = Field(default=None, description="The paper's own figures. null: it has no such row.")


class ComparisonConfig(Section):
    """Two rows on the same problems."""

    first: str = Field(description="A row.")
    second: str = Field(description="Another row.")
    question: str = Field(default="", description="What the comparison is to answer.")


class Matrix(Section):
    """A whole ablation."""

    name: RunName = Field(description="Name of the ablation in the dashboard and the metrics.")
    title: str = Field(default="", description="Heading of the table.")
    recipe: str = Field(description="The recipe that every run starts from; relative to the matrix.")
    seeds: Annotated[tuple[Seed, ...], AfterValidator(_different)] = Field(
        strict=False, min_length=1, description="Every run once for each; at least 3 for an interval worth its name."
    )
    overrides: Overrides = Field(default_factory=dict, description="What differs from the recipe in every run.")
    runs: dict[RunName, Overrides] = Field(min_length=1, description="What differs in each run.")
    rows: tuple[RowConfig, ...] = Field(strict=False, min_length=1, description="The rows of the table, in order.")
    comparisons: tuple[ComparisonConfig, ...] = Field(
        default=(), strict=False, description="Pairs of rows that are compared problem by problem."
    )
    paper: str = Field(default="", description="Where the paper's figures are from.")

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        names = Counter(row.name for row in self.rows)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"rows: two are named {repeated[0]!r}; each needs a name of its own")
        for index, row in enumerate(self.rows):
            if row.run not in self.runs:
                raise ValueError(f"rows.{index}.run: there is no run {row.run!r}; there are {', '.join(self.runs)}")
        if unused := [name for name in self.runs if name not in {row.run for row in self.rows}]:
            raise ValueError(f"runs.{unused[0]}: no row uses it; leave it out or add a row")
        for index, comparison in enumerate(self.comparisons):
            for key, name in (("first", comparison.first), ("second", comparison.second)):
                if name not in names:
                    raise ValueError(f"comparisons.{index}.{key}: there is no row {name!r}")
            if comparison.first == comparison.second:
                raise ValueError(f"comparisons.{index}: {comparison.first!r} is compared with itself")
        return self

    @model_validator(mode="after")
    def _overrides_leave_what_is_given(self) -> Self:
        parts = {"overrides": self.overrides, **{f"runs.{name}": values for name, values in self.runs.items()}}
        for where, values in parts.items():
            for key, why in GIVEN.items():
                if key in values:
                    raise ValueError(f"{where}.{key}: {why}")
        return self

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """The paper's benchmarks, in the order in which the rows name them."""
        named = (benchmark for row in self.rows if row.paper for benchmark in row.paper.scores)
        return tuple(dict.fromkeys(named))


def load_matrix(path: Path) -> Matrix:
    """Reads and validates a matrix; the recipes of its runs are not looked at.

    Raises:
        InputError: The file, a key or a value is wrong; one line.
    """
    return load_section(Matrix, path, resolve=_absolute)


def load_run(matrix: Matrix, run: str, seed: int, overrides: tuple[str, ...] = (), *, origin: str) -> Recipe:
    """The recipe of one run of a matrix.

    Args:
        matrix: The matrix.
        run: Name of the run.
        seed: Its seed.
        overrides: "dotted.key=value" texts for every run.
        origin: The matrix file, for errors.

    Raises:
        InputError: The base recipe cannot be read, the run's own recipe is wrong, or an override sets what the matrix
            gives; names the run and the key.
    """
    for text in overrides:
        key = text.partition("=")[0].partition(".")[0]
        if key in GIVEN:
            raise InputError(f"--set {text}: {key}: {GIVEN[key]}")
    raw = merged(merged(read_recipe(Path(matrix.recipe)), matrix.overrides), matrix.runs[run])
    named = {**raw, "name": f"{matrix.name}-{run}-seed{seed}", "seed": seed}
    return recipe_from(named, overrides, origin=f"{origin}: runs.{run}")


def _absolute(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The matrix with its relative paths taken from a folder."""
    result = dict(raw)
    if isinstance(raw.get("recipe"), str):
        result["recipe"] = os.path.normpath(folder / Path(raw["recipe"]).expanduser())
    if isinstance(raw.get("overrides"), dict):
        result["overrides"] = absolute_paths(raw["overrides"], folder)
    if isinstance(raw.get("runs"), dict):
        result["runs"] = {
            name: absolute_paths(values, folder) if isinstance(values, dict) else values
            for name, values in raw["runs"].items()
        }
    return result
