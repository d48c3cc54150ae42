"""Everything that the report says, read from a run directory into one frozen record; nothing is ever written there.

A run may still go on: what is not there yet is empty, and what is cut off in the middle of a write is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import repeat
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import yaml

from still_ray.algo.stages import TRAINING_KINDS
from still_ray.config import TrainingSection
from still_ray.config.methods import IMITATION, AnyMethod, RowSource, method_named
from still_ray.facts import EvaluationFacts, ForgettingFacts, RunState, SkippedFacts, StageFacts, TrainFacts
from still_ray.location import Location
from still_ray.store.manifest import recorded_manifest
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import present_state
from still_ray.types import FinishReason, InputError, PreferencePair, RunError, StageKind, Verdict

REHEARSAL_MARK: Final = "rehearsal"
VERSION_LINE: Final = re.compile(r"# ([\w.-]+): (\S+)")
ATTEMPTS: Final = 3
"""Listings of a round's files: those of a run that goes on may be merged while they are read."""


class Response(NamedTuple):
    """A judged response without its texts; fields as in `still_ray.types.Trajectory`."""

    round: int
    problem_id: str
    sample_index: int
    domain: str
    verdict: str
    finish_reason: str
    policy_version: int
    num_tokens: int
    thought_tokens: int
    perplexity: float
    defect: str
    latency_s: float
    created_at: str

    @property
    def id(self) -> str:
        """As `training_set.parquet` names it."""
        return f"{self.round}/{self.problem_id}/{self.sample_index}"

    @property
    def is_correct(self) -> bool:
        """Whether the verifier said so."""
        return self.verdict == Verdict.CORRECT

    @property
    def is_truncated(self) -> bool:
        """Whether it met the token limit."""
        return self.finish_reason == FinishReason.LENGTH

    @property
    def is_usable(self) -> bool:
        """Whether its form allows training on it."""
        return not self.defect and not self.is_truncated


class PairSource(NamedTuple):
    """Where the two sides of a preference pair come from."""

    problem_id: str
    chosen_id: str
    rejected_id: str
    chosen_perplexity: float
    rejected_perplexity: float


