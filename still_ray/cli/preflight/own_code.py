"""Objects of the user's own that a recipe names: whether they can be loaded, and what files they are in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from still_ray.config import Recipe
from still_ray.config.methods import GROUP as METHOD_GROUP
from still_ray.config.methods import METHODS
from still_ray.config.names import NamedObject, named_objects
from still_ray.config.recipe import TrainingStep
from still_ray.store.digests import file_digest
from still_ray.types import InputError
from still_ray.verifiers.custom import GROUP as VERIFIERS
from still_ray.verifiers.custom import check_custom_verifiers


def own_objects(recipe: Recipe) -> list[NamedObject]:
    """The user's own response format, selection strategies and pair rules that a recipe names."""
    return [found for found in named_objects(recipe) if not found.table.has(found.name)]


def own_steps(recipe: Recipe) -> list[TrainingStep]:
    """The training stages by a method of the user's own."""
    return [step for step in recipe.steps if step.named not in METHODS]


def own_names(recipe: Recipe) -> list[str]:
    """What `own_sources` is the source of, each name once."""
    return sorted({*(found.name for found in own_objects(recipe)), *(step.named for step in own_steps(recipe))})


def check_own_objects(recipe: Recipe) -> None:
    """Sees whether everything of the user's own can be loaded: verifiers in processes of their own, the rest in this.

    A training method was loaded with the recipe.

    Raises:
        InputError: Something cannot; names its key and says why.
    """
    check_custom_verifiers(recipe.verifier.custom)
    for found in own_objects(recipe):
        try:
            loaded = found.table.load(found.name)
        except ValueError as error:
            raise InputError(f"{found.key}: {' '.join(str(error).split())}") from error
        wanted = found.table.kind
        if not (isinstance(loaded, wanted) if wanted else callable(loaded)):
            what = wanted.__name__ if wanted else "function"
            raise InputError(f"{found.key}: {found.name} is no {what} but {type(loaded).__name__}")


def verifier_sources(custom: Mapping[str, str]) -> str:
    """The source of the user's own verifiers; one without a file counts by its name alone, which the recipe has."""
    return _sources({domain: module_file(path, group=VERIFIERS) for domain, path in custom.items()})


def own_sources(recipe: Recipe) -> str:
    """Likewise of the user's own response format, methods, selection strategies and pair rules; "" without any."""
    methods = {step.where: module_file(step.named, group=METHOD_GROUP) for step in own_steps(recipe)}
    named = {found.key: module_file(found.name, group=found.table.group) for found in own_objects(recipe)}
    return _sources({**methods, **named})


def _sources(files: Mapping[str, Path | None]) -> str:
    return " ".join(f"{key} {file_digest(file).sha256}" for key, file in sorted(files.items()) if file is not None)


def module_file(path: str, *, group: str) -> Path | None:
    """The file of an object of the user's own; None for one without a file, e.g. inside an archive.

    The import system would run the packages around the module to find it. A verifier's code runs in the judges only, so
    the packages are followed by their folders.

    Args:
        path: As in the recipe: a dotted path or the name of an entry point.
        group: Of entry points.
    """
    points = metadata.entry_points(group=group, name=path)
    target = next(iter(points)).value if points else path
    module = target.partition(":")[0] if ":" in target else target.rpartition(".")[0]
    parts, spec = module.strip().split("."), None
    for number in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:number]), around=spec)
        if spec is None:
            return None
    origin = spec.origin if spec else None
    return Path(origin) if origin and Path(origin).is_file() else None


def _spec(name: str, *, around: ModuleSpec | None) -> ModuleSpec | None:
    """A module inside a package; without one, anywhere that the judges look, the working directory last."""
    folders = None if around is None else list(around.submodule_search_locations or ())
    found = (finder.find_spec(name, folders) for finder in sys.meta_path)
    here = PathFinder.find_spec(name, [str(Path.cwd())]) if around is None else None
    return next((spec for spec in found if spec is not None), here)
