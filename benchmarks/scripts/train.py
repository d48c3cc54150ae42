"""Supervised fine-tuning by TRL under DeepSpeed ZeRO-3 on CPU ranks that speak gloo.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.scripts.train --model DIR --rows rows.jsonl --out DIR

Beside the model it leaves train.json: seconds before and of the steps, tokens of all steps, first and last loss.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scripts.sample import read_lines

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "DS_LOG_LEVEL": "warning"}
FAST_ON_CPU = {
    "TORCHDYNAMO_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LOCAL_SIZE": "1",  # else DeepSpeed starts numactl in every step, to count NUMA nodes
}
ZERO_3 = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {
        "stage": 3,
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_gather_16bit_weights_on_model_save": True,
    },
}
"""As the documentation of transformers has it."""


def sft_config(arguments: argparse.Namespace) -> Any:
    """TRL's configuration."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=arguments.out,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=arguments.library_settings,
        model_init_kwargs={"dtype": "float32"},
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # of all steps
        weight_decay=0.1,
        max_length=512,
        train_sampling_strategy="sequential" if arguments.in_order else "random",
        seed=arguments.seed,
        logging_steps=5,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        deepspeed=ZERO_3,
    )


def train(arguments: argparse.Namespace) -> None:
    """Trains one rank; the first one writes what it measured."""
    os.environ |= ENVIRONMENT | ({} if arguments.library_settings else FAST_ON_CPU)
    import deepspeed
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.monotonic()

    deepspeed.ops.__dict__["__compatible_ops__"] = {}  # else kernels that only inference uses are compiled
    deepspeed.init_distributed(dist_backend="gloo")  # else ZeRO-3 takes the world for one rank
    rows = Dataset.from_list(read_lines(arguments.rows))
    clock = Clock()
    trainer = SFTTrainer(arguments.model, args=sft_config(arguments), train_dataset=rows, callbacks=[clock])
    trainer.train()
    ended = time.monotonic()
    trainer.save_model()
    if trainer.is_world_process_zero():
        losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        measured = {
            "steps_s": ended - clock.started,
            "steps": trainer.state.global_step,
            "num_tokens": arguments.epochs * sum(map(len, trainer.train_dataset["input_ids"])),
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }
        Path(arguments.out, "train.json").write_text(json.dumps(measured), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16, help="rows of one rank in a step")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-order", action="store_true", help="rows in the file's order")
    parser.add_argument("--library-settings", action="store_true", help="of TRL and DeepSpeed: slow on a CPU")
    train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
