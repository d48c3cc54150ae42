"""A whole run on declared machines, with fakes where engines and trainers would be.

It leaves a run directory like any other and a record of what was seen; a watchdog ends it when nothing happens.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from still_ray.actors.rehearsal.cluster_state import pending
from still_ray.actors.rehearsal.device_log import device_name, read_device_logs
from still_ray.actors.rehearsal.fault_injector import Death, FaultInjector
from still_ray.actors.rehearsal.launcher import RehearsalLauncher, Script
from still_ray.actors.rehearsal.virtual_cluster import MachineTime, virtual_cluster
from still_ray.actors.session import RunInputs, Session
from still_ray.algo.rehearsal.device_time import DeviceSpan, DevicesSeen, devices_seen
from still_ray.algo.rehearsal.faults import FaultPlan
from still_ray.algo.rehearsal.held import Observation
from still_ray.algo.rehearsal.machines import Machine
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.driver.ports import NO_REPORTER, Progress, Reporter
from still_ray.store.run_directory import RunDirectory
from still_ray.types import RunError

DEADLINE_S: Final = 180.0
"""Longest time without any progress. Source: ours, many times what a start of all actors takes on two cores."""


@dataclass(frozen=True, kw_only=True)
class RehearsalRun:
    """What was seen.

    Attributes:
        deaths: What was killed.
        observations: What was held, at the moments that count.
        replaced: What was launched in the place of which replica or verifier, by name.
        num_rebuilt: How often a trainer group was built again.
        devices: What the declared GPUs were busy with.
        machines_s: Seconds that the start of the machines took.
        run_s: Seconds that the run took.
    """

    deaths: tuple[Death, ...]
    observations: tuple[Observation, ...]
    replaced: Mapping[str, str]
    num_rebuilt: int
    devices: DevicesSeen
    machines_s: float
    run_s: float


def rehearse(
    inputs: RunInputs,
    directory: RunDirectory,
    machines: Sequence[Machine],
    plan: FaultPlan,
    *,
    answers: Mapping[str, str],
    progress: Progress,
    reporter: Reporter = NO_REPORTER,
) -> RehearsalRun:
    """Runs a recipe to its end on machines that are only declared.

    Args:
        inputs: The recipe at rehearsal size, and its files.
        directory: The run directory, empty.
        machines: The head first.
        plan: What shall die.
        answers: Reference answer of every problem by question, for the fakes.
        progress: Where a person watches.
        reporter: Told when a stage is complete.

    Raises:
        RunError: The run failed, or nothing happened for too long.
    """
    began = time.monotonic()
    with virtual_cluster(machines) as cluster:
        started = time.monotonic()
        progress.noted(f"{len(machines)} declared machines are up after {started - began:.0f} s")
        injector = FaultInjector(progress, cluster, plan)
        device_logs = directory.logs / "devices"
        device_logs.mkdir(parents=True)

        def launcher_of(recipe: ResolvedRecipe) -> RehearsalLauncher:
            script = Script(answers=answers, rebuilt=injector.rebuilt, device_logs=str(device_logs.resolve()))
            return RehearsalLauncher(recipe, script)

        with _watched(injector), Session(directory, launcher_of=launcher_of) as session:
            session.run(inputs, directory, injector, is_rehearsal=True, reporter=reporter)
        ended = time.monotonic()
        cluster.wait()  # a machine that was taken away may still be on its way back
        seen = devices_seen(
            read_device_logs(device_logs),
            _held(cluster.times, injector.observations, began=started, ended=ended),
            stages=injector.stage_starts,
        )
        return RehearsalRun(
            deaths=tuple(injector.deaths),
            observations=tuple(injector.observations),
            replaced=injector.replaced,
            num_rebuilt=injector.num_rebuilt,
            devices=seen,
            machines_s=started - began,
            run_s=time.monotonic() - started,
        )


def _held(
    times: Sequence[MachineTime], observations: Sequence[Observation], *, began: float, ended: float
) -> list[DeviceSpan]:
    """When each GPU was there of the machines on which an actor was ever seen; the others are not needed."""
    used = {one.node_id for observation in observations for one in observation.held}
    names = {machine.name for seen in observations for node_id, machine in seen.machines.items() if node_id in used}
    return [
        DeviceSpan(
            device=device_name(one.node_id, index),
            begin_s=max(began, one.begin_s),
            end_s=ended if one.end_s is None else min(ended, one.end_s),
        )
        for one in times
        if one.machine.name in names
        for index in range(int(one.machine.gpus))
    ]


@contextmanager
def _watched(injector: FaultInjector) -> Iterator[None]:
    """Ends a run in which nothing happens any more, with what it waits for."""
    ended = threading.Event()
    waits_for: list[str] = []

    def watch() -> None:
        while not ended.wait(1.0):
            if time.monotonic() - injector.last_sign_s > DEADLINE_S:
                waits_for.append("; ".join(pending()) or "no actor or placement group")
                _thread.interrupt_main()
                return

    injector.last_sign_s = time.monotonic()
    watchdog = threading.Thread(target=watch, name="watchdog", daemon=True)
    watchdog.start()
    try:
        yield
    except KeyboardInterrupt:
        if not waits_for:
            raise
        stage = injector.stage or "the start"
        raise RunError(f"{stage}: nothing happened for {DEADLINE_S:.0f} s; waiting for room: {waits_for[0]}") from None
    finally:
        ended.set()
        watchdog.join()
