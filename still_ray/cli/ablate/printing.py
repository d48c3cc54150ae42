"""What an ablation leaves behind: the table on stdout, table.md, ablation.json, and plots."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from still_ray.algo.ablation.sharing import AblationRun, PlannedRun
from still_ray.algo.ablation.table import (
    METRICS,
    Metric,
    Outcome,
    RowComparison,
    RowEstimate,
    RowSummary,
    SeedResult,
    compare_rows,
    summarize_row,
)
from still_ray.algo.stages import Stage
from still_ray.cli.console.tables import result_console
from still_ray.config.ablation import Matrix, RowConfig
from still_ray.config.methods import METHODS, method_named
from still_ray.facts import SkippedFacts, StageFacts, TrainFacts
from still_ray.report.charts import Axis, Size, interval_plot, svg
from still_ray.store.atomic import write_json, write_text
from still_ray.store.manifest import read_manifest
from still_ray.store.run_directory import RunDirectory
from still_ray.store.tables import read_table
from still_ray.types import SCHEMA_VERSION, FinishReason, RunError, Trajectory, Verdict

NUM_NAMES = 2
"""Columns of text at the left of every table; the others are numbers."""


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """One stage of one run.

    Attributes:
        run: The run.
        stage: The stage.
        seconds: What it took here; 0 where it was taken over.
        adopted_from: The run that it was taken over from; "" if it was computed here.
        saved_s: What it took there.
    """

    run: str
    stage: str
    seconds: float
    adopted_from: str
    saved_s: float


@dataclass(frozen=True, kw_only=True)
class AblationResult:
    """A finished ablation.

    Attributes:
        matrix: The matrix.
        rows: Of every row that has a result.
        results: Of every row and seed.
        comparisons: Rows on the same problems.
        times: Of every stage.
        skipped: Why a row has no result under some seed.
    """

    matrix: Matrix
    rows: tuple[RowSummary, ...]
    results: Mapping[str, Sequence[SeedResult]]
    comparisons: tuple[RowComparison, ...]
    times: tuple[StageTime, ...]
    skipped: tuple[str, ...]


def read_result(matrix: Matrix, runs: Sequence[tuple[AblationRun, RunDirectory]]) -> AblationResult:
    """Everything that the table needs, from the run directories.

    Raises:
        RunError: A run is not complete.
    """
    results: dict[str, list[SeedResult]] = {row.name: [] for row in matrix.rows}
    skipped = []
    for row in matrix.rows:
        for run, directory in runs:
            if run.name == row.run:
                found = _seed_result(row, run, directory)
                if isinstance(found, str):
                    skipped.append(f"{row.name}, seed {run.seed}: {found}")
                else:
                    results[row.name].append(found)
    summaries = (summarize_row(row, results[row.name]) for row in matrix.rows)
    return AblationResult(
        matrix=matrix,
        rows=tuple(summary for summary in summaries if summary is not None),
        results=results,
        comparisons=tuple(compare_rows(matrix, results)),
        times=tuple(time for run, directory in runs for time in _times(run, directory)),
        skipped=tuple(skipped),
    )


def _seed_result(row: RowConfig, run: AblationRun, directory: RunDirectory) -> SeedResult | str:
    """A row's result under one seed, or why its stage was skipped."""
    stage = next(stage for stage in run.stages if stage.name == row.stage)
    facts = _facts(directory, stage)
    if isinstance(facts, SkippedFacts):
        return facts.skipped
    if facts.evaluated is None:
        raise RunError(f"{directory.stage(stage)}: has no evaluation")
    data: Mapping[str, int] = {}
    if isinstance(facts, TrainFacts):
        counted = run.recipe.step(stage.round, stage.method).method.row_counts
        data = {name: facts.data[name] for name in counted if name in facts.data}
    return SeedResult(
        seed=run.seed,
        evaluation=facts.evaluated,
        trained_on=data,
        outcomes=_outcomes(read_table(directory.evaluation_rows(stage), Trajectory)),
    )


def _outcomes(rows: Sequence[Trajectory]) -> dict[str, Outcome]:
    """Counts by problem."""
    problems: dict[str, list[Trajectory]] = defaultdict(list)
    for row in rows:
        problems[row.problem_id].append(row)
    return {
        name: Outcome(
            correct=sum(one.verdict is Verdict.CORRECT for one in samples),
            truncated=sum(one.finish_reason is FinishReason.LENGTH for one in samples),
            samples=len(samples),
        )
        for name, samples in problems.items()
    }


def _facts(directory: RunDirectory, stage: Stage) -> StageFacts:
    manifest = read_manifest(directory.stage(stage))
    if manifest is None:
        raise RunError(f"{directory.stage(stage)}: is not complete")
    return manifest.facts


def _times(run: AblationRun, directory: RunDirectory) -> list[StageTime]:
    stages = [_facts(directory, stage) for stage in run.stages]
    return [
        StageTime(
            run=run.id,
            stage=facts.stage,
            seconds=facts.seconds,
            adopted_from=facts.adopted.origin if facts.adopted else "",
            saved_s=facts.adopted.seconds if facts.adopted else 0.0,
        )
        for facts in stages
    ]


