"""The report as one HTML file that needs nothing else: no network, no library, no font.

Plots are drawn once for wide screens and once for phones, as SVG whose colours are CSS variables; the page picks. Its
one script and its one style sheet are named by their digests in the page's content security policy, so that nothing
else in it can ever run, whatever a model wrote.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from still_ray import __version__
from still_ray.location import Location
from still_ray.report import charts
from still_ray.report.browser_data import MAX_TEXT_BYTES, BrowserData, browser_data
from still_ray.report.charts import Size
from still_ray.report.exploration import exploration
from still_ray.report.facts import Inputs, RunFacts, read_run
from still_ray.report.outcome import outcome
from still_ray.report.parts import Figure, ReportSection, count, interval, percent, seconds
from still_ray.report.pool import pool
from still_ray.report.provenance import provenance
from still_ray.report.running import running, survived, training
from still_ray.store.atomic import write_text
from still_ray.store.run_directory import RunDirectory

WIDE: Final = 620
NARROW: Final = 326
"""Widths of the two drawings, pixels: half of a wide page, and a phone's."""

VARIABLES: Final[Mapping[str, str]] = {
    charts.INK: "ink",
    charts.MUTED: "muted",
    charts.AXIS: "axis",
    charts.GRID: "grid",
    charts.PAPER: "paper",
    charts.GREY: "grey",
    charts.BLUE: "blue",
    charts.GREEN: "green",
    charts.RED: "red",
    charts.AMBER: "amber",
    charts.VIOLET: "violet",
    charts.PALE: "pale",
    **{color: f"ramp-{step}" for step, color in enumerate(charts.RAMP)},
}
"""The CSS variable of each colour of the house style; the dark page gives them other values."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One number at the top of the page."""

    value: str
    name: str
    note: str = ""


def write_report(directory: RunDirectory, output: Location, inputs: Inputs, *, max_bytes: int = MAX_TEXT_BYTES) -> None:
    """Writes the report of a run.

    Args:
        directory: The run.
        output: The file, replaced as a whole.
        inputs: What is known of the data.
        max_bytes: Text of responses in the page, at most, before compression.

    Raises:
        InputError: The directory holds no run.
    """
    facts = read_run(directory, inputs)
    write_text(output, render(facts, browser_data(directory, facts, max_bytes=max_bytes)))


