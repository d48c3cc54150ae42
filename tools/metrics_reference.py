"""Prints the metrics as the table of docs/watching.md: `python tools/metrics_reference.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from still_ray.actors.monitoring.metrics import METRICS, VLLM_METRICS, Metric

OCCASIONS = {
    "always": "always",
    "general": "with `data.forgetting`",
    "training": "once a stage trains",
    "ranks": "once several ranks train",
    "faults": "once an actor was replaced",
    "statistics": "`sampler.engine_statistics`",
    "pressure": "the same, once the KV cache was full",
}


def table(metrics: Iterable[Metric]) -> str:
    """A Markdown table."""
    rows = [
        f"| `{metric.exported}` | {metric.kind} | {metric.unit} | {', '.join(f'`{tag}`' for tag in metric.tags)} "
        f"| {metric.description} | {OCCASIONS[metric.occasion]} |\n"
        for metric in metrics
    ]
    return "".join(["| name | kind | unit | labels | meaning | has values |\n|---|---|---|---|---|---|\n", *rows])


if __name__ == "__main__":
    sys.stdout.write(f"{table(METRICS)}\n{table(VLLM_METRICS)}")
