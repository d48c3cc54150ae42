"""The driver's weight sync on real Ray actors, by broadcast: replicas die, the trainer refuses, and the sync is proved.

The replicas hold a few tensors instead of a language model; what travels, how, and what happens on the way is real.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from still_ray.actors.pool.actor_pool import ActorPool
from still_ray.actors.sampling.replica import SamplerReplica
from still_ray.actors.training.mailbox import Mailbox
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.actors.training.transfers import RankLine
from still_ray.config import SyncConfig
from still_ray.sampler.protocol import WeightPayload
from still_ray.store.policy import PolicyRecord, write_policy_record
from still_ray.types import ProbeSequence, RunError, TrainResult
from still_ray.weight_sync.checkpoint import iterate
from still_ray.weight_sync.digests import DigestLog, digests_of, require_equal, update_digest
from still_ray.weight_sync.member import receiving
from still_ray.weight_sync.packing import TensorSpec, extent, views
from still_ray.weight_sync.rendezvous import Rendezvous
from still_ray.weight_sync.transports import transport_named
from still_ray.weight_sync.transports.base import Offer, Transport
from still_ray.weight_sync.transports.exchange import PublishedWeights, SyncRequest

pytestmark = pytest.mark.integration

PROBE = (3, 1, 4, 1, 5)
NUM_LAYERS = 3
CPU = torch.device("cpu")


def network(version: int) -> torch.nn.Module:
    """Named as a transformer's layers are, so that each is a group."""
    torch.manual_seed(version)
    layers = torch.nn.ModuleList(torch.nn.Linear(8, 8, bias=False) for _ in range(NUM_LAYERS))
    return torch.nn.ModuleDict({"layers": layers})


def scores(tensors: dict[str, torch.Tensor], ids: Sequence[int]) -> tuple[float, ...]:
    """A stand-in for log-probabilities in which every tensor counts."""
    total = sum(tensor.abs().sum(dim=0) for tensor in tensors.values())
    assert isinstance(total, torch.Tensor)
    return tuple(-float(total[index]) for index in ids[1:])


class TensorSampler:
    """The part of `Sampler` that weight sync uses, over tensors."""

    def __init__(self, version: int, checkpoint: str, *, fault: str) -> None:
        self.policy_version = version
        self._tensors = load_file(Path(checkpoint) / "model.safetensors")
        self._fault = fault

    def wake(self) -> None:
        """It never sleeps."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        return [scores(self._tensors, ids) for ids in sequences]

    def load_weights(
        self, payloads: Iterable[WeightPayload], policy_version: int, sent: Mapping[str, str]
    ) -> tuple[str, ...]:
        log = DigestLog()
        for payload in payloads:
            read = iterate(Path(payload["path"])) if "path" in payload else self._received(payload)
            tensors = dict(log.noted(read))
        received = log.digests()
        require_equal(sent, received)
        if self._fault != "keeps its old weights":
            self._tensors = tensors
        self.policy_version = policy_version
        return (update_digest(received),)

    def _received(self, payload: WeightPayload) -> Iterator[tuple[str, torch.Tensor]]:
        meeting = Rendezvous(**payload["rendezvous"])
        rank = payload["rank_offset"]
        with receiving(meeting, rank, device=CPU, timeout_s=payload["timeout_s"]) as member:
            for layout in payload["layouts"]:
                specs = [TensorSpec(**spec) for spec in layout]
                block = torch.empty(extent(specs), dtype=torch.uint8)
                member.broadcast(block)
                if self._fault == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self._fault == "flips a bit":
                    block[5] ^= 1
                yield from views(block, specs)


class TensorReplica(SamplerReplica):
    """The real replica's update around a `TensorSampler`."""

    def __init__(self, version: int, checkpoint: str, *, fault: str) -> None:
        self._sampler: Any = TensorSampler(version, checkpoint, fault=fault)
        self._checkpoint = checkpoint
        self._updating = asyncio.Lock()

    def __repr__(self) -> str:
        return "tensors"


