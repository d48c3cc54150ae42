"""What a stage will train on, in which order, and how many tokens each step holds: decided before a model is loaded."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from still_ray.algo.optimizer_steps import num_steps
from still_ray.trainer.data import TokenizedRow, TrainingRows
from still_ray.trainer.job import TrainJob
from still_ray.trainer.schedule import Batch, batches_of, packed, row_order
from still_ray.types import InputError


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """The rows of a job and their order.

    Attributes:
        rows: Rows short enough to train on.
        order: Row indices as `schedule.row_order` gives them.
        tokens_of_step: Tokens of each optimizer step over all ranks, padding left out.
    """

    rows: TrainingRows
    order: list[int]
    tokens_of_step: list[int]

    @property
    def num_rows(self) -> int:
        """Rows of one pass."""
        return len(self.rows.lengths)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the stage."""
        return len(self.tokens_of_step)

    @property
    def digest(self) -> str:
        """Tells whether two ranks would do the same steps on rows of the same lengths."""
        facts = repr((self.rows.lengths, self.rows.num_tokens, self.order))
        return hashlib.sha256(facts.encode()).hexdigest()


def batches_of_steps(job: TrainJob, plan: TrainPlan, *, num_ranks: int) -> list[list[Batch]]:
    """For each optimizer step the batches of all ranks: those of one forward pass, then those of the next.

    Args:
        job: Says how many rows or tokens a batch has.
        plan: The rows and their order.
        num_ranks: Ranks with rows of their own.
    """
    settings, tokens = job.settings, job.settings.micro_batch_tokens
    starts = range(0, len(plan.order), settings.global_batch_size)
    steps = [plan.order[start : start + settings.global_batch_size] for start in starts]
    if tokens is None:
        return [batches_of(rows, settings.per_device_batch_size) for rows in steps]
    lengths = [job.num_sequences * length for length in plan.rows.lengths]
    return [packed(rows, lengths, most_tokens=tokens, num_ranks=num_ranks) for rows in steps]


def plan_of(job: TrainJob, data: Iterable[TokenizedRow]) -> TrainPlan:
    """Leaves out what is too long and orders the rest.

    Raises:
        InputError: The rows are not of the job's method, or none is short enough to train on.
    """
    settings, rows = job.settings, _rows(job, data)
    if not rows.lengths:
        raise InputError(
            f"{job.name}: no row to train on; {rows.num_skipped} rows exceed max_length ({settings.longest})"
        )
    batch = settings.global_batch_size
    order = row_order(rows.lengths, epochs=settings.epochs, global_batch_size=batch, seed=job.seed)
    steps = num_steps(num_rows=len(rows.lengths), epochs=settings.epochs, global_batch_size=batch)
    tokens = [sum(rows.num_tokens[row] for row in order[i * batch : (i + 1) * batch]) for i in range(steps)]
    return TrainPlan(rows=rows, order=order, tokens_of_step=tokens)


def _rows(job: TrainJob, data: Iterable[TokenizedRow]) -> TrainingRows:
    given, training = list(data), job.training
    if not all(isinstance(row, training.row) for row in given):
        raise InputError(f"{job.name}: {job.method} needs {training.row_name}")
    return training.training_rows(given)
