"""Wall time and device-hours of a run, worked and held, from stated assumptions about speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.workload import StageWork

_SAMPLER_TOKENS_TIMES_PARAMETERS: Final = 1.6e13
GPU_TFLOPS: Final = 989.0
"""Dense bfloat16. Source: NVIDIA's data sheet of the H100 SXM."""
CPU_TFLOPS: Final = 0.1
"""Of one core, float32. Source: ours: a tiny model trained at 0.04 in it, see Speed.mfu."""
CPU_SAMPLER_TOKENS_PER_S: Final = 2_600.0
"""Of a CPU replica. Source: ours, measured for a model of a million parameters."""

GPU_ENGINE_START_S: Final = 60.0
"""Of an engine on GPUs, reading the weights apart: processes, profiling, CUDA graphs. Source: ours, an assumption."""
CPU_ENGINE_START_S: Final = 12.0
"""The same on a CPU. Source: ours, measured: 9 s of imports and 3 s of engine."""
TRAINER_START_S: Final = 45.0
"""Of a trainer group, reading the weights apart: processes and imports. Source: ours, measured on CPUs."""
STORAGE_BYTES_PER_S: Final = 0.9e9
"""Of weights on their way from or to shared storage. Source: what is left beside `GPU_ENGINE_START_S` of a published
start, about 215 s for 70 billion parameters in bfloat16."""
SYNC_BYTES_PER_S: Final = 3.6e9
"""Of weights that are sent to replicas which stay up. Source: published (verl), 18 s for 32 billion parameters."""
SLEEP_WAKE_S: Final = 10.0
"""Of an engine that sleeps while a stage is trained, both ways, the sync apart. Source: ours, an assumption; published
as 3 to 8 % of a step of reinforcement learning, which is a matter of minutes."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast devices are.

    Attributes:
        device_tflops: Peak of a device, 1e12 operations per second.
        mfu: Share of the peak that training reaches (model FLOPs utilisation). Default: an assumption.
        sampler_tokens_per_s: Tokens per second of one device of a replica; None: 16,000 over the model's 1e9
            parameters, an assumption.
    """

    device_tflops: float = GPU_TFLOPS
    mfu: float = 0.35
    sampler_tokens_per_s: float | None = None

    def tokens_per_s(self, shape: ModelShape) -> float:
        """Tokens per second of one sampler device."""
        return self.sampler_tokens_per_s or _SAMPLER_TOKENS_TIMES_PARAMETERS / shape.num_parameters


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Time of one stage.

    Attributes:
        work: What it does.
        device_hours: Devices busy, times hours.
        hours: Wall time when all devices of that kind share the work evenly.
    """

    work: StageWork
    device_hours: float
    hours: float


def flops_per_token(shape: ModelShape, *, mean_tokens: int, is_frozen: bool = False) -> float:
    """Operations of training on one token, recomputation not counted, as MFU is defined.

    Source: 6 x parameters that multiply, plus 12 x layers x query width x mean context / 2 for causal attention
    (PaLM, arXiv 2204.02311 appendix B; halved for the causal mask). Of the 6 the gradients of the weights are 2: behind
    frozen ones they are left out, and the adapters' own operations are neglected.
    """
    multiplied = shape.num_parameters - (0 if shape.tied else shape.num_embedding)
    return (4.0 if is_frozen else 6.0) * multiplied + 6.0 * shape.num_layers * shape.query_size * mean_tokens


@dataclass(frozen=True, kw_only=True)
class DeviceCounts:
    """How many devices a run has.

    Attributes:
        sampling: Of all replicas.
        training: Of all ranks.
        held: GPUs of the machines that hold an actor, from the first stage to the last; without any GPU the replicas
            and ranks that are up at once.
    """

    sampling: float
    training: float
    held: float


def stage_costs(
    works: Sequence[StageWork],
    shape: ModelShape,
    speed: Speed,
    devices: DeviceCounts,
    *,
    mean_tokens: int,
    is_frozen: bool = False,
) -> tuple[StageCost, ...]:
    """Device-hours and wall time of every stage.

    Args:
        works: The stages.
        shape: The model.
        speed: The assumptions.
        devices: That share the work of each kind.
        mean_tokens: Mean length of a training row.
        is_frozen: Whether adapters are trained in the weights' place.
    """
    operations = flops_per_token(shape, mean_tokens=mean_tokens, is_frozen=is_frozen)
    per_s = speed.device_tflops * 1e12 * speed.mfu / operations
    costs = []
    for work in works:
        sampling = work.sampled_tokens / speed.tokens_per_s(shape) / 3600
        training = work.trained_tokens / per_s / 3600
        hours = sampling / max(devices.sampling, 1) + training / max(devices.training, 1)
        costs.append(StageCost(work=work, device_hours=sampling + training, hours=hours))
    return tuple(costs)


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Something during which no device works.

    Attributes:
        name: What.
        times: How often in a run.
        seconds: How long each takes.
        source: The formula, and where it comes from.
    """

    name: str
    times: int
    seconds: float
    source: str

    @property
    def hours(self) -> float:
        """All of them."""
        return self.times * self.seconds / 3600


