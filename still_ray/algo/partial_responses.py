"""What has been sampled of responses that are not judged yet, so that no death costs a response from its first token.

A response goes on from its tokens where its replica is lost: see `RolloutRequest.prefixes`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from still_ray.types import PartialResponse, TrajectoryKey


class PartialResponses:
    """The longest known part of each response, in memory; a store keeps them beyond the process."""

    def __init__(self) -> None:
        """Knows none."""
        self._longest: dict[TrajectoryKey, PartialResponse] = {}

    def known(self, keys: Iterable[TrajectoryKey]) -> dict[TrajectoryKey, tuple[int, int]]:
        """Policy version and number of tokens of those that are known."""
        found = self.of(keys)
        return {part.key: (part.policy_version, part.num_tokens) for part in found}

    def of(self, keys: Iterable[TrajectoryKey]) -> tuple[PartialResponse, ...]:
        """Those that are known of some responses, each from its first token."""
        return tuple(self._longest[key] for key in keys if key in self._longest)

    def all(self) -> list[PartialResponse]:
        """All that are known, each from its first token."""
        return list(self._longest.values())

    def take(self, parts: Sequence[PartialResponse]) -> None:
        """Takes in what was sampled since; what follows nothing known is passed over."""
        for part in parts:
            known = self._longest.get(part.key)
            if known is not None:
                self._longest[part.key] = known.extended(part)
            elif part.start == 0:
                self._longest[part.key] = part

    def forget(self, keys: Iterable[TrajectoryKey]) -> None:
        """Drops what is known of responses that are judged."""
        for key in keys:
            self._longest.pop(key, None)
