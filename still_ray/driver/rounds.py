"""The round state machine.

000-backbone     evaluate
000-imitate      select -> train -> sync -> evaluate     with demonstrations
NNN-explore      choose problems -> sample, verify, commit
NNN-METHOD       prepare rows -> train -> sync -> evaluate    one stage for each training method of the round

An exploration that overlaps (`explore.overlap`) goes on in a thread beside the first training stage of the round before
its own, under the policy that stood before; the stage syncs its new version once the exploration has ended.

consumes     a recipe, and whatever the run directory already holds
produces     one folder a stage, its manifest last; summary.json
waits for    each stage in turn
unblocked by the same command again: a stage with a valid manifest is skipped, and the steps of an interrupted stage
             find what they left (stored trajectories, a whole checkpoint) and do only the rest
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypedDict

from still_ray.algo.evaluation.comparison import compared_with_backbone
from still_ray.algo.evaluation.summary import correct_by_problem
from still_ray.algo.exploration import Allotment, BudgetedAllotment, choose_problems
from still_ray.algo.planning.movement import TINY_SHARE
from still_ray.algo.seeds import derived_seed
from still_ray.algo.stages import Stage, advance, newest_trained, plan_stages
from still_ray.config import Recipe, TrainingSection, TrainingStep
from still_ray.config.methods import Request
from still_ray.driver.evaluation import evaluate
from still_ray.driver.exploration import BackgroundExploration, explore
from still_ray.driver.ports import EvaluateOrder, ExploreOrder, Ports, TrainOrder
from still_ray.facts import (
    BackboneFacts,
    EvaluationFacts,
    ExploreFacts,
    ForgettingFacts,
    SkippedFacts,
    StageFacts,
    SummaryLine,
    TrainFacts,
    summary_line,
)
from still_ray.types import RUN_STARTED, Event, StageKind, TrainResult, Verdict


class Driver:
    """Runs a recipe to its end, from wherever its run directory stands."""

    def __init__(self, recipe: Recipe, ports: Ports, *, backbone: str, baseline: str = "") -> None:
        """Prepares a run.

        Args:
            recipe: The resolved recipe.
            ports: The world.
            backbone: Model directory or hub id of policy version 0.
            baseline: Response format that the backbone has by itself, and is asked for first, since nobody has taught
                it the run's yet; "": the run's alone.
        """
        self._baseline = baseline
        self._recipe = recipe
        self._ports = ports
        self._backbone = backbone
        self._plan = plan_stages(recipe)
        self._completed: dict[str, StageFacts] = {}

    def run(self) -> list[SummaryLine]:
        """Runs every stage that is not complete; returns the lines of summary.json."""
        self._completed = dict(self._ports.store.completed())
        self._ports.progress.event(Event(name=RUN_STARTED, value=float(len(self._completed))))
        while (stage := advance(self._plan, self._completed)) is not None:
            version, checkpoint = self._policy()
            if stage.beside:
                self._run_side_by_side(stage, version, checkpoint)
            else:
                self._ports.store.begin(stage, version)
                self._finish(stage, self._run_stage(stage, version, checkpoint))
        self._ports.store.write_summary(self._summary())  # once more: the last process may have died before it could
        self._ports.store.end(self._policy()[0])
        self._ports.reporter.refresh()
        return self._summary()

    def _finish(self, stage: Stage, facts: StageFacts) -> None:
        self._ports.store.finish(stage, facts)
        self._completed[stage.name] = facts
        self._ports.store.write_summary(self._summary())
        self._ports.reporter.refresh()

    def _run_side_by_side(self, exploration: Stage, version: int, checkpoint: str) -> None:
        """Explores while the policy is trained further; that is complete before the new version is served."""
        stage = next(stage for stage in self._plan if stage.name == exploration.beside)
        self._ports.store.begin(exploration, version)
        order = self._exploration(exploration, version, checkpoint)
        self._ports.store.begin(stage, version, beside=exploration)
        with BackgroundExploration(self._ports, order, beside=stage.name) as background:

            def complete_exploration() -> None:
                self._ports.progress.doing(f"waiting for {exploration.name}, which samples beside it")
                allotment, seconds = background.result()
                facts = self._exploration_facts(order, version, allotment)
                self._finish(exploration, replace(facts, seconds=seconds))
                self._ports.store.begin(stage, version)  # which goes on alone

            facts = self._run_stage(stage, version, checkpoint, before_sync=complete_exploration)
        self._finish(stage, facts)

    def _run_stage(
        self, stage: Stage, version: int, checkpoint: str, *, before_sync: Callable[[], None] = lambda: None
    ) -> StageFacts:
        started = time.monotonic()
        facts: StageFacts
        if stage.kind is StageKind.BACKBONE:
            facts = self._evaluate_backbone(stage)
        elif stage.kind is StageKind.EXPLORE:
            facts = self._explore(stage, version, checkpoint)
        else:
            facts = self._train_stage(stage, version, checkpoint, before_sync)
        seconds = round(time.monotonic() - started, 1)
        self._event(stage, "stage/seconds", seconds)
        return replace(facts, seconds=seconds)

    def _policy(self) -> tuple[int, str]:
        """The newest policy version and its checkpoint."""
        stage = newest_trained(self._plan, self._completed)
        if stage is None:
            return 0, self._backbone
        return stage.policy_version, self._ports.store.checkpoint(stage)

    # -- stages ---------------------------------------------------------------------------------------------------

    def _evaluate_backbone(self, stage: Stage) -> BackboneFacts:
        self._ports.progress.stage_started(stage, "evaluate the backbone")
        self._ports.sync.sync(0, self._backbone)
        return replace(self._backbone_facts(stage), forgetting=self._forgetting(stage))

    def _backbone_facts(self, stage: Stage) -> BackboneFacts:
        if not self._baseline:
            return BackboneFacts(**_head(stage, 0), evaluation=self._evaluate(stage))
        self._ports.progress.noted(f"asked for the format {self._baseline}, as it comes:")
        evaluation = self._evaluate(stage, form=self._baseline)
        self._ports.progress.noted("asked as the run asks what it trains; the difference is form:")
        order = EvaluateOrder(stage=stage, config=self._recipe.evaluate)
        _, in_form = evaluate(self._ports.explorer, order, self._ports.progress)
        return BackboneFacts(**_head(stage, 0), evaluation=evaluation, baseline=self._baseline, in_form=in_form)

    def _explore(self, stage: Stage, version: int, checkpoint: str) -> ExploreFacts:
        order = self._exploration(stage, version, checkpoint)
        return self._exploration_facts(order, version, explore(self._ports, order))

    def _exploration(self, stage: Stage, version: int, checkpoint: str) -> ExploreOrder:
        """Chooses the problems, and brings the replicas to the policy that samples."""
        config = dict(self._recipe.explorations)[stage.round]
        problem_ids = choose_problems(
            self._ports.data.problem_levels(),
            config,
            solved=self._solved(stage.round),
            seed=self._recipe.seed,
            round_number=stage.round,
        )
        expected = len(problem_ids) * config.samples_per_problem
        at_most = "at most " if config.adaptive or config.max_sampled_tokens else ""
        self._ports.progress.stage_started(stage, f"explore {len(problem_ids)} problems, {at_most}{expected} rollouts")
        if problem_ids:
            self._ports.sync.sync(version, checkpoint)
        return ExploreOrder(stage=stage, problem_ids=tuple(problem_ids), config=config, seed=self._recipe.seed)

    def _exploration_facts(self, order: ExploreOrder, version: int, allotment: Allotment) -> ExploreFacts:
        """What a finished round leaves, with what its waves or its budget left out."""
        facts = self._round_facts(order.stage, version, len(order.problem_ids))
        if isinstance(allotment, BudgetedAllotment):
            budget = allotment.facts()
            self._ports.progress.noted(
                f"{budget.num_sampled_tokens:,} tokens sampled of explore.max_sampled_tokens "
                f"{budget.max_sampled_tokens:,}; {budget.num_unaffordable} problems would have got another wave"
            )
            facts = replace(facts, budget=budget)
        elif order.config.adaptive:
            expected = len(order.problem_ids) * order.config.samples_per_problem
            self._ports.progress.noted(f"{allotment.num_saved} of {expected} rollouts saved: their problems had enough")
        return replace(facts, num_rollouts_saved=allotment.num_saved)

    def _round_facts(self, stage: Stage, version: int, num_problems: int) -> ExploreFacts:
        """Counts of a finished round, from the store: verdicts, and problems with a correct response."""
        verdicts = {verdict.value: 0 for verdict in Verdict}
        solved = set()
        for candidate in self._ports.store.candidates([stage.round]):
            verdicts[candidate.verdict.value] += 1
            if candidate.verdict is Verdict.CORRECT:
                solved.add(candidate.key.problem_id)
        num_rollouts = sum(verdicts.values())
        if num_rollouts:
            self._ports.progress.noted(
                f"{num_rollouts} rollouts: {_verdict_counts(verdicts)}; {len(solved)} of {num_problems} problems "
                f"solved, {num_problems - len(solved)} without a correct response"
            )
        return ExploreFacts(
            **_head(stage, version),
            num_problems=num_problems,
            num_rollouts=num_rollouts,
            verdicts=verdicts,
            num_solved=len(solved),
        )

    def _train_stage(
        self, stage: Stage, version: int, checkpoint: str, before_sync: Callable[[], None]
    ) -> TrainFacts | SkippedFacts:
        step = self._recipe.step(stage.round, stage.method)
        self._ports.progress.stage_started(stage, f"train by {step.method.title}")
        self._ports.progress.doing("choosing the rows to learn from")
        prepared = step.method.prepare(self._ports.pool, self._request(stage, step))
        if prepared.note:
            self._ports.progress.noted(prepared.note)
        if prepared.skipped:
            self._ports.progress.noted(f"skipped: {prepared.skipped}")
            before_sync()
            return SkippedFacts(**_head(stage, version), skipped=prepared.skipped, data=dict(prepared.counts))
        self._ports.store.write_rows(stage, prepared.rows, step.method.record)
        order = TrainOrder(
            stage=stage,
            method=step.named,
            settings=step.settings,
            init_model=self._backbone if step.settings.init == "backbone" else checkpoint,
            reference_model=self._reference(step),
            data_path=self._ports.store.data_path(stage),
            checkpoint=self._ports.store.checkpoint(stage),
            seed=derived_seed(self._recipe.seed, "train", stage.name),
        )
        result = self._ports.trainer.train(order, progress=self._ports.progress)
        before_sync()
        report = self._ports.sync.sync(stage.policy_version, order.checkpoint)
        self._ports.progress.noted(
            f"{result.num_examples} rows (left out: {result.num_skipped} too long, {result.num_control} with control "
            f"tokens as text), "
            f"{result.steps} steps, loss {result.final_loss:.3f}{_changed_text(result)}; version "
            f"{report.policy_version} on {report.num_replicas} replicas in {report.seconds:.1f} s by {report.transport}"
        )
        self._event(stage, "sync/seconds", report.seconds)
        self._movement(stage, result)
        return TrainFacts(
            **_head(stage, stage.policy_version),
            data=dict(prepared.counts),
            training=result,
            sync=report,
            evaluation=self._evaluate(stage),
            forgetting=self._forgetting(stage),
        )

    def _movement(self, stage: Stage, result: TrainResult) -> None:
        """Says how much of the model the stage changed, and warns where that is hardly anything."""
        share = result.share_changed
        if share is None:
            return
        self._event(stage, "train/share_changed", share)
        if share < TINY_SHARE:
            self._ports.progress.noted(
                f"warning: {stage.name} changed {share:.2%} of the weights: the new version is hardly another model. "
                "A bfloat16 weight that moves by less than 1/512 of itself is rounded back; give the stage a higher "
                "learning_rate, more epochs or a smaller global_batch_size (still-ray plan says what is enough)"
            )

    # -- steps ----------------------------------------------------------------------------------------------------

    def _request(self, stage: Stage, step: TrainingStep) -> Request[TrainingSection]:
        explored = self._completed.get(f"{stage.round:03d}-{StageKind.EXPLORE}")
        return Request(
            settings=step.settings,
            explored=tuple(number for number, _ in self._recipe.explorations if number <= stage.round),
            num_explored=explored.num_problems if isinstance(explored, ExploreFacts) else None,
            seed=derived_seed(self._recipe.seed, stage.name),
        )

    def _reference(self, step: TrainingStep) -> str:
        """The model that a stage's loss compares with; "" for the one that it starts from, or for none."""
        name = step.method.reference(step.settings)
        if name in ("", "start"):
            return ""
        until = [stage.name for stage in self._plan].index(name) + 1 if name != "backbone" else 0
        trained = newest_trained(self._plan[:until], self._completed)  # a stage that was skipped left no checkpoint
        return self._backbone if trained is None else self._ports.store.checkpoint(trained)

    def _evaluate(self, stage: Stage, *, form: str = "") -> EvaluationFacts:
        order = EvaluateOrder(stage=stage, config=self._recipe.evaluate, form=form)
        rows, summary = evaluate(self._ports.explorer, order, self._ports.progress)
        self._ports.store.write_evaluation(stage, rows, summary)
        self._event(stage, "evaluate/accuracy", summary.accuracy)
        return summary

    def _forgetting(self, stage: Stage) -> ForgettingFacts | None:
        """Asks the general problems, and gives an alarm where the policy has lost what the backbone could."""
        asked = self._recipe.data.forgetting
        if asked is None:
            return None
        config = self._recipe.evaluate.model_copy(update={"num_problems": asked.num_problems})
        order = EvaluateOrder(stage=stage, config=config, general=True)
        rows, summary = evaluate(self._ports.explorer, order, self._ports.progress)
        self._ports.store.write_evaluation(stage, rows, summary, general=True)
        backbone = None
        if stage.kind is not StageKind.BACKBONE:
            backbone = correct_by_problem(self._ports.store.general_responses(self._plan[0]))
        found = compared_with_backbone(summary, backbone, correct_by_problem(rows), alpha=asked.alpha)
        self._event(stage, "evaluate/general_accuracy", summary.accuracy)
        if found.alarm:
            self._ports.progress.noted(f"warning: {stage.name} {_forgets(found, self._completed, asked.alpha)}")
        return found

    def _solved(self, before_round: int) -> set[str]:
        return {
            candidate.key.problem_id
            for candidate in self._ports.store.candidates(range(1, before_round))
            if candidate.verdict is Verdict.CORRECT
        }

    def _summary(self) -> list[SummaryLine]:
        completed = (self._completed[stage.name] for stage in self._plan if stage.name in self._completed)
        return [line for facts in completed if (line := summary_line(facts)) is not None]

    def _event(self, stage: Stage, name: str, value: float) -> None:
        self._ports.progress.event(Event(name=name, value=value, labels={"stage": stage.name}))


