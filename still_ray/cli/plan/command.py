"""`plan`: what a recipe needs and whether it fits, without downloading or starting anything."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from still_ray.algo.mix import num_mixed
from still_ray.algo.placement import AtHand, Hardware, resolve
from still_ray.algo.planning.budget import CPU_SAMPLER_TOKENS_PER_S, CPU_TFLOPS, GPU_TFLOPS, Speed
from still_ray.algo.planning.bundles import bundles_of
from still_ray.algo.planning.cluster import NodeType
from still_ray.algo.planning.findings import GIB, Finding
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.plan import Machines, Plan, plan_recipe, refusal
from still_ray.algo.planning.suggest import Changes, Split, suggest
from still_ray.algo.planning.workload import ASSUMED, Workload
from still_ray.cli.plan.printing import (
    plan_as_json,
    print_plan,
    print_suggestions,
    set_values,
    suggestions_as_json,
)
from still_ray.cli.preflight.library_arguments import check_library_arguments
from still_ray.cli.preflight.machines import cluster_fleet, measured_machine
from still_ray.cli.preflight.models import check_scopes, shape_of
from still_ray.config import DemonstrationsConfig, Recipe, load_recipe
from still_ray.config.loading import read_recipe, recipe_from
from still_ray.types import InputError

ASSUMED_CPUS_PER_DEVICE: Final = 12
"""Source: ours, an assumption: clouds offer 12 to 26."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the command line says; see its help."""

    recipe: Path
    cluster: Path | None
    nodes: int
    devices_per_node: int
    device_memory_gib: float
    host_memory_gib: float | None
    cpus_per_node: int | None
    disk_gib: float | None
    num_demonstrations: int | None
    num_problems: int | None
    mean_tokens: int | None
    device_tflops: float | None
    mfu: float
    sampler_tokens_per_s: float | None
    solve_rate: float
    price_per_gpu_hour: float | None
    suggest: bool
    overrides: tuple[str, ...]
    as_json: bool


def plan(options: PlanOptions) -> None:
    """Prints the plan of a recipe.

    Raises:
        InputError: The recipe or a file is wrong, or the recipe does not fit: the first reason, and the other keys.
    """
    recipe = load_recipe(options.recipe, options.overrides)
    check_scopes(recipe, recipe.prompt.format)
    shape = shape_of(recipe.model.path)
    workload, notes = _workload(recipe, options)
    machines = _machines(recipe, shape, options)
    if options.price_per_gpu_hour is not None and not machines.has_gpus:
        raise InputError("--price-per-gpu-hour: no machine has a GPU; give --devices-per-node or --cluster")
    speed = _speed(options, has_gpus=machines.has_gpus)
    unasked = check_library_arguments(recipe, has_gpus=machines.has_gpus)
    for key, _, text in (note.partition(": ") for note in unasked):
        notes.append(Finding(severity="warning", key=key, text=text))
    made = plan_recipe(recipe, shape, machines, workload, speed)
    if options.suggest:
        _suggest(
            recipe, machines, made, options, lambda changed: plan_recipe(changed, shape, machines, workload, speed)
        )
        return
    findings = (*made.findings, *notes)
    if options.as_json:
        values = plan_as_json(made, findings, machines, workload, speed)
        sys.stdout.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    else:
        print_plan(made, findings, machines, workload, speed)
    if not made.fits:
        raise InputError(f"{options.recipe}: {refusal(findings)}")


def _suggest(
    recipe: Recipe, machines: Machines, own: Plan, options: PlanOptions, plan_of: Callable[[Recipe], Plan]
) -> None:
    """Prints the best splits of the machines, and what to set for the first of them.

    Raises:
        InputError: There are no GPUs to split, or no split fits: what refuses the nearest one.
    """
    if not machines.has_gpus:
        raise InputError("--suggest: no machine has a GPU to split; give --devices-per-node or --cluster")
    raw = read_recipe(options.recipe)

    def planned(changes: Changes) -> Plan | None:
        overrides = (*options.overrides, *set_values(changes))
        try:
            return plan_of(recipe_from(raw, overrides, origin=str(options.recipe)))
        except InputError:
            return None

    settled = resolve(recipe, has_gpus=True, at_hand=AtHand(shape=own.shape, machine=machines.single))
    found = suggest(settled, own.shape.num_kv_heads, machines.nodes, planned)
    if not found.splits:
        nearest = found.nearest or Split(changes={}, plan=own)
        tried = " ".join(set_values(nearest.changes)) or "the recipe as it is"
        raise InputError(
            f"{options.recipe}: no split of these machines fits; {tried}: {refusal(nearest.plan.findings)}"
        )
    if options.as_json:
        sys.stdout.write(json.dumps(suggestions_as_json(found.splits, own), indent=2, ensure_ascii=False) + "\n")
    else:
        print_suggestions(found.splits, own)


