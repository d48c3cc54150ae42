"""What every response format says: the seam between a model's habit and everything that reads or renders responses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final, Self

from still_ray.types import ParsedResponse

PLAIN_PROMPT: Final = r"""{question}

Work through this step by step, and put the final answer inside \boxed{}."""
"""The user turn for a model that brings its own way to answer. Source: ours, in our own words."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What stands around the parts of a response, behind the generation prompt; a chat template may say it exactly.

    Attributes:
        before: In front of the thought; "" where the generation prompt has opened it.
        between: Between thought and solution.
        alone: In front of a solution that has no thought.
    """

    before: str
    between: str
    alone: str = ""


@dataclass(frozen=True, kw_only=True)
class TemplateFacts:
    """What a model's chat template tells of its responses.

    Attributes:
        generation_prompt: What the assistant's turn begins with.
        layout: What it puts around a thought that a turn brings in a field of its own; None: it shows no such field.
        source: Its text.
        thinks: Whether the recipe switches thinking on by a variable of the template.
    """

    generation_prompt: str
    layout: Layout | None
    source: str
    thinks: bool = False


class ResponseFormat(ABC):
    """A response format; a recipe names one by `prompt.format`, a built-in one or `package.module:object`.

    Attributes:
        name: Its name in recipes.
        prompt: The user turn that asks for it, unless `prompt.template` gives another.
        has_thought: Whether responses have a thought of their own, that can be learned alone.
    """

    name: ClassVar[str]
    prompt: ClassVar[str] = PLAIN_PROMPT
    has_thought: ClassVar[bool] = True

    @property
    @abstractmethod
    def delimiters(self) -> tuple[str, ...]:
        """What parts the thought from the solution: no text inside a part, even where a tokenizer has tokens for it."""

    @abstractmethod
    def parse(self, text: str, *, truncated: bool = False) -> ParsedResponse:
        """Cuts a response, in time linear in its length.

        With a defect that is no lack of a closed solution (`NO_THOUGHT`, `THOUGHT_NOT_CLOSED`, `TWO_THOUGHTS`,
        `OUT_OF_ORDER`, `TEXT_OUTSIDE`), a solution that is not empty is whole and the only one: verifiers rely on it.

        Args:
            text: The whole model output behind the generation prompt, without the token that ends the turn.
            truncated: Whether the token limit ended it.

        Returns:
            The parts, stripped, and the defect.
        """

    @abstractmethod
    def render(self, thought: str, solution: str) -> str:
        """A whole response; `parse` gives back the stripped parts if they hold no delimiter.

        Without a thought it is what the model shows when it does not think, e.g. the bare solution.
        """

    @abstractmethod
    def render_thought(self, thought: str) -> str:
        """The first half of a response, up to the end of its thought: what `scope: thought` learns."""

    @abstractmethod
    def render_cut_off(self, thought: str) -> str:
        """A response that the token limit cut off within its thought: nothing closes it."""

    def claims(self, text: str) -> bool:
        """Whether a text shows this format's delimiters, well placed or not."""
        return any(delimiter in text for delimiter in self.delimiters)

    def fitted(self, template: TemplateFacts) -> Self:
        """The same format as one model writes it: behind its generation prompt, with its template's white space."""
        return self