def _verdict_counts(verdicts: Mapping[str, int]) -> str:
    """Every verdict that there is, e.g. "7 correct, 1 unparsable"."""
    return ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items() if number or verdict == "correct")


def _forgets(found: ForgettingFacts, completed: Mapping[str, StageFacts], alpha: float) -> str:
    backbone = next(facts.general for facts in completed.values() if facts.general is not None)
    return (
        f"forgets: {found.evaluation.accuracy:.1%} on the general problems, {backbone.evaluation.accuracy:.1%} by the "
        f"backbone; {found.num_lost} problems lost, {found.num_gained} gained (exact paired test: p = "
        f"{found.p_value:.2g}, data.forgetting.alpha {alpha:g}). Mix general rows into data.demonstrations, or train "
        "with a lower learning_rate or fewer epochs"
    )


def _changed_text(result: TrainResult) -> str:
    return "" if result.share_changed is None else f", {result.share_changed:.1%} of the weights changed"


class _Head(TypedDict):
    """The fields of `StageFacts` that every kind of stage has."""

    stage: str
    kind: str
    round: int
    seconds: float
    policy_version: int


def _head(stage: Stage, policy_version: int) -> _Head:
    """Of a stage that serves a version; its seconds are known once it is over."""
    return _Head(stage=stage.name, kind=stage.step, round=stage.round, seconds=0.0, policy_version=policy_version)
