"""One round of the tiny world in a warm session, against the four scripts that people write for it.

    python -m benchmarks.bench_round --problems 400 --test 200

A round: explore by the newest policy and judge, choose the rows, train on them from the backbone, bring the replicas to
the result and evaluate it. Ours: the driver's own round with what `make demo` has, its store and reports included; the
session is warm, as it is from the first round of a run on. Baseline: `benchmarks/scripts`, each in processes of its own
after the other, from the same imitated model: `sample` by vLLM, `grade` by math-verify, `train` by TRL under ZeRO-3 on
two ranks, `evaluate` by vLLM, on as many cores, with as many problems, samples, epochs and rows (fewer, if it solved
fewer problems).

The scripts run twice: tuned, as fast as settings make them on a CPU, and with what the libraries come with, as such
scripts are written: vLLM in a process of its own that compiles the model, TRL with gradient checkpointing, DeepSpeed
with numactl in every step. --tuned-only leaves the second out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import print_figure
from benchmarks.scripts.sample import read_lines
from still_ray import Driver, OpenRun, Recipe, load_recipe, open_run

DEMO = Path(__file__).parents[1] / "jobs" / "demo.yaml"
NUM_RANKS = 2
AN_HOUR_S = 3600.0
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_RANKS))


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


@dataclass(frozen=True, kw_only=True)
class Scripts:
    """The four scripts, on the files of our run.

    Attributes:
        recipe: Of our run.
        backbone: What training starts from.
        policy: What samples: our imitated checkpoint.
        max_rows: Most rows to train on.
        folder: Where they write.
        flags: For all that start a library.
    """

    recipe: Recipe
    backbone: str
    policy: str
    max_rows: int
    folder: Path
    flags: tuple[str, ...] = ()

    def round(self) -> Round:
        """Runs them one after another."""
        self.folder.mkdir()
        explore_s, train_s = self._explore(), self._train()
        rows = read_lines(self.folder / "evaluation.jsonl")
        return Round(
            explore_s=explore_s,
            train_s=train_s,
            num_rows=len(read_lines(self.folder / "rows.jsonl")),
            accuracy=sum(row["correct"] for row in rows) / len(rows),
        )

    def _explore(self) -> float:
        """Samples and grades; seconds."""
        explored, data = dict(self.recipe.explorations)[1], self.recipe.data
        asking = self._asking(self.policy, data.problems, "responses", explored.max_tokens)
        sampling = {"samples": explored.samples_per_problem, "temperature": explored.temperature}
        grading = {
            "responses": self.folder / "responses.jsonl",
            "demonstrations": data.demonstrations,
            "prompt": self.recipe.prompt.template,
            "out": self.folder / "rows.jsonl",
            "max-per-problem": self._settings.select.max_per_problem,
            "max-rows": self.max_rows,
        }
        return run_script("sample", asking | sampling, *self.flags) + run_script("grade", grading)

    def _train(self) -> float:
        """Trains and evaluates; seconds."""
        training = {
            "model": self.backbone,
            "rows": self.folder / "rows.jsonl",
            "out": self.folder / "trained",
            "epochs": int(self._settings.epochs),
            "batch-size": self._settings.global_batch_size // NUM_RANKS,
            "learning-rate": self._settings.optimizer.learning_rate,
        }
        evaluate = self.recipe.evaluate
        asking = self._asking(self.folder / "trained", self.recipe.data.test, "evaluation", evaluate.max_tokens)
        return run_script("train", training, *self.flags) + run_script("evaluate", asking, *self.flags)

    @property
    def _settings(self) -> Any:
        """The round's section of the recipe."""
        return self.recipe.step(1, "sft").settings

    def _asking(self, model: str | Path, problems: object, out: str, max_tokens: object) -> dict[str, object]:
        return {
            "model": model,
            "problems": problems,
            "prompt": self.recipe.prompt.template,
            "out": self.folder / f"{out}.jsonl",
            "max-tokens": max_tokens,
            "max-model-len": self.recipe.model.max_length,
        }


def run_script(script: str, options: Mapping[str, object], *flags: str) -> float:
    """Runs a script to its end, with its output on stderr; seconds."""
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    launcher = TORCHRUN if script == "train" else ()
    command = [sys.executable, *launcher, "-m", f"benchmarks.scripts.{script}", *given, *flags]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - started
    sys.stderr.write(f"{script}: {seconds:.1f} s\n")
    return seconds


def measure(problems: int, samples: int, test: int, *, tuned_only: bool) -> None:
    """Prints the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open_run(recipe_of(problems, samples, test), folder / "run") as run:
            ours = our_round(run)
            scripts = Scripts(
                recipe=run.recipe,
                backbone=run.backbone,
                policy=run.ports.store.checkpoint(run.stages[1]),
                max_rows=ours.num_rows,
                folder=folder / "tuned",
            )
        print_figures("round_against_tuned", ours, scripts.round())  # alone on the machine, as they would be
        if not tuned_only:
            as_they_come = replace(scripts, folder=folder / "as-they-come", flags=("--library-settings",))
            print_figures("round", ours, as_they_come.round())


def print_figures(name: str, ours: Round, theirs: Round) -> None:
    """The round and its two halves as rates, so that more is better; on stderr what both came to."""
    for who, side in (("ours", ours), ("the scripts", theirs)):
        sys.stderr.write(f"{who}: trained on {side.num_rows} rows, accuracy {side.accuracy:.1%}\n")
    seconds = {
        "": (ours.explore_s + ours.train_s, theirs.explore_s + theirs.train_s),
        "_explore_and_judge": (ours.explore_s, theirs.explore_s),
        "_train_and_evaluate": (ours.train_s, theirs.train_s),
    }
    for part, (value, baseline) in seconds.items():
        print_figure(f"{name}{part}", value=AN_HOUR_S / value, unit="an hour", baseline=AN_HOUR_S / baseline)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=400)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--tuned-only", action="store_true", help="not against scripts with the libraries' settings")
    arguments = parser.parse_args()
    measure(arguments.problems, arguments.samples, arguments.test, tuned_only=arguments.tuned_only)


if __name__ == "__main__":
    main()
