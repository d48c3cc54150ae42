"""One process's membership of a broadcast, with a deadline that holds whatever the other members do.

consumes     blocks of bytes to send (rank 0), or their sizes (the others)
produces     the same blocks on every member
waits for    the other members, until the deadline
unblocked by their death or their giving up, which each notes in the rendezvous' store

A blocked collective cannot be interrupted. So every call runs on a thread of its own, which is left behind when the
deadline passes: gloo's ends with its own time-out, NCCL's when the communicator is aborted. A thread that waits for
NCCL's first meeting stays until its process ends; it holds no block.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
from torch._C._distributed_c10d import Store, TCPStore

from still_ray.weight_sync.communicator import Communicator, connected
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.rendezvous import Backend, Rendezvous

POLL_S = 0.2
"""Time between two looks at what the other members say."""
MARGIN_S = 5.0
"""What the transports' own time-outs come after the deadline: who waits hears of the deadline, not of a socket."""
FAREWELL_S = 2.0
"""Time for telling the others that this member gives up."""
FAILED = "weight broadcast failed"

_GIVEN_UP = "given_up"
_ARRIVED = "arrived"

T = TypeVar("T")


class Member:
    """A place in the group; use it through `receiving` or `Sender`."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        rank: int,
        *,
        device: torch.device,
        timeout_s: float,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Does not meet anybody yet.

        Args:
            rendezvous: Where.
            rank: This member's; 0 sends.
            device: Of the blocks.
            timeout_s: When to give up, seconds from now.
            cancelled: Asked while waiting: whether there is no use in going on.
        """
        self._rendezvous = rendezvous
        self._rank = rank
        self._device = device
        self._deadline = time.monotonic() + timeout_s
        self._cancelled = cancelled
        self._communicator: Communicator | None = None
        self._bad_news = ""
        self._over = False

    def join(self) -> None:
        """Meets the other members.

        Raises:
            SyncError: Not all came in time.
        """
        notices = self._bounded("reaching the sender", self._client)
        _started(lambda: self._listen(notices))
        self._communicator = self._bounded("waiting for all members", self._meet)

    def broadcast(self, block: torch.Tensor) -> None:
        """Sends a block (rank 0), or fills it.

        Raises:
            SyncError: It was not done in time, or another member gave up.
        """
        communicator = self._communicator
        if communicator is None:
            raise SyncError(f"{FAILED}: the member has not joined")
        if block.is_cuda:
            torch.cuda.current_stream(block.device).synchronize()  # the block is sent from another stream
        self._bounded("the transfer", lambda: communicator.broadcast(block))

    def arrived(self) -> None:
        """Says that this member has all that it came for.

        Raises:
            SyncError: The sender cannot be told.
        """
        self._bounded("taking leave", lambda: self._client().add(_ARRIVED, 1))

    def wait_for_receivers(self) -> None:
        """Waits until all others have said so: the store must outlive them.

        Raises:
            SyncError: They did not in time, or one gave up.
        """
        store, expected = self._client(), self._rendezvous.world_size - 1

        def all_arrived() -> None:
            while store.add(_ARRIVED, 0) < expected and not self._over:
                time.sleep(POLL_S / 10)

        self._bounded("waiting for the receivers", all_arrived)

    def give_up(self, why: str) -> None:
        """Tells the others, and throws the communicator away."""
        self.close()
        with suppress(Exception):  # the store may be gone, and with it whoever could hear
            _started(lambda: self._client().set(_GIVEN_UP, f"rank {self._rank}: {why}")).result(timeout=FAREWELL_S)

    def close(self) -> None:
        """Throws the communicator away."""
        self._over = True
        communicator, self._communicator = self._communicator, None
        if communicator is not None:
            communicator.abort()

    def _meet(self) -> Communicator:
        meeting = self._rendezvous
        communicator = connected(
            meeting.backend,
            self._client(),
            self._rank,
            meeting.world_size,
            device=self._device,
            timeout_s=self._left() + MARGIN_S,
        )
        if self._over:  # nobody waits for it any more
            communicator.abort()
        return communicator

    def _client(self) -> Store:
        """A connection of its own to the store: one that waits for a key answers nothing else."""
        limit = timedelta(seconds=self._left() + MARGIN_S)
        return TCPStore(self._rendezvous.host, self._rendezvous.port, is_master=False, timeout=limit)

    def _left(self) -> float:
        return max(0.1, self._deadline - time.monotonic())

    def _listen(self, notices: Store) -> None:
        """Hears of members that gave up; the store falls silent when the sender dies."""
        try:
            while not self._over:
                if notices.check([_GIVEN_UP]):
                    self._bad_news = f"given up by {notices.get(_GIVEN_UP).decode()}"
                    return
                time.sleep(POLL_S)
        except Exception as error:
            self._bad_news = f"the sender is gone: {_first_sentence(error)}"

    def _bounded(self, what: str, work: Callable[[], T]) -> T:
        """Runs what may block for ever on a thread that can be left behind."""
        future = _started(work)
        while not wait([future], timeout=POLL_S).done:
            self._look_around(what)
        try:
            return future.result()
        except SyncError:
            raise
        except Exception as error:
            time.sleep(2 * POLL_S)  # a member that gives up leaves first and says why then
            raise SyncError(f"{FAILED}: {self._bad_news or f'{what}: {_first_sentence(error)}'}") from error

    def _look_around(self, what: str) -> None:
        """Raises `SyncError` when there is no use in waiting any longer."""
        if time.monotonic() > self._deadline:
            raise SyncError(f"{FAILED}: {what} took longer than sync.timeout_s allows")
        if self._cancelled():
            raise SyncError(f"{FAILED}: called off")
        if self._bad_news:
            raise SyncError(f"{FAILED}: {self._bad_news}")


