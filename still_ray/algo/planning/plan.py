"""The plan of a recipe on given machines: every check, every memory, every cost, and the findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from still_ray.algo.placement import AtHand, Hardware, decided, resolve
from still_ray.algo.planning.budget import DeviceCounts, RunCost, Speed, stage_costs, waits
from still_ray.algo.planning.bundles import (
    PLACEMENTS,
    Bundle,
    Placement,
    bundles_of,
    held_devices,
    phases_of,
    place,
    releases_samplers,
)
from still_ray.algo.planning.cluster import NodeType, total_gpus
from still_ray.algo.planning.communication import exchanged_bytes, passes_per_step, received_bytes
from still_ray.algo.planning.disk import disk_parts
from still_ray.algo.planning.findings import Finding, Part, total_bytes
from still_ray.algo.planning.fit import (
    OVERHEAD,
    adapter_findings,
    argument_findings,
    device_findings,
    disk_findings,
    driver_part,
    exchange_findings,
    host_findings,
    host_parts,
    length_findings,
    parallel_findings,
    parts_of_machine,
    sampler_findings,
    sequence_findings,
    sleep_findings,
    trainer_findings,
    transport_findings,
)
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.movement import movement_findings
from still_ray.algo.planning.placement_fit import placement_findings
from still_ray.algo.planning.sampler_memory import SamplerMemory, replica_memory
from still_ray.algo.planning.trainer_memory import TrainerMemory, num_trained, trainer_memories
from still_ray.algo.planning.workload import Workload, stage_works
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where a recipe is to run.

    Attributes:
        nodes: The machines.
        device_bytes: Memory of one GPU.
        disk_bytes: Free shared storage; None: not checked.
        price: Of a GPU-hour; None: not known.
        max_nodes: How many machines there can be at once; None: all.
        single: What the only one of them offers, by which a run there would settle its sizes; None: there are several.
    """

    nodes: tuple[NodeType, ...]
    device_bytes: int
    disk_bytes: int | None = None
    price: float | None = None
    max_nodes: int | None = None
    single: Hardware | None = None

    @property
    def has_gpus(self) -> bool:
        """Whether any machine has GPUs."""
        return total_gpus(self.nodes) > 0

    @property
    def starts_with_gpus(self) -> bool:
        """Whether there are GPUs before anything asks for them: what "auto" sees when a run starts."""
        return any(node.gpus and node.num_first for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class StepTraffic:
    """What an optimizer step of a stage asks of the links between ranks.

    Attributes:
        num_passes: Forward passes of each rank, rows being of mean length.
        received_bytes: What each rank receives.
    """

    num_passes: int
    received_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe needs.

    Attributes:
        shape: The model.
        trainer: Memory of one rank in each training stage, by the stage's dotted name.
        traffic: Of each training stage, by the same name.
        sampler: Memory of one device of a replica.
        host: Host memory of the fullest machine.
        disk: Shared storage.
        bundles: Every actor.
        placement: Where they went.
        cost: Time of every stage, and what the run holds and costs.
        decided: Sizes that the recipe leaves to model and machine, by dotted key.
        findings: What does not fit, errors first.
    """

    shape: ModelShape
    trainer: dict[str, TrainerMemory]
    traffic: dict[str, StepTraffic]
    sampler: SamplerMemory
    host: tuple[Part, ...]
    disk: tuple[Part, ...]
    bundles: tuple[Bundle, ...]
    placement: Placement
    cost: RunCost
    decided: dict[str, Any]
    findings: tuple[Finding, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing stands in the way."""
        return all(finding.severity != "error" for finding in self.findings)


_ORDER: Final = ("error", "warning")


def plan_recipe(recipe: Recipe, shape: ModelShape, machines: Machines, workload: Workload, speed: Speed) -> Plan:
    """Plans a recipe; nothing is read, downloaded or started.

    Args:
        recipe: A validated recipe.
        shape: The backbone's shape.
        machines: Where it is to run.
        workload: Sizes of its files and lengths of its responses.
        speed: Assumptions for the device-hours.
    """
    at_hand = AtHand(shape=shape, machine=machines.single)
    asked, recipe = recipe, resolve(recipe, has_gpus=machines.has_gpus, at_hand=at_hand)
    precision = recipe.trainer.precision
    trainer = trainer_memories(recipe, shape)
    sampler = replica_memory(recipe, shape, device_bytes=machines.device_bytes)
    works = stage_works(recipe, workload)
    bundles = bundles_of(recipe)
    placement = place(bundles, machines.nodes, phases=phases_of(recipe), max_nodes=machines.max_nodes)
    disk = disk_parts(recipe, works, shape=shape, width=precision.width)
    # the head may be the fullest machine
    host = (*host_parts(recipe, shape, placement, trainer, sampler), driver_part(works))
    findings = [
        *length_findings(recipe, shape),
        *parallel_findings(recipe, shape),
        *sequence_findings(recipe, shape),
        *exchange_findings(recipe, shape, machines.nodes),
        *argument_findings(recipe),
        *adapter_findings(recipe, shape),
        *device_findings(asked, has_gpus=machines.has_gpus, starts_with_gpus=machines.starts_with_gpus),
        *placement_findings(bundles, machines.nodes, placement),
        *sleep_findings(recipe, machines.device_bytes),
        *(trainer_findings(recipe, trainer, machines.device_bytes) if recipe.trainer.use_gpu else ()),
        *(sampler_findings(recipe, shape, sampler) if shape.has_plain_cache else ()),
        *transport_findings(recipe, shape, machines.device_bytes),
        *host_findings(recipe, host, machines.nodes),
        *disk_findings(recipe, disk, machines.disk_bytes),
        *movement_findings(recipe, works, shape, bf16=precision.bf16),
    ]
    devices = DeviceCounts(
        sampling=sum(max(bundle.gpus, 1.0) for bundle in bundles if bundle.role == "sampler"),
        training=recipe.trainer.num_workers,
        held=held_devices(bundles, machines.nodes, placement, phases_of(recipe)),
    )
    return Plan(
        shape=shape,
        trainer=trainer,
        traffic=_traffic(recipe, shape, workload),
        sampler=sampler,
        host=host,
        disk=disk,
        bundles=bundles,
        placement=placement,
        cost=replace(run_cost(recipe, shape, workload, speed, devices), price=machines.price),
        decided=decided(asked, recipe),
        findings=tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity))),
    )


