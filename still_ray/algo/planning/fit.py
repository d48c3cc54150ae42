"""Whether it fits: each check gives findings that name the key whose change would help most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from still_ray.algo.planning.bundles import PLACEMENTS, Placement, bundles_of, lends_devices, phases_of
from still_ray.algo.planning.cluster import NodeType
from still_ray.algo.planning.communication import exchanged_bytes
from still_ray.algo.planning.disk import TEXT_BYTES_PER_TOKEN
from still_ray.algo.planning.findings import Finding, Part, largest, size_text, total_bytes
from still_ray.algo.planning.model import FAMILIES, ModelShape, layer_name
from still_ray.algo.planning.placement_fit import room
from still_ray.algo.planning.sampler_memory import (
    COUNTED_ARGUMENTS,
    ENGINE_RUNTIME_BYTES,
    SamplerMemory,
    cpu_sampler_memory,
    longest_fitting,
    replica_memory,
)
from still_ray.algo.planning.trainer_memory import (
    FRAGMENTATION,
    OFF_LOADED,
    RUNTIME_BYTES,
    ZERO_3,
    TrainerMemory,
    group_bytes,
    largest_batches,
    trainer_memories,
)
from still_ray.algo.planning.workload import StageWork
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.config import Recipe
from still_ray.config.library_arguments import dotted_names
from still_ray.config.schema import TrainingSection
from still_ray.weight_sync.transports import FALLBACK, transport_named
from still_ray.weight_sync.transports.base import TransportMemory

PROCESS_BYTES: Final = 800 * 2**20
"""Host memory of a rank's or replica's process: Python, torch, DeepSpeed or vLLM. Source: ours, measured for a model of
a million parameters on CPUs: 0.6 GiB of a rank and 0.8 GiB of a replica are its own."""
DRIVER_BYTES: Final = 2 * 2**30
"""Host memory of the driver's process and of Ray's own, and buffers while a round is merged. Source: ours, measured at
0.5 GiB of the driver and 1 GiB of Ray; merging takes up to 300 MB."""
ROLLOUT_BYTES: Final = 1100
"""Of the pool in the driver's memory: key, verdict and candidate. Source: benchmarks/bench_round_memory.py, 273 MB for
246,528 rollouts."""

_FLOAT32: Final = 4
_SHORT_ROW: Final = 512
"""Tokens of a row below which its length is not what a trainer's memory is spent on. Source: ours."""
OBJECT_STORE: Final = "object store"
PROCESSES, VERIFIERS, DRIVER = "processes", "verifiers", "driver"
OVERHEAD: Final = frozenset({PROCESSES, VERIFIERS, DRIVER})
"""Parts of a host's memory that no model decides: estimates, and what verifiers take at most."""
STATES: Final = "model states in host memory"
SLEEPING: Final = "weights of engines that sleep"


def argument_findings(recipe: Recipe) -> list[Finding]:
    """A warning for each section whose arguments for a library change what nobody counts here."""
    given = {
        "sampler.engine": set(recipe.sampler.engine) - COUNTED_ARGUMENTS,
        "trainer.deepspeed": set(dotted_names(recipe.trainer.deepspeed)) - {"zero_optimization.sub_group_size"},
        "trainer.trl": set(recipe.trainer.trl),
    }
    return [
        Finding(severity="warning", key=key, text=f"not counted in memory and time here: {', '.join(sorted(names))}")
        for key, names in given.items()
        if names
    ]


def length_findings(recipe: Recipe, shape: ModelShape, *, trains: bool = True) -> list[Finding]:
    """Lengths against what the model was made for, and against each other."""
    found = []
    lengths = [("model.max_length", recipe.model.longest)]
    lengths += [(f"{step.where}.max_length", step.settings.longest) for step in recipe.steps if trains]
    for key, length in lengths:
        if shape.max_positions is not None and length > shape.max_positions:
            text = f"{length:,} tokens are more than the model's {shape.max_positions:,} positions"
            found.append(Finding(severity="error", key=key, text=f"{text}; lower it"))
    for number, explore in recipe.explorations:
        sampled = explore.longest
        trained = min((step.settings.longest for step in recipe.steps if step.round == number), default=sampled)
        if sampled > trained:
            text = f"responses of up to {sampled:,} tokens are sampled, rows over {trained:,} are left out of training"
            found.append(Finding(severity="warning", key=f"rounds.{number - 1}.explore.max_tokens", text=text))
    return found


