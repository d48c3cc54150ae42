"""The parameter count of a plan is that of the real model, built on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from still_ray.algo.planning.model import KNOWN_SHAPES, longest_positions, shape_of_config
from still_ray.types import InputError
from tests.model_configs import GEMMA_3_270M, GEMMA_PARAMETERS, config_of

SMALL = {
    "hidden_size": 96,
    "intermediate_size": 200,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 512,
}
VARIANTS: list[dict[str, Any]] = [
    {"model_type": "qwen2", "tie_word_embeddings": True},
    {"model_type": "qwen2", "tie_word_embeddings": False},
    {"model_type": "qwen3", "tie_word_embeddings": True, "head_dim": 24},
    {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 16, "attention_bias": True},
    {"model_type": "llama", "tie_word_embeddings": False},
    {"model_type": "llama", "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    {"model_type": "mistral", "tie_word_embeddings": False, "head_dim": 32},
]


def real_count(config: dict[str, Any]) -> int:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def test_the_count_is_exact_for_every_family(variant: dict[str, Any]) -> None:
    config = {**SMALL, **variant}
    assert shape_of_config(config, where="config.json").num_parameters == real_count(config)


@pytest.mark.parametrize("size", ["0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B"])
def test_the_count_is_exact_for_the_models_known_by_name(size: str) -> None:
    shape = KNOWN_SHAPES[f"Qwen/Qwen2.5-{size}-Instruct"]
    assert shape.num_parameters == real_count(config_of(shape))


PUBLISHED = {  # 1e9 parameters, with and without embeddings, as the models' cards give them
    "0.5B": (0.49, 0.36),
    "1.5B": (1.54, 1.31),
    "3B": (3.09, 2.77),
    "7B": (7.61, 6.53),
    "14B": (14.7, 13.1),
    "32B": (32.5, 31.0),
    "72B": (72.7, 70.0),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_known_shapes_have_the_published_sizes(size: str) -> None:
    published, without_embeddings = PUBLISHED[size]
    shape = KNOWN_SHAPES[f"Qwen/Qwen2.5-{size}-Instruct"]
    inner = shape.num_parameters - shape.num_embedding * (1 if shape.tied else 2)
    assert shape.num_parameters / 1e9 == pytest.approx(published, rel=0.01)
    assert inner / 1e9 == pytest.approx(without_embeddings, rel=0.01)


def test_a_shape_reads_its_own_config_back() -> None:
    for shape in KNOWN_SHAPES.values():
        assert shape_of_config(config_of(shape), where="config.json") == shape


@pytest.mark.parametrize(
    ("change", "said"),
    [({"model_type": "mixtral"}, "model_type 'mixtral'"), ({"hidden_size": None}, "hidden_size must be a positive")],
)
def test_what_cannot_be_planned_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        shape_of_config({**SMALL, "model_type": "qwen2", **change}, where="config.json")


# -- other families ---------------------------------------------------------------------------------------------------


def test_a_model_of_any_family_is_counted_by_its_weights() -> None:
    shape = shape_of_config(GEMMA_3_270M, where="config.json", counted=GEMMA_PARAMETERS)
    assert shape.num_parameters == real_count({**GEMMA_3_270M}) == GEMMA_PARAMETERS
    assert (shape.num_window_layers, shape.window, shape.num_layers, shape.dtype) == (15, 512, 18, "bfloat16")
    layers = shape.num_layers * shape.num_layer_parameters
    assert 0 <= GEMMA_PARAMETERS - shape.num_embedding - layers < shape.num_layers


def test_other_names_of_the_numbers_and_a_text_model_inside_another() -> None:
    gpt = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 90, "n_positions": 128}
    shape = shape_of_config({**gpt, "n_inner": None}, where="config.json", counted=1000)
    assert (shape.hidden_size, shape.num_layers, shape.intermediate_size, shape.max_positions) == (64, 2, 256, 128)
    seeing = {"model_type": "gemma3", "dtype": "bfloat16", "text_config": {**GEMMA_3_270M, "dtype": None}}
    inside = shape_of_config(seeing, where="config.json", counted=GEMMA_PARAMETERS)
    assert inside == shape_of_config(GEMMA_3_270M, where="config.json", counted=GEMMA_PARAMETERS)


@pytest.mark.parametrize(
    ("change", "num_windows"),
    [
        ({"model_type": "mistral", "sliding_window": 4096}, 3),  # every layer, as its first release
        ({"model_type": "mistral", "sliding_window": None}, 0),
        ({"model_type": "qwen2", "sliding_window": 131_072, "use_sliding_window": False}, 0),
        ({"model_type": "qwen2", "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}, 1),
    ],
)
def test_layers_with_a_sliding_window(change: dict[str, Any], num_windows: int) -> None:
    assert shape_of_config({**SMALL, **change}, where="config.json").num_window_layers == num_windows


@pytest.mark.parametrize("other", [{"kv_lora_rank": 512}, {"layer_types": ["linear_attention", "full_attention"]}])
def test_a_model_that_caches_something_else_is_known(other: dict[str, Any]) -> None:
    shape = shape_of_config({**SMALL, "model_type": "deepseek_v3", **other}, where="config.json", counted=1)
    assert not shape.has_plain_cache


SCALINGS: list[tuple[dict[str, Any], int]] = [
    ({}, 512),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, 1024),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 512),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 512),
    ({"rope_scaling": None, "max_sequence_length": 100}, 100),
]


@pytest.mark.parametrize(("change", "positions"), SCALINGS)
def test_positions_are_those_that_scaling_leaves(change: dict[str, Any], positions: int) -> None:
    assert longest_positions({**SMALL, "model_type": "llama", **change}) == positions


def test_gemma_names_its_positions_as_scaled_and_some_models_name_none() -> None:
    scaled = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}
    assert longest_positions({**GEMMA_3_270M, "rope_parameters": scaled}) == 32_768
    assert longest_positions({"model_type": "gpt_neox_of_old"}) is None
