"""The one line that a failed run ends with: what failed, where, and which log has the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from still_ray.actors.pool.causes import GUESSES
from still_ray.types import RunError

MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""How the lines begin that Ray writes into a worker's log for itself."""


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
