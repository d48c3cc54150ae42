"""How the run went: losses, where the time went, throughput, weight syncs, and the faults that it survived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from still_ray.facts import ExploreFacts, StageFacts, TrainFacts
from still_ray.report.charts import AMBER, BLUE, GREEN, PALE, VIOLET, Axis, Series, line_plot, stacked_bars
from still_ray.report.facts import Response, RunFacts, RunStage
from still_ray.report.parts import (
    DASH,
    Figure,
    ReportSection,
    Table,
    count,
    missing,
    percent,
    seconds,
    size,
    stage_colors,
)
from still_ray.types import ACTORS_LOST, RUN_STARTED, TRAINER_REBUILT, SyncReport, TrainResult

LOSS: Final = "train/loss"
STAGE_SECONDS: Final = "stage/seconds"

MAX_POINTS: Final = 240
"""Points of one loss curve; more cannot be told apart."""
LOG_FROM: Final = 20.0
"""Ratio of the largest to the smallest loss from which the axis is logarithmic."""

SAMPLE, TRAIN, EVALUATE, SYNC, REST = "sample and verify", "train", "evaluate", "weight sync", "start and wait"
ACTIVITIES: Final = {REST: PALE, TRAIN: VIOLET, SAMPLE: BLUE, SYNC: AMBER, EVALUATE: GREEN}


def training(facts: RunFacts) -> ReportSection:
    """The section on training."""
    return ReportSection(
        id="training",
        title="Training",
        text="",
        figures=(losses(facts),),
    )


def running(facts: RunFacts) -> ReportSection:
    """The section on time, syncs and faults."""
    return ReportSection(
        id="running",
        title="Time, throughput, faults",
        text="",
        figures=(times(facts), throughput(facts), syncs(facts), faults(facts)),
    )


# -- losses -----------------------------------------------------------------------------------------------------------


def losses(facts: RunFacts) -> Figure:
    """The loss of every training stage, one after the other."""
    name, title = "loss", "Loss"
    curves = {stage.label: curve for stage in facts.stages if stage.trains and (curve := _curve(facts, stage.name))}
    if not curves:
        return missing(name, title, "No training step has been recorded yet.")
    rows = _loss_rows(curves)
    of_all = stage_colors(stage for stage in facts.stages if stage.trains)
    colors = {label: of_all[label] for label in curves}
    values = [row["loss"] for row in rows]
    log = min(values) > 0 and max(values) / min(values) > LOG_FROM
    x = Axis(field="at", title="optimizer steps, all stages", domain=(0, rows[-1]["at"]))
    y = Axis(field="loss", title="loss, logarithmic" if log else "loss", log=log)
    series = Series(field="stage", colors=colors)
    return Figure(
        id=name,
        title=title,
        text=_loss_text(facts),
        draw=lambda size: line_plot(rows, x=x, y=y, series=series, size=size, points=False, legend=False),
        height=340,
        legend=colors,
        table=_training_table(facts, curves),
        open=True,
        points=Table(
            columns=("stage", "step", "loss"),
            rows=tuple((row["stage"], count(row["step"]), f"{row['loss']:.4g}") for row in rows),
        ),
    )


def _loss_text(facts: RunFacts) -> str:
    texts = dict.fromkeys(stage.method.loss_text for stage in facts.stages if stage.method)
    differ = " Losses of different methods cannot be compared." if len(texts) > 1 else ""
    return f"Mean loss of each logged window. {' '.join(texts)}{differ}"


def _curve(facts: RunFacts, stage: str) -> dict[int, float]:
    """Loss by step; of a step that was trained twice, because its training began again, the later."""
    found = {int(event.labels["step"]): event.value for event in facts.named(LOSS) if event.stage == stage}
    return dict(sorted(found.items()))


def _loss_rows(curves: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    rows, before = [], 0
    for label, curve in curves.items():
        stride = -(-len(curve) // MAX_POINTS)
        for step, loss in list(curve.items())[::stride]:
            tip = f"{label}, step {step}: loss {loss:.4g}"
            rows.append({"stage": label, "step": step, "at": before + step, "loss": loss, "tip": tip})
        before += max(curve)
    return rows


def _training_table(facts: RunFacts, curves: Mapping[str, Mapping[int, float]]) -> Table:
    rows = []
    for stage, left in facts.trained:
        found, losses_here = left.training, list(curves.get(stage.label, {}).values())
        epochs = [event.value for event in facts.named("train/epoch") if event.stage == stage.name]
        rows.append(
            (
                stage.label,
                count(found.num_examples) + stage.unit,
                count(found.num_tokens),
                f"{max(epochs):.3g}" if epochs else DASH,
                count(found.steps),
                f"{losses_here[0]:.3f}" if losses_here else DASH,
                f"{found.final_loss:.3f}",
                DASH if found.share_changed is None else percent(found.share_changed),
            )
        )
    columns = ("stage", "rows", "tokens, all epochs", "epochs", "steps", "first loss", "last loss", "weights changed")
    return Table(columns=columns, rows=tuple(rows))


# -- time -------------------------------------------------------------------------------------------------------------


class Span(NamedTuple):
    """A stretch of time, Unix seconds."""

    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """Its length."""
        return max(0.0, self.end - self.begin)


def times(facts: RunFacts) -> Figure:
    """Where the time of every stage went."""
    name, title = "time", "Where the time went"
    stages = facts.complete
    if not stages:
        return missing(name, title, "No stage is complete yet.")
    parts = {stage.label: _activities(stage, found, facts) for stage, found in stages}
    unit, scale = _time_unit(max(found.seconds for _, found in stages))
    rows = [
        {
            "stage": label,
            "activity": activity,
            "spent": spent / scale,
            "tip": f"{label}: {activity}, {seconds(spent)}",
        }
        for label, spent_on in parts.items()
        for activity, spent in spent_on.items()
        if spent
    ]
    total = sum(found.seconds for _, found in stages)
    value = Axis(field="spent", title=unit)
    series = Series(field="activity", colors=ACTIVITIES)
    return Figure(
        id=name,
        title=title,
        text=f"All stages together: {seconds(total)}. The start of processes, reading, saving and waiting for nodes "
        f"are in “{REST}”; a stage that was resumed counts its last attempt.",
        draw=lambda size: stacked_bars(rows, category="stage", value=value, series=series, size=size, legend=False),
        height=70 + 32 * len(stages),
        legend=ACTIVITIES,
        table=Table(
            columns=("stage", *ACTIVITIES, "all"),
            rows=tuple(
                (label, *(seconds(took) if took else DASH for took in spent.values()), seconds(sum(spent.values())))
                for label, spent in parts.items()
            ),
        ),
        open=True,
    )


def _time_unit(longest_s: float) -> tuple[str, float]:
    """The unit of an axis of times, and its seconds."""
    units = (("hours", 3600.0), ("minutes", 60.0))
    return next((found for found in units if longest_s >= 3 * found[1]), ("seconds", 1.0))


def _activities(stage: RunStage, found: StageFacts, facts: RunFacts) -> dict[str, float]:
    """Seconds of each activity of a stage; they add up to the stage's own."""
    left = found.seconds
    window = _window(stage, facts)
    wanted = {
        EVALUATE: _sampling(stage.responses, window).seconds,
        SAMPLE: _sampling(facts.rounds.get(stage.round, ()), window).seconds
        if isinstance(found, ExploreFacts)
        else 0.0,
        SYNC: found.sync.seconds if isinstance(found, TrainFacts) else 0.0,
        TRAIN: found.training.seconds if isinstance(found, TrainFacts) else 0.0,
    }
    spent = dict.fromkeys(ACTIVITIES, 0.0)
    for activity, took in wanted.items():
        spent[activity] = min(took, left)
        left -= spent[activity]
    return spent | {REST: left}


