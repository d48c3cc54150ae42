"""Hand-written stand-ins that the tests share: records with sensible values, and the driver's ports in memory.

`Disk` is what survives a crash; the ports over it are one process each and forget everything else. A `Fuse` ends such a
process at any port call, before or after the call took effect.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar, cast

from still_ray.algo.evaluation.majority import AnswerPair
from still_ray.algo.evaluation.summary import evaluation_request
from still_ray.algo.exploration import Allotment, rollout_request
from still_ray.algo.partial_responses import PartialResponses
from still_ray.algo.seeds import derived_seed
from still_ray.algo.stages import Stage, plan_stages
from still_ray.config import Recipe
from still_ray.driver.ports import Commit, EvaluateOrder, ExploreOrder, OnLoad, Ports, Progress, TrainOrder
from still_ray.facts import (
    BackboneFacts,
    EvaluationFacts,
    ExploreFacts,
    SkippedFacts,
    StageFacts,
    SummaryLine,
    TrainFacts,
    facts_from_json,
    facts_to_json,
    summary_to_json,
)
from still_ray.types import (
    Candidate,
    Demonstration,
    Domain,
    Event,
    FinishReason,
    LearntDigests,
    PartialResponse,
    Problem,
    StageKind,
    SyncReport,
    TrainProgress,
    TrainResult,
    Trajectory,
    TrajectoryKey,
    Verdict,
    candidate_of,
    packed_tokens,
    text_digest,
)

BACKBONE = "/models/backbone"
FLUSH_ROWS = 5
"""Rows that the in-memory store buffers before they are durable, like the real one does."""

# -- records ----------------------------------------------------------------------------------------------------------


def make_problem(problem_id: str = "p1", **changes: Any) -> Problem:
    """A problem."""
    values = {"id": problem_id, "domain": Domain.MATH, "question": f"What is {problem_id}?", "answer": "7"}
    return Problem(**{**values, **changes})


def make_demonstration(demonstration_id: str = "d1", **changes: Any) -> Demonstration:
    """A demonstration."""
    values = {
        "id": demonstration_id,
        "domain": "math",
        "question": f"What is {demonstration_id}?",
        "thought": "First this, then that.",
        "solution": r"\boxed{7}",
    }
    return Demonstration(**{**values, **changes})


def make_trajectory(
    problem_id: str = "p1", sample_index: int = 0, *, round_number: int = 1, **changes: Any
) -> Trajectory:
    """A correct, well-formed trajectory."""
    values = {
        "round": round_number,
        "problem_id": problem_id,
        "sample_index": sample_index,
        "domain": "math",
        "question": f"What is {problem_id}?",
        "answer": "7",
        "response": "a thought and a solution",
        "thought": f"thought {sample_index} on {problem_id}",
        "solution": r"\boxed{7}",
        "extracted": "7",
        "verdict": Verdict.CORRECT,
        "policy_version": 1,
        "seed": 11,
        "num_tokens": 20,
        "thought_tokens": 12,
        "mean_logprob": -0.5,
        "perplexity": 1.6487212707001282,
        "finish_reason": FinishReason.STOP,
        "sampler": "replica-0",
        "latency_s": 0.25,
        "created_at": "2026-01-02T03:04:05+00:00",
    }
    return Trajectory(**{**values, **changes})


def make_part(problem_id: str = "p1", sample_index: int = 0, *, start: int = 0, **changes: Any) -> PartialResponse:
    """Four tokens of a response, numbered by their place in it; `ids` gives others."""
    ids = changes.pop("ids", range(start, start + 4))
    values = {
        "round": 1,
        "problem_id": problem_id,
        "sample_index": sample_index,
        "policy_version": 1,
        "start": start,
        "tokens": packed_tokens(tuple(ids)),
        "sum_logprob": -0.5 * len(ids),
        "latency_s": 0.1 * (start + len(ids)),
    }
    return PartialResponse(**{**values, **changes})


def make_digests(text: str, thought: str | None = None) -> LearntDigests:
    """Digests of a text, the thought too if it is another's."""
    return LearntDigests(whole=text_digest(text)[:16], thought=text_digest(text if thought is None else thought)[:16])


