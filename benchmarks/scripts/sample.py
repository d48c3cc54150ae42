"""Samples responses to problems by vLLM on two CPU cores.

    python -m benchmarks.scripts.sample --model DIR --problems problems.jsonl --prompt prompt.txt --out responses.jsonl

A line of the output is a problem with one response to it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

NUM_CORES = 2
"""As two replicas of one thread have together."""
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
FAST_ON_CPU = {
    "TORCHDYNAMO_DISABLE": "1",  # else the first batch is spent on compilation
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{NUM_CORES - 1}",
}
FAST_ARGUMENTS = {
    "enforce_eager": True,
    "max_num_batched_tokens": 8192,
    "enable_chunked_prefill": False,  # vLLM 0.32 dies of a seeded request whose prompt a CPU computes in two steps
}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON-lines file."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def start_engine(model: str, *, max_num_seqs: int, max_model_len: int, tuned: bool = True) -> Any:
    """A vLLM engine in this process; if it is not tuned, with the library's own settings."""
    os.environ |= ENVIRONMENT | (FAST_ON_CPU if tuned else {})
    import vllm

    arguments: dict[str, Any] = FAST_ARGUMENTS if tuned else {}
    return vllm.LLM(model, dtype="float32", max_model_len=max_model_len, max_num_seqs=max_num_seqs, seed=0, **arguments)


def respond(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every problem once for each of its responses."""
    import vllm

    engine = start_engine(
        arguments.model,
        max_num_seqs=arguments.max_num_seqs,
        max_model_len=arguments.max_model_len,
        tuned=not arguments.library_settings,
    )
    template = arguments.prompt.read_text(encoding="utf-8")
    problems = read_lines(arguments.problems)
    turns = [[{"role": "user", "content": template.replace("{question}", row["problem"])}] for row in problems]
    params = vllm.SamplingParams(
        n=arguments.samples, temperature=arguments.temperature, max_tokens=arguments.max_tokens
    )
    outputs = engine.chat(turns, params, use_tqdm=False)
    for problem, turn, output in zip(problems, turns, outputs, strict=True):
        for response in output.outputs:
            yield {**problem, "prompt": turn, "response": response.text}


def arguments_of(description: str | None, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of a script that samples."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True)
    parser.add_argument("--problems", type=Path, required=True)
    parser.add_argument("--prompt", type=Path, required=True, help="the user turn, with {question} in it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--max-model-len", type=int, default=512)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--library-settings", action="store_true", help="vLLM's own, which are slow on a CPU")
    return parser.parse_args(argv)


if __name__ == "__main__":
    given = arguments_of(__doc__)
    write_lines(given.out, respond(given))
