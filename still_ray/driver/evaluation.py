"""One evaluation: every held-out problem so many times, with progress and a summary."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from still_ray.algo.evaluation.summary import open_pairs, summarize
from still_ray.driver.ports import EvaluateOrder, Explorer, Progress, SamplingLoad
from still_ray.driver.progress_counter import ProgressCounter
from still_ray.facts import EvaluationFacts
from still_ray.types import Trajectory, TrajectoryKey, Verdict


class ResponseJournal(Protocol):
    """Where the judged responses of an evaluation are kept while it goes on."""

    def keys(self) -> Collection[TrajectoryKey]:
        """What is kept already."""
        ...

    def commit(self, rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """Takes responses in and returns those that were new."""
        ...

    def rows(self) -> Iterable[Trajectory]:
        """Everything that was taken in."""
        ...


class MemoryJournal:
    """A journal that forgets: a stage of a run that is killed evaluates again."""

    def __init__(self) -> None:
        """Starts empty."""
        self._rows: dict[TrajectoryKey, Trajectory] = {}

    def keys(self) -> Collection[TrajectoryKey]:
        """See `Journal`."""
        return self._rows.keys()

    def commit(self, rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """See `Journal`."""
        fresh = [row for row in rows if row.key not in self._rows]
        self._rows |= {row.key: row for row in fresh}
        return fresh

    def rows(self) -> Iterable[Trajectory]:
        """See `Journal`."""
        return self._rows.values()


def evaluate(
    explorer: Explorer, order: EvaluateOrder, progress: Progress, journal: ResponseJournal | None = None
) -> tuple[list[Trajectory], EvaluationFacts]:
    """Evaluates the policy that the replicas serve.

    Args:
        explorer: Samples and verifies.
        order: What is asked.
        progress: Where a person watches.
        journal: Keeps the responses, and what a killed evaluation left; None: memory.

    Returns:
        The judged responses, sorted by key, and their summary.
    """
    kept = MemoryJournal() if journal is None else journal
    already = [row.verdict is Verdict.CORRECT for row in kept.rows()]
    counter = ProgressCounter(total=0, already=len(already), already_correct=sum(already))

    def on_rows(rows: Sequence[Trajectory], total: int) -> None:
        counter.total = total
        if rows and (fresh := kept.commit(rows)):
            counter.add(fresh)
            progress.advanced(counter.done, counter.total, counter.facts())

    def on_load(load: SamplingLoad) -> None:
        counter.loaded(load)
        if counter.total:
            progress.advanced(counter.done, counter.total, counter.facts())

    explorer.evaluate(order, stored=kept.keys(), on_rows=on_rows, on_load=on_load)
    progress.doing("comparing answers")
    rows = sorted(kept.rows(), key=lambda row: row.key)
    pairs = open_pairs(rows)
    summary = summarize(rows, same=explorer.answer_equivalence(pairs) if pairs else ())
    progress.noted(f"{'general problems: ' if order.general else ''}{accuracy_line(summary)}")
    return rows, summary


def accuracy_line(summary: EvaluationFacts) -> str:
    """The summary in one line for a person."""
    low, high = summary.ci95
    samples = f" x {summary.num_samples} samples" if summary.num_samples > 1 else ""
    return (
        f"accuracy {summary.accuracy:.1%} [{low:.1%}, {high:.1%}] on {summary.num_problems} problems{samples}, "
        f"mean thought {summary.mean_thought_tokens:.0f} tokens, truncated {summary.truncation_rate:.1%}"
    )
