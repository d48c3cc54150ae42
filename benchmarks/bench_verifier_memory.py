"""Memory of the verifier's processes over 100,000 answers, against their memory after the first thousands."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import psutil

from benchmarks.figures import print_figure
from still_ray.types import Domain, ParsedResponse, Verdict
from still_ray.verifiers.pool import VerifierPool

NUM_ANSWERS = 100_000
BATCH = 1000
WARM_BATCHES = 5
REPLACE_EVERY = 20
HANGS = "9^{9^{9^9}}"
TIMEOUT_S = 5.0

Item = tuple[ParsedResponse, Domain, str]


def batch(draw: random.Random) -> Iterator[Item]:
    """Answers that no shortcut decides: numbers, polynomials, functions, integrals."""
    for number in range(BATCH):
        a, b, c = draw.randint(2, 9999), draw.randint(2, 9999), draw.randint(2, 9999)
        integral = rf"\int_0^{{{a}}} x dx+{b}", rf"\frac{{{a * a}}}{{2}}+{b}"  # these go to math-verify
        kinds = [
            (rf"\frac{{{a}}}{{{b}}}+\sqrt{{{c}}}", rf"\sqrt{{{c}}}+\frac{{{2 * a}}}{{{2 * b}}}"),
            (f"(x+{a})(x-{b})", f"x^2+{a - b}x-{a * b}" if a >= b else f"x^2-{b - a}x-{a * b}"),
            (rf"\sin({a}x)+{b}", rf"{b}+\sin({a}x)"),
        ]
        yield _item(*(kinds[number % len(kinds)] if number % 25 else integral))


def _item(answer: str, reference: str) -> Item:
    return ParsedResponse(thought="t", solution=rf"\boxed{{{answer}}}"), Domain.MATH, reference


def memory_mib(pool: VerifierPool) -> float:
    """Resident memory of all keepers and judges; pages that they share count for each."""
    keepers = [psutil.Process(pid) for pid in pool.worker_pids]
    family = [*keepers, *(judge for keeper in keepers for judge in keeper.children())]
    return float(sum(process.memory_info().rss for process in family)) / (1 << 20)


def main() -> None:
    """Judges, and prints the largest memory after the first batches over the one before."""
    draw = random.Random(0)
    most, warm = 0.0, 0.0
    with VerifierPool(processes=os.cpu_count() or 1, timeout_s=TIMEOUT_S) as pool:
        pool.wait_until_ready()
        for number in range(NUM_ANSWERS // BATCH):
            verdicts = {judgement.verdict for judgement in pool.judge_many(batch(draw))}
            assert verdicts == {Verdict.CORRECT}, "these answers are right"
            if number % REPLACE_EVERY == 0:  # seldom: a new judge would hide that the old one grew
                assert pool.judge(*_item(HANGS, "5")).verdict is Verdict.TIMEOUT
            now = memory_mib(pool)
            warm = max(warm, now) if number < WARM_BATCHES else warm
            most = max(most, now)
    print_figure("verifier_memory_over_100000_answers", value=most, unit="MiB", baseline=warm)


if __name__ == "__main__":
    main()