def _speed(options: PlanOptions, *, has_gpus: bool) -> Speed:
    return Speed(
        device_tflops=options.device_tflops or (GPU_TFLOPS if has_gpus else CPU_TFLOPS),
        mfu=options.mfu,
        sampler_tokens_per_s=options.sampler_tokens_per_s or (None if has_gpus else CPU_SAMPLER_TOKENS_PER_S),
    )


def _workload(recipe: Recipe, options: PlanOptions) -> tuple[Workload, list[Finding]]:
    """Rows of the recipe's files, counted where they are here, and what had to be assumed."""
    from still_ray.formats.demonstrations import validate_demonstrations
    from still_ray.formats.problems import validate_problems

    data, notes = recipe.data, list[Finding]()

    def rows(key: str, path: str | None, given: int | None, assumed: int, count: Callable[[str], int]) -> int:
        if given is not None or path is None:
            return given if given is not None else assumed
        if Path(path).exists():
            return count(path)
        text = f"{path} is not here: planned with {assumed:,} rows"
        notes.append(Finding(severity="warning", key=f"data.{key}", text=text))
        return assumed

    def shown(place: int, source: DemonstrationsConfig) -> int:
        key = f"demonstrations.{place}.path" if isinstance(data.demonstrations, tuple) else "demonstrations"
        count = rows(
            key,
            source.path,
            None,
            ASSUMED.num_demonstrations,
            lambda path: validate_demonstrations(path, general=source.general).count,
        )
        return num_mixed(count, source.weight)

    def problems(path: str) -> int:
        return validate_problems(path, own=recipe.verifier.custom).count

    world, given = data.tiny_world, options.num_demonstrations
    if given is None:
        mixed = sum(shown(place, source) for place, source in enumerate(data.sources))
        given = world.num_demonstrations if world else mixed
    assumed = (world.num_problems, world.num_test) if world else (ASSUMED.num_problems, ASSUMED.num_test)
    workload = Workload(
        num_demonstrations=given,
        num_problems=rows("problems", data.problems, options.num_problems, assumed[0], problems),
        num_test=rows("test", data.test, None, assumed[1], problems),
        mean_tokens=options.mean_tokens,
        solve_rate=options.solve_rate,
        num_general=rows("forgetting.path", data.forgetting.path, None, ASSUMED.num_test, problems)
        if data.forgetting
        else 0,
    )
    return workload, notes


def _machines(recipe: Recipe, shape: ModelShape, options: PlanOptions) -> Machines:
    machines = Machines(
        nodes=(),
        device_bytes=int(options.device_memory_gib * GIB),
        disk_bytes=None if options.disk_gib is None else int(options.disk_gib * GIB),
        price=options.price_per_gpu_hour,
    )
    if options.cluster:
        fleet = cluster_fleet(options.cluster)
        return replace(machines, nodes=fleet.nodes, max_nodes=fleet.max_nodes)
    single = _single(options) if options.nodes == 1 else None
    node = _declared(options) if options.devices_per_node else _this(recipe, shape, single, options)
    return replace(machines, nodes=(node,), single=single)


def _memory_bytes(options: PlanOptions) -> int | None:
    return None if options.host_memory_gib is None else int(options.host_memory_gib * GIB)


def _single(options: PlanOptions) -> Hardware:
    """The only machine, as a run on it would find it: as the options say, and without devices this one."""
    if not options.devices_per_node:
        here = replace(measured_machine(), num_gpus=0, device_bytes=None)
        memory_bytes = _memory_bytes(options) or here.memory_bytes
        return replace(here, cores=options.cpus_per_node or here.cores, memory_bytes=memory_bytes)
    return Hardware(
        cores=int(_declared(options).cpus),
        memory_bytes=_memory_bytes(options),
        num_gpus=options.devices_per_node,
        device_bytes=int(options.device_memory_gib * GIB),
    )


def _declared(options: PlanOptions) -> NodeType:
    """Machines with devices, as the options describe them."""
    return NodeType(
        name="node",
        count=options.nodes,
        cpus=options.cpus_per_node or ASSUMED_CPUS_PER_DEVICE * options.devices_per_node,
        gpus=options.devices_per_node,
        memory_bytes=_memory_bytes(options),
    )


def _this(recipe: Recipe, shape: ModelShape, single: Hardware | None, options: PlanOptions) -> NodeType:
    """This machine, or several like it; actors share the cores of a single one."""
    here = single or measured_machine()
    settled = resolve(recipe, has_gpus=False, at_hand=AtHand(shape=shape, machine=single))
    asked = sum(bundle.cpus for bundle in bundles_of(settled))
    return NodeType(
        name="this machine",
        count=options.nodes,
        cpus=options.cpus_per_node or max(here.cores, asked),
        gpus=0,
        memory_bytes=_memory_bytes(options) or here.memory_bytes,
    )
