"""What the driver needs of the world, as protocols, and the orders that it gives.

The real parts live in `store`, `formats` and `actors`; the tests run the same driver over fakes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from still_ray.algo.evaluation.majority import AnswerPair
from still_ray.algo.exploration import Allotment
from still_ray.algo.partial_responses import PartialResponses
from still_ray.algo.stages import Stage
from still_ray.config import EvaluateConfig, ExploreConfig, TrainingSection
from still_ray.config.methods import Pool
from still_ray.facts import EvaluationFacts, StageFacts, SummaryLine
from still_ray.types import (
    Candidate,
    Demonstration,
    Event,
    SyncReport,
    TrainProgress,
    TrainResult,
    Trajectory,
    TrajectoryKey,
    Verdict,
)

Commit = Callable[[Sequence[Trajectory]], Sequence[Trajectory]]
"""Takes judged trajectories in and returns those that were new."""


@dataclass(frozen=True, kw_only=True)
class SamplingLoad:
    """What the replicas do at one moment of a sampling activity.

    Attributes:
        num_running: Responses that are being decoded.
        num_waiting: Responses that wait for room beside them.
        num_tokens: Tokens decoded since the activity began, of responses that are not finished too.
    """

    num_running: int
    num_waiting: int
    num_tokens: int


OnLoad = Callable[[SamplingLoad], None]


@dataclass(frozen=True, kw_only=True)
class ExploreOrder:
    """One round of sampling.

    Attributes:
        stage: The explore stage.
        problem_ids: Which problems, sorted.
        config: Samples per problem and sampling settings.
        seed: The run's seed.
    """

    stage: Stage
    problem_ids: tuple[str, ...]
    config: ExploreConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class EvaluateOrder:
    """An evaluation of the policy that a stage left behind.

    Attributes:
        stage: The stage.
        config: How many problems, and how responses are drawn.
        form: Response format that the model has by itself, and is asked for as it comes; "": the run's.
        general: Whether the general problems are asked, as they stand, in place of the held-out ones.
    """

    stage: Stage
    config: EvaluateConfig
    form: str = ""
    general: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainOrder:
    """One training stage; the same order always means the same training.

    Attributes:
        stage: The training stage; its policy_version is the version it makes.
        method: The training method as the recipe names it: a built-in name, or a path.
        settings: The stage's section of the recipe.
        init_model: Model directory or hub id to start from.
        reference_model: The model that the loss compares with; "": the one to start from, or the method has none.
        data_path: The table of the stage's rows.
        checkpoint: Folder that the new policy is saved to, in HF format; appears whole or not at all.
        seed: Seed of shuffling and initialisation.
    """

    stage: Stage
    method: str
    settings: TrainingSection
    init_model: str
    data_path: str
    checkpoint: str
    seed: int
    reference_model: str = ""

    @property
    def section(self) -> str:
        """The section of the recipe that the stage's settings come from."""
        return self.stage.method if self.stage.round else "imitate"


class Data(Protocol):
    """The files that a run reads."""

    def problem_levels(self) -> Mapping[str, int | None]:
        """Level of every problem by id; None where unknown."""
        ...

    def demonstrations(self) -> Iterator[Demonstration]:
        """Streams the demonstrations."""
        ...

    def num_left_out(self) -> int:
        """Demonstrations that are not among them, because a control token stands in them as text."""
        ...


