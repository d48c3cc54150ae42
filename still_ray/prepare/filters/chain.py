"""The filters of one row in their order; the first that objects is the reason."""

from collections.abc import Callable
from functools import partial

from still_ray.config.prepare import PrepareConfig
from still_ray.prepare.filters.gibberish import check_gibberish
from still_ray.prepare.filters.language import check_language
from still_ray.prepare.filters.length import check_length
from still_ray.prepare.filters.overlap import EvaluationIndex, check_overlap
from still_ray.prepare.filters.repetition import check_repetition
from still_ray.prepare.filters.row import Drop, RowTexts

Check = Callable[[RowTexts], Drop | None]


def row_checks(config: PrepareConfig, index: EvaluationIndex | None) -> tuple[Check, ...]:
    """The enabled filters that look at one row alone."""
    checks: list[tuple[bool, Check]] = [
        (config.length.enabled, partial(check_length, limits=config.length)),
        (config.repetition.enabled, partial(check_repetition, limits=config.repetition)),
        (config.language.enabled, partial(check_language, limits=config.language)),
        (config.gibberish.enabled, partial(check_gibberish, limits=config.gibberish)),
    ]
    if index is not None:
        overlap = partial(check_overlap, index=index, limits=config.decontaminate)
        checks.append((config.decontaminate.enabled, overlap))
    return tuple(check for enabled, check in checks if enabled)


def first_drop(texts: RowTexts, checks: tuple[Check, ...]) -> Drop | None:
    """The first objection, or None for a row that stays."""
    return next((drop for check in checks if (drop := check(texts)) is not None), None)
