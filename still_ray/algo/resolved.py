"""A recipe in which nothing is left to the cluster: what `still_ray.algo.placement` settles and all else reads."""

from __future__ import annotations

from dataclasses import dataclass

from still_ray.config import Recipe, SamplerConfig, SyncConfig, TrainerConfig
from still_ray.config.schema import Placement


@dataclass(frozen=True, kw_only=True)
class Precision:
    """In what a trainer rank computes, and what it keeps.

    Attributes:
        bf16: Weights and activations in bfloat16, else float32; gradients are added up in float32 either way.
        gradient_checkpointing: Only the input of each layer is kept for the backward pass.
    """

    bf16: bool
    gradient_checkpointing: bool

    @property
    def width(self) -> int:
        """Bytes of a weight, an activation, and a gradient as a backward pass leaves it."""
        return 2 if self.bf16 else 4


class ResolvedSampler(SamplerConfig):
    """The replicas' section without "auto"; on a GPU a `dtype` of "auto" stays, as vLLM's name for the checkpoint's."""

    num_replicas: int
    gpus_per_replica: float
    threads: int
    max_num_seqs: int
    kv_cache_gib: int
    engine_statistics: bool

    @property
    def on_gpu(self) -> bool:
        """Whether engines run on GPUs."""
        return self.gpus_per_replica > 0


class ResolvedTrainer(TrainerConfig):
    """The trainer group's section without "auto".

    Attributes:
        asked: The section as the recipe has it, the number of ranks apart, by which states that were saved on other
            machines are known again.
    """

    asked: TrainerConfig
    num_workers: int
    use_gpu: bool
    threads: int
    bf16: bool
    gradient_checkpointing: bool

    @property
    def data_parallel_size(self) -> int:
        """Groups of ranks that have rows of their own; the ranks of one share them."""
        return self.num_workers // self.sequence_parallel_size

    @property
    def precision(self) -> Precision:
        """In what its ranks compute."""
        return Precision(bf16=self.bf16, gradient_checkpointing=self.gradient_checkpointing)


class ResolvedSync(SyncConfig):
    """The weight sync's section without "auto"."""

    tolerance: float


class ResolvedRecipe(Recipe):
    """A recipe in which nothing is left to the cluster.

    A type for checkers: a recipe's class follows from its training methods, so `resolve` returns one of the same class.
    It does not travel between processes: pickled, it would be a plain recipe again. Its sections do.
    """

    placement: Placement
    sampler: ResolvedSampler
    trainer: ResolvedTrainer
    sync: ResolvedSync
