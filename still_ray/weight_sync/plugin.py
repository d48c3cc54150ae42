"""Makes our weight transfer known to vLLM: the entry point `still_ray` of the group `vllm.general_plugins`.

vLLM calls it in every process that it starts; a process may also call it itself, any number of times.
"""

from __future__ import annotations

BACKEND = "still_ray"
"""The name to give as `weight_transfer_config={"backend": ...}`."""


def register() -> None:
    """Registers the engine; its module is imported when vLLM builds it."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "still_ray.weight_sync.engine", "StillRayTransferEngine")
