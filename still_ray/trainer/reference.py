"""What DPO's reference, the model that a stage starts from, says of the pairs.

It is computed once by the policy itself before its first step, so that no second model is held; a stage that resumes
finds it beside its state, because by then the policy has moved.
"""

import json
from pathlib import Path

import torch.distributed as dist
from datasets import Dataset

from still_ray.trainer.scoring import Scorer

ReferenceTable = dict[int, tuple[float, float]]
"""Row index to the summed log-probabilities of the chosen and of the rejected completion."""


def reference_table(scorer: Scorer, rows: Dataset, *, state_dir: Path | None) -> ReferenceTable:
    """The table of a stage; collective.

    Args:
        scorer: The policy before its first step.
        rows: Pairs as `data.dpo_rows` makes them.
        state_dir: Where a resumable stage keeps the table; None for a stage that is not resumable.
    """
    path = None if state_dir is None else state_dir / "reference.json"
    if path is not None and path.exists():
        return _read(path)
    table = _compute(scorer, rows)
    if path is not None and dist.get_rank() == 0:
        path.write_text(json.dumps(table), encoding="utf-8")
    return table


def _read(path: Path) -> ReferenceTable:
    stored: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
    return {int(row): (sums[0], sums[1]) for row, sums in stored.items()}


def _compute(scorer: Scorer, rows: Dataset) -> ReferenceTable:
    pairs = rows.to_list()
    sides = ("chosen_ids", "rejected_ids")
    sequences = [pair["prompt_ids"] + pair[side] for pair in pairs for side in sides]
    sums = scorer.sums(sequences, [len(pair["prompt_ids"]) for pair in pairs for _ in sides])
    return {row: (sums[2 * row], sums[2 * row + 1]) for row in range(len(pairs))}
