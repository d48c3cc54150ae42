"""Silences what vLLM says of every CPU engine and what no user can act on; everything else is still heard."""

from __future__ import annotations

import logging
import warnings

_HARMLESS = {
    "vllm.triton_utils.importing": ("Triton is installed, but doesn't include CPU backend",),
    "vllm.engine.arg_utils": (
        "The global random seed is set to",
        "This model does not officially support disabling chunked prefill",  # see vllm_engine on seeded requests
    ),
    "vllm.config.vllm": ("Enforce eager set", "Inductor compilation was disabled", "Model Runner V2 requires Triton"),
    "vllm.platforms.cpu": ("Triton is not installed", "Reset SSM cache type"),
    "vllm.v1.worker.cpu_worker": (
        *("%s is not found in LD_PRELOAD", "CPU backend doesn't allow"),
        "sleep mode is not supported on CPU",  # an engine there frees nothing, as Sampler.sleep says
    ),
    # Buffers and tied heads are no parameters; that no parameter is missing is checked by name in weight_sync.
    "vllm.model_executor.model_loader.reload.layerwise": ("%s: Failed to load weights",),
}
"""Beginnings of the messages to drop, by the logger that sends them."""


def quiet_vllm() -> None:
    """Installs the filters; to be called before vLLM is imported, any number of times."""
    for name, beginnings in _HARMLESS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, _Drop) for each in logger.filters):
            logger.addFilter(_Drop(beginnings))
    # vLLM looks at every attribute of torch.distributed, the deprecated ones too.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\.triton_utils\.dispatcher")


class _Drop(logging.Filter):
    """Drops messages by their beginning."""

    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self._beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._beginnings)
