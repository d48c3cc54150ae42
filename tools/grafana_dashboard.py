"""Prints the Grafana dashboard: `python tools/grafana_dashboard.py > cluster/grafana/still-ray.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from still_ray.actors.monitoring import metrics as m
from still_ray.actors.monitoring.metrics import Metric

INTERVAL = "$__rate_interval"
UNITS = {"s": "s", "share": "percentunit", "bytes": "bytes", "tokens": "short", "tokens/s": "short", "bytes/s": "Bps"}
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
HEIGHT = 8


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        title: Its title.
        metric: Whose description it shows, and whose unit.
        queries: PromQL by legend.
        kind: Grafana's panel type.
        unit: Grafana's unit, if not the metric's.
        width: Of 24 columns.
    """

    title: str
    metric: Metric
    queries: dict[str, str]
    kind: str = "timeseries"
    unit: str | None = None
    width: int = 8


def of(metric: Metric, *matchers: str, part: str = "") -> str:
    """A selector of a metric, of the chosen runs where it knows runs; `part` is `_bucket` of a histogram."""
    own = ['run=~"$run"'] if metric.source == "still_ray" else []
    return f"{metric.exported}{part}{{{', '.join([*own, *matchers])}}}"


def rate(metric: Metric, *matchers: str, part: str = "") -> str:
    """Its rate per second."""
    return f"rate({of(metric, *matchers, part=part)}[{INTERVAL}])"


def by(labels: str, selector: str, function: str = "max") -> str:
    """One series for each value of the labels: a resumed run's driver is another process, but the same run."""
    return f"{function} by ({labels}) ({selector})"


def share(metric: Metric, matcher: str) -> str:
    """The share of a counter's increments that match; 0 where none do."""
    everything = by("run", rate(metric), "sum")
    return f"({by('run', rate(metric, matcher), 'sum')} or 0 * {everything}) / {everything}"


def quantile(q: float, metric: Metric, labels: str) -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {by(f'{labels}, le', rate(metric, part='_bucket'), 'sum')})"


def quantiles(metric: Metric, labels: str) -> dict[str, str]:
    """The three that are usually looked at."""
    legend = " ".join(f"{{{{{label}}}}}" for label in labels.split(", "))
    return {f"{legend} p{q * 100:g}": quantile(q, metric, labels) for q in (0.5, 0.95, 0.99)}