def parallel_findings(recipe: ResolvedRecipe, shape: ModelShape) -> list[Finding]:
    """Whether tensor parallelism cuts the model evenly (vLLM refuses otherwise) and has its GPUs."""
    size = recipe.sampler.tensor_parallel_size
    found = []
    for what, number in (("attention heads", shape.num_heads), ("intermediate size", shape.intermediate_size)):
        if number % size:
            found.append(_tensor_parallel(f"must divide the model's {what} ({number}), {size} does not"))
    heads = shape.num_kv_heads
    if size % heads and heads % size:
        found.append(_tensor_parallel(f"must divide the model's {heads} KV heads or be a multiple of them"))
    gpus = recipe.sampler.gpus_per_replica
    shares_one = size == 1 and gpus < 1
    if gpus and gpus != size and not shares_one:
        text = f"a replica asks Ray for {gpus:g} GPUs and spreads over {size}: set it to {size} or auto"
        found.append(Finding(severity="error", key="sampler.gpus_per_replica", text=text))
    return found


def sequence_findings(recipe: ResolvedRecipe, shape: ModelShape) -> list[Finding]:
    """Whether rows can be computed in slices by several ranks, where the recipe asks for it."""
    size = recipe.trainer.sequence_parallel_size
    if size == 1:
        return []
    found = []
    if shape.num_heads % size:
        found.append(f"must divide the model's attention heads ({shape.num_heads}), {size} does not")
    longest = max(step.settings.longest for step in recipe.steps)
    if shape.num_window_layers and shape.window < longest:
        text = f"attention that ends at {shape.window:,} tokens is not known in slices of longer rows: set it to 1, or "
        found.append(text + f"every max_length to {shape.window:,}")
    if not shape.has_plain_cache:
        found.append(f"the layers of a {shape.family} model do more than attend to tokens: set it to 1")
    return [Finding(severity="error", key="trainer.sequence_parallel_size", text=text) for text in found]


def exchange_findings(recipe: ResolvedRecipe, shape: ModelShape, nodes: Sequence[NodeType]) -> list[Finding]:
    """A warning where ranks that share rows lie on several machines: they exchange activations in every layer."""
    trainer, size = recipe.trainer, recipe.trainer.sequence_parallel_size
    rooms = [
        room(node.cpus, node.gpus, trainer.cpus_per_worker, float(trainer.use_gpu))
        for node in nodes
        if node.satisfies(trainer.node_labels)
    ]
    if not trainer.use_gpu or not rooms or max(rooms) % size == 0:
        return []
    num_tokens, where = max(
        (batch.num_tokens, step.where)
        for step in recipe.steps
        for batch in largest_batches(step.settings, step.method.num_sequences)
    )
    sent = exchanged_bytes(
        shape,
        num_tokens=num_tokens,
        sequence_parallel_size=size,
        activation_bytes=trainer.precision.width,
        recomputes=trainer.gradient_checkpointing,
    )
    text = f"the {size} ranks that share a row lie on several machines, which hold up to {max(rooms)}: each receives "
    text += f"{size_text(sent)} of activations in a forward and backward pass of {where}; let it divide {max(rooms)}"
    return [Finding(severity="warning", key="trainer.sequence_parallel_size", text=text)]


def adapter_findings(recipe: Recipe, shape: ModelShape) -> list[Finding]:
    """Whether the layers that are to have adapters are there, where the family's names are known."""
    lora = recipe.trainer.lora
    if lora is None or lora.targets == "all-linear" or shape.family not in FAMILIES:
        return []
    known = tuple(shape.linear_layers)
    other = next((name for name in lora.targets if layer_name(name) not in known), None)
    if other is None:
        return []
    text = f"{other!r} is no linear layer of a {shape.family} model's blocks: they are {', '.join(known)}"
    return [Finding(severity="error", key="trainer.lora.targets", text=text)]


