"""The plan of a recipe on given machines: every check, every memory, every cost, and the findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from still_ray.algo.placement import resolve
from still_ray.algo.planning.budget import Speed, StageCost, stage_costs
from still_ray.algo.planning.bundles import (
    Bundle,
    Placement,
    bundles_of,
    phases_of,
    place,
)
from still_ray.algo.planning.cluster import NodeType, total_gpus
from still_ray.algo.planning.disk import disk_parts
from still_ray.algo.planning.findings import Finding, Part
from still_ray.algo.planning.fit import (
    device_findings,
    disk_findings,
    driver_part,
    host_findings,
    host_parts,
    length_findings,
    parallel_findings,
    sampler_findings,
    trainer_findings,
    transport_findings,
)
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.movement import movement_findings
from still_ray.algo.planning.placement_fit import placement_findings
from still_ray.algo.planning.sampler_memory import SamplerMemory, cpu_sampler_memory, gpu_sampler_memory
from still_ray.algo.planning.trainer_memory import Batch, TrainerMemory, trainer_memory
from still_ray.algo.planning.workload import Workload, stage_works
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.config import Recipe
from still_ray.weight_sync.transports import transport_named


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where a recipe is to run.

    Attributes:
        nodes: The machines.
        device_bytes: Memory of one GPU.
        disk_bytes: Free shared storage; None: not checked.
        max_nodes: How many machines there can be at once; None: all.
    """

    nodes: tuple[NodeType, ...]
    device_bytes: int
    disk_bytes: int | None = None
    max_nodes: int | None = None

    @property
    def has_gpus(self) -> bool:
        """Whether any machine has GPUs."""
        return total_gpus(self.nodes) > 0

    @property
    def starts_with_gpus(self) -> bool:
        """Whether there are GPUs before anything asks for them: what "auto" sees when a run starts."""
        return any(node.gpus and node.num_first for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a recipe needs.

    Attributes:
        shape: The model.
        trainer: Memory of one rank in each training stage, by the stage's dotted name.
        sampler: Memory of one device of a replica.
        host: Host memory of the fullest machine.
        disk: Shared storage.
        bundles: Every actor.
        placement: Where they went.
        costs: Time of every stage.
        findings: What does not fit, errors first.
    """

    shape: ModelShape
    trainer: dict[str, TrainerMemory]
    sampler: SamplerMemory
    host: tuple[Part, ...]
    disk: tuple[Part, ...]
    bundles: tuple[Bundle, ...]
    placement: Placement
    costs: tuple[StageCost, ...]
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
    asked, recipe = recipe, resolve(recipe, has_gpus=machines.has_gpus)
    precision = recipe.trainer.precision
    trainer = trainer_memories(recipe, shape)
    sampler = sampler_memory(recipe, shape, machines)
    works = stage_works(recipe, workload)
    bundles = bundles_of(recipe)
    placement = place(bundles, machines.nodes, phases=phases_of(recipe), max_nodes=machines.max_nodes)
    disk = disk_parts(recipe, works, num_parameters=shape.num_parameters, width=precision.width)
    # the head may be the fullest machine
    host = (*host_parts(recipe, shape, placement, trainer, sampler), driver_part(works))
    findings = [
        *length_findings(recipe, shape),
        *parallel_findings(recipe, shape),
        *device_findings(asked, has_gpus=machines.has_gpus, starts_with_gpus=machines.starts_with_gpus),
        *placement_findings(bundles, machines.nodes, placement),
        *(trainer_findings(recipe, trainer, machines.device_bytes) if recipe.trainer.use_gpu else ()),
        *sampler_findings(recipe, shape, sampler),
        *transport_findings(recipe, shape, machines.device_bytes),
        *host_findings(recipe, host, machines.nodes),
        *disk_findings(recipe, disk, machines.disk_bytes),
        *movement_findings(recipe, works, bf16=precision.bf16),
    ]
    return Plan(
        shape=shape,
        trainer=trainer,
        sampler=sampler,
        host=host,
        disk=disk,
        bundles=bundles,
        placement=placement,
        costs=stage_costs(
            works,
            shape,
            speed,
            sampler_devices=sum(max(bundle.gpus, 1.0) for bundle in bundles if bundle.role == "sampler"),
            trainer_devices=recipe.trainer.num_workers,
            mean_tokens=workload.tokens_of(recipe.imitate.max_length),
        ),
        findings=tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity))),
    )


def trainer_memories(recipe: ResolvedRecipe, shape: ModelShape) -> dict[str, TrainerMemory]:
    """Memory of one rank in each training stage, by the stage's dotted name."""
    return {
        step.where: trainer_memory(
            shape,
            recipe.trainer,
            Batch(
                rows=step.settings.per_device_batch_size,
                tokens=step.settings.max_length,
                sequences_per_row=step.method.num_sequences,
            ),
            transport=transport_named(recipe.sync.transport),
        )
        for step in recipe.steps
    }


def sampler_memory(recipe: ResolvedRecipe, shape: ModelShape, machines: Machines) -> SamplerMemory:
    """Memory of one device of a replica, on a GPU or a CPU as the recipe's actors would choose."""
    length = recipe.model.max_length
    if not recipe.sampler.on_gpu:
        return cpu_sampler_memory(shape, recipe.sampler, max_length=length)
    return gpu_sampler_memory(shape, recipe.sampler, max_length=length, device_bytes=machines.device_bytes)
