"""How a rehearsal is reported: tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from still_ray.algo.planning.budget import RunCost
from still_ray.algo.rehearsal.device_time import SAMPLING, TRAINING, DevicesSeen
from still_ray.algo.rehearsal.held import holdings
from still_ray.algo.stages import plan_stages
from still_ray.cli.console.tables import result_console
from still_ray.cli.rehearse.checks import Check, survivals
from still_ray.facts import ExploreFacts, SkippedFacts, StageFacts, TrainFacts
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore

if TYPE_CHECKING:
    from still_ray.actors.rehearsal.run import RehearsalRun
    from still_ray.cli.rehearse.data import RehearsalData
    from still_ray.cli.rehearse.rehearsal import Rehearsal

ACTIVITIES = {"explore": "while exploring", "train": "while training", "evaluate": "while evaluating"}


def rehearsal_as_json(
    rehearsal: Rehearsal,
    data: RehearsalData,
    directory: RunDirectory,
    rehearsed: RehearsalRun,
    checks: Sequence[Check],
    *,
    planned: RunCost | None,
) -> dict[str, Any]:
    """Everything that a rehearsal says."""
    plan = plan_stages(rehearsal.recipe)
    return {
        "rehearsal": True,
        "recipe": rehearsal.recipe.name,
        "run_dir": str(directory.root),
        "holds": all(check.holds for check in checks),
        "machines": [asdict(machine) | {"labels": dict(machine.labels)} for machine in rehearsal.machines],
        "changes": [asdict(one) for one in rehearsal.cuts],
        "data": list(data.notes),
        "stages": [_stage(facts) for facts in RunStore(directory, plan).completed().values()],
        "faults": [
            {"what": what, "survived": survived, "how": how}
            for what, survived, how in survivals(rehearsal.recipe, rehearsed)
        ],
        "faults_left_out": list(rehearsal.plan.left_out),
        "placement": {activity: holdings(rehearsed.observations, activity) for activity in ACTIVITIES},
        "devices": _devices(rehearsed.devices, planned),
        "checks": [asdict(check) for check in checks],
        "seconds": {"machines": round(rehearsed.machines_s, 1), "run": round(rehearsed.run_s, 1)},
    }


def _devices(seen: DevicesSeen, planned: RunCost | None) -> dict[str, Any]:
    """Shares of the held device time by what devices did: on this machine's clock, and at the hours of a plan."""
    spent = seen.time
    shares = {kind: spent.share(seconds) for kind, seconds in spent.busy_s.items()}
    found = {
        "held": seen.num_held,
        "sampling": seen.num_sampling,
        "training": seen.num_training,
        "held_s": round(spent.held_s, 1),
        "rehearsed": {**shares, "idle": spent.share(spent.idle_s)},
        "planned": None,
    }
    if planned is not None and planned.held_hours:
        work = {SAMPLING: planned.work_hours_of("sampler"), TRAINING: planned.work_hours_of("trainer")}
        at_work = {kind: hours / planned.held_hours for kind, hours in work.items()}
        found["planned"] = {**at_work, "idle": planned.idle_share}
    return found


def _stage(facts: StageFacts) -> dict[str, Any]:
    parts = []
    if isinstance(facts, ExploreFacts):
        parts.append(f"{facts.num_rollouts} rollouts of {facts.num_problems} problems")
    if isinstance(facts, TrainFacts):
        parts.append(f"{facts.training.num_examples} rows, {facts.training.steps} steps")
    if isinstance(facts, SkippedFacts):
        parts.append(f"skipped: {facts.skipped}")
    if facts.evaluated is not None:
        parts.append(f"accuracy {facts.evaluated.accuracy:.0%}, invented")
    return {
        "name": facts.stage,
        "seconds": facts.seconds,
        "policy_version": facts.policy_version,
        "what": ", ".join(parts),
    }


def print_rehearsal(result: Mapping[str, Any]) -> None:
    """Prints the tables of a rehearsal."""
    console = result_console()
    console.print(f"Rehearsal of {result['recipe']}: engines and trainers were fakes", markup=False)
    for table in _tables(result):
        console.print(table)
    seconds = result["seconds"]
    console.print(
        f"{'holds' if result['holds'] else 'does not hold'}; machines up in {seconds['machines']:.0f} s, "
        f"run {seconds['run']:.0f} s; kept in {result['run_dir']}",
        markup=False,
    )


def _tables(result: Mapping[str, Any]) -> Iterable[Table]:
    yield _table(
        "Stages",
        ("stage", "policy", "time", "what"),
        (
            (one["name"], f"v{one['policy_version']}", f"{one['seconds']:.0f} s", one["what"])
            for one in result["stages"]
        ),
    )
    placement = result["placement"]
    yield _table(
        "Placement, when last looked at",
        ("machine", "offers", *ACTIVITIES.values()),
        (
            (
                machine["name"],
                _offer(machine),
                *(placement[activity].get(machine["name"], "") for activity in ACTIVITIES),
            )
            for machine in result["machines"]
        ),
    )
    if result["devices"]["held"]:
        yield _devices_table(result["devices"])
    if result["faults"] or result["faults_left_out"]:
        yield _table(
            "Faults",
            ("what", "survived", "how"),
            (
                *((one["what"], "yes" if one["survived"] else "NO", one["how"]) for one in result["faults"]),
                *((line.partition(": ")[0], "left out", line.partition(": ")[2]) for line in result["faults_left_out"]),
            ),
        )
    yield _table(
        "Checks",
        ("check", "holds", "numbers"),
        ((one["name"], "yes" if one["holds"] else "NO", one["detail"]) for one in result["checks"]),
    )


def _devices_table(devices: Mapping[str, Any]) -> Table:
    title = f"What {devices['held']:g} held GPUs did; {devices['sampling']:g} sampled, {devices['training']:g} trained"
    rehearsed, planned = devices["rehearsed"], devices["planned"] or {}
    rows = [
        (kind, f"{share:.1%}", f"{planned[kind]:.1%}" if kind in planned else "") for kind, share in rehearsed.items()
    ]
    busy = [f"{1 - each['idle']:.1%}" if each else "" for each in (rehearsed, planned)]
    table = _table(
        title,
        ("what", "share of the rehearsal's seconds", "share of the hours that plan counts"),
        [*rows, ("busy in all", *busy)],
    )
    table.caption = (
        "Seconds: of fakes that answer at once, so that starts of processes fill most of it. Hours: by plan's "
    )
    table.caption += "assumed rates and sizes, on as many GPUs as were seen at work; its waits count as idle."
    table.caption_justify = "left"
    return table


def _offer(machine: Mapping[str, Any]) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in machine["labels"].items())
    text = f"{machine['gpus']:g} GPUs, {machine['cpus']:g} CPUs"
    return f"{text}, {labels}" if labels else text


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table
