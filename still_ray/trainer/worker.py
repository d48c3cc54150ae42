"""One rank of the trainer group: builds, trains, saves and scores models, one stage after another.

Consumes tokenized rows; produces an HF checkpoint, progress records, log-probabilities and, while the engine lives, the
sharded model that weight sync reads. Every public method is collective: all ranks call it with the same arguments.
"""

import copy
import functools
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero import parameter_offload
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback
from trl.models import prepare_deepspeed

from still_ray.algo.resolved import ResolvedTrainer
from still_ray.trainer.arguments import training_arguments
from still_ray.trainer.callbacks import AtTrainBegin, ProgressCallback, StartScores, WholeStateCallback
from still_ray.trainer.checkpoint import StateStorage, job_digest, open_state, state_of
from still_ray.trainer.data import TokenizedRow, in_order
from still_ray.trainer.job import ModelFilesError, TrainJob, TrainOutcome
from still_ray.trainer.lora import base_model, fit_adapters, peft_config, taken_adapter
from still_ray.trainer.model import give_back_heap, load_model, load_tokenizer
from still_ray.trainer.movement import share_changed
from still_ray.trainer.plan import TrainPlan, batches_of_steps, plan_of
from still_ray.trainer.quiet import quiet_libraries, skip_cpu_kernels
from still_ray.trainer.ranks import from_first, limit_waiting, on_every_rank, require_same
from still_ray.trainer.reference import ReferenceTable, Sums, computed_table, kept_table
from still_ray.trainer.saving import StartConfigs, save_gathered
from still_ray.trainer.schedule import Batch
from still_ray.trainer.scoring import Scorer
from still_ray.trainer.sequence_parallel import SequenceGroup
from still_ray.trainer.trackers import close_trackers, open_trackers
from still_ray.trainer.trl_trainers import ReferencedTrainer
from still_ray.types import ProbeSequence, TrainProgress, TrainResult

_ENGINE_CODE = "deepspeed.runtime.zero"


