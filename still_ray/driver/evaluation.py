"""One greedy evaluation: every held-out problem once, with progress and a summary."""

from __future__ import annotations

from collections.abc import Sequence

from still_ray.algo.evaluation import EvaluationSummary, summarize
from still_ray.driver.ports import EvaluateOrder, Explorer, Progress
from still_ray.driver.tally import Tally
from still_ray.types import Trajectory


def evaluate(
    explorer: Explorer, order: EvaluateOrder, progress: Progress
) -> tuple[list[Trajectory], EvaluationSummary]:
    """Evaluates the policy that the replicas serve.

    Returns:
        The judged responses, sorted by key, and their summary.
    """
    tally = Tally(total=0, already=0)

    def on_rows(rows: Sequence[Trajectory], total: int) -> None:
        tally.total = total
        tally.add(rows)
        progress.advanced(tally.done, tally.total, tally.facts())

    rows = sorted(explorer.evaluate(order, on_rows=on_rows), key=lambda row: row.key)
    summary = summarize(rows)
    progress.noted(accuracy_line(summary))
    return rows, summary


def accuracy_line(summary: EvaluationSummary) -> str:
    """The summary in one line for a person."""
    low, high = summary.ci95
    return (
        f"accuracy {summary.accuracy:.1%} [{low:.1%}, {high:.1%}] on {summary.num_problems} problems, "
        f"mean thought {summary.mean_thought_tokens:.0f} tokens, truncated {summary.truncation_rate:.1%}"
    )
