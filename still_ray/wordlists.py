"""Lists of words, written as text: a hundred quoted strings are hard to read."""


def listed(text: str) -> list[str]:
    """The words of a text, in order."""
    return text.split()


def words(text: str) -> frozenset[str]:
    """The words of a text as a set."""
    return frozenset(text.split())
