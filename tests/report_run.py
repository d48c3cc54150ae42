"""Run directories for tests of the report, written by the real store from trajectories that the tests make up."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from still_ray.algo.evaluation.summary import summarize
from still_ray.algo.stages import Stage, plan_stages
from still_ray.config import dump_recipe
from still_ray.facts import EvaluationFacts
from still_ray.location import Location, ObjectPath
from still_ray.methods.dpo import preference_pairs
from still_ray.methods.sft import training_examples
from still_ray.report.facts import Inputs, RunFacts, read_run
from still_ray.store.atomic import write_text
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import (
    FinishReason,
    FormatDefect,
    PreferencePair,
    SyncReport,
    TrainingExample,
    TrainResult,
    Trajectory,
    TrajectoryKey,
    Verdict,
)
from tests.fakes import make_demonstration, make_recipe, make_trajectory, stage_facts

RECIPE = make_recipe(name="made up", rounds=[{"method": "sft"}, {"method": "dpo"}])
PLAN = plan_stages(RECIPE)
BACKBONE, IMITATE, EXPLORE_1, SFT, EXPLORE_2, DPO = PLAN
SYNC = SyncReport(
    policy_version=1,
    transport="checkpoint",
    num_replicas=2,
    num_bytes=0,
    seconds=1.5,
    max_logprob_difference=1e-5,
    probe_shift=0.5,
)
TRAINED = TrainResult(
    steps=4,
    num_examples=3,
    num_skipped=1,
    num_control=2,
    num_tokens=1200,
    final_loss=0.5,
    seconds=6.0,
    share_changed=0.125,
)
STAGE_SECONDS = 20.0
EPOCH = 1_800_000_000.0
"""When the first stage of a made-up run begins, Unix seconds."""


def response_text(thought: str, solution: str) -> str:
    """A well-formed response."""
    return (
        f"<|begin_of_thought|>\n\n{thought}\n\n<|end_of_thought|>\n\n"
        f"<|begin_of_solution|>\n\n{solution}\n\n<|end_of_solution|>"
    )


def rollout(problem: str, sample: int, verdict: str, *, round_number: int = 1, **changes: Any) -> Trajectory:
    """A trajectory of a verdict, with a text to match."""
    thought, solution = f"thought {sample} on {problem}", r"\boxed{7}"
    values = {
        "verdict": Verdict(verdict),
        "thought": thought,
        "solution": solution,
        "response": response_text(thought, solution),
        "policy_version": round_number,
    }
    return make_trajectory(problem, sample, round_number=round_number, **{**values, **changes})


def truncated(problem: str, sample: int, *, round_number: int = 1) -> Trajectory:
    """A response that met the token limit within its thought."""
    return rollout(
        problem,
        sample,
        "unparsable",
        round_number=round_number,
        finish_reason=FinishReason.LENGTH,
        defect=FormatDefect.TRUNCATED.value,
        response="<|begin_of_thought|>\n\nand then, and then, and",
        extracted=None,
    )


class ReportRun:
    """A run directory in the making."""

    def __init__(self, root: Location) -> None:
        self.directory = RunDirectory(root)
        if not isinstance(root, ObjectPath):
            root.mkdir(parents=True, exist_ok=True)
        self.store = RunStore(self.directory, PLAN)
        self._lines: list[str] = []
        self._now = EPOCH
        write_text(self.directory.recipe, dump_recipe(RECIPE, {"ray": "2.60.0"}))
        self.store.begin(BACKBONE, 0)
        self.event("run/started", 0.0)

    def event(self, name: str, value: float, **labels: str) -> None:
        """A line of metrics.jsonl, now."""
        self._lines.append(json.dumps({"time": self._now, "name": name, "value": value, "labels": labels}))
        write_text(self.directory.metrics, "".join(f"{line}\n" for line in self._lines))

    def evaluate(self, stage: Stage, correct: Mapping[str, bool], **changes: Any) -> EvaluationFacts:
        """A greedy evaluation."""
        rows = [
            rollout(problem, 0, "correct" if right else "incorrect", round_number=0, **changes)
            for problem, right in correct.items()
        ]
        summary = summarize(rows)
        self.store.write_evaluation(stage, rows, summary)
        return summary

    def explore(self, stage: Stage, rows: Sequence[Trajectory], **facts: Any) -> None:
        """A complete explore stage."""
        self.store.begin(stage, stage.policy_version)
        self.store.commit(stage.round, rows)
        self.store.close_round(stage.round)
        self.finish(stage, num_rollouts_saved=0, **facts)

    def train(
        self,
        stage: Stage,
        *,
        chosen: Iterable[TrajectoryKey] = (),
        pairs: Sequence[tuple[TrajectoryKey, TrajectoryKey]] = (),
        evaluation: EvaluationFacts,
        num_demonstrations: int = 2,
        num_copies: int = 0,
        datasets: Sequence[str] = ("",),
        **facts: Any,
    ) -> None:
        """A complete training stage."""
        self.store.begin(stage, stage.policy_version)
        data: dict[str, Any] = {}
        if pairs:
            sides = self.store.trajectories([side for pair in pairs for side in pair])
            self.store.write_rows(stage, preference_pairs(sides), PreferencePair)
            data = {"num_pairs": len(pairs), "num_only_correct": 1, "num_only_incorrect": 0}
        else:
            data = {"num_as_earlier": num_copies}
            taught = [
                make_demonstration(f"d{number}", dataset=datasets[number % len(datasets)])
                for number in range(num_demonstrations)
            ]
            rows = training_examples(taught, self.store.trajectories(list(chosen)))
            self.store.write_rows(stage, rows, TrainingExample)
        for step, loss in ((1, 2.0), (2, 1.0), (4, 0.5)):
            self.event("train/loss", loss, stage=stage.name, step=str(step), total="4")
        sync = replace(SYNC, policy_version=stage.policy_version)
        self.finish(stage, data=data, training=TRAINED, sync=sync, evaluation=evaluation, **facts)

    def finish(self, stage: Stage, **facts: Any) -> None:
        """Writes the manifest of a stage that took 20 s."""
        self._now += STAGE_SECONDS
        self.event("stage/seconds", STAGE_SECONDS, stage=stage.name)
        self.store.finish(stage, stage_facts(stage, seconds=STAGE_SECONDS, **facts))

    def facts(self, inputs: Inputs = Inputs()) -> RunFacts:  # noqa: B008 - frozen
        """What the report reads of it."""
        return read_run(self.directory, inputs)


def whole_run(root: Location) -> ReportRun:
    """A complete run of two rounds, small enough to be worked out by hand.

    Round 1 samples three problems twice: both correct; one of two; a truncated response and a timeout. Round 2 samples
    two of them once more each.
    """
    run = ReportRun(root)
    run.finish(BACKBONE, evaluation=run.evaluate(BACKBONE, {"t1": False, "t2": False, "t3": False, "t4": False}))
    run.train(IMITATE, evaluation=run.evaluate(IMITATE, {"t1": True, "t2": False, "t3": False, "t4": False}))
    run.explore(EXPLORE_1, first_round(), num_problems=3)
    chosen = [TrajectoryKey(1, "p1", 0), TrajectoryKey(1, "p2", 0)]
    right = run.evaluate(SFT, {"t1": True, "t2": True, "t3": True, "t4": False})
    run.train(SFT, chosen=chosen, evaluation=right, num_copies=1)
    run.explore(EXPLORE_2, second_round(), num_problems=2)
    pair = (TrajectoryKey(2, "p2", 0), TrajectoryKey(2, "p2", 1))
    run.train(DPO, pairs=[pair], evaluation=run.evaluate(DPO, {"t1": True, "t2": True, "t3": True, "t4": True}))
    run.store.end(3)
    return run


def first_round() -> list[Trajectory]:
    """Six responses to three problems."""
    return [
        rollout("p1", 0, "correct", perplexity=1.1),
        rollout("p1", 1, "correct", perplexity=1.3),
        rollout("p2", 0, "correct", perplexity=1.2),
        rollout("p2", 1, "incorrect", perplexity=2.0),
        truncated("p3", 0),
        rollout("p3", 1, "timeout"),
    ]


def second_round() -> list[Trajectory]:
    """Four responses to two of the problems."""
    return [
        rollout("p1", 0, "correct", round_number=2),
        rollout("p1", 1, "correct", round_number=2),
        rollout("p2", 0, "correct", round_number=2, perplexity=1.4),
        rollout("p2", 1, "incorrect", round_number=2, perplexity=1.05),
    ]
