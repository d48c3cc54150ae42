"""Log-probabilities of token sequences by the trainer's own forward pass, all ranks in lockstep."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from still_ray.trainer.data import IGNORED_LABEL
from still_ray.trainer.schedule import filled

MAX_TOKENS_PER_PASS = 8192
"""Padded tokens of one forward pass; one sequence may be longer."""

Logprobs = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A model that scores sequences; collective, with the same arguments on every rank.

    Attributes:
        engine: A DeepSpeed engine whose model has TRL's fused LM head.
        pad_token_id: Any valid id; padding lies on the right and is masked.
        device: Where the engine computes.
        sequence_parallel_size: Ranks that share the sequences of a forward pass.
    """

    engine: Any
    pad_token_id: int
    device: torch.device
    sequence_parallel_size: int = 1

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[Logprobs]:
        """For each sequence log p(token[i + 1] | token[..i]), natural log, float32, for i in 0..len-2.

        Batches of sequences are dealt to the ranks. Under ZeRO-3 a forward pass gathers each layer from all ranks, so
        every rank runs the same number of passes: where the batches do not divide evenly, some ranks score one that
        another rank scores too.
        """
        lengths = [len(sequence) for sequence in sequences]
        batches = filled(sorted(range(len(lengths)), key=lambda i: -lengths[i]), lengths, MAX_TOKENS_PER_PASS)
        rank, world = (number // self.sequence_parallel_size for number in (dist.get_rank(), dist.get_world_size()))
        mine: dict[int, Logprobs] = {}
        with evaluating(self.engine), torch.no_grad():
            for start in range(0, len(batches), world):
                batch = batches[min(start + rank, len(batches) - 1)]
                rows = self._forward([sequences[index] for index in batch])
                mine |= {index: tuple(row.tolist()) for index, row in zip(batch, rows, strict=True)}
        return _gathered(mine, len(sequences))

    def _forward(self, sequences: list[Sequence[int]]) -> Iterator[Tensor]:
        width = max(2, *(len(sequence) for sequence in sequences))
        ids = torch.full((len(sequences), width), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        output = self.engine(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            labels=ids.masked_fill(mask == 0, IGNORED_LABEL).to(self.device),
            use_cache=False,
            fused_lm_head=True,
        )
        logprobs = output.log_probs.float().cpu()
        return (logprobs[row, : len(sequence) - 1] for row, sequence in enumerate(sequences))


def _gathered(mine: dict[int, Logprobs], num_sequences: int) -> list[Logprobs]:
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    whole: dict[int, Logprobs] = {index: result for part in parts for index, result in part.items()}
    return [whole[index] for index in range(num_sequences)]


@contextmanager
def evaluating(engine: Any) -> Iterator[None]:
    """Dropout off within the block."""
    was_training = engine.module.training
    engine.eval()
    try:
        yield
    finally:
        engine.train(was_training)
