"""Training methods as a recipe names them: what each must say of itself, and where the built-in ones are.

A method is two objects. The light half, described here, is free of torch: its settings, its rows, what it takes of the
pool, what it costs. The built-in ones are in `still_ray.methods`. The heavy half trains; the light one names it by its
path, see `still_ray.trainer.methods`. Driver, store, plan, rehearsal and report know this class and no member of it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar, cast

from still_ray.config.schema import TrainingSection
from still_ray.extensions import load_named
from still_ray.types import Candidate, Demonstration, Trajectory, TrajectoryKey

GROUP: Final = "still_ray.methods"
METHODS: Final[Mapping[str, str]] = {
    "sft": "still_ray.methods.sft:SFT",
    "dpo": "still_ray.methods.dpo:DPO",
    "kto": "still_ray.methods.kto:KTO",
}
"""Where each built-in method is. Paths, so that a recipe's schema loads a method no sooner than it is asked for."""
IMITATION: Final = "sft"
"""The method of round 0."""

SettingsT = TypeVar("SettingsT", bound=TrainingSection)
RowT = TypeVar("RowT")
RowT_contra = TypeVar("RowT_contra", contravariant=True)


class Pool(Protocol):
    """What a method may learn from."""

    def candidates(self, rounds: Iterable[int]) -> Iterator[Candidate]:
        """The trajectories of some rounds, without their texts."""
        ...

    def trajectories(self, keys: Sequence[TrajectoryKey]) -> Iterator[Trajectory]:
        """The trajectories of some keys with their texts, in the order of the keys."""
        ...

    def demonstrations(self) -> Iterator[Demonstration]:
        """Streams the demonstrations; general ones may lack a thought, and `copies` says how often each is learnt."""
        ...

    def num_left_out(self) -> int:
        """Demonstrations that are not among them, because a control token stands in them as text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request(Generic[SettingsT]):
    """What rows are wanted for.

    Attributes:
        settings: The stage's section of the recipe.
        explored: The rounds that have explored so far, this one included where it does, in order.
        num_explored: Problems that this round explored; None for a round that does not explore.
        seed: The stage's own.
    """

    settings: SettingsT
    explored: tuple[int, ...]
    num_explored: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class Prepared(Generic[RowT]):
    """What a stage learns from, or why it has nothing to learn from.

    Attributes:
        counts: What was taken and what was left out, by reason; kept in the stage's manifest.
        rows: The rows of the stage's table, texts joined; empty where `skipped`.
        note: One line of the counts for the person who watches.
        skipped: Why the stage is skipped; "" if it is not.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    rows: Iterable[RowT] = ()
    note: str = ""
    skipped: str = ""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """How much there will be to learn from when a stage begins, as far as a plan can say.

    Attributes:
        num_demonstrations: Rows of the demonstrations.
        num_solved: Problems of this round with a correct response.
        num_solved_so_far: The same, summed over all rounds so far.
        num_rollouts: Responses of this round, at most.
        num_rollouts_so_far: Of all rounds so far.
    """

    num_demonstrations: int
    num_solved: int
    num_solved_so_far: int
    num_rollouts: int
    num_rollouts_so_far: int


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Where a row of a stage's table comes from.

    Attributes:
        ids: Its trajectories, as `trajectory_id` names them, the one that the row counts by first; none for a
            demonstration.
        demonstration: Id of its demonstration; "" for a row of trajectories.
        domain: Label of the problem type, where the table has it.
        dataset: Name of the demonstration's file among several; "" otherwise.
    """

    ids: tuple[str, ...]
    demonstration: str = ""
    domain: str = ""
    dataset: str = ""

    @property
    def source_id(self) -> str:
        """The trajectory that the row counts by, or the demonstration."""
        return self.ids[0] if self.ids else self.demonstration


class Method(ABC, Generic[SettingsT, RowT]):
    """One way to train on the pool.

    Attributes:
        name: As the recipe has it in `train`; also of its section and, behind the round, of the stage's folder.
        title: As people write it.
        settings: Its section of the recipe.
        record: One row of its table: a frozen dataclass of texts, numbers and booleans.
        table: File name of the table in the stage's folder.
        trainer: Path of the heavy half, a `still_ray.trainer.methods.base.TrainingMethod`.
        takes: What it learns from, one sentence for the report.
        loss_text: What its loss is, one sentence for the report.
        unit: What a row is called, with a space in front; "" for a plain row.
        needs_pool: Whether it has nothing to learn from before anything is explored.
        may_be_wrong: Whether it learns from incorrect responses too.
        num_sequences: Sequences that one row puts through a forward and backward pass.
        row_counts: Names of the counts that add up to the rows, each with what a table writes behind the number.
        copies: Names of the counts of responses that were left out as copies of others.
        main_settings: Dotted keys of its section that a reader of the report asks for first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    settings: ClassVar[type[TrainingSection]]
    record: ClassVar[type]
    table: ClassVar[str]
    trainer: ClassVar[str]
    takes: ClassVar[str] = ""
    loss_text: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    needs_pool: ClassVar[bool] = True
    may_be_wrong: ClassVar[bool] = False
    num_sequences: ClassVar[int] = 1
    row_counts: ClassVar[Mapping[str, str]] = {}
    copies: ClassVar[tuple[str, ...]] = ()
    main_settings: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def prepare(self, pool: Pool, request: Request[SettingsT]) -> Prepared[RowT]:
        """Chooses what a stage learns from; the same pool and request always give the same rows."""

    @abstractmethod
    def expected_rows(self, settings: SettingsT, expected: Expected) -> int:
        """Rows that a stage will train on, at most; for `plan`."""

    @abstractmethod
    def source(self, row: RowT) -> RowSource:
        """Where a row comes from; reads only the columns in `source_columns`."""

    @property
    @abstractmethod
    def source_columns(self) -> tuple[str, ...]:
        """The columns that `source` reads: a report leaves the texts alone."""

    @abstractmethod
    def texts(self, row: RowT) -> tuple[str, ...]:
        """The sequences that a row trains on, question included; for a rehearsal, which has no tokenizer."""

    def rounds(self, settings: SettingsT, explored: Sequence[int]) -> Sequence[int]:
        """The rounds whose trajectories a stage may take: all so far.

        Args:
            settings: The stage's section.
            explored: The rounds that have explored so far, in order.
        """
        return explored

    def stored_settings(self, values: Mapping[str, Any]) -> SettingsT:
        """The settings of a stage, as a recipe.yaml of any release has them.

        Raises:
            ValueError: Today's schema refuses them.
        """
        return cast(SettingsT, self.settings.model_validate_json(json.dumps(values)))

    def left_out(self, label: str, counts: Mapping[str, int]) -> str:
        """What the counts of a stage say beside the numbers that every stage has, as sentences for the report.

        Args:
            label: The stage's name in the report.
            counts: `Prepared.counts` of it; older run directories may lack some.
        """
        return ""

    def reference(self, settings: SettingsT) -> str:
        """Which model the loss compares with: "start", "backbone" or a stage's name; "" for none."""
        return ""


AnyMethod = Method[Any, Any]


def method_named(name: str) -> AnyMethod:
    """A built-in method by its name, or a user's own by path or entry point.

    Raises:
        ValueError: There is none; says what would be right.
    """
    found = load_named(name, METHODS, group=GROUP)
    method = found() if isinstance(found, type) else found
    if not isinstance(method, Method):
        raise ValueError(f"{name} is no training method but {type(method).__name__}: derive it from still_ray.Method")
    return method
