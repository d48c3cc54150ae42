"""How much of a bfloat16 model a training stage changes, through the product's own trainer rank.

    python -m benchmarks.weight_movement [--model DIR] [--float32] [--rows 1000] [--settings dpo:1e-6:16:3]

Each setting is METHOD:LEARNING_RATE:GLOBAL_BATCH:EPOCHS. Without --model a Qwen2 of a million parameters is made here,
its matrices at the scale of a large model's (initializer_range 0.02), and taught the tiny world's demonstrations. Rows
are demonstrations; of a pair the rejected side is the same demonstration with a wrong last number.

Printed for each setting, where every stage starts from the same model:

    weights changed, in per cent, where the baseline is the most that the sum of learning rates can change, as
    `still-ray plan` counts it, for the deviation that this model's matrices have;
    matrix weights changed, and those of size 1e-3 or more, where the baseline is all of them;
    reward accuracy and margin of the last steps, for DPO, or the last loss, for SFT, where the baseline is the first.

With --float32 the passes are in float32, which is several times faster here; the start is on bfloat16's grid and the
result is rounded to it, so the figures are those of DeepSpeed's masters. Without it the passes are in bfloat16 too.

Not part of `make bench`: a setting takes minutes.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import print_figure
from still_ray.algo.optimizer_steps import num_steps, total_learning_rate
from still_ray.algo.placement import resolve_trainer
from still_ray.algo.planning.movement import movable_share
from still_ray.config import OptimizerConfig, TrainerConfig
from still_ray.config.methods import method_named
from still_ray.methods.dpo import DpoConfig, PreferenceOptimizerConfig
from still_ray.methods.sft import SftConfig

DEFAULT = "dpo:5e-7:96:1,dpo:1e-6:16:3,dpo:5e-7:16:3,dpo:5e-6:32:1,sft:1e-5:96:3"
MAX_LENGTH = 512
LARGEST_PASS = 16
"""Rows of one forward pass."""
SMALL = 1e-3
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One stage to measure."""

    method: str
    learning_rate: float
    global_batch_size: int
    epochs: float

    @property
    def name(self) -> str:
        """As it was asked for."""
        return f"{self.method} lr {self.learning_rate:g} batch {self.global_batch_size} epochs {self.epochs:g}"

    @property
    def section(self) -> SftConfig | DpoConfig:
        """The recipe's section."""
        batches: dict[str, Any] = {
            "epochs": self.epochs,
            "global_batch_size": self.global_batch_size,
            "per_device_batch_size": math.gcd(self.global_batch_size, LARGEST_PASS),
            "max_length": MAX_LENGTH,
        }
        if self.method == "dpo":
            return DpoConfig(**batches, optimizer=PreferenceOptimizerConfig(learning_rate=self.learning_rate))
        return SftConfig(**batches, optimizer=OptimizerConfig(learning_rate=self.learning_rate))

    def total(self, num_rows: int) -> float:
        """Sum of the learning rates."""
        steps = num_steps(num_rows=num_rows, epochs=self.epochs, global_batch_size=self.global_batch_size)
        return total_learning_rate(
            peak=self.learning_rate, total_steps=steps, warmup_ratio=self.section.optimizer.warmup_ratio
        )


def setting_of(text: str) -> Setting:
    """Reads METHOD:LEARNING_RATE:GLOBAL_BATCH:EPOCHS.

    Raises:
        SystemExit: It is not that.
    """
    try:
        method, rate, batch, epochs = text.split(":")
        found = Setting(method=method, learning_rate=float(rate), global_batch_size=int(batch), epochs=float(epochs))
    except ValueError:
        raise SystemExit(f"weight_movement: {text!r} is not METHOD:LEARNING_RATE:GLOBAL_BATCH:EPOCHS") from None
    if method not in ("sft", "dpo"):
        raise SystemExit(f"weight_movement: {text!r}: the method is sft or dpo")
    return found


