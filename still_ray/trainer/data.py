"""Tokenized rows as the datasets that TRL takes as they are, without tokenizing again."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED_LABEL = -100
"""Label of a token that is not learned (torch's cross-entropy convention)."""


class TokenizedRow(Protocol):
    """A row of a training method's table as token ids."""

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and completion; of several completions the one that is to become likelier."""
        ...

    @property
    def length(self) -> int:
        """Tokens of the longest sequence: what a forward pass has to hold."""
        ...

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences: what a forward pass computes."""
        ...


@dataclass(frozen=True, kw_only=True)
class TrainingRows:
    """Rows short enough to train on.

    Attributes:
        dataset: One row each, in the order given; the columns that TRL's collators expect.
        lengths: `TokenizedRow.length` of each row.
        num_tokens: `TokenizedRow.num_tokens` of each row.
        num_skipped: Rows left out because they exceed the sequence length.
    """

    dataset: Dataset
    lengths: tuple[int, ...]
    num_tokens: tuple[int, ...]
    num_skipped: int


def in_order(rows: TrainingRows, order: list[int]) -> Dataset:
    """The rows in the order in which they are trained on; a row may come more than once."""
    return rows.dataset.select(order, new_fingerprint=uuid.uuid4().hex)


def dataset_of(columns: dict[str, list[tuple[int, ...]]]) -> Dataset:
    """An in-memory dataset, named here: `datasets` would pickle functions to name it (see `trainer.quiet`)."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    ids = pa.list_(pa.int32())
    table = pa.table({name: pa.array(values, type=ids) for name, values in columns.items()})
    return Dataset(InMemoryTable(table), fingerprint=uuid.uuid4().hex)
