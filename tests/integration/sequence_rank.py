"""Trainer groups of one, two and four ranks for `test_sequence_parallel.py`, whose ranks share rows or do not.

python -m tests.integration.sequence_rank DIRECTORY PORT…, one port for each group
What all import is imported once: every rank is a fork. It writes what it saw to DIRECTORY/GROUP-RANK.pt.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_get_full_grad

from still_ray.algo.placement import resolve_trainer
from still_ray.algo.resolved import Precision
from still_ray.config.methods import method_named
from still_ray.config.schema import LoraConfig, OptimizerConfig, TrainerConfig, TrainingSection
from still_ray.methods.dpo import DpoConfig
from still_ray.methods.kto import KtoConfig
from still_ray.methods.sft import SftConfig
from still_ray.trainer.job import TrainJob
from still_ray.trainer.methods.dpo import TokenizedPair
from still_ray.trainer.methods.kto import TokenizedJudgement
from still_ray.trainer.methods.sft import TokenizedExample
from still_ray.trainer.sequence_parallel import ATTENTION, SequenceGroup
from still_ray.trainer.worker import TrainerWorker
from still_ray.types import TrainProgress
from tests.integration.trainer_rank import InterruptedStageError, interrupt_at
from tests.unit.test_planning_memory import SMALL, measured_pass, real_model

NUM_ROWS = 8
BATCH: dict[str, Any] = {"epochs": 1.0, "global_batch_size": NUM_ROWS, "per_device_batch_size": 2, "max_length": 64}
SFT = SftConfig(**BATCH)
DPO = DpoConfig(**BATCH, sft_weight=0.5)
KTO = KtoConfig(**BATCH, desirable_weight=1.5)
RESUMED = SftConfig(
    **BATCH | {"epochs": 4.0, "save_steps": 2}, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.0)
)
PROBES = ((200, 5, 201, 6, 7, 8), (200, 50), tuple(range(40, 81)))
WORLDS = (1, 2, 4)
LONG_ROW = 1024


def rows() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts and completions of every length from very short on, so that slices end anywhere in both."""
    generator = random.Random(0)
    sizes = [(1, 1), (3, 2), (2, 9), (11, 4), (5, 22), (30, 3), (17, 20), (7, 52)]
    return [
        (tuple(generator.randrange(250) for _ in range(first)), tuple(generator.randrange(250) for _ in range(second)))
        for first, second in sizes
    ]


def examples() -> list[TokenizedExample]:
    return [TokenizedExample(prompt_ids=prompt, completion_ids=completion) for prompt, completion in rows()]


def pairs() -> list[TokenizedPair]:
    """The rejected side is shorter or longer than the chosen one."""
    found = rows()
    return [
        TokenizedPair(prompt_ids=prompt, chosen_ids=completion, rejected_ids=found[-1 - index][1][:30])
        for index, (prompt, completion) in enumerate(found)
    ]


def judged() -> list[TokenizedJudgement]:
    return [
        TokenizedJudgement(prompt_ids=prompt, completion_ids=completion, desirable=index % 3 != 0)
        for index, (prompt, completion) in enumerate(rows())
    ]


