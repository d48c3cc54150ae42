"""Kahneman-Tversky optimisation: a loss of single responses, each desirable or not, by TRL's KTOTrainer.

Its KL term is TRL's: the mean, over the rows of a forward pass of all ranks, of the log-ratio of policy and
reference on the completion of the row before, no answer to the prompt; never below 0, and without a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments
from trl import KTOConfig as TrlConfig
from trl import KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from still_ray.methods.kto import JudgedExample, KtoConfig
from still_ray.trainer.methods.base import Columns, Tokenize, TrainingMethod
from still_ray.trainer.methods.sft import TokenizedExample
from still_ray.trainer.trl_trainers import ROWS, ReferencedTrainer, RowCollator


@dataclass(frozen=True, kw_only=True)
class TokenizedJudgement(TokenizedExample):
    """One response that was judged; the forward pass of the KL term is not among its tokens.

    Attributes:
        desirable: Whether it is to become likelier.
    """

    desirable: bool


class TokenizedKtoTrainer(ReferencedTrainer, KTOTrainer):  # type: ignore[misc]
    """KTO on rows with `prompt_ids`, `completion_ids`, `label` and `row`, against a table of reference numbers."""

    gathers_in_loss = True  # the KL term is a mean over all ranks
    reference_names = ("ref_logps", "ref_KL_logps")

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Summed log-probabilities of the completions, and of those of the KL term; 0 for a loss without this term."""
        matched, mismatched = super().compute_ref_log_probs(partial(model, use_cache=False), inputs)
        return matched, torch.zeros_like(matched) if mismatched is None else mismatched


class KtoTraining(TrainingMethod[KtoConfig, JudgedExample, TokenizedJudgement]):
    """How KTO trains."""

    row = TokenizedJudgement
    row_name = "judged responses"
    config = TrlConfig

    def tokenized(self, record: JudgedExample, tokenize: Tokenize) -> TokenizedJudgement | None:
        """The prompt, and the response with what was thought of it."""
        ids = tokenize(record.question, (record.thought, record.solution))
        if ids is None:
            return None
        return TokenizedJudgement(prompt_ids=ids[0], completion_ids=ids[1], desirable=record.desirable)

    def columns(self, rows: Sequence[TokenizedJudgement]) -> Columns:
        """`prompt_ids`, `completion_ids`, `label`, and `row`, whose one number finds the reference's."""
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "label": [(int(row.desirable),) for row in rows],
            ROWS: [(index,) for index in range(len(rows))],
        }

    def arguments(self, common: dict[str, Any]) -> TrainingArguments:
        """The loss and the weights of its two sides."""
        return TrlConfig(
            **common,
            beta=self.settings.beta,
            loss_type=self.settings.loss,
            desirable_weight=self.settings.desirable_weight,
            undesirable_weight=self.settings.undesirable_weight,
            precompute_ref_log_probs=True,
        )

    def trainer(self, parts: dict[str, Any]) -> TokenizedKtoTrainer:
        """TRL's, on batches that are cut to the recipe's length: a mismatched completion may exceed it."""
        pad = DataCollatorForUnpairedPreference(
            parts["processing_class"].pad_token_id, max_length=self.settings.longest
        )
        mismatch = self.settings.loss == "kto"
        return TokenizedKtoTrainer(
            **parts, data_collator=RowCollator(lambda rows: pad(judged(rows, mismatch=mismatch)))
        )


def judged(rows: Sequence[dict[str, Any]], *, mismatch: bool) -> list[dict[str, Any]]:
    """The rows of a batch as TRL's collator takes them, on request with the completion of the row before each."""
    examples = [row | {"label": bool(row["label"][0])} for row in rows]
    if not mismatch:
        return examples
    before = [rows[-1], *rows[:-1]]
    return [
        example | {"KL_completion_ids": other["completion_ids"]}
        for example, other in zip(examples, before, strict=True)
    ]