class Line(NamedTuple):
    """A line of metrics.jsonl."""

    time: float
    name: str
    value: float
    labels: Mapping[str, str]

    @property
    def stage(self) -> str:
        """The stage it belongs to."""
        return self.labels.get("stage", "")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is known of the data that the run was given.

    Attributes:
        problem_levels: Difficulty of the problems to explore by id, where their file states it.
        test_levels: The same of the held-out problems; an id of theirs may stand for another problem in the other file.
        prepared: Counts of `still-ray prepare`, by what was prepared, where its report lies beside the data.
        notes: What could not be read, one sentence each.
    """

    problem_levels: Mapping[str, int] = field(default_factory=dict)
    test_levels: Mapping[str, int] = field(default_factory=dict)
    prepared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunStage:
    """One stage of the recipe.

    Attributes:
        name: Name of its folder.
        facts: What it left; None while it is not complete.
        responses: Its held-out evaluation, if there is one.
        method: Its training method; None if it does not train, or by a method that cannot be loaded here.
        settings: The section that it trains by; None without a method, or of one whose schema is another today.
        sources: Where the rows that it learns from come from, if there are any.
        pairs: Its preference pairs, if its rows are pairs.
    """

    name: str
    facts: StageFacts | None = None
    responses: tuple[Response, ...] = ()
    method: AnyMethod | None = None
    settings: TrainingSection | None = None
    sources: tuple[RowSource, ...] = ()
    pairs: tuple[PairSource, ...] = ()

    @property
    def round(self) -> int:
        """0 for the backbone and imitation."""
        return int(self.name.partition("-")[0])

    @property
    def kind(self) -> StageKind:
        """What it does."""
        step = self.name.partition("-")[2]
        return StageKind(step) if step in set(StageKind) else StageKind.TRAIN

    @property
    def label(self) -> str:
        """Its name in plots and tables."""
        if self.kind in (StageKind.BACKBONE, StageKind.IMITATE):
            return {StageKind.BACKBONE: "backbone", StageKind.IMITATE: "imitation"}[self.kind]
        step = self.name.partition("-")[2]
        return f"{self.round} · {self.method.title if self.method else step}"

    @property
    def trains(self) -> bool:
        """Whether it makes a new policy."""
        return self.kind in TRAINING_KINDS

    @property
    def unit(self) -> str:
        """What a row that it learns from is called, with a space in front; "" for a plain row."""
        return self.method.unit if self.method else ""

    @property
    def policy_version(self) -> int | None:
        """The version that is served after it; None while it is not complete."""
        return self.facts.policy_version if self.facts else None

    @property
    def training(self) -> TrainFacts | None:
        """What it left if it trained a policy."""
        return self.facts if isinstance(self.facts, TrainFacts) else None

    @property
    def evaluation(self) -> EvaluationFacts | None:
        """Its held-out evaluation, if there is one."""
        return self.facts.evaluated if self.facts else None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run as its directory tells it.

    Attributes:
        place: Where the run directory is.
        name: The recipe's name.
        state: Where it stands.
        recipe: The resolved recipe.
        recipe_text: Its file, without the versions.
        versions: Version of each package that decides a result.
        stages: All stages of the recipe, in order.
        rounds: The pool, by round.
        events: metrics.jsonl, in order.
        inputs: What is known of the data.
        notes: What could not be read, one sentence each.
    """

    place: str
    name: str
    state: RunState
    recipe: Mapping[str, Any]
    recipe_text: str
    versions: Mapping[str, str]
    stages: tuple[RunStage, ...]
    rounds: Mapping[int, tuple[Response, ...]]
    events: tuple[Line, ...]
    inputs: Inputs = Inputs()
    notes: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end."""
        return self.state.is_complete

    @property
    def is_rehearsal(self) -> bool:
        """Whether fakes made it."""
        return bool(self.recipe.get(REHEARSAL_MARK) or self.state.rehearsal)

    @property
    def complete(self) -> tuple[tuple[RunStage, StageFacts], ...]:
        """The complete stages with what they left, in order."""
        return tuple((stage, found) for stage in self.stages if (found := stage.facts) is not None)

    @property
    def evaluated(self) -> tuple[tuple[RunStage, EvaluationFacts], ...]:
        """The stages with a held-out evaluation, in order."""
        return tuple((stage, found) for stage in self.stages if (found := stage.evaluation) is not None)

    @property
    def asked_generally(self) -> tuple[tuple[RunStage, ForgettingFacts], ...]:
        """The stages that were asked general problems, in order."""
        return tuple((stage, found.general) for stage, found in self.complete if found.general is not None)

    @property
    def trained(self) -> tuple[tuple[RunStage, TrainFacts], ...]:
        """The stages that trained a policy with what they left, in order."""
        return tuple((stage, found) for stage in self.stages if (found := stage.training) is not None)

    def named(self, name: str) -> Iterator[Line]:
        """The events of a name, in order."""
        return (event for event in self.events if event.name == name)


def read_run(directory: RunDirectory, inputs: Inputs) -> RunFacts:
    """Reads a run directory.

    Args:
        directory: Where it is.
        inputs: What is known of the data.

    Raises:
        InputError: It holds no run.
    """
    state = present_state(directory, note=lambda text: None)
    if state is None:
        raise InputError(f"{directory.root}: holds no run (no state.json); give the folder that --run-dir named")
    text = _text(directory.recipe)
    recipe = _mapping(yaml.safe_load(text))
    notes: list[str] = []
    return RunFacts(
        place=str(directory.root),
        name=str(recipe.get("name", directory.root.name)),
        state=state,
        recipe=recipe,
        recipe_text="".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")),
        versions=dict(VERSION_LINE.findall(text)),
        stages=tuple(_stage(directory, *named, notes) for named in stages_of(recipe, notes)),
        rounds=_pool(directory, len(recipe.get("rounds") or ()), notes),
        events=tuple(_events(_text(directory.metrics))),
        inputs=inputs,
        notes=(*notes, *inputs.notes),
    )


Named = tuple[str, AnyMethod | None, TrainingSection | None]
"""A stage's name, its training method, and the section that it trains by."""


def stages_of(recipe: Mapping[str, Any], notes: list[str]) -> Iterator[Named]:
    """The stages of a resolved recipe, whatever version of the schema wrote it; see `algo.stages.plan_stages`.

    Args:
        recipe: As its file has it.
        notes: Takes a sentence for each stage whose training method cannot be loaded here, which is left out, and for
            each whose settings cannot be read.
    """
    imitation = method_named(IMITATION)
    yield "000-backbone", None, None
    yield "000-imitate", imitation, _settings("000-imitate", imitation, recipe.get("imitate"), notes)
    for number, entry in enumerate(recipe.get("rounds") or (), start=1):
        if entry.get("explore", {}) is not None:
            yield f"{number:03d}-explore", None, None
        for given in entry.get("train") or [entry["method"]]:
            try:
                method = method_named(given)
            except ValueError as error:
                notes.append(f"The stage of round {number} that trains by {given} is left out: {error}.")
                continue
            name, values = f"{number:03d}-{method.name}", entry.get(method.name) or recipe.get(method.name)
            yield name, method, _settings(name, method, values, notes)


