"""Loads a stage's start model under ZeRO, and its tokenizer; gives back the memory that a model leaves behind."""

import ctypes
from typing import Any

import torch
import trl.trainer.utils
from deepspeed.utils import set_z3_leaf_modules
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from trl.kernels import chunked_logprob

from still_ray.algo.planning.trainer_memory import CPU_TILE, GPU_TILE
from still_ray.algo.resolved import ResolvedTrainer
from still_ray.trainer.activations import keep_on_host, tile_mlps
from still_ray.trainer.job import TrainJob
from still_ray.trainer.sequence_parallel import ATTENTION


def load_model(job: TrainJob, group: ResolvedTrainer) -> PreTrainedModel:
    """The model that the stage starts from.

    Under ZeRO-3 (TRL's configuration must stand already) no rank ever holds the whole model on its device.
    """
    options = {"attn_implementation": ATTENTION} if group.sequence_parallel_size > 1 else {}
    model = AutoModelForCausalLM.from_pretrained(
        job.model_path,
        dtype=torch.bfloat16 if group.bf16 else torch.float32,
        trust_remote_code=job.trust_remote_code,
        **options,
    )
    if not group.use_gpu and job.trainer.zero_stage == 3:  # noqa: PLR2004 - ZeRO stage 3
        # Layers are gathered as a whole: hooks on each of their parts cost 10 ms of a step.
        set_z3_leaf_modules(model, list(model._no_split_modules))
    tile_mlps(model, num_tiles=group.num_mlp_tiles)
    if group.offload_activations and group.gradient_checkpointing:
        keep_on_host(model, pin_memory=group.use_gpu)
    if job.trainer.lora is not None:
        # DeepSpeed tells by the gradients of a layer's inputs that its backward pass is over, and recomputed layers
        # have gradients only if their inputs do; behind frozen embeddings nothing would ask for them.
        model.enable_input_require_grads()
    fit_lm_head(model.config.get_text_config().vocab_size, use_gpu=group.use_gpu)
    return model


def fit_lm_head(vocab_size: int, *, use_gpu: bool) -> None:
    """Sets the size of a tile of TRL's fused LM head, and that it scores the tokens that have a label.

    A tile is never wider than the vocabulary: TRL strides its buffer by a tile, so that a vocabulary of 352 would touch
    a fresh page of memory for every token. On a CPU no kernel folds a tile in place: some seven copies of it come and
    go, which stay in the caches while the tile is small (a third less time at a vocabulary of 262,144). TRL scores
    prompts too where it is not sure that a device takes any number of tokens; a CPU does.
    """
    num_tokens, num_entries = GPU_TILE if use_gpu else CPU_TILE
    chunked_logprob.TOKEN_CHUNK_SIZE = num_tokens
    trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(num_entries, vocab_size)
    trl.trainer.utils._use_triton = _leaves_out_prompts


def _leaves_out_prompts(_: torch.device) -> bool:
    """TRL's question whether a device can do without the tokens that have no label."""
    return True


def load_tokenizer(job: TrainJob) -> Any:
    """The start model's tokenizer; it is not used on text, only for its padding id and to travel with the result."""
    tokenizer = AutoTokenizer.from_pretrained(job.model_path, trust_remote_code=job.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def give_back_heap() -> None:
    """Hands the free parts of the heap to the system: glibc keeps all of it below the last block that is in use.

    Tensors below 32 MB lie in the heap. A 270M model that was trained on a CPU left 2 GB there, beside which the next
    stage would load its own.
    """
    ctypes.CDLL("libc.so.6").malloc_trim(0)
