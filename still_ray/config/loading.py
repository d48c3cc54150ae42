"""Loading a recipe: YAML, `--set dotted.key=value`, and one clear line for what is wrong."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from still_ray.config.recipe import Recipe, recipe_type
from still_ray.types import InputError
from still_ray.values import check_fields

PATH_KEYS = (
    *("model.path", "prompt.template", "prompt.chat_template"),
    *("data.demonstrations", "data.problems", "data.test", "data.forgetting"),
)
"""Keys that name files: relative ones are taken from the recipe's folder, or from the working directory in --set."""


_SectionT = TypeVar("_SectionT", bound=BaseModel)
Resolve = Callable[[dict[str, Any], Path], dict[str, Any]]
"""Makes the paths of a mapping absolute, from the folder that they are relative to."""

_INT_TAG = "tag:yaml.org,2002:int"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_FLOAT = re.compile(
    r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
_FLOAT_FIRST = "-+0123456789."


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text and keeps the last of two equal keys; this loader reads a number and refuses."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuses a key that stands twice in one mapping."""
        seen: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} stands twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as numbers."""


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(_FLOAT_TAG, _FLOAT, list(_FLOAT_FIRST))
    # Integers must keep precedence over the pattern above.
    for _first in _FLOAT_FIRST:
        _yaml.yaml_implicit_resolvers[_first].sort(key=lambda item: item[0] != _INT_TAG)


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
    return recipe_from(read_recipe(Path(path)), overrides, origin=str(path))


def read_recipe(path: Path) -> dict[str, Any]:
    """A recipe as its file has it, not validated, its paths absolute.

    Raises:
        InputError: The file cannot be read or is not YAML.
    """
    return absolute_paths(_read_yaml(path), path.resolve().parent)


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
        schema = recipe_type(raw)
        return schema.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{origin}: {_first_problem(error, schema)}") from None
    except ValueError as error:
        raise InputError(f"{origin}: {error}") from None


def load_section(
    schema: type[_SectionT], path: Path | None, overrides: Sequence[str] = (), *, resolve: Resolve | None = None
) -> _SectionT:
    """Reads, overrides and validates the settings of a command other than `run`.

    Args:
        schema: The section at the top of the file.
        path: YAML file; None: every default.
        overrides: As in `load_recipe`.
        resolve: Makes paths absolute, those of the file and those of an override.

    Raises:
        InputError: The file, a key or a value is wrong; one line.
    """
    raw = {} if path is None else _read_yaml(path)
    if resolve is not None and path is not None:
        raw = resolve(raw, path.resolve().parent)
    for text in overrides:
        raw = _overridden(raw, text)
    if resolve is not None:
        raw = resolve(raw, Path.cwd())
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{path or '--set'}: {_first_problem(error, schema)}") from None


def dump_recipe(recipe: BaseModel, extra: Mapping[str, Any]) -> str:
    """The resolved recipe as YAML, every default written out, `extra` (e.g. package versions) as comments above."""
    head = "".join(f"# {key}: {value}\n" for key, value in extra.items())
    values = recipe.model_dump(mode="json", exclude_none=False)
    body: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120)
    return head + body


class _NotYamlError(ValueError):
    """A text is not YAML: why, in one line, and in which line of the text (None: unknown)."""

    def __init__(self, why: str, line: int | None = None) -> None:
        super().__init__(why)
        self.line = line


def _parsed(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        _NotYamlError: It has none.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise _NotYamlError(str(error.problem), mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # bad characters, impossible dates, depth
        raise _NotYamlError(str(error).splitlines()[0]) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of a recipe, e.g. jobs/demo.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    try:
        raw = _parsed(text)
    except _NotYamlError as error:
        where = f" line {error.line}" if error.line else ""
        raise InputError(f"{path}:{where} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections, not a {type(raw).__name__}")
    check_fields(raw, str(path))
    return raw


def absolute_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe or a part of one with its relative paths taken from a folder."""
    result = dict(raw)
    for dotted in PATH_KEYS:
        section, key = dotted.split(".")
        values = result.get(section)
        if isinstance(values, dict) and key in values:
            result[section] = {**values, key: _absolute_value(dotted, values[key], folder)}
    return result


def _absolute_value(dotted: str, value: Any, folder: Path) -> Any:
    """A path, or what several files are described by, with absolute paths; anything else as it is."""
    if isinstance(value, list):
        return [_absolute_value(dotted, one, folder) for one in value]
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return {**value, "path": _absolute(dotted, value["path"], folder)}
    return _absolute(dotted, value, folder) if isinstance(value, str) else value


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
        value = _parsed(value_text)
    except _NotYamlError as error:
        raise InputError(f"--set {text}: the value is not YAML: {error}") from None
    check_fields({dotted: value}, f"--set {text}")
    key = re.sub(r"(\.\d+)?(\.path)?$", "", dotted) if dotted.startswith("data.") else dotted
    if key in PATH_KEYS:
        value = _absolute_value(key, value, Path.cwd())
    elif isinstance(value, dict):
        value = absolute_paths({dotted: value}, Path.cwd())[dotted]
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


def _first_problem(error: ValidationError, schema: type[BaseModel]) -> str:
    """One line for the first thing that pydantic found: the key, what is wrong, what would be right."""
    errors = error.errors()
    first = errors[0]
    location = _field_location(first["loc"], schema)
    dotted = ".".join(location)
    if first["type"] == "extra_forbidden":
        return _unknown_key(location, schema)
    if first["type"] == "missing":
        return f"{dotted}: missing; the recipe needs it"
    given = "" if isinstance(first["input"], dict | list) else f" (given: {first['input']!r})"
    alike = [found for found in errors if _field_location(found["loc"], schema) == location]
    same = [found["msg"].removeprefix("Value error, ") for found in alike]
    message = " or ".join([same[0], *(other.removeprefix("Input should be ") for other in same[1:])])
    return f"{dotted}: {message}{given}" if dotted else message


def _field_location(parts: Sequence[int | str], schema: type[BaseModel]) -> list[str]:
    """A location without what pydantic adds for the alternatives of a field such as `float | "auto"`, or "<files>"."""
    section: type[BaseModel] | None = schema
    location = []
    for part in parts:
        if isinstance(part, str) and part.startswith("<"):
            continue
        if section is None and not isinstance(part, int):
            break
        location.append(str(part))
        if section is not None and part in section.model_fields:
            section = _section_of(section.model_fields[str(part)].annotation)
    return location


def _unknown_key(location: list[str], schema: type[BaseModel]) -> str:
    known = _known_keys(location[:-1], schema)
    nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{'.'.join(location)}: unknown key{hint}"


def _known_keys(location: Sequence[str], section: type[BaseModel]) -> list[str]:
    """The keys of the section at a dotted location."""
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
