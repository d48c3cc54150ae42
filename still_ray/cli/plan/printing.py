"""How a plan is printed: tables for people, JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from still_ray.algo.planning.budget import Speed, StageCost
from still_ray.algo.planning.findings import Finding, Part, size_text, sizes_text, total_bytes
from still_ray.algo.planning.plan import Machines, Plan
from still_ray.algo.planning.workload import Workload
from still_ray.cli.console.tables import result_console


def plan_as_json(
    plan: Plan, findings: Sequence[Finding], machines: Machines, workload: Workload, speed: Speed
) -> dict[str, Any]:
    """Every number of a plan, sizes in bytes, each with its source."""
    return {
        "fits": plan.fits,
        "findings": [asdict(finding) for finding in findings],
        "model": asdict(plan.shape) | {"num_parameters": plan.shape.num_parameters},
        "machines": asdict(machines),
        "trainer": {name: asdict(memory) | {"peak_bytes": memory.peak_bytes} for name, memory in plan.trainer.items()},
        "sampler": asdict(plan.sampler) | {"num_sequences": plan.sampler.num_sequences},
        "host": [asdict(part) for part in plan.host],
        "disk": [asdict(part) for part in plan.disk],
        "placement": [{"node": name, "roles": list(roles)} for name, roles in plan.placement.nodes],
        "stages": [asdict(cost.work) | {"device_hours": cost.device_hours, "hours": cost.hours} for cost in plan.costs],
        "decided": plan.decided,
        "assumptions": asdict(workload) | asdict(speed),
    }


def print_plan(plan: Plan, findings: Sequence[Finding], machines: Machines, workload: Workload, speed: Speed) -> None:
    """Prints the tables of a plan and its findings."""
    console = result_console()
    console.print(f"{plan.shape.num_parameters:,} parameters ({plan.shape.family})", markup=False)
    if plan.decided:
        console.print(f"decided: {sizes_text(plan.decided)}", markup=False)
    for table in (
        *(_parts_table(f"One trainer rank, {name}", memory.parts) for name, memory in _distinct(plan)),
        _sampler_table(plan),
        _parts_table("Host memory of the fullest machine", plan.host),
        _parts_table("Shared storage", plan.disk),
        _placement_table(plan, machines),
        _stages_table(plan.costs, workload, speed, plan),
    ):
        console.print(table)
    for finding in findings:
        console.print(f"{finding.severity}: {finding.key}: {finding.text}", markup=False)
    console.print("fits" if plan.fits else "does not fit", markup=False)


def _distinct(plan: Plan) -> Iterable[tuple[str, Any]]:
    """The training stages whose memory differs, stages with the same one named together."""
    names: dict[Any, list[str]] = {}
    for name, memory in plan.trainer.items():
        names.setdefault(memory, []).append(name)
    return ((", ".join(shared), memory) for memory, shared in names.items())


def _parts_table(title: str, parts: Sequence[Part]) -> Table:
    table = Table(title=f"{title}: {size_text(total_bytes(parts))}", title_justify="left")
    for name, justify in (("what", "left"), ("size", "right"), ("how", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for part in parts:
        table.add_row(part.name, size_text(part.num_bytes), part.source)
    return table


def _sampler_table(plan: Plan) -> Table:
    memory = plan.sampler
    table = _parts_table("One device of a replica, KV cache left out", memory.parts)
    per_token = f"{memory.kv_bytes_per_token:,} B a token in blocks of {memory.block_tokens}"
    room = f"{memory.num_sequences:,} sequences of {memory.sequence_tokens:,} tokens at once"
    table.add_row("KV cache", size_text(max(0, memory.kv_bytes)), f"{per_token}: {room}")
    return table


def _placement_table(plan: Plan, machines: Machines) -> Table:
    gpus: Mapping[str, float] = {node.name: node.gpus for node in machines.nodes}
    table = Table(title="Placement", title_justify="left")
    for name in ("machines", "GPUs of each", "holding"):
        table.add_column(name, justify="left" if name == "holding" else "right")
    held = Counter((name, _roles(roles)) for name, roles in plan.placement.nodes)
    for (name, roles), count in held.items():
        table.add_row(f"{count} x {name}", f"{gpus[name]:g}", roles)
    return table


def _roles(roles: Iterable[str]) -> str:
    return ", ".join(f"{count} {role}" for role, count in Counter(roles).items()) or "nothing"


def _stages_table(costs: Sequence[StageCost], workload: Workload, speed: Speed, plan: Plan) -> Table:
    total = sum(cost.device_hours for cost in costs)
    assumed = f"MFU {speed.mfu:g} of {speed.device_tflops:g} TFLOP/s, {speed.tokens_per_s(plan.shape):,.0f} tokens/s "
    assumed += f"of a sampler device, {workload.solve_rate:g} of problems solved; all assumptions"
    table = Table(title=f"Device-hours: {total:,.1f}", title_justify="left", caption=assumed, caption_justify="left")
    for name in ("stage", "rollouts", "sampled tokens", "rows", "steps", "trained tokens", "device-hours", "hours"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for cost in costs:
        work = cost.work
        numbers = (work.num_rollouts, work.sampled_tokens, work.num_rows, work.num_steps, work.trained_tokens)
        cells = [f"{number:,}" if number else "" for number in numbers]
        table.add_row(work.name, *cells, f"{cost.device_hours:,.2f}", f"{cost.hours:,.2f}")
    return table