class TrainerWorker:
    """One rank. The environment of `trainer_environment` must be set before this module is imported.

    Args:
        group: The trainer group's section of the recipe.
    """

    def __init__(self, group: ResolvedTrainer) -> None:
        quiet_libraries()
        if not group.use_gpu:
            torch.set_num_threads(group.threads)
            skip_cpu_kernels()
        # Before any model: otherwise zero.Init believes that the world has one rank.
        deepspeed.init_distributed(dist_backend="nccl" if group.use_gpu else "gloo", verbose=False)
        limit_waiting(group.collective_timeout_s)
        self._group = group
        self._sharing = SequenceGroup(group.sequence_parallel_size) if group.sequence_parallel_size > 1 else None
        self._trl: Any = None

    @property
    def model(self) -> PreTrainedModel:
        """The trained model, its parameters sharded over the ranks under ZeRO-3 (what a `ZeroSource` reads).

        Raises:
            RuntimeError: No stage was trained since the last release.
        """
        return base_model(self._live().model)

    def train(
        self,
        job: TrainJob,
        data: Iterable[TokenizedRow],
        *,
        on_progress: Callable[[TrainProgress], None],
        states: StateStorage | None = None,
    ) -> TrainOutcome:
        """Trains one stage and writes its checkpoint; the engine lives on until `release` or the next `train`.

        A stage with `save_steps` that was cut short continues from its last whole state.

        Args:
            job: The stage.
            data: All rows of the stage, the same on every rank.
            on_progress: Called on every rank after the first and the last optimizer step, and every `logging_steps`.
            states: Keeps the states of a stage with `save_steps` where this rank's folder is its machine's own.

        Raises:
            InputError: No row is short enough to train on, or the rows are of another method.
            ModelFilesError: The start model cannot be loaded, or the checkpoint not be written.
        """
        started = time.monotonic()
        self.release()
        plan = on_every_rank(lambda: plan_of(job, data))
        require_same(plan.digest, f"rows of {job.name}")
        state = _state(job, plan, states)
        progress = _progress(job, plan, on_progress)
        table = self._table_of_another(job, plan) if job.reference else None
        configs = self._build(job, plan, WholeStateCallback(states))
        self._set_reference(job, plan, table)
        start = StartScores(lambda: self._scores(job.probe_sequences))
        for callback in (progress, start):
            self._trl.add_callback(callback)
        self._trl.train(resume_from_checkpoint=None if state is None else str(state))
        trained = time.monotonic()
        close_trackers(job)
        adapter = taken_adapter(self._trl.model)
        refusal = save_gathered(self._trl, job, configs, adapter)
        saved = time.monotonic()
        return TrainOutcome(
            result=_result(
                plan,
                progress,
                seconds=trained - progress.started_at,
                changed=share_changed(self.model, job.model_path),
            ),
            resumed_from_step=progress.start_step,
            startup_s=progress.started_at - started,
            save_s=saved - trained,
            probes=self._probes(job.probe_sequences, start.scores),
            refusal=refusal,
        )

    def score(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        """Log-probabilities log p(token[i + 1] | token[..i]) of each sequence under the trained model.

        Raises:
            RuntimeError: No stage was trained since the last release.
        """
        return self._scorer().logprobs(sequences)

    def release(self) -> None:
        """Frees the model and its optimizer state."""
        if self._trl is None:
            return
        if isinstance(self._trl.model_wrapped, deepspeed.DeepSpeedEngine):
            self._trl.model_wrapped.destroy()
        self._trl.accelerator.free_memory()
        self._trl = None
        _forget_engines()
        gc.collect()
        get_accelerator().empty_cache()  # now that the tensors are gone; `free_memory` found them alive
        give_back_heap()

    def _live(self) -> Any:
        if self._trl is None:
            raise RuntimeError("no model is loaded: train a stage first")
        return self._trl

    def _scorer(self) -> Scorer:
        trl = self._live()
        return Scorer(
            engine=trl.model_wrapped,
            pad_token_id=trl.processing_class.pad_token_id,
            device=trl.accelerator.device,
            sequence_parallel_size=self._group.sequence_parallel_size,
        )

    def _build(self, job: TrainJob, plan: TrainPlan, *callbacks: TrainerCallback) -> StartConfigs:
        """Sets up TRL's trainer; its configuration comes first, since it tells transformers to shard the model."""
        with _loading(job.model_name or job.model_path):
            open_trackers(job)
            packs = job.settings.micro_batch_tokens is not None
            arguments = training_arguments(job, group=self._group, total_steps=plan.total_steps)
            model = load_model(job, self._group)
            configs = StartConfigs(model=copy.deepcopy(model.config), generation=copy.deepcopy(model.generation_config))
            parts = {
                "model": model,
                "args": arguments,
                "train_dataset": plan.rows.dataset if packs else in_order(plan.rows, self._rows_dealt(job, plan)),
                "processing_class": load_tokenizer(job),
                "callbacks": list(callbacks),
            }
            if job.trainer.lora is not None:
                parts["peft_config"] = peft_config(job.trainer.lora)
            self._trl = job.training.trainer(parts)
            if job.trainer.lora is not None:
                fit_adapters(self._trl.model, job.trainer.lora)
            if self._sharing is not None:
                self._sharing.slice_rows(self.model)
                if self._trl.gathers_in_loss:
                    self._trl._tp_size = self._sharing.size  # by it TRL divides tokens that several ranks count
            self._trl.remove_callback(PrinterCallback)
            if packs:
                rank, world = dist.get_rank(), dist.get_world_size()
                self._trl.steps = [batches[rank::world] for batches in self._batches_of_steps(job, plan)]
            return configs

    def _rows_dealt(self, job: TrainJob, plan: TrainPlan) -> list[int]:
        """The rows of the stage as the ranks take them, batch by batch."""
        return [row for batch in self._batches(job, plan) for row in batch]

    def _batches_of_steps(self, job: TrainJob, plan: TrainPlan) -> list[list[Batch]]:
        """The batches of all ranks in each step: neighbours that share rows find the same one, one after the other."""
        steps = batches_of_steps(job, plan, num_ranks=self._group.data_parallel_size)
        return [[batch for batch in step for _ in range(self._group.sequence_parallel_size)] for step in steps]

    def _batches(self, job: TrainJob, plan: TrainPlan) -> list[Batch]:
        return [batch for batches in self._batches_of_steps(job, plan) for batch in batches]

    def _table_of_another(self, job: TrainJob, plan: TrainPlan) -> ReferenceTable:
        """What a reference says that is not the start model: it is loaded alone, and freed before the policy comes."""

        def compute() -> ReferenceTable:
            plain = job.trainer.model_copy(update={"report_to": (), "lora": None})
            alone = replace(job, model_path=job.reference_path, model_name=job.reference_name, trainer=plain)
            self._build(alone, plan)
            self._trl.model_wrapped = prepare_deepspeed(self._trl.model, self._trl.accelerator)
            table = computed_table(self._batches(job, plan), functools.partial(_sums_of, self._trl, plan))
            self.release()
            return table

        return self._kept(compute, job, plan)

    def _set_reference(self, job: TrainJob, plan: TrainPlan, table: ReferenceTable | None) -> None:
        """Gives the loss its table; one of the start model is made by the policy itself once its engine stands."""
        trl = self._trl
        if not (isinstance(trl, ReferencedTrainer) and trl.needs_reference):
            return
        if table is not None:
            trl.reference = table
            return

        def ask_the_policy() -> None:
            sums_of = functools.partial(_sums_of, trl, plan)
            trl.reference = self._kept(lambda: computed_table(self._batches(job, plan), sums_of), job, plan)

        trl.add_callback(AtTrainBegin(ask_the_policy))

    def _kept(self, compute: Callable[[], ReferenceTable], job: TrainJob, plan: TrainPlan) -> ReferenceTable:
        """The reference's table, from the state of a stage that is resumed or else computed."""
        state_dir = None if job.settings.save_steps is None else Path(job.state_dir)
        return kept_table(compute, self._batches(job, plan), reference=job.reference, state_dir=state_dir)

    def _probes(
        self, sequences: tuple[tuple[int, ...], ...], start_scores: Sequence[tuple[float, ...]]
    ) -> tuple[ProbeSequence, ...]:
        """The probes under the trained model, and under the one that the stage started from, unless it was resumed."""
        scored = zip(sequences, self._scores(sequences), start_scores or [()] * len(sequences), strict=True)
        return tuple(ProbeSequence(token_ids=ids, logprobs=now, start_logprobs=start) for ids, now, start in scored)

    def _scores(self, sequences: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
        return self.score(sequences) if sequences else []


@contextmanager
def _loading(model: str) -> Iterator[None]:
    """Names the model in what goes wrong while it is loaded."""
    try:
        yield
    except Exception as error:
        raise ModelFilesError(f"{model} cannot be loaded") from error


def _sums_of(trl: ReferencedTrainer, plan: TrainPlan, batch: Batch) -> Sums:
    return trl.reference_sums([plan.rows.dataset[row] for row in batch])


def _forget_engines() -> None:
    """Empties what DeepSpeed keeps of an engine outside it: either of the two keeps the whole model and its optimizer.

    A stack, from which the top module of a model is never taken, and the results of methods that are cached by their
    object. Such a cache lies in a closure, without a name to reach it by, so it is looked for.
    """
    parameter_offload.FWD_MODULE_STACK.clear()
    for found in gc.get_objects():
        if isinstance(found, functools._lru_cache_wrapper) and str(found.__module__).startswith(_ENGINE_CODE):
            found.cache_clear()


def _state(job: TrainJob, plan: TrainPlan, states: StateStorage | None) -> Path | None:
    """The saved state to continue from, if the stage is resumable and has one; rank 0 decides which."""
    if job.settings.save_steps is None:
        return None
    state_dir, digest = Path(job.state_dir), job_digest(job, plan.num_rows, sum(plan.rows.num_tokens))
    step = from_first(lambda: open_state(state_dir, digest) if states is None else states.open(digest))
    if states is not None:
        on_every_rank(lambda: states.fetch(step))
    return None if step is None else on_every_rank(lambda: state_of(state_dir, step))


def _progress(job: TrainJob, plan: TrainPlan, report: Callable[[TrainProgress], None]) -> ProgressCallback:
    return ProgressCallback(
        tokens_of_step=plan.tokens_of_step,
        rows_per_step=job.settings.global_batch_size,
        num_rows=plan.num_rows,
        report=report,
    )


def _result(plan: TrainPlan, progress: ProgressCallback, *, seconds: float, changed: float | None) -> TrainResult:
    return TrainResult(
        steps=plan.total_steps,
        num_examples=plan.num_rows,
        num_skipped=plan.rows.num_skipped,
        num_tokens=sum(plan.tokens_of_step),
        final_loss=progress.losses[-1] if progress.losses else float("nan"),
        seconds=seconds,
        resumed_from_step=progress.start_step,
        share_changed=changed,
    )