class Store(Protocol):
    """The run directory."""

    def completed(self) -> Mapping[str, StageFacts]:
        """Facts of every stage with a valid manifest, by stage name."""
        ...

    def begin(self, stage: Stage, policy_version: int, *, beside: Stage | None = None) -> None:
        """Notes in state.json that a stage runs, and which exploration goes on beside it."""
        ...

    def finish(self, stage: Stage, facts: StageFacts) -> None:
        """Writes the stage's manifest, its last file."""
        ...

    def end(self, policy_version: int) -> None:
        """Notes in state.json that the run is complete."""
        ...

    def explored(self, round_number: int) -> Mapping[TrajectoryKey, Verdict]:
        """Verdicts of what is already stored of a round, by key."""
        ...

    def commit(self, round_number: int, rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """Stores trajectories of a round, first write wins; returns the new ones."""
        ...

    def sampled_tokens(self, round_number: int) -> Mapping[TrajectoryKey, int]:
        """Tokens of what is already stored of a round, by key."""
        ...

    def partial_responses(self, round_number: int) -> PartialResponses:
        """What there is of a round's responses that are not stored, which outlives the process."""
        ...

    def close_round(self, round_number: int) -> None:
        """Makes a round's trajectories durable and merges its files; drops its partial responses."""
        ...

    def candidates(self, rounds: Iterable[int]) -> Iterator[Candidate]:
        """The pool of some rounds, without its texts."""
        ...

    def trajectories(self, keys: Sequence[TrajectoryKey]) -> Iterator[Trajectory]:
        """Streams the trajectories of some keys with their texts, in the order of the keys."""
        ...

    def write_rows(self, stage: Stage, rows: Iterable[object], record: type) -> int:
        """Writes the table that a training stage learns from; returns the number of rows."""
        ...

    def data_path(self, stage: Stage) -> str:
        """Where a training stage's data is."""
        ...

    def checkpoint(self, stage: Stage) -> str:
        """Where a training stage's checkpoint is, or will be."""
        ...

    def write_evaluation(
        self, stage: Stage, rows: Sequence[Trajectory], evaluation: EvaluationFacts, *, general: bool = False
    ) -> None:
        """Writes eval.parquet and eval.json of a stage, or those of the general problems."""
        ...

    def general_responses(self, stage: Stage) -> Sequence[Trajectory]:
        """The judged responses to the general problems that a stage wrote."""
        ...

    def write_summary(self, lines: Sequence[SummaryLine]) -> None:
        """Writes summary.json."""
        ...


class Explorer(Protocol):
    """Samples and verifies: the replicas, the verifiers and the pipeline between them."""

    def explore(
        self,
        order: ExploreOrder,
        *,
        allotment: Allotment,
        commit: Commit,
        on_load: OnLoad,
        partials: PartialResponses,
    ) -> None:
        """Samples what the allotment still wants of the order's problems, and commits each trajectory once judged.

        Args:
            order: Which problems, and how.
            allotment: Which samples of them.
            commit: Feeds the allotment: after it, a problem may want more.
            on_load: Takes what the replicas do, every few seconds.
            partials: What there is of responses that are not judged: they go on from there, and it is kept up to date.

        Raises:
            RunError: A failure policy was exhausted.
        """
        ...

    def evaluate(
        self,
        order: EvaluateOrder,
        *,
        stored: Collection[TrajectoryKey],
        on_rows: Callable[[Sequence[Trajectory], int], None],
        on_load: OnLoad,
    ) -> None:
        """Samples and judges what is not stored yet of the responses to the held-out problems.

        Args:
            order: How many of which kind.
            stored: Keys of the responses that are there already.
            on_rows: Takes responses as they are judged, perhaps twice, with the number expected in all; at first none,
                for that number.
            on_load: Takes what the replicas do, every few seconds.

        Raises:
            RunError: A failure policy was exhausted.
        """
        ...

    def answer_equivalence(self, pairs: Sequence[AnswerPair]) -> Sequence[AnswerPair]:
        """Those of the pairs whose answers a verifier calls the same."""
        ...


class Trainer(Protocol):
    """The trainer group."""

    def train(self, order: TrainOrder, *, progress: Progress) -> TrainResult:
        """Trains and saves the checkpoint; returns at once what a checkpoint that is already there recorded.

        Args:
            order: What to train.
            progress: Where a person watches.

        Raises:
            RunError: A failure policy was exhausted.
        """
        ...


class WeightSync(Protocol):
    """Brings every replica to one policy version."""

    def sync(self, policy_version: int, checkpoint: str) -> SyncReport:
        """Sends what replicas lack, and proves what they serve by log-probabilities.

        Raises:
            RunError: A replica cannot be brought to the version, or the proof fails.
        """
        ...


class Progress(Protocol):
    """Where a person watches."""

    def stage_started(self, stage: Stage, title: str) -> None:
        """A stage begins."""
        ...

    def doing(self, what: str) -> None:
        """What goes on from now on, e.g. "loading version 1": shown while nothing else is heard."""
        ...

    def advanced(self, done: float, total: float, facts: Mapping[str, str], *, beside: Stage | None = None) -> None:
        """A step of the current activity: how much is done, and a few numbers ready to print.

        Args:
            done: Of the activity.
            total: The whole of it.
            facts: By name.
            beside: The exploration that it is a step of, where that goes on beside the present stage.
        """
        ...

    def trained(self, stage: Stage, report: TrainProgress) -> None:
        """Some optimizer steps of a stage are done."""
        ...

    def event(self, event: Event) -> None:
        """A number for metrics.jsonl."""
        ...

    def noted(self, text: str) -> None:
        """One line that stays on the screen."""
        ...


class Reporter(Protocol):
    """Whoever reports on the run directory."""

    def refresh(self) -> None:
        """Takes in that a stage is complete, or the run; returns at once and never fails."""
        ...


class NoReporter:
    """A reporter that does nothing."""

    def refresh(self) -> None:
        """See `Reporter`."""


NO_REPORTER: Final = NoReporter()


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Everything the driver works with."""

    store: Store
    data: Data
    explorer: Explorer
    trainer: Trainer
    sync: WeightSync
    progress: Progress
    reporter: Reporter = NO_REPORTER

    @property
    def pool(self) -> Pool:
        """What training methods learn from."""
        return _Pool(self)


class _Pool:
    """Trajectories of the store and demonstrations of the data."""

    def __init__(self, ports: Ports) -> None:
        self.candidates = ports.store.candidates
        self.trajectories = ports.store.trajectories
        self.demonstrations = ports.data.demonstrations
        self.num_left_out = ports.data.num_left_out
