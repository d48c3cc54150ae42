"""The files of a run, read once before it starts."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

from still_ray.algo.mix import copies, num_mixed
from still_ray.config import DataConfig, DemonstrationsConfig, Recipe, TinyWorldConfig
from still_ray.formats.demonstrations import read_demonstrations
from still_ray.formats.problems import ProblemIndex, validate_problems
from still_ray.location import Location, ObjectPath
from still_ray.prepare.filters.words import unspaced_hash
from still_ray.store.run_directory import RunDirectory
from still_ray.store.transfer import files_below, upload
from still_ray.tiny_world.arithmetic import write_world
from still_ray.types import Demonstration, InputError


@dataclass(frozen=True, kw_only=True)
class DemonstrationFile:
    """A file of demonstrations, read once.

    Attributes:
        config: The recipe's word on it.
        label: Its name among several; "" for the only one.
        num_rows: Rows that can be learnt, equal ones once.
        num_control: Rows left out because a control token stands in them as text.
        roles: Of the turns before a question, as they come in its rows.
    """

    config: DemonstrationsConfig
    label: str
    num_rows: int
    num_control: int
    roles: frozenset[tuple[str, ...]] = frozenset()

    @property
    def num_mixed(self) -> int:
        """Rows that an epoch learns."""
        return num_mixed(self.num_rows, self.config.weight)

    @property
    def said(self) -> str:
        """For a person: its name, how many rows of how many an epoch learns, and whether they are general."""
        whole = "" if self.config.weight == 1 else f" of {self.num_rows} rows x {self.config.weight:g}"
        return f"{self.label} {self.num_mixed}{whole}{' (general)' if self.config.general else ''}"

    def mixed(self, seed: int) -> Iterator[Demonstration]:
        """Streams the rows that an epoch learns, each once, with how often."""
        times = copies(self.num_rows, self.config.weight, seed=seed, name=self.label)
        for place, shown in enumerate(read_demonstrations(self.config.path, general=self.config.general)):
            if number := times(place):
                yield replace(shown, dataset=self.label, copies=number)


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The files of a run, validated.

    Attributes:
        shown: The files of demonstrations.
        problems: Ids and levels of the problems to explore.
        test: Ids and levels of the held-out problems.
        num_leaked: Held-out questions that are also among the demonstrations or problems, however they are spelled.
        seed: Of the run: which rows a weight takes.
        forgetting: The general problems; None: there are none.
        num_leaked_general: Likewise, of the general problems.
    """

    shown: tuple[DemonstrationFile, ...]
    problems: ProblemIndex
    test: ProblemIndex
    num_leaked: int
    seed: int
    forgetting: ProblemIndex | None = None
    num_leaked_general: int = 0

    @property
    def num_demonstrations(self) -> int:
        """Demonstrations that an epoch learns."""
        return sum(file.num_mixed for file in self.shown)

    @property
    def num_control(self) -> int:
        """Demonstrations left out because a control token stands in them as text."""
        return sum(file.num_control for file in self.shown)

    @property
    def forgetting_ids(self) -> tuple[str, ...]:
        """Ids of the general problems, in the order of their file."""
        return () if self.forgetting is None else self.forgetting.ids

    @cached_property
    def _levels(self) -> dict[str, int | None]:
        return dict(zip(self.problems.ids, self.problems.levels, strict=True))

    def problem_levels(self) -> Mapping[str, int | None]:
        """See `still_ray.driver.ports.Data`."""
        return self._levels

    def demonstrations(self) -> Iterator[Demonstration]:
        """See `still_ray.driver.ports.Data`."""
        return chain.from_iterable(file.mixed(self.seed) for file in self.shown)

    def num_left_out(self) -> int:
        """See `still_ray.driver.ports.Data`."""
        return self.num_control


def check_files(data: DataConfig, *, seed: int, own: Container[str] = ()) -> RunFiles:
    """Reads every file of a run once, keeping none of its text.

    Args:
        data: Its files.
        seed: Of the run.
        own: The domains that have a verifier of the user's own.

    Raises:
        InputError: A file is missing, a row is wrong, or a weight leaves no row.
    """
    assert data.demonstrations and data.problems and data.test, "resolved by with_world"  # noqa: PT018
    asked: list[int] = []
    general: list[int] = []
    seen: set[int] = set()
    test = validate_problems(data.test, own=own, each=lambda problem: asked.append(unspaced_hash(problem.question)))
    forgetting = None
    if data.forgetting is not None:
        forgetting = validate_problems(
            data.forgetting.path, own=own, each=lambda problem: general.append(unspaced_hash(problem.question))
        )
    problems = validate_problems(data.problems, own=own, each=lambda problem: seen.add(unspaced_hash(problem.question)))
    several = isinstance(data.demonstrations, tuple)
    shown = tuple(_checked_demonstrations(config, config.label if several else "", seen) for config in data.sources)
    return RunFiles(
        shown=shown,
        problems=problems,
        test=test,
        num_leaked=sum(question in seen for question in asked),
        seed=seed,
        forgetting=forgetting,
        num_leaked_general=sum(question in seen for question in general),
    )


def _checked_demonstrations(config: DemonstrationsConfig, label: str, seen: set[int]) -> DemonstrationFile:
    """Reads a file of demonstrations to its end and notes what users ask in it."""
    num_rows, left_out, roles = 0, Counter[str](), set[tuple[str, ...]]()
    for shown in read_demonstrations(config.path, left_out, general=config.general):
        num_rows += 1
        roles.add(tuple(turn.role for turn in shown.turns))
        before = (turn.content for turn in shown.turns if turn.role == "user")
        seen.update(map(unspaced_hash, (*before, shown.question)))
    file = DemonstrationFile(
        config=config, label=label, num_rows=num_rows, num_control=left_out.total(), roles=frozenset(roles)
    )
    if not file.num_mixed:
        raise InputError(f"{config.path}: weight {config.weight:g} takes none of its {num_rows} rows")
    return file


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
