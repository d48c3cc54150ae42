"""What the runs of an ablation read, by content, so that runs that read the same can share work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from still_ray.algo.ablation import InputDigests
from still_ray.cli.preflight import resolve_backbone
from still_ray.config import Recipe
from still_ray.formats.prompt import load_template
from still_ray.location import Location, ObjectPath, location
from still_ray.store.manifest import DIGEST_LIMIT_BYTES


class InputReader:
    """Digests of files, each read once."""

    def __init__(self) -> None:
        """Has read nothing."""
        self._known: dict[str, str] = {}

    def digests(self, recipe: Recipe) -> InputDigests:
        """What a run's files hold.

        Args:
            recipe: Resolved, the tiny world written.
        """
        data = recipe.data
        assert data.demonstrations and data.problems and data.test, "resolved by with_world"  # noqa: PT018
        return InputDigests(
            model=self._once(f"model {recipe.model.path}", lambda: _model(recipe.model.path)),
            template=_of_text(load_template(recipe.prompt.template).text),
            demonstrations=self._of_file(data.demonstrations),
            problems=self._of_file(data.problems),
            test=self._of_file(data.test),
        )

    def _of_file(self, path: str) -> str:
        return self._once(path, lambda: _file(location(path)))

    def _once(self, key: str, read: Callable[[], str]) -> str:
        if key not in self._known:
            self._known[key] = read()
        return self._known[key]


def named_inputs(recipe: Recipe) -> InputDigests:
    """The same from the names of the files alone, for a plan on a machine that does not have them."""
    data = recipe.data
    world = data.tiny_world
    if world is None:
        sources = (str(data.demonstrations), str(data.problems), str(data.test))
    else:
        numbers = (world.num_demonstrations, world.num_problems, world.num_test)
        first, second, third = (json.dumps([count, world.difficulties, recipe.seed]) for count in numbers)
        sources = (first, second, third)
    return InputDigests(
        model=recipe.model.path,
        template=str(recipe.prompt.template),
        demonstrations=sources[0],
        problems=sources[1],
        test=sources[2],
    )


def _model(path: str) -> str:
    """A model's content where it is at hand; the name of one on a hub."""
    place = location(resolve_backbone(path))
    if isinstance(place, ObjectPath):
        return f"{place} {place.listing_digest()}"
    if not place.is_dir():
        return path
    files = sorted(file for file in place.rglob("*") if file.is_file())
    return _of_text("\n".join(f"{file.relative_to(place)} {_part(file)}" for file in files))


def _part(file: Path) -> str:
    """Small files by content; of a large one size and time, since to hash 65 GB takes minutes."""
    facts = file.stat()
    return _file(file) if facts.st_size <= DIGEST_LIMIT_BYTES else f"{facts.st_size} {facts.st_mtime_ns}"


def _file(place: Location) -> str:
    with place.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
