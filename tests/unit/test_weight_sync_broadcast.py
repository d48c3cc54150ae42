"""Real gloo groups: what every member receives, and that nobody waits beyond the deadline, whatever a peer does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from still_ray.actors.training.transfers import TransferDesk
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.member import Member, Sender, receiving
from still_ray.weight_sync.packing import ALIGNMENT, extent, layout, views
from still_ray.weight_sync.rendezvous import Rendezvous
from still_ray.weight_sync.transports.broadcast import rank_offsets

CPU = torch.device("cpu")
SIZES = [1000, 3, 2_000_000, 64]
LONG_S = 60.0


def sender(num_receivers: int, *, timeout_s: float = LONG_S, cancelled: Callable[[], bool] = lambda: False) -> Sender:
    return Sender(
        "127.0.0.1",
        num_receivers=num_receivers,
        backend="gloo",
        device=CPU,
        timeout_s=timeout_s,
        cancelled=cancelled,
    )


def blocks() -> Iterator[torch.Tensor]:
    for number, size in enumerate(SIZES):
        yield torch.full((size,), number, dtype=torch.uint8)


class Receiver:
    """A receiver on a thread of its own; `then` is called with it after each block."""

    def __init__(
        self, rendezvous: Rendezvous, rank: int, then: Callable[[int], None] = lambda _: None, timeout_s: float = LONG_S
    ) -> None:
        self.received: list[torch.Tensor] = []
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(rendezvous, rank, then, timeout_s), daemon=True)
        self.thread.start()

    def _run(self, rendezvous: Rendezvous, rank: int, then: Callable[[int], None], timeout_s: float) -> None:
        try:
            with receiving(rendezvous, rank, device=CPU, timeout_s=timeout_s) as member:
                for number, size in enumerate(SIZES):
                    block = torch.empty(size, dtype=torch.uint8)
                    member.broadcast(block)
                    self.received.append(block)
                    then(number)
        except Exception as error:
            self.error = error

    def outcome(self) -> str:
        self.thread.join(LONG_S)
        assert not self.thread.is_alive()
        return str(self.error) if self.error else ""


@contextmanager
def within(limit_s: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < limit_s


def test_every_receiver_gets_every_block() -> None:
    sending = sender(3)
    receivers = [Receiver(sending.rendezvous, rank) for rank in (1, 2, 3)]
    sending.send(blocks())
    assert [receiver.outcome() for receiver in receivers] == ["", "", ""]
    for receiver in receivers:
        assert all(torch.equal(a, b) for a, b in zip(receiver.received, blocks(), strict=True))


def test_a_receiver_that_fails_ends_it_for_all_and_says_why() -> None:
    def refuse(number: int) -> None:
        if number == 1:
            raise ValueError("it does not fit")

    sending, source = sender(2), blocks()
    receivers = [Receiver(sending.rendezvous, 1), Receiver(sending.rendezvous, 2, then=refuse)]
    with within(20), pytest.raises(SyncError, match="given up by rank 2: it does not fit"):
        sending.send(source)
    assert "it does not fit" in receivers[0].outcome()
    assert sum(1 for _ in source) > 0, "the blocks that were not sent are left to gather"


def test_a_killed_receiver_ends_it_for_all_at_once() -> None:
    sending = sender(2)
    other = Receiver(sending.rendezvous, 1)
    doomed = _doomed_receiver(sending.rendezvous)
    with within(LONG_S / 2), pytest.raises(SyncError, match="weight broadcast failed"):
        sending.send(blocks())
    assert doomed.wait(10) == -signal.SIGKILL
    assert other.outcome().startswith("weight broadcast failed: given up by rank 0")


def test_a_receiver_that_hangs_costs_no_more_than_the_deadline() -> None:
    woken = threading.Event()

    def hang(_: int) -> None:
        woken.wait(LONG_S)

    sending = sender(2, timeout_s=3)
    other = Receiver(sending.rendezvous, 1, timeout_s=3)
    hanging = Receiver(sending.rendezvous, 2, then=hang, timeout_s=3)
    with within(6), pytest.raises(SyncError, match=r"took longer than sync\.timeout_s allows"):
        sending.send(blocks())
    assert other.outcome().startswith("weight broadcast failed")
    woken.set()
    assert hanging.outcome().startswith("weight broadcast failed")


def _doomed_receiver(rendezvous: Rendezvous) -> subprocess.Popen[bytes]:
    """Rank 2 in a process of its own, which kills itself after the second block."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__, *map(str, asdict(rendezvous).values())],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )


def test_a_receiver_that_never_comes_costs_no_more_than_the_deadline() -> None:
    sending = sender(2, timeout_s=2)
    only = Receiver(sending.rendezvous, 1)
    with within(5), pytest.raises(SyncError, match="waiting for all members took longer"):
        sending.send(blocks())
    assert "given up by rank 0" in only.outcome()


def test_a_broadcast_that_is_called_off_ends_at_once() -> None:
    sending = sender(2, cancelled=lambda: True)
    only = Receiver(sending.rendezvous, 1)
    with within(5), pytest.raises(SyncError, match="called off"):
        sending.send(blocks())
    assert only.outcome()


def test_a_sender_that_falls_silent_costs_a_receiver_no_more_than_its_deadline() -> None:
    sending = sender(1)
    silent = Member(sending.rendezvous, 0, device=CPU, timeout_s=LONG_S)
    only = Receiver(sending.rendezvous, 1, timeout_s=2)
    silent.join()
    with within(5):
        assert "took longer" in only.outcome()


def test_replicas_and_their_workers_have_ranks_of_their_own() -> None:
    offsets = rank_offsets(3, ranks_per_replica=4)
    ranks = [offset + worker for offset in offsets for worker in range(4)]
    assert ranks == list(range(1, 13)), "rank 0 is the trainer's"


def test_a_layout_places_tensors_of_mixed_types_apart() -> None:
    kinds = [
        ("a", torch.bfloat16, (3, 5)),
        ("b", torch.float32, ()),
        ("c", torch.float32, (0, 4)),
        ("d", torch.int64, (7,)),
    ]
    specs = layout(kinds)
    assert all(spec.offset % ALIGNMENT == 0 for spec in specs)
    block = torch.zeros(extent(specs), dtype=torch.uint8)
    placed = dict(views(block, specs))
    for number, (name, dtype, shape) in enumerate(kinds):
        assert (placed[name].dtype, tuple(placed[name].shape)) == (dtype, shape)
        placed[name].fill_(number + 1)
    assert [placed[name].flatten().tolist()[:1] for name, _, _ in kinds] == [[1], [2], [], [4]]


def test_news_of_an_earlier_broadcast_changes_nothing() -> None:
    desk = TransferDesk()
    desk.start(3)
    desk.start(5)
    desk.update(3, ended=True, failure="late")
    assert desk.is_open and desk.news(5).failure == ""
    assert desk.news(3).ended, "who still asks for it hears that it is over"
    desk.update(5, cancelled=True)
    assert not desk.is_open


def _receive_and_die(rendezvous: Rendezvous) -> None:
    with receiving(rendezvous, 2, device=CPU, timeout_s=LONG_S) as member:
        for size in SIZES[:2]:
            member.broadcast(torch.empty(size, dtype=torch.uint8))
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    host, port, world_size, _ = sys.argv[1:]
    _receive_and_die(Rendezvous(host=host, port=int(port), world_size=int(world_size), backend="gloo"))