class Rank:
    """One rank of a group of `world`; `seen` is what the test reads."""

    def __init__(self, directory: Path, world: int) -> None:
        self.directory = directory
        self.world = world
        self.seen: dict[str, Any] = {}
        self.worker: Any = None

    def run(self) -> None:
        if self.world > 1:
            self.memory()  # first: what a trainer leaves behind calls every later model a sharded one
        if self.world == 1:
            self.compare("dpo-lora", DPO, pairs(), lora=LoraConfig(rank=4))
        if self.world == 2:
            self.compare("sft-zero-2", SFT, examples(), sequence_parallel_size=2, zero_stage=2)
            self.compare("dpo-lora", DPO, pairs(), sequence_parallel_size=2, lora=LoraConfig(rank=4))
            self.compare("kto-1", KTO, judged(), sequence_parallel_size=1)
            self.resumed()
            return
        for name, settings, data in (("sft", SFT, examples()), ("dpo", DPO, pairs()), ("kto", KTO, judged())):
            for sharing in {1: (1,), 4: (2, 4)}[self.world]:
                self.compare(f"{name}-{sharing}", settings, data, sequence_parallel_size=sharing)
        if self.world == 4:
            again = {"sequence_parallel_size": 4, "gradient_checkpointing": True}
            self.compare("sft-recomputed", SFT, examples(), **again)
            tokens = SFT.model_copy(update={"micro_batch_tokens": 100})
            self.compare("sft-tokens", tokens, examples(), sequence_parallel_size=2)

    def compare(self, name: str, settings: TrainingSection, data: Any, **trainer: Any) -> None:
        """One step from one model, compared with another one where the method has a reference."""
        config = self.group_as(**trainer)
        progress: list[TrainProgress] = []
        other = "" if isinstance(settings, SftConfig) else str(self.directory / "other")
        job = replace(self.job(name, settings, config), reference_path=other)
        with gradients(lambda: self.worker.model) as found:
            outcome = self.worker.train(job, data, on_progress=progress.append)
        self.seen[name] = {
            "loss": progress[0].loss,
            "metrics": progress[0].metrics,
            "gradients": found,
            "scores": [probe.start_logprobs for probe in outcome.probes],
        }

    def resumed(self) -> None:
        """A stage in slices, the same one that dies and goes on, and one that dies with whole rows and goes on so."""
        for name, before in (("whole", None), ("resumed", 2), ("resumed-across", 1)):
            if before is not None:
                config = self.group_as(sequence_parallel_size=before)
                with suppress(InterruptedStageError):
                    self.worker.train(self.job(name, RESUMED, config), examples(), on_progress=interrupt_at(3))
            config = self.group_as(sequence_parallel_size=2)
            outcome = self.worker.train(self.job(name, RESUMED, config), examples(), on_progress=lambda _: None)
            self.seen[f"{name} from step"] = outcome.resumed_from_step

    def memory(self) -> None:
        """What this rank keeps of a forward pass over long rows, and its peak until the end of the backward pass."""
        self.group_as()
        group = SequenceGroup(self.world)
        for again in (False, True):
            model = real_model(SMALL, Precision(bf16=True, gradient_checkpointing=again))
            model.set_attn_implementation(ATTENTION)
            group.slice_rows(model)
            self.seen["recomputed" if again else "kept"] = measured_pass(model, 2, LONG_ROW)

    def job(self, name: str, settings: TrainingSection, trainer: TrainerConfig) -> TrainJob:
        method = method_named(next(part for part in ("sft", "dpo", "kto") if isinstance(settings, KINDS[part])))
        return TrainJob(
            name=name,
            method=method.name,
            training_path=method.trainer,
            model_path=str(self.directory / "start"),
            output_dir=str(self.directory / f"{name}-of-{self.world}"),
            settings=settings,
            trainer=trainer,
            seed=3,
            probe_sequences=PROBES,
        )

    def group_as(self, **trainer: Any) -> TrainerConfig:
        if self.worker is not None:
            self.worker.release()
        config = TrainerConfig(num_workers=self.world, use_gpu=False, logging_steps=1, **trainer)
        self.worker = TrainerWorker(resolve_trainer(config, has_gpus=False))
        return config


KINDS: dict[str, type[TrainingSection]] = {"sft": SftConfig, "dpo": DpoConfig, "kto": KtoConfig}


@contextmanager
def gradients(model: Callable[[], Any]) -> Iterator[dict[str, torch.Tensor]]:
    """The whole gradients with which an optimizer step is made, by the name of their parameter."""
    found: dict[str, torch.Tensor] = {}
    step = DeepSpeedEngine.step

    def noted(engine: Any, *arguments: Any, **options: Any) -> Any:
        if engine.is_gradient_accumulation_boundary():
            for name, parameter in model().named_parameters():
                if parameter.requires_grad:
                    found[name] = safe_get_full_grad(parameter).clone()
        return step(engine, *arguments, **options)

    with patch.object(DeepSpeedEngine, "step", noted):
        yield found


def start(directory: Path, world: int, rank: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    of_rank = Rank(directory, world)
    of_rank.run()
    torch.save(of_rank.seen, directory / f"{world}-{rank}.pt")


def main() -> int:
    directory, ports = Path(sys.argv[1]), sys.argv[2:]
    fork = multiprocessing.get_context("fork")
    ranks = [
        fork.Process(target=start, args=(directory, world, rank, port))
        for world, port in zip(WORLDS, ports, strict=True)
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return max(process.exitcode or 0 for process in ranks)


if __name__ == "__main__":
    sys.exit(main())
