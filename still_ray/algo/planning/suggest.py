"""A search for a better split of given machines: placement, replicas, tensor parallelism, ranks, and what fits memory.

`plan` knows one rate of a sampler device and one of a rank, whatever surrounds it. So of settings that cost memory and
whose time it does not know (sequences at once, batch of a device, recomputed activations, off-load) the recipe's own
are kept, and changed only where a memory refuses them: first what costs time alone, see `still_ray.algo.placement`.
What a run learns from is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from still_ray.algo.planning.bundles import PLACEMENTS
from still_ray.algo.planning.cluster import NodeType, total_gpus
from still_ray.algo.planning.plan import Plan
from still_ray.algo.resolved import ResolvedRecipe

NUM_SHOWN: Final = 5
"""Splits that are shown, of different placements or numbers of ranks. Source: ours."""
NUM_TILES: Final = 8
"""Tiles of an MLP that are tried: one takes less than the attention beside it. Source: ours."""
_SHARING: Final = "trainer.sequence_parallel_size"
_LEAST_SEQUENCES: Final = 8
"""Sequences at once are not lowered below this. Source: ours."""

Changes = Mapping[str, Any]
"""Values by dotted key of a recipe, as `--set` takes them."""
Planned = Callable[[Changes], Plan | None]
"""The plan of the recipe with some values changed; None where they make no valid recipe."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One way to use the machines.

    Attributes:
        changes: What it changes of the recipe.
        plan: What that comes to.
    """

    changes: Changes
    plan: Plan

    @property
    def rank(self) -> tuple[Any, ...]:
        """Lower is better: wall time, then held device-hours (which is money), then changes; never a tie.

        What needs an off-load that the recipe has not comes after all else: nobody knows here how much slower it is.
        """
        slower = [key in self.changes for key in ("trainer.offload", "trainer.offload_activations")]
        hours = (round(self.plan.cost.hours, 6), round(self.plan.cost.held_hours, 6))
        return (*slower, *hours, len(self.changes), sorted(map(str, self.changes.items())))


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """What a search found.

    Attributes:
        splits: Those that fit, the best first; of each placement and number of ranks one.
        nearest: Where none fits, the one with the fewest errors; None where not even a valid recipe was found.
    """

    splits: tuple[Split, ...]
    nearest: Split | None


def suggest(asked: ResolvedRecipe, num_kv_heads: int, nodes: Sequence[NodeType], planned: Planned) -> Suggestions:
    """Searches every split whose parts divide what they must divide; the same input gives the same answer.

    Args:
        asked: The recipe, settled.
        num_kv_heads: Of the model, over which devices of a replica divide or are multiples.
        nodes: The machines.
        planned: Plans a variant.
    """
    fitting: dict[tuple[str, int], Split] = {}
    refused: list[Split] = []
    for placement in ("dedicated",) if asked.overlapped else PLACEMENTS:
        for num_ranks in _ranks(asked, total_gpus(nodes)):
            for split in _splits(asked, placement, num_ranks, num_kv_heads=num_kv_heads, nodes=nodes, planned=planned):
                if not split.plan.fits:
                    refused.append(split)
                    continue
                kept = fitting.setdefault((placement, num_ranks), split)
                fitting[placement, num_ranks] = min(kept, split, key=lambda one: one.rank)
    best = sorted(fitting.values(), key=lambda one: one.rank)
    nearest = min(refused, key=lambda one: (_num_errors(one.plan), one.rank), default=None)
    return Suggestions(splits=tuple(best[:NUM_SHOWN]), nearest=None if best else nearest)


def _num_errors(plan: Plan) -> int:
    return sum(finding.severity == "error" for finding in plan.findings)


def _ranks(asked: ResolvedRecipe, most: float) -> list[int]:
    """Numbers of ranks over whose groups the batches of every stage can be divided; those of one group share rows."""
    if not asked.trainer.use_gpu:
        return [asked.trainer.num_workers]
    batches = [step.settings.global_batch_size // step.settings.least_rows for step in asked.steps]
    shared, sharing = math.gcd(*batches), asked.trainer.sequence_parallel_size
    groups = range(1, min(shared, int(most) // sharing) + 1)
    return [sharing * number for number in groups if shared % number == 0]


def _splits(
    asked: ResolvedRecipe,
    placement: str,
    num_ranks: int,
    *,
    num_kv_heads: int,
    nodes: Sequence[NodeType],
    planned: Planned,
) -> Iterator[Split]:
    """One for each tensor parallelism: as many replicas as there is room for."""
    room = sum(node.count * node.gpus for node in nodes if node.satisfies(asked.sampler.node_labels))
    room -= num_ranks if asked.trainer.use_gpu and not PLACEMENTS[placement].shares_devices else 0
    for size in _sizes(asked, num_kv_heads, most=max(node.gpus for node in nodes)):
        each = asked.sampler.gpus_per_replica if size == asked.sampler.tensor_parallel_size else size
        wanted = {
            "placement": placement,
            "sampler.num_replicas": max(1, int(room / each)) if each else asked.sampler.num_replicas,
            "sampler.tensor_parallel_size": size,
            "sampler.gpus_per_replica": each,
            "trainer.num_workers": num_ranks,
        }
        if split := _mended(asked, wanted, planned):
            yield split


def _sizes(asked: ResolvedRecipe, num_kv_heads: int, *, most: float) -> list[int]:
    """Devices of a replica: the recipe's, and powers of two that divide the KV heads or are multiples of them."""
    if not asked.sampler.on_gpu:
        return [asked.sampler.tensor_parallel_size]
    powers = [2**power for power in range(int(math.log2(max(1.0, most))) + 1)]
    even = [size for size in powers if size % num_kv_heads == 0 or num_kv_heads % size == 0]
    return sorted({asked.sampler.tensor_parallel_size, *even})


