"""What the reference of a preference loss, the model that a stage starts from, says of the rows.

It is computed once by the policy itself before its first step, so that no second model is held; a stage that resumes
finds it beside its state, because by then the policy has moved.

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

Batch = tuple[int, ...]
"""Row indices of one forward pass of one rank, in their order."""
Sums = tuple[tuple[float, float], ...]
"""For each row of a batch two summed log-probabilities, e.g. of the chosen and of the rejected completion."""
ReferenceTable = dict[Batch, Sums]


def batches_of(order: Sequence[int], per_device_batch_size: int) -> list[Batch]:
    """The batches of a stage; as many as there are ranks make one forward pass of them all."""
    starts = range(0, len(order), per_device_batch_size)
    return [tuple(order[start : start + per_device_batch_size]) for start in starts]


def reference_table(
    batches: Sequence[Batch], sums_of: Callable[[Batch], Sums], *, state_dir: Path | None
) -> ReferenceTable:
    """The table of a stage; collective. Rank 0 decides whether there is one already.

    Args:
        batches: Those of all ranks, as `batches_of` gives them.
        sums_of: Scores a batch by the policy before its first step; collective, called on every rank as often.
        state_dir: Where a resumable stage keeps the table; None for a stage that is not resumable.
    """
    path = None if state_dir is None else state_dir / "reference.json"
    stored = None if path is None else from_first(lambda: _read(path, batches))
    if stored is not None:
        return stored
    table = _computed(batches, sums_of)
    if path is not None:
        from_first(lambda: _write(path, table))
    return table


def _computed(batches: Sequence[Batch], sums_of: Callable[[Batch], Sums]) -> ReferenceTable:
    """Each batch by the rank that trains on it; passes whose batches have all been met before are left out.

    With one row a batch that is one pass over the rows, however many epochs; with more, each epoch has other batches.
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


def _write(path: Path, table: ReferenceTable) -> None:
    """Whole or not at all: a table that was cut short would be in the way of the next try."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps([[batch, sums] for batch, sums in table.items()]), encoding="utf-8")
    unfinished.replace(path)


def _read(path: Path, batches: Sequence[Batch]) -> ReferenceTable | None:
    """The stored table, None if there is none. Earlier versions wrote a pair of numbers for each row."""
    if not path.exists():
        return None
    stored: Any = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(stored, dict):
        of_row = {int(row): (float(chosen), float(rejected)) for row, (chosen, rejected) in stored.items()}
        return {batch: tuple(of_row[row] for row in batch) for batch in batches}
    return {tuple(batch): tuple((chosen, rejected) for chosen, rejected in sums) for batch, sums in stored}
