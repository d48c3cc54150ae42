"""Make the tiny backbone: ``python -m still_ray.tiny_world.build_backbone --output DIR --seed 0``.

Consumes the pretraining corpus; produces a Hugging Face checkpoint with its tokenizer, and beside it the settings
(``build.json``) and the loss of every logged step (``training_log.jsonl``). It takes some minutes on two cores.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer

from still_ray.tiny_world.pretraining_corpus import documents
from still_ray.tiny_world.tokenizer import (
    END_TURN,
    MAX_LENGTH,
    PAD,
    build_tokenizer,
    padded_vocabulary_size,
    token_id,
    write_tokenizer,
)


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Everything that decides what the backbone becomes.

    Attributes:
        seed: Seeds the initial weights and the corpus.
        hidden_size: Width; a multiple of 32, the width of one attention head.
        intermediate_size: Width of the feed-forward layers.
        num_layers: Depth.
        num_steps: Optimizer steps.
        batch_size: Sequences of one step.
        sequence_length: Tokens of one sequence, documents packed end to end.
        learning_rate: Peak of the schedule.
        weight_decay: Of AdamW.
        log_every: Steps between two lines of the log.
        num_threads: Threads that torch may use.
    """

    seed: int = 0
    hidden_size: int = 96
    intermediate_size: int = 192
    num_layers: int = 3
    num_steps: int = 2400
    batch_size: int = 32
    sequence_length: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    log_every: int = 50
    num_threads: int = 1


_HEAD_SIZE = 32


def build_backbone(output: Path, settings: BuildSettings) -> None:
    """Train a backbone and write it into ``output``."""
    torch.set_num_threads(settings.num_threads)
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer()
    model = new_model(tokenizer, settings)
    write_tokenizer(tokenizer, output)
    started = time.monotonic()
    _train(model, tokenizer, settings, output / "training_log.jsonl")
    model.save_pretrained(output)
    _write_build(output, settings, num_parameters=model.num_parameters(), seconds=time.monotonic() - started)


def new_model(tokenizer: Tokenizer, settings: BuildSettings) -> transformers.Qwen2ForCausalLM:
    """A Qwen2 model with random weights."""
    end, pad = token_id(tokenizer, END_TURN), token_id(tokenizer, PAD)
    config = transformers.Qwen2Config(
        vocab_size=padded_vocabulary_size(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.hidden_size // _HEAD_SIZE,
        num_key_value_heads=settings.hidden_size // _HEAD_SIZE,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    model = transformers.Qwen2ForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    return model


def _train(model: transformers.Qwen2ForCausalLM, tokenizer: Tokenizer, settings: BuildSettings, log: Path) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
    )
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, settings.num_steps // 20, settings.num_steps)
    batches = packed_batches(tokenizer, settings)
    model.train()
    with log.open("w", encoding="utf-8") as lines:
        for step in range(1, settings.num_steps + 1):
            batch = next(batches)
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % settings.log_every == 0:
                lines.write(json.dumps({"step": step, "loss": round(loss.item(), 5)}) + "\n")
                lines.flush()


def packed_batches(tokenizer: Tokenizer, settings: BuildSettings) -> Iterator[torch.Tensor]:
    """Yield token ids of shape (batch size, sequence length) without end, documents packed end to end."""
    num_tokens = settings.batch_size * settings.sequence_length
    ids: list[int] = []
    for document in documents(random.Random(settings.seed)):
        ids += tokenizer.encode(document).ids
        if len(ids) >= num_tokens:
            yield torch.tensor(ids[:num_tokens]).view(settings.batch_size, settings.sequence_length)
            ids = ids[num_tokens:]


def _write_build(output: Path, settings: BuildSettings, *, num_parameters: int, seconds: float) -> None:
    build = {
        "settings": asdict(settings),
        "num_parameters": num_parameters,
        "seconds": round(seconds, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (output / "build.json").write_text(json.dumps(build, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description="Make the tiny backbone.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=BuildSettings.seed)
    parser.add_argument("--num-steps", type=int, default=BuildSettings.num_steps)
    arguments = parser.parse_args()
    build_backbone(arguments.output, BuildSettings(seed=arguments.seed, num_steps=arguments.num_steps))


if __name__ == "__main__":
    main()