def make_candidate(
    problem_id: str = "p1", sample_index: int = 0, *, round_number: int = 1, **changes: Any
) -> Candidate:
    """A correct, well-formed candidate."""
    values = {
        "key": TrajectoryKey(round_number, problem_id, sample_index),
        "domain": "math",
        "verdict": Verdict.CORRECT,
        "finish_reason": FinishReason.STOP,
        "well_formed": True,
        "thought_chars": 100,
        "perplexity": 1.5,
        "digests": make_digests(f"{round_number}/{problem_id}/{sample_index}"),
    }
    return Candidate(**{**values, **changes})


def raw_recipe(**sections: Any) -> dict[str, Any]:
    """The least that a recipe needs, as YAML would give it, with more sections."""
    return {
        "model": {"path": BACKBONE},
        "data": {"demonstrations": "/data/d.jsonl", "problems": "/data/p.jsonl", "test": "/data/t.jsonl"},
        "rounds": [],
        **sections,
    }


def make_recipe(**sections: Any) -> Recipe:
    """A valid recipe with more sections."""
    return Recipe.model_validate(raw_recipe(**sections))


def train_progress(**changes: Any) -> TrainProgress:
    """The only report of a stage of one step."""
    values = {
        "step": 1,
        "total_steps": 1,
        "loss": 0.5,
        "learning_rate": 1e-5,
        "tokens_per_s": 1234.0,
        "epoch": 1.0,
        "metrics": {},
    }
    return TrainProgress(**{**values, **changes})


def evaluation_facts(**changes: Any) -> EvaluationFacts:
    """Half of ten greedy responses correct."""
    values = {
        "num_problems": 10,
        "num_correct": 5,
        "accuracy": 0.5,
        "ci95": (0.25, 0.75),
        "mean_thought_tokens": 12.5,
        "truncation_rate": 0.0,
        "verdicts": {**{verdict.value: 0 for verdict in Verdict}, "correct": 5, "incorrect": 5},
        "num_samples": 1,
        "num_responses": 10,
        "num_truncated": 0,
        "ci95_method": "exact binomial",
        "pass_at_k": {},
        "majority": None,
        "thought_tokens": {"p10": 1, "median": 12, "p90": 20, "max": 30},
    }
    return EvaluationFacts(**{**values, **changes})


def stage_facts(stage: Stage, **changes: Any) -> StageFacts:
    """What a stage leaves; with `skipped`, one that had nothing to train on."""
    values: dict[str, Any] = {
        "stage": stage.name,
        "kind": stage.step,
        "round": stage.round,
        "seconds": 20.0,
        "policy_version": stage.policy_version,
    }
    if stage.kind is StageKind.BACKBONE:
        return BackboneFacts(**{**values, "evaluation": evaluation_facts(), **changes})
    if stage.kind is StageKind.EXPLORE:
        counts = {"num_problems": 0, "num_rollouts": 0, "verdicts": {}, "num_solved": 0}
        return ExploreFacts(**{**values, **counts, **changes})
    if "skipped" in changes:
        return SkippedFacts(**{**values, **changes})
    trained = TrainResult(steps=1, num_examples=1, num_skipped=0, num_tokens=10, final_loss=0.5, seconds=1.0)
    sync = SyncReport(
        policy_version=stage.policy_version,
        transport="checkpoint",
        num_replicas=1,
        num_bytes=0,
        seconds=0.5,
        max_logprob_difference=0.0,
        probe_shift=1.0,
    )
    made = {"data": {}, "training": trained, "sync": sync, "evaluation": evaluation_facts()}
    return TrainFacts(**{**values, **made, **changes})


# -- crashes ----------------------------------------------------------------------------------------------------------

Port = TypeVar("Port")


class Crashed(BaseException):
    """The process ended here; nothing in the driver may catch it."""


