"""Memory of the driver's process while a round is stored, closed and chosen from, against the round's texts.

    python -m benchmarks.bench_round_memory --gigabytes 4

Each step runs in a process of its own and counts what it holds above its start; `baseline` is the size of the texts.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa

from benchmarks.figures import PeakMemory, print_figure
from still_ray.algo.selection.select import Demonstrated, select_trajectories
from still_ray.config import SelectConfig
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.store.tables import iter_table, write_table
from still_ray.types import Domain, FinishReason, TrainingExample, Trajectory, Verdict, trajectory_id

MEGABYTE = 10**6
SAMPLES = 8
WORDS = (
    "so we take",
    "the first",
    "and add it",
    "to what is left",
    "of x = 12 + y,",
    "wait,",
    "is that right?",
    "∑",
    "hence",
)


def store_of(folder: Path) -> RunStore:
    """The run whose first round is measured."""
    return RunStore(RunDirectory(folder), ())


def sampled(folder: Path, num_bytes: int) -> None:
    """Commits responses of 16,000 characters on average, in the order in which samplers might give them."""
    draw = random.Random(0)
    words = " ".join(draw.choices(WORDS, k=500_000))
    store = store_of(folder)
    committed = number = 0
    while committed < num_bytes:
        start, length = draw.randrange(len(words) // 2), min(80_000, int(draw.expovariate(1 / 16_000)))
        thought = words[start : start + length]
        store.commit(1, [_trajectory(number, thought, draw)])
        committed += len(thought.encode())
        number += 1


def _trajectory(number: int, thought: str, draw: random.Random) -> Trajectory:
    problem = number // SAMPLES ^ 0b10101  # answers do not come in the order of the problems
    return Trajectory(
        round=1,
        problem_id=f"problem-{problem:07d}",
        sample_index=number % SAMPLES,
        domain=Domain.MATH,
        question=f"Which number is the {problem}th?",
        answer="7",
        response=f"<|begin_of_thought|>\n{thought}\n<|end_of_thought|>\n\\boxed{{7}}",
        thought=thought,
        solution=r"\boxed{7}",
        extracted="7",
        verdict=draw.choice([Verdict.CORRECT, Verdict.INCORRECT]),
        policy_version=1,
        seed=number,
        num_tokens=len(thought) // 3,
        thought_tokens=len(thought) // 3,
        mean_logprob=-0.5,
        perplexity=1 + draw.random(),
        finish_reason=FinishReason.STOP,
        sampler="replica-0",
        latency_s=1.0,
        created_at="2026-01-02T03:04:05+00:00",
    )


def closed(folder: Path) -> None:
    """Closes the round."""
    store_of(folder).close_round(1)


def chosen(folder: Path) -> None:
    """Chooses as a resumed run does, whose candidates are not in memory yet."""
    config = SelectConfig(max_per_problem=SAMPLES)
    candidates = store_of(folder).candidates([1])
    select_trajectories(candidates, config, scope="whole", shown=Demonstrated(thought_chars={}), seed=0)


def joined(folder: Path) -> None:
    """Writes a training set of all correct responses."""
    store = store_of(folder)
    keys = [row.key for row in store.candidates([1]) if row.verdict is Verdict.CORRECT]
    write_table(folder / "training_set.parquet", map(_example, store.trajectories(keys)), TrainingExample)


def _example(row: Trajectory) -> TrainingExample:
    return TrainingExample(
        source="trajectory",
        source_id=trajectory_id(row.key),
        domain=row.domain,
        question=row.question,
        thought=row.thought,
        solution=row.solution,
    )


STEPS: Mapping[str, Callable[[Path], None]] = {"close": closed, "choose": chosen, "write": joined}


def peak_bytes(step: str, folder: Path) -> int:
    """Most resident memory of this process above what it held before a step."""
    pa.array([0])  # loads pandas, some 35 MB, as Ray Data does in the driver's process in any case
    with PeakMemory() as memory:
        STEPS[step](folder)
    return memory.peak_bytes


def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)


def text_bytes(folder: Path) -> int:
    """Bytes of the texts of the round's trajectories."""
    paths = RunDirectory(folder).trajectories(1).glob("*.parquet")
    rows = (row for path in paths for row in iter_table(path, Trajectory))
    return sum(len(f"{row.question}{row.response}{row.thought}{row.solution}".encode()) for row in rows)


def main() -> None:
    """Prints a figure for each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=0.5, help="of responses in the round")
    gigabytes = parser.parse_args().gigabytes
    with tempfile.TemporaryDirectory() as name, _processes() as processes:
        folder = Path(name)
        processes.submit(sampled, folder, int(gigabytes * 10**9)).result()
        baseline = processes.submit(text_bytes, folder).result()
        for step in STEPS:
            value = processes.submit(peak_bytes, step, folder).result()
            figure = f"round_memory_{step}_{gigabytes:g}_gb"
            print_figure(figure, value=value / MEGABYTE, unit="MB above the start", baseline=baseline / MEGABYTE)


if __name__ == "__main__":
    main()
