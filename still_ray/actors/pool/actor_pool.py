"""A pool of like actors: who is up, how loaded each is, and who replaces the dead.

    consumes     deaths that callers noticed, readiness of new actors
    produces     handles of ready actors with their loads
    waits for    nothing but `wait_ready`
    unblocked by an actor that becomes ready, perhaps on a node that an autoscaler adds for it

Ray's own restarts are off: a restarted replica would come back with the weights it was first given, whereas a
replacement is launched with the current ones.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from still_ray.actors.pool.causes import alike, cause_of, comes_again, has_reason, is_death, is_node_loss, was_raised
from still_ray.causes import Place
from still_ray.types import RunError, StillRayError

LOOK_EVERY_S = 2.0
"""Time between two looks at what actors that start are waiting for."""
STARTS = {"replica": "loading the model into its engine", "verifier": "its processes"}
"""What the start of an actor consists of, by the kind of its pool."""
MOST_NAMED = 4
MAX_SAME_STARTS = 3
"""Starts in a row that may fail in the same words. Source: ours; the last user of a device leaves it within one."""


_REPLACES = " takes its place"


def replaced_names(note: str) -> tuple[str, str] | None:
    """Of a pool's note that an actor was replaced, the names of the one that is gone and of the new one; else None."""
    what, _, newcomer = note.removesuffix(_REPLACES).rpartition("; ")
    return (what.partition(" ")[0], newcomer) if what and note.endswith(_REPLACES) else None


class NoProgressError(StillRayError):
    """An actor lives and does not get on: it is killed, and replaced as a dead one."""


@dataclass
class PoolMember:
    """One actor of the pool.

    Attributes:
        name: Its name in the dashboard.
        handle: The actor.
        ready_ref: Resolves when the actor is up.
        up: Whether it is.
        ready: Whether work may go to it.
        load: Units of work in flight.
        num_done: Of these, units that are done already, as the actor last said; they leave room for others. At most
            `load`.
        failed_starts: How the starts before this one failed, in its place, since one succeeded there.
    """

    name: str
    handle: Any
    ready_ref: ray.ObjectRef
    up: bool = False
    ready: bool = False
    load: int = 0
    num_done: int = 0
    failed_starts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PoolCounts:
    """How a pool stands.

    Attributes:
        wanted: Actors that it shall have; 0 while they are released.
        ready: Those that are up.
        starting: Those that are not up yet, have to join first, or cannot be reached at present.
        num_died: Replacements of actors that died, so far.
        num_lost: Replacements of actors that were lost with their node, so far.
    """

    wanted: int = 0
    ready: int = 0
    starting: int = 0
    num_died: int = 0
    num_lost: int = 0


