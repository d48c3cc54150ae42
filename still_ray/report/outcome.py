"""What the run achieved on the held-out problems: accuracy by stage and by difficulty, lengths of thoughts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from still_ray.algo.evaluation.statistics import exact_binomial_interval, holm_correction, mean, sign_flip_test
from still_ray.algo.evaluation.summary import interval_over_problems
from still_ray.facts import BackboneFacts, EvaluationFacts, ForgettingFacts
from still_ray.report.charts import Axis, Series, interval_plot, line_plot
from still_ray.report.facts import Response, RunFacts, RunStage
from still_ray.report.parts import (
    DASH,
    Figure,
    ReportSection,
    Table,
    count,
    ends,
    interval,
    missing,
    p_value,
    percent,
    points,
    shown_stages,
    stage_colors,
)

SIGNIFICANT: Final = 0.05
NO_LEVELS: Final = "The files of this run's problems state no levels, or cannot be read any more."


def outcome(facts: RunFacts) -> ReportSection:
    """The section."""
    return ReportSection(
        id="outcome",
        title="Held-out accuracy",
        text=_how(facts),
        figures=(accuracy(facts), *forgetting(facts), accuracy_by_level(facts), thought_by_level(facts)),
    )


def _how(facts: RunFacts) -> str:
    """How the stages are evaluated."""
    numbers = {found.num_samples for _, found in facts.evaluated}
    times = f"{max(numbers)} times each" if numbers and max(numbers) > 1 else "once each and greedily"
    return f"Every stage answers the same held-out problems, {times}.{_form(facts)}"


def _form(facts: RunFacts) -> str:
    """How much of what the backbone lacks is the form that nobody has taught it yet."""
    for stage, found in facts.evaluated:
        if isinstance(stage.facts, BackboneFacts) and stage.facts.in_form is not None:
            taught = stage.facts.in_form
            return (
                f" The backbone is asked as it comes, in the format {stage.facts.baseline}; asked as the run asks what "
                f"it trains it solves {percent(taught.accuracy)}: {points(found.accuracy - taught.accuracy)} points "
                "are form."
            )
    return ""


def accuracy(facts: RunFacts) -> Figure:
    """Accuracy of every evaluated stage with its interval, and whether it differs from the stage before."""
    stages = facts.evaluated
    title = "Accuracy by stage"
    if not stages:
        return missing("accuracy", title, "No stage has been evaluated yet.")
    rows = [_accuracy_row(stage, found) for stage, found in stages]
    value = Axis(field="accuracy", title="accuracy", percent=True, domain=(0, 1))
    return Figure(
        id="accuracy",
        title=title,
        text=f"Bars are 95 % intervals ({_method(stages)}). A change counts as one when the exact paired test on the "
        "same problems, corrected for the number of comparisons (Holm), gives p < 0.05; others are in brackets.",
        draw=lambda size: interval_plot(rows, category="stage", value=value, low="low", high="high", size=size),
        height=340,
        table=_accuracy_table(stages),
        open=True,
    )


def forgetting(facts: RunFacts) -> tuple[Figure, ...]:
    """Accuracy on the general problems, and whether a stage has lost what the backbone could; () if none are asked."""
    stages = facts.asked_generally
    if not stages:
        return ()
    rows = [_accuracy_row(stage, found.evaluation) for stage, found in stages]
    value = Axis(field="accuracy", title="accuracy", percent=True, domain=(0, 1))
    lost = [stage.label for stage, found in stages if found.alarm]
    said = f"Forgetting: {', '.join(lost)}." if lost else "No stage is shown to forget."
    return (
        Figure(
            id="forgetting",
            title="General problems",
            text=f"{said} They are asked as they stand, without the prompt template. Bars are 95 % intervals. p: exact "
            "paired test of each stage against the backbone, not corrected for their number.",
            draw=lambda size: interval_plot(rows, category="stage", value=value, low="low", high="high", size=size),
            height=340,
            table=_forgetting_table(stages),
            open=bool(lost),
        ),
    )


def _forgetting_table(stages: Sequence[tuple[RunStage, ForgettingFacts]]) -> Table:
    rows = [
        (
            stage.label,
            f"v{stage.policy_version}",
            percent(found.evaluation.accuracy),
            interval(*found.evaluation.ci95),
            *((DASH, DASH, DASH) if found.p_value is None else _against(found, found.p_value)),
            "forgets" if found.alarm else "",
        )
        for stage, found in stages
    ]
    columns = ("stage", "policy", "accuracy", "95 % interval", "problems lost", "gained", "p", "alarm")
    return Table(columns=columns, rows=tuple(rows), text_columns=frozenset({7}))


def _against(found: ForgettingFacts, p: float) -> tuple[str, str, str]:
    return str(found.num_lost), str(found.num_gained), p_value(p)


def _method(stages: Sequence[tuple[RunStage, EvaluationFacts]]) -> str:
    """How the intervals were made."""
    return ", ".join(dict.fromkeys(found.ci95_method for _, found in stages))


def _accuracy_row(stage: RunStage, found: EvaluationFacts) -> dict[str, Any]:
    low, high = found.ci95
    tip = f"{stage.label}: {percent(found.accuracy)} [{interval(low, high)}], {found.num_correct} of "
    return {
        "stage": stage.label,
        "accuracy": found.accuracy,
        "low": low,
        "high": high,
        "text": percent(found.accuracy),
        "tip": f"{tip}{_out_of(found)}",
    }


def _out_of(found: EvaluationFacts) -> str:
    """What the number of correct responses is out of."""
    problems = f"{found.num_problems} problems"
    return problems if found.num_samples == 1 else f"{found.num_responses} responses to {problems}"


def _accuracy_table(stages: Sequence[tuple[RunStage, EvaluationFacts]]) -> Table:
    changes = [(DASH, DASH), *_changes(stages)]
    rows = [
        (
            stage.label,
            f"v{stage.policy_version}",
            percent(found.accuracy),
            interval(*found.ci95),
            *change,
            f"{found.mean_thought_tokens:,.1f}",
            percent(found.truncation_rate),
        )
        for (stage, found), change in zip(stages, changes, strict=True)
    ]
    columns = ("stage", "policy", "accuracy", "95 % interval", "change, points", "p", "thought, tokens", "truncated")
    return Table(columns=columns, rows=tuple(rows))


def _changes(stages: Sequence[tuple[RunStage, EvaluationFacts]]) -> list[tuple[str, str]]:
    """Each stage against the one before it: percentage points, and the corrected p-value."""
    pairs = list(pairwise(stages))
    p_values = holm_correction([_paired_p(before.responses, after.responses) for (before, _), (after, _) in pairs])
    return [
        (_bracketed(points(after.accuracy - before.accuracy), shown=p < SIGNIFICANT), p_value(p))
        for ((_, before), (_, after)), p in zip(pairs, p_values, strict=True)
    ]


def _bracketed(text: str, *, shown: bool) -> str:
    return text if shown else f"({text})"


def _paired_p(before: Sequence[Response], after: Sequence[Response]) -> float:
    """The exact test on the problems that both answered; 1 if there are none."""
    first, second = correct_by_problem(before), correct_by_problem(after)
    return sign_flip_test([second[problem] - first[problem] for problem in first.keys() & second.keys()])


def correct_by_problem(responses: Sequence[Response]) -> dict[str, int]:
    """Correct responses to each problem."""
    counts: dict[str, int] = {}
    for row in responses:
        counts[row.problem_id] = counts.get(row.problem_id, 0) + row.is_correct
    return counts


def share_interval(responses: Sequence[Response]) -> tuple[float, float]:
    """A 95 % interval of the share of correct responses, made as `algo.evaluation.summarize` makes its own."""
    counts = correct_by_problem(responses)
    if len(responses) == len(counts):
        return exact_binomial_interval(sum(counts.values()), len(responses))
    per_problem = len(responses) // len(counts)
    return interval_over_problems([num / per_problem for _, num in sorted(counts.items())]).ci95


# -- by difficulty ----------------------------------------------------------------------------------------------------

ByLevel = Mapping[int, Sequence[Response]]


def by_level(responses: Sequence[Response], levels: Mapping[str, int]) -> ByLevel:
    """Responses by the level of their problem, easy first; problems without one are left out."""
    groups: dict[int, list[Response]] = defaultdict(list)
    for row in responses:
        if row.problem_id in levels:
            groups[levels[row.problem_id]].append(row)
    return dict(sorted(groups.items()))


def accuracy_by_level(facts: RunFacts) -> Figure:
    """Share of solved held-out problems by difficulty, for each stage."""
    name, title = "accuracy-by-level", "Solve rate by difficulty, before and after"
    stages = shown_stages(facts)
    if not stages:
        return missing(name, title, "No stage has been evaluated yet.")
    rows = [row for stage in stages for row in _level_rows(stage, facts.inputs.test_levels)]
    if not rows:
        return missing(name, title, NO_LEVELS)
    x = Axis(field="level", title="level of the problem", whole=True, domain=ends([row["level"] for row in rows]))
    y = Axis(field="share", title="solved", percent=True, domain=(0, 1))
    colors = stage_colors(stages)
    series = Series(field="stage", colors=colors)
    return Figure(
        id=name,
        title=title,
        text="Share of the held-out problems of each level that a stage solves, with 95 % intervals.",
        draw=lambda size: line_plot(rows, x=x, y=y, series=series, band=("low", "high"), size=size, legend=False),
        legend=colors,
        table=_level_table(rows),
    )


def _level_rows(stage: RunStage, levels: Mapping[str, int]) -> list[dict[str, Any]]:
    rows = []
    for level, responses in by_level(stage.responses, levels).items():
        num_correct, total = sum(row.is_correct for row in responses), len(responses)
        low, high = share_interval(responses)
        rows.append(
            {
                "stage": stage.label,
                "level": level,
                "share": num_correct / total,
                "low": low,
                "high": high,
                "text": f"{percent(num_correct / total)} of {count(total)}",
                "tip": f"{stage.label}, level {level}: {percent(num_correct / total)} [{interval(low, high)}], "
                f"{num_correct} of {count(total)}",
            }
        )
    return rows


def thought_by_level(facts: RunFacts) -> Figure:
    """Mean length of thoughts by difficulty, for each stage."""
    name, title = "thought-by-level", "Length of thoughts by difficulty and stage"
    stages = [stage for stage in shown_stages(facts) if any(row.thought_tokens for row in stage.responses)]
    if not stages:
        return missing(name, title, "No stage that was evaluated thinks yet.")
    rows = [row for stage in stages for row in _thought_rows(stage, facts.inputs.test_levels)]
    if not rows:
        return missing(name, title, NO_LEVELS)
    x = Axis(field="level", title="level of the problem", whole=True, domain=ends([row["level"] for row in rows]))
    y = Axis(field="tokens", title="mean tokens of a thought")
    of_all = stage_colors(shown_stages(facts))
    colors = {stage.label: of_all[stage.label] for stage in stages}
    series = Series(field="stage", colors=colors)
    silent = [stage.label for stage in shown_stages(facts) if stage not in stages]
    return Figure(
        id=name,
        title=title,
        text="Mean over all responses to held-out problems of a level, right or wrong."
        + (f" No thoughts at all: {', '.join(silent)}." if silent else ""),
        draw=lambda size: line_plot(rows, x=x, y=y, series=series, size=size, legend=False),
        legend=colors,
        table=_level_table(rows),
    )


def _thought_rows(stage: RunStage, levels: Mapping[str, int]) -> list[dict[str, Any]]:
    rows = []
    for level, responses in by_level(stage.responses, levels).items():
        tokens = mean(row.thought_tokens for row in responses)
        tip = f"{stage.label}, level {level}: {tokens:,.1f} tokens, mean of {len(responses)}"
        rows.append({"stage": stage.label, "level": level, "tokens": tokens, "text": f"{tokens:,.1f}", "tip": tip})
    return rows


def _level_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Stages down, levels across."""
    levels = sorted({row["level"] for row in rows})
    cells = {(row["stage"], row["level"]): row["text"] for row in rows}
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    return Table(
        columns=("stage", *(f"level {level}" for level in levels)),
        rows=tuple((stage, *(cells.get((stage, level), DASH) for level in levels)) for stage in stages),
    )
