"""Random tiny Qwen2 checkpoints with a byte-level tokenizer: small enough to load in a second, real enough for vLLM."""

from __future__ import annotations

import json
from pathlib import Path

END_TOKEN = "<|im_end|>"
PAD_TOKEN = "<|endoftext|>"
MARKERS = (
    "<|begin_of_thought|>",
    "<|end_of_thought|>",
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(directory: Path) -> int:
    """Writes a byte-level tokenizer and returns the size of its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in (PAD_TOKEN, "<|im_start|>", END_TOKEN)])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKERS])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": END_TOKEN,
        "pad_token": PAD_TOKEN,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return int(tokenizer.get_vocab_size())


def build_tiny_checkpoint(
    directory: Path,
    *,
    seed: int,
    tied: bool = True,
    hidden_size: int = 64,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    num_layers: int = 2,
    scale: float = 0.15,
    dtype: str = "float32",
    max_shard_size: str = "5GB",
) -> Path:
    """Writes a random Qwen2 checkpoint; a large `scale` makes its next-token distributions uneven."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    vocab_size = -(-write_tokenizer(directory) // 16) * 16
    end = 256 + 2
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads or hidden_size // 32,
        num_key_value_heads=num_kv_heads or num_heads or hidden_size // 32,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        initializer_range=scale,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=256,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith(".bias"):
                parameter.add_(torch.randn_like(parameter) * scale)
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=256)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return directory