class ActorPool:
    """Keeps `size` actors alive within a budget of replacements; those that died with their node cost nothing."""

    def __init__(
        self,
        kind: str,
        launch: Callable[[str], Any],
        *,
        size: int,
        max_restarts: int,
        min_ready: int | None = None,
        note: Callable[[str], None] = lambda text: None,
        doing: Callable[[str], None] = lambda what: None,
        on_change: Callable[[str, PoolCounts], None] = lambda kind, counts: None,
    ) -> None:
        """Starts without actors; `resume` launches them.

        Args:
            kind: Prefix of their names, e.g. "sampler".
            launch: Starts an actor under a name; it must have a `ready` method.
            size: How many. An actor for which no node has room stays pending, which is what Ray's autoscaler sees.
            max_restarts: Replacements allowed since the start, or since the last `begin_run`.
            min_ready: How many `wait_ready` waits for; None: all.
            note: Takes a line for the person who waits.
            doing: Takes what is waited for.
            on_change: Takes the kind and the counts whenever these have changed.
        """
        self._kind = kind
        self._launch = launch
        self._size = size
        self._max_restarts = max_restarts
        self._min_ready = size if min_ready is None else min_ready
        self._note = note
        self._doing = doing
        self._on_change = on_change
        self._num_restarts = 0
        self._num_restarts_before = 0
        self._num_lost = 0
        self._num_launched = 0
        self._members: dict[str, PoolMember] = {}

    def begin_run(self) -> None:
        """Gives the next run on the same actors the whole budget of replacements; what is reported goes on counting."""
        self._num_restarts_before = self._num_restarts

    def resume(self) -> None:
        """Launches what is missing to `size`; does not wait."""
        while len(self._members) < self._size:
            self._add()
        self._changed(wanted=self._size)

    def release(self) -> None:
        """Ends every actor, which frees what they hold, until `resume`."""
        for member in self._members.values():
            ray.kill(member.handle)
        self._members.clear()
        self._changed(wanted=0)

    def members(self) -> list[PoolMember]:
        """All actors, starting ones included."""
        return list(self._members.values())

    def loads(self) -> dict[str, int]:
        """Work in flight of every ready actor."""
        return {name: one.load - one.num_done for name, one in self._members.items() if one.ready}

    def member(self, name: str) -> PoolMember | None:
        """The actor of that name, or None if it was replaced."""
        return self._members.get(name)

    def starting(self) -> dict[ray.ObjectRef, str]:
        """Readiness of the actors that are not up yet."""
        return {member.ready_ref: name for name, member in self._members.items() if not member.up}

    def settle(self, name: str, *, joins: bool = False) -> bool:
        """Notes the end of an actor's start; returns whether it is up.

        An actor whose process is gone is replaced. An exception of its own code would be raised again: it ends the run,
        unless others are up, so that it may be this actor's machine. What fails in the same words again and again does
        so for a reason, whatever it looks like.

        Args:
            name: The actor.
            joins: Whether it has to do something before work may go to it; `joined` ends that.

        Raises:
            RunError: It cannot start, or the budget of replacements is used up.
        """
        member = self._members[name]
        try:
            ray.get(member.ready_ref)
        except ray.exceptions.RayError as error:
            self._check_start(member, error)
            self.replace(name, error)
            return False
        member.failed_starts = ()
        member.up, member.ready = True, not joins
        self._changed(wanted=self._size)
        return True

    def _check_start(self, member: PoolMember, error: BaseException) -> None:
        """Ends the run where there is no use in another start."""
        reason = self.cause(error)
        if comes_again(error) and not any(other.up for other in self._members.values()):
            raise RunError(f"{member.name} cannot start: {reason}") from error
        if not has_reason(error):
            return
        words = alike(reason)
        member.failed_starts = (*member.failed_starts, words)
        if member.failed_starts[-MAX_SAME_STARTS:] == (words,) * MAX_SAME_STARTS:
            raise RunError(f"{member.name} cannot start, as the {MAX_SAME_STARTS - 1} before it: {reason}") from error

    def cause(self, error: BaseException) -> str:
        """Why one of these actors failed, with the keys that mend it here."""
        return cause_of(error, Place(kind=self._kind))

    def joined(self, name: str) -> None:
        """Lets work go to an actor that is up; does nothing if it was replaced."""
        member = self._members.get(name)
        if member is not None and member.up and not member.ready:
            member.ready = True
            self._changed(wanted=self._size)

    def suspend(self, name: str) -> None:
        """Lets no work go to an actor until it has `joined` again; does nothing if it was replaced."""
        member = self._members.get(name)
        if member is not None:
            member.ready = False
            self._changed(wanted=self._size)

    def wait_ready(self) -> None:
        """Waits until so many actors are up as the pool must have; the others may join later.

        Raises:
            RunError: The budget of replacements is used up.
        """
        while self.starting():
            enough = len(self.loads()) >= self._min_ready
            if not self.settle_next(timeout_s=0 if enough else LOOK_EVERY_S) and enough:
                return

    def settle_next(self, *, timeout_s: float = LOOK_EVERY_S) -> bool:
        """Waits for the next start to end; returns whether one did in time.

        Args:
            timeout_s: How long, seconds.

        Raises:
            RunError: The budget of replacements is used up.
        """
        starting = self.starting()
        if timeout_s:
            self._doing(self.waited_for())
        done, _ = ray.wait(list(starting), num_returns=1, timeout=timeout_s)
        for reference in done:
            self.settle(starting[reference])
        return bool(done)

    def waited_for(self) -> str:
        """Which actors are not up, and what they wait for: a node with room, or their own start."""
        placed: list[str] = []
        pending: list[str] = []
        for name in self.starting().values():
            (placed if _is_placed(self._members[name].handle) else pending).append(name)
        waits = [f"{_listed(placed)} to start ({STARTS.get(self._kind, 'its process')})"] if placed else []
        waits += [f"a node with room for {_listed(pending)}"] if pending else []
        return f"waiting for {' and '.join(waits)}" if waits else f"waiting for {self._kind}s"

    def replace(self, name: str, cause: BaseException) -> None:
        """Puts a new actor in the place of a dead one; does nothing when that was done before.

        One that merely cannot be reached counts as starting: it is asked again, and answers or turns out to be dead.

        Raises:
            RunError: The budget of replacements is used up.
        """
        member = self._members.get(name)
        if member is None:
            return
        if isinstance(cause, ray.exceptions.ActorUnavailableError):
            member.up = member.ready = False
            member.ready_ref = member.handle.ready.remote()
            self._changed(wanted=self._size)
            return
        del self._members[name]
        with contextlib.suppress(Exception):
            ray.kill(member.handle)
        if is_node_loss(cause):
            self._num_lost += 1
            what = f"{member.name} was lost with its node"
        else:
            what = self._died(member, cause)
        self._note(f"{what}; {self._add(member.failed_starts)}{_REPLACES}")
        self._changed(wanted=self._size)

    def replace_unless_refused(
        self, name: str, error: ray.exceptions.RayError, *, task: str, timeout_s: float, key: str
    ) -> None:
        """A dead or silent actor is replaced; one that lives and refuses a task ends the run.

        Args:
            name: The actor.
            error: How its task ended.
            task: What it was asked, e.g. "fall asleep".
            timeout_s: How long its answer was waited for.
            key: The recipe's key that says so.

        Raises:
            RunError: It refuses, or the budget of replacements is used up.
        """
        if isinstance(error, ray.exceptions.GetTimeoutError):
            self.replace(name, NoProgressError(f"no answer within {timeout_s:g} s ({key})"))
        elif is_death(error):
            self.replace(name, error)
        else:
            raise RunError(f"{name} cannot {task}: {self.cause(error)}") from error

    def _died(self, member: PoolMember, cause: BaseException) -> str:
        """Counts a death; returns what a person reads of it."""
        if isinstance(cause, NoProgressError):
            what = "hangs"
        elif was_raised(cause):
            what = "cannot start" if not member.up else "failed"
        else:
            what = "died" if member.up else "died at its start"
        if self._num_restarts - self._num_restarts_before >= self._max_restarts:
            policy = f"failures.max_{self._kind}_restarts ({self._max_restarts})"
            raise RunError(f"{member.name} {what} and {policy} is used up: {self.cause(cause)}") from cause
        self._num_restarts += 1
        return f"{member.name} {what}: {self.cause(cause)}"

    def _changed(self, *, wanted: int) -> None:
        num_ready = len(self.loads())
        counts = PoolCounts(
            wanted=wanted,
            ready=num_ready,
            starting=len(self._members) - num_ready,
            num_died=self._num_restarts,
            num_lost=self._num_lost,
        )
        self._on_change(self._kind, counts)

    def _add(self, failed_starts: tuple[str, ...] = ()) -> str:
        """Launches another actor, after so many that failed in its place; returns its name."""
        name = f"{self._kind}-{self._num_launched}"
        self._num_launched += 1
        handle = self._launch(name)
        self._members[name] = PoolMember(
            name=name, handle=handle, ready_ref=handle.ready.remote(), failed_starts=failed_starts
        )
        return name


def as_they_end(asked: Iterable[ray.ObjectRef], *, timeout_s: float) -> Iterator[ray.ObjectRef]:
    """Each reference when it is ready; at the deadline those that are not."""
    waiting, deadline = list(asked), time.monotonic() + timeout_s
    while waiting:
        ready, waiting = ray.wait(waiting, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        yield from ready
        if not ready:
            yield from waiting
            return


def _is_placed(handle: Any) -> bool:
    """Whether a node has given an actor a process, by Ray's own table."""
    return bool(ray._private.state.actors(actor_id=handle._actor_id.hex()).get("Pid"))


def _listed(names: Sequence[str]) -> str:
    """Names in a line; of many the first."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