class Bench:
    """A model, its rows, and one rank to train it."""

    def __init__(self, folder: Path, trainer: TrainerConfig, *, num_rows: int) -> None:
        from still_ray.trainer.worker import TrainerWorker

        self._folder = folder
        self._trainer = trainer
        self._num_rows = num_rows
        self._worker = TrainerWorker(resolve_trainer(trainer, has_gpus=False))

    def prepare(self, model: str | None) -> str:
        """The start model: the one given, or one that is made here."""
        if model is not None:
            return model
        random = self._folder / "random"
        write_random_model(random)
        teach = Setting(method="sft", learning_rate=1e-3, global_batch_size=32, epochs=4)
        self._train(str(random), "start", teach)
        _round_to_bfloat16(self._folder / "start" / WEIGHTS)
        return str(self._folder / "start")

    def measure(self, start: str, setting: Setting) -> None:
        """Trains one stage in bfloat16 and prints what it changed."""
        progress = self._train(start, setting.name.replace(" ", "-"), setting)
        before, after = (_weights(place) for place in (start, str(self._folder / setting.name.replace(" ", "-"))))
        matrices = [name for name, tensor in after.items() if tensor.ndim > 1]
        std = _flat(before, matrices).std().item()
        limit = movable_share(setting.total(self._num_rows), std=std)
        moved = (_flat(after, list(after)) != _flat(before, list(after))).float().mean().item()
        _print_share(f"{setting.name}: weights changed", moved, limit)
        changed = _flat(after, matrices) != _flat(before, matrices)
        large = _flat(before, matrices).abs() >= SMALL
        _print_share(f"{setting.name}: matrix weights changed (std {std:.3f})", changed.float().mean().item(), 1.0)
        _print_share(f"{setting.name}: of those of 1e-3 or more", changed[large].float().mean().item(), 1.0)
        _print_learning(setting, progress)

    def _train(self, start: str, name: str, setting: Setting) -> list[Any]:
        from still_ray.trainer.job import TrainJob

        job = TrainJob(
            name=name,
            method=setting.method,
            training_path=method_named(setting.method).trainer,
            model_path=start,
            output_dir=str(self._folder / name),
            settings=setting.section,
            trainer=self._trainer,
            seed=1,
        )
        progress: list[Any] = []
        rows = list(self._rows(start, setting.method))
        self._worker.train(job, rows, on_progress=progress.append)
        return progress

    def _rows(self, model: str, method: str) -> Iterator[Any]:
        from transformers import AutoTokenizer

        from still_ray.config import PromptConfig
        from still_ray.formats.prompt import ChatRenderer
        from still_ray.formats.responses.markers import render_response
        from still_ray.tiny_world.arithmetic import make_demonstrations
        from still_ray.trainer.methods.dpo import TokenizedPair
        from still_ray.trainer.methods.sft import TokenizedExample

        renderer = ChatRenderer.of(AutoTokenizer.from_pretrained(model), PromptConfig())
        for row in make_demonstrations(self._num_rows, seed=2):
            prompt = tuple(renderer.prompt_ids(row.question))
            right = tuple(renderer.completion_ids(render_response(row.thought, row.solution)))
            if method == "sft":
                yield TokenizedExample(prompt_ids=prompt, completion_ids=right)
                continue
            wrong = tuple(renderer.completion_ids(render_response(*_wrong(row.thought, row.solution))))
            yield TokenizedPair(prompt_ids=prompt, chosen_ids=right, rejected_ids=wrong)


def write_random_model(folder: Path) -> None:
    """A Qwen2 with the tiny world's tokenizer and random weights, matrices normal with deviation 0.02."""
    from still_ray.tiny_world.build_backbone import BuildSettings, new_model
    from still_ray.tiny_world.tokenizer import build_tokenizer, write_tokenizer

    tokenizer = build_tokenizer()
    settings = BuildSettings(hidden_size=128, intermediate_size=512, num_layers=4)
    write_tokenizer(tokenizer, folder)
    new_model(tokenizer, settings).bfloat16().save_pretrained(folder)


def _wrong(thought: str, solution: str) -> tuple[str, str]:
    """A demonstration whose last number is wrong by one, in the thought and in the solution."""
    answer = solution[solution.index("{") + 1 : solution.index("}")]
    other = str(int(answer) + 1)
    return f"{thought[: thought.rindex('=')]}={other}.", solution.replace(answer, other)


def _round_to_bfloat16(file: Path) -> None:
    """Puts weights on bfloat16's grid, in the type that they have: one that lies between two would change by itself."""
    from safetensors.torch import load_file, save_file

    rounded = {name: tensor.bfloat16().to(tensor.dtype) for name, tensor in load_file(file).items()}
    save_file(rounded, file, metadata={"format": "pt"})


def _weights(folder: str) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor.bfloat16() for name, tensor in load_file(Path(folder) / WEIGHTS).items()}


def _flat(weights: dict[str, Any], names: Sequence[str]) -> Any:
    import torch

    return torch.cat([weights[name].flatten() for name in names])


def _print_share(name: str, share: float, most: float) -> None:
    print_figure(name, value=100 * share, unit="%", baseline=100 * most)


def _print_learning(setting: Setting, progress: Sequence[Any]) -> None:
    if setting.method == "sft":
        print_figure(f"{setting.name}: loss", value=progress[-1].loss, unit="", baseline=progress[0].loss)
        return
    for metric, baseline in (("rewards/accuracies", 0.5), ("rewards/margins", 1.0)):
        last = [record.metrics[metric] for record in progress[-5:]]
        print_figure(f"{setting.name}: {metric}", value=sum(last) / len(last), unit="", baseline=baseline)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Measures every setting, one after another."""
    parser = argparse.ArgumentParser(description="Share of weights that a stage changes in bfloat16.")
    parser.add_argument("--model", help="HF model directory; a model is made here without it")
    parser.add_argument("--settings", default=DEFAULT)
    parser.add_argument("--float32", action="store_true", help="the masters' movement alone: passes in float32")
    parser.add_argument("--rows", type=int, default=1000)
    arguments = parser.parse_args()
    settings = [setting_of(text) for text in arguments.settings.split(",")]
    bf16 = not arguments.float32
    trainer = TrainerConfig(num_workers=1, use_gpu=False, bf16=bf16, logging_steps=1, threads=1)
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }

    from still_ray.trainer.environment import trainer_environment

    os.environ |= trainer_environment(resolve_trainer(trainer, has_gpus=False), use_gpu=False)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), trainer, num_rows=arguments.rows)
        start = bench.prepare(arguments.model)
        for setting in settings:
            bench.measure(start, setting)


if __name__ == "__main__":
    main()