def device_findings(recipe: Recipe, *, has_gpus: bool, starts_with_gpus: bool) -> list[Finding]:
    """Whether what the recipe says of GPUs comes true on this cluster.

    Args:
        recipe: The recipe as it is asked for, with its "auto".
        has_gpus: Whether the cluster can have GPUs.
        starts_with_gpus: Whether it has some before an autoscaler adds machines.
    """
    sampler, trainer = recipe.sampler.gpus_per_replica, recipe.trainer.use_gpu
    asked = [("sampler.gpus_per_replica", "replicas", sampler), ("trainer.use_gpu", "ranks", trainer)]
    found = []
    for key, who, value in asked:
        if value != "auto" and value and not has_gpus:
            text = f"the {who} want GPUs and no machine has any: set it to auto or 0, or plan for machines with GPUs "
            text += "(--cluster, or --devices-per-node)"
            found.append(Finding(severity="error", key=key, text=text))
        if value == "auto" and has_gpus and not starts_with_gpus:
            text = "auto is settled when the run starts, and this cluster starts without GPUs: "
            text += f"the {who} would run on CPUs; say "
            text += f"{recipe.sampler.tensor_parallel_size}" if key.startswith("sampler") else "true"
            found.append(Finding(severity="error", key=key, text=text))
    return found


def _tensor_parallel(text: str) -> Finding:
    return Finding(severity="error", key="sampler.tensor_parallel_size", text=text)


def room_of_device(device_bytes: int) -> int:
    """What tensors of a rank may take of a GPU's memory."""
    return int(device_bytes * (1 - FRAGMENTATION)) - RUNTIME_BYTES


def room_of_rank(recipe: ResolvedRecipe, device_bytes: int) -> int:
    """The same beside an engine that sleeps on that GPU, if one does."""
    return room_of_device(device_bytes) - (ENGINE_RUNTIME_BYTES if lends_devices(recipe) else 0)


def sleep_findings(recipe: ResolvedRecipe, device_bytes: int) -> list[Finding]:
    """Whether engines can sleep on the ranks' devices at all, and start there beside ranks that wait for an order."""
    if not PLACEMENTS[recipe.placement].sleeps:
        return []
    if recipe.sampler.on_gpu != recipe.trainer.use_gpu:
        text = "with elastic, trainer and samplers work on the same devices, and one of the two has GPUs: set dedicated"
        return [Finding(severity="error", key="placement", text=text)]
    left = int(device_bytes * (1 - recipe.sampler.gpu_memory_utilization))
    if not lends_devices(recipe) or not device_bytes or left >= RUNTIME_BYTES:
        return []
    text = f"{size_text(left)} of a GPU are left beside vLLM, and a rank that waits keeps {size_text(RUNTIME_BYTES)}: "
    return [Finding(severity="error", key="sampler.gpu_memory_utilization", text=f"{text}lower it")]


def trainer_findings(recipe: ResolvedRecipe, memories: Mapping[str, TrainerMemory], device_bytes: int) -> list[Finding]:
    """Whether each stage's peak fits a GPU."""
    room = room_of_rank(recipe, device_bytes)
    sections = {step.where: step.settings for step in recipe.steps}
    found: dict[tuple[str, int], Finding] = {}
    for name, memory in memories.items():
        if memory.peak_bytes <= room:
            continue
        text = f"{name} needs {size_text(memory.peak_bytes)} on each GPU, {size_text(room)} of "
        text += f"{size_text(device_bytes)} can be used; "
        key, advice = _trainer_key(recipe, name, sections[name], memory, room)
        # Stages alike in memory need the same change: it is said of the first.
        found.setdefault((key, memory.peak_bytes), Finding(severity="error", key=key, text=text + advice))
    return list(found.values())