def waits(
    works: Sequence[StageWork],
    phases: Sequence[Collection[str]],
    *,
    released: bool,
    sleeps: bool,
    model_bytes: int,
    on_gpu: bool,
) -> tuple[Wait, ...]:
    """Starts of actors, checkpoints and weight syncs of a run, none of which is taken to overlap with work.

    Roles of one phase start side by side, so that the slower of them counts. A role that is not up is started when a
    stage needs it, and those that share no phase with it have ended by then.

    Args:
        works: The stages in order.
        phases: Roles that are up at the same time; see `still_ray.algo.planning.bundles.PLACEMENTS`.
        released: Whether replicas end while the trainer works.
        sleeps: Whether they sleep instead, and read the new weights from a store when they wake.
        model_bytes: Of the weights in a checkpoint.
        on_gpu: Whether engines run on GPUs.
    """
    moving = model_bytes / STORAGE_BYTES_PER_S
    num_loaded, sync_rate = 0, STORAGE_BYTES_PER_S if sleeps else SYNC_BYTES_PER_S
    starts = {"sampler": (GPU_ENGINE_START_S if on_gpu else CPU_ENGINE_START_S), "trainer": TRAINER_START_S}
    started: Counter[frozenset[str]] = Counter()
    up, num_trained, num_synced = frozenset[str](), 0, 0
    for work in works:
        phase = next(frozenset(starts) & frozenset(phase) for phase in phases if work.role in phase)
        started[phase - up] += 1
        trains = work.role == "trainer"
        num_loaded += trains and "trainer" in up and num_trained > 0
        up = phase - {"sampler"} if trains and released else phase
        num_trained += trains
        num_synced += trains and "sampler" in up
    of_storage = f"weights at {STORAGE_BYTES_PER_S / 1e9:g} GB/s of shared storage, ours from a published start"
    found = [
        Wait(
            name=f"start of {' and '.join(sorted(roles))}",
            times=times,
            seconds=max(starts[role] for role in roles) + moving,
            source=f"{max(starts[role] for role in roles):g} s, an assumption, and {of_storage}",
        )
        for roles, times in started.items()
        if roles
    ]
    found.append(Wait(name="start model", times=num_loaded, seconds=moving, source=of_storage))
    found.append(Wait(name="checkpoint", times=num_trained, seconds=moving, source=of_storage))
    asleep = f"{SLEEP_WAKE_S:g} s, an assumption; published as 3-8 % of a step of reinforcement learning"
    found.append(Wait(name="sleep and wake", times=num_synced * sleeps, seconds=SLEEP_WAKE_S, source=asleep))
    synced = of_storage if sleeps else f"weights at {sync_rate / 1e9:g} GB/s; published, 18 s for 32B by NCCL"
    found.append(Wait(name="weight sync", times=num_synced, seconds=model_bytes / sync_rate, source=synced))
    return tuple(wait for wait in found if wait.times)


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What a run takes, and what of it is work.

    Trainer and samplers work in turn: a stage samples or trains, and devices that the other role holds are idle in the
    meantime. Only an exploration that overlaps goes on beside a training stage, and the longer of the two counts.

    Attributes:
        stages: Every stage.
        waits: Times during which no device works.
        held_devices: See `DeviceCounts`.
        price: Of a GPU-hour; None: not asked for.
    """

    stages: tuple[StageCost, ...]
    waits: tuple[Wait, ...]
    held_devices: float
    price: float | None = None

    @property
    def hours(self) -> float:
        """Wall time of the run."""
        return self.hours_of("sampler") + self.hours_of("trainer") - self.overlapped_hours + self.waiting_hours

    @property
    def overlapped_hours(self) -> float:
        """Wall time during which both roles work."""
        hours = {stage.work.name: stage.hours for stage in self.stages}
        return sum(min(stage.hours, hours[stage.work.beside]) for stage in self.stages if stage.work.beside)

    def hours_of(self, role: str) -> float:
        """Wall time during which a role works."""
        return sum(stage.hours for stage in self.stages if stage.work.role == role)

    @property
    def waiting_hours(self) -> float:
        """Wall time during which none does."""
        return sum(wait.hours for wait in self.waits)

    def work_hours_of(self, role: str) -> float:
        """Device-hours of a role's work."""
        return sum(stage.device_hours for stage in self.stages if stage.work.role == role)

    @property
    def work_hours(self) -> float:
        """Device-hours of work."""
        return sum(stage.device_hours for stage in self.stages)

    @property
    def held_hours(self) -> float:
        """Device-hours for which machines are paid."""
        return self.held_devices * self.hours

    @property
    def idle_share(self) -> float:
        """Share of the held device-hours that is no work."""
        return 1.0 - self.work_hours / self.held_hours if self.held_hours else 0.0

    @property
    def money(self) -> float | None:
        """What the held device-hours cost; None without a price."""
        return None if self.price is None else self.price * self.held_hours
