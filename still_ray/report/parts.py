"""What a report is made of: sections of figures, each a plot with its numbers as a table; how numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from still_ray.report.charts import GREY, Size, Spec, ramp
from still_ray.report.facts import RunFacts, RunStage
from still_ray.types import Verdict

MINUS: Final = "\N{MINUS SIGN}"
DASH: Final = "\N{EN DASH}"
NOT_EXPLORED: Final = "No round has been explored yet."
JUDGED: Final = (Verdict.CORRECT, Verdict.INCORRECT)
"""Verdicts that say something about the answer."""
MAX_STAGES: Final = 6
"""Lines that a person can tell apart in one plot. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers as text.

    Attributes:
        columns: Headings; the first names the rows.
        rows: One text for each column.
        text_columns: Which of the columns hold text rather than numbers, besides the first.
        wrap: Whether texts may be long and are broken into lines.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: frozenset[int] = frozenset()
    wrap: bool = False

    def is_text(self, index: int) -> bool:
        """Whether a column is aligned as text."""
        return index == 0 or index in self.text_columns


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot, a table, or a sentence that says why there is neither.

    Attributes:
        id: Anchor within the page.
        title: What it shows.
        text: What to see in it, or how it was made; plain sentences.
        draw: Makes the plot at a size; None for a table alone.
        height: Of the plot, pixels, without axes that need more.
        legend: Colours by name.
        table: The plot's numbers, or a summary of them.
        points: The plot's numbers where the table is a summary; seen on demand.
        open: Whether the table is seen at once rather than on demand; beside the plot, if there is one.
        wide: Whether the figure takes the whole width; one with a table beside its plot does.
        missing: Why there is nothing to show; "" if there is.
    """

    id: str
    title: str
    text: str = ""
    draw: Callable[[Size], Spec] | None = None
    height: int = 300
    legend: Mapping[str, str] = field(default_factory=dict)
    table: Table | None = None
    points: Table | None = None
    open: bool = False
    wide: bool = False
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """Figures that belong together."""

    id: str
    title: str
    text: str = ""
    figures: tuple[Figure, ...] = ()


def missing(name: str, title: str, why: str, *, wide: bool = False) -> Figure:
    """A figure that cannot be drawn, or not yet."""
    return Figure(id=name, title=title, missing=why, wide=wide)


# -- stages -----------------------------------------------------------------------------------------------------------


def shown_stages(facts: RunFacts) -> tuple[RunStage, ...]:
    """The evaluated stages, or, of many, the first two, the last and some in between."""
    stages = tuple(stage for stage, _ in facts.evaluated)
    if len(stages) <= MAX_STAGES:
        return stages
    last = len(stages) - 1
    middle = {2 + round(step * (last - 2) / (MAX_STAGES - 3)) for step in range(MAX_STAGES - 2)}
    return tuple(stages[index] for index in sorted({0, 1, last} | middle))


def stage_colors(stages: Iterable[RunStage]) -> dict[str, str]:
    """Grey for the backbone, then from light to dark."""
    names = [stage.label for stage in stages]
    first = {name: GREY for name in names[:1] if name == "backbone"}
    return {**first, **ramp(names[len(first) :])}


def round_colors(rounds: Iterable[int]) -> dict[str, str]:
    """From light to dark."""
    return ramp([round_label(number) for number in rounds])


def round_label(number: int) -> str:
    """A round's name in plots and tables."""
    return f"round {number}"


# -- numbers ----------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """0.474 as 47.4%."""
    return f"{share:.1%}"


def interval(low: float, high: float) -> str:
    """Two shares as a range."""
    return f"{low:.1%} {DASH} {high:.1%}"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{MINUS if difference < 0 else '+'}{abs(difference) * 100:.1f}"


def count(number: float) -> str:
    """12345 as 12,345."""
    return f"{number:,.0f}"


def p_value(value: float) -> str:
    """A p-value as people write it."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"  # noqa: PLR2004


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    minutes, hours = value / 60, value / 3600
    if hours >= 2:  # noqa: PLR2004
        return f"{hours:,.1f} h"
    if minutes >= 2:  # noqa: PLR2004
        return f"{minutes:.1f} min"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def size(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:  # noqa: PLR2004
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile of sorted values, between neighbours in proportion."""
    position = share * (len(values) - 1)
    low = int(position)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (position - low)


def ends(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis over values: the least and the largest, apart from each other."""
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 1, high + 1)
