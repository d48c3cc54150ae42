"""How fast the ranks of a group reach each other, measured before anything depends on it."""

import time

import torch
import torch.distributed as dist

FIRST_BYTES = 2**18
LARGEST_BYTES = 2**30
"""Of what a gather makes on each rank: room that is free before the first model is loaded."""
TIME_S = 0.5
"""Time after which no longer gather is begun; the whole measurement takes about twice as long at most."""


def all_gather_bytes_per_s(device: torch.device) -> float:
    """Bytes that an all-gather brings to each rank in a second; collective. 0 for a single rank, which gathers nothing.

    Shares are doubled until a gather is long enough to tell, or large enough: small ones measure the latency.
    """
    num_ranks = dist.get_world_size()
    if num_ranks == 1:
        return 0.0
    num_bytes = FIRST_BYTES
    _gather_s(num_bytes, device)  # the first one opens the connections
    started = time.monotonic()
    while True:
        seconds = _gather_s(num_bytes, device)
        spent = _slowest(time.monotonic() - started, device)  # the same on every rank, so that all stop together
        if 2 * num_bytes * num_ranks > LARGEST_BYTES or spent + 2 * seconds > TIME_S:
            if device.type == "cuda":
                torch.cuda.empty_cache()  # the model needs the room
            return num_bytes * (num_ranks - 1) / seconds
        num_bytes *= 2


def _gather_s(num_bytes: int, device: torch.device) -> float:
    """Seconds that one all-gather takes the slowest rank."""
    share = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    whole = torch.empty(num_bytes * dist.get_world_size(), dtype=torch.uint8, device=device)
    dist.barrier()
    started = time.monotonic()
    dist.all_gather_single(whole, share)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return _slowest(time.monotonic() - started, device)


def _slowest(seconds: float, device: torch.device) -> float:
    longest = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    return max(float(longest), 1e-9)
