"""One rank of the trainer groups in `test_trainer_ranks.py`: runs every scenario in one process and writes what it saw.

RANK=0 WORLD_SIZE=2 … python -m tests.integration.trainer_rank DIRECTORY
A group of one rank runs the scenarios of such a group.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from still_ray.algo.placement import resolve_trainer
from still_ray.config.methods import METHODS, method_named
from still_ray.config.schema import LoraConfig, OptimizerConfig, TrainerConfig, TrainingSection
from still_ray.methods.dpo import DpoConfig, PreferenceOptimizerConfig
from still_ray.methods.kto import KtoConfig
from still_ray.methods.sft import SftConfig
from still_ray.trainer.job import TrainJob, TrainOutcome
from still_ray.trainer.methods.dpo import TokenizedPair
from still_ray.trainer.methods.kto import TokenizedJudgement
from still_ray.trainer.methods.sft import TokenizedExample
from still_ray.types import RunError, TrainProgress
from tests.live_memory import live_tensors

NUM_RECEIVERS = 3
"""Worker ranks of the two replicas: one of a single rank, one of two."""
GLOBAL_BATCH = 8
MAX_LENGTH = 48
TRAINER = TrainerConfig(num_workers=2, use_gpu=False, logging_steps=1)
SFT = SftConfig(
    epochs=2.0,
    global_batch_size=GLOBAL_BATCH,
    per_device_batch_size=2,
    max_length=MAX_LENGTH,
    optimizer=OptimizerConfig(learning_rate=2e-3),
)
HANDED_ON = TRAINER.model_copy(
    update={
        "zero_stage": 2,
        "deepspeed": {"zero_optimization": {"reduce_bucket_size": 4_000_000}},
        "trl": {"adam_epsilon": 1e-10, "f_divergence_type": "js_divergence"},
    }
)
"""With arguments for both libraries; the last is one of DPO's, which SFT is not given."""
SFT_BFLOAT16 = SFT.model_copy(
    update={"per_device_batch_size": 1, "optimizer": OptimizerConfig(learning_rate=2e-5, warmup_ratio=0.0)}
)
"""Moves some weights by more than half a unit in the last place, and others by less."""
DPO = DpoConfig(
    epochs=2.0,
    global_batch_size=GLOBAL_BATCH,
    per_device_batch_size=2,
    max_length=MAX_LENGTH,
    sft_weight=0.5,
    optimizer=PreferenceOptimizerConfig(learning_rate=5e-4),
)


def examples() -> list[TokenizedExample]:
    """24 rows that count upwards from a random start, and one that is too long."""
    generator = random.Random(0)
    rows = []
    for _ in range(24):
        start, length = generator.randrange(100), generator.randrange(6, 30)
        rows.append(
            TokenizedExample(prompt_ids=(200, start, 201), completion_ids=(*range(start + 1, start + length), 258))
        )
    return [*rows, TokenizedExample(prompt_ids=(1,), completion_ids=(2,) * MAX_LENGTH)]


def pairs() -> list[TokenizedPair]:
    """Counting upwards is preferred to counting downwards."""
    return [
        TokenizedPair(
            prompt_ids=row.prompt_ids, chosen_ids=row.completion_ids, rejected_ids=tuple(reversed(row.completion_ids))
        )
        for row in examples()
    ]


STILL = DPO.model_copy(update={"optimizer": PreferenceOptimizerConfig(learning_rate=1e-12)})
"""A rate that moves no bfloat16 weight: in every step of every epoch the policy is its own reference."""


KTO = KtoConfig(
    epochs=2.0,
    global_batch_size=GLOBAL_BATCH,
    per_device_batch_size=2,
    max_length=MAX_LENGTH,
    desirable_weight=1.5,
    optimizer=PreferenceOptimizerConfig(learning_rate=5e-4),
)


def judged() -> list[TokenizedJudgement]:
    """Counting upwards is desirable, counting downwards is not; two of three rows count upwards."""
    rows = []
    for index, row in enumerate(examples()):
        desirable = index % 3 != 0
        completion = row.completion_ids if desirable else tuple(reversed(row.completion_ids))
        rows.append(TokenizedJudgement(prompt_ids=row.prompt_ids, completion_ids=completion, desirable=desirable))
    return rows


STILL_KTO = KTO.model_copy(update={"optimizer": PreferenceOptimizerConfig(learning_rate=1e-12)})


