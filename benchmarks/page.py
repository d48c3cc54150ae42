"""Runs the benchmarks and writes their table, docs/results/performance.md.

    python -m benchmarks.page [--only bench_explore,bench_sync]

With `--only` the rows of the other benchmarks are left as the page has them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent
PAGE: Final = FOLDER.parent / "docs" / "results" / "performance.md"
THOUSAND: Final = 1000
"""From there on no decimals."""
FIGURES: Final = PAGE.with_suffix(".jsonl")


HEAD: Final = """# Performance

Written by `make bench`. Both sides of a row were measured in one run, in turns where there are several passes; the
ratio is ours over the baseline. Seconds and rates are those of one machine at one hour: only ratios carry over. The
same as JSON lines: [performance.jsonl](performance.jsonl).
"""
COLUMNS: Final = """| what | ours | baseline | unit | ratio | goal | the baseline is | code |
|---|--:|--:|---|--:|---|---|---|"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a figure is, for a reader.

    Attributes:
        what: Our side.
        against: The baseline, measured in the same run.
        goal: What the ratio should be; "" where there is none.
    """

    what: str
    against: str
    goal: str = ""


ROWS: Final[Mapping[str, Row]] = {
    "explore_against_generate": Row(
        what="exploration with verdicts and store",
        against="`vllm.LLM.generate`: the same prompts, samples, sequences and threads",
        goal=">= 0.95",
    ),
    "explore_against_generate_and_verify": Row(
        what="the same", against="`vllm.LLM.generate`, then math-verify, one response after another", goal=">= 1"
    ),
    "round": Row(
        what="a round: explore, select, SFT, evaluate",
        against="four [scripts](../../benchmarks/scripts): vLLM, math-verify, torchrun with TRL and ZeRO-3, vLLM",
        goal=">= 4",
    ),
    "round_explore_and_judge": Row(what="its exploration", against="the first two scripts"),
    "round_train_and_evaluate": Row(what="its training and evaluation", against="the last two scripts"),
    "round_against_tuned": Row(
        what="the round", against="the scripts, tuned for this machine (no compilation, one process, no numactl)"
    ),
    "round_against_tuned_explore_and_judge": Row(what="its exploration", against="the first two of these"),
    "round_against_tuned_train_and_evaluate": Row(what="its training and evaluation", against="the last two of these"),
    "trainer_steps": Row(what="optimizer steps of two ranks", against="TRL and ZeRO-3 by torchrun, the same rows"),
    "trainer_around_steps": Row(what="all else of a training stage", against="all else of that script"),
    "sync_object_store": Row(
        what="weight sync of 1 GB by `object_store`, with its proof", against="`memcpy` of as many bytes"
    ),
    "sync_object_store_without_probes": Row(what="the same without scoring the probes", against="the same"),
    "sync_checkpoint": Row(
        what="weight sync of 1 GB by `checkpoint`, with its proof", against="reading that file, every tensor copied"
    ),
    "sync_checkpoint_without_probes": Row(what="the same without scoring the probes", against="the same"),
    "makespan_of_uneven_replicas": Row(
        what="a long-tailed round on eight uneven replicas", against="the least time that it can take", goal="<= 1.05"
    ),
    "rollout_cost": Row(what="dispatch, verdict and store of a rollout", against="the same Ray calls in a loop"),
    "rollout_memory": Row(what="memory of the driver for 50,000 of them", against="that loop, which keeps the rows"),
    "tokens_lost_with_a_killed_driver": Row(
        what="tokens lost with a driver killed at 90 % of a round of 80 s",
        against="the same, had only whole trajectories been kept",
    ),
    "verifier_answers_per_s": Row(what="the verifier pool", against="plain math-verify in one process"),
    "verifier_right_answers_accepted": Row(what="right answers accepted", against="by plain math-verify"),
    "verifier_wrong_answers_accepted": Row(what="wrong answers accepted", against="by plain math-verify"),
    "prepare_rows_per_s": Row(what="`still-ray prepare`", against="one process that only parses the rows"),
}
"""The figures in the order of the page; what is not here comes after them by its name alone."""


def figures(script: str) -> Iterator[dict[str, Any]]:
    """Runs a benchmark to its end.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    sys.stderr.write(f"{script} ...\n")
    command = [sys.executable, "-m", f"benchmarks.{script}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=FOLDER.parent)
    sys.stdout.write(done.stdout)
    for line in done.stdout.splitlines():
        if line.startswith('{"name"'):
            yield {"script": script, **json.loads(line)}


def line_of(figure: Mapping[str, Any]) -> str:
    """A row of the table."""
    row = ROWS.get(figure["name"], Row(what=f"`{figure['name']}`", against="see there"))
    ours, baseline = (f"{figure[key]:,.{0 if figure[key] >= THOUSAND else 3}f}" for key in ("value", "baseline"))
    code = f"[{figure['script']}](../../benchmarks/{figure['script']}.py)"
    return (
        f"| {row.what} | {ours} | {baseline} | {figure['unit']} | **{figure['ratio']:.2f}** | {row.goal} "
        f"| {row.against} | {code} |"
    )


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """The whole page."""
    order = {name: place for place, name in enumerate(ROWS)}
    rows = sorted(found, key=lambda figure: order.get(figure["name"], len(order)))
    machines = sorted({figure["machine"] for figure in found})
    return "\n".join((HEAD, f"Machine: {'; '.join(machines)}.\n", COLUMNS, *map(line_of, rows), ""))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of benchmarks, separated by commas")
    chosen = [name for name in parser.parse_args().only.split(",") if name]
    kept = [json.loads(line) for line in FIGURES.read_text(encoding="utf-8").splitlines()] if FIGURES.exists() else []
    for script in chosen or sorted(path.stem for path in FOLDER.glob("bench_*.py")):
        kept = [figure for figure in kept if figure["script"] != script] + list(figures(script))
        FIGURES.write_text("".join(json.dumps(figure) + "\n" for figure in kept), encoding="utf-8")
        PAGE.write_text(page(kept), encoding="utf-8")


if __name__ == "__main__":
    main()
