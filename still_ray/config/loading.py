"""Loading a recipe: YAML, `--set dotted.key=value`, and one clear line for what is wrong."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from still_ray.config.schema import Recipe
from still_ray.types import InputError

PATH_KEYS = ("model.path", "prompt.template", "data.demonstrations", "data.problems", "data.test")
"""Keys that name files: relative ones are taken from the recipe's folder, or from the working directory in --set."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text; this loader reads it as the number that the author meant."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.[\d_]+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)
# Integers must keep precedence over the pattern above.
for _first in "-+0123456789":
    _resolvers = _Loader.yaml_implicit_resolvers[_first]
    _resolvers.sort(key=lambda item: item[0] != "tag:yaml.org,2002:int")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, overrides and validates a recipe.

    Args:
        path: YAML file.
        overrides: "dotted.key=value" texts, the value read as YAML.

    Returns:
        The recipe with every default filled in and its paths absolute.

    Raises:
        InputError: The file, a key or a value is wrong; one line.
    """
    path = Path(path)
    return recipe_from(_absolute_paths(_read_yaml(path), path.resolve().parent), overrides, origin=str(path))


def recipe_from(raw: dict[str, Any], overrides: Sequence[str], *, origin: str) -> Recipe:
    """Overrides and validates a recipe that is already a mapping.

    Args:
        raw: Sections by name.
        overrides: As in `load_recipe`.
        origin: What errors name.

    Raises:
        InputError: A key or a value is wrong; one line.
    """
    for text in overrides:
        raw = _overridden(raw, text)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{origin}: {_first_problem(error)}") from None


def dump_recipe(recipe: Recipe, extra: Mapping[str, Any]) -> str:
    """The resolved recipe as YAML, every default written out, `extra` (e.g. package versions) as comments above."""
    head = "".join(f"# {key}: {value}\n" for key, value in extra.items())
    body: str = yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=False), sort_keys=False, width=120)
    return head + body


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of a recipe, e.g. jobs/demo.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        raise InputError(f"{path}:{where} is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections, not a {type(raw).__name__}")
    return raw


def _absolute_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    result = dict(raw)
    for dotted in PATH_KEYS:
        section, key = dotted.split(".")
        values = result.get(section)
        if isinstance(values, dict) and isinstance(values.get(key), str):
            result[section] = {**values, key: _absolute(dotted, values[key], folder)}
    return result


def _absolute(dotted: str, value: str, folder: Path) -> str:
    """Makes a file's path absolute; leaves addresses, built-in names and hub ids as they are."""
    if "://" in value or value.startswith("builtin:"):
        return value
    candidate = Path(os.path.normpath(folder / Path(value).expanduser()))
    looks_like_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", value) and not value.startswith(".")
    if dotted == "model.path" and looks_like_hub_id and not candidate.exists():
        return value
    return str(candidate)


def _overridden(raw: dict[str, Any], text: str) -> dict[str, Any]:
    dotted, equals, value_text = text.partition("=")
    if not equals or not dotted:
        raise InputError(f"--set {text}: must be dotted.key=value, e.g. --set sampler.num_replicas=4")
    try:
        value = yaml.load(value_text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: the value is not YAML: {error}") from None
    if dotted in PATH_KEYS and isinstance(value, str):
        value = _absolute(dotted, value, Path.cwd())
    updated = _set(raw, dotted.split("."), value, text)
    assert isinstance(updated, dict)
    return updated


def _set(node: Any, keys: list[str], value: Any, text: str) -> Any:
    """A copy of `node` with one value replaced; a number indexes a list, as in rounds.0.method."""
    if not keys:
        return value
    head, *rest = keys
    if isinstance(node, list):
        if not head.isdigit() or int(head) >= len(node):
            raise InputError(f"--set {text}: {head} is not an index of a list of {len(node)}")
        position = int(head)
        return [*node[:position], _set(node[position], rest, value, text), *node[position + 1 :]]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise InputError(f"--set {text}: {head} is inside a plain value, not a section")
    return {**node, head: _set(node.get(head), rest, value, text)}


def _first_problem(error: ValidationError) -> str:
    """One line for the first thing that pydantic found: the key, what is wrong, what would be right."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    if first["type"] == "extra_forbidden":
        return _unknown_key(location)
    if first["type"] == "missing":
        return f"{dotted}: missing; the recipe needs it"
    given = "" if isinstance(first["input"], dict | list) else f" (given: {first['input']!r})"
    message = first["msg"].removeprefix("Value error, ")
    return f"{dotted}: {message}{given}" if dotted else message


def _unknown_key(location: list[str]) -> str:
    known = _known_keys(location[:-1])
    nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{'.'.join(location)}: unknown key{hint}"


def _known_keys(location: Sequence[str]) -> list[str]:
    """The keys of the section at a dotted location."""
    section: type[BaseModel] = Recipe
    for part in location:
        if part.isdigit():
            continue
        section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The first schema section inside a type such as `SftConfig | None` or `tuple[RoundConfig, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_of(arg))), None)