LORA = TRAINER.model_copy(update={"lora": LoraConfig(rank=4, alpha=8, embeddings=False)})
WITH_EMBEDDINGS = TRAINER.model_copy(update={"lora": LoraConfig(rank=4, alpha=8, embeddings=True)})
LORA_SFT = SFT.model_copy(update={"optimizer": OptimizerConfig(learning_rate=2e-2)})
LORA_DPO = DPO.model_copy(
    update={"save_steps": 2, "micro_batch_tokens": 130, "optimizer": PreferenceOptimizerConfig(learning_rate=5e-3)}
)
"""Its steps differ in their number of passes."""


GRADIENT_RATE = 0.5
ONE_STEP: dict[str, Any] = {
    "epochs": 1 / 3,
    "per_device_batch_size": 1,
    "optimizer": OptimizerConfig(learning_rate=GRADIENT_RATE, weight_decay=0.0, max_grad_norm=1e9),
}
"""Under SGD: a stage moves the weights by the gradient of its one step, times the rate."""
BY_TOKENS: dict[str, tuple[TrainingSection, int]] = {
    "sft": (SFT, 64),
    "dpo": (DPO.model_copy(update={"sft_weight": 0.0}), 130),
    "kto": (KTO.model_copy(update={"loss": "apo_zero_unpaired"}), 64),
}
"""Losses that are sums over rows, each with tokens for a pass of some rows of it."""


def uneven_pairs() -> list[TokenizedPair]:
    """Pairs whose sides differ in length, so that both are padded, and batches too."""
    return [replace(pair, rejected_ids=pair.rejected_ids[: 1 + row % 7]) for row, pair in enumerate(pairs())]


PROBES = ((200, 5, 201, 6, 7, 8), (200, 50), tuple(range(40, 80)))


class InterruptedStageError(Exception):
    """What stands for a killed stage."""


class UnpicklableError(Exception):
    """An exception that cannot be sent to another process."""


