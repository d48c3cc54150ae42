"""The shape of a decoder-only transformer, and how many parameters it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from still_ray.types import InputError

_BIASED_QKV: Final = frozenset({"qwen2"})
_NORMED_QK: Final = frozenset({"qwen3"})
FAMILIES: Final = ("qwen2", "qwen3", "llama", "mistral")
"""Model types whose parameters are counted exactly; Qwen2.5 is of type qwen2."""
_QWEN_VOCAB: Final = 151_936
_QWEN_VOCAB_PADDED: Final = 152_064


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What memory and arithmetic depend on.

    Attributes:
        family: HF's `model_type`, one of `FAMILIES`.
        num_layers: Transformer layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the gated MLP.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head.
        vocab_size: Rows of the embedding.
        tied: Whether the LM head is the embedding.
        max_positions: Longest sequence that the model was made for, tokens.
        attention_bias: Whether query, key and value projections have a bias (Qwen2: always).
        output_bias: Whether the attention's output projection has one (Llama with `attention_bias`).
        mlp_bias: Whether the MLP's projections have one.
    """

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool
    max_positions: int
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False

    @property
    def query_size(self) -> int:
        """Width of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_embedding(self) -> int:
        """Parameters of the embedding, and of an LM head that is not tied to it."""
        return self.vocab_size * self.hidden_size

    @property
    def num_layer_parameters(self) -> int:
        """Parameters of one layer; the architecture is that of the models' code in transformers."""
        hidden, inner, query, kv = self.hidden_size, self.intermediate_size, self.query_size, self.kv_size
        attention = hidden * (query + 2 * kv) + query * hidden
        attention += (query + 2 * kv) * self.attention_bias + hidden * self.output_bias
        attention += 2 * self.head_dim * (self.family in _NORMED_QK)
        mlp = 3 * hidden * inner + (2 * inner + hidden) * self.mlp_bias
        return attention + mlp + 2 * hidden

    @property
    def num_parameters(self) -> int:
        """All parameters, a tied LM head counted once; exact."""
        embeddings = self.num_embedding * (1 if self.tied else 2)
        return self.num_layers * self.num_layer_parameters + embeddings + self.hidden_size


def _qwen(  # noqa: PLR0917 - a table
    num_layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int, tied: bool
) -> ModelShape:
    return ModelShape(
        family="qwen2",
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        vocab_size=vocab,
        tied=tied,
        max_positions=32_768,
        attention_bias=True,
    )


_QWEN_25: Final = {
    "0.5B": _qwen(24, 896, 4864, 14, 2, _QWEN_VOCAB, True),
    "1.5B": _qwen(28, 1536, 8960, 12, 2, _QWEN_VOCAB, True),
    "3B": _qwen(36, 2048, 11_008, 16, 2, _QWEN_VOCAB, True),
    "7B": _qwen(28, 3584, 18_944, 28, 4, _QWEN_VOCAB_PADDED, False),
    "14B": _qwen(48, 5120, 13_824, 40, 8, _QWEN_VOCAB_PADDED, False),
    "32B": _qwen(64, 5120, 27_648, 40, 8, _QWEN_VOCAB_PADDED, False),
    "72B": _qwen(80, 8192, 29_568, 64, 8, _QWEN_VOCAB_PADDED, False),
}

KNOWN_SHAPES: Final[Mapping[str, ModelShape]] = {
    f"Qwen/Qwen2.5-{size}-Instruct": shape for size, shape in _QWEN_25.items()
}
"""Shapes of the hub's models, from their published config.json, so that nothing is downloaded."""


def shape_of_config(config: Mapping[str, Any], *, where: str) -> ModelShape:
    """The shape that a HF config.json describes.

    Args:
        config: The parsed file.
        where: Its name in errors.

    Raises:
        InputError: It is of a family whose parameters are not known here, or a number is missing.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"{where}: model_type {family!r} cannot be planned; one of {', '.join(FAMILIES)} can")
    hidden, heads = _number(config, "hidden_size", where), _number(config, "num_attention_heads", where)
    asked_bias = bool(config.get("attention_bias", False))
    return ModelShape(
        family=str(family),
        num_layers=_number(config, "num_hidden_layers", where),
        hidden_size=hidden,
        intermediate_size=_number(config, "intermediate_size", where),
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        vocab_size=_number(config, "vocab_size", where),
        tied=bool(config.get("tie_word_embeddings", False)),
        max_positions=_number(config, "max_position_embeddings", where),
        attention_bias=family in _BIASED_QKV or (asked_bias and family != "mistral"),
        output_bias=asked_bias and family in ("llama", "qwen3"),
        mlp_bias=bool(config.get("mlp_bias", False)) and family == "llama",
    )


def _number(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {key} must be a positive number, not {value!r}")
    return value
