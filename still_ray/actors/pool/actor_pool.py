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
import errno
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from still_ray.actors.pool.failure_message import in_words, last_line
from still_ray.sampler.protocol import SamplerDeadError
from still_ray.types import RunError, StillRayError

NOTE_EVERY_S = 60.0
"""Time between two notes that actors are still waited for."""

DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ActorUnschedulableError,
)

PASSING_ERRORS = frozenset(
    {"ConnectionError", "TimeoutError", "TransportError", "OutOfMemoryError", "DistError", "RayError"}
)
"""Names of exceptions, and of their bases, that another try may not meet: a peer, the network or other users of a
device are behind them. By name, so that no engine has to be imported to ask."""
_PASSING_TEXT = re.compile(
    r"gloo/|nccl (?:error|communicator|operation)|nccl\w*error|couldn't connect|broken pipe|timed out|are busy"
    r"|connection (?:closed|reset|refused|error)|cuda error|free memory on device|out of memory|allocate memory"
    r"|initialization failed due to|see root cause|did not start within",
    re.IGNORECASE,
)
"""What others raise as a RuntimeError or ValueError for the same reasons: torch's collectives; vLLM for a device whose
last user has not left yet, and for a worker process of which it does not know why it ended; a crowded machine."""
_PASSING_ERRNOS = frozenset({errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOMEM})
_LONGEST_REASON = 600
_OURS = re.compile(r"^still_ray\.[\w.]+: ")
"""The type of one of our own errors, at the end of a traceback: its text is a line for a person by itself."""


class NoProgressError(Exception):
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
    """

    name: str
    handle: Any
    ready_ref: ray.ObjectRef
    up: bool = False
    ready: bool = False
    load: int = 0


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
            on_change: Takes the kind and the counts whenever these have changed.
        """
        self._kind = kind
        self._launch = launch
        self._size = size
        self._max_restarts = max_restarts
        self._min_ready = size if min_ready is None else min_ready
        self._note = note
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
        return {name: member.load for name, member in self._members.items() if member.ready}

    def member(self, name: str) -> PoolMember | None:
        """The actor of that name, or None if it was replaced."""
        return self._members.get(name)

    def starting(self) -> dict[ray.ObjectRef, str]:
        """Readiness of the actors that are not up yet."""
        return {member.ready_ref: name for name, member in self._members.items() if not member.up}

    def settle(self, name: str, *, joins: bool = False) -> bool:
        """Notes the end of an actor's start; returns whether it is up.

        An actor whose process is gone is replaced. An exception of its own code would be raised again: it ends the run,
        unless others are up, so that it may be this actor's machine.

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
            if raised_by_actor(error):
                self._refused(name, error)
            self.replace(name, error)
            return False
        member.up, member.ready = True, not joins
        self._changed(wanted=self._size)
        return True

    def _refused(self, name: str, error: BaseException) -> None:
        """Says what an actor's own code raised at its start; raises it if no other actor got further."""
        reason = f"{name} cannot start: {first_line(error)}"
        if not any(member.up for member in self._members.values()):
            raise RunError(reason) from error
        self._note(reason)

    def joined(self, name: str) -> None:
        """Lets work go to an actor that is up; does nothing if it was replaced."""
        member = self._members.get(name)
        if member is not None and member.up and not member.ready:
            member.ready = True
            self._changed(wanted=self._size)

    def wait_ready(self) -> None:
        """Waits until so many actors are up as the pool must have; the others may join later.

        Raises:
            RunError: The budget of replacements is used up.
        """
        while starting := self.starting():
            enough = len(self.loads()) >= self._min_ready
            done, _ = ray.wait(list(starting), num_returns=1, timeout=0 if enough else NOTE_EVERY_S)
            for reference in done:
                self.settle(starting[reference])
            if enough and not done:
                return
            if not done:
                self.note_waiting()

    def note_waiting(self) -> None:
        """Tells the person who waits how many are up."""
        self._note(f"waiting for {self._kind}s: {len(self.loads())} of {self._size} are up")

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
            self._note(f"{name} was lost with its node")
        elif self._num_restarts - self._num_restarts_before >= self._max_restarts:
            policy = f"failures.max_{self._kind}_restarts ({self._max_restarts})"
            died = "hangs" if isinstance(cause, NoProgressError) else "died"
            raise RunError(f"{name} {died} and {policy} is used up: {first_line(cause)}") from cause
        else:
            self._num_restarts += 1
            if isinstance(cause, NoProgressError):
                self._note(f"{name} is replaced: {cause}")
        self._add()
        self._changed(wanted=self._size)

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

    def _add(self) -> None:
        name = f"{self._kind}-{self._num_launched}"
        self._num_launched += 1
        handle = self._launch(name)
        self._members[name] = PoolMember(name=name, handle=handle, ready_ref=handle.ready.remote())


def is_death(error: BaseException) -> bool:
    """Whether an error of a call says that the actor is gone or going, rather than that the call was wrong."""
    return isinstance(error, DEATHS) or isinstance(getattr(error, "cause", None), SamplerDeadError)


def raised_by_actor(error: BaseException) -> bool:
    """Whether an actor's own code raised at its start something that it would raise again, rather than that it died."""
    if isinstance(error, ray.exceptions.RayActorError):  # of an exception in a constructor Ray keeps the text alone
        return error.actor_init_failed and f"{SamplerDeadError.__name__}: " not in last_line(str(error))
    return isinstance(error, ray.exceptions.RayTaskError) and not is_death(error) and not may_pass(error.cause)


def may_pass(error: BaseException) -> bool:
    """Whether an exception of loading or saving a model may be gone at the next try; all others come again."""
    if {cls.__name__ for cls in type(error).__mro__} & PASSING_ERRORS:
        return True
    if isinstance(error, OSError) and error.errno is not None:  # its text holds the name of a file
        return error.errno in _PASSING_ERRNOS
    return bool(_PASSING_TEXT.search(str(error)))


def reason_of(error: BaseException) -> str:
    """An exception as one line for a person, with its type where it is not one of ours."""
    details = getattr(error, "errors", None)  # pydantic's own text is a table of several lines
    text = "; ".join(str(detail["msg"]) for detail in details()) if callable(details) else str(error)
    text = " ".join(text.split())
    text = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
    return text if isinstance(error, StillRayError) and text else f"{type(error).__name__}: {text}"


def is_node_loss(error: BaseException) -> bool:
    """Whether an actor died because its node did, e.g. a spot node that was taken back: nobody's fault."""
    if isinstance(error, ray.exceptions.NodeDiedError) or getattr(error, "preempted", False):
        return True
    return isinstance(error, ray.exceptions.RayActorError) and "node has died" in str(error)


def first_line(error: BaseException) -> str:
    """The part of an error that a person needs."""
    return _OURS.sub("", in_words(error))
