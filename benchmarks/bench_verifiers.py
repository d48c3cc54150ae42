"""Answers judged per second by the verifier pool, against plain math-verify in one process, on the same 5,000 answers.

The answers are the labelled pairs of the tests and, where the published problems lie beside the project, their
references against each other; then the same with other numbers, until there are 5,000, none twice. The pool's time
limits are armed, plain math-verify's are not. Right and wrong answers accepted are printed as well, over the labelled
pairs alone: there the baseline is plain math-verify's share.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from math_verify import parse, verify

from benchmarks.figures import print_figure
from still_ray.types import Domain, ParsedResponse, Verdict
from still_ray.verifiers.pool import VerifierPool

NUM_ANSWERS = 5000
LABELLED = Path(__file__).parents[1] / "tests" / "data" / "labelled_answers.jsonl"
PUBLISHED = Path(__file__).parents[2] / "shared" / "data"
_NUMBER = re.compile(r"(?<![\d.,_^{])\d{1,3}(?![\d.,!}])")

Pair = tuple[str, str]


def labelled() -> list[dict[str, Any]]:
    """The labelled mathematical pairs."""
    rows = [json.loads(line) for line in LABELLED.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["domain"] == "math"]


def published() -> list[str]:
    """References of published problems; none where they are not at hand."""
    rows = [json.loads(line) for path in sorted(PUBLISHED.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    return [row["answer"] for row in rows if row.get("answer")]


def answers() -> list[Pair]:
    """5,000 different pairs of an answer and a reference."""
    references = published()
    first = [(row["answer"], row["reference"]) for row in labelled()]
    first += [(reference, reference) for reference in references]
    first += list(itertools.pairwise(references))
    found = dict.fromkeys(first)
    shift = 0
    while len(found) < NUM_ANSWERS:
        shift += 1
        found.update(dict.fromkeys(_shifted(first, shift)))
    return list(found)[:NUM_ANSWERS]


def _shifted(pairs: list[Pair], by: int) -> Iterator[Pair]:
    """The pairs with other numbers in them, the same on both sides; powers, indices and factorials stay."""
    for answer, reference in pairs:
        one, other = (_NUMBER.sub(lambda number: str(int(number[0]) + by), text) for text in (answer, reference))
        if (one, other) != (answer, reference):
            yield one, other


def by_pool(pool: VerifierPool, pairs: list[Pair]) -> list[Verdict]:
    """The product's way, timeouts armed."""
    items = [(ParsedResponse(thought="t", solution=rf"\boxed{{{a}}}"), Domain.MATH, b) for a, b in pairs]
    return [judgement.verdict for judgement in pool.judge_many(items)]


def plainly(pairs: list[Pair]) -> list[bool]:
    """math-verify in this process, nothing to stop it."""
    return [
        verify(
            parse(f"${reference}$", parsing_timeout=None),
            parse(rf"$\boxed{{{answer}}}$", parsing_timeout=None),
            timeout_seconds=None,
        )
        for answer, reference in pairs
    ]


def per_second(work: Callable[[], object]) -> float:
    """Answers per second, once."""
    started = time.perf_counter()
    work()
    return NUM_ANSWERS / (time.perf_counter() - started)


def print_accuracy(pool: VerifierPool) -> None:
    """Prints the share of right and of wrong labelled answers that each of the two accepts."""
    rows = labelled()
    pairs = [(row["answer"], row["reference"]) for row in rows]
    ours = [verdict is Verdict.CORRECT for verdict in by_pool(pool, pairs)]
    theirs = plainly(pairs)
    for name, correct in (("verifier_right_answers_accepted", True), ("verifier_wrong_answers_accepted", False)):
        chosen = [index for index, row in enumerate(rows) if row["correct"] is correct]
        value, baseline = (100 * sum(side[index] for index in chosen) / len(chosen) for side in (ours, theirs))
        print_figure(name, value=value, unit="%", baseline=baseline)


def main() -> None:
    """Measures both, one after the other."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    pairs = answers()
    with VerifierPool(processes=os.cpu_count() or 1) as pool:
        pool.wait_until_ready()
        plainly(pairs[:50])
        ours = per_second(lambda: by_pool(pool, pairs))
        baseline = per_second(lambda: plainly(pairs))
        print_figure("verifier_answers_per_s", value=ours, unit="answers/s", baseline=baseline)
        print_accuracy(pool)


if __name__ == "__main__":
    main()
