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
