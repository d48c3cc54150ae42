"""What the rounds sampled: pass@k, verdicts, truncation, perplexities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from still_ray.algo.evaluation.statistics import pass_at_k
from still_ray.algo.evaluation.summary import interval_over_problems
from still_ray.report.charts import (
    AMBER,
    VERDICTS,
    Axis,
    Series,
    line_plot,
    spread_plot,
    stacked_bars,
)
from still_ray.report.charts import bars as bar_plot
from still_ray.report.facts import Response, RunFacts
from still_ray.report.parts import (
    DASH,
    JUDGED,
    NOT_EXPLORED,
    Figure,
    ReportSection,
    Table,
    count,
    ends,
    interval,
    missing,
    percent,
    quantile,
    round_colors,
    round_label,
)
from still_ray.types import Verdict

RESAMPLES: Final = 2_000
"""Of each point of pass@k; the ends of an interval move by about 2 % of its width."""
MAX_KS: Final = 10
"""Points of one curve."""


def exploration(facts: RunFacts) -> ReportSection:
    """The section."""
    return ReportSection(
        id="exploration",
        title="Exploration",
        text="Each round samples several responses to every problem with the policy of the stage before; verifiers "
        "judge them.",
        figures=(pass_curves(facts), perplexities(facts), verdict_mix(facts), truncation(facts)),
    )


# -- pass@k -----------------------------------------------------------------------------------------------------------


def pass_curves(facts: RunFacts) -> Figure:
    """pass@k of every round, from its rollouts."""
    name, title = "pass-at-k", "pass@k by round"
    if not facts.rounds:
        return missing(name, title, NOT_EXPLORED)
    waves = first_waves(facts)
    rows = [
        row
        for number, responses in facts.rounds.items()
        for row in _pass_rows(number, _drawn_anyway(responses, waves.get(number)))
    ]
    if not rows:
        return missing(name, title, NOT_EXPLORED)
    colors = round_colors(facts.rounds)
    x = Axis(field="k", title="k, samples of a problem", whole=True, domain=ends([row["k"] for row in rows]))
    y = Axis(field="share", title="solved by at least one of k", percent=True, domain=(0, 1))
    series = Series(field="round", colors=colors)
    return Figure(
        id=name,
        title=title,
        text="Unbiased estimates from the rollouts, with 95 % intervals over problems, for every k up to the fewest "
        "samples that a problem has. Rounds may sample different problems." + _said(waves),
        draw=lambda size: line_plot(rows, x=x, y=y, series=series, band=("low", "high"), size=size, legend=False),
        legend=colors,
        table=Table(
            columns=("round", "k", "pass@k", "95 % interval", "problems"),
            rows=tuple(
                (row["round"], str(row["k"]), percent(row["share"]), interval(row["low"], row["high"]), row["problems"])
                for row in rows
            ),
        ),
    )


def first_waves(facts: RunFacts) -> dict[int, int]:
    """Samples of each problem in the first wave, by round; rounds without adaptive sampling are left out."""
    waves = {}
    for number, entry in enumerate(facts.recipe.get("rounds") or (), start=1):
        adaptive = (entry.get("explore") or {}).get("adaptive")
        if adaptive and number in facts.rounds:
            waves[number] = int(adaptive["initial"])
    return waves


def _drawn_anyway(responses: Sequence[Response], wave: int | None) -> Sequence[Response]:
    """The samples that a problem gets whatever their verdicts.

    Of an adaptive round these are the first wave. Later waves go only to problems that lack correct responses: with
    them the number of samples depends on the outcome, and the estimate, made for a fixed number, is biased.
    """
    return responses if wave is None else [row for row in responses if row.sample_index < wave]


def _said(waves: Mapping[int, int]) -> str:
    if not waves:
        return ""
    named = ", ".join(f"{round_label(number)}: {wave}" for number, wave in waves.items())
    return (
        " Where sampling is adaptive, only the first samples of each problem count, which it gets whatever the outcome "
        f"({named}); later ones go to problems that lack correct ones, and would bias the estimate."
    )


def _pass_rows(number: int, responses: Sequence[Response]) -> list[dict[str, Any]]:
    counts = _by_problem(responses)
    if not counts:
        return []
    label = round_label(number)
    rows = []
    for k in _ks(min(total for total, _ in counts.values())):
        values = [pass_at_k(total, num_correct, k) for _, (total, num_correct) in sorted(counts.items())]
        found = interval_over_problems(values, num_resamples=RESAMPLES)
        share, (low, high) = found.value, found.ci95
        rows.append(
            {
                "round": label,
                "k": k,
                "share": share,
                "low": low,
                "high": high,
                "problems": count(len(values)),
                "tip": f"{label}, pass@{k}: {percent(share)} [{interval(low, high)}], {count(len(values))} problems",
            }
        )
    return rows


def _by_problem(responses: Iterable[Response]) -> dict[str, tuple[int, int]]:
    """Samples and correct ones of each problem."""
    totals: Counter[str] = Counter()
    correct: Counter[str] = Counter()
    for row in responses:
        totals[row.problem_id] += 1
        correct[row.problem_id] += row.is_correct
    return {problem: (total, correct[problem]) for problem, total in totals.items()}


def _ks(largest: int) -> list[int]:
    """Every k, or of many those that are about equally far apart on a logarithmic scale."""
    if largest <= MAX_KS:
        return list(range(1, largest + 1))
    steps = (round(largest ** (step / (MAX_KS - 1))) for step in range(MAX_KS))
    return sorted(set(steps))


# -- verdicts ---------------------------------------------------------------------------------------------------------


def verdict_mix(facts: RunFacts) -> Figure:
    """Shares of the verdicts in every round."""
    name, title = "verdicts", "Verdicts by round"
    if not facts.rounds:
        return missing(name, title, NOT_EXPLORED)
    mixes = {number: Counter(row.verdict for row in responses) for number, responses in facts.rounds.items()}
    rows = [
        {
            "round": round_label(number),
            "verdict": verdict,
            "share": mix[verdict] / mix.total(),
            "tip": f"{round_label(number)}: {count(mix[verdict])} {verdict}, {percent(mix[verdict] / mix.total())}",
        }
        for number, mix in mixes.items()
        for verdict in VERDICTS
        if mix[verdict]
    ]
    value = Axis(field="share", percent=True, domain=(0, 1))
    series = Series(field="verdict", colors=VERDICTS)
    return Figure(
        id=name,
        title=title,
        text="A timeout or an error says nothing about the answer and is counted apart.",
        draw=lambda size: stacked_bars(rows, category="round", value=value, series=series, size=size, legend=False),
        height=60 + 34 * len(mixes),
        legend=VERDICTS,
        table=Table(
            columns=("round", *VERDICTS, "rollouts"),
            rows=tuple(
                (round_label(number), *(count(mix[verdict]) for verdict in VERDICTS), count(mix.total()))
                for number, mix in mixes.items()
            ),
        ),
    )


def truncation(facts: RunFacts) -> Figure:
    """Share of rollouts that met the token limit, and of those malformed for another reason."""
    name, title = "truncation", "Truncated and malformed responses by round"
    if not facts.rounds:
        return missing(name, title, NOT_EXPLORED)
    rows = [_form_row(number, responses) for number, responses in facts.rounds.items()]
    value = Axis(field="share", percent=True, domain=(0, max(0.1, 1.25 * max(row["share"] for row in rows))))
    return Figure(
        id=name,
        title=title,
        text="Truncated: the token limit was reached before the end. Malformed: a marker is missing or misplaced, "
        "though the response ended by itself.",
        draw=lambda size: bar_plot(rows, category="round", value=value, color=AMBER, size=size),
        height=60 + 34 * len(rows),
        table=Table(
            columns=("round", "truncated", "malformed", "tokens, median", "tokens, longest"),
            rows=tuple(
                (row["round"], percent(row["share"]), percent(row["malformed"]), row["median"], row["longest"])
                for row in rows
            ),
        ),
    )


def _form_row(number: int, responses: Sequence[Response]) -> dict[str, Any]:
    total, truncated = len(responses), sum(row.is_truncated for row in responses)
    lengths = sorted(row.num_tokens for row in responses)
    label = round_label(number)
    return {
        "round": label,
        "share": truncated / total,
        "malformed": sum(bool(row.defect) and not row.is_truncated for row in responses) / total,
        "median": count(quantile(lengths, 0.5)),
        "longest": count(lengths[-1]),
        "text": percent(truncated / total),
        "tip": f"{label}: {count(truncated)} of {count(total)} responses truncated",
    }


# -- perplexity -------------------------------------------------------------------------------------------------------


def perplexities(facts: RunFacts) -> Figure:
    """How sure the policy was of correct and of incorrect responses."""
    name, title = "perplexity", "Perplexity of correct and incorrect responses"
    if not facts.rounds:
        return missing(name, title, NOT_EXPLORED)
    rows = [
        row
        for number, responses in facts.rounds.items()
        for verdict in JUDGED
        if (row := _spread(number, verdict, responses))
    ]
    if not rows:
        return missing(name, title, "No response has been judged correct or incorrect yet.")
    colors = {verdict.value: VERDICTS[verdict] for verdict in JUDGED}
    ends = min(row["p10"] for row in rows), max(row["p90"] for row in rows)
    value = Axis(field="p50", title="perplexity, logarithmic", log=True, domain=(ends[0] * 0.995, ends[1] * 1.005))
    series = Series(field="verdict", colors=colors)
    columns = ("10 %", "25 %", "median", "75 %", "90 %")
    return Figure(
        id=name,
        title=title,
        text="The point is the median, the thick line holds half of the responses, the thin line 80 %. The paper pairs "
        "correct responses of high perplexity with incorrect ones of low perplexity.",
        draw=lambda size: spread_plot(rows, category="round", value=value, series=series, size=size, legend=False),
        height=max(260, 70 + 52 * len(facts.rounds)),
        legend=colors,
        table=Table(
            columns=("round", "verdict", *columns, "responses"),
            rows=tuple(
                (row["round"], row["verdict"], *(f"{row[q]:.4g}" for q in QUANTILES), row["total"]) for row in rows
            ),
            text_columns=frozenset({1}),
        ),
    )


QUANTILES: Final = {"p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9}


def _spread(number: int, verdict: Verdict, responses: Sequence[Response]) -> dict[str, Any]:
    values = sorted(row.perplexity for row in responses if row.verdict == verdict)
    if not values:
        return {}
    label = round_label(number)
    found = {name: quantile(values, share) for name, share in QUANTILES.items()}
    tip = f"{label}, {verdict.value}: median {found['p50']:.4g}, half within {found['p25']:.4g} {DASH} "
    return {
        "round": label,
        "verdict": verdict.value,
        **found,
        "total": count(len(values)),
        "tip": f"{tip}{found['p75']:.4g}, {count(len(values))} responses",
    }
