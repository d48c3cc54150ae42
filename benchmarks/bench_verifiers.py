"""Answers judged per second by the verifier pool, against plain math-verify in one process, on the same answers."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable

from math_verify import parse, verify

from benchmarks.figures import print_figure
from still_ray.types import Domain, ParsedResponse
from still_ray.verifiers.pool import VerifierPool

NUM_ANSWERS = 1000
REPEATS = 3


def answers(seed: int) -> list[tuple[str, str]]:
    """Pairs of an answer and a reference that no shortcut decides: fractions, radicals, sums; half of them equal."""
    draw = random.Random(seed)
    pairs = []
    for _ in range(NUM_ANSWERS):
        a, b, c = draw.randint(2, 99), draw.randint(2, 99), draw.randint(2, 99)
        other = c if draw.random() < 0.5 else c + 1  # noqa: PLR2004 - one half
        pairs.append((rf"\frac{{{a}}}{{{b}}}+\sqrt{{{c}}}", rf"\sqrt{{{other}}}+\frac{{{2 * a}}}{{{2 * b}}}"))
    return pairs


def by_pool(pool: VerifierPool, pairs: list[tuple[str, str]]) -> None:
    """The product's way, timeouts armed."""
    items = [(ParsedResponse(thought="t", solution=rf"\boxed{{{a}}}"), Domain.MATH, b) for a, b in pairs]
    pool.judge_many(items)


def plainly(pairs: list[tuple[str, str]]) -> None:
    """math-verify in this process, nothing to stop it."""
    for answer, reference in pairs:
        gold = parse(f"${reference}$", parsing_timeout=None)
        verify(gold, parse(rf"$\boxed{{{answer}}}$", parsing_timeout=None), timeout_seconds=None)


def per_second(work: Callable[[], None]) -> float:
    """Answers per second, once."""
    started = time.perf_counter()
    work()
    return NUM_ANSWERS / (time.perf_counter() - started)


def main() -> None:
    """Measures both in turn and prints the median."""
    pairs = answers(seed=0)
    with VerifierPool(processes=os.cpu_count() or 1) as pool:
        pool.wait_until_ready()
        plainly(pairs[:50])
        runs = [(per_second(lambda: by_pool(pool, pairs)), per_second(lambda: plainly(pairs))) for _ in range(REPEATS)]
    ours, baseline = (statistics.median(column) for column in zip(*runs, strict=True))
    print_figure("verifier_answers_per_s", value=ours, unit="answers/s", baseline=baseline)


if __name__ == "__main__":
    main()
