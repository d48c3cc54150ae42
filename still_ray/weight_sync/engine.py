"""vLLM's side of a weight update: a weight-transfer engine that has a payload's transport read it.

Consumes the payloads that `still_ray.weight_sync` describes; produces a model with all of its weights replaced in
place. It lives in vLLM's worker and is registered by `still_ray.weight_sync.plugin`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from still_ray.weight_sync import checkpoint
from still_ray.weight_sync.digests import DigestLog, require_equal, update_digest
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.expectation import UpdateExpectation
from still_ray.weight_sync.transports import transport_named
from still_ray.weight_sync.transports.base import Transport
from still_ray.weight_sync.transports.exchange import Payload, SamplerRank

_OUTPUT_HEAD = "lm_head.weight"
_SHOWN = 3


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM ships no types
    """Nothing: a broadcast's group lives as long as the update that names it, no longer."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One payload, which its transport reads."""

    payload: Payload


class StillRayTransferEngine(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """Loads an update layer by layer, as vLLM's own checkpoint loader would, and insists on a complete one.

    A failed update leaves some layers old and some new. The model is whole again after the next complete update.

    Attributes:
        received: Digest of the last complete update, as this rank received it; "" before the first.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    received = ""

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to set up."""

    def parse_update_info(self, update_dict: dict[str, Any]) -> UpdateInfo:
        """A payload as it is: its keys are its transport's affair."""
        return UpdateInfo(payload=update_dict)

    def start_weight_update(self) -> None:
        """Opens the model for loading."""
        self._expectation = UpdateExpectation(self._start_shapes(), tied=self._is_tied())
        self._digests = DigestLog()
        self._loaded: set[str] = set()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Loads one payload.

        Raises:
            SyncError: A parameter is unknown, misshapen, given twice or, at the end, missing, not what was sent, or not
                loaded.
        """
        try:
            self._receive(update_info.payload)
        except BaseException:
            self._abandon()
            raise

    def finish_weight_update(self) -> None:
        """Closes the model for loading; a payload {"transport": "end"} has gone before."""
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_embeddings()

    def shutdown(self) -> None:
        """Nothing to release."""

    def _receive(self, payload: Payload) -> None:
        name = payload["transport"]
        if name == "end":
            self._end(payload["digests"])
        elif name == "abort":
            raise SyncError("weight update abandoned by its sender")
        else:
            rank = SamplerRank(index=self.parallel_config.rank, device=self.device, load=self._load)
            _reader(name).receive(payload, rank)

    def _load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Loads tensors of whole parameters, of which the model keeps this rank's shard."""
        loaded = self.model.load_weights(self._digests.noted(self._expectation.checked(tensors)))
        self._loaded |= set(loaded or ())

    def _end(self, sent: Mapping[str, str]) -> None:
        """Makes sure that everything came, as it was sent, and was loaded."""
        self._expectation.require_complete()
        received = self._digests.digests()
        require_equal(sent, received)
        self._require_loaded()
        self.received = update_digest(received)

    def _require_loaded(self) -> None:
        """Refuses an update of which the model left a parameter alone; vLLM would keep the old one and only warn.

        Like vLLM's own loader, not for quantized models, nor for those that do not say what they have loaded.
        """
        if not self._loaded or self.model_config.quantization is not None:
            return
        tied_head = {_OUTPUT_HEAD} if self._is_tied() else set[str]()
        left = {name for name, _ in self.model.named_parameters()} - self._loaded - tied_head
        if left:
            raise SyncError(f"weight update refused: the model did not load {', '.join(sorted(left)[:_SHOWN])}")

    def _abandon(self) -> None:
        """Drops what was buffered for layers that are not complete and puts their old tensors back."""
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            info.loaded_weights.clear()
            info.load_numel = 0
        finalize_layerwise_reload(self.model, self.model_config)

    def _repack_embeddings(self) -> None:
        """Packs embeddings and output heads again.

        vLLM reloads a shared weight through its first owner only. On CPU the other owner, a tied output head, computes
        with a packed copy, which would still be the old one. Elsewhere this does nothing.
        """
        for layer in self.model.modules():
            method = getattr(layer, "quant_method", None)
            if isinstance(method, UnquantizedEmbeddingMethod):
                method.process_weights_after_loading(layer)

    def _start_shapes(self) -> dict[str, tuple[int, ...]]:
        if not hasattr(self, "_shapes"):
            self._shapes = checkpoint.shapes(_local_directory(self.model_config.model, self.model_config.revision))
        return self._shapes

    def _is_tied(self) -> bool:
        return bool(getattr(self.model_config.hf_text_config, "tie_word_embeddings", False))


def _reader(name: str) -> Transport:
    try:
        return transport_named(name)
    except ValueError as error:
        raise SyncError(f"weight update refused: cannot read a payload of transport {name!r}") from error


def _local_directory(model: str, revision: str | None) -> Path:
    """Where the checkpoint is that the engine was started from: its directory, or the hub's cache of it."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=revision, local_files_only=True))
