"""What a plan knows of a model, as its config.json has it."""

from __future__ import annotations

from typing import Any

from still_ray.algo.planning.model import ModelShape


def config_of(shape: ModelShape) -> dict[str, Any]:
    """The keys of config.json that say a shape."""
    return {
        "model_type": shape.family,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.max_positions,
        "dtype": shape.dtype,
    }


GEMMA_3_270M: dict[str, Any] = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "dtype": "bfloat16",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262_144,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
    "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
}
"""What config.json of Gemma 3 270M says of its shape."""
GEMMA_PARAMETERS = 268_098_176
"""Of the same."""
