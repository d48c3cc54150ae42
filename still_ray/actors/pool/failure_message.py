"""The one line that a failed run ends with: what failed, where, and which log has the rest."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from still_ray.types import RunError

GUESSES = re.compile(r"There are some potential root causes|Some common causes include")
"""How Ray begins a list of guesses that follows every death of a worker."""


MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""How the lines begin that Ray writes into a worker's log for itself."""

errors = ray.exceptions
WORDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (errors.OwnerDiedError, "the process that held the data ended"),
    (errors.ObjectLostError, "the data was lost with the node that held it"),
    (errors.ObjectStoreFullError, "Ray's object store is full"),
    (errors.OutOfDiskError, "the disk behind Ray's object store is full"),
    (errors.OutOfMemoryError, "Ray killed it for lack of memory on its node"),
    (errors.NodeDiedError, "its node was lost"),
    (errors.LocalRayletDiedError, "Ray ended on its node"),
    (errors.WorkerCrashedError, "its process died"),
    (errors.ActorUnavailableError, "it cannot be reached at present"),
    ((errors.ActorUnschedulableError, errors.TaskUnschedulableError), "the node that it needs is not there"),
    ((errors.ActorPlacementGroupRemoved, errors.TaskPlacementGroupRemoved), "the room that was kept for it is gone"),
    (errors.GetTimeoutError, "no answer came in time"),
    (errors.TaskCancelledError, "it was cancelled"),
    (errors.RpcError, "the connection to Ray failed"),
)
"""What Ray's errors come down to; their own texts are for whoever develops on Ray. The first that fits counts."""

ENDS: tuple[tuple[str, str], ...] = (
    (r"node has died|[Nn]ode was (?:terminated|preempted|drained)", "its node was lost"),
    (r"memory (?:pressure|running low)|OOM", "Ray killed it for lack of memory on its node"),
    (r"owner has (?:died|exited)", "the process that had started it ended"),
    (r"ray\.kill|INTENDED_SYSTEM_EXIT", "it was killed"),
    (r"exit code (\d+)", r"its process ended with status \1"),
    (r"worker process has died|connection error|SYSTEM_ERROR|crashed", "its process died"),
)
"""The same for how an actor ended, of which Ray says no more than a text."""

_INNER = ("cause", "controller_failure", "_base_exc")
_IDENTITY = re.compile(r"(?:\b\w+ )*\bID: [0-9a-f]{16,}[,.]?\s*|\b[0-9a-f]{20,}\b|\x1b\[[0-9;]*m")


def in_words(error: BaseException) -> str:
    """What failed, in one line for a person: the cause behind Ray's error, or what that comes down to."""
    error = _innermost(error)
    for kinds, words in WORDS:
        if isinstance(error, kinds):
            return words
    text = GUESSES.split(str(error))[0]
    if isinstance(error, errors.RayActorError) and not error.actor_init_failed:
        found = ((re.search(pattern, text), words) for pattern, words in ENDS)
        return next((match.expand(words) for match, words in found if match), "it ended")
    line = last_line(text) or type(error).__name__
    return _IDENTITY.sub("", line).strip() or type(error).__name__ if isinstance(error, errors.RayError) else line


def _innermost(error: BaseException) -> BaseException:
    """What was raised at first; Ray Train keeps what each rank raised."""
    seen = {id(error)}
    while True:
        ranks = getattr(error, "worker_failures", None)
        inner = next(iter(ranks.values())) if isinstance(ranks, dict) and ranks else None
        inner = inner or next((found for name in _INNER if (found := getattr(error, name, None)) is not None), None)
        if not isinstance(inner, BaseException) or id(inner) in seen:
            return error
        seen.add(id(inner))
        error = inner


def last_line(text: str) -> str:
    """The last line that says anything; of a traceback, the exception."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


@dataclass(frozen=True, kw_only=True)
class FailedActor:
    """An actor that a failure came from.

    Attributes:
        name: Its name, or its class where it has none.
        node: Address of its node.
        pid: Its process there; 0 if it never had one.
    """

    name: str
    node: str
    pid: int


def failure_line(what: str, *, stage: str, actor: FailedActor | None, log: str) -> str:
    """What failed and where, in one line without how to resume.

    Args:
        what: What failed, perhaps on several lines.
        stage: Name of the stage; "" before the first.
        actor: Where it failed, if that is known.
        log: A file, or a folder where the file is not known.
    """
    what = " ".join(GUESSES.split(what)[0].split()).rstrip(".")
    where = f"stage {stage} failed: {what}" if stage else what
    if actor is not None:
        where += f"; actor {actor.name} on node {actor.node}" if actor.node else f"; actor {actor.name}"
    return f"{where}; log: {log}"


def log_of(actor: FailedActor | None, logs: Path, *, here: str) -> str:
    """The log file of an actor; its name as a pattern when it is on another node, the folder when it had no process.

    Args:
        actor: The actor, if it is known.
        logs: Ray's log folder, the same path on every node.
        here: Address of this node.
    """
    if actor is None or not actor.pid:
        return str(logs)
    pattern = f"worker-*-{actor.pid}"
    if actor.node != here:
        return f"{logs / pattern}.err on {actor.node}"
    found = sorted(logs.glob(f"{pattern}.err")) + sorted(logs.glob(f"{pattern}.out"))
    return str(next(iter([*filter(_has_text, found), *found]), logs))


def _has_text(log: Path) -> bool:
    """Whether a worker printed anything: Ray begins each file with marks of its own."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        return any(line.strip() and not line.startswith(MARKS) for line in lines)


def failed_actor(error: BaseException) -> FailedActor | None:
    """The actor that a failure came from, if it came from one; the cluster must still be joined."""
    for one in _chain(error):
        actor_id = getattr(one, "actor_id", None) or getattr(one, "_actor_id", None)
        if actor_id:
            return _looked_up(str(actor_id))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, Ray's own way of keeping them included."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        one = queue.pop(0)
        if one is None or one in seen:
            continue
        seen.append(one)
        yield one
        cause = getattr(one, "cause", None)
        queue += [one.__cause__, cause if isinstance(cause, BaseException) else None]


def _looked_up(actor_id: str) -> FailedActor | None:
    facts = {}
    with contextlib.suppress(Exception):  # the cluster may be what failed; the line must come all the same
        facts = ray._private.state.actors(actor_id=actor_id)
    if not facts:
        return None
    return FailedActor(
        name=facts["Name"] or facts["ActorClassName"],
        node=facts["Address"]["IPAddress"],
        pid=facts["Pid"],
    )


def explained(error: Exception, what: str, *, stage: str, logs: str) -> RunError:
    """The failure of a run as the line that it ends with; the cluster must still be joined.

    Args:
        error: What was raised.
        what: The same in words.
        stage: Name of the present stage.
        logs: Ray's log folder.
    """
    actor = failed_actor(error)
    here = ray.util.get_node_ip_address()
    return RunError(failure_line(what, stage=stage, actor=actor, log=log_of(actor, Path(logs), here=here)))
