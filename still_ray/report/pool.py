"""The pool: how it grew, what each training stage took of it and left, what was dropped before the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from still_ray.facts import ExploreFacts, TrainFacts
from still_ray.report.charts import AMBER, BLUE, GREEN, GREY, PALE, Axis, Series, stacked_bars
from still_ray.report.charts import bars as bar_plot
from still_ray.report.facts import Response, RunFacts, RunStage
from still_ray.report.parts import JUDGED, NOT_EXPLORED, Figure, ReportSection, Table, count, missing, round_label
from still_ray.types import StageKind, TrainResult

KINDS: Final = {"usable": GREEN, "correct, not usable": AMBER, "not correct": PALE}

USED, LEFT, DEFECTIVE, WRONG = "used", "usable, not chosen", "malformed, cut off or not judged", "not correct"
COPY: Final = "copy of a text that is there"
HELD: Final = "control token as text"
FATES: Final = {USED: GREEN, LEFT: BLUE, COPY: GREY, DEFECTIVE: AMBER, WRONG: PALE}
"""What becomes of a response of the pool."""


def pool(facts: RunFacts) -> ReportSection:
    """What was kept of what was sampled."""
    return ReportSection(
        id="pool",
        title="Pool and selection",
        text="Every judged response stays in the pool. Selection takes from it what the next stage learns from.",
        figures=(growth(facts), fates(facts), *_prepared(facts)),
    )


def growth(facts: RunFacts) -> Figure:
    """How the pool grew, and how many problems have a correct response in it."""
    name, title = "growth", "Growth of the pool"
    if not facts.rounds:
        return missing(name, title, NOT_EXPLORED)
    rows, lines, solved = [], [], set()
    so_far: Counter[str] = Counter()
    for number, responses in facts.rounds.items():
        so_far.update(_fate_in_pool(row) for row in responses)
        here = {row.problem_id for row in responses if row.is_correct}
        solved |= here
        rows += [
            {
                "round": f"after {round_label(number)}",
                "kind": kind,
                "responses": so_far[kind],
                "tip": f"after {round_label(number)}: {count(so_far[kind])} {kind}",
            }
            for kind in KINDS
        ]
        lines.append(_growth_line(facts, number, here, solved, so_far.total()))
    value = Axis(field="responses", title="responses in the pool")
    series = Series(field="kind", colors=KINDS)
    headings = ("round", "policy", "problems", "rollouts", "saved", "correct", "solved", "solved so far", "pool")
    return Figure(
        id=name,
        title=title,
        text="Usable: correct, well-formed and not cut off. Saved: rollouts that adaptive sampling left out because "
        "their problem had enough." + _budgets(facts),
        draw=lambda size: stacked_bars(rows, category="round", value=value, series=series, size=size, legend=False),
        height=70 + 34 * len(facts.rounds),
        legend=KINDS,
        table=Table(columns=headings, rows=tuple(lines)),
        open=True,
    )


def _budgets(facts: RunFacts) -> str:
    """What rounds with a budget spent of it."""
    found = [(one.round, one.budget) for _, one in facts.complete if isinstance(one, ExploreFacts) and one.budget]
    return "".join(
        f" {round_label(number).capitalize()} spent {count(budget.num_sampled_tokens)} of "
        f"{count(budget.max_sampled_tokens)} tokens (explore.max_sampled_tokens), and left out the next wave of "
        f"{count(budget.num_unaffordable)} problems for want of them."
        for number, budget in found
    )


def _fate_in_pool(row: Response) -> str:
    usable, spoilt, wrong = KINDS
    if not row.is_correct:
        return wrong
    return usable if row.is_usable else spoilt


def _growth_line(facts: RunFacts, number: int, here: set[str], solved: set[str], total: int) -> tuple[str, ...]:
    responses = facts.rounds[number]
    explored = (one for _, one in facts.complete if isinstance(one, ExploreFacts) and one.round == number)
    saved = sum(one.num_rollouts_saved for one in explored)
    versions = sorted({row.policy_version for row in responses})
    return (
        round_label(number),
        ", ".join(f"v{version}" for version in versions),
        count(len({row.problem_id for row in responses})),
        count(len(responses)),
        count(saved),
        count(sum(row.is_correct for row in responses)),
        count(len(here)),
        count(len(solved)),
        count(total),
    )


def fates(facts: RunFacts) -> Figure:
    """What became of the pool at each training stage after a round."""
    name, title = "selection", "What selection took from the pool, and what it left"
    stages = [(stage, found) for stage, found in facts.trained if stage.round]
    if not stages:
        return missing(name, title, "No stage has learnt from explored responses yet.")
    mixes = {stage.label: _fates_of(stage, found.data, facts) for stage, found in stages}
    rows = [
        {
            "stage": label,
            "fate": fate,
            "responses": mix[fate],
            "tip": f"{label}: {count(mix[fate])} of {count(mix.total())} {fate}",
        }
        for label, mix in mixes.items()
        for fate in FATES
        if mix[fate]
    ]
    value = Axis(field="responses", title="responses in the pool")
    series = Series(field="fate", colors=FATES)
    lines = tuple(_fate_line(stage, found.training, mixes[stage.label]) for stage, found in stages)
    headings = ("stage", "pool", WRONG, DEFECTIVE, COPY, LEFT, USED, "too long to train on", HELD, "rows trained on")
    return Figure(
        id=name,
        title=title,
        text=_taking(stages),
        draw=lambda size: stacked_bars(rows, category="stage", value=value, series=series, size=size, legend=False),
        height=70 + 34 * len(stages),
        legend=FATES,
        table=Table(columns=headings, rows=lines),
        open=True,
    )


def _taking(stages: Sequence[tuple[RunStage, TrainFacts]]) -> str:
    """What the methods of some stages learn from, and what each stage left out."""
    known = [(stage.method, stage.label, found.data) for stage, found in stages if stage.method]
    takes = "; ".join(dict.fromkeys(method.takes for method, *_ in known))
    return " ".join([f"{takes}.", *filter(None, (method.left_out(label, data) for method, label, data in known))])


def _fates_of(stage: RunStage, data: Mapping[str, int], facts: RunFacts) -> Counter[str]:
    used = {identity for row in stage.sources for identity in row.ids}
    may_be_wrong = stage.method is not None and stage.method.may_be_wrong
    mix: Counter[str] = Counter()
    for number in _rounds_before(stage, facts):
        for row in facts.rounds[number]:
            mix[_fate(row, used, may_be_wrong=may_be_wrong)] += 1
    # Manifests of older releases count no copies.
    mix[COPY] = sum(data.get(key, 0) for key in (stage.method.copies if stage.method else ()))
    mix[LEFT] -= mix[COPY]
    return mix


def _fate(row: Response, used: set[str], *, may_be_wrong: bool) -> str:
    if row.id in used:
        return USED
    if not row.is_correct and not may_be_wrong:
        return WRONG
    return LEFT if row.is_usable and row.verdict in JUDGED else DEFECTIVE


def _rounds_before(stage: RunStage, facts: RunFacts) -> list[int]:
    """The rounds whose responses a stage may take."""
    if stage.method is None or stage.settings is None:
        return []
    explored = [one.round for one in facts.stages if one.kind is StageKind.EXPLORE and one.round <= stage.round]
    allowed = stage.method.rounds(stage.settings, explored)
    return [number for number in facts.rounds if number in allowed]


def _fate_line(stage: RunStage, training: TrainResult, mix: Mapping[str, int]) -> tuple[str, ...]:
    numbers = (sum(mix.values()), mix[WRONG], mix[DEFECTIVE], mix[COPY], mix[LEFT], mix[USED])
    trained = f"{count(training.num_examples)}{stage.unit}"
    left_out = (training.num_skipped, training.num_control)
    return (stage.label, *map(count, numbers), *map(count, left_out), trained)


# -- prepared data ----------------------------------------------------------------------------------------------------


def _prepared(facts: RunFacts) -> list[Figure]:
    return [_filters(name, report) for name, report in facts.inputs.prepared.items()]


def _filters(name: str, report: Mapping[str, Any]) -> Figure:
    """What `still-ray prepare` dropped before the run."""
    rows = report["rows"]
    kept = [("read", rows["in"]), ("broken", rows["broken"])]
    dropped = [(f"dropped: {key}", found["dropped"]) for key, found in report["filters"].items() if found["enabled"]]
    lines = [
        {"step": step, "rows": number, "text": count(number), "tip": f"{step}: {count(number)} rows"}
        for step, number in [*kept, *dropped, ("written", rows["out"])]
    ]
    value = Axis(field="rows", domain=(0, 1.12 * max(1, rows["in"])))
    return Figure(
        id=f"filters-{name}",
        title=f"What the filters dropped: {name}",
        text="Counts of still-ray prepare, from the report beside the data that the run was given.",
        draw=lambda size: bar_plot(lines, category="step", value=value, color=GREY, size=size),
        height=60 + 30 * len(lines),
        table=Table(columns=("step", "rows"), rows=tuple((line["step"], line["text"]) for line in lines)),
    )
