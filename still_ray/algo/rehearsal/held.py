"""What the actors of a rehearsal held at its moments, and whether that is what the recipe asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from still_ray.algo.placement import resolve
from still_ray.algo.planning.bundles import PLACEMENTS, bundles_of, lends_devices
from still_ray.algo.planning.cluster import NodeType
from still_ray.algo.rehearsal.machines import Machine
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Held:
    """What one actor holds.

    Attributes:
        role: "sampler", "trainer" or "verifier".
        name: The actor's name.
        node_id: The Ray node that it is on.
        cpus: CPUs that it asked for.
        gpus: GPUs that it asked for.
    """

    role: str
    name: str
    node_id: str
    cpus: float
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen of the cluster at one moment.

    Attributes:
        stage: Name of the stage.
        activity: "explore", "explored", "train" or "evaluate".
        held: What was held.
        machines: The machines by node id, the head first.
    """

    stage: str
    activity: str
    held: tuple[Held, ...]
    machines: Mapping[str, Machine] = field(hash=False)

    def of(self, role: str) -> list[Held]:
        """What the actors of a role held."""
        return [one for one in self.held if one.role == role]


def misplaced(recipe: Recipe, observations: Sequence[Observation], *, has_gpus: bool) -> list[str]:
    """What was held otherwise than the recipe says: one line each, none twice.

    Args:
        recipe: The rehearsed recipe.
        observations: What was seen.
        has_gpus: Whether the machines have GPUs.
    """
    settled = resolve(recipe, has_gpus=has_gpus)
    asked = {bundle.role: bundle for bundle in bundles_of(settled)}
    found: dict[str, None] = {}
    for observation in observations:
        where = f"{observation.stage}, {observation.activity}"
        for one in observation.held:
            bundle = asked[one.role]
            if (one.cpus, one.gpus) != (bundle.cpus, bundle.gpus):
                text = f"{one.name} holds {one.cpus:g} CPUs and {one.gpus:g} GPUs instead of {bundle.cpus:g} and "
                found[f"{text}{bundle.gpus:g}"] = None
            machine = observation.machines.get(one.node_id)
            if machine is not None and not _node_type(machine).satisfies(bundle.selector):
                found[f"{one.name} is on {machine.name}, whose labels are {dict(machine.labels)}"] = None
        wrong = (*_overfull(observation), *_out_of_turn(settled, observation))
        found.update(dict.fromkeys(f"{where}: {text}" for text in wrong))
    return list(found)


def _node_type(machine: Machine) -> NodeType:
    return NodeType(name=machine.name, count=1, cpus=machine.cpus, gpus=machine.gpus, labels=machine.labels)


def _overfull(observation: Observation) -> Iterator[str]:
    for node_id, machine in observation.machines.items():
        cpus = sum(one.cpus for one in observation.held if one.node_id == node_id)
        gpus = sum(one.gpus for one in observation.held if one.node_id == node_id)
        if cpus > machine.cpus or gpus > machine.gpus:
            yield f"{machine.name} holds {cpus:g} of {machine.cpus:g} CPUs and {gpus:g} of {machine.gpus:g} GPUs"


def _out_of_turn(recipe: ResolvedRecipe, observation: Observation) -> Iterator[str]:
    """Numbers of actors that the activity does not go with."""
    samplers, ranks = len(observation.of("sampler")), len(observation.of("trainer"))
    takes_turns = PLACEMENTS[recipe.placement].takes_turns
    if observation.activity == "train":
        if ranks != recipe.trainer.num_workers:
            yield f"{ranks} of {recipe.trainer.num_workers} trainer ranks are up"
        if takes_turns and samplers:
            yield f"{samplers} replicas hold devices while the trainer works"
        if lends_devices(recipe):
            yield from _beside_no_replica(observation)
    elif takes_turns and ranks:
        yield f"{ranks} trainer ranks hold devices while replicas sample"


def _beside_no_replica(observation: Observation) -> Iterator[str]:
    """Ranks that lie on a machine whose replicas hold fewer GPUs than there are ranks."""
    lent = Counter[str]()
    for one in observation.of("sampler"):
        lent[one.node_id] += int(one.gpus)
    for node_id, count in Counter(one.node_id for one in observation.of("trainer")).items():
        if count > lent[node_id] and node_id in observation.machines:
            yield f"{count} ranks on {observation.machines[node_id].name}, whose replicas hold {lent[node_id]} GPUs"


def holdings(observations: Sequence[Observation], activity: str) -> dict[str, str]:
    """What each machine held when an activity was last looked at, by the machine's name, e.g. "2 sampler (8 GPUs)"."""
    observation = next((one for one in reversed(observations) if one.activity == activity), None)
    if observation is None:
        return {}
    texts = {}
    for node_id, machine in observation.machines.items():
        here = [one for one in observation.held if one.node_id == node_id]
        counts, gpus = Counter(one.role for one in here), sum(one.gpus for one in here)
        text = ", ".join(f"{count} {role}" for role, count in sorted(counts.items()))
        texts[machine.name] = f"{text} ({gpus:g} GPUs)" if gpus else text or "nothing"
    return texts
