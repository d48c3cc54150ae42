"""Tokens a second of the trainer's optimizer steps, against bare TRL under ZeRO-3 on the same rows.

    python -m benchmarks.bench_trainer --rows 640 --epochs 2 --repeats 3

The tiny world's backbone learns demonstrations, in float32 by two ranks of one thread that speak gloo. Ours: the
trainer group of a session, as `make demo` has it. Baseline: `benchmarks/scripts/train.py` under torchrun on the same
rows in the same batches, with the bucket sizes that the documentation of transformers gives. Both take turns; medians.
Beside the steps: what a stage costs around them, from the order to the checkpoint, which for a script is its start.

That both do the same is checked: tokens, the loss of the first step, and roughly the loss of the last ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isclose
from pathlib import Path

from benchmarks.bench_explore import DEMO, imitation
from benchmarks.bench_round import run_script
from benchmarks.figures import print_figure
from benchmarks.scripts.grade import row_of
from benchmarks.scripts.sample import read_lines, write_lines
from still_ray import OpenRun, Recipe, TrainOrder, load_recipe, open_run, read_demonstrations, render_response
from still_ray.trainer.schedule import row_order

GLOBAL_BATCH = 32
EQUAL = 1e-3
"""Largest difference of the first losses, as a share. Source: ours."""
NEAR = 0.25
"""The same of the last losses: the schedule of transformers is a step late. Source: ours, measured: 0.14."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One training.

    Attributes:
        steps_s: Time of the optimizer steps, seconds.
        around_s: Time before and after them, seconds.
        num_tokens: Tokens of all steps.
        first_loss: Of the first step.
        last_loss: Mean of the last steps.
    """

    steps_s: float
    around_s: float
    num_tokens: int
    first_loss: float
    last_loss: float


def recipe_of(rows: int, epochs: int) -> Recipe:
    """The demo's, with imitation of as many demonstrations."""
    imitate = {"epochs": epochs, "global_batch_size": GLOBAL_BATCH, "per_device_batch_size": GLOBAL_BATCH // 2}
    sets = [f"imitate.{name}={value}" for name, value in imitate.items()]
    return load_recipe(str(DEMO), [f"data.tiny_world.num_demonstrations={rows}", "sampler.num_replicas=1", *sets])


def our_turn(run: OpenRun, order: TrainOrder, metrics: Path) -> Turn:
    """Trains in the session's trainer group, which is there already."""
    started = time.perf_counter()
    result = run.ports.trainer.train(order, progress=run.ports.progress)
    ended = time.perf_counter()
    return Turn(
        steps_s=result.seconds,
        around_s=ended - started - result.seconds,
        num_tokens=result.num_tokens,
        first_loss=first_loss(metrics),
        last_loss=result.final_loss,
    )


def first_loss(metrics: Path) -> float:
    """Of the last training's first step."""
    events = read_lines(metrics)
    losses = [e["value"] for e in events if e["name"] == "train/loss" and e["labels"]["step"] == "1"]
    return float(losses[-1])


# -- the baseline ---------------------------------------------------------------------------------------------------


def write_in_order(run: OpenRun, order: TrainOrder, path: Path) -> None:
    """Writes the rows for TRL in the order in which our ranks take them, epoch after epoch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.backbone)
    template = Path(run.recipe.prompt.template or "").read_text(encoding="utf-8")
    rows, lengths = [], []
    for shown in read_demonstrations(str(run.recipe.data.demonstrations)):
        turn = {"role": "user", "content": template.replace("{question}", shown.question)}
        row = row_of([turn], render_response(shown.thought, shown.solution))
        rows.append(row)
        lengths.append(len(tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)))
    epochs = order.settings.epochs
    taken = row_order(lengths, epochs=epochs, global_batch_size=GLOBAL_BATCH, seed=order.seed)
    write_lines(path, (rows[index] for index in taken))


def their_turn(run: OpenRun, order: TrainOrder, rows: Path, out: Path) -> Turn:
    """Runs the script to its end."""
    options = {
        "model": run.backbone,
        "rows": rows,
        "out": out,
        "batch-size": order.settings.per_device_batch_size,
        "learning-rate": order.settings.optimizer.learning_rate,
        "seed": order.seed,
    }
    seconds = run_script("train", options, "--in-order")
    measured = json.loads((out / "train.json").read_text(encoding="utf-8"))
    return Turn(
        steps_s=measured["steps_s"],
        around_s=seconds - measured["steps_s"],
        num_tokens=measured["num_tokens"],
        first_loss=measured["first_loss"],
        last_loss=measured["last_loss"],
    )


def require_same(ours: Turn, theirs: Turn) -> None:
    """Raises unless both did the same.

    Raises:
        SystemExit: Other tokens, or losses that are not near each other.
    """
    sys.stderr.write(f"{ours}\n{theirs}\n")
    if ours.num_tokens != theirs.num_tokens:
        raise SystemExit(f"bench_trainer: {ours.num_tokens} tokens by us, {theirs.num_tokens} by bare TRL")
    if not (
        isclose(ours.first_loss, theirs.first_loss, rel_tol=EQUAL)
        and isclose(ours.last_loss, theirs.last_loss, rel_tol=NEAR)
    ):
        raise SystemExit("bench_trainer: the losses differ, see above")


def measure(rows: int, epochs: int, repeats: int) -> None:
    """Prints the figures."""
    turns = list[tuple[Turn, Turn]]()
    with tempfile.TemporaryDirectory() as name, open_run(recipe_of(rows, epochs), Path(name) / "run") as run:
        folder, first, metrics = Path(name), imitation(run), Path(name) / "run" / "metrics.jsonl"
        our_turn(run, replace(first, checkpoint=f"{first.checkpoint}-warm"), metrics)  # waits for the group to be up
        for number in range(repeats):
            order = replace(first, seed=number, checkpoint=f"{first.checkpoint}-{number}")
            write_in_order(run, order, folder / "rows.jsonl")
            ours = our_turn(run, order, metrics)
            theirs = their_turn(run, order, folder / "rows.jsonl", folder / f"bare-{number}")
            require_same(ours, theirs)
            turns.append((ours, theirs))
    print_medians(turns)


def print_medians(turns: Sequence[tuple[Turn, Turn]]) -> None:
    """The rate of the steps, and the time around them."""
    rates = [[turn.num_tokens / turn.steps_s for turn in side] for side in zip(*turns, strict=True)]
    around = [[turn.around_s for turn in side] for side in zip(*turns, strict=True)]
    for name, unit, (ours, theirs) in (("trainer_steps", "tokens/s", rates), ("trainer_around_steps", "s", around)):
        print_figure(name, value=statistics.median(ours), unit=unit, baseline=statistics.median(theirs))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    measure(arguments.rows, arguments.epochs, arguments.repeats)


if __name__ == "__main__":
    main()
