"""Tokenized rows as the datasets that TRL takes as they are, without tokenizing again."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED_LABEL = -100
"""Label of a token that is not learned (torch's cross-entropy convention)."""


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """One row of supervised fine-tuning.

    Attributes:
        prompt_ids: Token ids of the rendered chat up to and including the generation prompt; never learned.
        completion_ids: Token ids to learn, the end token included where it is to be learned.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TokenizedPair:
    """One preference pair; ids as in `TokenizedExample`."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """Rows short enough to train on.

    Attributes:
        dataset: One row each, in the order given; the columns that TRL's collators expect.
        lengths: Tokens of the longest sequence of each row: what a forward pass has to hold.
        num_tokens: Tokens of each row; a pair counts its prompt twice, as it is computed twice.
        num_skipped: Rows left out because they exceed the sequence length.
    """

    dataset: Dataset
    lengths: tuple[int, ...]
    num_tokens: tuple[int, ...]
    num_skipped: int


def sft_rows(examples: Iterable[TokenizedExample], *, max_length: int) -> TrainingRows:
    """Rows with `input_ids` and `labels`; a prompt's labels are ignored, so the loss is on the completion alone."""
    given = list(examples)
    kept = [row for row in given if len(row.prompt_ids) + len(row.completion_ids) <= max_length]
    sizes = tuple(len(row.prompt_ids) + len(row.completion_ids) for row in kept)
    columns: dict[str, list[tuple[int, ...]]] = {
        "input_ids": [row.prompt_ids + row.completion_ids for row in kept],
        "labels": [(IGNORED_LABEL,) * len(row.prompt_ids) + row.completion_ids for row in kept],
    }
    return TrainingRows(dataset=_dataset(columns), lengths=sizes, num_tokens=sizes, num_skipped=len(given) - len(kept))


def dpo_rows(pairs: Iterable[TokenizedPair], *, max_length: int) -> TrainingRows:
    """Rows with `prompt_ids`, `chosen_ids`, `rejected_ids` and `row`, whose one number finds the reference's."""
    given = list(pairs)
    kept = [row for row in given if longest(row) <= max_length]
    columns: dict[str, list[tuple[int, ...]]] = {
        "prompt_ids": [row.prompt_ids for row in kept],
        "chosen_ids": [row.chosen_ids for row in kept],
        "rejected_ids": [row.rejected_ids for row in kept],
        "row": [(index,) for index in range(len(kept))],
    }
    return TrainingRows(
        dataset=_dataset(columns),
        lengths=tuple(longest(row) for row in kept),
        num_tokens=tuple(2 * len(row.prompt_ids) + len(row.chosen_ids) + len(row.rejected_ids) for row in kept),
        num_skipped=len(given) - len(kept),
    )


def in_order(rows: TrainingRows, order: list[int]) -> Dataset:
    """The rows in the order in which they are trained on; a row may come more than once."""
    return rows.dataset.select(order, new_fingerprint=uuid.uuid4().hex)


def longest(pair: TokenizedPair) -> int:
    """Tokens of the longer of a pair's two sequences."""
    return len(pair.prompt_ids) + max(len(pair.chosen_ids), len(pair.rejected_ids))


def _dataset(columns: dict[str, list[tuple[int, ...]]]) -> Dataset:
    """An in-memory dataset, named here: `datasets` would pickle functions to name it (see `trainer.quiet`)."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    ids = pa.list_(pa.int32())
    table = pa.table({name: pa.array(values, type=ids) for name, values in columns.items()})
    return Dataset(InMemoryTable(table), fingerprint=uuid.uuid4().hex)
