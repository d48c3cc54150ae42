"""The public names of still-ray, and runs for programs of one's own.

`from still_ray import NAME` finds a name here. None of them loads ray, torch or vllm before an actor, an engine or a
trainer is started.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from still_ray.algo.evaluation.summary import summarize
from still_ray.algo.exploration import choose_problems
from still_ray.algo.seeds import derived_seed
from still_ray.algo.selection.pairing import pair_trajectories
from still_ray.algo.selection.select import select_trajectories
from still_ray.algo.stages import Stage, plan_stages
from still_ray.cli.console.progress import ConsoleProgress, print_note
from still_ray.cli.preflight.run import ready_run
from still_ray.config import Recipe, TrainingSection, dump_recipe, load_recipe
from still_ray.config.methods import Expected, Method, Pool, Prepared, Request, RowSource, method_named
from still_ray.driver.evaluation import evaluate
from still_ray.driver.exploration import explore
from still_ray.driver.ports import EvaluateOrder, ExploreOrder, Ports, TrainOrder
from still_ray.driver.rounds import Driver
from still_ray.formats.demonstrations import read_demonstrations
from still_ray.formats.problems import read_problems
from still_ray.formats.responses.base import ResponseFormat, TemplateFacts
from still_ray.formats.responses.markers import parse_response, render_response
from still_ray.formats.responses.reading import read_response
from still_ray.store.metrics_log import MetricsLog
from still_ray.types import (
    Candidate,
    Demonstration,
    FormatDefect,
    InputError,
    Judgement,
    ParsedResponse,
    PreferencePair,
    Problem,
    RunError,
    StageKind,
    TrainingExample,
    Trajectory,
    TrajectoryKey,
    Turn,
    Verdict,
)
from still_ray.verifiers.pool import VerifierPool

__all__ = [
    "Candidate",
    "Demonstration",
    "Driver",
    "EvaluateOrder",
    "Expected",
    "ExploreOrder",
    "FormatDefect",
    "InputError",
    "Judgement",
    "Method",
    "OpenRun",
    "ParsedResponse",
    "Pool",
    "Ports",
    "PreferencePair",
    "Prepared",
    "Problem",
    "Recipe",
    "Request",
    "ResponseFormat",
    "RowSource",
    "RunError",
    "Stage",
    "StageKind",
    "TemplateFacts",
    "TrainOrder",
    "TrainingExample",
    "TrainingSection",
    "Trajectory",
    "TrajectoryKey",
    "Turn",
    "Verdict",
    "VerifierPool",
    "choose_problems",
    "derived_seed",
    "dump_recipe",
    "evaluate",
    "explore",
    "load_recipe",
    "method_named",
    "open_run",
    "pair_trajectories",
    "parse_response",
    "plan_stages",
    "read_demonstrations",
    "read_problems",
    "read_response",
    "render_response",
    "select_trajectories",
    "summarize",
]


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run that a program goes through by itself.

    Attributes:
        recipe: With the paths of generated files filled in.
        backbone: Model directory or hub id of policy version 0.
        stages: What the recipe asks for, in order; a program need not keep to it.
        ports: Store, data, explorer, trainer, weight sync and progress.
        baseline: Response format that the backbone has by itself, see `Driver`.
    """

    recipe: Recipe
    backbone: str
    stages: tuple[Stage, ...]
    ports: Ports
    baseline: str = ""


@contextmanager
def open_run(recipe: Recipe, run_dir: str | Path) -> Iterator[OpenRun]:
    """Checks a recipe and its files, starts the actors, and ends them with the block.

    Args:
        recipe: As `load_recipe` gives it.
        run_dir: The run directory; made if it is not there.

    Raises:
        InputError: The recipe, a file or the run directory is wrong.
        RunError: A failure policy was exhausted.
    """
    from still_ray.actors.session import RunInputs, Session

    with ready_run(recipe, str(run_dir), option="run_dir", note=print_note) as ready:
        directory, resolved, backbone = ready.directory, ready.resolved, ready.backbone
        inputs = RunInputs(
            recipe=resolved,
            backbone=backbone,
            data=ready.files,
            test_ids=ready.files.test.ids,
            at_hand=ready.at_hand,
            forgetting_ids=ready.files.forgetting_ids,
        )
        with ConsoleProgress(MetricsLog(directory.metrics)) as progress, Session(directory) as session:
            stdout = sys.stdout
            ports = session.ports(inputs, directory, progress)
            with redirect_stdout(stdout):  # a session sends it to a log, for commands whose stdout is their result
                yield OpenRun(
                    recipe=resolved,
                    backbone=backbone,
                    stages=plan_stages(resolved),
                    ports=ports,
                    baseline=ready.baseline,
                )
