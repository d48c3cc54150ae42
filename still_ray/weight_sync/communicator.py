"""What carries a broadcast: NCCL from GPU to GPU, gloo elsewhere.

Both are groups of their own, whatever else the process is a member of. A call may block for as long as a peer does;
`still_ray.weight_sync.member` bounds it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Protocol

import torch
from torch._C._distributed_c10d import BroadcastOptions, PrefixStore, ProcessGroupGloo, Store

from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.rendezvous import Backend


class Communicator(Protocol):
    """A group whose rank 0 sends."""

    def broadcast(self, block: torch.Tensor) -> None:
        """Sends the block, or fills it; returns when this member's part is over.

        Args:
            block: uint8, one dimension, the same size on every member.
        """
        ...

    def abort(self) -> None:
        """Ends what is under way, as far as the backend can; may be called from another thread, and twice."""
        ...


class GlooCommunicator:
    """Torch's gloo: a lost peer fails the call at once, a silent one after the time-out, which nothing shortens."""

    def __init__(self, store: Store, rank: int, world_size: int, *, timeout_s: float) -> None:
        """Meets the others; blocks until all are there."""
        self._group: Any = ProcessGroupGloo(PrefixStore("gloo", store), rank, world_size, timedelta(seconds=timeout_s))

    def broadcast(self, block: torch.Tensor) -> None:
        """See `Communicator`."""
        options = BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([block], options).wait()

    def abort(self) -> None:
        """Nothing: gloo waits for its peer or its time-out."""


class NcclCommunicator:
    """The communicator of vLLM's own `nccl` weight transfer.

    A lost peer leaves the call waiting. `abort` ends a transfer under way, and with it the communicator; it cannot end
    the meeting itself, before there is a communicator.
    """

    def __init__(self, store: Store, rank: int, world_size: int, *, device: torch.device) -> None:
        """Meets the others; blocks until all are there.

        Raises:
            SyncError: There is no NCCL library.
        """
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
        from vllm.distributed.utils import StatelessProcessGroup
        from vllm.utils.nccl import unpinned_nccl_env

        torch.cuda.set_device(device)
        group = StatelessProcessGroup(rank=rank, world_size=world_size, store=PrefixStore("nccl", store))
        with unpinned_nccl_env():
            self._nccl: Any = PyNcclCommunicator(group, device=device)
        if self._nccl.disabled:
            raise SyncError("weight broadcast failed: the NCCL library cannot be loaded")
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def broadcast(self, block: torch.Tensor) -> None:
        """See `Communicator`; on a stream of its own, which has ended when this returns."""
        with torch.cuda.device(block.device):  # each call comes on a thread of its own, whose device is the first
            self._nccl.broadcast(block, src=0, stream=self._stream)
            self._stream.synchronize()

    def abort(self) -> None:
        """See `Communicator`."""
        self._nccl.destroy()


def connected(
    backend: Backend, store: Store, rank: int, world_size: int, *, device: torch.device, timeout_s: float
) -> Communicator:
    """Meets the other members of the group; blocks until all are there."""
    if backend == "nccl":
        return NcclCommunicator(store, rank, world_size, device=device)
    return GlooCommunicator(store, rank, world_size, timeout_s=timeout_s)