@contextmanager
def receiving(rendezvous: Rendezvous, rank: int, *, device: torch.device, timeout_s: float) -> Iterator[Member]:
    """A receiver that has met the others; whatever goes wrong inside ends the broadcast for all of them.

    Raises:
        SyncError: Not all members came in time.
    """
    member = Member(rendezvous, rank, device=device, timeout_s=timeout_s)
    with _or_given_up(member):
        member.join()
        yield member
        member.arrived()


class Sender:
    """Rank 0 and the store where the members meet."""

    def __init__(
        self,
        host: str,
        *,
        num_receivers: int,
        backend: Backend,
        device: torch.device,
        timeout_s: float,
        cancelled: Callable[[], bool],
    ) -> None:
        """Opens the store; returns before anybody comes.

        Args:
            host: This machine's address, as the receivers reach it.
            num_receivers: Worker ranks of all replicas.
            backend: What carries the bytes.
            device: Of the blocks that will be sent.
            timeout_s: When to give up, seconds from now.
            cancelled: Asked while waiting: whether there is no use in going on.
        """
        self._store = TCPStore(host, 0, is_master=True, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
        self.rendezvous = Rendezvous(host=host, port=self._store.port, world_size=1 + num_receivers, backend=backend)
        self._member = Member(self.rendezvous, 0, device=device, timeout_s=timeout_s, cancelled=cancelled)

    def send(self, blocks: Iterator[torch.Tensor]) -> None:
        """Meets the receivers, sends them every block, and waits until they have taken the last.

        Raises:
            SyncError: It was not done in time, or a receiver died or gave up. Blocks are left over then.
        """
        try:
            with _or_given_up(self._member):
                self._member.join()
                for block in blocks:
                    self._member.broadcast(block)
                self._member.wait_for_receivers()
        except SyncError:
            time.sleep(3 * POLL_S)  # the store ends with this sender, and the others read there why
            raise


@contextmanager
def _or_given_up(member: Member) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        member.give_up(str(error).removeprefix(f"{FAILED}: "))
        raise
    member.close()


def _started(work: Callable[[], T]) -> Future[T]:
    """Runs the work on a thread that does not keep its process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # belongs to whoever waits for the future
            future.set_exception(error)

    threading.Thread(target=run, name="weight-broadcast", daemon=True).start()
    return future


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
