"""Asking actors again and again, without waiting for any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray


class Polls:
    """Calls whose answers are taken when they are there; at most one of each actor is on its way."""

    def __init__(self) -> None:
        """Has asked nobody yet."""
        self._calls: dict[ray.ObjectRef, str] = {}

    def ask(self, name: str, call: Callable[[], ray.ObjectRef]) -> None:
        """Makes a call to an actor unless it still owes an answer."""
        if name not in self._calls.values():
            self._calls[call()] = name

    def awaited(self) -> list[ray.ObjectRef]:
        """The answers that have not been taken."""
        return list(self._calls)

    def answers(self) -> list[tuple[str, Any]]:
        """What has come since, with who said it. Who cannot answer any more is dead: the calls for work will say so."""
        done = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)[0] if self._calls else []
        found = []
        for reference in done:
            name = self._calls.pop(reference)
            try:
                found.append((name, ray.get(reference)))
            except ray.exceptions.RayError:
                continue
        return found