@dataclass
class Fuse:
    """Counts the moments just before and just after each port call, and ends the process at one of them.

    Attributes:
        blows_at: The moment, 0-based, or None for never.
        moments: Names of the moments so far.
    """

    blows_at: int | None = None
    moments: list[str] = field(default_factory=list)

    def tick(self, moment: str) -> None:
        """One moment passes."""
        self.moments.append(moment)
        if self.blows_at is not None and len(self.moments) > self.blows_at:  # whichever thread is next
            raise Crashed(moment)


class _Fused:
    """A port whose every call ticks a fuse."""

    def __init__(self, port: object, fuse: Fuse) -> None:
        self._port = port
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        label = f"{type(self._port).__name__}.{name}"

        def call(*args: Any, **options: Any) -> Any:
            self._fuse.tick(f"before {label}")
            result = method(*args, **options)
            self._fuse.tick(f"after {label}")
            return result

        return call


def _fused(port: Port, fuse: Fuse) -> Port:
    return cast(Port, _Fused(port, fuse))


# -- the world --------------------------------------------------------------------------------------------------------

Skill = Callable[[TrajectoryKey, int], Verdict]
"""The verdict of a sample under a policy version."""


def mixed_skill(key: TrajectoryKey, policy_version: int) -> Verdict:
    """Sometimes right, sometimes wrong, and now and then neither; better with every version."""
    draw = random.Random(derived_seed("skill", *key, policy_version)).random() * (1 + policy_version / 10)
    if draw < 0.1:
        return Verdict.UNPARSABLE
    return Verdict.CORRECT if draw > 0.6 else Verdict.INCORRECT


@dataclass
class Disk:
    """What survives a crash, and a log of what must happen only once.

    Attributes:
        manifests: Facts by stage name, as JSON text.
        trajectories: Durable trajectories by round.
        data: What each training stage learns from, by path: ids of its rows.
        checkpoints: Recorded result by path.
        evaluations: Accuracy by stage name.
        general: Responses to the general problems by stage name.
        summary: Last summary.json.
        state: Last state.json.
        trained: Orders carried out, in order, repetitions included.
        finished: Manifests written, in order, repetitions included.
        begun: Stages begun with the policy version, repetitions included.
        weak_syncs: Versions whose syncs are proved weakly.
    """

    manifests: dict[str, str] = field(default_factory=dict)
    trajectories: dict[int, dict[TrajectoryKey, Trajectory]] = field(default_factory=dict)
    data: dict[str, tuple[str, ...]] = field(default_factory=dict)
    checkpoints: dict[str, TrainResult] = field(default_factory=dict)
    evaluations: dict[str, float] = field(default_factory=dict)
    general: dict[str, list[Trajectory]] = field(default_factory=dict)
    summary: list[Mapping[str, Any]] = field(default_factory=list)
    state: tuple[str, int] = ("", -1)
    weak_syncs: set[int] = field(default_factory=set)
    trained: list[TrainOrder] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    begun: list[tuple[str, int]] = field(default_factory=list)

    def facts(self, stage: str) -> dict[str, Any]:
        """The manifest of a stage."""
        return cast(dict[str, Any], json.loads(self.manifests[stage]))

    def result(self) -> dict[str, Any]:
        """Everything that a run computes, without clocks and without the logs: equal for equal runs."""
        facts = {name: _untimed(json.loads(text)) for name, text in self.manifests.items()}
        return {
            "facts": facts,
            "trajectories": self.trajectories,
            "data": self.data,
            "checkpoints": self.checkpoints,
            "evaluations": self.evaluations,
            "general": self.general,
            "summary": [_untimed(line) for line in self.summary],
            "state": self.state,
        }


def _untimed(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "seconds"}


