"""Memory of one trainer rank: model states under ZeRO, what a forward and backward pass adds, what a step adds.

The peak of a device is its states plus the larger of the two passing shares: activations are gone when the optimizer
steps. Read in DeepSpeed 0.19.8, TRL 1.16 and transformers 5.19, whose sizes these are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from still_ray.algo.planning.communication import PCIE_BYTES_PER_S, key_copies
from still_ray.algo.planning.findings import Part, size_text, total_bytes
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.resolved import Precision, ResolvedRecipe, ResolvedTrainer
from still_ray.config import LoraConfig
from still_ray.config.schema import TrainingSection
from still_ray.weight_sync.transports import transport_named
from still_ray.weight_sync.transports.base import Transport

ZERO_3: Final = 3
_FLOAT32: Final = 4
_ZERO: Final = "ZeRO, arXiv 1910.02054 section 3"
_ADAPTER: Final = "of adapters alone: rank x (inputs + outputs) of each layer, arXiv 2106.09685"
_MAX_LIVE_PARAMETERS: Final = 1_000_000_000  # still_ray.trainer.zero_config
_SUB_GROUP: Final = 1_000_000_000  # DeepSpeed's default of zero_optimization.sub_group_size
GPU_TILE: Final = 4096, 32_768
"""Tokens and entries of the vocabulary whose logits exist at a time. Source: TRL's fused LM head."""
CPU_TILE: Final = 1024, 4096
"""The same where no kernel folds a tile in place; see `still_ray.trainer.model.fit_lm_head`. Source: ours, measured."""
_CPU_FOLD_BYTES: Final = 7 * _FLOAT32
"""Of an entry of a tile where no kernel folds it in place. Source: ours, measured."""
OFF_LOADED: Final = "off-loaded activations"
_KEPT_OFF_LOADED: Final = 2
"""Inputs of layers that are on the device nevertheless. Source: ours: one that is computed with, one on its way."""
RUNTIME_BYTES: Final = 2 * 2**30
"""CUDA context, NCCL buffers and cuBLAS workspaces of one process. Source: ours, an assumption."""
FRAGMENTATION: Final = 0.05
"""Share of a device that the allocator cannot use (expandable segments are on). Source: ours, an assumption."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank takes in one forward pass.

    Attributes:
        rows: Rows of it.
        tokens: Tokens of a row, at most.
        sequences_per_row: Sequences that a row puts through the model: a preference pair is two.
        sequence_parallel_size: Ranks that share the rows, each with a slice of the tokens.
    """

    rows: int
    tokens: int
    sequences_per_row: int = 1
    sequence_parallel_size: int = 1

    @property
    def num_sequences(self) -> int:
        """Sequences of one forward pass."""
        return self.rows * self.sequences_per_row

    @property
    def num_tokens(self) -> int:
        """Padded tokens of one forward pass, those of this rank's slices."""
        return self.num_sequences * math.ceil(self.tokens / self.sequence_parallel_size)

    @property
    def mask_entries(self) -> int:
        """Entries of the attention mask: sequences of unequal length side by side need one, a single one does not.

        Those in slices neither: padding lies on the right, where a causal attention never looks.
        """
        return self.num_sequences * self.tokens**2 if self.num_sequences > 1 and self.sequence_parallel_size == 1 else 0


