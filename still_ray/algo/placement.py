"""What the "auto" of a recipe comes down to on a cluster: decided here, once; everything behind reads plain values.

Devices follow from the cluster; counts, lengths, threads, cache and precision from the model and the memory and cores
at hand. Of several ways that fit, the first is taken that costs least: first time (recomputed activations, samplers
that end while the trainer works), then precision, then the length of rows, which loses data.

A recipe is stored with its "auto", so that its run may go on on other machines; its lengths, on which results depend,
are settled at the start of a run and stored as numbers (`with_lengths`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from still_ray.algo.planning.bundles import PLACEMENTS, PlacementRule
from still_ray.algo.planning.findings import GIB, total_bytes
from still_ray.algo.planning.fit import parts_of_machine, room_of_rank
from still_ray.algo.planning.model import SMALL_MODEL, ModelShape
from still_ray.algo.planning.sampler_memory import (
    CPU_BLOCK_TOKENS,
    cpu_sampler_memory,
    gpu_sampler_memory,
    kv_bytes_per_token,
    longest_fitting,
)
from still_ray.algo.planning.trainer_memory import trainer_memories
from still_ray.algo.resolved import ResolvedRecipe, ResolvedSampler, ResolvedSync, ResolvedTrainer
from still_ray.config import Recipe, SamplerConfig, SyncConfig, TrainerConfig
from still_ray.config.loading import recipe_from
from still_ray.config.schema import PUBLISHED_RESPONSE, PUBLISHED_ROW, PUBLISHED_SEQUENCE, Placement
from still_ray.weight_sync.transports import preferred

TOLERANCES: Final = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
"""Largest mean absolute difference of log-probabilities by dtype. Source: ours; float32 engines agree to about 1e-5,
bfloat16 ones round each hidden state to 8 bits, and their kernels sum in another order than the trainer's."""
CPU_BF16_TOLERANCE: Final = 0.25
"""The same of a bfloat16 engine on a CPU. Source: ours, measured for SmolLM2-135M: 0.12 before any update."""
USUAL_ACTORS: Final = 2
"""Replicas, and ranks, where neither model nor machine is known. Source: ours."""
USUAL_SEQUENCES: Final = 64
"""Sequences decoded together. Source: ours."""
CPU_SEQUENCES: Final = 16
"""The same of a CPU replica that its model keeps busy. Source: ours, measured for 270 million parameters on two cores:
8 to 64 sequences bring equally many tokens a second, and each of 64 takes four times as long as one of 16."""
CACHE_SHARE: Final = 1 / 8
"""Of a machine's memory, at most, for the KV cache of its CPU replicas. Source: ours."""
LEAST_CACHED_TOKENS: Final = 1024
"""Of each sequence that is decoded beside others, so that few are computed twice. Source: ours."""
LONGEST_CPU_ROW: Final = 8192
"""Rows of training on CPUs, tokens: a longer one takes a rank minutes. Source: ours, 28 tokens/s of a 270M model."""
PROMPT_ROOM: Final = 512
"""For the prompt, beside the longest response that a recipe names, tokens. Source: ours."""
SHORTEST_ROW: Final = 512
"""Rows of training are not cut below this to fit a memory, tokens. Source: ours."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the machine of a run offers; of several that are alike, the GPUs of all of them.

    Attributes:
        cores: That its processes may use at once.
        memory_bytes: That they may take; None: not known.
        has_bf16: Whether its CPU computes in bfloat16.
        num_gpus: GPUs.
        device_bytes: Memory of one of them; None: not known.
    """

    cores: int
    memory_bytes: int | None
    has_bf16: bool = False
    num_gpus: int = 0
    device_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class AtHand:
    """What sizes follow from.

    Attributes:
        shape: The model's; None: nobody could tell, as of a hub id whose files are not here.
        machine: Where the run is; None: on a cluster that has not been joined yet, or on one that grows.
    """

    shape: ModelShape | None = None
    machine: Hardware | None = None

    @property
    def num_parameters(self) -> int:
        """Of the model; 0 where nobody could tell."""
        return self.shape.num_parameters if self.shape else 0