def _settings(name: str, method: AnyMethod, values: Any, notes: list[str]) -> TrainingSection | None:
    settings: TrainingSection | None = None
    try:
        settings = method.stored_settings(values or {})
    except ValueError:
        notes.append(f"The settings of {name} are of another version of still-ray: what follows from them is left out.")
    return settings


def round_files(directory: RunDirectory, number: int) -> list[Location]:
    """The files that hold the trajectories of a round, the merged one first."""
    return sorted(directory.trajectories(number).glob("*.parquet"), key=lambda path: path.name)


# -- reading ----------------------------------------------------------------------------------------------------------


def _stage(
    directory: RunDirectory, name: str, method: AnyMethod | None, settings: TrainingSection | None, notes: list[str]
) -> RunStage:
    folder = directory.rounds / name
    try:
        manifest = recorded_manifest(folder)
    except InputError as error:
        notes.append(f"The manifest of {name} cannot be read: {error}; the stage counts as not complete.")
        manifest = None
    if manifest is None:
        return RunStage(name=name, method=method, settings=settings)
    if isinstance(manifest.facts, SkippedFacts):
        notes.append(f"{name} was skipped: {manifest.facts.skipped}.")
    listed = manifest.files

    def table(file: str, kind: Callable[..., Any], columns: Sequence[str], record: type | None = None) -> Any:
        return tuple(_rows(folder / file, kind, columns, notes, record)) if file in listed else ()

    is_paired = method is not None and method.record is PreferencePair
    sources: tuple[Any, ...] = ()
    if method is not None:
        columns = method.source_columns

        def named(*values: Any) -> SimpleNamespace:
            return SimpleNamespace(**dict(zip(columns, values, strict=True)))

        rows = table(method.table, named, columns, method.record)
        sources = tuple(map(method.source, rows))
    return RunStage(
        name=name,
        facts=manifest.facts,
        responses=table("eval.parquet", Response, Response._fields),
        method=method,
        settings=settings,
        sources=sources,
        pairs=table(method.table, PairSource, PairSource._fields) if method and is_paired else (),
    )


def _pool(directory: RunDirectory, num_rounds: int, notes: list[str]) -> dict[int, tuple[Response, ...]]:
    rounds = {number: _round(directory, number, notes) for number in range(1, num_rounds + 1)}
    return {number: rows for number, rows in rounds.items() if rows}


def _round(directory: RunDirectory, number: int, notes: list[str]) -> tuple[Response, ...]:
    """The responses of a round; a key that stands in two files, as in an interrupted merge, counts once."""
    for attempt in range(ATTEMPTS):
        found: dict[tuple[str, int], Response] = {}
        try:
            for path in round_files(directory, number):
                for row in _columns(path, Response, Response._fields):
                    found.setdefault((row.problem_id, row.sample_index), row)
        except (OSError, ValueError, RunError) as error:
            if attempt == ATTEMPTS - 1:
                notes.append(f"The trajectories of round {number} cannot be read: {error}.")
            continue
        return tuple(found.values())
    return ()


def _rows(
    path: Location, kind: Callable[..., Any], columns: Sequence[str], notes: list[str], record: type | None = None
) -> list[Any]:
    try:
        return _columns(path, kind, columns, record)
    except (OSError, ValueError, RunError) as error:
        notes.append(f"{path.name} of {path.parent.name} cannot be read: {error}.")
        return []


def _columns(path: Location, kind: Callable[..., Any], columns: Sequence[str], record: type | None = None) -> list[Any]:
    """Only some columns, as records: texts are many times larger than numbers.

    Columns that the file's record has gained since it was written have their defaults.
    """
    from still_ray.store.tables import open_table

    gained = {one.name: one.default for one in fields(record) if one.default is not MISSING} if record else {}
    with open_table(path) as file:
        known = set(file.schema_arrow.names)
        missing = next((name for name in columns if name not in known and name not in gained), None)
        if missing is not None:
            raise ValueError(f"no column {missing}")
        table = file.read(columns=[name for name in columns if name in known])
    values = [table.column(name).to_pylist() if name in known else repeat(gained[name], len(table)) for name in columns]
    return [kind(*row) for row in zip(*values, strict=True)]


def _events(text: str) -> Iterator[Line]:
    for line in text.splitlines():
        try:
            event = json.loads(line)
            yield Line(float(event["time"]), event["name"], float(event["value"]), event["labels"])
        except (ValueError, KeyError, TypeError):  # a line that was being written when a process died
            continue


def _text(path: Location) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
