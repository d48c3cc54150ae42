"""Where the ranks of a trainer group lie, how fast they reach each other, and what a stage's steps will cost them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from still_ray.algo.planning.communication import passes_per_step, rate_text, received_bytes, step_text
from still_ray.algo.planning.model import trains_embeddings
from still_ray.algo.planning.placement_fit import room, scattered
from still_ray.config.methods import method_named
from still_ray.formats.model_files import Tensor, read_tensors
from still_ray.location import location
from still_ray.types import Event, InputError, RunError

if TYPE_CHECKING:
    from still_ray.algo.resolved import ResolvedTrainer
    from still_ray.config import LoraConfig
    from still_ray.driver.ports import TrainOrder

_IN_A_BLOCK = re.compile(r"\.\d+\.")
"""In the name of a weight of a transformer's block."""


@dataclass(frozen=True, kw_only=True)
class RankLinks:
    """What is known of a group before its first order.

    Attributes:
        num_ranks: Of the group.
        num_machines: On which they lie.
        bytes_per_s: What an all-gather brings to each rank in a second.
        notes: Lines for the person who watches.
    """

    num_ranks: int
    num_machines: int
    bytes_per_s: float
    notes: tuple[str, ...]


def links_of(trainer: ResolvedTrainer) -> RankLinks | None:
    """Looks at a group; collective, about a second. None for a single rank, which talks to none."""
    import torch
    import torch.distributed as dist

    from still_ray.trainer.bandwidth import all_gather_bytes_per_s

    num_ranks = dist.get_world_size()
    if num_ranks == 1:
        return None
    nodes: list[str] = [""] * num_ranks
    dist.all_gather_object(nodes, ray.get_runtime_context().get_node_id())
    device = torch.device("cuda", torch.cuda.current_device()) if trainer.use_gpu else torch.device("cpu")
    rate, num_machines = all_gather_bytes_per_s(device), len(set(nodes))
    told = rate_text(rate, num_ranks=num_ranks, num_machines=num_machines, use_gpu=trainer.use_gpu)
    spread = scattered(num_machines, rooms_for(trainer, ray.nodes()), num_ranks=num_ranks)
    notes = (told, f"warning: {spread} (trainer.node_labels)") if spread else (told,)
    return RankLinks(num_ranks=num_ranks, num_machines=num_machines, bytes_per_s=rate, notes=notes)


def rooms_for(trainer: ResolvedTrainer, nodes: list[dict[str, Any]]) -> list[int]:
    """How many ranks each machine that is up could hold, whatever else it holds.

    Args:
        trainer: What a rank asks for, and which labels.
        nodes: As `ray.nodes()` lists them.
    """
    return [
        room(
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            trainer.cpus_per_worker,
            float(trainer.use_gpu),
        )
        for node in nodes
        if node["Alive"] and trainer.node_labels.items() <= node.get("Labels", {}).items()
    ]


def stage_cost(
    links: RankLinks, order: TrainOrder, model: str, trainer: ResolvedTrainer, *, row_tokens: float
) -> tuple[list[Event], str]:
    """What a step of a stage costs the ranks: the numbers, and a line for a person.

    Args:
        links: Of the group.
        order: The stage.
        model: Folder of the model that it starts from; a hub id's size is not known here.
        trainer: The trainer's section.
        row_tokens: Mean length of the stage's rows.
    """
    labels = {"stage": order.stage.name}
    events = [Event(name="train/all_gather_bytes_per_s", value=links.bytes_per_s, labels=labels)]
    tensors = _tensors(model)
    if not tensors:
        return events, ""
    num_bytes = received_bytes(
        sum(tensor.num_elements for tensor in tensors.values()),
        num_ranks=links.num_ranks,
        micro_batches=passes_per_step(
            order.settings,
            num_sequences=method_named(order.method).num_sequences,
            num_ranks=trainer.data_parallel_size,
            row_tokens=row_tokens,
        ),
        zero_stage=trainer.zero_stage,
        parameter_bytes=trainer.precision.width,
        num_trained=None if trainer.lora is None else num_beside_frozen(tensors, trainer.lora),
    )
    events.append(Event(name="train/communication_s_per_step", value=num_bytes / links.bytes_per_s, labels=labels))
    return events, f"{order.stage.name}: {step_text(num_bytes, links.bytes_per_s)}"


def _tensors(model: str) -> dict[str, Tensor]:
    """By the headers of a model's files; none where these are not known, which costs a line of output and no more."""
    try:
        return read_tensors(location(model), trains=False)
    except (InputError, RunError, OSError):
        return {}


def num_beside_frozen(tensors: Mapping[str, Tensor], lora: LoraConfig) -> int:
    """Parameters that are trained while the blocks are frozen: adapters, and perhaps the matrices beside the blocks."""
    matrices = {name: tensor.shape for name, tensor in tensors.items() if len(tensor.shape) == 2}  # noqa: PLR2004
    adapters = lora.rank * sum(sum(shape) for name, shape in matrices.items() if _has_adapter(name, lora))
    if not trains_embeddings(lora, sum(math.prod(tensor.shape) for tensor in tensors.values())):
        return adapters
    return adapters + sum(math.prod(shape) for name, shape in matrices.items() if not _IN_A_BLOCK.search(name))


def _has_adapter(weight: str, lora: LoraConfig) -> bool:
    if lora.targets == "all-linear":
        return _IN_A_BLOCK.search(weight) is not None
    layer = f".{weight.removesuffix('.weight')}"
    return layer.endswith(tuple(f".{target}" for target in lora.targets))