def run_out_of_memory(short_of: str) -> None:
    """From here on this process has no room for "groups" or for "blocks"."""
    from still_ray.weight_sync.zero_source import ZeroSource

    def failing(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 bytes.")

    if short_of == "blocks":
        patch.object(ZeroSource, "_packed", failing).start()
    else:
        patch.object(ZeroSource, "shortage", lambda _: "no memory for a group").start()


class Trainer:
    """One rank that carries out broadcasts as `train_loop` does; returns how many it ended."""

    def run(self, mailbox: Any, held: int, short_of: str) -> int:
        done = num_done = 0
        if short_of:
            run_out_of_memory(short_of)
        while (received := ray.get(mailbox.next_order.remote(done))) is not None:
            done, order = received
            line = RankLine(mailbox, done)
            if order.policy_version == held:
                transport_named("broadcast").send(network(held), order, line, leads=True)
            else:
                line.ended("it was built again")
            num_done += 1
        return num_done


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class World:
    """Checkpoints of three versions, of which the trainer holds the second, and the sync between them."""

    def __init__(
        self, folder: Path, *, fault: str = "", short_of: str = "", transport: str = "nccl", parts: Sequence[Any] = ()
    ) -> None:
        self.folder = folder
        self.parts = parts
        for version in (0, 1, 2):
            self._write(version)
        self.notes: list[str] = []
        self.mailbox = ray.remote(Mailbox).options(num_cpus=0, max_concurrency=100).remote("test")
        trainer = ray.remote(Trainer).options(num_cpus=1, runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}}).remote()
        self.trainer = trainer.run.remote(self.mailbox, held=1, short_of=short_of)
        self.policy = CurrentPolicy(0, self.checkpoint(0))
        faults = {"replica-1": fault}
        self.pool = ActorPool("replica", lambda name: self._replica(name, faults.get(name, "")), size=2, max_restarts=2)
        self.pool.resume()
        self.pool.wait_ready()
        self.sync = PolicySync(
            self.pool,
            self.policy,
            SyncConfig(transport=transport, timeout_s=60),
            tolerance=1e-5,
            published=self._published,
            note=self.notes.append,
        )

    def checkpoint(self, version: int) -> str:
        return str(self.folder / f"version-{version}")

    def close(self) -> int:
        """Ends everything; returns how many orders brought the trainer back to its mailbox."""
        ray.get(self.mailbox.stop.remote())
        num_done: int = ray.get(self.trainer, timeout=30)
        self.pool.release()
        return num_done

    def _replica(self, name: str, fault: str) -> Any:
        actor = ray.remote(TensorReplica).options(num_cpus=1, max_concurrency=10)
        return actor.remote(self.policy.version, self.policy.checkpoint, fault=fault)

    def _published(self) -> PublishedWeights:
        from still_ray.weight_sync.zero_source import ZeroSource

        layouts = ZeroSource(network(1)).layouts()
        return PublishedWeights(
            policy_version=self.policy.version,
            num_bytes=sum(extent(specs) for specs in layouts),
            parts=tuple(self.parts) or tuple(tuple(asdict(spec) for spec in specs) for specs in layouts),
            trainer=self.mailbox,
        )

    def _write(self, version: int) -> None:
        folder = Path(self.checkpoint(version))
        folder.mkdir()
        tensors = {name: value.detach().clone() for name, value in network(version).named_parameters()}
        save_file(tensors, folder / "model.safetensors")
        result = TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=1, final_loss=0.0, seconds=1.0)
        start = scores(dict(network(max(0, version - 1)).named_parameters()), PROBE)
        probe = ProbeSequence(token_ids=PROBE, logprobs=scores(tensors, PROBE), start_logprobs=start)
        digests = digests_of(tensors.items())
        record = PolicyRecord(policy_version=version, stage="001-sft", result=result, probes=(probe,), digests=digests)
        write_policy_record(str(folder), record)


@pytest.mark.usefixtures("_cluster")
def test_all_replicas_that_are_behind_take_part_and_prove_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    report = world.sync.sync(1, world.checkpoint(1))
    assert (report.transport, report.num_replicas, report.num_bytes) == ("gloo", 2, NUM_LAYERS * 8 * 8 * 4)
    assert report.max_logprob_difference < 1e-5 and report.probe_shift > 0.1
    assert (report.num_digests, report.weak) == (NUM_LAYERS, False)
    again = world.sync.sync(1, world.checkpoint(1))
    assert (again.transport, again.num_bytes) == ("checkpoint", 0), "who has the version is asked to no broadcast"
    assert world.notes == []

    refused = world.sync.sync(2, world.checkpoint(2))
    assert (refused.transport, refused.num_replicas, refused.num_bytes) == ("checkpoint", 2, 0)
    assert refused.max_logprob_difference < 1e-5 and refused.probe_shift > 0.1
    assert world.notes == ["replicas read the checkpoint: it was built again"]
    assert world.close() == 2, "the trainer came back to its mailbox from both orders"


class Courier(Transport):
    """A transport of one's own: the trainer names a folder, and every replica is handed it."""

    def offer(self, request: SyncRequest) -> Offer:
        return Delivery(*request.weights.parts)


class Delivery(Offer):
    carrier = "courier"

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def payloads(self, replica: str) -> Sequence[Any]:
        return [{"transport": f"{__name__}:Courier", "path": self._folder}]


