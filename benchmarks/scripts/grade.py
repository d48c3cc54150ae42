"""Grades responses by math-verify and writes the rows to train on: demonstrations and correct responses.

python -m benchmarks.scripts.grade --responses responses.jsonl --demonstrations demonstrations.jsonl --prompt prompt.txt
    --out rows.jsonl
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.scripts.sample import read_lines, write_lines

BOX = r"\boxed{"


def is_correct(response: str, answer: str) -> bool:
    """Whether the last box of a response, or a response without one, is the answer."""
    from math_verify import parse, verify

    last = f"${response[response.rfind(BOX) :]}$" if BOX in response else response
    return bool(verify(parse(answer), parse(last)))


def row_of(prompt: list[dict[str, str]], response: str) -> dict[str, Any]:
    """A row as TRL's SFTTrainer takes it."""
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": response}]}


def chosen(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Demonstrations, then correct responses: different ones, and not too many of one problem."""
    template = arguments.prompt.read_text(encoding="utf-8")
    for shown in read_lines(arguments.demonstrations):
        turn = {"role": "user", "content": template.replace("{question}", shown["question"])}
        yield row_of([turn], shown["combined_text"])
    taken, of_problem = set[tuple[str, str]](), Counter[str]()
    for row in read_lines(arguments.responses):
        problem, response = row["unique_id"], row["response"]
        if of_problem[problem] >= arguments.max_per_problem or (problem, response) in taken:
            continue
        if is_correct(response, str(row["answer"])):
            taken.add((problem, response))
            of_problem[problem] += 1
            yield row_of(row["prompt"], response)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=Path, required=True)
    parser.add_argument("--demonstrations", type=Path, required=True)
    parser.add_argument("--prompt", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--max-per-problem", type=int, default=2)
    parser.add_argument("--max-rows", type=int, default=None)
    arguments = parser.parse_args()
    write_lines(arguments.out, list(chosen(arguments))[: arguments.max_rows])


if __name__ == "__main__":
    main()