NOTHING_KNOWN: Final = AtHand()
_SIZES: Final = (
    *("placement", "max_length", "max_tokens", "num_replicas", "num_workers", "threads", "max_num_seqs"),
    *("kv_cache_gib", "dtype", "bf16", "gradient_checkpointing"),
)
"""Keys of sections that follow from the model and the machine."""


_OF_CPUS: Final = frozenset({"threads", "kv_cache_gib"})
"""Those that say something on CPUs alone."""


@dataclass(frozen=True, kw_only=True)
class _Way:
    """One way to run a recipe, of which the first is taken that fits the memory.

    Attributes:
        placement: Whether trainer and samplers are there at the same time.
        gradient_checkpointing: Whether activations are computed twice.
        bf16: In what the trainer computes.
        row: Longest row of training, tokens.
    """

    placement: Placement
    gradient_checkpointing: bool
    bf16: bool
    row: int


def resolve(recipe: Recipe, *, has_gpus: bool, at_hand: AtHand = NOTHING_KNOWN, trains: bool = True) -> ResolvedRecipe:
    """Puts plain values in the place of every "auto".

    Args:
        recipe: The recipe.
        has_gpus: Whether the cluster has any GPU now. One that starts with its head alone has none yet: recipes for
            such clusters name the numbers.
        at_hand: What sizes follow from; of what is not known, usual numbers are taken.
        trains: Whether there is a trainer beside the samplers.

    Returns:
        A recipe that fits what is at hand if any does; `still_ray.algo.planning.plan` says what does not.

    Raises:
        InputError: A length that the recipe names is at odds with one that follows.
    """
    found = None
    for way in _ways(recipe, has_gpus=has_gpus, at_hand=at_hand, trains=trains):
        found = _settled(recipe, way, has_gpus=has_gpus, at_hand=at_hand, trains=trains)
        if not trains or _fits(found, at_hand):
            break
    assert found is not None  # there is always a way
    return found


def with_lengths(recipe: Recipe, settled: ResolvedRecipe) -> Recipe:
    """The recipe with the lengths of a settled one, which a run keeps to its end whatever machines it goes on on."""
    own = {name: getattr(recipe, name) for name in ("placement", "sampler", "trainer", "sync")}
    return settled.model_copy(update=own)


def decided(recipe: Recipe, settled: ResolvedRecipe) -> dict[str, Any]:
    """The sizes that a recipe leaves to its model and machine, and what they came to, by dotted key.

    Stages that were given the same length are named once, by the first of them.
    """
    sections = {"": (recipe, settled), "model": (recipe.model, settled.model)}
    sections |= {"evaluate": (recipe.evaluate, settled.evaluate)}
    explored = zip(recipe.explorations, settled.explorations, strict=True)
    sections |= {f"rounds.{number - 1}.explore": (asked, found) for (number, asked), (_, found) in explored}
    trained = zip(recipe.steps, settled.steps, strict=True)
    sections |= {asked.where: (asked.settings, found.settings) for asked, found in trained}
    sections |= {"sampler": (recipe.sampler, settled.sampler), "trainer": (recipe.trainer, settled.trainer)}
    values = {
        f"{where}.{key}".lstrip("."): getattr(found, key)
        for where, (asked, found) in sections.items()
        for key in _SIZES
        if getattr(asked, key, None) == "auto" and not (key in _OF_CPUS and _on_gpus(found))
    }
    seen = {(key.rpartition(".")[2], value): key for key, value in reversed(values.items()) if "max_" in key}
    return {key: value for key, value in values.items() if seen.get((key.rpartition(".")[2], value), key) == key}


def _on_gpus(section: Any) -> bool:
    """Whether a settled section is that of actors on GPUs."""
    return bool(getattr(section, "on_gpu", False) or getattr(section, "use_gpu", False))


