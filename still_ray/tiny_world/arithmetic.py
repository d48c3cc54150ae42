"""Chains of additions and subtractions: problems, worked demonstrations and the files that hold them.

A chain starts from a number and adds or subtracts single digits, as in ``Compute 17+5-8+3.`` Its difficulty is
how many numbers it has. A hash of the chain's canonical form (``17+5-8+3``) decides which split it belongs to, so
that no two splits share a question whatever the seeds.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from still_ray.formats.responses.markers import render_response
from still_ray.types import Demonstration, Domain, Problem

Split = Literal["pretrain", "demonstrations", "pool", "test"]

SUBJECT: Final = "Arithmetic"
DIFFICULTIES: Final = (3, 4, 5, 6, 7)
MIN_DIFFICULTY: Final = 3
MAX_VALUE: Final = 99
MAX_START: Final = 50
CHECK_RATE: Final = 0.08
MISTAKE_RATE: Final = 0.04

_BUCKETS: Final[Mapping[Split, range]] = {
    "pretrain": range(0, 20),
    "demonstrations": range(20, 50),
    "pool": range(50, 80),
    "test": range(80, 100),
}
_MAX_DRAWS_PER_CHAIN: Final = 2000


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A start value and the signed digits that follow it; every running value stays within 0 and ``MAX_VALUE``."""

    start: int
    terms: tuple[int, ...]

    @property
    def canonical(self) -> str:
        """The bare chain, the same for every wording of the question."""
        return f"{self.start}" + "".join(f"{term:+d}" for term in self.terms)

    @property
    def difficulty(self) -> int:
        """How many numbers the chain has."""
        return 1 + len(self.terms)

    @property
    def question(self) -> str:
        """The chain as a request in plain text."""
        return f"Compute {self.canonical}."

    @property
    def values(self) -> tuple[int, ...]:
        """The running values, from the start to the answer."""
        values = [self.start]
        for term in self.terms:
            values.append(values[-1] + term)
        return tuple(values)

    @property
    def answer(self) -> str:
        """The last running value."""
        return str(self.values[-1])

    @property
    def digest(self) -> str:
        """A stable hexadecimal hash of the canonical form."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def split(self) -> Split:
        """The one split that may hold this chain."""
        bucket = int(self.digest[:8], 16) % 100
        return next(split for split, buckets in _BUCKETS.items() if bucket in buckets)


def draw_chain(rng: random.Random, difficulty: int) -> Chain:
    """Draw a chain of ``difficulty`` numbers, of any split."""
    start = value = rng.randint(1, MAX_START)
    terms: list[int] = []
    for _ in range(difficulty - 1):
        term = rng.randint(1, 9) * rng.choice((-1, 1))
        if not 0 <= value + term <= MAX_VALUE:
            term = -term
        terms.append(term)
        value += term
    return Chain(start=start, terms=tuple(terms))


def make_chains(split: Split, num: int, seed: int, difficulties: Sequence[int] = DIFFICULTIES) -> list[Chain]:
    """Draw ``num`` different chains of one split; the i-th has the difficulty ``difficulties[i % len(difficulties)]``.

    Raises:
        ValueError: a difficulty is below ``MIN_DIFFICULTY``, or the split has too few chains of it.
    """
    if min(difficulties) < MIN_DIFFICULTY:
        raise ValueError(f"difficulties start at {MIN_DIFFICULTY}, got {min(difficulties)}")
    rng = random.Random(f"{split}/{seed}")
    chains: dict[str, Chain] = {}
    for index in range(num):
        chain = _draw_new_chain(rng, split, difficulties[index % len(difficulties)], chains)
        chains[chain.canonical] = chain
    return list(chains.values())


def _draw_new_chain(rng: random.Random, split: Split, difficulty: int, seen: Mapping[str, Chain]) -> Chain:
    draws = (draw_chain(rng, difficulty) for _ in range(_MAX_DRAWS_PER_CHAIN))
    for chain in draws:
        if chain.split == split and chain.canonical not in seen:
            return chain
    raise ValueError(f"no more chains of difficulty {difficulty} in the split {split!r} after {len(seen)}")


def make_problems(split: Split, num: int, seed: int, difficulties: Sequence[int] = DIFFICULTIES) -> list[Problem]:
    """Make ``num`` different problems of one split, the difficulties one after another."""
    return [_problem(chain) for chain in make_chains(split, num, seed, difficulties)]


def _problem(chain: Chain) -> Problem:
    return Problem(
        id=_chain_id(chain),
        domain=Domain.MATH,
        question=chain.question,
        answer=chain.answer,
        subject=SUBJECT,
        level=chain.difficulty,
    )


def make_demonstrations(num: int, seed: int, difficulties: Sequence[int] = DIFFICULTIES) -> list[Demonstration]:
    """Make ``num`` worked examples, some of which check a step or make a mistake and correct it."""
    rng = random.Random(f"thoughts/{seed}")
    chains = make_chains("demonstrations", num, seed, difficulties)
    return [_demonstration(chain, rng) for chain in chains]


def _demonstration(chain: Chain, rng: random.Random) -> Demonstration:
    return Demonstration(
        id=_chain_id(chain),
        domain=Domain.MATH.value,
        question=chain.question,
        thought="\n\n".join(thought_steps(chain, rng)),
        solution=f"The answer is \\boxed{{{chain.answer}}}.",
    )


def thought_steps(chain: Chain, rng: random.Random) -> Iterator[str]:
    """Yield the steps of a thought: one for each term, and now and then a check or a corrected mistake."""
    for position, (value, term, result) in enumerate(zip(chain.values, chain.terms, chain.values[1:], strict=False)):
        remainder = Chain(start=result, terms=chain.terms[position + 1 :])
        ending = f" leaves {remainder.canonical}." if remainder.terms else "."
        step = f"{value}{term:+d}={result}{ending}"
        luck = rng.random()
        if luck < MISTAKE_RATE:
            wrong = _wrong_result(result, rng)
            yield f"{value}{term:+d}={wrong}."
            step = f"Wait, {wrong} is wrong. Actually {step}"
        yield step
        if luck > 1 - CHECK_RATE:
            yield f"Wait, let me check. {result}{-term:+d}={value}. Yes."


def _wrong_result(result: int, rng: random.Random) -> int:
    return rng.choice([wrong for wrong in (result - 10, result - 1, result + 1, result + 10) if wrong >= 0])


def write_world(
    directory: Path,
    seed: int,
    *,
    num_demonstrations: int = 80,
    num_problems: int = 1200,
    num_test: int = 500,
    difficulties: Sequence[int] = DIFFICULTIES,
) -> None:
    """Write ``demonstrations.jsonl``, ``problems.jsonl`` (to explore) and ``test.jsonl`` into ``directory``.

    Demonstrations are rows of STILL-2's released format with an ``id`` added; the other two hold rows in the format of
    MATH-OAI.
    """
    directory.mkdir(parents=True, exist_ok=True)
    demonstrations = make_demonstrations(num_demonstrations, seed, difficulties)
    _write_rows(directory / "demonstrations.jsonl", map(_demonstration_row, demonstrations))
    pool = make_chains("pool", num_problems, seed, difficulties)
    _write_rows(directory / "problems.jsonl", map(_problem_row, pool))
    test = make_chains("test", num_test, seed, difficulties)
    _write_rows(directory / "test.jsonl", map(_problem_row, test))


def _demonstration_row(demonstration: Demonstration) -> dict[str, str]:
    return {
        "id": demonstration.id,
        "question": demonstration.question,
        "combined_text": render_response(demonstration.thought, demonstration.solution),
        "domain": demonstration.domain,
    }


def _problem_row(chain: Chain) -> dict[str, str | int]:
    return {
        "problem": chain.question,
        "answer": chain.answer,
        "subject": SUBJECT,
        "level": chain.difficulty,
        "unique_id": _chain_id(chain),
    }


def _chain_id(chain: Chain) -> str:
    return f"tiny-world/{chain.split}/{chain.digest[:16]}"


def _write_rows(path: Path, rows: Iterable[Mapping[str, str | int]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