@dataclass(frozen=True, kw_only=True)
class TrainerMemory:
    """Memory of one rank.

    Attributes:
        states: What rests on the device for the whole stage.
        passing: What a forward and backward pass adds at its peak.
        stepping: What the optimizer's step adds.
        sending: What sending the new weights adds, between two stages.
        host: What rests in the host's memory because it is off-loaded.
    """

    states: tuple[Part, ...]
    passing: tuple[Part, ...]
    stepping: tuple[Part, ...]
    host: tuple[Part, ...]
    sending: tuple[Part, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Most that tensors take of the device at once."""
        return total_bytes(self.parts)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the peak is made of: the states, and the largest of what comes and goes."""
        return (*self.states, *max(self.passing, self.stepping, self.sending, key=total_bytes))


def trainer_memory(
    shape: ModelShape, trainer: ResolvedTrainer, batch: Batch, *, transport: Transport | None = None
) -> TrainerMemory:
    """Memory of one rank of the trainer group.

    Args:
        shape: The model.
        trainer: The recipe's section; on a CPU nothing is off-loaded and the "device" is the host.
        batch: The longest batch.
        transport: How the new weights go to the replicas; None: by nothing that takes memory here.
    """
    precision, use_gpu = trainer.precision, trainer.use_gpu
    offloads = use_gpu and trainer.offload == "cpu"
    trained = num_trained(shape, trainer)
    adapter = _num_adapter(shape, trainer)
    states = model_states(shape.num_parameters, trainer, precision, num_adapter=adapter, num_trained=trained)
    moved = {"optimizer", "gradients", *(["parameters"] if trainer.zero_stage == ZERO_3 else [])} if offloads else set()
    return TrainerMemory(
        states=tuple(part for part in states if part.name not in moved),
        passing=_passing(shape, trainer, precision, batch, use_gpu=use_gpu),
        stepping=() if offloads else (_step(trained, trainer),),
        host=tuple(part for part in states if part.name in moved)
        + ((_step(trained, trainer, whole=True),) if offloads else ())
        + ((_off_loaded(shape, trainer, batch),) if off_loads_activations(trainer) else ()),
        sending=_sending(shape, precision, transport) if transport else (),
    )


def trainer_memories(recipe: ResolvedRecipe, shape: ModelShape) -> dict[str, TrainerMemory]:
    """Memory of one rank in each training stage, by the stage's dotted name: of the batch that takes most."""
    transport = transport_named(recipe.sync.transport)
    memories = {
        step.where: [
            trainer_memory(
                shape,
                recipe.trainer,
                replace(batch, sequence_parallel_size=recipe.trainer.sequence_parallel_size),
                transport=transport,
            )
            for batch in largest_batches(step.settings, step.method.num_sequences)
        ]
        for step in recipe.steps
    }
    return {where: max(found, key=lambda memory: memory.peak_bytes) for where, found in memories.items()}


def largest_batches(settings: TrainingSection, sequences_per_row: int) -> tuple[Batch, ...]:
    """The batches of a stage of which one takes most memory.

    Where tokens decide how many rows a batch has, these are as many of the longest rows as fit, one at least, and one
    row more, which are shorter: their tokens are all that are allowed. Several rows are padded and have a mask, n rows
    of L tokens one of n x L^2 entries: more rows than these have a smaller one, fewer no longer rows.

    Args:
        settings: The stage's section.
        sequences_per_row: Sequences that a row puts through the model.
    """
    longest, tokens = settings.longest, settings.micro_batch_tokens
    if tokens is None:
        return (Batch(rows=settings.per_device_batch_size, tokens=longest, sequences_per_row=sequences_per_row),)
    rows = max(1, tokens // (sequences_per_row * longest))
    shorter = math.ceil(tokens / ((rows + 1) * sequences_per_row))
    return (
        Batch(rows=rows, tokens=longest, sequences_per_row=sequences_per_row),
        Batch(rows=rows + 1, tokens=min(shorter, longest), sequences_per_row=sequences_per_row),
    )


def group_bytes(shape: ModelShape, *, width: int) -> int:
    """The largest group of weights that is whole at once while they are sent: a layer, or the embedding."""
    return width * max(shape.num_layer_parameters, shape.num_embedding)


def _sending(shape: ModelShape, precision: Precision, transport: Transport) -> tuple[Part, ...]:
    width = precision.width
    memory = transport.memory(model_bytes=width * shape.num_parameters, group_bytes=group_bytes(shape, width=width))
    if not memory.trainer_device:
        return ()
    return (Part(name="weights on their way", num_bytes=memory.trainer_device, source=memory.source),)


def largest_matrix(shape: ModelShape) -> int:
    """Parameters of the largest tensor: the embedding, or a projection of the MLP."""
    return max(shape.num_embedding, shape.hidden_size * shape.intermediate_size)


def num_trained(shape: ModelShape, trainer: ResolvedTrainer) -> int:
    """Parameters that have gradients and an optimizer's state: all, or the adapters' and what is trained with them."""
    if trainer.lora is None:
        return shape.num_parameters
    return _num_adapter(shape, trainer) + shape.num_trained_embeddings(trainer.lora)


def _num_adapter(shape: ModelShape, trainer: ResolvedTrainer) -> int:
    return shape.num_adapter_parameters(trainer.lora) if trainer.lora else 0


def model_states(
    num_parameters: int,
    trainer: ResolvedTrainer,
    precision: Precision,
    *,
    num_adapter: int = 0,
    num_trained: int | None = None,
) -> tuple[Part, ...]:
    """Parameters, gradients and optimizer state of one rank.

    ZeRO-2 partitions gradients and optimizer state, ZeRO-3 parameters too. DeepSpeed keeps a float32 copy of the
    weights beside the model's own even where that is float32; gradients are accumulated in float32
    (`still_ray.trainer.zero_config`). Frozen weights have neither: beside adapters they are held as they are.

    Args:
        num_parameters: Of the model.
        trainer: The recipe's section.
        precision: In what is computed.
        num_adapter: Parameters of adapters that are trained in their place; 0: there are none.
        num_trained: Parameters that are trained, those of adapters among them; None: all.
    """
    share = math.ceil((num_parameters if num_trained is None else num_trained) / trainer.num_workers)
    whole = num_parameters + num_adapter
    held = math.ceil(whole / trainer.num_workers) if trainer.zero_stage == ZERO_3 else whole
    width, origin = precision.width, _ADAPTER if num_adapter else _ZERO
    divided = "/ ranks" if trainer.zero_stage == ZERO_3 else "on every rank"
    with_adapter = " and adapters" if num_adapter else ""
    return (
        Part(
            name="parameters", num_bytes=width * held, source=f"{width} B x parameters{with_adapter} {divided}; {_ZERO}"
        ),
        Part(
            name="gradients",
            num_bytes=_FLOAT32 * share,
            source=f"4 B x parameters / ranks: float32 sums over forward passes; {origin}",
        ),
        Part(
            name="optimizer",
            num_bytes=3 * _FLOAT32 * share,
            source=f"12 B x parameters / ranks: float32 weights, Adam's two moments; {origin}",
        ),
    )


def _step(num_parameters: int, trainer: ResolvedTrainer, *, whole: bool = False) -> Part:
    """Float32 gradients of a sub-group in one piece; AdamW works in place."""
    share = math.ceil(num_parameters / trainer.num_workers)
    if trainer.zero_stage == ZERO_3 and not whole:
        share = min(share, _sub_group(trainer))
    return Part(
        name="optimizer step",
        num_bytes=_FLOAT32 * share,
        source=f"4 B x the sub-group (ZeRO-3: at most {_sub_group(trainer):g}): its float32 gradients in one piece; "
        "read in DeepSpeed",
    )


def _sub_group(trainer: ResolvedTrainer) -> int:
    zero = trainer.deepspeed.get("zero_optimization")
    asked = zero.get("sub_group_size") if isinstance(zero, dict) else None
    return asked if type(asked) is int else _SUB_GROUP


def _passing(
    shape: ModelShape, trainer: ResolvedTrainer, precision: Precision, batch: Batch, *, use_gpu: bool
) -> tuple[Part, ...]:
    lora, tiles = trainer.lora, trainer.num_mlp_tiles
    kept = activations(shape, precision, batch, lora, num_tiles=tiles)
    if off_loads_activations(trainer):
        kept = _off_loading(shape, precision, batch, moved_bytes=kept.num_bytes)
    frozen = lora is not None and not shape.num_trained_embeddings(lora)
    head = lm_head(shape, precision, batch, use_gpu=use_gpu, is_frozen=frozen)
    layer = Part(
        name="one layer's backward pass",
        num_bytes=_layer_backward_bytes(shape, precision, batch, lora, num_tiles=tiles),
        source="gradients inside a layer, recomputed activations with checkpointing"
        + (f", of the MLP those of one of {tiles} tiles" if tiles > 1 else "")
        + "; read in transformers",
    )
    # The head's work is over when the first layer's backward pass begins: only the larger of the two counts.
    return (kept, max(head, layer, key=lambda part: part.num_bytes), *_gathered(shape, trainer, precision))


def activations(
    shape: ModelShape, precision: Precision, batch: Batch, lora: LoraConfig | None = None, *, num_tiles: int = 1
) -> Part:
    """What the forward pass keeps for the backward pass: all of every layer, or its input alone."""
    layer = batch.num_tokens * shape.hidden_size * precision.width
    if not precision.gradient_checkpointing:
        layer = _layer_bytes(shape, precision, batch, lora, num_tiles=num_tiles)
    shared = f" / {batch.sequence_parallel_size} ranks" if batch.sequence_parallel_size > 1 else ""
    mask = ", a mask of 1 B for each pair of tokens" if batch.mask_entries else ""
    outside = _outside_layers(shape, precision, batch, is_frozen=lora is not None)
    return Part(
        name="activations",
        num_bytes=shape.num_layers * layer + outside + batch.mask_entries,
        source=f"tokens{shared} x layers x "
        + ("hidden x width" if precision.gradient_checkpointing else "what a layer saves")
        + f"{mask}; arXiv 2205.05198 sections 4-5, for a gated MLP, grouped queries and flash attention",
    )


def off_loads_activations(trainer: ResolvedTrainer) -> bool:
    """Whether activations leave the device; on a CPU it is the host already."""
    return trainer.use_gpu and trainer.offload_activations


def _off_loading(shape: ModelShape, precision: Precision, batch: Batch, *, moved_bytes: int) -> Part:
    """What is left on the device of activations of which `moved_bytes` wait in the host's memory."""
    per_token = (_KEPT_OFF_LOADED * shape.hidden_size + 2 * shape.head_dim) * precision.width
    return Part(
        name="activations",
        num_bytes=batch.num_tokens * per_token + batch.mask_entries,
        source=f"inputs of {_KEPT_OFF_LOADED} layers and the rotary tables; {size_text(moved_bytes)} go to the host "
        f"and back: {2 * moved_bytes / PCIE_BYTES_PER_S:.2g} s of a pass at {PCIE_BYTES_PER_S / 1e9:g} GB/s of PCIe, "
        "which nothing overlaps; still_ray.trainer.activations",
    )


def _off_loaded(shape: ModelShape, trainer: ResolvedTrainer, batch: Batch) -> Part:
    """Activations in the host's memory; torch gives pinned memory in powers of two."""
    kept = activations(shape, trainer.precision, batch, trainer.lora)
    layer = batch.num_tokens * shape.hidden_size * trainer.precision.width
    return Part(
        name=OFF_LOADED,
        num_bytes=math.ceil(kept.num_bytes * 2 ** math.ceil(math.log2(layer)) / layer),
        source=f"{kept.source}; in pinned blocks of a power of two bytes",
    )


def _outside_layers(shape: ModelShape, precision: Precision, batch: Batch, *, is_frozen: bool) -> int:
    """The last hidden states, the final norm and the rotary tables."""
    per_token = shape.hidden_size * _norm_width(precision, is_frozen=is_frozen) + 2 * shape.head_dim * precision.width
    return batch.num_tokens * per_token


def _norm_width(precision: Precision, *, is_frozen: bool) -> int:
    """Bytes that RMSNorm saves for each element: its input in float32, its output, and, to learn, the normed value."""
    return _FLOAT32 + precision.width * (1 if is_frozen else 2)


def _adapter_bytes(shape: ModelShape, precision: Precision, batch: Batch, lora: LoraConfig) -> int:
    """What the adapters of a layer save beside it: the product with A.

    What they read is what layers of trained weights would save. With dropout each saves its result and its mask in that
    one's place (measured on a CPU; the mask of a GPU's kernel is smaller).
    """
    layers = shape.adapted_layers(lora)
    elements = len(layers) * lora.rank
    if lora.dropout:
        elements += 2 * sum(inputs for inputs, _ in layers)
    if lora.dropout and lora.targets == "all-linear":
        elements -= 2 * shape.hidden_size + shape.intermediate_size  # what two norms give, and the MLP's product
    return batch.num_tokens * elements * precision.width


def _layer_bytes(
    shape: ModelShape, precision: Precision, batch: Batch, lora: LoraConfig | None = None, *, num_tiles: int = 1
) -> int:
    """What autograd saves of one layer, of an MLP in tiles nothing; with attention that never writes its score matrix.

    Two norms and the residual's two values; rotated queries, keys, values and the attention's output, which is saved
    once more where heads are put together; gate, its activation, up and their product in the MLP. With a mask torch's
    attention cannot share keys and values between queries: they are repeated, and the mask is copied in the type of
    the activations (read in transformers and torch, measured). In slices they are repeated as far as every rank needs
    a head of its own, and the output is saved both as it leaves the attention and as it comes back; what an all-to-all
    sends and receives is less than the MLP's products, which are not there at that time (measured).
    """
    width, padded = precision.width, batch.mask_entries > 0
    norms = 2 * _norm_width(precision, is_frozen=lora is not None) * shape.hidden_size
    copies = key_copies(shape.num_kv_heads, batch.sequence_parallel_size)
    keys_and_values = 2 * (shape.query_size if padded else copies * shape.kv_size)
    num_of_queries = 2 if batch.sequence_parallel_size == 1 else 3
    attention = (num_of_queries * shape.query_size + keys_and_values) * width + _FLOAT32 * shape.num_heads
    mlp = 0 if num_tiles > 1 else 4 * shape.intermediate_size * width
    layer = batch.num_tokens * (norms + attention + mlp) + batch.mask_entries * width
    return layer + (_adapter_bytes(shape, precision, batch, lora) if lora else 0)


def _layer_backward_bytes(
    shape: ModelShape, precision: Precision, batch: Batch, lora: LoraConfig | None = None, *, num_tiles: int = 1
) -> int:
    """What a recomputed layer saves, beside gradients of the MLP's product and of the residual stream.

    Tensors that autograd has used are free again, so no more gradients than these come on top. Of an MLP in tiles one
    is recomputed at a time, which may take less than the float32 gradients of a norm in bfloat16 (measured).
    """
    width, inner = precision.width, shape.intermediate_size
    gradients = (inner + shape.hidden_size) * width
    if num_tiles > 1:
        in_norm = shape.hidden_size * (width + (2 * _FLOAT32 if precision.bf16 else 0))
        gradients = max(5 * math.ceil(inner / num_tiles) * width + shape.hidden_size * width, in_norm)
    recomputes = precision.gradient_checkpointing
    recomputed = _layer_bytes(shape, precision, batch, lora, num_tiles=num_tiles) if recomputes else 0
    return batch.num_tokens * gradients + recomputed


def lm_head(shape: ModelShape, precision: Precision, batch: Batch, *, use_gpu: bool, is_frozen: bool = False) -> Part:
    """The fused LM head: logits exist only as one tile, their gradients only summed up, in float32.

    Without it 20,000 tokens x 152,064 entries would take 28 GiB for bfloat16 logits, their float32 copy and its
    gradient. What it takes instead does not grow with tokens x vocabulary.
    """
    num_tokens, num_entries = GPU_TILE if use_gpu else CPU_TILE
    tile = min(batch.num_tokens, num_tokens) * min(shape.vocab_size, num_entries)
    weight = 0 if is_frozen else shape.num_embedding * (_FLOAT32 + precision.width)
    hidden = batch.num_tokens * shape.hidden_size * (_FLOAT32 + precision.width)
    return Part(
        name="LM head and loss",
        num_bytes=tile * (precision.width + (0 if use_gpu else _CPU_FOLD_BYTES)) + weight + hidden,
        source=f"a tile of {num_tokens:,} tokens x {num_entries:,} entries, float32 gradients of "
        + ("" if is_frozen else "head and ")
        + "hidden states and their copies in the model's type; TRL's fused LM head",
    )


def _gathered(shape: ModelShape, trainer: ResolvedTrainer, precision: Precision) -> tuple[Part, ...]:
    layer, matrix = shape.num_layer_parameters, largest_matrix(shape)
    if trainer.lora:
        layer = math.ceil(_num_adapter(shape, trainer) / shape.num_layers)
        matrix = trainer.lora.rank * max(shape.hidden_size, shape.intermediate_size)
        if shape.num_trained_embeddings(trainer.lora):
            matrix = max(matrix, shape.num_embedding)
    buckets = Part(
        name="gradient buckets",
        num_bytes=2 * _FLOAT32 * shape.hidden_size**2
        + precision.width * layer
        + (_FLOAT32 * matrix if precision.bf16 else 0),
        source="two float32 reduce buckets of hidden x hidden (transformers' auto), gradients of one layer"
        + (", the largest gradient in float32 while it is reduced; read in DeepSpeed" if precision.bf16 else ""),
    )
    if trainer.zero_stage != ZERO_3 or trainer.num_workers == 1:
        return (buckets,)
    live = min(shape.num_parameters, _MAX_LIVE_PARAMETERS) + (0 if shape.tied else shape.num_embedding)
    gathered = Part(
        name="gathered parameters",
        num_bytes=precision.width * min(live, shape.num_parameters),
        source="stage3_max_live_parameters (1e9) and the LM head; still_ray.trainer.zero_config",
    )
    return (gathered, buckets)
