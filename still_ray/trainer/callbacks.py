"""What happens around TRL's loop: progress reports, the reference's numbers, whole checkpoints."""

import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from still_ray.trainer.checkpoint import StateStorage, complete_state
from still_ray.trainer.ranks import from_first, on_every_rank
from still_ray.types import PEAK_MEMORY, TrainProgress

_STANDARD = ("loss", "learning_rate", "epoch")


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Turns the Trainer's logs into progress records.

    Args:
        tokens_of_step: Tokens of each optimizer step over all ranks.
        rows_per_step: Global batch size.
        num_rows: Rows of one pass.
        report: Receives each record.
    """

    def __init__(
        self,
        *,
        tokens_of_step: Sequence[int],
        rows_per_step: int,
        num_rows: int,
        report: Callable[[TrainProgress], None],
    ) -> None:
        self.losses: list[float] = []
        self.started_at = 0.0
        self.start_step = 0
        self._tokens_until = [0, *accumulate(tokens_of_step)]
        self._epochs_per_step = rows_per_step / num_rows
        self._report = report
        self._last = (0, 0.0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock: the engine stands, the first step comes next."""
        self.started_at = time.monotonic()
        self.start_step = state.global_step
        self._last = (state.global_step, self.started_at)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Has the first step reported too, which on a CPU may take a minute, and the last one."""
        control.should_log = control.should_log or state.global_step in (self.start_step + 1, state.max_steps)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Reports one window of steps; the summary at the end of training has no "loss" and is left out."""
        if logs is None or "loss" not in logs:
            return
        now = time.monotonic()
        (since_step, since), self._last = self._last, (state.global_step, now)
        self.losses.append(logs["loss"])
        tokens = self._tokens_until[state.global_step] - self._tokens_until[since_step]
        self._report(
            TrainProgress(
                step=state.global_step,
                total_steps=state.max_steps,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                tokens_per_s=tokens / max(now - since, 1e-9),
                epoch=state.global_step * self._epochs_per_step,
                metrics={name: value for name, value in logs.items() if name not in _STANDARD} | _peak_memory(),
            )
        )


def _peak_memory() -> dict[str, float]:
    """Most that this rank's tensors took of its GPU in the stage's steps so far; nothing on a CPU."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    return {PEAK_MEMORY: torch.cuda.max_memory_allocated() / 2**30}


class WholeStateCallback(TrainerCallback):  # type: ignore[misc]
    """Marks a mid-stage checkpoint as whole once every rank has written its part.

    Args:
        states: Where states are kept if each rank writes to a folder of its own; None for a folder that all share.
    """

    def __init__(self, states: StateStorage | None = None) -> None:
        self._states = states

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Waits for all ranks; the first one leaves the mark. What fails on one rank fails on all."""
        checkpoint, states = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}", self._states
        if states is None:
            dist.barrier()
            from_first(lambda: complete_state(checkpoint))
            return
        on_every_rank(states.keep)
        from_first(lambda: states.complete(state.global_step))
        complete_state(checkpoint)


class StartScores(TrainerCallback):  # type: ignore[misc]
    """Keeps what a scorer says before the first step; nothing of a stage that goes on from a saved state.

    Args:
        score: Scores sequences under the model as it stands.
    """

    def __init__(self, score: Callable[[], list[tuple[float, ...]]]) -> None:
        self.scores: list[tuple[float, ...]] = []
        self._score = score

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Scores the start model."""
        if state.global_step == 0:
            self.scores = self._score()


class AtTrainBegin(TrainerCallback):  # type: ignore[misc]
    """Runs an action once the engine stands, before the first step."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Runs the action."""
        self._action()