class Scenarios:
    """Everything that one group of ranks is asked to do; `seen` is what the test reads."""

    def __init__(self, directory: Path) -> None:
        from still_ray.trainer.worker import TrainerWorker

        self.directory = directory
        self.seen: dict[str, Any] = {"left": {}}
        self.trainer = TRAINER
        self.worker = TrainerWorker(resolve_trainer(TRAINER, has_gpus=False))
        self.constants = Counter(live_tensors())  # of libraries, from when they were imported

    def run_alone(self) -> None:
        """The scenarios of a group of one rank."""
        self.seen["all_gather_bytes_per_s"] = self.all_gather_rate()
        alone = TRAINER.model_copy(update={"num_workers": 1})
        half = alone.model_copy(update={"bf16": True})
        checkpointed = half.model_copy(update={"gradient_checkpointing": True})
        for name, settings, data, trainer, attention in (
            ("alone-0", SFT, examples(), alone, "sdpa"),
            ("alone-1", STILL, uneven_pairs(), half, "sdpa"),
            ("alone-2", SFT, examples(), checkpointed, "sdpa"),
            ("alone-3", STILL, uneven_pairs(), checkpointed, "eager"),
            ("alone-4", STILL_KTO, judged(), checkpointed, "sdpa"),
            ("alone-5", STILL, uneven_pairs(), checkpointed.model_copy(update={"lora": LORA.lora}), "sdpa"),
            ("alone-6", STILL_KTO, judged(), checkpointed.model_copy(update={"lora": LORA.lora}), "sdpa"),
        ):
            with attention_by(attention):
                self.stage(name, settings, data, init="start", trainer=trainer)
            self.release(name)

    def run(self) -> None:
        """The scenarios of a group of two ranks."""
        self.seen["all_gather_bytes_per_s"] = self.all_gather_rate()
        self.stage("sft", SFT, examples(), init="start")
        self.seen["scores"] = self.worker.score(PROBES)
        self.read_out("sft")
        self.seen["scores_after_read_out"] = self.worker.score(PROBES)
        self.release("sft")
        self.stage("dpo", DPO, pairs(), init="sft")
        self.stage("whole", DPO.model_copy(update={"save_steps": 2}), pairs(), init="sft")
        self.resumed()
        self.release("resumed")
        self.references()
        self.release("references")
        self.adapted()
        self.release("lora")
        self.by_tokens()
        self.decisions()
        half = TRAINER.model_copy(update={"bf16": True})
        self.stage("bf16", STILL, uneven_pairs(), init="start", trainer=half)
        with no_parameter_stays_gathered():
            self.stage("bf16-sharded", STILL, uneven_pairs(), init="start", trainer=half)
            saving = {"gradient_checkpointing": True, "num_mlp_tiles": 3, "offload_activations": True}
            tiled = TRAINER.model_copy(update=saving)
            self.stage("tiled", SFT, examples(), init="start", trainer=tiled)
            again = LORA.model_copy(update=saving)
            self.stage("lora-sharded", LORA_SFT, examples(), init="start", trainer=again)
            self.stage("sharded", SFT, examples(), init="start")
            self.read_out("sharded")
            self.broadcast()
        self.short_of_memory()
        self.release("sharded")
        self.stage("untied-zero-2", SFT, examples(), init="untied", trainer=HANDED_ON)
        self.seen["handed_on"] = self.handed_on()
        self.seen["untied_scores"] = self.worker.score(PROBES)
        self.read_out("untied-zero-2")
        self.release("untied-zero-2")
        self.bfloat16()
        self.release("bfloat16")

    def all_gather_rate(self) -> float:
        import torch

        from still_ray.trainer.bandwidth import all_gather_bytes_per_s

        return all_gather_bytes_per_s(torch.device("cpu"))

    def release(self, name: str) -> None:
        """Releases the last stage and notes which tensors are left of it."""
        self.worker.release()
        self.seen["left"][name] = [*(Counter(live_tensors()) - self.constants).elements()]

    def job(self, name: str, settings: TrainingSection, init: str, trainer: TrainerConfig) -> TrainJob:
        method = next(found for found in map(method_named, METHODS) if isinstance(settings, found.settings))
        return TrainJob(
            name=name,
            method=method.name,
            training_path=method.trainer,
            num_sequences=method.num_sequences,
            model_path=str(self.directory / init),
            output_dir=str(self.directory / name),
            settings=settings,
            trainer=trainer,
            seed=3,
            probe_sequences=PROBES,
        )

    def stage(
        self,
        name: str,
        settings: TrainingSection,
        data: Any,
        *,
        init: str,
        trainer: TrainerConfig = TRAINER,
        reference: Path | None = None,
    ) -> TrainOutcome:
        self.group_as(trainer)
        progress: list[TrainProgress] = []
        job = replace(self.job(name, settings, init, trainer), reference_path=str(reference or ""))
        outcome = self.worker.train(job, data, on_progress=progress.append)
        self.seen[name] = {"outcome": asdict(outcome), "progress": [asdict(record) for record in progress]}
        return outcome

    def group_as(self, trainer: TrainerConfig) -> None:
        """Makes the rank one of a group with this section of the recipe: it decides in what is computed."""
        from still_ray.trainer.worker import TrainerWorker

        if trainer != self.trainer:
            self.worker.release()
            self.trainer, self.worker = trainer, TrainerWorker(resolve_trainer(trainer, has_gpus=False))

    def references(self) -> None:
        """DPO against the start model by another path, and KTO against another model than it starts from."""
        import torch.distributed as dist

        linked = self.directory / "linked"
        if dist.get_rank() == 0:
            linked.symlink_to("sft")
        dist.barrier()
        self.stage("dpo-by-path", DPO, pairs(), init="sft", reference=linked)
        self.stage("kto", KTO, judged(), init="sft", reference=self.directory / "start")

    def decisions(self) -> None:
        """What one rank's view and one rank's failure come to on all ranks."""
        import torch
        import torch.distributed as dist

        from still_ray.trainer.ranks import from_first, on_every_rank, require_same

        rank = dist.get_rank()

        def fail_on(failing: int) -> int:
            if rank == failing:
                raise RunError(f"rank {rank} fails", actor_id="its actor") from OSError(28, "No space left on device")
            return rank

        def fail_unpicklably() -> None:
            raise UnpicklableError(lambda: None)

        def raised(action: Callable[[], Any]) -> list[str]:
            try:
                action()
            except Exception as error:
                return [type(error).__name__, str(error), repr(error.__cause__), getattr(error, "actor_id", "")]
            return []

        self.seen["decisions"] = {
            "from_first": from_first(lambda: rank),
            "on_every_rank": on_every_rank(lambda: rank),
            "first_fails": raised(lambda: from_first(lambda: fail_on(0))),
            "second_fails": raised(lambda: on_every_rank(lambda: fail_on(1))),
            "unpicklable": raised(lambda: from_first(fail_unpicklably)),
            "others": raised(lambda: require_same(str(rank), "rows")),
            "same": raised(lambda: require_same("rows", "rows")),
            "timeouts_s": [
                group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
                for group in dist.distributed_c10d._world.pg_map
            ],
        }

    def resumed(self) -> None:
        """A DPO stage that dies at step 3, and the same stage again, first with a rank that sees another file system.

        The second time that rank sees the state, but neither the mark that it is whole nor the reference's numbers.
        """
        import torch.distributed as dist

        job = replace(self.job("whole", DPO.model_copy(update={"save_steps": 2}), "sft", TRAINER), output_dir="")
        job = replace(job, output_dir=str(self.directory / "resumed"))
        try:
            self.worker.train(job, pairs(), on_progress=interrupt_at(3))
        except InterruptedStageError:
            self.seen["state"] = sorted(path.name for path in Path(job.state_dir).iterdir())
        elsewhere = job if dist.get_rank() == 0 else replace(job, output_dir=str(self.directory / "another-view"))
        try:
            self.worker.train(elsewhere, pairs(), on_progress=lambda _: None)
        except RunError as error:
            self.seen["unseen_state"] = str(error)
        if dist.get_rank() == 1:
            hidden = shutil.ignore_patterns("still-ray-complete", "reference.json")
            shutil.copytree(job.state_dir, elsewhere.state_dir, ignore=hidden)
        dist.barrier()  # rank 0 goes on writing where rank 1 copies from
        outcome = self.worker.train(elsewhere, pairs(), on_progress=lambda _: None)
        self.seen["resumed"] = asdict(outcome)
        self.seen["state_left"] = Path(job.state_dir).exists()

    def by_tokens(self) -> None:
        """One step of each method, a row a pass and then as many as fit; with the rows of this rank's passes."""
        plain = TRAINER.model_copy(update={"trl": {"optim": "sgd"}})
        data: dict[str, Any] = {"sft": examples(), "dpo": uneven_pairs(), "kto": judged()}
        for name, (settings, tokens) in BY_TOKENS.items():
            by_rows = settings.model_copy(update=ONE_STEP)
            self.stage(f"{name}-rows", by_rows, data[name], init="start", trainer=plain)
            packed = by_rows.model_copy(update={"micro_batch_tokens": tokens})
            self.stage(f"{name}-tokens", packed, data[name], init="start", trainer=plain)
            self.seen[f"{name}-tokens"]["steps"] = self.worker._live().steps

    def handed_on(self) -> list[Any]:
        """What reached the libraries; the engine is held by no one else's frame when its stage is released."""
        engine = self.worker._live().model_wrapped
        return [engine.zero_reduce_bucket_size(), engine.optimizer.param_groups[0]["eps"]]

    def adapted(self) -> None:
        """SFT of adapters, then DPO of adapters and embeddings, as it is and by a group that dies at step 3."""
        self.stage("lora", LORA_SFT, examples(), init="start", trainer=LORA)
        self.seen["lora_scores"] = self.worker.score(PROBES)
        self.read_out("lora")
        self.stage("lora-dpo", LORA_DPO, pairs(), init="lora", trainer=WITH_EMBEDDINGS)
        job = self.job("lora-resumed", LORA_DPO, "lora", WITH_EMBEDDINGS)
        try:
            self.worker.train(job, pairs(), on_progress=interrupt_at(3))
        except InterruptedStageError:
            states = Path(job.state_dir, "checkpoint-2").rglob("*_states.pt")
            self.seen["lora_state_bytes"] = {path.name: path.stat().st_size for path in states}
        self.seen["lora-resumed"] = asdict(self.worker.train(job, pairs(), on_progress=lambda _: None))

    def bfloat16(self) -> None:
        """A stage in bfloat16 whose step is four forward passes of each rank, and what became of its gradients."""
        trainer = TRAINER.model_copy(update={"bf16": True})
        self.stage("bfloat16", SFT_BFLOAT16, examples(), init="start", trainer=trainer)
        engine = self.worker._live().model_wrapped
        sums = engine.optimizer.grad_partitions_flat_buffer
        self.seen["bfloat16/gradients"] = {
            "finer_than_bfloat16": (sums != sums.bfloat16()).float().mean().item(),
            "reduced_in": str(engine.communication_data_type),
        }

    def read_out(self, name: str) -> None:
        import torch
        import torch.distributed as dist
        from safetensors.torch import save_file

        from still_ray.weight_sync.zero_source import ZeroSource

        model = self.worker.model
        source = ZeroSource(model)
        held: list[int] = []
        groups: list[list[str]] = []
        whole: dict[str, torch.Tensor] = {}
        for group in source.iter_groups():
            held.append(sum(parameter.numel() for parameter in model.parameters()))
            groups.append([tensor_name for tensor_name, _ in group])
            whole.update(group)
        self.seen[f"{name}/source"] = {
            "metadata": [[meta.name, str(meta.dtype), list(meta.shape)] for meta in source.metadata()],
            "groups": groups,
            "held_between_groups": held,
            "second_pass": [tensor_name for tensor_name, _ in source],
            "only_helping": list(ZeroSource(model, keep=False)),
        }
        if dist.get_rank() == 0:
            save_file(whole, self.directory / f"{name}-source.safetensors")

    def broadcast(self) -> None:
        """Sends the sharded model to the replicas that `test_trainer_ranks` started."""
        import torch
        import torch.distributed as dist

        from still_ray.weight_sync.member import Sender
        from still_ray.weight_sync.zero_source import ZeroSource
        from tests.integration.replica_process import DEADLINE_S, write

        leads = dist.get_rank() == 0
        source = ZeroSource(self.worker.model, keep=leads)
        if leads:
            sender = Sender(
                "127.0.0.1",
                num_receivers=NUM_RECEIVERS,
                backend="gloo",
                device=torch.device("cpu"),
                timeout_s=DEADLINE_S,
                cancelled=lambda: False,
            )
            layouts = [[asdict(spec) for spec in specs] for specs in source.layouts()]
            write(self.directory / "meeting.json", {"rendezvous": asdict(sender.rendezvous), "layouts": layouts})
            sender.send(source.iter_packed())
        self.seen["yielded_by_a_helper"] = 0 if leads else sum(1 for _ in source.iter_packed())

    def short_of_memory(self) -> None:
        """What the ranks do when one has no room for a group, and when the first has none for a block; then in step."""
        import torch
        import torch.distributed as dist

        from still_ray.weight_sync.errors import SyncError
        from still_ray.weight_sync.zero_source import ZeroSource, agreed

        leads = dist.get_rank() == 0
        no_memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 bytes.")
        source = ZeroSource(self.worker.model, keep=leads)
        self.seen["short_of_nothing"] = agreed(source.shortage())
        with patch("torch.empty", side_effect=None if leads else no_memory, wraps=torch.empty):
            shortage = source.shortage()
        self.seen["shortage"] = agreed(shortage)
        packed = ZeroSource._packed
        outcomes: Any = iter([packed, no_memory, packed])

        def pack(*arguments: Any) -> torch.Tensor:
            outcome = next(outcomes)
            if isinstance(outcome, Exception):
                raise outcome
            block: torch.Tensor = outcome(*arguments)
            return block

        num_blocks, failure = 0, ""
        with patch.object(ZeroSource, "_packed", pack):
            try:
                for _ in source.iter_packed():
                    num_blocks += 1
            except SyncError as error:
                failure = str(error)
        dist.barrier()
        self.seen["block_without_memory"] = [num_blocks, failure]


