"""Prints docs/recipe.md from the schema: `python tools/recipe_reference.py > docs/recipe.md`."""

from __future__ import annotations

import json
import sys
from typing import Any, get_args

from pydantic import BaseModel

from still_ray.config.distill import DistillConfig
from still_ray.config.library_arguments import REFUSED
from still_ray.config.prepare import PrepareConfig
from still_ray.config.recipe import Recipe, recipe_type

HEAD = """# Every key of a recipe

Made from the schema by `python tools/recipe_reference.py > docs/recipe.md`. Unknown keys are errors. `paper` means
STILL-2 (arXiv 2412.09413), its repository or its authors' answers; `ours` a choice made here where the paper names none
or the machine decides. `--set section.key=value` overrides a key; `rounds.0.explore.temperature` reaches into the list
of rounds. The settings of [`prepare`](#settings-of-still-ray-prepare) and [`distill`](#settings-of-still-ray-distill),
which are files of their own, follow at the end.
"""


def reference() -> str:
    """The whole page."""
    pages = [HEAD, *_sections("", recipe_type({}), Recipe.__doc__ or "", set()), *_refused_arguments()]
    for command, settings in (("prepare", PrepareConfig), ("distill", DistillConfig)):
        pages.append(f"\n# Settings of still-ray {command}\n\n`jobs/{command}.yaml` lists them with their defaults.\n")
        pages += _sections("", settings, settings.__doc__ or "", set())
    return "".join(pages)


def _refused_arguments() -> list[str]:
    """What may not stand in `sampler.engine`, `trainer.deepspeed` and `trainer.trl`."""
    text = "\n## Arguments that are not handed on\n\n`*` stands for any ending or beginning.\n\n"
    head = f"{text}| key | argument | why |\n|---|---|---|\n"
    return [
        head,
        *(
            f"| `{key}` | {', '.join(f'`{name}`' for name in refusal.names)} | {refusal.reason} |\n"
            for key, refusals in REFUSED.items()
            for refusal in refusals
        ),
    ]


def _sections(name: str, section: type[BaseModel], doc: str, seen: set[type[BaseModel]]) -> list[str]:
    """A table for a section and the sections inside it, each kind of section once."""
    if section in seen:
        return []
    seen.add(section)
    rows = []
    inner: list[str] = []
    for key, field in _in_order(section):
        dotted = f"{name}.{key}" if name else key
        child = _section_of(field.annotation)
        text, _, source = (field.description or "").rpartition("Source: ")
        default = f"see [{child.__name__}](#{child.__name__.lower()})" if child else _default(field)
        rows.append(f"| `{key}` | {default} | {text.strip()} | {source.rstrip('.')} |\n")
        if child is not None:
            inner += _sections(dotted, child, child.__doc__ or "", seen)
    title = section.__name__
    where = f" (`{name}`)" if name else ""
    head = f"\n## {title}\n\n{doc.strip()}{where}\n\n| key | default | meaning | source |\n|---|---|---|---|\n"
    return [head, *rows, *inner]


def _in_order(section: type[BaseModel]) -> list[tuple[str, Any]]:
    """The fields as a written recipe has them: the sections of training methods behind `explore`."""
    fields = dict(section.model_fields)
    if not issubclass(section, Recipe):
        return list(fields.items())
    methods = {method.name: fields.pop(method.name) for method in section.methods.values()}
    ordered = []
    for key, field in fields.items():
        ordered.append((key, field))
        if key == "explore":
            ordered += methods.items()
    return ordered


def _default(field: Any) -> str:
    if field.is_required():
        return "none"
    return f"`{json.dumps(field.get_default(call_default_factory=True))}`"


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _section_of(arg))), None)


if __name__ == "__main__":
    sys.stdout.write(reference())
