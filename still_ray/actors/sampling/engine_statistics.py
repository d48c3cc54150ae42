"""vLLM's own statistics in Ray's metrics, under vLLM's names: `ray_vllm_<name>`.

Import it in a replica's process only: it imports vLLM.
"""

from __future__ import annotations

from copy import copy
from functools import cache
from typing import Any

import ray
from vllm.v1.metrics import ray_wrappers


class _OfThisReplica(ray_wrappers.RayPrometheusMetric):  # type: ignore[misc]
    """Puts the replica's name into the label that vLLM keeps for Ray Serve."""

    def _build_tags(self, *labels: Any, **named: Any) -> dict[str, str]:
        tags: dict[str, str] = super()._build_tags(*labels, **named)
        return tags | {"ReplicaId": _replica()}


@cache
def _replica() -> str:
    """The name of this process's actor; Ray asks its cluster for it."""
    return ray.get_runtime_context().get_actor_name() or ""


class _Gauge(_OfThisReplica, ray_wrappers.RayGaugeWrapper):  # type: ignore[misc]
    pass


class _Counter(_OfThisReplica, ray_wrappers.RayCounterWrapper):  # type: ignore[misc]
    pass


class _Histogram(_OfThisReplica, ray_wrappers.RayHistogramWrapper):  # type: ignore[misc]
    pass


class EngineStatistics(ray_wrappers.RayPrometheusStatLogger):  # type: ignore[misc]
    """vLLM's logger for Ray, with one observation of the time between tokens a step instead of one a token."""

    _gauge_cls = _Gauge
    _counter_cls = _Counter
    _histogram_cls = _Histogram

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **named: Any) -> None:
        """See vLLM: called after every step, on the engine's thread."""
        if iteration_stats is not None:
            iteration_stats = _thinned(iteration_stats)
        super().record(scheduler_stats, iteration_stats, *args, **named)


def _thinned(iteration_stats: Any) -> Any:
    """Every running sequence has waited for the same step; hundreds of equal observations would cost more than it."""
    latencies = iteration_stats.inter_token_latencies_iter
    if len(latencies) > 1:
        iteration_stats = copy(iteration_stats)
        iteration_stats.inter_token_latencies_iter = [sum(latencies) / len(latencies)]
    return iteration_stats


def stat_loggers() -> list[Any]:
    """What an engine in this process reports to: nothing where vLLM's logger lacks what it needs (`ray[serve]`)."""
    if ray_wrappers.ray_metrics is None:
        print("no engine statistics: vLLM's logger for Ray needs ray[serve]", flush=True)  # noqa: T201 - actor's log
        return []
    return [EngineStatistics]