def _traffic(recipe: ResolvedRecipe, shape: ModelShape, workload: Workload) -> dict[str, StepTraffic]:
    trainer, found = recipe.trainer, {}
    for step in recipe.steps:
        num_sequences, row_tokens = step.method.num_sequences, workload.tokens_of(step.settings.longest)
        num_passes = passes_per_step(
            step.settings,
            num_sequences=num_sequences,
            num_ranks=trainer.data_parallel_size,
            row_tokens=row_tokens,
        )
        num_bytes = received_bytes(
            shape.num_parameters,
            num_ranks=trainer.num_workers,
            micro_batches=num_passes,
            zero_stage=trainer.zero_stage,
            parameter_bytes=trainer.precision.width,
            num_trained=num_trained(shape, trainer),
        )
        num_bytes += exchanged_bytes(
            shape,
            num_tokens=step.settings.global_batch_size // trainer.data_parallel_size * num_sequences * int(row_tokens),
            sequence_parallel_size=trainer.sequence_parallel_size,
            activation_bytes=trainer.precision.width,
            recomputes=trainer.gradient_checkpointing,
        )
        found[step.where] = StepTraffic(num_passes=num_passes, received_bytes=num_bytes)
    return found


def run_cost(
    recipe: ResolvedRecipe, shape: ModelShape, workload: Workload, speed: Speed, devices: DeviceCounts
) -> RunCost:
    """Time and device-hours of a run.

    Args:
        recipe: The recipe, settled.
        shape: The model.
        workload: Sizes of its files and lengths of its responses.
        speed: The assumptions.
        devices: That work, and that are held.
    """
    works = stage_works(recipe, workload)
    mean_tokens = workload.tokens_of(recipe.imitate.longest)
    return RunCost(
        stages=stage_costs(
            works, shape, speed, devices, mean_tokens=mean_tokens, is_frozen=recipe.trainer.lora is not None
        ),
        waits=waits(
            works,
            phases_of(recipe),
            released=releases_samplers(recipe),
            sleeps=PLACEMENTS[recipe.placement].sleeps,
            model_bytes=recipe.trainer.precision.width * shape.num_parameters,
            on_gpu=recipe.sampler.on_gpu,
        ),
        held_devices=devices.held,
    )


def misfits(recipe: ResolvedRecipe, at_hand: AtHand, *, trains: bool = True) -> list[Finding]:
    """What makes a run on a single machine fail for certain; nothing is said of what is not known.

    Args:
        recipe: The recipe, settled by what is at hand.
        at_hand: The model and the machine.
        trains: Whether there is a trainer beside the samplers.
    """
    shape, machine = at_hand.shape, at_hand.machine
    if shape is None:
        return []
    found = [*length_findings(recipe, shape, trains=trains), *parallel_findings(recipe, shape)]
    found += [*adapter_findings(recipe, shape), *sequence_findings(recipe, shape)] if trains else []
    device_bytes = machine.device_bytes or 0 if machine else 0
    if shape.has_plain_cache and (device_bytes or not recipe.sampler.on_gpu):
        found += sampler_findings(recipe, shape, replica_memory(recipe, shape, device_bytes=device_bytes))
    if machine is not None:
        found += _machine_findings(recipe, shape, machine, trains=trains)
    return [finding for finding in found if finding.severity == "error"]


def _machine_findings(
    recipe: ResolvedRecipe, shape: ModelShape, machine: Hardware, *, trains: bool
) -> Iterator[Finding]:
    bundles = [bundle for bundle in bundles_of(recipe) if trains or bundle.role != "trainer"]
    cpus = max(machine.cores, sum(bundle.cpus for bundle in bundles))  # actors share the cores of a single machine
    node = NodeType(name="this machine", count=1, cpus=cpus, gpus=machine.num_gpus, memory_bytes=machine.memory_bytes)
    phases = phases_of(recipe) if trains else (frozenset({"sampler", "verifier", "reader"}),)
    yield from placement_findings(bundles, (node,), place(bundles, (node,), phases=phases))
    if trains:
        yield from sleep_findings(recipe, machine.device_bytes or 0)
    if trains and recipe.trainer.use_gpu and machine.device_bytes:
        yield from trainer_findings(recipe, trainer_memories(recipe, shape), machine.device_bytes)
    if machine.memory_bytes is not None:
        parts = parts_of_machine(recipe, shape, device_bytes=machine.device_bytes or 0, trains=trains)
        own = total_bytes([part for part in parts if part.name not in OVERHEAD])
        if 2 * own > total_bytes(parts):  # else what tips it is an estimate, and the run may well fit
            yield from host_findings(recipe, parts, (node,))


def refusal(findings: Sequence[Finding]) -> str:
    """One line of the errors among findings: the first reason, and the keys of the others."""
    first, *others = [finding for finding in findings if finding.severity == "error"]
    keys = ", ".join(key for key in dict.fromkeys(finding.key for finding in others) if key != first.key)
    return f"{first.key}: {first.text}" + (f"; look at {keys} too" if keys else "")