def _settled(recipe: Recipe, way: _Way, *, has_gpus: bool, at_hand: AtHand, trains: bool) -> ResolvedRecipe:
    replicas, ranks = _counts(recipe, way.placement, has_gpus=has_gpus, at_hand=at_hand, trains=trains)
    longest = _goal(recipe.model.max_length, PUBLISHED_SEQUENCE, at_hand.shape)
    config = recipe.sampler.model_copy(update={"num_replicas": replicas})
    if trains and not way.bf16 and config.dtype == "auto" and not _samples_on_gpus(recipe, has_gpus):
        # as the trainer computes: in bfloat16 a replica's probes are further off than an update moves them
        config = config.model_copy(update={"dtype": "float32"})
    least = _least_sequence(recipe, longest)
    sampler = resolve_sampler(config, has_gpus=has_gpus, at_hand=at_hand, longest=longest, must_hold=least)
    longest = max(least, _longest_sampled(sampler, longest, at_hand))
    trainer = resolve_trainer(
        recipe.trainer.model_copy(
            update={
                "num_workers": ranks,
                "bf16": way.bf16,
                "gradient_checkpointing": way.gradient_checkpointing,
            }
        ),
        has_gpus=has_gpus,
        at_hand=at_hand,
        asked=recipe.trainer,
    )
    sync = _resolve_sync(recipe.sync, sampler, trainer, PLACEMENTS[way.placement])
    changes = {"placement": way.placement, "sampler": sampler, "trainer": trainer, "sync": sync}
    filled = _filled(recipe, sequence=longest, row=way.row)
    return cast(ResolvedRecipe, filled.model_copy(update=changes))


def _least_sequence(recipe: Recipe, longest: int) -> int:
    """What a sequence has to hold: the length that is given, else the longest response that is, with its prompt."""
    if recipe.model.max_length != "auto":
        return longest
    responses = max((limit for _, limit in recipe.token_limits()), default=0)
    return min(longest, responses + PROMPT_ROOM) if responses else 0


# -- samplers ---------------------------------------------------------------------------------------------------------