def _trainer_key(
    recipe: ResolvedRecipe, name: str, section: TrainingSection, memory: TrainerMemory, room: int
) -> tuple[str, str]:
    """The cheapest change that helps: sharding, then ranks or off-loading for the states, else a smaller batch."""
    trainer = recipe.trainer
    states, passing = total_bytes(memory.states), total_bytes(memory.passing)
    part = largest(memory.parts)
    advice = f"most of it {part.name}, {size_text(part.num_bytes)}"
    if states > room - passing and states > passing:
        if trainer.zero_stage != ZERO_3:
            return "trainer.zero_stage", f"{advice}: 3 shards the parameters as well"
        lora = "" if trainer.lora else ", or trainer.lora: {} trains adapters alone"
        return "trainer.num_workers", f"{advice}: more ranks share it, or trainer.offload: cpu{lora}"
    if not trainer.gradient_checkpointing:
        return "trainer.gradient_checkpointing", f"{advice}: true keeps only the inputs of layers"
    if (section.micro_batch_tokens or 0) > section.longest:
        return f"{name}.micro_batch_tokens", f"{advice}: fewer tokens in one forward pass"
    if section.least_rows > 1:
        return f"{name}.per_device_batch_size", f"{advice}: fewer rows in one forward pass"
    savers = {
        "trainer.sequence_parallel_size": trainer.sequence_parallel_size == trainer.num_workers,
        "trainer.num_mlp_tiles": trainer.num_mlp_tiles > 1,
        "trainer.offload_activations": trainer.offload_activations,
    }
    more = "".join(f", or {key}" for key, is_used in savers.items() if not is_used)
    return f"{name}.max_length", f"{advice}: shorter sequences{more}"


def sampler_findings(recipe: ResolvedRecipe, shape: ModelShape, memory: SamplerMemory) -> list[Finding]:
    """Whether the KV cache holds one whole sequence, without which vLLM does not start, and all that run together."""
    sampler, length = recipe.sampler, recipe.model.longest
    if memory.num_sequences < 1:
        text = (
            f"one sequence of model.max_length ({length:,} tokens) takes {size_text(memory.sequence_bytes)} of KV cache"
        )
        if not sampler.on_gpu:
            held = longest_fitting(lambda tokens: cpu_sampler_memory(shape, sampler, max_length=tokens), length)
            text += f", and {sampler.kv_cache_gib} GiB hold one of {held:,}; raise it, or lower model.max_length"
            return [Finding(severity="error", key="sampler.kv_cache_gib", text=text)]
        text += f": {size_text(max(0, memory.kv_bytes))} are left beside weights and set-aside of "
        text += f"{size_text(total_bytes(memory.parts))}; raise it, or lower model.max_length"
        return [Finding(severity="error", key="sampler.tensor_parallel_size", text=text)]
    if memory.num_sequences < sampler.max_num_seqs:
        text = f"{sampler.max_num_seqs} sequences are decoded together, {memory.num_sequences} of full length fit the "
        text += f"KV cache ({size_text(memory.kv_bytes)}): vLLM will compute some twice when many grow long"
        return [Finding(severity="warning", key="sampler.max_num_seqs", text=text)]
    return []


def transport_findings(recipe: Recipe, shape: ModelShape, device_bytes: int) -> list[Finding]:
    """Whether a replica has room beside what vLLM was given for the weights that arrive, a group at a time."""
    arriving = _sent(recipe, shape, width=_FLOAT32 if recipe.sampler.dtype == "float32" else 2).sampler_device
    room = int(device_bytes * (1 - recipe.sampler.gpu_memory_utilization))
    if arriving <= room:
        return []
    text = (
        f"{size_text(room)} of a GPU are left beside vLLM, and {size_text(arriving)} of weights arrive at once: lower "
    )
    text += f"it, or set sync.transport: {FALLBACK}"
    return [Finding(severity="error", key="sampler.gpu_memory_utilization", text=text)]


def _sent(recipe: Recipe, shape: ModelShape, *, width: int) -> TransportMemory:
    """What the recipe's transport needs for weights of `width` bytes each."""
    transport = transport_named(recipe.sync.transport)
    return transport.memory(model_bytes=width * shape.num_parameters, group_bytes=group_bytes(shape, width=width))


def host_parts(
    recipe: ResolvedRecipe,
    shape: ModelShape,
    placement: Placement,
    trainer: Mapping[str, TrainerMemory],
    sampler: SamplerMemory,
) -> tuple[Part, ...]:
    """Host memory of the machine that holds the most ranks, in the phase that needs more of it."""
    roles = max((roles for _, roles in placement.nodes), key=lambda held: held.count("trainer"), default=())
    heaviest = max(trainer.values(), key=lambda memory: total_bytes(memory.host) + memory.peak_bytes)
    phases = [tuple(role for role in roles if role in phase) for phase in phases_of(recipe)]
    found = max((_phase_parts(recipe, shape, held, heaviest, sampler) for held in phases), key=total_bytes)
    if "trainer" not in roles:
        return found
    packed = _object_store(recipe, shape, recipe.trainer.precision.width)
    return (*found, packed) if packed.num_bytes else found


