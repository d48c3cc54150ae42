"""How a plan is printed: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from still_ray.algo.planning.budget import RunCost, Speed
from still_ray.algo.planning.findings import Finding, Part, size_text, sizes_text, total_bytes
from still_ray.algo.planning.plan import Machines, Plan
from still_ray.algo.planning.suggest import Split
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
        "traffic": {name: asdict(traffic) for name, traffic in plan.traffic.items()},
        "sampler": asdict(plan.sampler) | {"num_sequences": plan.sampler.num_sequences},
        "host": [asdict(part) for part in plan.host],
        "disk": [asdict(part) for part in plan.disk],
        "placement": [{"node": name, "roles": list(roles)} for name, roles in plan.placement.nodes],
        "stages": [
            asdict(cost.work) | {"device_hours": cost.device_hours, "hours": cost.hours} for cost in plan.cost.stages
        ],
        "cost": cost_as_json(plan.cost),
        "decided": plan.decided,
        "assumptions": asdict(workload) | asdict(speed),
    }


def cost_as_json(cost: RunCost) -> dict[str, Any]:
    """What a run takes and holds, times in hours."""
    return {
        "hours": cost.hours,
        "sampling_hours": cost.hours_of("sampler"),
        "training_hours": cost.hours_of("trainer"),
        "waiting_hours": cost.waiting_hours,
        "overlapped_hours": cost.overlapped_hours,
        "waits": [asdict(wait) for wait in cost.waits],
        "held_devices": cost.held_devices,
        "held_device_hours": cost.held_hours,
        "work_device_hours": cost.work_hours,
        "idle_share": cost.idle_share,
        "price_per_gpu_hour": cost.price,
        "money": cost.money,
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
        _stages_table(workload, speed, plan),
        _cost_table(plan.cost),
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


def _stages_table(workload: Workload, speed: Speed, plan: Plan) -> Table:
    assumed = f"MFU {speed.mfu:g} of {speed.device_tflops:g} TFLOP/s, {speed.tokens_per_s(plan.shape):,.0f} tokens/s "
    assumed += f"of a sampler device, {workload.solve_rate:g} of problems solved; all assumptions. Rollouts of "
    assumed += "explore.adaptive: expected if problems are equally hard, the most for this solve rate. Of a step each "
    assumed += "rank receives weights that are gathered and gradients that are reduced, in every pass"
    title = f"Device-hours of work: {plan.cost.work_hours:,.1f}"
    table = Table(title=title, title_justify="left", caption=assumed, caption_justify="left")
    columns = ("stage", "rollouts", "sampled tokens", "rows", "steps", "passes a step", "received a step")
    for name in (*columns, "trained tokens", "device-hours", "hours"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for cost in plan.cost.stages:
        work, traffic = cost.work, plan.traffic.get(cost.work.name)
        passes, received = (traffic.num_passes, size_text(traffic.received_bytes)) if traffic else (0, "")
        numbers = (work.expected_rollouts, work.sampled_tokens, work.num_rows, work.num_steps, passes)
        cells = [f"{number:,}" if number else "" for number in numbers]
        cells += [received, f"{work.trained_tokens:,}" if work.trained_tokens else ""]
        table.add_row(work.name, *cells, f"{cost.device_hours:,.2f}", f"{cost.hours:,.2f}")
    return table


def _cost_table(cost: RunCost) -> Table:
    """Wall time by what takes it, and what is held and paid in the meantime."""
    table = Table(title=f"Held device-hours: {held_text(cost)}", title_justify="left")
    for name, justify in (("what", "left"), ("hours", "right"), ("how", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_row("sampling", f"{cost.hours_of('sampler'):,.2f}", "stages above, on the devices of all replicas")
    table.add_row("training", f"{cost.hours_of('trainer'):,.2f}", "stages above, on a device for each rank")
    if cost.overlapped_hours:
        text = "explore.overlap: of sampling and training, what goes on side by side"
        table.add_row("less", f"{cost.overlapped_hours:,.2f}", text)
    for wait in cost.waits:
        table.add_row(wait.name, f"{wait.hours:,.2f}", f"{wait.times} x {wait.seconds:,.0f} s: {wait.source}")
    table.add_row("all", f"{cost.hours:,.2f}", f"{cost.held_devices:g} devices held from beginning to end")
    return table


def held_text(cost: RunCost) -> str:
    """In one line: devices, hours, their product, the work in it, and the money if there is a price."""
    text = f"{cost.held_devices:g} devices x {cost.hours:,.1f} h = {cost.held_hours:,.1f}, of which "
    text += f"{cost.work_hours:,.1f} of work; {cost.idle_share:.0%} idle"
    if cost.money is None:
        return text
    return f"{text}; {cost.money:,.2f} at {cost.price:g} a GPU-hour"


def set_values(changes: Mapping[str, Any]) -> list[str]:
    """Changes as `--set` takes them, e.g. "placement=shared"."""
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


def suggestions_as_json(splits: Sequence[Split], own: Plan) -> dict[str, Any]:
    """The best splits of the machines, the first one best."""
    return {
        "own": {"fits": own.fits, "cost": cost_as_json(own.cost)},
        "suggestions": [{"set": set_values(split.changes), "cost": cost_as_json(split.plan.cost)} for split in splits],
    }


def print_suggestions(splits: Sequence[Split], own: Plan) -> None:
    """Prints the best splits of the machines beside the recipe's own, and what to set for the first."""
    console = result_console()
    assumed = (
        "One rate of a sampler device and one of a rank, whatever the split; a new trainer.offload: cpu goes last, "
    )
    assumed += "since its cost in time is not known. What a run learns from is not changed."
    title = "Splits of the machines, the fastest first"
    table = Table(title=title, title_justify="left", caption=assumed, caption_justify="left")
    columns = (
        "hours",
        "held devices",
        "held device-hours",
        "of work",
        *(["money"] if own.cost.money is not None else []),
    )
    for name in ("set", *columns):
        table.add_column(name, justify="left" if name == "set" else "right")
    table.add_row("the recipe as it is" + ("" if own.fits else " (does not fit)"), *_figures(own.cost))
    for split in splits:
        if split.changes:
            table.add_row("\n".join(set_values(split.changes)), *_figures(split.plan.cost))
    console.print(table)
    best = splits[0]
    if best.changes:
        lines = [f"--set {value}" for value in set_values(best.changes)]
        console.print("the fastest:", *lines, sep="\n", markup=False)
    else:
        console.print("the recipe as it is is the fastest", markup=False)


def _figures(cost: RunCost) -> list[str]:
    figures = [f"{cost.hours:,.1f}", f"{cost.held_devices:g}", f"{cost.held_hours:,.1f}"]
    figures.append(f"{1 - cost.idle_share:.0%}")
    return figures if cost.money is None else [*figures, f"{cost.money:,.2f}"]
