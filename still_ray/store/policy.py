"""The record that makes a checkpoint whole: which policy version it is, how it was trained, and its probes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from still_ray.location import Location, location
from still_ray.store.atomic import read_json, write_json
from still_ray.types import SCHEMA_VERSION, ProbeSequence, TrainResult

POLICY_FILE = "still_ray_policy.json"


@dataclass(frozen=True, kw_only=True)
class PolicyRecord:
    """What a checkpoint says of itself.

    Attributes:
        policy_version: The version.
        stage: Name of the stage that made it.
        result: How the training went.
        probes: Sequences with the trainer's own log-probabilities.
        digests: Of the checkpoint's tensors by name, as the trainer held them; empty in records of former releases and
            of fakes. See `still_ray.weight_sync.digests`.
    """

    policy_version: int
    stage: str
    result: TrainResult
    probes: tuple[ProbeSequence, ...]
    digests: dict[str, str] = field(default_factory=dict)


def write_policy_record(checkpoint: str | Location, record: PolicyRecord) -> None:
    """Writes the record, the last file of a checkpoint: without it the checkpoint counts as unfinished."""
    write_json(location(checkpoint) / POLICY_FILE, {"schema_version": SCHEMA_VERSION, **asdict(record)})


def read_policy_record(checkpoint: str | Location) -> PolicyRecord | None:
    """The record of a whole checkpoint, or None."""
    raw = read_json(location(checkpoint) / POLICY_FILE)
    if not isinstance(raw, dict) or raw.get("schema_version") != SCHEMA_VERSION:
        return None
    return PolicyRecord(
        policy_version=raw["policy_version"],
        stage=raw["stage"],
        result=TrainResult(**raw["result"]),
        probes=tuple(_probe(probe) for probe in raw["probes"]),
        digests=raw.get("digests", {}),
    )


def _probe(raw: dict[str, Any]) -> ProbeSequence:
    return ProbeSequence(
        token_ids=tuple(raw["token_ids"]),
        logprobs=tuple(raw["logprobs"]),
        start_logprobs=tuple(raw.get("start_logprobs", ())),
    )
