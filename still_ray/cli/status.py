"""`status`: where a run stands, read from its directory alone; or which runs go on at a cluster, asked of Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from still_ray.cli.console.progress import print_note
from still_ray.cli.console.tables import result_console, stage_table
from still_ray.facts import RunState, state_to_json, summary_to_json
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import present_state, read_summary
from still_ray.types import InputError

if TYPE_CHECKING:
    from still_ray.actors.monitoring.status_board import RunStatus

STALE_AFTER_S = 60.0
"""A status this old is shown with its age: its driver may wait for something long, or be stuck."""


def status(run_dir: str | None, address: str | None, *, as_json: bool) -> None:
    """Prints how one run stands, or all that go on at a cluster.

    Args:
        run_dir: The run's directory; or
        address: the cluster's address.
        as_json: For programs.

    Raises:
        InputError: Not exactly one of the two is given, or there is nothing there.
    """
    if (run_dir is None) == (address is None):
        raise InputError("status: give either RUN_DIR or --address ADDRESS (HOST:PORT, ray://HOST:PORT, or auto)")
    if run_dir is not None:
        print_status(run_dir, as_json=as_json)
        return
    from still_ray.actors.monitoring.status_board import read_statuses

    assert address is not None
    statuses = read_statuses(address)
    if as_json:
        print(json.dumps([asdict(one) for one in statuses], indent=2))  # noqa: T201 - the command's result
    else:
        print_runs(statuses)


def print_status(run_dir: str, *, as_json: bool) -> None:
    """Prints state and accuracies of a run.

    Raises:
        InputError: The folder holds no run.
    """
    directory = RunDirectory(run_dir)
    state = present_state(directory, print_note)
    if state is None:
        raise InputError(f"{run_dir}: holds no run (no state.json); give the folder that --run-dir named")
    lines = read_summary(directory)
    if as_json:
        print(json.dumps({**state_to_json(state), "stages": [summary_to_json(line) for line in lines]}, indent=2))  # noqa: T201 - the command's result
        return
    console = result_console()
    what = f"rehearsal on fakes, {state.status}" if state.rehearsal else state.status
    beside = f" beside {state.beside}" if state.beside else ""
    at = f"stage {state.stage}{beside}, round {state.round}, policy version {state.policy_version}"
    console.print(f"{what}: {at if state.stage else 'before its first stage'}, {state.updated_at}", markup=False)
    for line in _about_its_end(state):
        console.print(line, markup=False)
    console.print(stage_table(lines))
    if weak := [line.name for line in lines if line.weak_sync]:
        console.print(f"weak proof of the weight sync: {', '.join(weak)} (see the report)", markup=False)


def _about_its_end(state: RunState) -> Iterator[str]:
    """Why a run ended that is not complete, and how it goes on."""
    if state.status == "killed":
        yield "its process ended without a word: killed, or its machine was lost"
    if state.cause:
        yield f"cause: {state.cause}"
    if state.status in ("interrupted", "failed", "killed") and state.command:
        yield f"resume with: {state.command}"


def print_runs(statuses: Sequence[RunStatus]) -> None:
    """Prints a few lines for each run that goes on at a cluster."""
    console = result_console()
    if not statuses:
        console.print("no run goes on at this cluster")
    for one in statuses:
        table = Table(title=one.name, title_justify="left", show_header=False)
        for name, value in _facts(one, now=time.time()).items():
            table.add_row(name, value)
        console.print(table)


def _facts(one: RunStatus, *, now: float) -> Mapping[str, str]:
    """The lines of one run, for a person."""
    age = now - one.updated_at
    progress = f"{one.done:g}/{one.total:g}" if one.total else "starting"
    lines = {
        "run directory": one.run_dir,
        "stage": f"{one.stage}, round {one.round}: {one.activity}" if one.stage else "starting",
        "at present": one.doing,
        "progress": ", ".join([progress, *(f"{name} {value}" for name, value in one.facts.items())]),
        "beside it": one.beside,
        "policy version": str(one.policy_version),
        **{f"{kind}s": f"{p.ready} of {p.wanted} up" for kind, p in one.pools.items()},
        "replaced": ", ".join(
            f"{kind}s: {p.num_died} died, {p.num_lost} lost with a node" for kind, p in one.pools.items()
        ),
        "last note": one.note,
        "dashboard": one.dashboard,
        "running for": f"{(now - one.started_at) / 60:.0f} min"
        + (f"; last sign of life {age:.0f} s ago" if age > STALE_AFTER_S else ""),
    }
    return {name: value for name, value in lines.items() if value}
