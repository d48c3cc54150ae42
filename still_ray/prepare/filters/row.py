"""What every filter looks at, and what it says."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from still_ray.prepare.filters.words import Hashes, word_hashes, word_hashes_of


class Drop(NamedTuple):
    """Why a row is dropped.

    Attributes:
        filter: Section of the recipe, e.g. "length".
        rule: Which of its rules, e.g. "thought_too_short".
        detail: What was found, for a person.
    """

    filter: str
    rule: str
    detail: str


@dataclass(frozen=True)
class RowTexts:
    """The texts of a row; thought and solution are "" for a problem. Their words are hashed once, when asked for."""

    question: str
    thought: str = ""
    solution: str = ""

    @property
    def response_chars(self) -> int:
        """Characters of thought and solution together."""
        return len(self.thought) + len(self.solution)

    @property
    def question_words(self) -> Hashes:
        """The question's words, with the signs of mathematics: they tell short questions apart."""
        return self._parts[0]

    @property
    def thought_words(self) -> Hashes:
        """The thought's words."""
        return self._parts[1]

    @property
    def solution_words(self) -> Hashes:
        """The solution's words."""
        return self._parts[2]

    @cached_property
    def words(self) -> Hashes:
        """The words of all three, in this order."""
        return np.concatenate(self._parts)

    @cached_property
    def _parts(self) -> list[Hashes]:
        question = word_hashes(self.question, signs=True)
        return [question, *word_hashes_of([self.thought, self.solution])]
