"""Reads a DeepSpeed ZeRO-3 model out, one layer at a time, for the transports of weight sync.

`ZeroSource` has the shape of `vllm.distributed.weight_transfer.base.WeightSource` without importing vLLM, which a
trainer process does not have: vLLM's trainer engines call `metadata()`, `held_names()`, `iter_groups()` and iterate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.packing import TensorSpec, extent, layout, views

_LAYER = re.compile(r"^(.*?\.\d+)\.")


class ParamMeta(NamedTuple):
    """Name, type and full shape of a parameter; the fields of vLLM's class of the same name."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class ZeroSource:
    """The weights of a model whose parameters are sharded over ranks, whole again one group at a time.

    Gathering is collective: every rank iterates, in lockstep. Each pass is a fresh one, and no rank holds more than one
    group: a transformer layer, or a parameter outside the layers. A parameter that several modules share has one name,
    the first, as in the saved HF checkpoint. A model that is not sharded (ZeRO-2, plain torch) is read as it is.

    Args:
        module: The model inside the DeepSpeed engine.
        device: Where the copies go.
        keep: False on ranks that only help to gather: they copy nothing and yield nothing.
    """

    def __init__(self, module: nn.Module, *, device: str | torch.device = "cpu", keep: bool = True) -> None:
        self._parameters = dict(module.named_parameters())
        self._device = torch.device(device)
        self._keep = keep

    def metadata(self) -> list[ParamMeta]:
        """What iteration yields, in its order, without gathering anything."""
        return [ParamMeta(name, value.dtype, _full_shape(value)) for name, value in self._parameters.items()]

    def held_names(self) -> None:
        """None: every rank can yield every parameter."""
        return

    def groups(self) -> list[list[str]]:
        """Names of the parameters that are gathered together."""
        return [list(names) for _, names in groupby(self._parameters, key=_group_of)]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for group in self.iter_groups():
            yield from group

    def iter_groups(self) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """Gathers a group, copies it, lets the gathered parameters go, then yields the copy."""
        for names in self.groups():
            group = self._gather(names)
            if self._keep:
                yield group

    def layouts(self) -> tuple[tuple[TensorSpec, ...], ...]:
        """Where each group's tensors lie in its block of `iter_packed`, without gathering anything."""
        metadata = {meta.name: meta for meta in self.metadata()}
        return tuple(layout(metadata[name] for name in names) for names in self.groups())

    def shortage(self) -> str:
        """Why the largest group cannot be gathered and copied here; "" if there is room.

        A rank that runs out of memory inside a gather leaves the others waiting in it for ever. So the room is looked
        for before the first one, and the ranks agree (`agreed`): each takes as much memory as it will need, and lets
        it go.
        """
        need = max((extent(specs) for specs in self.layouts()), default=0)
        held: list[torch.Tensor] = []
        try:
            held.append(torch.empty(need, dtype=torch.uint8, device=_gathering_device()))
            if self._keep:
                held.append(torch.empty(need, dtype=torch.uint8, device=self._device))
        except torch.OutOfMemoryError as error:
            return f"no memory for a group of {need / 2**20:.0f} MiB: {str(error).partition('. ')[0]}"
        return ""

    def iter_packed(self) -> Iterator[torch.Tensor]:
        """Each group as one block of bytes on the device, laid out as `layouts` says; one group at a time.

        Raises:
            SyncError: There was no memory for a block. All groups are gathered to the end before, as on other ranks.
        """
        failure: Exception | None = None
        for names, specs in zip(self.groups(), self.layouts(), strict=True):
            block = None
            with self._gathered(names) as parameters:
                if self._keep and failure is None:
                    try:
                        block = self._packed(parameters, specs)
                    except torch.OutOfMemoryError as error:
                        failure = error
            if block is not None:
                yield block
        if failure is not None:
            raise SyncError(f"no memory for a block of weights: {str(failure).partition('. ')[0]}") from failure

    def _gather(self, names: list[str]) -> list[tuple[str, torch.Tensor]]:
        with self._gathered(names) as parameters:
            if not self._keep:
                return []
            copies = [value.detach().to(self._device, copy=True) for value in parameters]
        return list(zip(names, copies, strict=True))

    def _packed(self, parameters: list[nn.Parameter], specs: tuple[TensorSpec, ...]) -> torch.Tensor:
        block = torch.empty(extent(specs), dtype=torch.uint8, device=self._device)
        for value, (_, place) in zip(parameters, views(block, specs), strict=True):
            place.copy_(value.detach())
        return block

    @contextmanager
    def _gathered(self, names: list[str]) -> Iterator[list[nn.Parameter]]:
        import deepspeed

        parameters = [self._parameters[name] for name in names]
        with deepspeed.zero.GatheredParameters(parameters):
            yield parameters


def agreed(shortage: str) -> str:
    """What any rank is short of, the same on every rank; collective. "" if none is.

    Args:
        shortage: What this rank is short of; "" for nothing.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return shortage
    seen: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, shortage)
    return next((f"rank {rank} has {text}" for rank, text in enumerate(seen) if text), "")


def _gathering_device() -> torch.device:
    """Where DeepSpeed gathers to: its accelerator, wherever the shards rest."""
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _group_of(name: str) -> str:
    layer = _LAYER.match(name)
    return layer.group(1) if layer else name
