"""The files of a run, read once before it starts."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from still_ray.config import DataConfig, Recipe, TinyWorldConfig
from still_ray.formats.demonstrations import read_demonstrations
from still_ray.formats.problems import ProblemIndex, validate_problems
from still_ray.location import Location, ObjectPath
from still_ray.prepare.filters.words import unspaced_hash
from still_ray.store.run_directory import RunDirectory
from still_ray.store.transfer import files_below, upload
from still_ray.tiny_world.arithmetic import write_world
from still_ray.types import Demonstration, InputError


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of a run, validated.

    Attributes:
        demonstrations_path: A file that `still_ray.rows` reads.
        problems: Ids and levels of the problems to explore.
        test: Ids and levels of the held-out problems.
        num_demonstrations: Their number.
        num_leaked: Held-out questions that are also among the demonstrations or problems, however they are spelled.
        num_control: Demonstrations left out because a control token stands in them as text.
    """

    demonstrations_path: str
    problems: ProblemIndex
    test: ProblemIndex
    num_demonstrations: int
    num_leaked: int
    num_control: int = 0

    @cached_property
    def _levels(self) -> dict[str, int | None]:
        return dict(zip(self.problems.ids, self.problems.levels, strict=True))

    def problem_levels(self) -> Mapping[str, int | None]:
        """See `still_ray.driver.ports.Data`."""
        return self._levels

    def demonstrations(self) -> Iterator[Demonstration]:
        """See `still_ray.driver.ports.Data`."""
        return read_demonstrations(self.demonstrations_path)

    def num_left_out(self) -> int:
        """See `still_ray.driver.ports.Data`."""
        return self.num_control


def check_files(data: DataConfig, *, own: Container[str] = ()) -> RunFiles:
    """Reads every file of a run once, keeping none of its text.

    Args:
        data: Its files.
        own: The domains that have a verifier of the user's own.

    Raises:
        InputError: A file is missing or a row is wrong.
    """
    assert data.demonstrations and data.problems and data.test, "resolved by with_world"  # noqa: PT018
    asked: list[int] = []
    seen: set[int] = set()
    test = validate_problems(data.test, own=own, each=lambda problem: asked.append(unspaced_hash(problem.question)))
    problems = validate_problems(data.problems, own=own, each=lambda problem: seen.add(unspaced_hash(problem.question)))
    num_demonstrations, left_out = 0, Counter[str]()
    for demonstration in read_demonstrations(data.demonstrations, left_out):
        num_demonstrations += 1
        seen.add(unspaced_hash(demonstration.question))
    return RunFiles(
        demonstrations_path=data.demonstrations,
        problems=problems,
        test=test,
        num_demonstrations=num_demonstrations,
        num_leaked=sum(question in seen for question in asked),
        num_control=left_out.total(),
    )


def with_world(recipe: Recipe, directory: RunDirectory) -> Recipe:
    """The recipe with paths in place of its tiny world, which is written into the run directory.

    Raises:
        InputError: There are not so many problems of these difficulties.
    """
    world = recipe.data.tiny_world
    if world is None:
        return recipe
    _write_world(world, recipe.seed, directory.world)
    data = recipe.data.model_copy(
        update={
            "tiny_world": None,
            "demonstrations": str(directory.world / "demonstrations.jsonl"),
            "problems": str(directory.world / "problems.jsonl"),
            "test": str(directory.world / "test.jsonl"),
        }
    )
    return recipe.model_copy(update={"data": data})


def _write_world(world: TinyWorldConfig, seed: int, place: Location) -> None:
    if isinstance(place, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="still-ray-") as folder:
            _write_world(world, seed, Path(folder))
            upload(Path(folder), place, files_below(Path(folder)))
        return
    try:
        write_world(
            place,
            seed,
            num_demonstrations=world.num_demonstrations,
            num_problems=world.num_problems,
            num_test=world.num_test,
            difficulties=world.difficulties,
        )
    except ValueError as error:
        raise InputError(f"data.tiny_world: {error}") from None
