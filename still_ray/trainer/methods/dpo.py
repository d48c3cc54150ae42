"""Direct preference optimisation: losses of pairs against a reference model, by TRL's DPOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainingArguments
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from still_ray.methods.dpo import SFT_LOSS, DpoConfig
from still_ray.trainer.methods.base import Columns, Tokenize, TrainingMethod
from still_ray.trainer.trl_trainers import ROWS, ReferencedTrainer, RowCollator
from still_ray.types import PreferencePair


@dataclass(frozen=True, kw_only=True)
class TokenizedPair:
    """One preference pair.

    Attributes:
        prompt_ids: Token ids of the rendered chat up to and including the generation prompt; never learned.
        chosen_ids: Token ids of the preferred completion, the end token included where it is to be learned.
        rejected_ids: The same of the other completion.
    """

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and preferred completion."""
        return self.prompt_ids + self.chosen_ids

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward pass computes: the prompt twice."""
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


class TokenizedDpoTrainer(ReferencedTrainer, DPOTrainer):  # type: ignore[misc]
    """DPO on rows with `prompt_ids`, `chosen_ids`, `rejected_ids` and `row`, against a table of reference numbers."""

    settings: DpoConfig
    """The stage's section of the recipe, for a loss of one's own."""
    reference_names = ("ref_chosen_logps", "ref_rejected_logps")

    @property
    def needs_reference(self) -> bool:
        """Whether any loss does: supervised fine-tuning of the chosen side is the one that does not."""
        return set(self.loss_types) != {SFT_LOSS}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Reports TRL's metrics; rewards are differences to the reference, so without one there are none."""
        if not self.needs_reference:
            for name in [name for name in self._metrics["train"] if name.startswith("rewards/")]:
                del self._metrics["train"][name]
        super().log(logs, start_time)


class DpoTraining(TrainingMethod[DpoConfig, PreferencePair, TokenizedPair]):
    """How DPO trains."""

    row = TokenizedPair
    row_name = "pairs"
    config = TrlConfig
    trainer_type: ClassVar[type[TokenizedDpoTrainer]] = TokenizedDpoTrainer
    """TRL's trainer as rows need it; a loss of one's own is a subclass of it."""

    def tokenized(self, record: PreferencePair, tokenize: Tokenize) -> TokenizedPair | None:
        """The prompt, and both responses."""
        chosen = record.chosen_thought, record.chosen_solution
        rejected = record.rejected_thought, record.rejected_solution
        ids = tokenize(record.question, chosen, rejected)
        return None if ids is None else TokenizedPair(prompt_ids=ids[0], chosen_ids=ids[1], rejected_ids=ids[2])

    def columns(self, rows: Sequence[TokenizedPair]) -> Columns:
        """`prompt_ids`, `chosen_ids`, `rejected_ids` and `row`, whose one number finds the reference's."""
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "chosen_ids": [row.chosen_ids for row in rows],
            "rejected_ids": [row.rejected_ids for row in rows],
            ROWS: [(index,) for index in range(len(rows))],
        }

    def arguments(self, common: dict[str, Any]) -> TrainingArguments:
        """The losses with their weights."""
        names, weights = zip(*self.settings.losses, strict=True)
        return TrlConfig(
            **common,
            beta=self.settings.beta,
            loss_type=list(names),
            loss_weights=list(weights),
            label_smoothing=self.settings.label_smoothing,
            precompute_ref_log_probs=True,
        )

    def trainer(self, parts: dict[str, Any]) -> TokenizedDpoTrainer:
        """TRL's, on batches of chosen sequences first, then rejected ones."""
        pad = DataCollatorForPreference(parts["processing_class"].pad_token_id)
        made = self.trainer_type(**parts, data_collator=RowCollator(pad))
        made.settings = self.settings
        return made
