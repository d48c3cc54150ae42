"""Actions whose outcome all ranks share: one rank's view of a file system, or one rank's failure, is not the others'.

Every function is collective. An exception that one rank raises is raised on all, so that none waits for a rank that has
left. The ranks that wait do so inside a collective: `trainer.collective_timeout_s` must outlast the action.
"""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

import torch.distributed as dist
from torch.distributed import distributed_c10d

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Outcome(Generic[T]):
    """What an action came to on one rank: a value, or what it raised."""

    value: T | None = None
    error: Exception | None = None
    cause: BaseException | None = None


def from_first(action: Callable[[], T]) -> T:
    """Runs an action on the first rank alone; what it returns there is returned, what it raises raised, on every rank.

    Args:
        action: Returns something that can be pickled.
    """
    outcomes: list[Any] = [_outcome(action) if dist.get_rank() == 0 else None]
    ours = outcomes[0]
    dist.broadcast_object_list(outcomes, src=0)
    outcome: _Outcome[T] = ours or outcomes[0]
    return _result(outcome)


def on_every_rank(action: Callable[[], T]) -> T:
    """Runs an action on every rank; what the first of them to fail raises, by rank, is raised on every rank."""
    ours = _outcome(action)
    failures: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, None if ours.error is None else ours)
    failures[dist.get_rank()] = ours if ours.error else None  # with its traceback
    for failure in failures:
        if failure is not None:
            _result(failure)
    return _result(ours)


def require_same(digest: str, what: str) -> None:
    """Raises on every rank if one has another digest than the first.

    Raises:
        RuntimeError: It names the ranks and `what` differs.
    """
    digests: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, digest)
    others = [rank for rank, found in enumerate(digests) if found != digests[0]]
    if others:
        raise RuntimeError(f"ranks {others} have other {what} than rank 0: do all see the same files?")


def limit_waiting(timeout_s: float) -> None:
    """Sets how long a collective may wait, in every process group of this process that is or will be made.

    DeepSpeed copies the group of all ranks without its time-out, and torch then takes a default of 10 minutes for NCCL
    and 30 for gloo.

    Args:
        timeout_s: Seconds.
    """
    timeout = timedelta(seconds=timeout_s)
    for default in ("default_pg_timeout", "default_pg_nccl_timeout"):
        setattr(distributed_c10d, default, timeout)
    distributed_c10d._set_pg_timeout(timeout, dist.group.WORLD)


def _outcome(action: Callable[[], T]) -> _Outcome[T]:
    try:
        return _Outcome(value=action())
    except Exception as error:  # named policy: it is raised again, on every rank
        return _Outcome(error=_portable(error), cause=error.__cause__ and _portable(error.__cause__))


def _portable(error: T) -> T | RuntimeError:
    """The exception, or its text if it cannot be sent: some constructors want more than they hand on."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was dumped right here
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _result(outcome: _Outcome[T]) -> T:
    if outcome.error is not None:
        raise outcome.error from outcome.cause  # pickle drops the cause
    return cast(T, outcome.value)