# -- files ------------------------------------------------------------------------------------------------------------


def write_ablation(result: AblationResult, root: RunDirectory, *, versions: Mapping[str, str]) -> None:
    """Writes ablation.json, table.md, accuracy.svg and truncation.svg."""
    write_json(root.root / "ablation.json", {"schema_version": SCHEMA_VERSION, **as_json(result), "versions": versions})
    write_text(root.root / "table.md", as_markdown(result))
    write_text(root.root / "accuracy.svg", _plot(result, "accuracy"))
    write_text(root.root / "truncation.svg", _plot(result, "truncation"))


def as_json(result: AblationResult) -> dict[str, Any]:
    """The whole result as JSON, every seed's own figures included."""
    matrix = result.matrix
    return {
        "name": matrix.name,
        "title": matrix.title,
        "seeds": list(matrix.seeds),
        "rows": [_row_json(row, result.results[row.row.name]) for row in result.rows],
        "comparisons": [_comparison_json(comparison) for comparison in result.comparisons],
        "skipped": list(result.skipped),
        "stages": [
            {"run": time.run, "stage": time.stage, "seconds": time.seconds, "adopted_from": time.adopted_from or None}
            for time in result.times
        ],
        "computed_s": round(sum(time.seconds for time in result.times), 1),
        "saved_s": round(sum(time.saved_s for time in result.times), 1),
    }


def _row_json(row: RowSummary, results: Sequence[SeedResult]) -> dict[str, Any]:
    return {
        "name": row.row.name,
        "run": row.row.run,
        "stage": row.row.stage,
        "trained_on": {kind: list(ends) for kind, ends in row.trained_on.items()},
        "accuracy": _estimate_json(row.accuracy),
        "truncation_rate": _estimate_json(row.truncation),
        "mean_thought_tokens": _estimate_json(row.thought_tokens),
        "seeds": [{"seed": result.seed, **asdict(result.evaluation)} for result in results],
        "paper": row.row.paper.model_dump() if row.row.paper else None,
    }


def _estimate_json(estimate: RowEstimate) -> dict[str, Any]:
    return {"mean": estimate.mean, "interval": estimate.interval, "by_seed": list(estimate.values)}


def _comparison_json(comparison: RowComparison) -> dict[str, Any]:
    return {
        **comparison.config.model_dump(),
        "metric": comparison.metric,
        "only_first": comparison.only_first,
        "only_second": comparison.only_second,
        "difference": _estimate_json(comparison.difference),
        "p_value": comparison.p_value,
        "p_corrected": comparison.p_corrected,
        "verdict": comparison.direction,
    }


def as_markdown(result: AblationResult) -> str:
    """The tables in Markdown, with what their columns mean."""
    parts = [_markdown(*_row_table(result, narrow=False))]
    for metric in METRICS:
        if shown := _comparison_cells(result, metric):
            parts += [f"{TITLES[metric]}:", _markdown(COMPARISON_HEADINGS, shown)]
    return "\n\n".join([*parts, *_footer(result)]) + "\n"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if index < NUM_NAMES else "---:" for index in range(len(headings))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [headings, rule, *rows])


def _plot(result: AblationResult, metric: str) -> str:
    rows = []
    for row in result.rows:
        found = row.accuracy if metric == "accuracy" else row.truncation
        low, high = found.interval or (found.mean, found.mean)
        text = f"{found.mean:.1%}"
        tip = f"{row.row.name}: {text}, {_interval(found)}, {len(found.values)} seeds"
        rows.append({"row": row.row.name, "value": found.mean, "low": low, "high": high, "text": text, "tip": tip})
    title = "held-out accuracy" if metric == "accuracy" else "truncated responses"
    axis = Axis(field="value", title=title, percent=True)
    size = Size(width=max(420, 90 * len(rows)), height=420)
    return svg(interval_plot(rows, category="row", value=axis, low="low", high="high", size=size, joined=False))


# -- tables -----------------------------------------------------------------------------------------------------------

COMPARISON_HEADINGS = ("first", "second", "points", "by seed", "first only", "second only", "p", "first is")
TITLES: Mapping[Metric, str] = {
    "accuracy": "Accuracy on the same problems under two rows",
    "truncation": "Truncation on the same problems under two rows",
}


def print_ablation(result: AblationResult, root: RunDirectory) -> None:
    """Prints the tables and where the rest is."""
    console = result_console()
    headings, cells = _row_table(result, narrow=True)
    console.print(_rich(result.matrix.title or result.matrix.name, headings, cells))
    for metric in METRICS:
        if shown := _comparison_cells(result, metric):
            console.print(_rich(TITLES[metric], COMPARISON_HEADINGS, shown))
    for line in _footer(result):
        console.print(line, markup=False)
    console.print(f"\nwritten: {root.root}: ablation.json, table.md, accuracy.svg, truncation.svg", markup=False)