def parts_of_machine(
    recipe: ResolvedRecipe, shape: ModelShape, *, device_bytes: int, trains: bool = True
) -> tuple[Part, ...]:
    """Host memory of a single machine that holds every actor of a run, and its driver.

    Args:
        recipe: The recipe.
        shape: The model.
        device_bytes: Memory of a GPU, if replicas have one.
        trains: Whether there is a trainer beside the samplers.
    """
    roles = tuple(bundle.role for bundle in bundles_of(recipe) if trains or bundle.role != "trainer")
    placement = Placement(nodes=(("this machine", roles),), unplaced=())
    sampler = replica_memory(recipe, shape, device_bytes=device_bytes)
    return (*host_parts(recipe, shape, placement, trainer_memories(recipe, shape), sampler), driver_part(()))


def driver_part(works: Sequence[StageWork]) -> Part:
    """Host memory of the driver, on the head: of the pool it holds no text, of one evaluation at a time all of it."""
    pool = sum(work.num_rollouts for work in works if not work.is_evaluation)
    evaluated = max((work.sampled_tokens for work in works if work.is_evaluation), default=0)
    return Part(
        name=DRIVER,
        num_bytes=DRIVER_BYTES + ROLLOUT_BYTES * pool + TEXT_BYTES_PER_TOKEN * evaluated,
        source=f"on the head: 2 GiB with Ray's own, {ROLLOUT_BYTES:,} B x {pool:,} rollouts of all rounds, "
        f"{TEXT_BYTES_PER_TOKEN} B x tokens of the largest evaluation",
    )


def _phase_parts(
    recipe: ResolvedRecipe,
    shape: ModelShape,
    roles: Sequence[str],
    trainer: TrainerMemory,
    sampler: SamplerMemory,
) -> tuple[Part, ...]:
    num_ranks, num_replicas = roles.count("trainer"), roles.count("sampler")
    moved = sum(part.num_bytes for part in trainer.host if part.name == OFF_LOADED)
    own = 0 if recipe.trainer.use_gpu else trainer.peak_bytes
    width, sampler_size = recipe.trainer.precision.width, recipe.sampler.tensor_parallel_size
    num_processes = num_ranks + num_replicas * (1 if recipe.sampler.on_gpu else sampler_size)
    parts = [
        Part(
            name=PROCESSES,
            num_bytes=num_processes * PROCESS_BYTES,
            source=f"0.8 GiB each of {num_ranks} ranks and {num_processes - num_ranks} workers of replicas; ours, "
            "measured at 0.6-0.8 GiB",
        ),
        Part(
            name="gathered model",
            num_bytes=width * shape.num_parameters if num_ranks else 0,
            source="the first rank gathers every weight to write the checkpoint; still_ray.trainer.saving",
        ),
        Part(
            name=STATES,
            num_bytes=num_ranks * (total_bytes(trainer.host) - moved + own),
            source="what is off-loaded, or everything on a CPU, for each rank; see the trainer's memory",
        ),
        Part(
            name=OFF_LOADED,
            num_bytes=num_ranks * moved,
            source="trainer.offload_activations: what each rank keeps of a pass, in pinned blocks of a power of two",
        ),
        _asleep(recipe, shape, num_replicas),
        _verifiers(recipe, roles.count("verifier")),
    ]
    if not recipe.sampler.on_gpu:
        parts.append(
            Part(
                name="CPU replicas",
                num_bytes=num_replicas * sampler_size * (total_bytes(sampler.parts) + sampler.kv_bytes),
                source="weights, KV cache and one step of each worker of a replica",
            )
        )
    return tuple(part for part in parts if part.num_bytes)


def _asleep(recipe: ResolvedRecipe, shape: ModelShape, num_replicas: int) -> Part:
    keeps = lends_devices(recipe) and recipe.sampler.sleep_level == 1
    width = _FLOAT32 if recipe.sampler.dtype == "float32" else 2
    return Part(
        name=SLEEPING,
        num_bytes=num_replicas * width * shape.num_parameters if keeps else 0,
        source="sampler.sleep_level 1: those of every replica here, in pinned memory",
    )