def render(facts: RunFacts, data: BrowserData) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("still_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _asset("page.css"), _asset("page.js")
    return environment.get_template("page.html.j2").render(
        facts=facts,
        data=data,
        sections=[*map(_drawn_section, sections(facts))],
        tiles=tiles(facts),
        updated_at=moment(facts.state.updated_at),
        headline=headline(facts),
        standing=standing(facts),
        style=style,
        script=script,
        policy=_policy(style, script),
        version=__version__,
    )


def sections(facts: RunFacts) -> list[ReportSection]:
    """Everything but the browser."""
    return [part(facts) for part in (outcome, exploration, pool, training, running, provenance)]


def headline(facts: RunFacts) -> str:
    """The run in one sentence."""
    stages = facts.evaluated
    if facts.is_rehearsal:
        return f"A rehearsal on fakes: {len(facts.complete)} of {len(facts.stages)} stages complete."
    if not stages:
        return "No stage has been evaluated yet."
    (first, before), (_, after) = stages[0], stages[-1]
    reached = percent(after.accuracy)
    if len(stages) == 1:
        return f"The {first.label} solves {reached} of the held-out problems."
    return f"From {percent(before.accuracy)} to {reached} of the held-out problems solved."


def standing(facts: RunFacts) -> str:
    """How a run stands that is not complete, and how it goes on."""
    state = facts.state
    at = f"in stage {state.stage}, at {moment(state.updated_at)}" if state.stage else "before its first stage"
    ends = {
        "running": f"It is running, {at}.",
        "interrupted": f"It was interrupted {at}.",
        "failed": f"It failed {at}: {state.cause.rstrip('.')}.",
        "killed": f"Its process ended without a word {at}: killed, or its machine was lost.",
    }
    resumed = f" The same command resumes it: {state.command}" if state.command and state.status != "running" else ""
    return f"{ends.get(state.status, '')}{resumed}"


def tiles(facts: RunFacts) -> list[Tile]:
    """The numbers at the top."""
    responses = [row for rows in facts.rounds.values() for row in rows]
    found = [_accuracy_tile(facts)] if facts.evaluated else []
    if responses:
        num_correct = sum(row.is_correct for row in responses)
        problems = {row.problem_id for row in responses}
        solved = {row.problem_id for row in responses if row.is_correct}
        note = f"{percent(num_correct / len(responses))} correct, in {_several(len(facts.rounds), 'round')}"
        found.append(Tile(value=count(len(responses)), name="trajectories", note=note))
        note = f"of {_several(len(problems), 'explored problem')}"
        found.append(Tile(value=count(len(solved)), name="problems solved", note=note))
    if facts.trained:
        steps = sum(found.training.steps for _, found in facts.trained)
        note = f"{_several(steps, 'optimizer step')}"
        found.append(Tile(value=count(len(facts.trained)), name="policies trained", note=note))
    if spent := sum(one.seconds for _, one in facts.complete):
        note = f"{len(facts.complete)} of {len(facts.stages)} stages complete"
        found.append(Tile(value=seconds(spent), name="run time", note=note))
    num_faults = sum(fault.number for fault in survived(facts))
    note = "nothing lost" if num_faults else "none happened"
    return [*found, Tile(value=count(num_faults), name="faults survived", note=note)]


def _accuracy_tile(facts: RunFacts) -> Tile:
    stage, found = facts.evaluated[-1]
    note = f"after {stage.label}, {interval(*found.ci95)}"
    return Tile(value=percent(found.accuracy), name="held-out accuracy", note=note)


def moment(text: str) -> str:
    """A UTC time in ISO 8601 as people write it."""
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith("+00:00") else text


def _several(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


# -- drawing ----------------------------------------------------------------------------------------------------------


def _drawn_section(section: ReportSection) -> dict[str, Any]:
    return {"id": section.id, "title": section.title, "text": section.text, "figures": [*map(_drawn, section.figures)]}


def _drawn(figure: Figure) -> dict[str, Any]:
    """A figure as the template wants it."""
    from markupsafe import Markup

    drawings = _drawings(figure)
    beside = bool(drawings) and figure.open
    return {
        "figure": figure,
        "drawings": {name: Markup(text) for name, text in drawings.items()},  # noqa: S704 - drawn by us, below
        "legend": [(name, VARIABLES[color]) for name, color in figure.legend.items()],
        "span": "full" if beside or figure.wide else "half",
        "beside": beside,
    }


def _drawings(figure: Figure) -> dict[str, str]:
    if figure.draw is None:
        return {}
    return {
        name: themed(charts.svg(figure.draw(Size(width=width, height=figure.height)), background=False), figure, name)
        for name, width in (("wide", WIDE), ("narrow", NARROW))
    }


def themed(svg: str, figure: Figure, variant: str) -> str:
    """An SVG that takes its colours and its width from the page.

    Names of stages and rounds are the only texts in it that come from a run; Vega escapes them.
    """
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="([\d. -]+)"', head)
    assert box is not None, "Vega writes a view box"
    for color, variable in VARIABLES.items():
        body = body.replace(f'"{color}"', f'"var(--{variable})"')
    prefix = f"{figure.id}-{variant}"
    body = re.sub(r'id="(\w+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#(\w+)\)", rf"url(#{prefix}-\1)", body)
    return f'<svg class="plot {variant}" viewBox="{box[1]}" role="img" aria-labelledby="{figure.id}-title">{body}'


# -- assets -----------------------------------------------------------------------------------------------------------


@cache
def _asset(name: str) -> str:
    return files("still_ray.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """The content security policy: this style and this script, and nothing from anywhere."""
    return "; ".join(
        [
            "default-src 'none'",
            f"style-src {_source(style)}",
            f"script-src {_source(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
