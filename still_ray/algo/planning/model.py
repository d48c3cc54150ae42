"""The shape of a decoder-only transformer, and how many parameters it has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from still_ray.config import LoraConfig
from still_ray.types import InputError

SMALL_MODEL: Final = 10_000_000
"""Parameters below which a process is busy with Python and not with the model, so that two do more than one. Source:
ours; weights of larger ones are read once for all sequences, and held once."""
_BIASED_QKV: Final = frozenset({"qwen2"})
_NORMED_QK: Final = frozenset({"qwen3"})
FAMILIES: Final = ("qwen2", "qwen3", "llama", "mistral")
"""Model types whose parameters follow from their config alone; Qwen2.5 is of type qwen2."""
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocab_size": ("vocab_size",),
}
"""What config.json of various families call a number, the usual name first."""
_POSITIONS: Final = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
"""Keys with the longest sequence; the least of them holds. Source: vLLM's `derive_max_model_len_and_key`."""
_SCALED_ALREADY: Final = frozenset({"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})
"""Kinds of rotary scaling whose positions are given as they are after it. Source: vLLM's `_get_and_verify_max_len`."""
_PLAIN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})
_OTHER_CACHES: Final = ("kv_lora_rank", "num_kv_shared_layers", "global_head_dim", "layers_block_type", "mamba_d_state")
"""Keys of a config.json whose model keeps something else than keys and values of every layer and head."""
_QWEN_VOCAB: Final = 151_936
_QWEN_VOCAB_PADDED: Final = 152_064


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What memory and arithmetic depend on.

    Attributes:
        family: HF's `model_type`.
        num_layers: Transformer layers.
        hidden_size: Width of the residual stream.
        intermediate_size: Width inside the gated MLP.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_dim: Width of a head.
        vocab_size: Rows of the embedding.
        tied: Whether the LM head is the embedding.
        max_positions: Longest sequence that the model was made for, tokens; None: it names no limit.
        attention_bias: Whether query, key and value projections have a bias (Qwen2: always).
        output_bias: Whether the attention's output projection has one (Llama with `attention_bias`).
        mlp_bias: Whether the MLP's projections have one.
        counted: Parameters by the headers of its weights; None: by the formula, which holds for `FAMILIES`.
        dtype: That of the checkpoint, "" if its config names none.
        num_window_layers: Layers whose attention ends at a sliding window.
        window: That window, tokens.
        has_plain_cache: Whether every layer caches keys and values of each head and token, and nothing else.
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
    max_positions: int | None
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    counted: int | None = None
    dtype: str = ""
    num_window_layers: int = 0
    window: int = 0
    has_plain_cache: bool = True

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
        """Parameters of one layer; the architecture is that of the models' code in transformers.

        Of a model that was counted it is the mean: what is not embedding or head, over the layers.
        """
        if self.counted is not None:
            return max(0, self.counted - self._num_in_embeddings) // self.num_layers
        hidden, inner, query, kv = self.hidden_size, self.intermediate_size, self.query_size, self.kv_size
        attention = hidden * (query + 2 * kv) + query * hidden
        attention += (query + 2 * kv) * self.attention_bias + hidden * self.output_bias
        attention += 2 * self.head_dim * (self.family in _NORMED_QK)
        mlp = 3 * hidden * inner + (2 * inner + hidden) * self.mlp_bias
        return attention + mlp + 2 * hidden

    @property
    def num_parameters(self) -> int:
        """All parameters, a tied LM head counted once; exact."""
        if self.counted is not None:
            return self.counted
        return self.num_layers * self.num_layer_parameters + self._num_in_embeddings + self.hidden_size

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a block's linear layers, by the names that they have in the `FAMILIES`."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_size),
            "k_proj": (hidden, self.kv_size),
            "v_proj": (hidden, self.kv_size),
            "o_proj": (self.query_size, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    def adapted_layers(self, lora: LoraConfig) -> list[tuple[int, int]]:
        """Inputs and outputs of those of a block that have an adapter.

        A name that is none of the `FAMILIES`' may mean any of them in another one: all are counted then.
        """
        names = set(self.linear_layers) if lora.targets == "all-linear" else {layer_name(name) for name in lora.targets}
        if not names <= set(self.linear_layers):
            return list(self.linear_layers.values())
        return [size for name, size in self.linear_layers.items() if name in names]

    def num_adapter_parameters(self, lora: LoraConfig) -> int:
        """Parameters of the adapters of all blocks: rank x (inputs + outputs) each. Source: arXiv 2106.09685."""
        return self.num_layers * sum(lora.rank * (rows + columns) for rows, columns in self.adapted_layers(lora))

    def num_trained_embeddings(self, lora: LoraConfig) -> int:
        """Parameters of embeddings and LM head that are trained beside adapters: all of them or none."""
        return self._num_in_embeddings if trains_embeddings(lora, self.num_parameters) else 0

    @property
    def _num_in_embeddings(self) -> int:
        return self.num_embedding * (1 if self.tied else 2)


def trains_embeddings(lora: LoraConfig, num_parameters: int) -> bool:
    """Whether the embeddings and the LM head of a model of that size are trained beside its adapters."""
    return num_parameters < SMALL_MODEL if lora.embeddings == "auto" else lora.embeddings


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
        dtype="bfloat16",
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


def shape_of_config(config: Mapping[str, Any], *, where: str, counted: int | None = None) -> ModelShape:
    """The shape that a HF config.json describes.

    Args:
        config: The parsed file; of a family outside `FAMILIES` with the defaults of its class in transformers.
        where: Its name in errors.
        counted: Parameters by the headers of its weights; None: they are not at hand.

    Raises:
        InputError: A number is missing; or neither the weights are at hand nor is it of `FAMILIES`.
    """
    text = config.get("text_config") or config
    family = str(text.get("model_type", config.get("model_type")))
    if family not in FAMILIES and counted is None:
        raise InputError(
            f"{where}: without its weights a model of model_type {family!r} cannot be planned; put them beside it, or "
            f"take one of {', '.join(FAMILIES)}"
        )
    hidden, heads = _number(text, "hidden_size", where), _number(text, "num_attention_heads", where)
    asked_bias = bool(text.get("attention_bias", False))
    num_layers, kinds = _number(text, "num_hidden_layers", where), text.get("layer_types") or ()
    return ModelShape(
        family=family,
        num_layers=num_layers,
        hidden_size=hidden,
        intermediate_size=_named(text, "intermediate_size") or 4 * hidden,  # null means that in GPT-2 and its kin
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocab_size=_number(text, "vocab_size", where),
        tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        max_positions=longest_positions(text),
        attention_bias=family in _BIASED_QKV or (asked_bias and family != "mistral"),
        output_bias=asked_bias and family in ("llama", "qwen3"),
        mlp_bias=bool(text.get("mlp_bias", False)) and family == "llama",
        counted=None if family in FAMILIES else counted,
        dtype=_dtype(config) or _dtype(text),
        num_window_layers=_num_window_layers(text, family, num_layers),
        window=text.get("sliding_window") or 0,
        has_plain_cache=_PLAIN_LAYERS.issuperset(kinds) and not any(text.get(key) for key in _OTHER_CACHES),
    )


def layer_name(name: str) -> str:
    """The name of a layer that may be given with those of the modules around it."""
    return name.rpartition(".")[2]


def longest_positions(text: Mapping[str, Any]) -> int | None:
    """Longest sequence that a model was made for, as vLLM reads its config; it starts with no longer one.

    Linear, dynamic and like kinds of rotary scaling multiply the positions that the config names; of the others, and of
    Gemma 3, they are named as they are after it.

    Args:
        text: config.json, or its `text_config`.

    Returns:
        Tokens; None if it names no limit.
    """
    named = [text[key] for key in _POSITIONS if isinstance(text.get(key), int)]
    if not named:
        return None
    factors = [] if "gemma3" in str(text.get("model_type")) else [*_factors(text)]
    return int(min(named) * (factors[-1] if factors else 1.0))


def _factors(text: Mapping[str, Any]) -> Iterator[float]:
    """Of the rotary scalings that its positions are to be multiplied by; one for all layers, or one a kind of them."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    for scaling in rope.values() if all(isinstance(value, Mapping) for value in rope.values()) else (rope,):
        kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
        if kind not in _SCALED_ALREADY and factor is not None:
            yield float(factor)


def _dtype(config: Mapping[str, Any]) -> str:
    found = config.get("dtype") or config.get("torch_dtype")
    return found if isinstance(found, str) else ""


def _num_window_layers(text: Mapping[str, Any], family: str, num_layers: int) -> int:
    """Those that are named; all where a window is given and no kinds of layers are, unless the family leaves it off."""
    if not text.get("sliding_window"):
        return 0
    if kinds := text.get("layer_types"):
        return list(kinds).count("sliding_attention")
    return 0 if family in _BIASED_QKV | _NORMED_QK else num_layers


def _named(text: Mapping[str, Any], key: str) -> Any:
    """A number by whichever name its family has for it; None if it has none."""
    return next((text[name] for name in _NAMES[key] if text.get(name) is not None), None)


def _number(text: Mapping[str, Any], key: str, where: str) -> int:
    value = _named(text, key)
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{where}: {key} must be a positive number, not {value!r}")
    return value