def _verifiers(recipe: Recipe, number: int) -> Part:
    verifier = recipe.verifier
    return Part(
        name=VERIFIERS,
        num_bytes=number * verifier.processes_per_worker * verifier.memory_mib * 2**20,
        source="processes_per_worker x memory_mib of each verifier, at most",
    )


def _object_store(recipe: Recipe, shape: ModelShape, width: int) -> Part:
    memory = _sent(recipe, shape, width=width)
    return Part(name=OBJECT_STORE, num_bytes=memory.object_store, source=memory.source)


def host_findings(recipe: ResolvedRecipe, parts: Sequence[Part], nodes: Sequence[NodeType]) -> list[Finding]:
    """Host memory and object store of the machines on which ranks or replicas can lie."""
    known = [node for node in nodes if node.memory_bytes is not None and node.count]
    if not known:
        text = "host memory is not known, so it was not checked; give --host-memory-gib, or memory in the cluster file"
        return [Finding(severity="warning", key="--host-memory-gib", text=text)]
    node = max(known, key=lambda node: (node.gpus, node.memory_bytes or 0))
    memory, store = node.memory_bytes or 0, node.store_bytes or 0
    found = []
    needed = total_bytes(parts)
    if needed > memory:
        part = largest(parts)
        key, advice = _host_key(recipe, part)
        text = f"{node.name} needs {size_text(needed)} of host memory and has {size_text(memory)}; "
        text += f"most of it {part.name}, {size_text(part.num_bytes)}: {advice}"
        found.append(Finding(severity="error", key=key, text=text))
    packed = next((part.num_bytes for part in parts if part.name == OBJECT_STORE), 0)
    if packed > store:
        text = (
            f"the packed weights take {size_text(packed)} of the object store, {node.name} has {size_text(store)}: set "
        )
        text += f"transport: {FALLBACK}, or give Ray a larger object store"
        found.append(Finding(severity="error", key="sync.transport", text=text))
    return found


def _host_key(recipe: ResolvedRecipe, part: Part) -> tuple[str, str]:
    """What makes the largest part of the host's memory smaller."""
    if part.name == STATES:
        return _states_key(recipe)
    keys = {
        OBJECT_STORE: ("sync.transport", f"{FALLBACK} needs none"),
        OFF_LOADED: ("trainer.offload_activations", "false leaves them on the GPUs"),
        VERIFIERS: ("verifier.memory_mib", "less for each process"),
        "CPU replicas": ("sampler.num_replicas", "fewer of them, or a smaller sampler.kv_cache_gib"),
        SLEEPING: ("sampler.sleep_level", "2 drops them"),
    }
    if recipe.sampler.num_replicas == 1:
        keys["CPU replicas"] = ("sampler.kv_cache_gib", "a smaller cache")
    return keys.get(part.name, ("--host-memory-gib", "a machine with more"))


def _states_key(recipe: ResolvedRecipe) -> tuple[str, str]:
    """The same where the trainer takes most: what costs time first, then what costs data."""
    trainer = recipe.trainer
    if trainer.offload == "cpu":
        return "trainer.offload", "none leaves them on the GPUs"
    if not trainer.gradient_checkpointing:
        return "trainer.gradient_checkpointing", "true keeps only the inputs of layers"
    if not PLACEMENTS[recipe.placement].takes_turns and not recipe.sampler.on_gpu:
        return "placement", "with shared, trainer and samplers take turns"
    longest = max(recipe.steps, key=lambda step: step.settings.longest * step.method.num_sequences)
    if longest.settings.longest > _SHORT_ROW:
        return f"{longest.where}.max_length", "shorter rows"
    return "model.path", "a smaller model"


def disk_findings(recipe: Recipe, parts: Sequence[Part], disk_bytes: int | None) -> list[Finding]:
    """Shared storage, if its size is known."""
    needed = total_bytes(parts)
    if disk_bytes is None or needed <= disk_bytes:
        return []
    part = largest(parts)
    keys = {"trajectories": "explore.samples_per_problem", "resumable state": "imitate.save_steps"}
    text = f"the run directory grows to {size_text(needed)}, {size_text(disk_bytes)} are free; most of it {part.name}, "
    return [Finding(severity="error", key=keys.get(part.name, "rounds"), text=text + size_text(part.num_bytes))]
