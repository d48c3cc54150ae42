"""What the tiny backbone reads before it becomes a backbone.

Single facts, running sums that answer no question, expressions copied out, and short conversations that answer a single
fact at once. No conversation asks for a longer sum, and no text thinks: that is what imitation and exploration teach.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from still_ray.tiny_world.arithmetic import MAX_VALUE, Chain, draw_chain
from still_ray.tiny_world.tokenizer import PAD, render_chat

PROMPTS: Final = ("{question}", "Think step by step, then answer.\n{question}")
MAX_DIFFICULTY: Final = 9


def documents(rng: random.Random) -> Iterator[str]:
    """Yield documents without end, each closed by its end-of-text or end-of-turn token."""
    kinds, weights = zip(*_KINDS.items(), strict=True)
    while True:
        (kind,) = rng.choices(kinds, weights)
        yield kind(rng)


def _facts(rng: random.Random) -> str:
    facts = (_fact(rng) for _ in range(rng.randint(2, 12)))
    return ".\n\n".join(f"{left}{term:+d}={left + term}" for left, term in facts) + ".\n\n" + PAD


def _running_sum(rng: random.Random) -> str:
    chain = _pretraining_chain(rng)
    steps = zip(chain.values, chain.terms, chain.values[1:], strict=False)
    return ".\n\n".join(f"{value}{term:+d}={result}" for value, term, result in steps) + ".\n\n" + PAD


def _copy(rng: random.Random) -> str:
    chain = _pretraining_chain(rng)
    whole = chain.canonical
    first_two = Chain(start=chain.start, terms=chain.terms[:1]).canonical
    rest = whole.removeprefix(first_two)
    lines = [f"Again {whole}.", f"First {first_two}.", f"Rest {rest}."]
    rng.shuffle(lines)
    return "\n\n".join([f"Read {whole}.", *lines, PAD])


def _direct_answer(rng: random.Random) -> str:
    left, term = _fact(rng)
    question = rng.choice(PROMPTS).replace("{question}", f"Compute {left}{term:+d}.")
    return render_chat(question, f"The answer is \\boxed{{{left + term}}}.")


def _fact(rng: random.Random) -> tuple[int, int]:
    left = rng.randint(0, MAX_VALUE)
    term = rng.choice([term for term in range(-9, 10) if term and 0 <= left + term <= MAX_VALUE])
    return left, term


def _pretraining_chain(rng: random.Random) -> Chain:
    while True:
        chain = draw_chain(rng, rng.randint(3, MAX_DIFFICULTY))
        if chain.split == "pretrain":
            return chain


_KINDS: Final[Mapping[Callable[[random.Random], str], float]] = {
    _facts: 0.25,
    _running_sum: 0.2,
    _copy: 0.4,
    _direct_answer: 0.15,
}