@pytest.mark.usefixtures("_cluster")
def test_a_transport_of_ones_own_brings_the_weights_and_a_failed_one_leaves_the_checkpoint(tmp_path: Path) -> None:
    own = f"{__name__}:Courier"
    for name, folder, told in (("right", "version-1", "courier"), ("wrong", "version-0", "checkpoint")):
        (tmp_path / name).mkdir()
        world = World(tmp_path / name, transport=own, parts=[str(tmp_path / name / folder)])
        report = world.sync.sync(1, world.checkpoint(1))
        assert (report.transport, report.num_replicas, report.num_digests) == (told, 2, NUM_LAYERS)
        assert (report.num_bytes > 0) is (told == "courier"), "what was sent and refused was no use"
        assert len(world.notes) == (0 if told == "courier" else 2)
        assert world.close() == 0, "the trainer was asked for nothing"


@pytest.mark.usefixtures("_cluster")
def test_a_replica_killed_in_a_broadcast_leaves_the_others_the_checkpoint(tmp_path: Path) -> None:
    world = World(tmp_path, fault="dies")
    started = time.monotonic()
    report = world.sync.sync(1, world.checkpoint(1))
    assert time.monotonic() - started < 25, "nobody waits for the deadline of 30 s"
    assert (report.transport, report.num_replicas) == ("checkpoint", 2)
    assert report.max_logprob_difference < 1e-5 and report.probe_shift > 0.1
    assert set(world.pool.loads()) == {"replica-0", "replica-2"}
    assert world.notes[0].startswith("replica-0 read the checkpoint: weight broadcast failed")
    assert world.close() == 1, "the trainer is back at its mailbox"


@pytest.mark.usefixtures("_cluster")
def test_a_bit_that_is_flipped_on_the_way_leads_to_the_checkpoint(tmp_path: Path) -> None:
    world = World(tmp_path, fault="flips a bit")
    report = world.sync.sync(1, world.checkpoint(1))
    assert (report.transport, report.num_replicas, report.num_digests) == ("checkpoint + gloo", 2, NUM_LAYERS)
    (said,) = world.notes
    assert said.startswith(
        "replica-1 read the checkpoint: weight update refused: what came is not what was sent: layers"
    )
    assert world.close() == 1


@pytest.mark.usefixtures("_cluster")
def test_a_replica_that_keeps_its_old_weights_ends_the_run(tmp_path: Path) -> None:
    """It received every bit of the new ones, and says that it serves them."""
    world = World(tmp_path, fault="keeps its old weights")
    with pytest.raises(RunError, match="replica-1 does not serve policy version 1: its probe's log-probabilities"):
        world.sync.sync(1, world.checkpoint(1))
    world.close()


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("damage", ["a flipped bit", "the weights of another version"])
def test_a_checkpoint_that_is_not_what_the_trainer_held_is_refused(tmp_path: Path, damage: str) -> None:
    """Also for a replica that was started with it: it has loaded nothing since."""
    world = World(tmp_path)
    world.sync.sync(1, world.checkpoint(1))
    path = Path(world.checkpoint(2)) / "model.safetensors"
    other = load_file(path if damage == "a flipped bit" else Path(world.checkpoint(1)) / "model.safetensors")
    if damage == "a flipped bit":
        other["layers.1.weight"].view(torch.int32)[3, 3] ^= 1
    save_file(other, path)
    with pytest.raises(RunError, match=r"cannot be brought to version 2: .*what came is not what was sent: layers\."):
        world.sync.sync(2, world.checkpoint(2))
    world.policy.version, world.policy.checkpoint = 2, world.checkpoint(2)
    world.pool.replace("replica-0", RuntimeError("lost"))
    world.pool.replace("replica-1", RuntimeError("lost"))
    with pytest.raises(RunError, match="does not serve policy version 2: rank 0 received other weights"):
        world.sync.sync(2, world.checkpoint(2))
    world.close()


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize(
    ("short_of", "said"),
    [
        ("groups", ["replicas read the checkpoint: no memory for a group"]),
        ("blocks", [f"replica-{i} read the checkpoint: weight broadcast failed: given up by rank 0" for i in (0, 1)]),
    ],
)
def test_a_trainer_without_memory_leaves_the_checkpoint_and_lives_on(
    tmp_path: Path, short_of: str, said: list[str]
) -> None:
    world = World(tmp_path, short_of=short_of)
    started = time.monotonic()
    report = world.sync.sync(1, world.checkpoint(1))
    assert time.monotonic() - started < 25, "nobody waits for the deadline of 30 s"
    assert (report.transport, report.num_replicas) == ("checkpoint", 2)
    assert report.max_logprob_difference < 1e-5 and report.probe_shift > 0.1
    assert [note.partition(": no memory for a block")[0] for note in sorted(world.notes)] == said
    assert world.close() == 1, "the trainer is back at its mailbox"
