"""What the reference of a preference loss says of the rows.

The reference is the model that a stage starts from, or another one. It is asked once, so that no second model is held:
the start model is the policy before its first step, another one is loaded and freed before the policy comes. A stage
that resumes finds the answers beside its state, because by then the policy has moved.

In bfloat16 the log-probability of a sequence depends on what shares its forward pass: the padding decides which kernels
run and in which order they add. So the reference is computed of the loss's own batches, row by row in the same places,
and the loss finds it by the rows of a batch. Then policy and reference differ by what was learnt and by nothing else.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from still_ray.trainer.ranks import from_first
from still_ray.trainer.schedule import Batch

Sums = tuple[tuple[float, float], ...]
"""For each row of a batch two summed log-probabilities, e.g. of the chosen and of the rejected completion."""
ReferenceTable = dict[Batch, Sums]


def kept_table(
    compute: Callable[[], ReferenceTable], batches: Sequence[Batch], *, reference: str, state_dir: Path | None
) -> ReferenceTable:
    """The table of a stage; collective. Rank 0 decides whether there is one already.

    Args:
        compute: Makes the table; collective.
        batches: Those of all ranks, a forward pass of them after the other.
        reference: Which model is asked; "" for the start model.
        state_dir: Where a resumable stage keeps the table; None for a stage that is not resumable.
    """
    path = None if state_dir is None else state_dir / "reference.json"
    stored = None if path is None else from_first(lambda: _read(path, batches, reference))
    if stored is not None:
        return stored
    table = compute()
    if path is not None:
        from_first(lambda: _write(path, table, reference))
    return table


def computed_table(batches: Sequence[Batch], sums_of: Callable[[Batch], Sums]) -> ReferenceTable:
    """The table, each batch by the rank that trains on it; passes with batches that have all been met are left out.

    With one row a batch that is one pass over the rows, however many epochs; with more, each epoch has other batches.

    Args:
        batches: Those of all ranks, a forward pass of them after the other.
        sums_of: Scores a batch by the reference; collective, called on every rank as often.
    """
    mine: ReferenceTable = {}
    for turn in new_turns(batches, dist.get_world_size()):
        batch = turn[dist.get_rank()]
        mine[batch] = sums_of(batch)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return {batch: sums for part in parts for batch, sums in part.items()}


def new_turns(batches: Sequence[Batch], world: int) -> Iterator[Sequence[Batch]]:
    """The forward passes, one batch for each of `world` ranks, that have a batch which none before them had."""
    met: set[Batch] = set()
    for start in range(0, len(batches), world):
        turn = batches[start : start + world]
        if not met.issuperset(turn):
            yield turn
        met.update(turn)


def _write(path: Path, table: ReferenceTable, reference: str) -> None:
    """Whole or not at all: a table that was cut short would be in the way of the next try."""
    unfinished = path.with_suffix(".unfinished")
    content = {"reference": reference, "batches": [[batch, sums] for batch, sums in table.items()]}
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(path)


def _read(path: Path, batches: Sequence[Batch], reference: str) -> ReferenceTable | None:
    """The stored table of a reference, None if there is none.

    Earlier versions knew the start model alone; they wrote the batches, or a pair of numbers for each row.
    """
    if not path.exists():
        return None
    stored: Any = json.loads(path.read_text(encoding="utf-8"))
    named = isinstance(stored, dict) and "batches" in stored
    if (stored["reference"] if named else "") != reference:
        return None
    if isinstance(stored, dict) and not named:
        of_row = {int(row): (float(chosen), float(rejected)) for row, (chosen, rejected) in stored.items()}
        return {batch: tuple(of_row[row] for row in batch) for batch in batches}
    table = stored["batches"] if named else stored
    return {tuple(batch): tuple((first, second) for first, second in sums) for batch, sums in table}
