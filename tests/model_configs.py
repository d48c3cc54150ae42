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
    }
