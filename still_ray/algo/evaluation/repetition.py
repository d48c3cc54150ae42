"""Whether an evaluation that was made again says the same: inputs by their digests, responses word for word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from still_ray.types import Trajectory

INPUTS = {
    "model": ("model", "sha256"),
    "model files": ("model", "files_sha256"),
    "benchmark": ("benchmark", "sha256"),
    "prompt template": ("prompt", "sha256"),
    "chat template": ("chat_template", "sha256"),
    "verifier": ("verifier", "sha256"),
}
"""What has a digest in a result, by the name that a person knows."""


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """What a repetition showed.

    Attributes:
        inputs: Digest before and now of every input that is not the same, or has none, by name.
        versions: Version before and now of every package that is not the same, by name.
        num_responses: Responses of the first evaluation.
        num_same: Those that are the same now, word for word, with the same verdict.
        other_text: Problems with a response that reads otherwise, or is missing on one side.
        other_verdict: Problems with a response whose verdict is another one.
        accuracy: Before and now.
    """

    inputs: dict[str, tuple[str | None, str | None]]
    versions: dict[str, tuple[str | None, str | None]]
    num_responses: int
    num_same: int
    other_text: tuple[str, ...]
    other_verdict: tuple[str, ...]
    accuracy: tuple[float, float]

    @property
    def matches(self) -> bool:
        """Whether the inputs, every response and every verdict are the same; versions may differ."""
        return not (self.inputs or self.other_text or self.other_verdict)


def compare_repetition(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    rows_before: Sequence[Trajectory],
    rows_now: Sequence[Trajectory],
) -> Repetition:
    """Compares two results of what should be the same evaluation.

    Args:
        before: The first eval.json.
        now: That of the repetition.
        rows_before: The first responses.
        rows_now: Those of the repetition.
    """
    first = {(row.problem_id, row.sample_index): row for row in rows_before}
    second = {(row.problem_id, row.sample_index): row for row in rows_now}
    keys = sorted(first.keys() | second.keys())
    missing = {key for key in keys if key not in first or key not in second}
    text = {key for key in keys if key in missing or first[key].response != second[key].response}
    verdict = {key for key in keys if key not in missing and first[key].verdict is not second[key].verdict}
    return Repetition(
        inputs=_other_inputs(before, now),
        versions=_other_versions(before.get("versions", {}), now.get("versions", {})),
        num_responses=len(first),
        num_same=len(first.keys() - text - verdict),
        other_text=tuple(sorted({problem for problem, _ in text})),
        other_verdict=tuple(sorted({problem for problem, _ in verdict})),
        accuracy=(before["accuracy"], now["accuracy"]),
    )


def _other_inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    pairs = {name: (before[part].get(key), now[part].get(key)) for name, (part, key) in INPUTS.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] or pair[0] is None}


def _other_versions(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str | None, str | None]]:
    names = sorted(before.keys() | now.keys())
    return {name: (before.get(name), now.get(name)) for name in names if before.get(name) != now.get(name)}
