"""The tiny backbone's tokenizer: Qwen2's, with a vocabulary of bytes and of the world's words.

The pre-tokenizer is Qwen2's own, digits one by one, because transformers gives every checkpoint of that architecture
its ``Qwen2Tokenizer``, whatever the checkpoint's tokenizer files say. For the same reason text is first normalized to
Unicode's NFC; text already in that form round-trips exactly.
"""

import json
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from still_ray.formats.responses.markers import BEGIN_SOLUTION, BEGIN_THOUGHT, END_SOLUTION, END_THOUGHT

MAX_LENGTH: Final = 4096
PAD: Final = "<|endoftext|>"
BEGIN_TURN: Final = "<|im_start|>"
END_TURN: Final = "<|im_end|>"
CONTROL_TOKENS: Final = (PAD, BEGIN_TURN, END_TURN)
DELIMITERS: Final = (BEGIN_THOUGHT, END_THOUGHT, BEGIN_SOLUTION, END_SOLUTION, "<think>", "</think>")
"""One token each, as Qwen3 has its tags; which of them a run uses, its recipe says. The backbone has seen none."""

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n') + '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML without a system prompt; a newline stands between turns, so that a conversation ends in the end token."""

_QWEN2_PIECES: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS: Final = (
    *("user", "assistant", "Think", " step", " by", " then", " answer", "Compute", "Wait", " let", " me", " check"),
    *(" Yes", " is", " wrong", " Actually", "The", " \\", "boxed", " leaves", "Read", "Again", "First", "Rest"),
    *("\n\n", ".\n", ".\n\n", "}.\n\n"),
)
_VOCABULARY_MULTIPLE: Final = 16
_ENOUGH_MERGES: Final = 4096


def build_tokenizer() -> Tokenizer:
    """Build a byte-level BPE tokenizer whose merges make each word of the world one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(_WORDS, _merge_everything())
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in DELIMITERS])
    return tokenizer


def _merge_everything() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=_ENOUGH_MERGES,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def padded_vocabulary_size(tokenizer: Tokenizer) -> int:
    """The number of rows of the embedding: the vocabulary, rounded up."""
    return -(-tokenizer.get_vocab_size() // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of one vocabulary entry.

    Raises:
        KeyError: there is no such entry.
    """
    index = tokenizer.token_to_id(token)
    if index is None:
        raise KeyError(token)
    return int(index)


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the files from which ``AutoTokenizer`` loads the tokenizer with its chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": MAX_LENGTH,
        "eos_token": END_TURN,
        "pad_token": PAD,
        "additional_special_tokens": [BEGIN_TURN],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def render_chat(question: str, reply: str) -> str:
    """One exchange as the chat template writes it."""
    return f"{BEGIN_TURN}user\n{question}{END_TURN}\n{BEGIN_TURN}assistant\n{reply}{END_TURN}"
