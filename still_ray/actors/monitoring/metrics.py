"""What a run tells Prometheus: one table of metrics, recorded in the process where a number arises.

Recording one takes a few microseconds, and none is made for a single token. Each becomes a `ray.util.metrics` metric,
which every node's Ray agent offers to Prometheus as `ray_still_ray_<name>`.

The Grafana dashboard and the list in docs/watching.md are made from this table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from urllib.parse import quote

_ASCII = "".join(map(chr, range(32, 127)))

Kind = Literal["counter", "gauge", "histogram"]

Occasion = Literal["always", "general", "training", "ranks", "faults", "statistics", "pressure"]
"""When a metric has values: in every run, once a stage was trained, by several ranks, when something was lost, where
the engines keep statistics (`sampler.engine_statistics`), or when such an engine runs out of KV cache."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric; ours also carry the tag `run`, the recipe's name.

    Attributes:
        name: Without prefixes.
        kind: How Prometheus takes it.
        unit: For a person; "" for a plain number.
        description: One line for a person.
        tags: Tag keys besides `run`.
        boundaries: Upper ends of a histogram's buckets.
        occasion: When it has values.
        source: Who records it.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    occasion: Occasion = "always"
    source: Literal["still_ray", "vllm"] = "still_ray"

    @property
    def exported(self) -> str:
        """The name in PromQL; a histogram's has `_bucket`, `_sum` or `_count` after it."""
        return f"ray_{self.source}_{self.name}{'_total' if self.kind == 'counter' else ''}"


ROUND = Metric(name="round", kind="gauge", unit="", description="Round of the present stage; 0 is imitation.")
STAGE = Metric(
    name="stage", kind="gauge", unit="", description="1 for the present stage, 0 for those before it.", tags=("stage",)
)
PROGRESS = Metric(
    name="progress",
    kind="gauge",
    unit="share",
    description="How much of the present activity of a stage is done: rollouts, or optimizer steps.",
    tags=("stage",),
)
STAGE_SECONDS = Metric(
    name="stage_seconds", kind="gauge", unit="s", description="Wall time of a finished stage.", tags=("stage",)
)
POLICY_VERSION = Metric(
    name="policy_version",
    kind="gauge",
    unit="",
    description="Policy version that replicas serve; 0 is the backbone.",
)
ACCURACY = Metric(
    name="accuracy",
    kind="gauge",
    unit="share",
    description="Accuracy on the held-out problems of the policy that a stage left behind.",
    tags=("stage",),
)
GENERAL_ACCURACY = Metric(
    name="general_accuracy",
    kind="gauge",
    unit="share",
    description="Accuracy on the general problems, which show forgetting, of the policy that a stage left behind.",
    tags=("stage",),
    occasion="general",
)

ROLLOUTS = Metric(
    name="rollouts",
    kind="counter",
    unit="",
    description="Responses sampled, by replica and by why sampling stopped; length means truncated.",
    tags=("replica", "finish_reason"),
)
GENERATED_TOKENS = Metric(
    name="generated_tokens",
    kind="counter",
    unit="tokens",
    description="Tokens of finished responses; its rate is a replica's tokens/s.",
    tags=("replica",),
)
REPLICA_REQUESTS = Metric(
    name="replica_requests",
    kind="gauge",
    unit="",
    description="Queue depth of a replica: samples being decoded (running) and those not yet begun (waiting).",
    tags=("replica", "state"),
)

VERDICTS = Metric(
    name="verdicts", kind="counter", unit="", description="Verdicts by kind and domain.", tags=("verdict", "domain")
)
VERIFICATION_SECONDS = Metric(
    name="verification_seconds",
    kind="histogram",
    unit="s",
    description="Time from a response's arrival at a verifier to its verdict.",
    tags=("domain",),
    boundaries=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)