def _rich(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < NUM_NAMES else "right")
    for cells in rows:
        table.add_row(*map(escape, cells))
    return table


def _row_table(result: AblationResult, *, narrow: bool) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the rows.

    Args:
        result: The ablation.
        narrow: Leave out what a terminal has no room for: every seed's own accuracy, the paper's name of the row.
    """
    benchmarks = result.matrix.benchmarks
    wide = [] if narrow else ["by seed"]
    headings = ["row", "trained on", "accuracy", *wide, "95 % interval", "truncated", "thought"]
    if benchmarks:
        headings += [f"paper: {' / '.join(benchmarks)}", *([] if narrow else ["paper's row"])]
    return headings, [_cells_of(row, benchmarks, narrow=narrow) for row in result.rows]


def _cells_of(row: RowSummary, benchmarks: Sequence[str], *, narrow: bool) -> list[str]:
    paper = row.row.paper
    by_seed = " ".join(f"{value:.1%}" for value in row.accuracy.values)
    cells = [
        row.row.name,
        trained_on(row.trained_on),
        f"{row.accuracy.mean:.1%}",
        *([] if narrow else [by_seed]),
        _interval(row.accuracy),
        f"{row.truncation.mean:.1%}",
        f"{row.thought_tokens.mean:.1f}",
    ]
    if benchmarks:
        scores = paper.scores if paper else {}
        cells.append(" / ".join(f"{scores[name]:.1f}" if name in scores else "-" for name in benchmarks))
        cells += [] if narrow else [paper.label if paper else "-"]
    return cells


def trained_on(counts: Mapping[str, tuple[int, int]]) -> str:
    """E.g. "110 + 70", "98-100 pairs", "-" for the backbone; nothing explored is left out."""
    units = {name: unit for method in map(method_named, METHODS) for name, unit in method.row_counts.items()}
    shown = [f"{_range(ends)}{units.get(name, '')}" for name, ends in counts.items() if ends[1]]
    return " + ".join(shown) or "-"


def _range(ends: tuple[int, int]) -> str:
    low, high = ends
    return str(low) if low == high else f"{low}-{high}"


def _interval(estimate: RowEstimate) -> str:
    if estimate.interval is None:
        return "-"
    low, high = estimate.interval
    return f"{low:.1%} - {high:.1%}"


def _comparison_cells(result: AblationResult, metric: Metric) -> list[tuple[str, ...]]:
    return [_compared(comparison) for comparison in result.comparisons if comparison.metric == metric]


def _compared(comparison: RowComparison) -> tuple[str, ...]:
    difference = comparison.difference
    return (
        comparison.config.first,
        comparison.config.second,
        f"{100 * difference.mean:+.1f}",
        " ".join(f"{100 * value:+.1f}" for value in difference.values),
        str(comparison.only_first),
        str(comparison.only_second),
        _p_value(comparison.p_corrected),
        comparison.direction or "-",
    )


def _p_value(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{math.ceil(p_value * 1000) / 1000:.3f}"  # noqa: PLR2004


def _footer(result: AblationResult) -> list[str]:
    """What the columns mean, and what is missing."""
    problems = sorted({count for row in result.rows for count in row.num_problems})
    lines = [
        f"Mean over {len(result.matrix.seeds)} seeds, each on {_range((problems[0], problems[-1]))} held-out problems; "
        "interval: 95 % Student t over the seeds. thought: mean tokens of a thought; truncated: responses that met the "
        "token limit; trained on: demonstrations + explored, or preference pairs."
        if problems
        else "No row has a result."
    ]
    if result.comparisons:
        lines.append(
            "points: first minus second; first only: problems on which the first alone is right (or truncated), of all "
            "seeds; p: exact paired test on these problems (McNemar), Holm-corrected over the comparisons of a table. "
            '"higher" or "lower" stands where p <= 0.05 and every seed has the difference in the same direction.'
        )
    if result.matrix.paper:
        lines.append(f"Paper: {result.matrix.paper}.")
    lines += [f"No result: {line}." for line in result.skipped]
    computed, saved = sum(time.seconds for time in result.times), sum(time.saved_s for time in result.times)
    lines.append(f"Stages took {computed / 60:.1f} min; sharing saved another {saved / 60:.1f} min.")
    return lines


def print_plan(matrix: Matrix, planned: Sequence[PlannedRun]) -> None:
    """Prints what each run computes and what it takes over; by names of files, not their content."""
    console: Console = result_console()
    table = Table(title=escape(matrix.title or matrix.name), title_justify="left")
    for heading in ("run", "takes over", "from", "computes"):
        table.add_column(heading)
    for run in planned:
        owners = " ".join(dict.fromkeys(owner for _, owner in run.adopted))
        table.add_row(
            run.id, " ".join(name for name, _ in run.adopted) or "-", owners or "-", " ".join(run.computed) or "-"
        )
    console.print(table)
    computed, shared = sum(len(run.computed) for run in planned), sum(len(run.adopted) for run in planned)
    console.print(f"{len(planned)} runs, {computed} stages to compute, {shared} shared; {len(matrix.rows)} rows.")
