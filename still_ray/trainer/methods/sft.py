"""Supervised fine-tuning: cross-entropy of the completion, by TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from still_ray.methods.sft import SftConfig
from still_ray.trainer.data import IGNORED_LABEL
from still_ray.trainer.methods.base import Columns, Tokenize, TrainingMethod
from still_ray.trainer.trl_trainers import StateOnlyCheckpoints
from still_ray.types import TrainingExample


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """One row of supervised fine-tuning.

    Attributes:
        prompt_ids: Token ids of the rendered chat up to and including the generation prompt; never learned.
        completion_ids: Token ids to learn, the end token included where it is to be learned.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and completion."""
        return self.prompt_ids + self.completion_ids

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward pass computes."""
        return self.length


class TokenizedSftTrainer(StateOnlyCheckpoints, SFTTrainer):  # type: ignore[misc]
    """SFT on rows with `input_ids` and `labels`."""


class SftTraining(TrainingMethod[SftConfig, TrainingExample, TokenizedExample]):
    """How SFT trains."""

    row = TokenizedExample
    row_name = "examples"
    config = TrlConfig

    def tokenized(self, record: TrainingExample, tokenize: Tokenize) -> TokenizedExample | None:
        """The prompt, and the response to learn."""
        response = (record.thought, record.solution)
        ids = tokenize(record.question, response, turns=record.turns, general=record.general)
        return None if ids is None else TokenizedExample(prompt_ids=ids[0], completion_ids=ids[1])

    def columns(self, rows: Sequence[TokenizedExample]) -> Columns:
        """`input_ids` and `labels`; a prompt's labels are ignored, so the loss is on the completion alone."""
        return {
            "input_ids": [row.sequence for row in rows],
            "labels": [(IGNORED_LABEL,) * len(row.prompt_ids) + row.completion_ids for row in rows],
        }

    def arguments(self, common: dict[str, Any]) -> TrainingArguments:
        """Rows come tokenized."""
        return TrlConfig(**common, dataset_kwargs={"skip_prepare_dataset": True})

    def trainer(self, parts: dict[str, Any]) -> TokenizedSftTrainer:
        """TRL's, which pads by itself."""
        return TokenizedSftTrainer(**parts)
