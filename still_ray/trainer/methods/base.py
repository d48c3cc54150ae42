"""What a training method's heavy half says of itself: its rows as token ids, TRL's arguments, trainer and reference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from transformers import TrainingArguments

from still_ray.config.schema import TrainingSection
from still_ray.trainer.data import TokenizedRow, TrainingRows, dataset_of
from still_ray.trainer.trl_trainers import StateOnlyCheckpoints
from still_ray.types import Turn

Settings = TypeVar("Settings", bound=TrainingSection)
Record = TypeVar("Record")
Row = TypeVar("Row", bound=TokenizedRow)

Columns = dict[str, list[tuple[int, ...]]]
"""A dataset: for each column a list of numbers a row."""


class Tokenize(Protocol):
    """Turns a row's texts into what the model reads and what it learns to write."""

    def __call__(
        self, question: str, *responses: tuple[str, str], turns: Sequence[Turn] = (), general: bool = False
    ) -> tuple[tuple[int, ...], ...] | None:
        """Encodes a question and responses to it.

        Args:
            question: Without the prompt template.
            responses: Thought and solution of each; without a thought it is the solution that is learned.
            turns: Those before the question.
            general: Whether it is asked as it stands.

        Returns:
            Token ids of the rendered prompt, then of what is to be learned of each response; None if a text holds a
            control token of the model.
        """
        ...


class TrainingMethod(ABC, Generic[Settings, Record, Row]):
    """One training method on its way through TRL.

    Attributes:
        row: Class of its tokenized rows.
        row_name: What an error calls these, in the plural.
        config: Class of TRL's configuration, by which it is told which arguments of `trainer.trl` are for it.
    """

    row: ClassVar[type[TokenizedRow]]
    row_name: ClassVar[str]
    config: ClassVar[type[TrainingArguments]] = TrainingArguments

    def __init__(self, settings: Settings) -> None:
        """Keeps the stage's section of the recipe."""
        self.settings = settings

    @abstractmethod
    def tokenized(self, record: Record, tokenize: Tokenize) -> Row | None:
        """A row of the method's table as token ids; None if it holds a control token of the model as text."""

    @abstractmethod
    def columns(self, rows: Sequence[Row]) -> Columns:
        """The columns that the trainer's collator expects, one entry a row."""

    @abstractmethod
    def arguments(self, common: dict[str, Any]) -> TrainingArguments:
        """TRL's configuration.

        Args:
            common: What every method sets alike, by the names of TRL's fields.
        """

    @abstractmethod
    def trainer(self, parts: dict[str, Any]) -> StateOnlyCheckpoints:
        """TRL's trainer; one that is a `ReferencedTrainer` is given the reference's numbers before the first step.

        Args:
            parts: `model`, `args`, `train_dataset`, `processing_class` and `callbacks`, as TRL's trainers take them;
                `peft_config` where adapters are trained.
        """

    def training_rows(self, given: Iterable[Row]) -> TrainingRows:
        """The rows that are short enough, in the order given."""
        rows = list(given)
        kept = [row for row in rows if row.length <= self.settings.longest]
        return TrainingRows(
            dataset=dataset_of(self.columns(kept)),
            lengths=tuple(row.length for row in kept),
            num_tokens=tuple(row.num_tokens for row in kept),
            num_skipped=len(rows) - len(kept),
        )
