"""The size of a rehearsal: a recipe with everything kept that decides its course, and little of everything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from still_ray.algo.placement import resolve
from still_ray.config import AdaptiveConfig, ExploreConfig, Recipe, RoundConfig
from still_ray.weight_sync.transports import transport_named

MIN_TOKENS: Final = 1024
"""Least token limit of a rehearsed response: the fake's tokens are bytes. Source: ours."""
MIN_MODEL_LENGTH: Final = 8 * MIN_TOKENS
"""Least room for a prompt and a response of the fake. Source: ours."""
MAX_NUM_SEQS: Final = 8
"""Sequences at a fake replica at once: so few problems should still come in several waves. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much a rehearsal does.

    Attributes:
        problems: Problems of one round.
        samples: Rollouts of one problem.
        test: Held-out problems.
        demonstrations: Demonstrations.
    """

    problems: int = 40
    samples: int = 4
    test: int = 20
    demonstrations: int = 50


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A value of the recipe that a rehearsal changes.

    Attributes:
        key: Dotted key; "*" stands for every round.
        before: What the recipe says.
        after: What is rehearsed.
    """

    key: str
    before: str
    after: str


def cut(recipe: Recipe, sizes: Sizes, *, has_gpus: bool) -> tuple[Recipe, tuple[Cut, ...]]:
    """The recipe at rehearsal size, and what was changed.

    Stages, methods, settings of training and selection, resources, labels and failure policies stay as they are.

    Args:
        recipe: The recipe.
        sizes: The sizes.
        has_gpus: Whether the declared machines have GPUs.
    """
    settled = resolve(recipe, has_gpus=has_gpus)
    transport = transport_named(settled.sync.transport)
    pretended = recipe.sync.transport if transport.rehearsed_as == transport.name else transport.rehearsed_as
    small = recipe.model_copy(
        update={
            "rounds": tuple(_round(entry, sizes) for entry in recipe.rounds),
            "model": _with(recipe.model, max_length=max(recipe.model.longest, MIN_MODEL_LENGTH)),
            "evaluate": _with(
                recipe.evaluate,
                num_problems=_least(recipe.evaluate.num_problems, sizes.test),
                num_samples=min(recipe.evaluate.num_samples, sizes.samples),
                max_tokens=max(recipe.evaluate.longest, MIN_TOKENS),
            ),
            "placement": settled.placement,
            "sampler": _with(
                recipe.sampler,
                num_replicas=settled.sampler.num_replicas,
                max_num_seqs=min(settled.sampler.max_num_seqs, MAX_NUM_SEQS),
            ),
            "verifier": _with(recipe.verifier, processes_per_worker=1),
            "trainer": _with(recipe.trainer, num_workers=settled.trainer.num_workers, report_to=()),
            "sync": _with(recipe.sync, transport=pretended),
        }
    )
    return small, tuple(_cuts(recipe, small))


def _round(entry: RoundConfig, sizes: Sizes) -> RoundConfig:
    explore = entry.explore
    if explore is None:
        return entry
    samples = min(explore.samples_per_problem, sizes.samples)
    changes = {
        "num_problems": _least(explore.num_problems, sizes.problems),
        "samples_per_problem": samples,
        "adaptive": _waves(explore, samples),
        "max_tokens": max(explore.longest, MIN_TOKENS),
    }
    return entry.model_copy(update={"explore": explore.model_copy(update=changes)})


def _waves(explore: ExploreConfig, samples: int) -> AdaptiveConfig | None:
    """At least two waves where there is more than one sample."""
    if explore.adaptive is None:
        return None
    half = max(1, samples // 2)
    return AdaptiveConfig(
        initial=min(explore.adaptive.initial, half),
        step=min(explore.adaptive.step, half),
        enough_correct=min(explore.adaptive.enough_correct, samples),
    )


def _least(wanted: int | None, size: int) -> int:
    return size if wanted is None else min(wanted, size)


def _with(section: Any, **changes: Any) -> Any:
    return section.model_copy(update=changes)


def _cuts(recipe: Recipe, small: Recipe) -> Iterator[Cut]:
    """One line for each changed value; alike lines of several rounds are one."""
    seen = set()
    for key, before, after in _differences(recipe.model_dump(mode="json"), small.model_dump(mode="json")):
        section, *rest = key.split(".")
        name = ".".join([section, "*", *rest[1:]]) if section == "rounds" else key
        line = Cut(key=name, before=_text(before), after=_text(after))
        if line not in seen:
            seen.add(line)
            yield line


def _differences(before: Any, after: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in after:
            yield from _differences(before.get(key), after[key], f"{prefix}{key}.")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences(old, new, f"{prefix}{index}.")
    elif before not in {after, "auto"}:  # what was left to auto is settled, not cut
        yield prefix.rstrip("."), before, after


def _text(value: Any) -> str:
    if value is None:
        return "all"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
