"""What stages and runs leave, as frozen records, and their JSON: manifest.json, lines of summary.json, state.json.

A file of an earlier release lacks what was added since, and reads with the defaults below. One of a later release, or
one with a value of the wrong type, is refused in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from still_ray.types import SCHEMA_VERSION, InputError, StageKind, SyncReport, TrainResult

Record = TypeVar("Record")

ADOPTED: Final = "adopted"
"""Key of a manifest: {"from": run, "seconds": what the stage took there}; "seconds" itself is 0 then."""
SKIPPED: Final = "skipped"
"""Key of a manifest of a training stage that had nothing to train on; the counts of its data stand beside it."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A share with its 95 % interval over problems."""

    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    """What the responses to the held-out problems say of a policy.

    Attributes:
        num_problems: Problems asked.
        num_correct: Responses with verdict correct. A timeout or an error is not correct, and is counted apart.
        accuracy: num_correct / num_responses; with several samples this is avg@N.
        ci95: 95 % interval of the accuracy.
        mean_thought_tokens: Mean tokens of the thought.
        truncation_rate: Share of responses that met the token limit.
        verdicts: Count of each verdict, absent ones as 0.
        num_samples: Responses to each problem.
        num_responses: Responses judged: num_problems x num_samples.
        num_truncated: Responses that met the token limit.
        ci95_method: How the interval was made: exact (Clopper-Pearson) for one response to each problem, and where all
            responses are correct or none is; else a bootstrap over problems, or Hoeffding's bound where all problems
            have the same share, e.g. where there is only one.
        pass_at_k: Unbiased pass@k for k = 1..num_samples, by k as text.
        majority: Share of problems on which the most frequent answer is right; None for one sample, and where correct
            responses name no answer (programs).
        thought_tokens: Quantiles of the thoughts' lengths.
    """

    num_problems: int
    num_correct: int
    accuracy: float
    ci95: tuple[float, float]
    mean_thought_tokens: float
    truncation_rate: float
    verdicts: dict[str, int]
    num_samples: int
    num_responses: int
    num_truncated: int
    ci95_method: str
    pass_at_k: dict[str, Estimate]
    majority: Estimate | None
    thought_tokens: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class ForgettingFacts:
    """What the responses to general problems say of a policy, beside those of the backbone.

    Attributes:
        evaluation: Its evaluation.
        num_lost: Problems that the backbone answered better.
        num_gained: Problems that it answers better than the backbone.
        p_value: Two-sided, of the exact paired test against the backbone; None for the backbone itself.
        alarm: Whether it is worse than the backbone, and the test says so.
    """

    evaluation: EvaluationFacts
    num_lost: int = 0
    num_gained: int = 0
    p_value: float | None = None
    alarm: bool = False


@dataclass(frozen=True, kw_only=True)
class Adoption:
    """Whose work a stage is that was taken over from another run.

    Attributes:
        origin: The run that computed it.
        seconds: What it took there.
    """

    origin: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """What every finished stage leaves.

    Attributes:
        stage: Name of its folder, e.g. "001-sft".
        kind: What it does: "backbone", "explore", "imitate" or the name of its training method.
        round: 0 for the backbone's evaluation and imitation, then 1, 2, ...
        seconds: Wall time; 0 if the stage was taken over from another run.
        policy_version: The version that is served after it.
        adopted: The run that it was taken over from; None if it was computed here.
    """

    stage: str
    kind: str
    round: int
    seconds: float
    policy_version: int
    adopted: Adoption | None = None

    @property
    def evaluated(self) -> EvaluationFacts | None:
        """Its held-out evaluation, if it has one."""
        return None

    @property
    def general(self) -> ForgettingFacts | None:
        """What it says of general problems, if it was asked any."""
        return None


@dataclass(frozen=True, kw_only=True)
class BackboneFacts(StageFacts):
    """The evaluation of policy version 0.

    Attributes:
        evaluation: Its evaluation as it comes.
        baseline: The response format that it was asked for; "": the run's.
        in_form: Its evaluation in the run's format, whose markers or tags nobody has taught it; None: the same.
    """

    evaluation: EvaluationFacts
    baseline: str = ""
    in_form: EvaluationFacts | None = None
    forgetting: ForgettingFacts | None = None

    @property
    def evaluated(self) -> EvaluationFacts:
        """See `StageFacts`."""
        return self.evaluation

    @property
    def general(self) -> ForgettingFacts | None:
        """See `StageFacts`."""
        return self.forgetting


@dataclass(frozen=True, kw_only=True)
class BudgetFacts:
    """What a round did with `explore.max_sampled_tokens`.

    Attributes:
        max_sampled_tokens: The budget.
        num_sampled_tokens: Tokens of all its responses.
        num_unaffordable: Problems that would have got another wave if there had been more of it.
    """

    max_sampled_tokens: int
    num_sampled_tokens: int
    num_unaffordable: int


