"""What an endpoint says of token counts, taken with care: its word enters budget, journal and tables."""

from __future__ import annotations

from typing import Any, Final

MOST_TOKENS: Final = 10**9
"""More than any model reads or writes at a time: a larger number is no count."""


def token_count(value: Any) -> int | None:
    """A count of tokens as JSON gives it, also as an integral float; None for what cannot be one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if is_count else None
