"""The places in TRL, transformers and DeepSpeed that still-ray hooks into are still there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from fnmatch import fnmatchcase

import pytest

from still_ray.config.library_arguments import REFUSED

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


def test_the_libraries_say_what_is_wrong_with_arguments_for_them() -> None:
    from still_ray.sampler.engine_arguments import engine_problems
    from still_ray.trainer.library_arguments import deepspeed_problems, trl_problems
    from still_ray.trainer.methods.dpo import DpoTraining
    from still_ray.trainer.methods.sft import SftTraining

    speculation = {"method": "ngram", "num_speculative_tokens": 4}
    right = {"kv_cache_dtype": "fp8", "quantization": "fp8", "attention_backend": "FLASH_ATTN"}
    assert engine_problems({**right, "speculative_config": speculation, "enable_chunked_prefill": True}) == []
    wrong = {"enable_prefx_caching": True, "block_size": "big", "speculative_config": {"num_speculative_token": 4}}
    name, kind, inner = engine_problems(wrong)
    assert name.endswith("knows no such argument; did you mean enable_prefix_caching?")
    assert kind.startswith('sampler.engine.block_size: Input should be a valid integer, not "big" (vLLM ')
    assert inner.startswith("sampler.engine.speculative_config.num_speculative_token: ")

    kinds = [SftTraining.config, DpoTraining.config]
    of_one = {"neftune_noise_alpha": 5, "f_divergence_type": "js_divergence", "optim": "adamw_torch"}
    assert trl_problems(of_one, kinds) == []
    (problem,) = trl_problems(of_one, kinds[:1])
    assert problem.startswith("trainer.trl.f_divergence_type: SFTConfig of TRL ")
    texts = trl_problems({"optim": "adamw_tourch", "adam_epsilon": "small"}, kinds)
    assert [text.partition(": ")[0] for text in texts] == ["trainer.trl.optim", "trainer.trl.adam_epsilon"]

    zero = {"zero_optimization": {"sub_group_size": 10**6, "offload_optimizer": {"ratio": 0.5}}}
    assert deepspeed_problems({**zero, "activation_checkpointing": {"profile": True}}, zero_stage=3) == []
    for given, said in (
        ({"zero_optimization": {"sub_group_siz": 1}}, ".zero_optimization.sub_group_siz: "),
        ({"zero_optimization": {"sub_group_size": "many"}}, ".zero_optimization.sub_group_size: Input should be"),
        ({**zero, "prescale_gradient": True}, ".prescale_gradient: "),
        ({"activation_checkpointing": {"profile": 1}}, ".activation_checkpointing.profile: must be of type bool"),
        ({"wall_clock_breakdown": "yes"}, ".wall_clock_breakdown: must be of type bool"),
        ({"communication_data_type": "fp33"}, ": DeepSpeed "),
    ):
        (problem,) = deepspeed_problems(given, zero_stage=3)
        assert problem.startswith(f"trainer.deepspeed{said}")


def test_what_is_not_handed_on_are_arguments_of_the_libraries() -> None:
    """A name that a release drops, or one that is misspelt here, would refuse nothing."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from trl import DPOConfig, KTOConfig, SFTConfig
    from vllm import EngineArgs
    from vllm.config import SpeculativeConfig

    speculative = {f"speculative_config.{field.name}" for field in dataclasses.fields(SpeculativeConfig)}
    trl = {field.name for kind in (SFTConfig, DPOConfig, KTOConfig) for field in dataclasses.fields(kind)}
    zero = {f"zero_optimization.{name}" for name in DeepSpeedZeroConfig.model_fields}
    known = {
        "sampler.engine": {field.name for field in dataclasses.fields(EngineArgs)} | speculative,
        "trainer.trl": trl,
        "trainer.deepspeed": zero,
    }
    for key, refusals in REFUSED.items():
        patterns = {name for refusal in refusals for name in refusal.names}
        of_zero = {name for name in patterns if name.startswith("zero_optimization.") and name.count(".") == 1}
        for pattern in of_zero if key == "trainer.deepspeed" else patterns:
            assert any(fnmatchcase(name, pattern) for name in known[key]), f"{key}.{pattern}"


def test_the_source_has_every_method_that_vllm_asks_of_one() -> None:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    from still_ray.weight_sync import zero_source

    wanted = {name for name in vars(WeightSource) if not name.startswith("_")} | {"__iter__"}
    assert wanted <= set(dir(zero_source.ZeroSource)), wanted
    assert set(zero_source.ParamMeta._fields) == set(ParamMeta.__dataclass_fields__)
