"""Transport `checkpoint`: each replica reads the files that the stage left; nothing else has to be up."""

from __future__ import annotations

from pathlib import Path

from still_ray.weight_sync.transports.base import Transport
from still_ray.weight_sync.transports.exchange import Payload, SamplerRank


class Checkpoint(Transport):
    """The durable way: the trainer offers nothing, and whoever joins late or was failed by another transport reads."""

    def suits(self, *, devices_apart: bool, all_on_gpus: bool) -> bool:
        """Always."""
        return True

    def payload(self, directory: str) -> Payload:
        """A directory of safetensors files as a weight update: {"transport", "path"}."""
        return {"transport": self.name, "path": directory}

    def receive(self, payload: Payload, rank: SamplerRank) -> None:
        """Streams the files, one tensor in memory at a time."""
        from still_ray.weight_sync.checkpoint import iterate

        rank.load(iterate(Path(payload["path"])))