def interrupt_at(step: int) -> Callable[[TrainProgress], None]:
    def report(progress: TrainProgress) -> None:
        if progress.step == step:
            raise InterruptedStageError

    return report


@contextmanager
def attention_by(implementation: str) -> Iterator[None]:
    """Loads models with another implementation of attention than transformers would choose."""
    from transformers import AutoModelForCausalLM

    load = partial(AutoModelForCausalLM.from_pretrained, attn_implementation=implementation)
    with patch("still_ray.trainer.model.AutoModelForCausalLM.from_pretrained", load):
        yield


@contextmanager
def no_parameter_stays_gathered() -> Iterator[None]:
    """What a GPU does: parameters are gathered for each module and let go after it."""
    from still_ray.trainer.zero_config import zero_config

    def config(trainer: TrainerConfig, *, use_gpu: bool) -> dict[str, Any]:
        changed = zero_config(trainer, use_gpu=use_gpu)
        changed["zero_optimization"] |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_max_live_parameters": 0,
            "stage3_max_reuse_distance": 0,
            "memory_efficient_linear": True,
        }
        return changed

    with (
        patch("still_ray.trainer.arguments.zero_config", config),
        patch("still_ray.trainer.model.set_z3_leaf_modules"),
    ):
        yield


@contextmanager
def everything_said() -> Iterator[list[str]]:
    """What is printed or warned of; Ray Train replaces `print` in the same way."""
    said: list[str] = []
    original = builtins.print
    builtins.print = lambda *values, **_: said.append(" ".join(map(str, values)))
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: said.append(str(message))
            yield said
    finally:
        builtins.print = original


def main() -> None:
    directory, name = Path(sys.argv[1]), sys.argv[2]
    with everything_said() as said:
        scenarios = Scenarios(directory)
        if os.environ["WORLD_SIZE"] == "1":
            scenarios.run_alone()
        else:
            scenarios.run()
    scenarios.seen["said"] = said
    (directory / f"seen-{name}.json").write_text(json.dumps(scenarios.seen), encoding="utf-8")


if __name__ == "__main__":
    main()