def _mended(asked: ResolvedRecipe, wanted: Changes, planned: Planned) -> Split | None:
    """A split with what its errors ask for, as far as that helps; None where it makes no valid recipe."""
    found = None
    remedy: Changes | None = {}
    while remedy is not None:
        wanted = {**wanted, **remedy}
        changes = _differing(asked, wanted)
        plan = planned(changes)
        if plan is None:
            return found
        found = Split(changes=changes, plan=plan)
        remedy = None if plan.fits else _remedy(asked, wanted, plan)
    return found


def _differing(asked: ResolvedRecipe, wanted: Changes) -> Changes:
    """What the recipe does not say already."""
    own = {
        "placement": asked.placement,
        "sampler.num_replicas": asked.sampler.num_replicas,
        "sampler.tensor_parallel_size": asked.sampler.tensor_parallel_size,
        "sampler.gpus_per_replica": asked.sampler.gpus_per_replica,
        "trainer.num_workers": asked.trainer.num_workers,
    }
    return {key: value for key, value in wanted.items() if own.get(key) != value}


def _remedy(asked: ResolvedRecipe, wanted: Changes, plan: Plan) -> Changes | None:
    """The next change to try: fewer replicas where there is no room, else what takes less memory; None: none helps."""
    if plan.placement.unplaced:
        lacking = sum(bundle.gpus for bundle in plan.placement.unplaced) / (wanted["sampler.gpus_per_replica"] or 1)
        fewer = wanted["sampler.num_replicas"] - max(1, math.ceil(lacking))
        return {"sampler.num_replicas": fewer} if fewer >= 1 else None
    of_samplers = [finding.key.startswith("sampler.") for finding in plan.findings if finding.severity == "error"]
    if any(of_samplers):
        half = wanted.get("sampler.max_num_seqs", asked.sampler.max_num_seqs) // 2
        return {"sampler.max_num_seqs": half} if half >= _LEAST_SEQUENCES else None
    return next((step for step in _less_memory(asked, wanted, plan) if not step.items() <= wanted.items()), None)


def _less_memory(asked: ResolvedRecipe, wanted: Changes, plan: Plan) -> Iterator[Changes]:
    """For a trainer: recomputed activations, then one row at a time, then states in the host's memory.

    Where it is not the states that take most, three come before those: twice as many ranks for each row, MLPs in tiles,
    and activations in the host's memory.
    """
    if not asked.trainer.gradient_checkpointing:
        yield {"trainer.gradient_checkpointing": True}
    sections = {step.where.rpartition(".")[2]: step.settings for step in asked.steps}
    packed = {name: one.longest for name, one in sections.items() if (one.micro_batch_tokens or 0) > one.longest}
    single = {f"{name}.per_device_batch_size": 1 for name, one in sections.items() if one.least_rows > 1}
    single |= {f"{name}.micro_batch_tokens": longest for name, longest in packed.items()}
    if single:
        yield single
    in_states = any(finding.key in ("trainer.num_workers", "trainer.zero_stage") for finding in plan.findings)
    sharing = 2 * int(wanted.get(_SHARING, asked.trainer.sequence_parallel_size))
    if not in_states and wanted["trainer.num_workers"] % sharing == 0 and plan.shape.num_heads % sharing == 0:
        yield {_SHARING: sharing}
    if not in_states and asked.trainer.num_mlp_tiles == 1:
        yield {"trainer.num_mlp_tiles": NUM_TILES}
    if not in_states and not asked.trainer.offload_activations:
        yield {"trainer.offload_activations": True}
    if asked.trainer.offload != "cpu":
        yield {"trainer.offload": "cpu"}
