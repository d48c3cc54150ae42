"""The injector: watches the driver's progress, looks at the cluster, and brings the planned deaths about."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from still_ray.actors.pool.actor_pool import replaced_names
from still_ray.actors.rehearsal.cluster_state import ActorSeen, actors_up, held_by
from still_ray.actors.rehearsal.virtual_cluster import VirtualCluster
from still_ray.algo.rehearsal.faults import Fault, FaultKind, FaultPlan
from still_ray.algo.rehearsal.held import Observation
from still_ray.algo.stages import Stage
from still_ray.driver.ports import Progress
from still_ray.types import TRAINER_REBUILT, Event, StageKind, TrainProgress

ROLES = {
    FaultKind.REPLICA: "sampler",
    FaultKind.VERIFIER: "verifier",
    FaultKind.RANK: "trainer",
    FaultKind.SLEEPER: "sampler",
}


@dataclass(frozen=True, kw_only=True)
class Death:
    """What was killed.

    Attributes:
        fault: As planned.
        victim: Name of the actor or the machine; "" if there was none to kill.
        lost: Names of the actors that went with it.
        num_observations: How many looks there were before it.
        names: Actors that were up before it.
    """

    fault: Fault
    victim: str
    lost: tuple[str, ...]
    num_observations: int
    names: frozenset[str]


class FaultInjector:
    """A `Progress` around another."""

    def __init__(self, inner: Progress, cluster: VirtualCluster, plan: FaultPlan) -> None:
        """Does nothing yet.

        Args:
            inner: Where the person watches.
            cluster: The declared machines.
            plan: What shall die.
        """
        self._inner = inner
        self._cluster = cluster
        self._due = list(plan.faults)
        self._stage: Stage | None = None
        self._seen: set[tuple[str, str]] = set()
        self.deaths: list[Death] = []
        self.observations: list[Observation] = []
        self.stage_starts: list[float] = []
        self.replaced: dict[str, str] = {}
        self.num_rebuilt = 0
        self.last_sign_s = time.monotonic()
        self._done = -1.0

    def stage_started(self, stage: Stage, title: str) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self._stage = stage
        self.last_sign_s = time.monotonic()
        self.stage_starts.append(self.last_sign_s)
        self._inner.stage_started(stage, title)

    def doing(self, what: str) -> None:
        """See `still_ray.driver.ports.Progress`; that something is waited for is no sign of progress."""
        self._inner.doing(what)

    def advanced(self, done: float, total: float, facts: Mapping[str, str], *, beside: Stage | None = None) -> None:
        """See `still_ray.driver.ports.Progress`; replicas that go on without an answer are no sign of progress."""
        if done != self._done:
            self._done, self.last_sign_s = done, time.monotonic()
        self._inner.advanced(done, total, facts, beside=beside)
        stage = beside or self._stage
        if stage is not None and stage.kind is StageKind.EXPLORE and total:
            self._look("explore", stage.name)
            self._bring_about(done / total, stage.name)

    def trained(self, stage: Stage, report: TrainProgress) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.last_sign_s = time.monotonic()
        self._inner.trained(stage, report)
        self._look("train", stage.name)
        self._bring_about(1.0, stage.name)

    def event(self, event: Event) -> None:
        """See `still_ray.driver.ports.Progress`."""
        self.last_sign_s = time.monotonic()
        self._inner.event(event)
        if event.name == "evaluate/accuracy":
            self._look("evaluate", self.stage)
        if event.name == "stage/seconds" and self._stage is not None and self._stage.kind is StageKind.EXPLORE:
            self._look("explored", self.stage)

    def noted(self, text: str) -> None:
        """See `still_ray.driver.ports.Progress`; a note that something is still waited for is no sign of progress."""
        if names := replaced_names(text):
            self.replaced |= [names]
        self._inner.noted(text)

    def rebuilt(self) -> None:
        """Takes in that the trainer group was built again."""
        self.num_rebuilt += 1
        self._inner.event(Event(name=TRAINER_REBUILT, value=1.0, labels={"stage": self.stage}))
        self.last_sign_s = time.monotonic()

    @property
    def stage(self) -> str:
        """Name of the present stage; "" before the first."""
        return self._stage.name if self._stage is not None else ""

    def _look(self, activity: str, stage: str) -> None:
        """Once for each stage and activity."""
        if (stage, activity) in self._seen:
            return
        self._seen.add((stage, activity))
        observation = Observation(
            stage=stage,
            activity=activity,
            held=held_by(actors_up()),
            machines=self._cluster.machine_ids(),
        )
        self.observations.append(observation)

    def _bring_about(self, done: float, stage: str) -> None:
        for fault in [fault for fault in self._due if fault.stage == stage and done >= fault.after]:
            self._due.remove(fault)
            up = actors_up()
            death = self._node_death(fault, up) if fault.kind is FaultKind.NODE else self._actor_death(fault, up)
            self.deaths.append(death)

    def _actor_death(self, fault: Fault, up: list[ActorSeen]) -> Death:
        """SIGKILL for one process; of the ranks, the last; of replicas that sleep, one of those beside ranks."""
        alike = [actor for actor in up if actor.role == ROLES[fault.kind]]
        if fault.kind is FaultKind.SLEEPER:
            machines = {actor.node_id for actor in up if actor.role == "trainer"}
            alike = [actor for actor in alike if actor.node_id in machines]
        victim = max(alike, key=lambda actor: actor.name, default=None)
        if victim is not None:
            self.noted(f"rehearsed fault: kill -9 of {victim.name} (process {victim.pid})")
            os.kill(victim.pid, signal.SIGKILL)
        return self._death(fault, victim.name if victim else "", up, lost=[victim] if victim else [])

    def _node_death(self, fault: Fault, up: list[ActorSeen]) -> Death:
        """The machine that holds a replica and least besides goes, and comes back."""
        _, *workers = self._cluster.machine_ids().items()
        machines = dict(workers)
        roles = {node_id: [actor.role for actor in up if actor.node_id == node_id] for node_id in machines}
        holding = [node_id for node_id, held in roles.items() if "sampler" in held]
        if not holding:
            return self._death(fault, "", up)
        victim = min(holding, key=lambda node_id: (roles[node_id].count("trainer"), roles[node_id].count("verifier")))
        lost = [actor for actor in up if actor.node_id == victim]
        held = ", ".join(sorted(actor.name for actor in lost))
        self.noted(f"rehearsed fault: {machines[victim].name} is gone, and with it {held}; it comes back")
        machine = self._cluster.kill(victim)
        self._cluster.add(machine)
        return self._death(fault, machine.name, up, lost=lost)

    def _death(self, fault: Fault, victim: str, up: list[ActorSeen], *, lost: Sequence[ActorSeen] = ()) -> Death:
        return Death(
            fault=fault,
            victim=victim,
            lost=tuple(actor.name for actor in lost),
            num_observations=len(self.observations),
            names=frozenset(actor.name for actor in up),
        )
