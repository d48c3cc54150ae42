"""What the declared devices of an actor were busy with: one file for each actor, read when all is over.

A line is written when something is done. What an actor had in flight when it died is in no file: it was no work that
came to anything.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from still_ray.algo.devices import Device
from still_ray.algo.rehearsal.device_time import DeviceSpan


def device_name(node_id: str, index: int) -> str:
    """Of a declared GPU: a machine that came back has another node id, so its devices are others."""
    return f"{node_id}/{index}"


class DeviceLog:
    """Writes down when the devices of this actor were busy."""

    def __init__(self, folder: str, works_on: Device | None = None) -> None:
        """Opens nothing yet.

        Args:
            folder: Where the files of all actors lie; "": nowhere, nothing is written.
            works_on: A device that a replica holds, which sleeps meanwhile; None: those that Ray gave this actor.
        """
        context = ray.get_runtime_context()
        own = [(context.get_node_id(), gpu) for gpu in ray.get_gpu_ids()]
        devices = own if works_on is None else [(works_on.node_id, works_on.gpu)]
        self._devices = [device_name(node_id, int(gpu)) for node_id, gpu in devices]
        self._path = Path(folder) / f"{context.get_actor_id()}.jsonl" if folder and self._devices else None

    @contextmanager
    def busy(self, kind: str) -> Iterator[None]:
        """Notes the time that the block takes, unless it fails.

        Args:
            kind: One of `still_ray.algo.rehearsal.device_time.KINDS`.
        """
        began = time.monotonic()
        yield
        if self._path is not None:
            line = {"kind": kind, "devices": self._devices, "begin_s": began, "end_s": time.monotonic()}
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")


def read_device_logs(folder: Path) -> list[DeviceSpan]:
    """When which device was busy with what, of all actors; of a line that a death cut short nothing."""
    spans = []
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if text.endswith("\n"):
                line = json.loads(text)
                times = {"begin_s": line["begin_s"], "end_s": line["end_s"], "kind": line["kind"]}
                spans += [DeviceSpan(device=device, **times) for device in line["devices"]]
    return spans
