"""What makes a report be made, and what it learns of faults: the driver's word after each stage, events of losses."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from still_ray.actors.monitoring.run_monitor import RunMonitor
from still_ray.actors.monitoring.status_board import RunStatus
from still_ray.actors.pool.actor_pool import PoolCounts
from still_ray.actors.training.mailbox import Mailbox
from still_ray.algo.stages import Stage, plan_stages
from still_ray.driver.ports import TrainOrder
from still_ray.driver.rounds import Driver
from still_ray.types import Event, TrainProgress
from tests.fakes import BACKBONE, FakeWorld, make_recipe

RECIPE = make_recipe(rounds=[{"method": "sft"}], explore={"num_problems": 2, "samples_per_problem": 2})
STAGES = plan_stages(RECIPE)


class Reporter:
    """Notes what was complete whenever it was told to look."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world
        self.seen: list[tuple[int, str]] = []

    def refresh(self) -> None:
        """See `still_ray.driver.ports.Reporter`."""
        state = self._world.disk.state
        self.seen.append((len(self._world.disk.finished), state[0] if state else ""))


def test_the_report_is_refreshed_after_each_stage_and_at_the_end() -> None:
    world = FakeWorld(RECIPE)
    reporter = Reporter(world)
    Driver(RECIPE, replace(world.ports(), reporter=reporter), backbone=BACKBONE).run()
    assert [number for number, _ in reporter.seen] == [1, 2, 3, 4, 4]
    assert reporter.seen[-1][1] == "complete"


def test_a_start_and_a_resumption_are_events_with_what_was_complete() -> None:
    world = FakeWorld(RECIPE)
    starts = []
    for _ in range(2):
        Driver(RECIPE, world.ports(), backbone=BACKBONE).run()
        starts += [event.value for event in world.progress.events if event.name == "run/started"]
    assert starts == [0.0, 4.0]


class Inner:
    """A `Progress` that keeps its events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def stage_started(self, stage: Stage, title: str) -> None:
        """Nothing."""

    def doing(self, what: str) -> None:
        pass

    def advanced(self, done: float, total: float, facts: object, *, beside: Stage | None = None) -> None:
        """Nothing."""

    def trained(self, stage: Stage, report: TrainProgress) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """Keeps it."""
        self.events.append(event)

    def noted(self, text: str) -> None:
        """Nothing."""


def test_lost_actors_are_events_of_their_stage() -> None:
    inner = Inner()
    status = RunStatus(name="test", run_dir="/runs/x", dashboard="", started_at=1.0, updated_at=1.0)
    watch = RunMonitor(inner, status, lambda _: None, clock=lambda: 1.0)
    watch.stage_started(STAGES[2], "explore")
    watch.pool("replica", PoolCounts(wanted=4, ready=4))
    watch.pool("replica", PoolCounts(wanted=4, ready=1, num_died=1, num_lost=2))
    watch.pool("replica", PoolCounts(wanted=4, ready=4, num_died=1, num_lost=2))
    found = [(event.name, event.value, event.labels) for event in inner.events]
    labels = {"stage": "001-explore", "pool": "replica"}
    assert found == [
        ("fault/actors_lost", 1.0, {**labels, "cause": "died"}),
        ("fault/actors_lost", 2.0, {**labels, "cause": "node"}),
    ]


def test_a_trainer_group_that_was_built_again_is_an_event_of_its_stage() -> None:
    order = TrainOrder(
        stage=STAGES[1],
        method="sft",
        settings=RECIPE.imitate,
        init_model="m",
        data_path="d",
        checkpoint="c",
        seed=1,
    )

    async def story() -> tuple[Event, ...]:
        mailbox = Mailbox("test")
        await mailbox.register("first")
        await mailbox.post(order)
        assert (await mailbox.news()).events == ()
        await mailbox.register("second")
        return (await mailbox.news()).events

    assert asyncio.run(story()) == (Event(name="fault/trainer_rebuilt", value=1.0, labels={"stage": "000-imitate"}),)
