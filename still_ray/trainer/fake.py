"""A trainer without a model, for rehearsals and tests: it reads its rows, counts its steps, and learns nothing.

Its loss is a formula and its checkpoint a folder that says so. What is real is everything around: which rows it was
given, how many steps they make, which of them are too long, and the record of a policy whose probes can be proved.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from still_ray.algo.optimizer_steps import learning_rate_factor, num_steps, warmup_steps
from still_ray.trainer.checkpoint import ADAPTER_FOLDER, publish
from still_ray.trainer.job import TrainJob, TrainOutcome
from still_ray.types import InputError, ProbeSequence, TrainProgress, TrainResult

Score = Callable[[Sequence[int], int], tuple[float, ...]]
"""Log-probabilities that the fake sampler will give a token sequence under a policy version."""

FakeRow = tuple[str, ...]
"""The texts that a row's forward pass holds: one for an example, two for a pair."""

BYTES_PER_TOKEN: Final = 4
"""What the fake takes for the length of a token. Source: ours, about that of English in a large vocabulary."""
FIRST_LOSS: Final = 2.0
LOSS_DECAY: Final = 0.9
"""The invented loss of step n is FIRST_LOSS * LOSS_DECAY ** n. Source: ours."""
MAX_STAGE_S: Final = 2.0
MAX_STEP_S: Final = 0.25
"""How long a stage and a step pretend to work at most. Source: ours."""

NOTICE_FILE: Final = "THIS_IS_A_REHEARSAL.txt"
NOTICE: Final = "A rehearsal made this folder in the place of a checkpoint. It holds no weights and cannot be loaded.\n"


class FakeTrainerWorker:
    """Stands in for `still_ray.trainer.worker.TrainerWorker` on the first rank."""

    def __init__(self, score: Score, *, policy_version: int) -> None:
        """Prepares one stage.

        Args:
            score: What the probes are scored by.
            policy_version: The version that the stage makes.
        """
        self._score = score
        self._policy_version = policy_version

    def train(
        self, job: TrainJob, rows: Sequence[FakeRow], *, on_progress: Callable[[TrainProgress], None]
    ) -> TrainOutcome:
        """Pretends to train one stage to its end.

        Raises:
            InputError: No row is short enough.
        """
        self.begin(job, rows)
        for _ in range(self.total_steps):
            time.sleep(self.step_s)
            on_progress(self.step())
        return self.finish()

    def begin(self, job: TrainJob, rows: Sequence[FakeRow]) -> None:
        """Takes a stage up, from its first step.

        Raises:
            InputError: No row is short enough.
        """
        kept = [row for row in rows if _longest(row) <= job.settings.longest]
        if not kept:
            raise InputError(
                f"{job.name}: no row to train on; {len(rows)} rows exceed max_length ({job.settings.longest})"
            )
        self._job = job
        self._num_rows, self._num_skipped = len(kept), len(rows) - len(kept)
        self._num_tokens = round(sum(_tokens(text) for row in kept for text in row) * job.settings.epochs)
        self._step = 0
        self._started = time.monotonic()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the stage, counted as the real trainer counts them."""
        settings = self._job.settings
        return num_steps(num_rows=self._num_rows, epochs=settings.epochs, global_batch_size=settings.global_batch_size)

    @property
    def step_s(self) -> float:
        """Seconds that a step pretends to take."""
        return min(MAX_STEP_S, MAX_STAGE_S / self.total_steps)

    def step(self) -> TrainProgress:
        """Counts one step and invents its numbers."""
        self._step += 1
        settings = self._job.settings
        return TrainProgress(
            step=self._step,
            total_steps=self.total_steps,
            loss=_loss(self._step),
            learning_rate=self._learning_rate(),
            tokens_per_s=self._num_tokens / self.total_steps / self.step_s,
            epoch=self._step * settings.global_batch_size / self._num_rows,
            metrics={},
        )

    def _learning_rate(self) -> float:
        optimizer, total = self._job.settings.optimizer, self.total_steps
        warmup = warmup_steps(total_steps=total, warmup_ratio=optimizer.warmup_ratio)
        return optimizer.learning_rate * learning_rate_factor(self._step - 1, total_steps=total, num_warmup=warmup)

    def finish(self) -> TrainOutcome:
        """Leaves a folder in the place of a checkpoint, whole or not at all; the policy's record is the caller's."""
        output = Path(self._job.output_dir)
        prepared = output.with_name(f"{output.name}.prepared")
        shutil.rmtree(prepared, ignore_errors=True)
        prepared.mkdir(parents=True)
        (prepared / NOTICE_FILE).write_text(NOTICE, encoding="utf-8")
        config = {"model_type": "still-ray-rehearsal", "from": self._job.model_path}
        (prepared / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if self._job.trainer.lora is not None:
            (prepared / ADAPTER_FOLDER).mkdir()
            (prepared / ADAPTER_FOLDER / NOTICE_FILE).write_text(NOTICE, encoding="utf-8")
        publish(prepared, output)
        result = TrainResult(
            steps=self._step,
            num_examples=self._num_rows,
            num_skipped=self._num_skipped,
            num_tokens=self._num_tokens,
            final_loss=_loss(self._step),
            seconds=time.monotonic() - self._started,
            share_changed=None,  # there are no weights
        )
        return TrainOutcome(result=result, resumed_from_step=0, startup_s=0.0, save_s=0.0, probes=self._probes())

    def _probes(self) -> tuple[ProbeSequence, ...]:
        return tuple(
            ProbeSequence(token_ids=ids, logprobs=self._score(ids, self._policy_version))
            for ids in self._job.probe_sequences
        )


def fake_probes(rows: Sequence[FakeRow], num_probes: int, *, max_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The beginnings of the first rows as the fake's tokens, which are bytes."""
    return tuple(tuple(row[0].encode()[:max_tokens]) for row in rows[:num_probes])


def _loss(step: int) -> float:
    return FIRST_LOSS * LOSS_DECAY**step


def _longest(row: FakeRow) -> int:
    return max(_tokens(text) for text in row)


def _tokens(text: str) -> int:
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)
