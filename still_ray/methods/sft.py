"""Supervised fine-tuning on demonstrations and, from round 1 on, on the trajectories that selection chooses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat

from pydantic import Field

from still_ray.algo.selection.select import (
    Demonstrated,
    Selection,
    demonstrated,
    distinct_demonstrations,
    select_trajectories,
)
from still_ray.config.methods import Expected, Method, Pool, Prepared, Request, RowSource
from still_ray.config.schema import SelectConfig, TrainingSection
from still_ray.types import Demonstration, TrainingExample, Trajectory, trajectory_id

TRAJECTORY = "trajectory"
"""`TrainingExample.source` of a row that was explored."""
OF_DATASET = "num_demonstrations/"
"""Of several files, each has a count with its name behind this."""


class SftConfig(TrainingSection):
    """Supervised fine-tuning on demonstrations, and on explored trajectories from round 1 on."""

    select: SelectConfig = Field(
        default_factory=SelectConfig, description="Choice of explored trajectories. Source: paper."
    )


class Sft(Method[SftConfig, TrainingExample]):
    """Supervised fine-tuning."""

    name = "sft"
    title = "SFT"
    settings = SftConfig
    record = TrainingExample
    table = "training_set.parquet"
    trainer = "still_ray.trainer.methods.sft:SftTraining"
    takes = "SFT takes correct responses"
    loss_text = "SFT: cross-entropy of thought and solution."
    needs_pool = False
    row_counts = {"num_demonstrations": "", "num_explored": ""}  # noqa: RUF012 - never changed
    copies = ("num_as_demonstrated", "num_as_earlier")
    main_settings = ("init", "select.strategy")
    source_columns = ("source", "source_id", "domain", "dataset")

    def prepare(self, pool: Pool, request: Request[SftConfig]) -> Prepared[TrainingExample]:
        """Demonstrations, then the chosen trajectories of all rounds so far; equal rows once."""
        if request.num_explored == 0:
            return Prepared(skipped="the pool is exhausted: every problem is solved, nothing new to learn from")
        settings = request.settings
        shown = demonstrated(pool.demonstrations(), settings.scope)
        selection = select_trajectories(
            pool.candidates(self.rounds(settings, request.explored)),
            settings.select,
            scope=settings.scope,
            shown=shown,
            seed=request.seed,
        )
        num_demonstrations = sum(shown.by_dataset.values())
        return Prepared(
            rows=training_examples(
                distinct_demonstrations(pool.demonstrations(), settings.scope), pool.trajectories(selection.keys)
            ),
            counts={
                "num_demonstrations": num_demonstrations,
                **{f"{OF_DATASET}{name}": number for name, number in shown.by_dataset.items() if name},
                "num_explored": len(selection.keys),
                "num_control_demonstrations": pool.num_left_out(),
                "num_equal_demonstrations": shown.num_equal,
                "num_as_demonstrated": selection.num_as_demonstrated,
                "num_as_earlier": selection.num_as_earlier,
                "num_correct": selection.num_correct,
                "num_unusable": selection.num_unusable,
                "num_often_solved": selection.num_often_solved,
                "num_not_chosen": selection.num_not_chosen,
            },
            note=_note(shown, selection),
        )

    def expected_rows(self, settings: SftConfig, expected: Expected) -> int:
        """Demonstrations, and what all rounds solved."""
        chosen = expected.num_solved_so_far * settings.select.max_per_problem
        return expected.num_demonstrations + min(chosen, settings.select.max_examples or chosen)

    def source(self, row: TrainingExample) -> RowSource:
        """A demonstration, or one trajectory."""
        if row.source == TRAJECTORY:
            return RowSource(ids=(row.source_id,), domain=row.domain)
        return RowSource(ids=(), demonstration=row.source_id, domain=row.domain, dataset=row.dataset)

    def texts(self, row: TrainingExample) -> tuple[str, ...]:
        """The turns before, question, thought and solution."""
        before = (turn.content for turn in row.turns)
        return ("\n".join((*before, row.question, row.thought, row.solution)),)


def _note(shown: Demonstrated, selection: Selection) -> str:
    """The counts in a line; those of the explored responses add up to the correct ones."""
    left_out = {
        "malformed or cut off": selection.num_unusable,
        "of problems that are often solved": selection.num_often_solved,
        "as copies": selection.num_as_demonstrated + selection.num_as_earlier,
        "by the strategy and its caps": selection.num_not_chosen,
    }
    reasons = ", ".join(f"{number} {reason}" for reason, number in left_out.items() if number)
    explored = f"{len(selection.keys)} explored" + (
        f" of {selection.num_correct} correct ones" + (f" ({reasons} are left out)" if reasons else "")
        if selection.num_correct
        else ""
    )
    copies = f"; {shown.num_equal} copies of demonstrations are left out" if shown.num_equal else ""
    demonstrations = f"{sum(shown.by_dataset.values())} demonstrations{_mix(shown.by_dataset)}"
    return f"training set: {demonstrations} + {explored}{copies}"


def training_examples(
    demonstrations: Iterable[Demonstration], trajectories: Iterable[Trajectory]
) -> Iterator[TrainingExample]:
    """Streams rows that name their source: demonstrations first, as often as they are learnt, then trajectories."""
    for shown in demonstrations:
        yield from repeat(_demonstrated(shown), shown.copies)
    yield from map(_explored, trajectories)


def _mix(by_dataset: Mapping[str, int]) -> str:
    """How many rows each of several files gives, in brackets."""
    named = ", ".join(f"{name} {number}" for name, number in by_dataset.items() if name)
    return f" ({named})" if named else ""


def _demonstrated(demonstration: Demonstration) -> TrainingExample:
    return TrainingExample(
        source="demonstration",
        source_id=demonstration.id,
        domain=demonstration.domain,
        question=demonstration.question,
        thought=demonstration.thought,
        solution=demonstration.solution,
        dataset=demonstration.dataset,
        general=demonstration.general,
        turns=demonstration.turns,
    )


def _explored(trajectory: Trajectory) -> TrainingExample:
    return TrainingExample(
        source=TRAJECTORY,
        source_id=trajectory_id(trajectory.key),
        domain=trajectory.domain,
        question=trajectory.question,
        thought=trajectory.thought,
        solution=trajectory.solution,
    )


SFT = Sft()