@dataclass(frozen=True, kw_only=True)
class ExploreFacts(StageFacts):
    """A round of sampling.

    Attributes:
        num_problems: Problems asked.
        num_rollouts: Responses stored.
        verdicts: Count of each verdict, absent ones as 0.
        num_solved: Problems with a correct response.
        num_rollouts_saved: Responses below `samples_per_problem` that adaptive sampling, or a budget, left out.
        budget: What became of its budget of tokens; None: it had none.
    """

    num_problems: int
    num_rollouts: int
    verdicts: dict[str, int]
    num_solved: int
    num_rollouts_saved: int = 0
    budget: BudgetFacts | None = None


@dataclass(frozen=True, kw_only=True)
class TrainFacts(StageFacts):
    """A training stage that made a policy version.

    Attributes:
        checkpoint: Folder of the new policy inside the stage's.
        data: Counts of its training data, as its method names them.
        training: What the trainer says.
        sync: Proof that the replicas serve the new version.
        evaluation: Its held-out evaluation.
        forgetting: What it says of general problems; None: it was asked none.
    """

    checkpoint: str = "checkpoint"
    data: dict[str, int]
    training: TrainResult
    sync: SyncReport
    evaluation: EvaluationFacts
    forgetting: ForgettingFacts | None = None

    @property
    def evaluated(self) -> EvaluationFacts:
        """See `StageFacts`."""
        return self.evaluation

    @property
    def general(self) -> ForgettingFacts | None:
        """See `StageFacts`."""
        return self.forgetting


@dataclass(frozen=True, kw_only=True)
class SkippedFacts(StageFacts):
    """A training stage that had nothing to train on; the policy stays as it was.

    Attributes:
        skipped: Why, for a person.
        data: Counts of what it found, as its method names them.
    """

    skipped: str
    data: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SummaryLine:
    """One evaluated stage in summary.json.

    Attributes:
        name: The stage.
        round: Its round.
        policy_version: The version that was evaluated.
        evaluation: Its held-out evaluation.
        seconds: Wall time of the stage.
        weak_sync: Whether the digests alone prove the sync of the weights.
        share_changed: Share of the weights that the stage changed; None where it trained nothing or does not know.
        baseline: As in `BackboneFacts`.
        in_form: As in `BackboneFacts`.
        forgetting: What it says of general problems; None: it was asked none.
    """

    name: str
    round: int
    policy_version: int
    evaluation: EvaluationFacts
    seconds: float
    weak_sync: bool = False
    share_changed: float | None = None
    baseline: str = ""
    in_form: EvaluationFacts | None = None
    forgetting: ForgettingFacts | None = None


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands, as state.json says.

    Attributes:
        round: Round of the stage.
        stage: The stage that runs, or the last one.
        policy_version: The version that is served.
        status: "running", "complete", "interrupted" or "failed", as its process wrote it; "killed" is what a reader
            finds of a run whose process ended without a word.
        rehearsal: Whether fakes make it.
        updated_at: When this was written, ISO 8601, UTC.
        cause: Why it failed; "" if it did not.
        command: The command line that resumes it; "" where a program of one's own runs it.
        beside: The exploration that goes on beside the stage; "": none does.
    """

    round: int
    stage: str
    policy_version: int
    status: Literal["running", "complete", "interrupted", "failed", "killed"]
    rehearsal: bool = False
    updated_at: str = ""
    cause: str = ""
    command: str = ""
    beside: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its end."""
        return self.status == "complete"


def summary_line(facts: StageFacts) -> SummaryLine | None:
    """The line of a stage; None for one without an evaluation."""
    if facts.evaluated is None:
        return None
    trained = facts if isinstance(facts, TrainFacts) else None
    untrained = facts if isinstance(facts, BackboneFacts) else None
    return SummaryLine(
        name=facts.stage,
        round=facts.round,
        policy_version=facts.policy_version,
        evaluation=facts.evaluated,
        seconds=facts.seconds,
        weak_sync=trained is not None and trained.sync.weak,
        share_changed=trained.training.share_changed if trained else None,
        baseline=untrained.baseline if untrained else "",
        in_form=untrained.in_form if untrained else None,
        forgetting=facts.general,
    )


# -- to JSON ----------------------------------------------------------------------------------------------------------


