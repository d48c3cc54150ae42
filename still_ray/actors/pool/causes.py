"""What is wrong, in one line, behind the errors of Ray: what an actor raised, or how it ended.

What the libraries say is put into words in `still_ray.causes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import Final

import ray

from still_ray.causes import ANYWHERE, PEERS, Place, last_line, may_pass, said_in, worded
from still_ray.sampler.protocol import SamplerDeadError

errors = ray.exceptions

WORDS: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...]] = (
    (errors.OwnerDiedError, "the process that held the data ended"),
    (errors.ObjectLostError, "the data was lost with the node that held it"),
    (errors.ObjectStoreFullError, "Ray's object store is full"),
    (errors.OutOfDiskError, "the disk behind Ray's object store is full"),
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

ENDS: Final[tuple[tuple[str, str], ...]] = (
    (r"node has died|[Nn]ode was (?:terminated|preempted|drained)", "its node was lost"),
    (r"owner has (?:died|exited)", "the process that had started it ended"),
    (r"ray\.kill|INTENDED_SYSTEM_EXIT", "it was killed"),
    (r"exit code (\d+)", r"its process ended with status \1"),
    (r"worker process has died|connection error|SYSTEM_ERROR|crashed", "its process died"),
)
"""The same for how an actor ended, of which Ray says no more than a text."""

GUESSES: Final = re.compile(r"There are some potential root causes|Some common causes include")
"""How Ray begins a list of guesses that follows every death of a worker."""

OUT_OF_MEMORY: Final = "Ray killed it for lack of memory on its node"
_OOM: Final = re.compile(r"memory (?:pressure|running low)|running low on memory|\bOOM\b")
_OOM_NODE: Final = re.compile(r"Memory on the node \(IP: ([^,)]+).*?was ([\d.]+)GB used / ([\d.]+)GB limit")
_OOM_USER: Final = re.compile(r"^\d+\t([\d.]+)\t(.+)$", re.MULTILINE)
_MOST_USERS: Final = 3

_INNER: Final = ("health_check_failure", "cause", "controller_failure", "_base_exc")
"""Where Ray and Ray Train keep what an error is about."""
_IDENTITY: Final = re.compile(r"(?:\b\w+ )*\bID: [0-9a-f]{16,}[,.]?\s*|\b[0-9a-f]{20,}\b|\x1b\[[0-9;]*m")


def cause_of(error: BaseException, place: Place = ANYWHERE) -> str:
    """What is wrong, in one line for a person, with the key that mends it where one is known.

    Args:
        error: What was raised, however deep Ray has wrapped it.
        place: Where.
    """
    error = innermost(error)
    for kinds, words in WORDS:
        if isinstance(error, kinds):
            return words
    if not isinstance(error, errors.RayError):
        return worded(error, place)
    text = GUESSES.split(str(error))[0]
    if is_out_of_memory(error):
        return f"{_out_of_memory(text)}; {place.less_memory}"
    if isinstance(error, errors.RayActorError) and not error.actor_init_failed:
        found = ((re.search(pattern, text), words) for pattern, words in ENDS)
        return next((match.expand(words) for match, words in found if match), "it ended")
    return worded(error, place, text=_IDENTITY.sub("", said_in(text)))


def innermost(error: BaseException) -> BaseException:
    """What was raised at first: behind Ray's error, that of Ray Train, or a group of exceptions."""
    seen = {id(error)}
    while True:
        ranks = getattr(error, "worker_failures", None)
        inner: BaseException | None = most_telling(ranks.values()) if isinstance(ranks, dict) and ranks else None
        inner = inner or next((found for name in _INNER if (found := getattr(error, name, None)) is not None), None)
        if inner is None and isinstance(error, BaseExceptionGroup):
            inner = error.exceptions[0]
        if not isinstance(inner, BaseException) or id(inner) in seen:
            return error
        seen.add(id(inner))
        error = inner


def most_telling(failures: Iterable[Exception]) -> Exception:
    """Of what several ranks failed of, the first that does not only say that another one is gone."""
    found = list(failures)
    return next((error for error in found if has_reason(error)), found[0])


def is_death(error: BaseException) -> bool:
    """Whether an error of a call says that the actor is gone or going, rather than that the call was wrong."""
    deaths = (
        errors.RayActorError,
        errors.OutOfMemoryError,
        errors.NodeDiedError,
        errors.WorkerCrashedError,
        errors.ActorUnschedulableError,
    )
    return isinstance(error, deaths) or isinstance(getattr(error, "cause", None), SamplerDeadError)


def was_raised(error: BaseException) -> bool:
    """Whether an actor's own code raised something at its start, rather than that its process was lost."""
    if isinstance(error, errors.RayActorError):
        return bool(error.actor_init_failed)
    return isinstance(error, errors.RayTaskError)


def comes_again(error: BaseException) -> bool:
    """Whether an actor's own code raised at its start something that it would raise again."""
    if isinstance(error, errors.RayActorError):  # of an exception in a constructor Ray keeps the text alone
        return bool(error.actor_init_failed) and f"{SamplerDeadError.__name__}: " not in last_line(str(error))
    return isinstance(error, errors.RayTaskError) and not is_death(error) and not may_pass(error.cause)


def has_reason(error: BaseException) -> bool:
    """Whether something failed by itself, so that in the same words twice is for the same reason twice.

    Not so what died without a word, and what blames another process or the network: these come and go.
    """
    found = innermost(error)
    raised = was_raised(found) or not isinstance(found, errors.RayError)
    return (raised or is_out_of_memory(found)) and not PEERS.search(cause_of(found))


def is_node_loss(error: BaseException) -> bool:
    """Whether an actor died because its node did, e.g. a spot node that was taken back: nobody's fault."""
    if isinstance(error, errors.NodeDiedError) or getattr(error, "preempted", False):
        return True
    return isinstance(error, errors.RayActorError) and "node has died" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Ray killed a process because its node had no memory left."""
    found = innermost(error)
    if not isinstance(found, errors.RayError) or getattr(found, "actor_init_failed", False):
        return False
    return isinstance(found, errors.OutOfMemoryError) or bool(_OOM.search(GUESSES.split(str(found))[0]))


def alike(cause: str) -> str:
    """What two causes share that are the same: neither how much there was of something, nor who else had it."""
    return OUT_OF_MEMORY if cause.startswith(OUT_OF_MEMORY) else re.sub(r"\d[\d.,]*", "#", cause)


def _out_of_memory(text: str) -> str:
    """Ray's account of a node without memory: how much was used, and by whom most."""
    said = OUT_OF_MEMORY
    if node := _OOM_NODE.search(text):
        said += f" {node[1]} ({node[2]} of {node[3]} GB used)"
    users = sorted(_OOM_USER.findall(text), key=lambda user: float(user[0]), reverse=True)[:_MOST_USERS]
    if users:
        said += ": " + ", ".join(f"{_short_command(command)} {amount} GB" for amount, command in users)
    return said


def _short_command(command: str) -> str:
    """A process as a person knows it: an actor without Ray's prefix, a program without its folder and options."""
    if command.startswith("ray::"):
        return command.removeprefix("ray::").strip()
    program, *arguments = (PurePath(word).name for word in command.split())
    script = next((word for word in arguments if word == "-c" or not word.startswith("-")), "")
    return f"{program} {script}".strip()
