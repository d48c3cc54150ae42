"""What changes in TRL's trainers: rows come tokenized, state is saved once, metrics stay local, no rate is 0.

Each change overrides one method; `tests/integration/test_trainer_upstream.py` fails when TRL renames one of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from still_ray.algo.optimizer_steps import learning_rate_factor
from still_ray.trainer.reference import ReferenceTable, Sums
from still_ray.trainer.scoring import evaluating

ROWS = "row"
"""Column and input that tell which rows a batch has."""


class StateOnlyCheckpoints(Trainer):  # type: ignore[misc]
    """A mixin: the mid-stage checkpoints hold DeepSpeed's shards alone, every step has a learning rate.

    The Trainer would gather the whole model into every one of them, and TRL would write a model card.

    Attributes:
        gathers_in_loss: Whether the loss itself needs numbers of all ranks; then its metrics are of all ranks too.
    """

    gathers_in_loss: ClassVar[bool] = False
    lr_scheduler: LambdaLR | None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the gathered model when a caller asks for it, and nothing from within a checkpoint."""
        if not _internal_call:
            super().save_model(output_dir)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Writes nothing: the run's report describes the model."""

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LambdaLR:
        """The schedule of `learning_rate_factor`: the cosine of transformers gives a stage's first step a rate of 0."""
        if self.lr_scheduler is None:
            factor = partial(
                learning_rate_factor,
                total_steps=num_training_steps,
                num_warmup=self.args.get_warmup_steps(num_training_steps),
            )
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, with its metrics left on their rank.

        TRL gathers 4 to 16 scalars over the ranks in every forward pass, for its metrics only.
        """
        with nullcontext() if self.gathers_in_loss else _metrics_stay_local(self.accelerator):
            return super().compute_loss(*args, **kwargs)


@contextmanager
def _metrics_stay_local(accelerator: Accelerator) -> Iterator[None]:
    accelerator.gather = accelerator.gather_for_metrics = _unchanged
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def _unchanged(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


class ReferencedTrainer(StateOnlyCheckpoints):
    """A mixin: the loss compares the policy with a table of a reference model's numbers.

    Attributes:
        reference: The table, set before the first step if it is needed.
        reference_names: What TRL's loss calls the table's numbers in a batch, in their order.
    """

    reference: ReferenceTable
    reference_names: ClassVar[tuple[str, str]]

    @property
    def needs_reference(self) -> bool:
        """Whether the loss looks at the reference's numbers at all."""
        return True

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """TRL tokenizes text here; the rows are tokenized already."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """TRL's own cache of these numbers does not know a ZeRO-3 model's weights; `compute_loss` adds them."""
        return dataset

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, with the reference's numbers of this batch.

        They come in here because on its way from the collator the Trainer would round them to the model's bfloat16.
        """
        batch = {name: tensor for name, tensor in inputs.items() if name != ROWS}
        rows = tuple(inputs[ROWS].tolist())
        table = self.reference[rows] if self.needs_reference else ((0.0, 0.0),) * len(rows)
        sums = torch.tensor(table, device=inputs[ROWS].device)
        batch |= dict(zip(self.reference_names, sums.unbind(dim=1), strict=True))
        return super().compute_loss(model, batch, *args, **kwargs)

    def reference_sums(self, rows: list[dict[str, Any]]) -> Sums:
        """What the model says of the rows of a batch, by the forward pass of the loss without dropout; collective."""
        batch = self._prepare_inputs(self.data_collator(rows))
        del batch[ROWS]
        with evaluating(self.model_wrapped):
            first, second = self.compute_ref_log_probs(self.model_wrapped, batch)
        return tuple(zip(first.tolist(), second.tolist(), strict=True))


class RowCollator:
    """Pads rows as TRL does, and names them.

    Args:
        pad: TRL's collator.
    """

    def __init__(self, pad: Callable[[list[dict[str, Any]]], dict[str, Tensor]]) -> None:
        self._pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """One batch of TRL's; `row` has one index a row."""
        return self._pad(rows) | {ROWS: torch.tensor([row[ROWS][0] for row in rows])}