class FakeStore:
    """The run directory: buffers trajectories in memory like the real store, everything else is durable at once."""

    def __init__(self, disk: Disk, recipe: Recipe) -> None:
        self._disk = disk
        self._plan = plan_stages(recipe)
        self._methods = {method.name: method for method in recipe.methods.values()}
        self._buffer: list[Trajectory] = []

    def completed(self) -> dict[str, StageFacts]:
        done: dict[str, StageFacts] = {}
        for stage in self._plan:
            if stage.name not in self._disk.manifests:
                break
            done[stage.name] = facts_from_json(self._disk.facts(stage.name), where=stage.name)
        return done

    def begin(self, stage: Stage, policy_version: int, *, beside: Stage | None = None) -> None:
        self._disk.begun.append((stage.name, policy_version))
        self._disk.state = (stage.name, policy_version)

    def finish(self, stage: Stage, facts: StageFacts) -> None:
        self._disk.manifests[stage.name] = json.dumps(facts_to_json(facts))
        self._disk.finished.append(stage.name)

    def end(self, policy_version: int) -> None:
        self._disk.state = ("complete", policy_version)

    def explored(self, round_number: int) -> Mapping[TrajectoryKey, Verdict]:
        return {row.key: row.verdict for row in self._rows(round_number)}

    def commit(self, round_number: int, rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        seen = set(self.explored(round_number))
        fresh = []
        for row in rows:
            assert row.round == round_number
            if row.key not in seen:
                seen.add(row.key)
                fresh.append(row)
        self._buffer += fresh
        if len(self._buffer) >= FLUSH_ROWS:
            self._flush()
        return fresh

    def sampled_tokens(self, round_number: int) -> Mapping[TrajectoryKey, int]:
        return {row.key: row.num_tokens for row in self._rows(round_number)}

    def partial_responses(self, round_number: int) -> PartialResponses:
        return PartialResponses()

    def close_round(self, round_number: int) -> None:
        self._flush()
        rows = self._disk.trajectories.get(round_number, {})
        self._disk.trajectories[round_number] = dict(sorted(rows.items()))

    def candidates(self, rounds: Iterable[int]) -> Iterator[Candidate]:
        for number in rounds:
            for row in self._rows(number):
                yield candidate_of(row)

    def trajectories(self, keys: Sequence[TrajectoryKey]) -> Iterator[Trajectory]:
        rows = {row.key: row for number in {key.round for key in keys} for row in self._rows(number)}
        return (rows[key] for key in keys)

    def write_rows(self, stage: Stage, rows: Iterable[object], record: type) -> int:
        method = self._methods[stage.method]
        sources = [method.source(row) for row in rows]
        ids = tuple(" > ".join(source.ids) or source.demonstration for source in sources)
        self._disk.data[self.data_path(stage)] = ids
        return len(ids)

    def data_path(self, stage: Stage) -> str:
        return f"{stage.name}/data"

    def checkpoint(self, stage: Stage) -> str:
        return f"{stage.name}/checkpoint"

    def write_evaluation(
        self, stage: Stage, rows: Sequence[Trajectory], evaluation: EvaluationFacts, *, general: bool = False
    ) -> None:
        assert evaluation.num_problems == len(rows)
        if general:
            self._disk.general[stage.name] = list(rows)
        else:
            self._disk.evaluations[stage.name] = evaluation.accuracy

    def general_responses(self, stage: Stage) -> Sequence[Trajectory]:
        return self._disk.general[stage.name]

    def write_summary(self, lines: Sequence[SummaryLine]) -> None:
        self._disk.summary = json.loads(json.dumps([summary_to_json(line) for line in lines]))

    def _rows(self, round_number: int) -> list[Trajectory]:
        durable = self._disk.trajectories.get(round_number, {})
        return [*durable.values(), *(row for row in self._buffer if row.round == round_number)]

    def _flush(self) -> None:
        for row in self._buffer:
            rows = self._disk.trajectories.setdefault(row.round, {})
            assert row.key not in rows, f"{row.key} is stored twice"
            rows[row.key] = row
        self._buffer = []


@dataclass(frozen=True, kw_only=True)
class FakeData:
    """Problems and demonstrations in memory."""

    problems: tuple[Problem, ...]
    shown: tuple[Demonstration, ...]

    def problem_levels(self) -> Mapping[str, int | None]:
        return {problem.id: problem.level for problem in self.problems}

    def demonstrations(self) -> Iterator[Demonstration]:
        yield from self.shown

    def num_left_out(self) -> int:
        return 0


class FakeSync:
    """Replicas that serve nothing until they are brought to a version whose checkpoint is on the disk."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.served: int | None = None

    def sync(self, policy_version: int, checkpoint: str) -> SyncReport:
        assert checkpoint == BACKBONE or checkpoint in self._disk.checkpoints, f"{checkpoint} was never trained"
        assert (policy_version == 0) == (checkpoint == BACKBONE)
        self.served = policy_version
        return SyncReport(
            policy_version=policy_version,
            transport="checkpoint",
            num_replicas=2,
            num_bytes=0,
            seconds=0.0,
            max_logprob_difference=0.0,
            probe_shift=0.0,
            weak=policy_version in self._disk.weak_syncs,
        )


NUM_GENERAL = 8
"""General problems of a fake world whose recipe asks any."""


class FakeExplorer:
    """Samples by a rule instead of a model; delivers every other group of rows twice, as Ray may."""

    def __init__(
        self,
        data: FakeData,
        sync: FakeSync,
        skill: Skill,
        *,
        num_test: int,
        thought: str = "",
        forms: list[str] | None = None,
    ) -> None:
        self.forms: list[str] = [] if forms is None else forms
        self._thought = thought
        self._problems = {problem.id: problem for problem in data.problems}
        self._sync = sync
        self._skill = skill
        self._test = tuple(make_problem(f"t{number}") for number in range(num_test))
        self._general = tuple(make_problem(f"g{number}") for number in range(NUM_GENERAL))

    def explore(
        self,
        order: ExploreOrder,
        *,
        allotment: Allotment,
        commit: Commit,
        on_load: OnLoad,
        partials: PartialResponses,
    ) -> None:
        number = 0
        while wanted := [problem_id for problem_id in order.problem_ids if allotment.wanted(problem_id)]:
            for problem_id in wanted:
                request = rollout_request(
                    self._problems[problem_id],
                    order.config,
                    allotment.wanted(problem_id),
                    seed=order.seed,
                    round_number=order.stage.round,
                )
                assert request is not None
                rows = [
                    self._sampled(request.round, request.problem, index, seed)
                    for index, seed in zip(request.sample_indices, request.seeds, strict=True)
                ]
                assert len(commit(rows)) == len(rows)
                if number % 2:
                    assert not commit(rows)
                number += 1

    def evaluate(
        self,
        order: EvaluateOrder,
        *,
        stored: Collection[TrajectoryKey],
        on_rows: Callable[[Sequence[Trajectory], int], None],
        on_load: OnLoad,
    ) -> None:
        self.forms.append(order.form)
        problems = (self._general if order.general else self._test)[: order.config.num_problems]
        on_rows((), len(problems) * order.config.num_samples)
        for number, problem in enumerate(problems):
            round_number = order.stage.round
            keys = [TrajectoryKey(round_number, problem.id, index) for index in range(order.config.num_samples)]
            missing = [key.sample_index for key in keys if key not in stored]
            if request := evaluation_request(problem, order.config, missing, round_number=round_number):
                rows = [
                    self._sampled(request.round, problem, index, seed)
                    for index, seed in zip(request.sample_indices, request.seeds, strict=True)
                ]
                for _ in range(1 + number % 2):
                    on_rows(rows, len(problems) * order.config.num_samples)

    def answer_equivalence(self, pairs: Sequence[AnswerPair]) -> Sequence[AnswerPair]:
        return [pair for pair in pairs if pair.first.rstrip("0") == pair.second.rstrip("0")]

    def _sampled(self, round_number: int, problem: Problem, sample_index: int, seed: int) -> Trajectory:
        version = self._sync.served
        assert version is not None, "the replicas were asked before a sync"
        draw = random.Random(seed)
        return make_trajectory(
            problem.id,
            sample_index,
            round_number=round_number,
            verdict=self._skill(TrajectoryKey(round_number, problem.id, sample_index), version),
            thought=self._thought or "x" * draw.randrange(1, 200),
            perplexity=1 + draw.random(),
            policy_version=version,
            seed=seed,
        )


class FakeTrainer:
    """Trains by noting that it did; a checkpoint that is on the disk is never trained again."""

    def __init__(self, disk: Disk, share_changed: float | None) -> None:
        self._disk = disk
        self._share_changed = share_changed

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        if order.checkpoint not in self._disk.checkpoints:
            rows = self._disk.data[order.data_path]
            progress.trained(order.stage, train_progress())
            self._disk.trained.append(order)
            self._disk.checkpoints[order.checkpoint] = TrainResult(
                steps=1,
                num_examples=len(rows),
                num_skipped=0,
                num_tokens=10,
                final_loss=0.5,
                seconds=1.0,
                share_changed=self._share_changed,
            )
        return self._disk.checkpoints[order.checkpoint]


@dataclass
class FakeProgress:
    """Remembers what a person would have seen."""

    titles: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    steps: list[tuple[float, float]] = field(default_factory=list)
    steps_beside: list[tuple[float, float]] = field(default_factory=list)
    doings: list[str] = field(default_factory=list)

    def stage_started(self, stage: Stage, title: str) -> None:
        self.titles.append(f"{stage.name} {title}")

    def doing(self, what: str) -> None:
        self.doings.append(what)

    def advanced(self, done: float, total: float, facts: Mapping[str, str], *, beside: Stage | None = None) -> None:
        (self.steps_beside if beside else self.steps).append((done, total))

    def trained(self, stage: Stage, report: TrainProgress) -> None:
        self.events += report.events(stage.name)

    def event(self, event: Event) -> None:
        self.events.append(event)

    def noted(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class FakeWorld:
    """A recipe over a disk; each `ports` is a new process on it.

    Attributes:
        recipe: The recipe.
        disk: What all processes share.
        skill: How good the policy is.
        num_problems: Problems to explore.
        num_test: Held-out problems.
        thought: What every response thinks; "": each something of its own.
        share_changed: How much of the model a training stage says that it changed.
        forms: Response formats that evaluations asked for, in order.
    """

    recipe: Recipe
    disk: Disk = field(default_factory=Disk)
    skill: Skill = mixed_skill
    num_problems: int = 6
    num_test: int = 3
    thought: str = ""
    share_changed: float | None = 0.5
    progress: FakeProgress = field(default_factory=FakeProgress)
    forms: list[str] = field(default_factory=list)

    def ports(self, fuse: Fuse | None = None) -> Ports:
        """The ports of a new process, ended by the fuse."""
        fuse = fuse or Fuse()
        data = FakeData(
            problems=tuple(make_problem(f"p{number}", level=number % 3) for number in range(self.num_problems)),
            shown=tuple(make_demonstration(f"d{number}", thought="y" * 20 * number) for number in range(1, 6)),
        )
        sync = FakeSync(self.disk)
        self.progress = FakeProgress()
        explorer = FakeExplorer(data, sync, self.skill, num_test=self.num_test, thought=self.thought, forms=self.forms)
        return Ports(
            store=_fused(FakeStore(self.disk, self.recipe), fuse),
            data=_fused(data, fuse),
            explorer=_fused(explorer, fuse),
            trainer=_fused(FakeTrainer(self.disk, self.share_changed), fuse),
            sync=_fused(sync, fuse),
            progress=_fused(self.progress, fuse),
        )

    def orders(self) -> dict[str, TrainOrder]:
        """The training that was done, by stage name; fails when one was done twice."""
        names = [order.stage.name for order in self.disk.trained]
        assert len(names) == len(set(names)), f"trained twice: {names}"
        return {order.stage.name: order for order in self.disk.trained}


def as_json(record: Any) -> Any:
    """A record as JSON would give it back."""
    return json.loads(json.dumps(asdict(record)))
