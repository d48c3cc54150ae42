"""The places in TRL, transformers and DeepSpeed that still-ray hooks into are still there."""

from __future__ import annotations

import importlib
import inspect

import pytest

pytestmark = pytest.mark.integration


def test_overridden_methods_exist_where_they_are_overridden() -> None:
    import trl.trainer.utils
    from transformers import Trainer
    from trl import DPOTrainer, KTOTrainer, SFTTrainer
    from trl.kernels import chunked_logprob
    from trl.models import prepare_deepspeed

    assert "_internal_call" in inspect.signature(Trainer.save_model).parameters
    hooks = ("_prepare_dataset", "_precompute_ref_logps", "compute_ref_log_probs", "compute_loss", "create_model_card")
    for trainer in (DPOTrainer, KTOTrainer):
        assert all(callable(getattr(trainer, method)) for method in hooks)
    assert list(inspect.signature(prepare_deepspeed).parameters) == ["model", "accelerator"]
    assert callable(SFTTrainer.compute_loss)
    assert trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE <= 32_768
    assert chunked_logprob.TOKEN_CHUNK_SIZE <= 4096
    assert "_use_triton(hidden_states.device)" in inspect.getsource(trl.trainer.utils.add_fused_lm_head)


def test_deepspeed_looks_up_compiled_kernels_where_they_are_switched_off() -> None:
    backend = importlib.import_module("deepspeed.comm.torch")
    source = inspect.getsource(backend.build_shm_op)
    assert "deepspeed.ops.__compatible_ops__.get(" in source


def test_the_source_has_every_method_that_vllm_asks_of_one() -> None:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    from still_ray.weight_sync import zero_source

    wanted = {name for name in vars(WeightSource) if not name.startswith("_")} | {"__iter__"}
    assert wanted <= set(dir(zero_source.ZeroSource)), wanted
    assert set(zero_source.ParamMeta._fields) == set(ParamMeta.__dataclass_fields__)