VERIFIER_REQUESTS = Metric(
    name="verifier_requests",
    kind="gauge",
    unit="",
    description="Queue depth of a verifier: responses that wait for their verdict.",
    tags=("verifier",),
)

LOSS = Metric(
    name="loss",
    kind="gauge",
    unit="",
    description="Training loss, mean over the steps since the last report.",
    tags=("stage",),
    occasion="training",
)
LEARNING_RATE = Metric(
    name="learning_rate",
    kind="gauge",
    unit="",
    description="Learning rate of the last step.",
    tags=("stage",),
    occasion="training",
)
WEIGHTS_CHANGED = Metric(
    name="weights_changed",
    kind="gauge",
    unit="share",
    description="Share of the weights that the last training stage changed, in the type of the checkpoint.",
    tags=("stage",),
    occasion="training",
)
TRAINED_TOKENS_PER_SECOND = Metric(
    name="trained_tokens_per_second",
    kind="gauge",
    unit="tokens/s",
    description="Tokens that all trainer ranks work through, padding left out.",
    tags=("stage",),
    occasion="training",
)
ALL_GATHER_RATE = Metric(
    name="all_gather_bytes_per_second",
    kind="gauge",
    unit="bytes/s",
    description="What an all-gather of the trainer ranks brings to each of them, measured when the group starts.",
    tags=("stage",),
    occasion="ranks",
)
STEP_COMMUNICATION = Metric(
    name="step_communication_seconds",
    kind="gauge",
    unit="s",
    description="What gathering weights and reducing gradients takes of an optimizer step at that rate, no overlap.",
    tags=("stage",),
    occasion="ranks",
)

SYNC_SECONDS = Metric(
    name="sync_seconds",
    kind="gauge",
    unit="s",
    description="Wall time of the last weight sync, proof and waiting for replicas included.",
    tags=("transport",),
)
SYNC_BYTES = Metric(
    name="sync_bytes",
    kind="gauge",
    unit="bytes",
    description="Bytes sent to each replica in the last weight sync; 0 where it reads the checkpoint itself.",
    tags=("transport",),
)
SYNC_DIFFERENCE = Metric(
    name="sync_logprob_difference",
    kind="gauge",
    unit="nats",
    description="Largest difference between a replica's log-probabilities and the trainer's in the last proof.",
    tags=("transport",),
)
SYNC_WEAK = Metric(
    name="sync_weak",
    kind="gauge",
    unit="",
    description="1 where the last update moved the probes by hardly more than the noise: digests alone prove it.",
    tags=("transport",),
)

ACTORS = Metric(
    name="actors",
    kind="gauge",
    unit="",
    description="Replicas and verifiers that are ready, and those still starting.",
    tags=("pool", "state"),
)
ACTORS_WANTED = Metric(
    name="actors_wanted",
    kind="gauge",
    unit="",
    description="Replicas and verifiers that the recipe asks for; 0 while they are released.",
    tags=("pool",),
)
ACTORS_LOST = Metric(
    name="actors_lost",
    kind="counter",
    unit="",
    description="Actors that were replaced: they died (died), or their node was taken away (node).",
    tags=("pool", "cause"),
    occasion="faults",
)

METRICS: tuple[Metric, ...] = (
    *(ROUND, STAGE, PROGRESS, STAGE_SECONDS, POLICY_VERSION, ACCURACY, GENERAL_ACCURACY),
    *(ROLLOUTS, GENERATED_TOKENS, REPLICA_REQUESTS),
    *(VERDICTS, VERIFICATION_SECONDS, VERIFIER_REQUESTS),
    *(LOSS, LEARNING_RATE, WEIGHTS_CHANGED, TRAINED_TOKENS_PER_SECOND, ALL_GATHER_RATE, STEP_COMMUNICATION),
    *(SYNC_SECONDS, SYNC_BYTES, SYNC_DIFFERENCE, SYNC_WEAK),
    *(ACTORS, ACTORS_WANTED, ACTORS_LOST),
)
"""All metrics, in the order of docs/watching.md."""

