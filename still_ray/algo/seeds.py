"""Seeds that follow from what is being done, so that a repeated request is the same request."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: int | str) -> int:
    """A 31-bit seed from any sequence of names and numbers, e.g. (run seed, "train", stage name).

    31 bits, because NumPy's and transformers' seeding take no more.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def rollout_seed(run_seed: int, round_number: int, problem_id: str, sample_index: int) -> int:
    """The sampling seed of one rollout."""
    return derived_seed(run_seed, "rollout", round_number, problem_id, sample_index)


def continuation_seed(seed: int, num_tokens: int) -> int:
    """The sampling seed of what comes after the first tokens of a rollout that was cut: its random draws start anew.

    Args:
        seed: The rollout's.
        num_tokens: Tokens that it had where it was cut.
    """
    return derived_seed(seed, "continuation", num_tokens)
