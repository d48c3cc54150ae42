"""What a replica takes for another policy than its own."""

import asyncio
from pathlib import Path

from still_ray.actors.replica import SamplerReplica, UpdateReceipt
from still_ray.sampler.fake import FakeSampler


class Replica(SamplerReplica):
    """A replica over a fake engine; the base class would start a real one."""

    def __init__(self, checkpoint: Path, policy_version: int) -> None:
        self._checkpoint = str(checkpoint)
        self._sampler = FakeSampler(name="replica-0", policy_version=policy_version)
        self._updating = asyncio.Lock()


def brought(replica: Replica, policy_version: int, checkpoint: Path) -> UpdateReceipt:
    return asyncio.run(replica.update(policy_version, [], str(checkpoint), []))


def test_the_same_version_of_another_run_is_loaded(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    replica = Replica(one, 2)
    assert brought(replica, 2, one).transport == "", "it has these weights"
    assert brought(replica, 2, other).transport == "checkpoint"
    assert brought(replica, 2, other).transport == ""
    assert brought(replica, 3, other).policy_version == 3