VLLM_REPLICA = "ReplicaId"
"""The label in which vLLM's statistics name their replica."""


def _vllm(name: str, kind: Kind, unit: str, description: str, occasion: Occasion = "statistics") -> Metric:
    return Metric(
        name=name,
        kind=kind,
        unit=unit,
        description=description,
        tags=(VLLM_REPLICA,),
        occasion=occasion,
        source="vllm",
    )


VLLM_RUNNING = _vllm("num_requests_running", "gauge", "", "Requests in the present batch.")
VLLM_WAITING = _vllm("num_requests_waiting", "gauge", "", "Requests that wait for room in the batch.")
VLLM_KV_CACHE = _vllm("kv_cache_usage_perc", "gauge", "share", "Share of the KV cache in use.")
VLLM_GENERATION_TOKENS = _vllm("generation_tokens", "counter", "tokens", "Tokens decoded, counted at every step.")
VLLM_PROMPT_TOKENS = _vllm("prompt_tokens", "counter", "tokens", "Prompt tokens computed.")
VLLM_FIRST_TOKEN = _vllm(
    "time_to_first_token_seconds", "histogram", "s", "From a request's arrival to its first token."
)
VLLM_BETWEEN_TOKENS = _vllm(
    "inter_token_latency_seconds",
    "histogram",
    "s",
    "Time between two tokens; one observation a step, the batch's mean.",
)
VLLM_PREEMPTIONS = _vllm(
    "num_preemptions", "counter", "", "Requests pushed out of the batch for want of KV cache.", "pressure"
)

VLLM_METRICS: tuple[Metric, ...] = (
    *(VLLM_RUNNING, VLLM_WAITING, VLLM_KV_CACHE, VLLM_GENERATION_TOKENS),
    *(VLLM_PROMPT_TOKENS, VLLM_FIRST_TOKEN, VLLM_BETWEEN_TOKENS, VLLM_PREEMPTIONS),
)
"""Those of vLLM's own statistics that the dashboard shows; vLLM records many more."""


class MetricsRecorder:
    """Records metrics of one run in this process; in a process that is not on Ray, records go nowhere."""

    def __init__(self, run: str, **tags: str) -> None:
        """Remembers what all records of this process have in common.

        Args:
            run: The recipe's name.
            tags: Further tags, e.g. `replica`; a metric takes those that it knows.
        """
        self._tags = {"run": run, **tags}

    def count(self, metric: Metric, value: float = 1, **tags: str) -> None:
        """Adds to a counter; 0 is no news."""
        if value:
            _live(metric).inc(value, tags=self._of(metric, tags))

    def set(self, metric: Metric, value: float, **tags: str) -> None:
        """Sets a gauge."""
        _live(metric).set(value, tags=self._of(metric, tags))

    def observe(self, metric: Metric, values: Sequence[float], **tags: str) -> None:
        """Adds observations to a histogram."""
        live, all_tags = _live(metric), self._of(metric, tags)
        for value in values:
            live.observe(value, tags=all_tags)

    def _of(self, metric: Metric, tags: dict[str, str]) -> dict[str, str]:
        known = {name: value for name, value in self._tags.items() if name == "run" or name in metric.tags}
        return {name: label(value) for name, value in (known | tags).items()}


def label(text: str) -> str:
    """A text as the value of a tag: what is outside ASCII percent-encoded, since Ray's metrics take nothing else."""
    return quote(text, safe=_ASCII, errors="replace")


@cache
def _live(metric: Metric) -> Any:
    """Ray's object behind a metric; a process has one of each name."""
    from ray.util import metrics

    name, keys = f"{metric.source}_{metric.name}", ("run", *metric.tags)
    if metric.kind == "histogram":
        return metrics.Histogram(name, metric.description, boundaries=list(metric.boundaries), tag_keys=keys)
    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(name, metric.description, tag_keys=keys)