PRESENT = f"{by('run, stage', of(m.STAGE))} == 1"

ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel(title="Stage", metric=m.STAGE, queries={"{{run}} {{stage}}": PRESENT}, kind="stat"),
        Panel(title="Round", metric=m.ROUND, queries={"{{run}}": by("run", of(m.ROUND))}, kind="stat", width=4),
        Panel(
            title="Policy version",
            metric=m.POLICY_VERSION,
            queries={"{{run}}": by("run", of(m.POLICY_VERSION))},
            kind="stat",
            width=4,
        ),
        Panel(
            title="Progress of the stage",
            metric=m.PROGRESS,
            queries={"{{run}} {{stage}}": f"{by('run, stage', of(m.PROGRESS))} and ({PRESENT})"},
            kind="gauge",
        ),
        Panel(
            title="Held-out accuracy",
            metric=m.ACCURACY,
            queries={"{{run}} {{stage}}": by("run, stage", of(m.ACCURACY))},
            width=12,
        ),
        Panel(
            title="Accuracy on general problems",
            metric=m.GENERAL_ACCURACY,
            queries={"{{run}} {{stage}}": by("run, stage", of(m.GENERAL_ACCURACY))},
            width=12,
        ),
        Panel(
            title="Time of each stage",
            metric=m.STAGE_SECONDS,
            queries={"{{run}} {{stage}}": by("run, stage", of(m.STAGE_SECONDS))},
            kind="bargauge",
            width=12,
        ),
    ],
    "Exploration": [
        Panel(
            title="Tokens/s of each replica",
            metric=m.GENERATED_TOKENS,
            queries={"{{run}} {{replica}}": by("run, replica", rate(m.GENERATED_TOKENS), "sum")},
        ),
        Panel(
            title="Rollouts/s",
            metric=m.ROLLOUTS,
            queries={"{{run}} {{finish_reason}}": by("run, finish_reason", rate(m.ROLLOUTS), "sum")},
            unit="short",
        ),
        Panel(
            title="Truncated",
            metric=m.ROLLOUTS,
            queries={"{{run}}": share(m.ROLLOUTS, 'finish_reason="length"')},
            unit="percentunit",
        ),
        Panel(
            title="Queue depth of each replica",
            metric=m.REPLICA_REQUESTS,
            queries={"{{run}} {{replica}} {{state}}": by("run, replica, state", of(m.REPLICA_REQUESTS))},
            width=24,
        ),
    ],
    "Verification": [
        Panel(
            title="Verdicts/s by kind",
            metric=m.VERDICTS,
            queries={"{{run}} {{verdict}}": by("run, verdict", rate(m.VERDICTS), "sum")},
            width=6,
        ),
        Panel(
            title="Correct",
            metric=m.VERDICTS,
            queries={"{{run}}": share(m.VERDICTS, 'verdict="correct"')},
            unit="percentunit",
            width=6,
        ),
        Panel(
            title="Verification latency",
            metric=m.VERIFICATION_SECONDS,
            queries=quantiles(m.VERIFICATION_SECONDS, "run, domain"),
            width=6,
        ),
        Panel(
            title="Queue depth of each verifier",
            metric=m.VERIFIER_REQUESTS,
            queries={"{{run}} {{verifier}}": by("run, verifier", of(m.VERIFIER_REQUESTS))},
            width=6,
        ),
    ],
    "Training": [
        Panel(title="Loss", metric=m.LOSS, queries={"{{run}} {{stage}}": by("run, stage", of(m.LOSS))}, width=6),
        Panel(
            title="Learning rate",
            metric=m.LEARNING_RATE,
            queries={"{{run}} {{stage}}": by("run, stage", of(m.LEARNING_RATE))},
            unit="sci",
            width=6,
        ),
        Panel(
            title="Weights changed by a stage",
            metric=m.WEIGHTS_CHANGED,
            queries={"{{run}} {{stage}}": by("run, stage", of(m.WEIGHTS_CHANGED))},
            unit="percentunit",
            width=6,
        ),
        Panel(
            title="Tokens/s of the trainer",
            metric=m.TRAINED_TOKENS_PER_SECOND,
            queries={"{{run}} {{stage}}": by("run, stage", of(m.TRAINED_TOKENS_PER_SECOND))},
            width=6,
        ),
        Panel(
            title="All-gather to each rank",
            metric=m.ALL_GATHER_RATE,
            queries={"{{run}} {{stage}}": by("run, stage", of(m.ALL_GATHER_RATE))},
            width=12,
        ),
        Panel(
            title="Communication of a step",
            metric=m.STEP_COMMUNICATION,
            queries={"{{run}} {{stage}}": by("run, stage", of(m.STEP_COMMUNICATION))},
            width=12,
        ),
    ],
    "Weight sync": [
        Panel(
            title="Seconds of the last sync",
            metric=m.SYNC_SECONDS,
            queries={"{{run}} {{transport}}": by("run, transport", of(m.SYNC_SECONDS))},
        ),
        Panel(
            title="Bytes of the last sync",
            metric=m.SYNC_BYTES,
            queries={"{{run}} {{transport}}": by("run, transport", of(m.SYNC_BYTES))},
        ),
        Panel(
            title="Largest log-probability difference",
            metric=m.SYNC_DIFFERENCE,
            queries={
                "{{run}} {{transport}}": by("run, transport", of(m.SYNC_DIFFERENCE)),
                "{{run}} {{transport}} weak": by("run, transport", of(m.SYNC_WEAK)),
            },
            unit="sci",
        ),
    ],
    "Replicas and verifiers": [
        Panel(
            title="Up, starting, wanted",
            metric=m.ACTORS,
            queries={
                "{{run}} {{pool}} {{state}}": by("run, pool, state", of(m.ACTORS)),
                "{{run}} {{pool}} wanted": by("run, pool", of(m.ACTORS_WANTED)),
            },
            width=12,
        ),
        Panel(
            title="Replaced so far",
            metric=m.ACTORS_LOST,
            queries={"{{run}} {{pool}} {{cause}}": by("run, pool, cause", of(m.ACTORS_LOST))},
            width=12,
        ),
    ],
    "vLLM": [
        Panel(
            title="Requests in the engines",
            metric=m.VLLM_RUNNING,
            queries={
                f"{{{{{m.VLLM_REPLICA}}}}} running": by(m.VLLM_REPLICA, of(m.VLLM_RUNNING)),
                f"{{{{{m.VLLM_REPLICA}}}}} waiting": by(m.VLLM_REPLICA, of(m.VLLM_WAITING)),
            },
        ),
        Panel(
            title="KV cache in use",
            metric=m.VLLM_KV_CACHE,
            queries={f"{{{{{m.VLLM_REPLICA}}}}}": by(m.VLLM_REPLICA, of(m.VLLM_KV_CACHE))},
        ),
        Panel(
            title="Tokens/s of the engines",
            metric=m.VLLM_GENERATION_TOKENS,
            queries={
                f"{{{{{m.VLLM_REPLICA}}}}} generated": by(m.VLLM_REPLICA, rate(m.VLLM_GENERATION_TOKENS), "sum"),
                f"{{{{{m.VLLM_REPLICA}}}}} prompt": by(m.VLLM_REPLICA, rate(m.VLLM_PROMPT_TOKENS), "sum"),
            },
        ),
        Panel(
            title="Time to first token",
            metric=m.VLLM_FIRST_TOKEN,
            queries=quantiles(m.VLLM_FIRST_TOKEN, m.VLLM_REPLICA),
        ),
        Panel(
            title="Time between tokens",
            metric=m.VLLM_BETWEEN_TOKENS,
            queries=quantiles(m.VLLM_BETWEEN_TOKENS, m.VLLM_REPLICA),
        ),
        Panel(
            title="Preemptions/s",
            metric=m.VLLM_PREEMPTIONS,
            queries={f"{{{{{m.VLLM_REPLICA}}}}}": by(m.VLLM_REPLICA, rate(m.VLLM_PREEMPTIONS), "sum")},
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "title": "still-ray",
        "uid": "still-ray",
        "tags": ["ray", "still-ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_source_variable(), _run_variable()]},
        "panels": _panels(),
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _run_variable() -> dict[str, Any]:
    query = f"label_values({m.ROUND.exported}, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "run"},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _panels() -> list[dict[str, Any]]:
    """Rows with their panels, from left to right and from top to bottom."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(_placed({"type": "row", "title": title, "collapsed": False}, panels, (0, y, COLUMNS, 1)))
        x, y = 0, y + 1
        for panel in row:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            panels.append(_placed(_panel(panel), panels, (x, y, panel.width, HEIGHT)))
            x += panel.width
        y += HEIGHT
    return panels


def _placed(panel: dict[str, Any], before: list[dict[str, Any]], place: tuple[int, int, int, int]) -> dict[str, Any]:
    x, y, w, h = place
    return {"id": len(before) + 1, **panel, "gridPos": {"x": x, "y": y, "w": w, "h": h}}


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend}
        for index, (legend, expression) in enumerate(panel.queries.items())
    ]
    made = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.metric.description,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit or UNITS.get(panel.metric.unit, "short"), **_range(panel)},
            "overrides": [],
        },
        "targets": targets,
    }
    return made | ({"options": {"textMode": "name"}} if panel.metric is m.STAGE else {})


def _range(panel: Panel) -> dict[str, float]:
    return {"min": 0, "max": 1} if panel.kind == "gauge" else {}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dashboard(), indent=1) + "\n")
