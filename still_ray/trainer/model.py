"""Loads a stage's start model under ZeRO, and its tokenizer."""

from typing import Any

import torch
import trl.trainer.utils
from deepspeed.utils import set_z3_leaf_modules
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from still_ray.algo.resolved import ResolvedTrainer
from still_ray.trainer.job import TrainJob

_TRL_TILE = 32_768


def load_model(job: TrainJob, group: ResolvedTrainer) -> PreTrainedModel:
    """The model that the stage starts from.

    Under ZeRO-3 (TRL's configuration must stand already) no rank ever holds the whole model on its device.
    """
    model = AutoModelForCausalLM.from_pretrained(
        job.model_path, dtype=torch.bfloat16 if group.bf16 else torch.float32, trust_remote_code=job.trust_remote_code
    )
    if not group.use_gpu and job.trainer.zero_stage == 3:  # noqa: PLR2004 - ZeRO stage 3
        # Layers are gathered as a whole: hooks on each of their parts cost 10 ms of a step.
        set_z3_leaf_modules(model, list(model._no_split_modules))
    fit_lm_head_tile(model.config.get_text_config().vocab_size)
    return model


def fit_lm_head_tile(vocab_size: int) -> None:
    """Keeps the rows of TRL's fused LM head next to each other in memory when the vocabulary is smaller than a tile.

    TRL projects onto tiles of 32,768 vocabulary entries and strides its buffer by a tile, so that a vocabulary of 352
    touches a fresh page of memory for every token.
    """
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(_TRL_TILE, vocab_size)


def load_tokenizer(job: TrainJob) -> Any:
    """The start model's tokenizer; it is not used on text, only for its padding id and to travel with the result."""
    tokenizer = AutoTokenizer.from_pretrained(job.model_path, trust_remote_code=job.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
