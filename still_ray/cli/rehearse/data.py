"""The data of a rehearsal: a few rows of the recipe's files, or of the tiny world where these are not here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from still_ray.algo.exploration import choose_problems
from still_ray.algo.rehearsal.sizes import Sizes
from still_ray.config import DemonstrationsConfig, Recipe, TinyWorldConfig
from still_ray.formats.demonstrations import read_demonstrations, write_demonstrations
from still_ray.formats.problems import read_problems, validate_problems, write_problems
from still_ray.location import location
from still_ray.store.run_directory import RunDirectory
from still_ray.tiny_world.arithmetic import write_world
from still_ray.types import InputError, Problem

KINDS = ("demonstrations", "problems", "test")
_WORLD_FILES = {"forgetting": "test"}
"""The tiny world's file in place of one that is not here, where it is called otherwise."""


@dataclass(frozen=True, kw_only=True)
class RehearsalData:
    """What was written.

    Attributes:
        recipe: With the paths of the written files.
        answers: Reference answer of every problem by question, for the fakes.
        notes: Where the rows come from, one line each.
    """

    recipe: Recipe
    answers: dict[str, str]
    notes: tuple[str, ...]


def write_data(recipe: Recipe, directory: RunDirectory, sizes: Sizes) -> RehearsalData:
    """Writes the rows of a rehearsal into its run directory.

    Args:
        recipe: At rehearsal size.
        directory: The run directory, on this machine.
        sizes: How many rows.

    Raises:
        InputError: A row of the recipe's files is wrong.
    """
    folder = Path(str(directory.world))
    folder.mkdir(parents=True)
    found = _found(recipe, folder / "generated", sizes)
    if found["problems"].generated and recipe.data.tiny_world is None:
        recipe = _without_levels(recipe)  # those of other problems
    asked = {key: _asked(recipe, source, sizes) for key, source in found.items() if source.kind != "demonstrations"}
    for key, problems in asked.items():
        write_problems(folder / f"{key}.jsonl", problems)
    files = [source for source in found.values() if source.kind == "demonstrations"]
    each = max(1, sizes.demonstrations // len(files))
    counts = {key: len(problems) for key, problems in asked.items()}
    for source in files:
        shown = islice(read_demonstrations(source.path, general=source.general), each)
        counts[source.key] = write_demonstrations(folder / f"{source.key}.jsonl", shown)
    return RehearsalData(
        recipe=_at_hand(recipe, {key: str(folder / f"{key}.jsonl") for key in found}, counts),
        answers={problem.question: problem.answer for problems in asked.values() for problem in problems},
        notes=tuple(source.note(counts[source.key]) for source in found.values()),
    )


def _asked(recipe: Recipe, source: _Source, sizes: Sizes) -> list[Problem]:
    """The problems of a file that are rehearsed."""
    if source.kind == "problems":
        return list(_explored(recipe, source.path, sizes.problems))
    return list(islice(read_problems(source.path, own=recipe.verifier.custom), sizes.test))


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A file of the recipe, or the tiny world's in its place.

    Attributes:
        key: Below `data`: "problems", or "demonstrations.1" of several.
        path: Where the rows are.
        given: What the recipe names; None: nothing.
        generated: Whether the rows are the tiny world's.
        general: Whether they may lack a thought.
    """

    key: str
    path: str
    given: str | None
    generated: bool
    general: bool = False

    @property
    def kind(self) -> str:
        return self.key.partition(".")[0]

    def note(self, count: int) -> str:
        """What is rehearsed with, in a line."""
        if not self.generated:
            return f"data.{self.key}: {count} rows of {self.given}"
        missing = f"; {self.given} is not here" if self.given else ""
        return f"data.{self.key}: {count} rows of the tiny world{missing}"


def _found(recipe: Recipe, folder: Path, sizes: Sizes) -> dict[str, _Source]:
    """Where the rows of every file are, by key; those of the tiny world are written where a file is not here."""
    data = recipe.data
    several = isinstance(data.demonstrations, tuple)
    given: dict[str, tuple[str | None, bool]] = {
        f"demonstrations.{place}" if several else "demonstrations": (source.path, source.general)
        for place, source in enumerate(data.sources)
    } or {"demonstrations": (None, False)}
    given |= {"problems": (data.problems, False), "test": (data.test, False)}
    if data.forgetting is not None:
        given["forgetting"] = (data.forgetting.path, False)
    missing = [key for key, (path, _) in given.items() if path is None or not location(path).exists()]
    world = _written_world(recipe, folder, sizes) if missing else {}
    return {
        key: _Source(
            key=key,
            path=world[_WORLD_FILES.get(key, key.partition(".")[0])] if key in missing else str(path),
            given=path,
            generated=key in missing,
            general=general,
        )
        for key, (path, general) in given.items()
    }


def _at_hand(recipe: Recipe, paths: Mapping[str, str], counts: Mapping[str, int]) -> Recipe:
    """The recipe with other paths and numbers of rows, by key below `data`; a small weight still takes a row of few."""
    data = recipe.data

    def rehearsed(source: DemonstrationsConfig, key: str) -> DemonstrationsConfig:
        weight = max(source.weight, 1 / max(counts[key], 1))
        return source.model_copy(update={"path": paths[key], "name": source.label, "weight": weight})

    shown: Any = paths.get("demonstrations") or tuple(
        rehearsed(source, f"demonstrations.{place}") for place, source in enumerate(data.sources)
    )
    update = {"tiny_world": None, "problems": paths["problems"], "test": paths["test"], "demonstrations": shown}
    if data.forgetting is not None:
        update["forgetting"] = data.forgetting.model_copy(update={"path": paths["forgetting"]})
    return recipe.model_copy(update={"data": data.model_copy(update=update)})


def _written_world(recipe: Recipe, folder: Path, sizes: Sizes) -> dict[str, str]:
    """Generated files, in the recipe's own world if it has one."""
    world = recipe.data.tiny_world or TinyWorldConfig()
    try:
        write_world(
            folder,
            recipe.seed,
            num_demonstrations=min(world.num_demonstrations, sizes.demonstrations),
            num_problems=min(world.num_problems, sizes.problems * max(1, len(recipe.rounds))),
            num_test=min(world.num_test, sizes.test),
            difficulties=world.difficulties,
        )
    except ValueError as error:
        raise InputError(f"data.tiny_world: {error}") from None
    return {kind: str(folder / f"{kind}.jsonl") for kind in KINDS}


def _without_levels(recipe: Recipe) -> Recipe:
    rounds = [
        entry.model_copy(update={"explore": entry.explore and entry.explore.model_copy(update={"levels": None})})
        for entry in recipe.rounds
    ]
    return recipe.model_copy(update={"rounds": tuple(rounds)})


def _explored(recipe: Recipe, source: str, count: int) -> Iterator[Problem]:
    """Those that the rounds would draw of the whole file, were none of them solved before."""
    index = validate_problems(source, own=recipe.verifier.custom)
    levels = dict(zip(index.ids, index.levels, strict=True))
    wanted = set(index.ids[:count]) if not recipe.rounds else set[str]()
    for number, explore in recipe.explorations:
        fresh = {name: level for name, level in levels.items() if name not in wanted}
        wanted |= set(choose_problems(fresh, explore, solved=(), seed=recipe.seed, round_number=number))
    yield from (problem for problem in read_problems(source, own=recipe.verifier.custom) if problem.id in wanted)
