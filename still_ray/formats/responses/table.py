"""The response formats by their names in recipes, and the choice that a chat template makes among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from still_ray.extensions import load_named
from still_ray.formats.responses.base import ResponseFormat, TemplateFacts
from still_ray.formats.responses.channels import CHANNELS, dialect_of_template
from still_ray.formats.responses.markers import MARKED
from still_ray.formats.responses.plain import PLAIN
from still_ray.formats.responses.think import THINK, ends_in_empty_thought, ends_in_opening_tag
from still_ray.types import InputError

KIND: Final = ResponseFormat
"""What a user's own format is an instance of."""
GROUP: Final = "still_ray.formats"
"""Entry points of response formats."""
FORMATS: Final[Mapping[str, ResponseFormat]] = {known.name: known for known in (MARKED, THINK, CHANNELS, PLAIN)}
"""Every format by its name in a recipe's `prompt.format`."""


def format_named(name: str) -> ResponseFormat:
    """A built-in response format, or a user's own.

    Raises:
        InputError: There is none of that name, or it is no `ResponseFormat`.
    """
    try:
        found = load_named(name, FORMATS, group=GROUP)
    except ValueError as error:
        raise InputError(f"prompt.format: {error}") from None
    if not isinstance(found, ResponseFormat):
        raise InputError(
            f"prompt.format: {name} is no response format, but {type(found).__name__}; give an object of a subclass of "
            "still_ray.ResponseFormat"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class DecidedFormat:
    """What `prompt.format: auto` comes to.

    Attributes:
        name: The format's.
        why: What it was told by, for a person.
    """

    name: str
    why: str


def decided_format(template: TemplateFacts, *, default: str) -> DecidedFormat:
    """The response format that a chat template tells of.

    Args:
        template: What it tells.
        default: The format of a model whose template says nothing of thoughts.
    """
    prompt, layout = template.generation_prompt, template.layout
    if ends_in_empty_thought(prompt):
        return DecidedFormat(name=PLAIN.name, why="the generation prompt closes the thought: thinking is switched off")
    if ends_in_opening_tag(prompt):
        return DecidedFormat(name=THINK.name, why=f"the generation prompt ends in {prompt.rsplit(maxsplit=1)[-1]}")
    shown = "" if layout is None else f"{layout.before}{layout.between}"
    for known in (CHANNELS, THINK):
        if known.claims(shown):
            return DecidedFormat(name=known.name, why=f"the chat template shows a thought so: {shown.strip()!r}")
    if template.thinks and dialect_of_template(template.source):
        return DecidedFormat(name=CHANNELS.name, why="the recipe switches thinking on")
    if THINK.claims(template.source):
        return DecidedFormat(name=THINK.name, why="the chat template speaks of think tags")
    return DecidedFormat(name=default, why="the chat template says nothing of thoughts")
