"""How long declared devices were held in a rehearsal, and how long they were busy with what."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

SAMPLING: Final = "sampling"
TRAINING: Final = "training"
SYNC: Final = "sync"
KINDS: Final = (TRAINING, SYNC, SAMPLING)
"""What a device can be busy with; where two overlap, the first of them counts."""


@dataclass(frozen=True, kw_only=True)
class DeviceSpan:
    """A device from one moment to another.

    Attributes:
        device: Its name; a machine that came back has other devices.
        begin_s: On the clock that all processes of the machine share.
        end_s: The same.
        kind: One of `KINDS`; "" where it is only held.
    """

    device: str
    begin_s: float
    end_s: float
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class DeviceTime:
    """Seconds of devices, summed over all of them.

    Attributes:
        held_s: For which they were held.
        busy_s: Of these, by kind.
    """

    held_s: float
    busy_s: Mapping[str, float]

    @property
    def idle_s(self) -> float:
        """Held, and busy with nothing."""
        return self.held_s - sum(self.busy_s.values())

    def share(self, seconds: float) -> float:
        """Share of the held time; 0 where nothing was held."""
        return seconds / self.held_s if self.held_s else 0.0


def device_time(held: Iterable[DeviceSpan], busy: Iterable[DeviceSpan]) -> DeviceTime:
    """Adds up what devices did while they were held; a moment counts once, however many spans cover it.

    What is busy outside of every held span does not count: a device whose machine died is held until then.

    Args:
        held: When each device was there.
        busy: When it did what.
    """
    spans: dict[str, list[DeviceSpan]] = defaultdict(list)
    for span in (*held, *busy):
        spans[span.device].append(span)
    seconds: Counter[str] = Counter()
    for of_device in spans.values():
        for kind, lasted in _pieces(of_device):
            seconds[kind] += lasted  # type: ignore[assignment]  # Counter adds up floats as well
    busy_s = {kind: float(seconds[kind]) for kind in KINDS}
    return DeviceTime(held_s=sum(seconds.values()), busy_s=busy_s)


def _pieces(spans: Sequence[DeviceSpan]) -> Iterator[tuple[str, float]]:
    """What one device was busy with between each two moments at which something began or ended, while it was held."""
    changes: dict[float, Counter[str]] = defaultdict(Counter)
    for span in spans:
        if span.end_s > span.begin_s:
            changes[span.begin_s][span.kind] += 1
            changes[span.end_s][span.kind] -= 1
    active: Counter[str] = Counter()
    for moment, later in pairwise(sorted(changes)):
        for kind, change in changes[moment].items():
            active[kind] += change
        if active[""]:
            yield next((kind for kind in KINDS if active[kind]), ""), later - moment


@dataclass(frozen=True, kw_only=True)
class DevicesSeen:
    """What a rehearsal saw of its devices.

    Attributes:
        time: What they did, in seconds of the rehearsal.
        num_held: Devices of the machines that held an actor; one that came back counts once.
        num_sampling: That a stage samples with, see `devices_at_work`.
        num_training: That a stage trains with.
    """

    time: DeviceTime
    num_held: float
    num_sampling: float
    num_training: float


def devices_seen(busy: Sequence[DeviceSpan], held: Sequence[DeviceSpan], *, stages: Sequence[float]) -> DevicesSeen:
    """Adds up what was seen.

    Args:
        busy: When which device did what.
        held: When each device was there.
        stages: When each stage began, ascending.
    """
    return DevicesSeen(
        time=device_time(held, busy),
        num_held=max((sum(one.begin_s <= span.begin_s < one.end_s for one in held) for span in held), default=0),
        num_sampling=devices_at_work(busy, SAMPLING, stages),
        num_training=devices_at_work(busy, TRAINING, stages),
    )


def devices_at_work(busy: Iterable[DeviceSpan], kind: str, stages: Sequence[float]) -> float:
    """How many devices a stage keeps busy: the median over the stages that have any of this kind.

    Args:
        busy: When which device did what.
        kind: One of `KINDS`.
        stages: When each stage began, ascending.
    """
    seen: dict[int, set[str]] = defaultdict(set)
    for span in busy:
        if span.kind == kind:
            seen[sum(begin <= span.begin_s for begin in stages)].add(span.device)
    return statistics.median(map(len, seen.values())) if seen else 0.0
