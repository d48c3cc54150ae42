"""One round of sampling: what is not stored yet of its problems is sampled, judged and stored once."""

from __future__ import annotations

from collections.abc import Sequence

from still_ray.algo.exploration import Allotment, allotment_of
from still_ray.driver.ports import ExploreOrder, Ports, SamplingLoad
from still_ray.driver.progress_counter import ProgressCounter
from still_ray.types import Event, Trajectory, Verdict


def explore(ports: Ports, order: ExploreOrder) -> Allotment:
    """Samples a round to its end, with progress; the replicas serve the policy already.

    Args:
        ports: The world.
        order: Which problems, and how.

    Returns:
        What was allotted to each problem.

    Raises:
        RunError: A failure policy was exhausted.
    """
    number = order.stage.round
    stored = ports.store.explored(number)
    allotment = allotment_of(
        order.config, order.problem_ids, stored, num_tokens=lambda: ports.store.sampled_tokens(number)
    )
    expected = len(order.problem_ids) * order.config.samples_per_problem
    num_correct = sum(verdict is Verdict.CORRECT for verdict in stored.values())
    partials = ports.store.partial_responses(number)
    counter = ProgressCounter(
        total=expected - allotment.num_saved,
        already=len(stored),
        already_correct=num_correct,
        brought={part.key: part.num_tokens for part in partials.all()},
    )

    def commit(rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        fresh = ports.store.commit(number, rows)
        for row in fresh:
            allotment.record(row.key, row.verdict, num_tokens=row.num_tokens)
        counter.total = expected - allotment.num_saved
        _show(ports, order, counter, fresh)
        return fresh

    def on_load(load: SamplingLoad) -> None:
        counter.loaded(load)
        _show(ports, order, counter, ())

    if order.problem_ids:
        ports.explorer.explore(order, allotment=allotment, commit=commit, on_load=on_load, partials=partials)
    ports.progress.doing("storing the round")
    ports.store.close_round(number)
    return allotment


def _show(ports: Ports, order: ExploreOrder, counter: ProgressCounter, fresh: Sequence[Trajectory]) -> None:
    counter.add(fresh)
    ports.progress.advanced(counter.done, counter.total, counter.facts())
    for name, value in counter.events():
        ports.progress.event(Event(name=f"explore/{name}", value=value, labels={"stage": order.stage.name}))