def resolve_sampler(
    config: SamplerConfig,
    *,
    has_gpus: bool,
    at_hand: AtHand = NOTHING_KNOWN,
    longest: int = PUBLISHED_SEQUENCE,
    must_hold: int = 0,
) -> ResolvedSampler:
    """The replicas' section: each device of a replica is a GPU, if there are any.

    Args:
        config: The section.
        has_gpus: Whether the cluster has any GPU now.
        at_hand: What sizes follow from.
        longest: Longest sequence that is wanted, tokens.
        must_hold: A sequence that the cache has to hold, tokens; 0: any.
    """
    gpus, statistics, machine = config.gpus_per_replica, config.engine_statistics, at_hand.machine
    if gpus == "auto":
        gpus = config.tensor_parallel_size if has_gpus else 0
    replicas = USUAL_ACTORS if config.num_replicas == "auto" else config.num_replicas
    cores = machine.cores if machine and not gpus else 1
    changes = {
        "num_replicas": max(replicas, config.min_replicas or 1),
        "gpus_per_replica": float(gpus),
        "engine_statistics": gpus > 0 if statistics == "auto" else statistics,
        "dtype": _cpu_dtype(at_hand) if config.dtype == "auto" and not gpus else config.dtype,
        "threads": max(1, cores // replicas) if config.threads == "auto" else config.threads,
        "max_num_seqs": _usual_sequences(at_hand, gpus) if config.max_num_seqs == "auto" else config.max_num_seqs,
        "kv_cache_gib": 1 if config.kv_cache_gib == "auto" else config.kv_cache_gib,
    }
    sampler = ResolvedSampler.model_construct(**{**dict(config), **changes})
    if gpus or at_hand.shape is None:
        return sampler
    if config.kv_cache_gib == "auto":
        most = _most_cached_gib(sampler, at_hand, longest, must_hold=must_hold)
        roomy = sampler.model_copy(update={"kv_cache_gib": most})
        filled = math.ceil(cpu_sampler_memory(at_hand.shape, roomy, max_length=longest).kv_bytes / GIB)
        sampler = sampler.model_copy(update={"kv_cache_gib": filled})
    if config.max_num_seqs == "auto" and at_hand.shape.has_plain_cache:
        sampler = sampler.model_copy(update={"max_num_seqs": _num_together(sampler, at_hand.shape, longest)})
    return sampler


def _most_cached_gib(sampler: ResolvedSampler, at_hand: AtHand, longest: int, *, must_hold: int) -> int:
    """The most that a CPU replica's cache may take: its share of the memory, and what one sequence needs at least.

    That is the one that it has to hold, or the longest where no memory is known that it could be fitted to.
    """
    assert at_hand.shape is not None  # its caller has seen to that
    memory_bytes = at_hand.machine.memory_bytes if at_hand.machine else None
    share = int((memory_bytes or 0) * CACHE_SHARE / sampler.num_replicas / GIB)
    wanted = longest if memory_bytes is None else must_hold
    if not wanted:
        return max(1, share)
    one = cpu_sampler_memory(at_hand.shape, sampler, max_length=wanted)
    return max(1, share, math.ceil((one.sequence_bytes + one.block_tokens * one.kv_bytes_per_token) / GIB))


def _num_together(sampler: ResolvedSampler, shape: ModelShape, longest: int) -> int:
    """As many sequences as the cache of a CPU replica holds a share of."""
    width = 2 if sampler.dtype == "bfloat16" else 4
    of_token = kv_bytes_per_token(shape, tensor_parallel_size=sampler.tensor_parallel_size, width=width)
    held = sampler.kv_cache_gib * GIB // (of_token * min(longest, LEAST_CACHED_TOKENS))
    return max(1, min(sampler.max_num_seqs, held))


def _usual_sequences(at_hand: AtHand, gpus: float) -> int:
    """No more than keep a device busy."""
    keeps_cpu_busy = at_hand.shape is not None and at_hand.shape.num_parameters >= SMALL_MODEL
    return CPU_SEQUENCES if keeps_cpu_busy and not gpus else USUAL_SEQUENCES


def _cpu_dtype(at_hand: AtHand) -> str:
    """The checkpoint's where the CPU computes in it; a float32 checkpoint is not rounded."""
    shape, machine = at_hand.shape, at_hand.machine
    computes = machine is not None and machine.has_bf16
    return "bfloat16" if computes and shape is not None and shape.dtype == "bfloat16" else "float32"


def _longest_sampled(sampler: ResolvedSampler, most: int, at_hand: AtHand) -> int:
    """The longest sequence that a replica's cache holds; a block where it holds none, which `plan` then refuses.

    What a model caches that keeps something else than keys and values nobody can tell here, so nothing is cut.
    """
    shape, device_bytes = at_hand.shape, at_hand.machine.device_bytes if at_hand.machine else None
    if shape is None or not shape.has_plain_cache or (sampler.on_gpu and device_bytes is None):
        return most

    def memory_at(length: int) -> Any:
        if not sampler.on_gpu:
            return cpu_sampler_memory(shape, sampler, max_length=length)
        return gpu_sampler_memory(shape, sampler, max_length=length, device_bytes=device_bytes or 0)

    return longest_fitting(memory_at, most) or min(most, CPU_BLOCK_TOKENS)


# -- trainer ----------------------------------------------------------------------------------------------------------


def resolve_trainer(
    config: TrainerConfig, *, has_gpus: bool, at_hand: AtHand = NOTHING_KNOWN, asked: TrainerConfig | None = None
) -> ResolvedTrainer:
    """The trainer group's section: a GPU for each rank, if there are any; bfloat16 and checkpointing there alone.

    Args:
        config: The section.
        has_gpus: Whether the cluster has any GPU now.
        at_hand: What sizes follow from.
        asked: The section as the recipe has it; None: this is it.
    """
    use_gpu = has_gpus if config.use_gpu == "auto" else config.use_gpu
    usual = max(USUAL_ACTORS, config.sequence_parallel_size)
    ranks = usual if config.num_workers == "auto" else config.num_workers
    cores = at_hand.machine.cores if at_hand.machine and not use_gpu else 1
    changes = {
        "asked": (asked or config).model_copy(update={"num_workers": ranks}),
        "num_workers": ranks,
        "use_gpu": use_gpu,
        "threads": max(1, cores // ranks) if config.threads == "auto" else config.threads,
        "bf16": use_gpu if config.bf16 == "auto" else config.bf16,
        "gradient_checkpointing": use_gpu if config.gradient_checkpointing == "auto" else config.gradient_checkpointing,
    }
    return ResolvedTrainer.model_construct(**{**dict(config), **changes})


def _resolve_sync(
    config: SyncConfig, sampler: ResolvedSampler, trainer: ResolvedTrainer, rule: PlacementRule
) -> ResolvedSync:
    transport, tolerance = config.transport, config.tolerance
    if transport == "auto":
        ends = rule.takes_turns or sampler.release_while_training
        # where engines sleep on the ranks' devices, nothing lies on these any more when they wake
        on_gpus = trainer.use_gpu and sampler.on_gpu and not rule.sleeps
        transport = preferred(devices_apart=not ends, all_on_gpus=on_gpus)
    if tolerance == "auto":
        tolerance = default_tolerance("bfloat16" if sampler.dtype == "auto" else sampler.dtype)
        if not sampler.on_gpu and (sampler.dtype == "bfloat16" or (trainer.bf16 and not trainer.use_gpu)):
            tolerance = CPU_BF16_TOLERANCE
    return ResolvedSync.model_construct(**{**dict(config), "transport": transport, "tolerance": tolerance})


def default_tolerance(dtype: str) -> float:
    """The tolerance for an engine of this dtype; that of float32 for one that is not known."""
    return TOLERANCES.get(dtype, TOLERANCES["float32"])


# -- how many, and where ----------------------------------------------------------------------------------------------


def _counts(recipe: Recipe, placement: Placement, *, has_gpus: bool, at_hand: AtHand, trains: bool) -> tuple[int, int]:
    """Replicas and ranks: on GPUs as many as there is room for, on CPUs few."""
    asked, trainer = recipe.sampler.num_replicas, recipe.trainer
    gpus = at_hand.machine.num_gpus if at_hand.machine and has_gpus else 0
    each, apart = recipe.sampler.tensor_parallel_size, not PLACEMENTS[placement].shares_devices
    replicas, ranks = _few(at_hand), _few(at_hand)
    if asked != "auto":
        replicas = asked
    elif gpus and _samples_on_gpus(recipe, has_gpus):
        ranked = gpus // 2 if trainer.num_workers == "auto" else trainer.num_workers
        taken = ranked if trains and _trains_on_gpus(recipe, has_gpus) else 0
        replicas = max(1, (gpus - taken if apart else gpus) // each)
    if trainer.num_workers != "auto":
        return replicas, trainer.num_workers
    if gpus and _trains_on_gpus(recipe, has_gpus):
        sampled = replicas * each if _samples_on_gpus(recipe, has_gpus) else 0
        ranks = max(1, gpus - sampled if apart else gpus)
    return replicas, _dividing(recipe, ranks)


def _few(at_hand: AtHand) -> int:
    """Processes that share the cores of a machine: one for a model that keeps them busy."""
    known = at_hand.shape is not None and at_hand.machine is not None
    return 1 if known and at_hand.shape is not None and at_hand.shape.num_parameters >= SMALL_MODEL else USUAL_ACTORS


def _dividing(recipe: Recipe, most: int) -> int:
    """The most ranks over whose groups every stage's batch can be divided; those of one group have the same rows."""
    batches = [step.settings.global_batch_size // step.settings.least_rows for step in recipe.steps]
    sharing = recipe.trainer.sequence_parallel_size
    groups = range(max(1, most // sharing), 0, -1)
    return sharing * next(number for number in groups if all(batch % number == 0 for batch in batches))


def _samples_on_gpus(recipe: Recipe, has_gpus: bool) -> bool:
    asked = recipe.sampler.gpus_per_replica
    return has_gpus if asked == "auto" else asked > 0


def _trains_on_gpus(recipe: Recipe, has_gpus: bool) -> bool:
    asked = recipe.trainer.use_gpu
    return has_gpus if asked == "auto" else asked


def _ways(recipe: Recipe, *, has_gpus: bool, at_hand: AtHand, trains: bool) -> Iterator[_Way]:
    """Ways to run a recipe, the one that costs least first; several only where there is something to choose by."""
    trainer, machine = recipe.trainer, at_hand.machine
    use_gpu = _trains_on_gpus(recipe, has_gpus)
    chooses = trains and machine is not None and at_hand.shape is not None
    recomputes = (False, True) if chooses else (False,)
    in_bf16 = (False, True) if chooses and machine is not None and machine.has_bf16 else (False,)
    yield from (
        _Way(placement=placement, gradient_checkpointing=again, bf16=bf16, row=row)
        for row in _rows(recipe, at_hand, longest=PUBLISHED_ROW if use_gpu else LONGEST_CPU_ROW, chooses=chooses)
        for bf16 in _options(trainer.bf16, use_gpu, in_bf16)
        for placement in _placements(recipe, has_gpus=has_gpus, at_hand=at_hand, chooses=chooses)
        for again in _options(trainer.gradient_checkpointing, use_gpu, recomputes)
    )


def _options(asked: Any, use_gpu: bool, on_cpu: tuple[bool, ...]) -> tuple[bool, ...]:
    if asked != "auto":
        return (bool(asked),)
    return (True,) if use_gpu else on_cpu


def _placements(recipe: Recipe, *, has_gpus: bool, at_hand: AtHand, chooses: bool) -> tuple[Placement, ...]:
    """On GPUs side by side where the recipe's own numbers fit there; else one after the other, with all of them."""
    if recipe.placement != "auto":
        return (recipe.placement,)
    if at_hand.machine is None or not chooses or recipe.overlapped:
        return ("dedicated",)
    if not has_gpus:
        return ("dedicated", "shared")
    if not (_samples_on_gpus(recipe, has_gpus) and _trains_on_gpus(recipe, has_gpus)):
        return ("dedicated",)  # they do not want the same devices
    asked = recipe.sampler.num_replicas, recipe.trainer.num_workers
    each = recipe.sampler.tensor_parallel_size
    fits = "auto" not in asked and int(asked[0]) * each + int(asked[1]) <= at_hand.machine.num_gpus
    return ("dedicated",) if fits else ("shared",)


def _rows(recipe: Recipe, at_hand: AtHand, *, longest: int, chooses: bool) -> list[int]:
    """Lengths of rows to try: the longest that is wanted, then powers of two below it."""
    longest = _goal("auto", longest, at_hand.shape)
    if not chooses or all(step.settings.max_length != "auto" for step in recipe.steps):
        return [longest]
    powers = [2**power for power in range(int(math.log2(longest)), 0, -1)]
    return [longest, *(length for length in powers if SHORTEST_ROW <= length < longest)]


def _goal(asked: Any, published: int, shape: ModelShape | None) -> int:
    """The length that is wanted: what the recipe names, else the published one as far as the model goes."""
    if asked != "auto":
        return int(asked)
    return min(published, (shape.max_positions if shape else None) or published)


def _fits(found: ResolvedRecipe, at_hand: AtHand) -> bool:
    shape, machine = at_hand.shape, at_hand.machine
    if shape is None or machine is None:
        return True
    device_bytes = machine.device_bytes or 0
    if found.trainer.use_gpu and device_bytes:
        room = room_of_rank(found, device_bytes)
        if any(memory.peak_bytes > room for memory in trainer_memories(found, shape).values()):
            return False
    needed = total_bytes(parts_of_machine(found, shape, device_bytes=device_bytes))
    return machine.memory_bytes is None or needed <= machine.memory_bytes


# -- lengths ----------------------------------------------------------------------------------------------------------


def _filled(recipe: Recipe, *, sequence: int, row: int) -> Recipe:
    """The recipe with numbers for its lengths: of a sequence, of a response within it, and of rows of training."""
    response = max(1, min(PUBLISHED_RESPONSE, sequence * 2 // 3))
    values = recipe.model_dump(mode="json")
    filled = {
        **_numbers(values, max_length=row, max_tokens=response),
        "model": _numbers(values["model"], max_length=sequence, max_tokens=response),
    }
    return recipe if filled == values else recipe_from(filled, (), origin=recipe.name)


def _numbers(value: Any, **lengths: int) -> Any:
    """A dumped recipe in which no length is "auto"."""
    if isinstance(value, list):
        return [_numbers(inner, **lengths) for inner in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: lengths[key] if key in lengths and inner == "auto" else _numbers(inner, **lengths)
        for key, inner in value.items()
    }
