"""The run directory as the driver sees it: state, pool, training data, evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Literal

from still_ray.algo.partial_responses import PartialResponses
from still_ray.algo.stages import Stage
from still_ray.facts import (
    EvaluationFacts,
    RunState,
    StageFacts,
    SummaryLine,
    state_from_json,
    state_to_json,
    summary_from_json,
    summary_to_json,
)
from still_ray.store.atomic import read_json, write_json
from still_ray.store.evaluations import model_facts, write_raw_outputs
from still_ray.store.lock import taken_over
from still_ray.store.manifest import read_manifest, write_manifest
from still_ray.store.partial_responses import StoredPartialResponses, drop_partial_responses
from still_ray.store.run_directory import GENERAL, RunDirectory
from still_ray.store.tables import read_table, write_table
from still_ray.store.trajectories import TrajectoryStore, joined
from still_ray.types import (
    SCHEMA_VERSION,
    Candidate,
    StageKind,
    Trajectory,
    TrajectoryKey,
    Verdict,
)


class RunStore:
    """Reads and writes one run directory; the only writer of it."""

    def __init__(
        self, directory: RunDirectory, plan: Sequence[Stage], *, is_rehearsal: bool = False, command: str = ""
    ) -> None:
        """Opens a run directory.

        Args:
            directory: Its paths.
            plan: The stages of the recipe.
            is_rehearsal: Whether fakes make the run.
            command: The command line that resumes it; "" where there is none.
        """
        self._directory = directory
        self._plan = plan
        self._is_rehearsal = is_rehearsal
        self._command = command
        self._rounds: dict[int, TrajectoryStore] = {}

    def completed(self) -> dict[str, StageFacts]:
        """Facts of every stage with a valid manifest, up to the first stage without one.

        Raises:
            InputError: A manifest is of a later release, or a value in it is missing or of another type.
        """
        done: dict[str, StageFacts] = {}
        for stage in self._plan:
            manifest = read_manifest(self._directory.stage(stage))
            if manifest is None:
                break
            done[stage.name] = manifest.facts
        return done

    def begin(self, stage: Stage, policy_version: int, *, beside: Stage | None = None) -> None:
        """Notes in state.json that a stage runs, and which exploration goes on beside it; makes its folder."""
        self._directory.stage(stage).mkdir(parents=True, exist_ok=True)
        self._write_state(stage, policy_version, "running", beside=beside.name if beside else "")

    def finish(self, stage: Stage, facts: StageFacts) -> None:
        """Writes the stage's manifest, its last file."""
        write_manifest(self._directory.stage(stage), facts)

    def end(self, policy_version: int) -> None:
        """Notes in state.json that the run is complete."""
        self._write_state(self._plan[-1], policy_version, "complete")

    @property
    def has_begun(self) -> bool:
        """Whether any stage has."""
        return read_state(self._directory) is not None

    def stop(self, status: Literal["interrupted", "failed"], cause: str = "") -> None:
        """Notes in state.json that the run ended before it was complete, unless another driver has gone on with it."""
        begun = read_state(self._directory)
        if (begun is not None and begun.is_complete) or taken_over(self._directory.root):
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if begun is None:  # before its first stage
            begun = RunState(round=0, stage="", policy_version=0, status=status, rehearsal=self._is_rehearsal)
        state = replace(begun, status=status, cause=cause, command=self._command, updated_at=now)
        write_json(self._directory.state, state_to_json(state))

    def explored(self, round_number: int) -> Mapping[TrajectoryKey, Verdict]:
        """What is already stored of a round, by key."""
        return self._trajectories(round_number).verdicts

    def commit(self, round_number: int, rows: Sequence[Trajectory]) -> Sequence[Trajectory]:
        """Stores trajectories of a round, first write wins; returns the new ones."""
        return self._trajectories(round_number).commit(rows)

    def sampled_tokens(self, round_number: int) -> Mapping[TrajectoryKey, int]:
        """Tokens of what is already stored of a round, by key."""
        return self._trajectories(round_number).num_tokens()

    def partial_responses(self, round_number: int) -> PartialResponses:
        """What there is of a round's responses that are not stored, which outlives the process."""
        folder = self._directory.partial_responses(self._exploration(round_number))
        partials = StoredPartialResponses(folder)
        partials.forget(self.explored(round_number))
        return partials

    def close_round(self, round_number: int) -> None:
        """Makes a round's trajectories durable and merges its files; drops its partial responses."""
        self._trajectories(round_number).merge()
        drop_partial_responses(self._directory.partial_responses(self._exploration(round_number)))

    def candidates(self, rounds: Iterable[int]) -> Iterator[Candidate]:
        """The pool of some rounds, without its texts."""
        for number in rounds:
            yield from self._trajectories(number).candidates()

    def trajectories(self, keys: Sequence[TrajectoryKey]) -> Iterator[Trajectory]:
        """Streams the trajectories of some keys in the order of the keys, with a bounded share of them in memory.

        Raises:
            KeyError: A key is not stored.
        """
        stores = [self._trajectories(number) for number in sorted({key.round for key in keys})]
        for store in stores:
            store.flush()
        return joined(stores, keys, self._directory.root)

    def stored_keys(self, round_number: int) -> list[TrajectoryKey]:
        """The key of every stored row of a round; `candidates` yields each key once, whatever is stored."""
        return self._trajectories(round_number).stored_keys()

    def write_rows(self, stage: Stage, rows: Iterable[object], record: type) -> int:
        """Writes the table that a training stage learns from; returns the number of rows."""
        return write_table(self._directory.training_data(stage), rows, record)

    def data_path(self, stage: Stage) -> str:
        """Where a training stage's data is."""
        return str(self._directory.training_data(stage))

    def checkpoint(self, stage: Stage) -> str:
        """Where a training stage's checkpoint is, or will be."""
        return str(self._directory.checkpoint(stage))

    def write_evaluation(
        self, stage: Stage, rows: Sequence[Trajectory], evaluation: EvaluationFacts, *, general: bool = False
    ) -> None:
        """Writes eval.parquet and eval.json of a stage; the latter says what it is the result of, as far as known."""
        raw = write_raw_outputs(self._directory.evaluation_rows(stage, general=general), rows)
        settings = read_json(self._directory.evaluation_settings) or {}
        apart = settings.pop(GENERAL, {})
        if general:
            settings |= apart
        model = self.checkpoint(stage) if stage.trains else settings.get("model", {}).get("path")
        facts = {**settings, "model": model_facts(model)} if model else settings
        result = {"schema_version": SCHEMA_VERSION, **asdict(evaluation), **facts, "raw_outputs": raw}
        write_json(self._directory.evaluation(stage, general=general), result)

    def general_responses(self, stage: Stage) -> Sequence[Trajectory]:
        """The judged responses to the general problems that a stage wrote."""
        return read_table(self._directory.evaluation_rows(stage, general=True), Trajectory)

    def write_summary(self, lines: Sequence[SummaryLine]) -> None:
        """Writes summary.json."""
        stages = [summary_to_json(line) for line in lines]
        write_json(self._directory.summary, {"schema_version": SCHEMA_VERSION, "stages": stages})

    def _exploration(self, round_number: int) -> Stage:
        explorations = (stage for stage in self._plan if stage.kind is StageKind.EXPLORE)
        return next(stage for stage in explorations if stage.round == round_number)

    def _trajectories(self, round_number: int) -> TrajectoryStore:
        if round_number not in self._rounds:
            self._rounds[round_number] = TrajectoryStore(self._directory.trajectories(round_number))
        return self._rounds[round_number]

    def _write_state(
        self, stage: Stage, policy_version: int, status: Literal["running", "complete"], *, beside: str = ""
    ) -> None:
        state = RunState(
            round=stage.round,
            stage=stage.name,
            policy_version=policy_version,
            status=status,
            rehearsal=self._is_rehearsal,
            updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            command=self._command,
            beside=beside,
        )
        write_json(self._directory.state, state_to_json(state))


def read_state(directory: RunDirectory) -> RunState | None:
    """What state.json says, or None where there is no run.

    Raises:
        InputError: It is damaged, or a later release wrote it.
    """
    raw = read_json(directory.state)
    return state_from_json(raw, where=str(directory.state)) if isinstance(raw, dict) else None


def present_state(directory: RunDirectory, note: Callable[[str], None]) -> RunState | None:
    """How a run stands at this moment: one that state.json says to be running is killed if nobody works in its folder.

    Args:
        directory: The run directory.
        note: Told why this waits, if it does: in an object store, for a heartbeat of another machine.

    Raises:
        InputError: As `read_state`.
    """
    state = read_state(directory)
    if state is None or state.status != "running" or directory.is_held(note):
        return state
    ended = read_state(directory)  # it may have ended between the two looks
    return replace(ended, status="killed") if ended is not None and ended.status == "running" else ended


def read_summary(directory: RunDirectory) -> tuple[SummaryLine, ...]:
    """The lines of summary.json; none before the first stage is complete.

    Raises:
        InputError: It is damaged, or a later release wrote it.
    """
    return summary_from_json(read_json(directory.summary) or {}, where=str(directory.summary))
