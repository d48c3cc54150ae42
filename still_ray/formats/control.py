r"""Control tokens that stand in data as text, which a tokenizer would read as what they stand for.

A dump often ends in the token that ended the turn ("\boxed{5}.<|im_end|>"): that is taken off. A text that still holds
one is not learnt from: the model would learn to stop, or to begin a turn, where the text only says so. The markers of
the response format are part of the format, whatever a tokenizer makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from still_ray.formats.responses.markers import MARKERS
from still_ray.types import InputError
from still_ray.values import Flaw


@dataclass(frozen=True, kw_only=True)
class ControlTokens:
    """The control tokens of a tokenizer, or of those that are known.

    Attributes:
        pattern: Matches each of them.
        ends: Those that end a turn or a text, or fill up a batch.
        ids: Theirs, in a tokenizer; that of what is unknown is left out, since any text may have it.
    """

    pattern: re.Pattern[str]
    ends: tuple[str, ...]
    ids: frozenset[int] = frozenset()

    def num_in(self, ids: Iterable[int]) -> int:
        """How many of some token ids are of control tokens."""
        return sum(token_id in self.ids for token_id in ids)

    def held(self, text: str) -> str:
        """The first control token in a text; "" if there is none."""
        found = self.pattern.search(text)
        return found[0] if found else ""

    def stripped(self, text: str) -> str:
        """A text without the tokens that end it, and the white space between them."""
        rest = text.rstrip()
        while token := next((end for end in self.ends if rest.endswith(end)), ""):
            text = rest = rest.removesuffix(token).rstrip()
        return text


_KNOWN_ENDS: Final = (
    *("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "</s>"),
    *("<end_of_turn>", "<turn|>", "<eos>", "<pad>", "<|eos|>", "<|pad|>", "<|end_of_turn|>", "<|endofturn|>"),
    *("<|END_OF_TURN_TOKEN|>", "<|END_RESPONSE|>", "<|end_of_role|>", "<|endofresponse|>", "<|eod|>", "<|EOT|>"),
    *("<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5c\u2581pad\u2581\uff5c>", "[EOS]", "[PAD]"),
)
_KNOWN_OTHERS: Final = (
    *("<s>", "<bos>", "<unk>", "<start_of_turn>", "<|turn>", "<sop>", "<eop>", "[gMASK]", "[INST]", "[/INST]", "[BOS]"),
    *("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<file_sep>", "<repo_name>", "<reponame>"),
)
_WORDS: Final = (
    "startoftext|endofprompt|system|user|assistant|developer|tool|observation|message|channel|start|call|constrain|sep"
    "|bos|unk|mask|begin|eot|eom"
)
_KNOWN_SHAPE: Final = (
    rf"<\|(?!(?:{'|'.join(marker[2:-2] for marker in MARKERS)})\|>)"
    rf"(?:[A-Za-z]{{2}}[A-Za-z0-9]*(?:_[A-Za-z0-9]+)+|{_WORDS})\|>"
    r"|<\uff5c[^\uff5c<>\n]{1,40}\uff5c>"
)
"""Names with an underscore between bars, and DeepSeek's between wide bars; ``<|x|>``, ``<|A_0|>`` are mathematics."""


def _any_of(tokens: Iterable[str]) -> str:
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))


KNOWN: Final = ControlTokens(
    pattern=re.compile(rf"{_any_of((*_KNOWN_ENDS, *_KNOWN_OTHERS))}|{_KNOWN_SHAPE}"), ends=_KNOWN_ENDS
)
"""Those of the families in use, for readers that do not know which model will be trained.

Source: the tokenizers of Qwen, Llama, Gemma, Mistral, DeepSeek, Phi, GLM, Command, Granite, OLMo, StarCoder, gpt-oss.
"""


def tokens_of(tokenizer: Any, end_token_id: int, *, own: Iterable[str] = ()) -> ControlTokens:
    """The control tokens of a tokenizer.

    They are its special tokens, and added tokens that are known as such; other added tokens (HTML tags, runs of spaces,
    think tags) are vocabulary.

    Args:
        tokenizer: Of transformers.
        end_token_id: What the chat template puts after a response.
        own: Delimiters of a response format: what they are made of is no control token.
    """
    texts = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.special or token_id == end_token_id or KNOWN.pattern.fullmatch(str(token)):
            texts[token_id] = token
    found = {token_id: str(token) for token_id, token in texts.items()}
    parts = "\0".join((*MARKERS, *own))
    texts = {token_id: text for token_id, text in found.items() if len(text.strip()) > 1 and text not in parts}
    ending = {end_token_id, tokenizer.eos_token_id, getattr(tokenizer, "pad_token_id", None)}
    ends = tuple(text for token_id, text in texts.items() if token_id in ending or text in _KNOWN_ENDS)
    pattern = re.compile(_any_of(texts.values()) or "(?!)")
    return ControlTokens(pattern=pattern, ends=ends, ids=frozenset(texts) - {getattr(tokenizer, "unk_token_id", None)})


def without_control(text: str, what: str) -> str:
    """A text of a file, without the control tokens that end it.

    Args:
        text: The text.
        what: The file, the row and the key, for errors.

    Raises:
        InputError: It holds others.
    """
    text = KNOWN.stripped(text)
    if token := KNOWN.held(text):
        said = f"holds the control token {token} as text; take it out, a model would read it as one"
        raise InputError(f"{what} {said}", reason=Flaw.CONTROL)
    return text
