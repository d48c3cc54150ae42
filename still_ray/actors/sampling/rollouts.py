"""The rollout pipeline: requests to replicas, rollouts to verifiers, trajectories to the caller, all overlapping.

    consumes     rollout requests, pulled only while a replica has room
    produces     trajectories, as they are judged
    waits for    whichever generation, verification, starting or joining actor answers first
    unblocked by any of them; a death puts the request back in front of the queue and a new actor in its place, and so
                 does a replica that hangs

The driver sees only the small half of a generation's result; the texts go from the replica to the verifier.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import ray

from still_ray.actors.pool.actor_pool import ActorPool, NoProgressError
from still_ray.actors.pool.causes import is_death, is_node_loss
from still_ray.actors.pool.hang_detector import HangDetector
from still_ray.actors.pool.polling import Polls
from still_ray.actors.sampling.replica import GenerationStatus
from still_ray.algo.exploration import least_loaded
from still_ray.algo.partial_responses import PartialResponses
from still_ray.driver.ports import OnLoad, SamplingLoad
from still_ray.types import PartialResponse, RolloutRequest, RunError, Trajectory, TrajectoryKey

OnRows = Callable[[Sequence[Trajectory]], object]

FollowUp = Callable[[RolloutRequest], RolloutRequest | None]
"""Asked once a request is judged: what to sample next of its problem."""


class Admission(Protocol):
    """How a replica that comes up in the middle of a pass gets the present weights, while the others go on."""

    def ask(self, name: str) -> None:
        """Has it load what it lacks and score the probes; does not wait."""
        ...

    def joining(self) -> Mapping[ray.ObjectRef, str]:
        """The answers that are awaited, and whose they are."""
        ...

    def prove(self, name: str, answer: ray.ObjectRef) -> None:
        """Takes an answer that has come: from here on the replica serves, or another is in its place.

        An answer that is not awaited any more, because its replica was asked again, is passed over.

        Raises:
            RunError: The proof fails, or the budget of replacements is used up.
        """
        ...

    def expire(self) -> None:
        """Replaces those that have taken too long.

        Raises:
            RunError: The budget of replacements is used up.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A request on its way.

    Attributes:
        request: What was asked.
        actor: Who works on it.
        rollouts: Reference to the rollouts.
    """

    request: RolloutRequest
    actor: str
    rollouts: ray.ObjectRef

    @property
    def weight(self) -> int:
        """Samples that it stands for."""
        return len(self.request.sample_indices)


@dataclass(frozen=True, kw_only=True)
class RolloutPipeline:
    """Two pools connected.

    Attributes:
        samplers: Replicas.
        verifiers: Verifier workers.
        max_in_flight: Most samples in flight at one replica.
        max_attempts: Times that one request may be lost with a dying replica.
        admission: What a replica that came up has to go through before it serves.
        replica_timeout_s: Seconds without progress after which a replica hangs and is replaced; None: never.
        doing: Takes what is waited for, whenever that changes.
    """

    samplers: ActorPool
    verifiers: ActorPool
    max_in_flight: int
    max_attempts: int
    admission: Admission
    replica_timeout_s: float | None = None
    doing: Callable[[str], None] = lambda what: None

    def run(
        self,
        requests: Generator[RolloutRequest],
        on_rows: OnRows,
        *,
        name: str,
        on_load: OnLoad = lambda load: None,
        follow_up: FollowUp = lambda request: None,
        partials: PartialResponses | None = None,
    ) -> None:
        """Works until every request is judged; closes the requests in any case, which stops their reader's threads.

        Args:
            requests: What to sample.
            on_rows: Takes what was judged.
            name: What this is for, e.g. "001-explore"; Ray shows it with every call.
            on_load: Takes what the replicas do, every few seconds.
            follow_up: Says what to sample next of a problem.
            partials: Takes what there is of unfinished responses, and has what is known of them; None: memory.

        Raises:
            RunError: A request or a pool used up its attempts.
        """
        with closing(requests):
            partials = PartialResponses() if partials is None else partials
            _Pass(self, on_rows, on_load, follow_up, name=name, partials=partials).run(requests)


class _Pass:
    """The state of one pass through the pipeline."""

    def __init__(
        self,
        pipeline: RolloutPipeline,
        on_rows: OnRows,
        on_load: OnLoad,
        follow_up: FollowUp,
        *,
        name: str,
        partials: PartialResponses,
    ) -> None:
        self._pipeline = pipeline
        self._name = name
        self._samplers = pipeline.samplers
        self._verifiers = pipeline.verifiers
        self._on_rows = on_rows
        self._on_load = on_load
        self._doing = ""
        self._decoded_before: dict[str, int] = {}
        self._follow_up = follow_up
        self._waiting: deque[RolloutRequest] = deque()  # lost with an actor, or following up; before any new one
        self._sampling: dict[ray.ObjectRef, _Work] = {}
        self._judging: dict[ray.ObjectRef, _Work] = {}
        self._unjudged: deque[_Work] = deque()
        self._attempts: Counter[str] = Counter()
        self._admission = pipeline.admission
        self._hang_detector = HangDetector(pipeline.replica_timeout_s)
        self._answered: set[str] = set()  # replicas, since the last look
        self._partials = partials
        self._part_polls = Polls()
        self._parts: list[PartialResponse] = []

    def run(self, requests: Generator[RolloutRequest]) -> None:
        pending = next(requests, None)
        while True:
            while pending is not None and not self._waiting and self._send(pending):
                pending = next(requests, None)
            while self._waiting and self._send(self._waiting[0]):
                self._waiting.popleft()
            if pending is None and not (self._waiting or self._sampling or self._judging or self._unjudged):
                return
            self._wait()

    def _send(self, request: RolloutRequest) -> bool:
        """Sends a request to the least-loaded replica; False when none has room."""
        weight = len(request.sample_indices)
        name = least_loaded(self._samplers.loads(), weight=weight, limit=self._pipeline.max_in_flight)
        member = self._samplers.member(name) if name else None
        if member is None:
            return False
        status, rollouts = member.handle.generate.options(name=f"{self._name}: generate").remote(
            replace(request, prefixes=self._partials.of(request.keys))
        )
        if not member.load:
            self._hang_detector.alive(member.name)
        member.load += weight
        self._sampling[status] = _Work(request=request, actor=member.name, rollouts=rollouts)
        return True

    def _wait(self) -> None:
        """Handles everything that has answered, after waiting for the first, or for the time to look around."""
        starting = {**self._samplers.starting(), **self._verifiers.starting()}
        joining = self._admission.joining()
        watched = [*self._sampling, *self._judging, *starting, *joining, *self._part_polls.awaited()]
        ray.wait(watched, num_returns=1, timeout=self._hang_detector.look_every_s, fetch_local=False)
        done, _ = ray.wait(watched, num_returns=len(watched), timeout=0, fetch_local=False)
        for reference in done:
            if reference in self._sampling:
                self._sampled(self._sampling.pop(reference), reference)
            elif reference in self._judging:
                self._judged(self._judging.pop(reference), reference)
            elif reference in joining:
                self._admission.prove(joining[reference], reference)
            elif reference in starting:
                self._started(starting[reference], reference)
        self._dispatch_judging()
        self._take_parts()
        self._look_around()

    def _look_around(self) -> None:
        """Sees to who takes too long, and tells the person who waits what for, and how much is decoded."""
        self._admission.expire()
        if not self._hang_detector.is_due():
            return
        self._look_at_replicas()
        self._take_parts(wait=False)
        self._ask_for_parts()
        if (doing := self._waited_for()) != self._doing:
            self._doing = doing
            self._pipeline.doing(doing)
        self._on_load(self._load())

    def _waited_for(self) -> str:
        """What the next answer has to come from."""
        if self._sampling:
            return "sampling"
        if self._judging or self._unjudged:
            verdicts = sum(work.weight for work in (*self._judging.values(), *self._unjudged))
            return (
                f"waiting for verdicts on {verdicts} responses"
                if self._verifiers.loads()
                else (self._verifiers.waited_for())
            )
        if joining := ", ".join(self._admission.joining().values()):
            return f"waiting for {joining}: loading the present weights and scoring the probes"
        return self._samplers.waited_for()

    def _load(self) -> SamplingLoad:
        """What the replicas do, as they said at the last look, and what they have decoded since the first."""
        stats = self._hang_detector.stats
        for name, first in stats.items():
            self._decoded_before.setdefault(name, first.num_generated_tokens)
        present = [stats[member.name] for member in self._samplers.members() if member.name in stats and member.load]
        return SamplingLoad(
            num_running=sum(one.num_running for one in present),
            num_waiting=sum(one.num_waiting for one in present),
            num_tokens=sum(one.num_decoded_tokens - self._decoded_before[name] for name, one in stats.items()),
        )

    def _take_parts(self, *, wait: bool = True) -> None:
        """Takes in what replicas have said of unfinished responses, once all have answered unless `wait` is False."""
        self._parts += [part for _, parts in self._part_polls.answers() for part in parts]
        if self._parts and not (wait and self._part_polls.awaited()):
            wanted = {key for request in self._unfinished() for key in request.keys}
            self._partials.take([part for part in self._parts if part.key in wanted])  # others were judged meanwhile
            self._parts = []

    def _unfinished(self) -> Iterator[RolloutRequest]:
        """What is sampled, judged, or waits for either."""
        yield from self._waiting
        yield from (work.request for work in (*self._sampling.values(), *self._judging.values(), *self._unjudged))

    def _ask_for_parts(self) -> None:
        """Asks every replica what it has of the responses that it works on, beyond what is known."""
        keys: dict[str, list[TrajectoryKey]] = {}
        for work in self._sampling.values():
            keys.setdefault(work.actor, []).extend(work.request.keys)
        for name, of_replica in keys.items():
            member = self._samplers.member(name)
            if member is not None and member.ready:
                known = self._partials.known(of_replica)
                self._part_polls.ask(name, partial(member.handle.partial_responses.remote, known))

    def _look_at_replicas(self) -> None:
        """Takes in what those say that hold requests, and replaces who makes no progress."""
        busy = {work.actor for work in self._sampling.values()}
        members = {name: member for name in busy if (member := self._samplers.member(name))}
        for name, stats in self._hang_detector.look({name: one.handle for name, one in members.items() if one.ready}):
            if name not in self._answered:  # else its answer, which came after the look was asked for, knows better
                self._leaves_room(name, stats.num_finished_early)
        self._answered.clear()
        for name in self._hang_detector.hanging(members):
            self._give_up(name)

    def _give_up(self, name: str) -> None:
        """Replaces a replica that hangs; what it was asked is asked again."""
        timeout_s = self._pipeline.replica_timeout_s
        cause = NoProgressError(f"no progress for {timeout_s:g} s (failures.replica_timeout_s)")
        self._samplers.replace(name, cause)
        for status in [status for status, work in self._sampling.items() if work.actor == name]:
            self._return(self._sampling.pop(status).request, cause)

    def _started(self, name: str, reference: ray.ObjectRef) -> None:
        pool = next((pool for pool in (self._samplers, self._verifiers) if reference in pool.starting()), None)
        if pool is None:  # replaced, or asked again, by what was handled just before
            return
        if pool.settle(name, joins=pool is self._samplers) and pool is self._samplers:
            self._admission.ask(name)

    def _sampled(self, work: _Work, status: ray.ObjectRef) -> None:
        self._lighten(self._samplers, work)
        try:
            answer: GenerationStatus = ray.get(status)
        except ray.exceptions.RayError as error:
            if not is_death(error):
                problem = work.request.problem.id
                raise RunError(f"{work.actor} failed on problem {problem}: {self._samplers.cause(error)}") from error
            self._samplers.replace(work.actor, error)
            self._return(work.request, error)
        else:
            self._hang_detector.alive(work.actor)
            self._answered.add(work.actor)
            self._leaves_room(work.actor, answer.num_finished_early)
            self._unjudged.append(work)

    def _judged(self, work: _Work, reference: ray.ObjectRef) -> None:
        self._lighten(self._verifiers, work)
        try:
            rows = ray.get(reference)
        except ray.exceptions.RayError as error:
            if _is_lost(error):  # with the replica that held the rollouts
                self._return(work.request, error)
            elif is_death(error):
                self._verifiers.replace(work.actor, error)
                self._unjudged.appendleft(work)
            else:
                raise RunError(f"{work.actor} failed: {self._verifiers.cause(error)}") from error
        else:
            self._on_rows(rows)
            self._partials.forget(work.request.keys)
            following = self._follow_up(work.request)
            if following is not None:
                self._waiting.append(following)

    def _dispatch_judging(self) -> None:
        """Hands rollouts to the least-loaded verifier; verification never holds sampling back."""
        while self._unjudged:
            name = least_loaded(self._verifiers.loads(), weight=0, limit=sys.maxsize)
            member = self._verifiers.member(name) if name else None
            if member is None:
                return
            work = replace(self._unjudged.popleft(), actor=member.name)
            member.load += work.weight
            judge = member.handle.judge.options(name=f"{self._name}: judge")
            self._judging[judge.remote(work.rollouts)] = work

    def _return(self, request: RolloutRequest, cause: BaseException) -> None:
        """Puts a lost request back, to go on from its tokens; one that keeps losing its replica is named instead."""
        self._take_parts(wait=False)
        self._attempts[request.problem.id] += not _is_blameless(cause)
        if self._attempts[request.problem.id] >= self._pipeline.max_attempts:
            raise RunError(
                f"problem {request.problem.id} was lost {self._pipeline.max_attempts} times with a dying replica "
                f"(failures.max_prompt_attempts): {self._samplers.cause(cause)}"
            ) from cause
        self._waiting.append(request)

    def _leaves_room(self, name: str, num_done: int) -> None:
        """Takes in how many responses of unfinished requests a replica has finished."""
        member = self._samplers.member(name)
        if member is not None:
            member.num_done = min(num_done, member.load)

    @staticmethod
    def _lighten(pool: ActorPool, work: _Work) -> None:
        member = pool.member(work.actor)
        if member is not None:
            member.load -= work.weight
            member.num_done = min(member.num_done, member.load)


def _is_lost(error: ray.exceptions.RayError) -> bool:
    """Whether the rollouts that a verifier was given are gone."""
    lost = ray.exceptions.ObjectLostError
    return isinstance(error, lost) or isinstance(getattr(error, "cause", None), lost)


def _is_blameless(cause: BaseException) -> bool:
    """Whether a request was lost in a way that says nothing against it: with a node, or with rollouts it had made."""
    lost = isinstance(cause, ray.exceptions.RayError) and _is_lost(cause)
    return lost or is_node_loss(cause) or isinstance(cause, ray.exceptions.ActorUnavailableError)
