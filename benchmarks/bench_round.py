"""One round of the tiny world in a warm session, against the four scripts that people write for it.

    python -m benchmarks.bench_round --problems 400 --test 200

A round: explore by the newest policy and judge, choose the rows, train on them from the backbone, bring the replicas to
the result and evaluate it. Ours: the driver's own round with what `make demo` has, its store and reports included; the
session is warm, as it is from the first round of a run on. Baseline: `benchmarks/scripts`, each in processes of its own
after the other, from the same imitated model: `sample` by vLLM, `grade` by math-verify, `train` by TRL under ZeRO-3 on
two ranks, `evaluate` by vLLM, on as many cores, with as many problems, samples, epochs and rows (fewer, if it solved
fewer problems).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import print_figure
from benchmarks.scripts.sample import read_lines
from still_ray import Driver, OpenRun, Recipe, load_recipe, open_run

DEMO = Path(__file__).parents[1] / "jobs" / "demo.yaml"
NUM_RANKS = 2
AN_HOUR_S = 3600.0
TRAIN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_RANKS))


def recipe_of(problems: int, samples: int, test: int) -> Recipe:
    """The demo's first round."""
    rounds = [{"method": "sft", "explore": {"num_problems": problems, "samples_per_problem": samples}}]
    sizes = [f"data.tiny_world.num_problems={problems}", f"data.tiny_world.num_test={test}"]
    return load_recipe(str(DEMO), [f"rounds={json.dumps(rounds)}", *sizes])


@dataclass
class Clock:
    """The driver's `Reporter`: when each stage was complete."""

    complete: list[float] = field(default_factory=list)

    def refresh(self) -> None:
        """Notes the time."""
        self.complete.append(time.perf_counter())


@dataclass(frozen=True, kw_only=True)
class Round:
    """How a round went.

    Attributes:
        explore_s: Time of sampling and judging, seconds.
        train_s: Time of choosing rows, training and evaluating, seconds.
        num_rows: Rows that were trained on.
        accuracy: Of the trained model.
    """

    explore_s: float
    train_s: float
    num_rows: int
    accuracy: float


def our_round(run: OpenRun) -> Round:
    """Imitates, and then goes through the round."""
    clock = Clock()
    Driver(run.recipe, replace(run.ports, reporter=clock), backbone=run.backbone, baseline=run.baseline).run()
    _, imitated, explored, trained, *_ = clock.complete
    facts: Any = run.ports.store.completed()[run.stages[-1].name]
    return Round(
        explore_s=explored - imitated,
        train_s=trained - explored,
        num_rows=facts.training.num_examples,
        accuracy=facts.evaluation.accuracy,
    )


# -- the baseline ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scripts:
    """The four scripts, on the files of our run.

    Attributes:
        recipe: Of our run.
        backbone: What training starts from.
        policy: What samples: our imitated checkpoint.
        folder: Where they write.
    """

    recipe: Recipe
    backbone: str
    policy: str
    folder: Path

    def round(self, max_rows: int) -> Round:
        """Runs them one after another."""
        recipe, out = self.recipe, self.folder
        explored, settings = dict(recipe.explorations)[1], _settings(recipe)
        sampling = {"samples": explored.samples_per_problem, "temperature": explored.temperature}
        started = time.perf_counter()
        self._run(
            "sample", self._asking(self.policy, recipe.data.problems, "responses", explored.max_tokens) | sampling
        )
        self._run(
            "grade",
            {
                "responses": out / "responses.jsonl",
                "demonstrations": recipe.data.demonstrations,
                "prompt": recipe.prompt.template,
                "out": out / "rows.jsonl",
                "max-per-problem": settings.select.max_per_problem,
                "max-rows": max_rows,
            },
        )
        graded = time.perf_counter()
        training = {
            "model": self.backbone,
            "rows": out / "rows.jsonl",
            "out": out / "trained",
            "epochs": int(settings.epochs),
            "batch-size": settings.global_batch_size // NUM_RANKS,
            "learning-rate": settings.optimizer.learning_rate,
        }
        self._run("train", training, launcher=TRAIN, threads=1)
        tested = self._asking(out / "trained", recipe.data.test, "evaluation", recipe.evaluate.max_tokens)
        self._run("evaluate", tested)
        ended = time.perf_counter()
        rows = read_lines(out / "evaluation.jsonl")
        return Round(
            explore_s=graded - started,
            train_s=ended - graded,
            num_rows=len(read_lines(out / "rows.jsonl")),
            accuracy=sum(row["correct"] for row in rows) / len(rows),
        )

    def _asking(self, model: str | Path, problems: object, out: str, max_tokens: object) -> dict[str, object]:
        return {
            "model": model,
            "problems": problems,
            "prompt": self.recipe.prompt.template,
            "out": self.folder / f"{out}.jsonl",
            "max-tokens": max_tokens,
            "max-model-len": self.recipe.model.max_length,
        }

    def _run(
        self, script: str, options: Mapping[str, object], *, launcher: Sequence[str] = (), threads: int | None = None
    ) -> None:
        """Runs a script to its end; its output goes to stderr."""
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command = [sys.executable, *launcher, "-m", f"benchmarks.scripts.{script}", *given]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
        sys.stderr.write(f"{script}: {time.perf_counter() - started:.1f} s\n")


def _settings(recipe: Recipe) -> Any:
    """The round's section of the recipe."""
    return recipe.step(1, "sft").settings


def measure(problems: int, samples: int, test: int) -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as folder:
        with open_run(recipe_of(problems, samples, test), Path(folder) / "run") as run:
            ours = our_round(run)
            scripts = Scripts(run.recipe, run.backbone, run.ports.store.checkpoint(run.stages[1]), Path(folder))
        theirs = scripts.round(ours.num_rows)  # alone on the machine, as they would be
        print_figures(ours, theirs)


def print_figures(ours: Round, theirs: Round) -> None:
    """The round and its two halves as rates, so that more is better; on stderr what both came to."""
    seconds = {
        "round": (ours.explore_s + ours.train_s, theirs.explore_s + theirs.train_s),
        "round_explore_and_judge": (ours.explore_s, theirs.explore_s),
        "round_train_and_evaluate": (ours.train_s, theirs.train_s),
    }
    for name, (value, baseline) in seconds.items():
        print_figure(name, value=AN_HOUR_S / value, unit="an hour", baseline=AN_HOUR_S / baseline)
    for who, side in (("ours", ours), ("the scripts", theirs)):
        sys.stderr.write(f"{who}: trained on {side.num_rows} rows, accuracy {side.accuracy:.1%}\n")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--test", type=int, default=200)
    arguments = parser.parse_args()
    measure(arguments.problems, arguments.samples, arguments.test)


if __name__ == "__main__":
    main()