def _window(stage: RunStage, facts: RunFacts) -> Span:
    """When the stage ran, for the last time; everything, if that is not recorded."""
    ends = [event.time for event in facts.named(STAGE_SECONDS) if event.stage == stage.name]
    if not ends or stage.facts is None:
        return Span(0.0, float("inf"))
    return Span(ends[-1] - stage.facts.seconds, ends[-1])


def _sampling(responses: Sequence[Response], window: Span) -> Span:
    """From the first request to the last verdict within a window."""
    inside = [(_unix(row.created_at), row.latency_s) for row in _within(responses, window)]
    if not inside:
        return Span(0.0, 0.0)
    begin = max(window.begin, min(end - latency for end, latency in inside))
    return Span(begin, max(end for end, _ in inside))


def _within(responses: Sequence[Response], window: Span) -> Sequence[Response]:
    """The responses whose verdict fell into a window."""
    return [row for row in responses if window.begin <= _unix(row.created_at) <= window.end]


def _unix(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def throughput(facts: RunFacts) -> Figure:
    """Tokens a second, sampled and trained."""
    name, title = "throughput", "Throughput"
    rows = []
    for stage in facts.stages:
        if isinstance(stage.facts, ExploreFacts):
            responses = facts.rounds.get(stage.round, ())
            rows.append(_sampled_line(stage.label, "sample and verify", responses, _window(stage, facts)))
        elif isinstance(stage.facts, TrainFacts):
            rows.append(_trained_line(stage.label, stage.facts.training))
        if stage.responses:
            rows.append(_sampled_line(stage.label, "evaluate", stage.responses, _window(stage, facts)))
    if not rows:
        return missing(name, title, "No stage is complete yet.")
    columns = ("stage", "activity", "tokens", "time", "tokens/s", "responses/s")
    return Figure(
        id=name,
        title=title,
        text="Tokens of prompts are not counted. Sampling: from the first request to the last verdict. A stage that "
        "was resumed counts what its last attempt sampled; training that went on from a saved state has no rate, for "
        "its tokens are those of all steps and its time is that of the last ones.",
        table=Table(columns=columns, rows=tuple(rows), text_columns=frozenset({1})),
        open=True,
        wide=True,
    )


def _sampled_line(label: str, activity: str, responses: Sequence[Response], window: Span) -> tuple[str, ...]:
    """Tokens and time of the same responses: those of the last attempt."""
    inside = _within(responses, window)
    spent = _sampling(inside, window).seconds
    tokens = sum(row.num_tokens for row in inside)
    rates = (f"{tokens / spent:,.0f}", f"{len(inside) / spent:,.1f}") if spent else (DASH, DASH)
    return (label, activity, count(tokens), seconds(spent) if spent else DASH, *rates)


def _trained_line(label: str, found: TrainResult) -> tuple[str, ...]:
    is_whole = found.seconds and not found.resumed_from_step
    rate = f"{found.num_tokens / found.seconds:,.0f}" if is_whole else DASH
    return (label, "train", count(found.num_tokens), seconds(found.seconds), rate, DASH)


# -- syncs and faults -------------------------------------------------------------------------------------------------


def _proof(sync: SyncReport) -> str:
    """What proves a sync; manifests of former releases say nothing of digests."""
    digests = f"{count(sync.num_digests)} digests" if sync.num_digests else "probes"
    return f"{digests}, weak" if sync.weak else digests


def syncs(facts: RunFacts) -> Figure:
    """How each policy reached the replicas, and the proof that it did."""
    name, title = "syncs", "Weight syncs"
    found = [(stage, trained.sync) for stage, trained in facts.trained]
    if not found:
        return missing(name, title, "No trained policy has been sent to the replicas yet.")
    rows = tuple(
        (
            f"v{sync.policy_version}",
            stage.label,
            sync.transport,
            count(sync.num_replicas),
            size(sync.num_bytes) if sync.num_bytes else DASH,
            seconds(sync.seconds),
            f"{sync.max_logprob_difference:.2g}",
            f"{sync.probe_shift:.2g}",
            _proof(sync),
        )
        for stage, sync in found
    )
    columns = ("policy", "stage", "transport", "replicas", "sent to each", "time", "difference", "shift", "proof")
    return Figure(
        id=name,
        title=title,
        text="Difference: the largest absolute difference of a log-probability between a replica and the trainer, on "
        "probe sequences. Shift: how far the same probes moved from the version before. Proof: the tensors whose "
        "digests each rank confirmed; weak where the shift is hardly more than what trainer and replicas differ by, so "
        "that the digests alone prove the sync.",
        table=Table(columns=columns, rows=rows, text_columns=frozenset({1, 2, 8})),
        open=True,
        wide=True,
    )


class FaultCount(NamedTuple):
    """Something that the run survived."""

    stage: str
    what: str
    number: int


def survived(facts: RunFacts) -> list[FaultCount]:
    """Every fault on record: actors lost, trainer groups built again, drivers that were started again."""
    labels = {stage.name: stage.label for stage in facts.stages}
    return [*_lost_actors(facts, labels), *_rebuilt(facts, labels), *_resumed(facts)]


def faults(facts: RunFacts) -> Figure:
    """The faults that the run survived."""
    name, title = "faults", "Faults survived"
    found = survived(facts)
    if not found:
        return missing(name, title, "None: nothing died, and the run was not interrupted.", wide=True)
    rows = tuple((fault.stage, fault.what, count(fault.number)) for fault in found)
    return Figure(
        id=name,
        title=title,
        text="What was lost was made again.",
        table=Table(columns=("stage", "what happened", "times"), rows=rows, text_columns=frozenset({1}), wrap=True),
        open=True,
        wide=True,
    )


def _lost_actors(facts: RunFacts, labels: Mapping[str, str]) -> list[FaultCount]:
    counts: Counter[tuple[str, str, str]] = Counter()
    for event in facts.named(ACTORS_LOST):
        counts[event.stage, event.labels.get("pool", ""), event.labels.get("cause", "")] += int(event.value)
    causes = {"died": "died and was replaced", "node": "was lost with its node and replaced"}
    return [
        FaultCount(labels.get(stage, DASH), f"a {pool} {causes.get(cause, cause)}", number)
        for (stage, pool, cause), number in counts.items()
    ]


def _rebuilt(facts: RunFacts, labels: Mapping[str, str]) -> list[FaultCount]:
    counts = Counter(event.stage for event in facts.named(TRAINER_REBUILT))
    what = "a rank of the trainer died; the group was built again"
    return [FaultCount(labels.get(stage, DASH), what, number) for stage, number in counts.items()]


def _resumed(facts: RunFacts) -> list[FaultCount]:
    starts = sum(1 for _ in facts.named(RUN_STARTED))
    return [FaultCount(DASH, "the run was interrupted and resumed", starts - 1)] if starts > 1 else []