def facts_to_json(facts: StageFacts) -> dict[str, Any]:
    """What a manifest says of a stage, without its version and its files."""
    raw = asdict(facts)
    adopted = raw.pop("adopted")
    if isinstance(facts, BackboneFacts) and facts.in_form is None:
        del raw["baseline"], raw["in_form"]
    for name in ("forgetting", "budget"):
        if raw.get(name, ...) is None:
            del raw[name]
    if isinstance(facts, SkippedFacts):
        raw |= raw.pop("data")
    if adopted is not None:
        raw[ADOPTED] = {"from": adopted["origin"], "seconds": adopted["seconds"]}
    return raw


def summary_to_json(line: SummaryLine) -> dict[str, Any]:
    """A line of summary.json; what is not known has no key."""
    known: dict[str, Any] = {"name": line.name, "round": line.round, "policy_version": line.policy_version}
    if line.weak_sync:
        known["weak_sync"] = True
    known |= asdict(line.evaluation)
    if line.share_changed is not None:
        known["share_changed"] = line.share_changed
    if line.in_form is not None:
        known |= {"baseline": line.baseline, "in_form": asdict(line.in_form)}
    if line.forgetting is not None:
        known["forgetting"] = asdict(line.forgetting)
    return {**known, "seconds": line.seconds}


_UNSAID: Final = ("rehearsal", "cause", "command", "beside")


def state_to_json(state: RunState) -> dict[str, Any]:
    """What state.json says: what there is to say, so that a run that is no rehearsal does not say so."""
    raw = asdict(state)
    said = {name: value for name, value in raw.items() if value or name not in _UNSAID}
    return {"schema_version": SCHEMA_VERSION, **said}


# -- from JSON --------------------------------------------------------------------------------------------------------


def facts_from_json(raw: Mapping[str, Any], *, where: str) -> StageFacts:
    """The facts in a manifest.

    Args:
        raw: The manifest's object.
        where: Its file, for the message.

    Raises:
        InputError: A later release wrote it, or a value is missing or of another type.
    """
    check_version(raw, where=where)
    values = dict(raw)
    if isinstance(adopted := values.get(ADOPTED), Mapping):
        values[ADOPTED] = {"origin": adopted.get("from", ""), **adopted}
    if "evaluation" in values:
        values["evaluation"] = _completed(values["evaluation"])
    if SKIPPED in values:
        values["data"] = {key: value for key, value in values.items() if key.startswith("num_")}
    return _parsed(_kind_of_facts(values), values, where=where)


def _kind_of_facts(values: Mapping[str, Any]) -> type[StageFacts]:
    if values.get("kind") == StageKind.BACKBONE:
        return BackboneFacts
    if values.get("kind") == StageKind.EXPLORE:
        return ExploreFacts
    return SkippedFacts if SKIPPED in values else TrainFacts


def evaluation_from_json(raw: Mapping[str, Any], *, where: str) -> EvaluationFacts:
    """The result in an eval.json.

    Raises:
        InputError: As `facts_from_json`.
    """
    check_version(raw, where=where)
    return _parsed(EvaluationFacts, _completed(raw), where=where)


def summary_from_json(raw: Mapping[str, Any], *, where: str) -> tuple[SummaryLine, ...]:
    """The lines of summary.json.

    Raises:
        InputError: As `facts_from_json`.
    """
    check_version(raw, where=where)
    lines = [{**line, "evaluation": _completed(line)} for line in raw.get("stages", ())]
    return tuple(_parsed(SummaryLine, line, where=f"{where}: {line.get('name')}") for line in lines)


def state_from_json(raw: Mapping[str, Any], *, where: str) -> RunState:
    """What state.json says.

    Raises:
        InputError: As `facts_from_json`.
    """
    check_version(raw, where=where)
    return _parsed(RunState, raw, where=where)


def check_version(raw: Mapping[str, Any], *, where: str) -> None:
    """Refuses what a later release wrote.

    Raises:
        InputError: It did.
    """
    version = raw.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"{where}: schema_version is {version}: another version of still-ray wrote it, later than this one, which "
            f"reads {SCHEMA_VERSION}; use that version"
        )


def _completed(evaluation: Any) -> Any:
    """An evaluation with what early releases, which sampled one response to each problem, did not write."""
    if not isinstance(evaluation, Mapping) or "num_samples" in evaluation:
        return evaluation
    num_problems, rate = evaluation.get("num_problems", 0), evaluation.get("truncation_rate", 0.0)
    return {
        "num_samples": 1,
        "num_responses": num_problems,
        "num_truncated": round(rate * num_problems),
        "ci95_method": "Wilson",
        "pass_at_k": {},
        "majority": None,
        "thought_tokens": {},
        **evaluation,
    }


def _parsed(kind: type[Record], values: Mapping[str, Any], *, where: str) -> Record:
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise InputError(f"{where}: has no {key}; it was cut off or changed by hand") from error
        wanted = first["msg"].removeprefix("Input ")
        raise InputError(f"{where}: {key} {wanted}, not {first['input']!r}") from error
