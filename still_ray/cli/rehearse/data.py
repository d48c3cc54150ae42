"""The data of a rehearsal: a few rows of the recipe's files, or of the tiny world where these are not here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from still_ray.algo.exploration import choose_problems
from still_ray.algo.rehearsal.sizes import Sizes
from still_ray.config import Recipe, TinyWorldConfig
from still_ray.formats.demonstrations import read_demonstrations, write_demonstrations
from still_ray.formats.problems import read_problems, validate_problems, write_problems
from still_ray.location import location
from still_ray.store.run_directory import RunDirectory
from still_ray.tiny_world.arithmetic import write_world
from still_ray.types import InputError, Problem

KINDS = ("demonstrations", "problems", "test")


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
    given = {kind: getattr(recipe.data, kind) for kind in KINDS}
    missing = [kind for kind, path in given.items() if path is None or not location(path).exists()]
    world = _written_world(recipe, folder / "generated", sizes) if missing else {}
    sources = {kind: world[kind] if kind in missing else str(given[kind]) for kind in KINDS}
    if "problems" in missing and recipe.data.tiny_world is None:
        recipe = _without_levels(recipe)  # those of other problems
    paths = {kind: str(folder / f"{kind}.jsonl") for kind in KINDS}
    num_shown = _write_shown(sources["demonstrations"], paths["demonstrations"], sizes.demonstrations)
    explored = list(_explored(recipe, sources["problems"], sizes.problems))
    held_out = list(islice(read_problems(sources["test"], own=recipe.verifier.custom), sizes.test))
    write_problems(paths["problems"], explored)
    write_problems(paths["test"], held_out)
    data = recipe.data.model_copy(update={"tiny_world": None, **paths})
    counts = {"demonstrations": num_shown, "problems": len(explored), "test": len(held_out)}
    return RehearsalData(
        recipe=recipe.model_copy(update={"data": data}),
        answers={problem.question: problem.answer for problem in (*explored, *held_out)},
        notes=tuple(_note(kind, counts[kind], given[kind], generated=kind in missing) for kind in KINDS),
    )


def _note(kind: str, count: int, path: str | None, *, generated: bool) -> str:
    if not generated:
        return f"data.{kind}: {count} rows of {path}"
    return f"data.{kind}: {count} rows of the tiny world" + (f"; {path} is not here" if path else "")


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


def _write_shown(source: str, target: str, count: int) -> int:
    shown = list(islice(read_demonstrations(source), count))
    write_demonstrations(target, shown)
    return len(shown)


def _explored(recipe: Recipe, source: str, count: int) -> Iterator[Problem]:
    """Those that the rounds would draw of the whole file, were none of them solved before."""
    index = validate_problems(source, own=recipe.verifier.custom)
    levels = dict(zip(index.ids, index.levels, strict=True))
    wanted = set(index.ids[:count]) if not recipe.rounds else set[str]()
    for number, explore in recipe.explorations:
        fresh = {name: level for name, level in levels.items() if name not in wanted}
        wanted |= set(choose_problems(fresh, explore, solved=(), seed=recipe.seed, round_number=number))
    yield from (problem for problem in read_problems(source, own=recipe.verifier.custom) if problem.id in wanted)
