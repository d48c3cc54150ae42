"""What changes in TRL's trainers: rows come tokenized, state is saved once, metrics stay local, no rate is 0.

Each change overrides one method; `tests/integration/test_trainer_upstream.py` fails when TRL renames one of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from still_ray.algo.optimizer_steps import learning_rate_factor
from still_ray.trainer.reference import ReferenceTable, Sums
from still_ray.trainer.schedule import Batch
from still_ray.trainer.scoring import evaluating

ROWS = "row"
"""Column and input that tell which rows a batch has."""
PASSES = "passes"
"""Name under which all batches of an optimizer step come where steps differ in their number."""


class Steps(Dataset[list[list[dict[str, Any]]]]):
    """For each optimizer step the rows of every forward pass of one rank.

    Args:
        rows: By their index.
        steps: For each step the batches of this rank.
    """

    def __init__(self, rows: Any, steps: Sequence[Sequence[Batch]]) -> None:
        self._rows = rows
        self._steps = steps

    def __len__(self) -> int:
        """How many steps there are."""
        return len(self._steps)

    def __getitem__(self, step: int) -> list[list[dict[str, Any]]]:
        """The rows of a step, pass by pass."""
        return [[self._rows[row] for row in batch] for batch in self._steps[step]]


def _passes(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    passes: list[dict[str, Any]] = inputs.get(PASSES, [inputs])
    return passes


class StateOnlyCheckpoints(Trainer):  # type: ignore[misc]
    """A mixin: the mid-stage checkpoints hold DeepSpeed's shards alone, every step has a learning rate.

    The Trainer would gather the whole model into every one of them, and TRL would write a model card.

    Where optimizer steps differ in their number of forward passes, a whole step is what the Trainer takes for a batch.

    Attributes:
        gathers_in_loss: Whether the loss itself needs numbers of all ranks; then its metrics are of all ranks too.
        steps: For each optimizer step the batches of this rank; None where all have equally many, of equally many rows.
    """

    gathers_in_loss: ClassVar[bool] = False
    steps: Sequence[Sequence[Batch]] | None = None
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

    def get_train_dataloader(self) -> Any:
        """The Trainer's, or a loader of whole steps; accelerate would deal those out to the ranks once more."""
        if self.steps is None:
            return super().get_train_dataloader()
        return DataLoader(
            Steps(self.train_dataset, self.steps),
            collate_fn=lambda steps: {PASSES: [self.data_collator(rows) for rows in steps[0]]},
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Labels of a step, over all of its passes."""
        return super()._get_num_items_in_batch([one for step in batch_samples for one in _passes(step)], device)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """A forward and backward pass; of a whole step all of them, with the gradients reduced after the last."""
        step = super().training_step
        if self.steps is None:
            loss: Tensor = step(model, inputs, num_items_in_batch)
            return loss
        passes, losses = _passes(inputs), list[Tensor]()
        self.current_gradient_accumulation_steps = len(passes)
        # ZeRO-2 adds off-loaded gradients up only where it knows of several passes.
        self.model_wrapped.optimizer.gradient_accumulation_steps = len(passes)
        for number, batch in enumerate(passes, start=1):
            self.accelerator.gradient_state._set_sync_gradients(number == len(passes))
            losses.append(step(model, batch, num_items_in_batch))
        return torch.stack(losses).sum()

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
        loss = super().compute_loss(model, batch, *args, **kwargs)
        return loss if self.steps is None else loss * self._share(len(rows))

    def _share(self, num_rows: int) -> float:
        """What a pass counts for in its step, 1 on average: its loss is a mean over rows, and so is the step's."""
        num_passes: int = self.current_gradient_accumulation_steps
        return num_rows * num_passes / int(self.args.per_device_train_batch_size)

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
