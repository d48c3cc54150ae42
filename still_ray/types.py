"""The records and enums that cross a process boundary or are written to a file.

Everything here is frozen, keyword-only and built from the standard library, so that any process (the driver, a Ray
actor, a killable verifier worker) can hold it without importing a heavy package.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

SCHEMA_VERSION = 1
"""Version of the stored records; written into every Parquet file's metadata and every manifest."""

RUN_STARTED = "run/started"
"""Event of a driver that starts or resumes a run; its value is the number of stages that were complete."""
ACTORS_LOST = "fault/actors_lost"
"""Event of actors that died ("cause": "died") or were lost with their node ("node"), by "pool"; its value: how many."""
TRAINER_REBUILT = "fault/trainer_rebuilt"
"""Event of a trainer group that was built again after a rank had died."""

CodeReference = dict[str, Any]
"""Reference of a code problem: {"kind": "stdio", "cases": [{"input", "output"}, ...]} or {"kind": "assert", "code"}."""


class StillRayError(Exception):
    """Base of the errors that still-ray raises on purpose; its text is one line meant for a person."""


class InputError(StillRayError):
    """The input or the recipe is wrong: names the file, the row or key, and what would be right (exit status 2).

    Args:
        text: What is wrong, for a person.
        reason: The same in few words and without names, so that rows can be counted by it; "" if nobody counts.
    """

    def __init__(self, text: str, *, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason


class RunError(StillRayError):
    """The run failed: what failed and where its log is (exit status 1).

    Args:
        text: What failed, for a person.
        actor_id: Ray's id of the actor whose log says more; "" if none does, or if the cause names it.
    """

    def __init__(self, text: str, *, actor_id: str = "") -> None:
        super().__init__(text)
        self.actor_id = actor_id


class Domain(StrEnum):
    """The domains that have a verifier here, which says how an answer is compared with its reference.

    A row may have any other domain for which a verifier of the user's own is named: domains travel as text.
    """

    MATH = "math"
    CHOICE = "choice"
    CODE = "code"
    EXACT = "exact"


class Verdict(StrEnum):
    """What the verifier says of one response. Only CORRECT and INCORRECT judge the answer itself."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"
    ERROR = "error"


class FinishReason(StrEnum):
    """Why the sampler stopped: an end token, or a token limit (the response is truncated)."""

    STOP = "stop"
    LENGTH = "length"


class FormatDefect(StrEnum):
    """What is wrong with the form of a response; the text is what a person reads."""

    NO_THOUGHT = "no thought"
    THOUGHT_NOT_CLOSED = "the thought is not closed"
    NO_SOLUTION = "no solution"
    SOLUTION_NOT_CLOSED = "the solution is not closed"
    TRUNCATED = "truncated: the token limit was reached before the end of the solution"
    TWO_THOUGHTS = "more than one thought"
    TWO_SOLUTIONS = "more than one solution"
    OUT_OF_ORDER = "the solution begins before the thought ends"
    TEXT_OUTSIDE = "text outside thought and solution"
    CONTROL = "a control token as text"


class StageKind(StrEnum):
    """What a stage of a run does.

    BACKBONE: evaluate what the run starts from. IMITATE: train on demonstrations. EXPLORE: sample and verify. TRAIN:
    one training method of a round.
    """

    BACKBONE = "backbone"
    IMITATE = "imitate"
    EXPLORE = "explore"
    TRAIN = "train"


class TrajectoryKey(NamedTuple):
    """What makes a trajectory unique within a run."""

    round: int
    problem_id: str
    sample_index: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question with a reference answer.

    Attributes:
        id: Unique within its file.
        domain: How the answer is verified: a `Domain`, or one that a verifier of the user's own is named for.
        question: What the model is asked, without the prompt template.
        answer: The reference: text; a letter for `choice`; JSON text of a `CodeReference` for `code`.
        subject: Free label of the kind of problem, e.g. "Algebra"; "" if unknown.
        level: Difficulty as the source states it; None if unknown.
    """

    id: str
    domain: str
    question: str
    answer: str
    subject: str = ""
    level: int | None = None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn of a chat.

    Attributes:
        role: "system", "user" or "assistant".
        content: What is said; of an assistant's turn without its thought.
    """

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """A question with a teacher's long-form thought and solution, or a general one with an answer alone.

    Attributes:
        id: Unique within its file.
        domain: The source's label of the problem type, e.g. "math", "physics", "puzzle".
        question: What was asked, without the prompt template; of a chat, what the last answer answers.
        thought: Text of the thought, stripped; "" only in a general row.
        solution: Text of the solution, stripped.
        turns: Of a chat, those before the question.
        dataset: Name of its file among several of `data.demonstrations`; "" for the only one.
        general: Whether it is asked as it stands, without the prompt template, which asks for a thought.
        copies: How often an epoch learns it.
    """

    id: str
    domain: str
    question: str
    thought: str
    solution: str
    turns: tuple[Turn, ...] = ()
    dataset: str = ""
    general: bool = False
    copies: int = 1

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that is read or learnt, in order."""
        return (*(turn.content for turn in self.turns), self.question, self.thought, self.solution)


@dataclass(frozen=True, kw_only=True)
class ParsedResponse:
    """A response cut at what parts its thought from its solution.

    Attributes:
        thought: Text of the thought, stripped; what there is of it when it is not closed; "" when there is none.
        solution: Text of the solution likewise.
        defect: What is wrong with the form, or None for a well-formed response.
    """

    thought: str
    solution: str
    defect: FormatDefect | None = None


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How responses are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus mass in (0, 1].
        max_tokens: Most tokens of one response.
    """

    temperature: float
    top_p: float
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class PartialResponse:
    """Sampled tokens of a response that is not judged yet: another replica goes on from them if they are the first.

    Attributes:
        round: As in `Trajectory`, like the next three.
        problem_id: Its problem.
        sample_index: Which sample of it.
        policy_version: Which weights sampled it; no others may go on from it.
        start: Tokens of the response before these; 0 where these are its first.
        tokens: The token ids, `packed_tokens`.
        sum_logprob: Sum of these tokens' log-probabilities, natural log, before temperature.
        latency_s: Seconds that it took to sample the response up to the last of these.
        continued_at: As in `Trajectory`, of the response up to here.
        finish_reason: Why sampling stopped after these; None while it has not.
    """

    round: int
    problem_id: str
    sample_index: int
    policy_version: int
    start: int
    tokens: bytes
    sum_logprob: float
    latency_s: float
    continued_at: str = ""
    finish_reason: FinishReason | None = None

    @property
    def key(self) -> TrajectoryKey:
        """The key of the trajectory that it will be a part of."""
        return TrajectoryKey(self.round, self.problem_id, self.sample_index)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids."""
        return struct.unpack(f"<{len(self.tokens) // 4}I", self.tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens of the response up to the last of these."""
        return self.start + len(self.tokens) // 4

    def extended(self, further: PartialResponse) -> PartialResponse:
        """This with what was sampled after it, or the longer one of two wholes; unchanged if neither is the case."""
        same = further.policy_version == self.policy_version
        if further.start == 0:
            return self if same and further.num_tokens <= self.num_tokens else further
        follows = further.start == self.num_tokens and further.continued_at in (self.continued_at, self.cut_here)
        if not (same and follows):
            return self
        return replace(
            further,
            start=self.start,
            tokens=self.tokens + further.tokens,
            sum_logprob=self.sum_logprob + further.sum_logprob,
        )

    @property
    def cut_here(self) -> str:
        """`continued_at` of the response if another replica takes it up from here."""
        return self.continued_at if self.finish_reason else f"{self.continued_at} {self.num_tokens}".lstrip()


def packed_tokens(token_ids: Sequence[int]) -> bytes:
    """Token ids as bytes, 4 each, little-endian."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids)


@dataclass(frozen=True, kw_only=True)
class RolloutRequest:
    """All samples that are still wanted of one problem in one round: the unit that goes to one replica.

    Attributes:
        round: Round number, 1-based; 0 for evaluation outside a round.
        problem: The problem.
        sample_indices: Which samples to draw, each with its own seed.
        seeds: One seed for each sample index; a retried request is the same request.
        settings: Sampling settings.
        form: Response format that the model has by itself, and is asked for as it comes; "": the run's.
        general: Whether the question is asked as it stands, without the prompt template, and answered in any format.
        prefixes: What lost replicas had sampled of some of these samples, from the first token on.
    """

    round: int
    problem: Problem
    sample_indices: tuple[int, ...]
    seeds: tuple[int, ...]
    settings: SamplingSettings
    form: str = ""
    general: bool = False
    prefixes: tuple[PartialResponse, ...] = ()

    @property
    def keys(self) -> tuple[TrajectoryKey, ...]:
        """The key of each sample."""
        return tuple(TrajectoryKey(self.round, self.problem.id, index) for index in self.sample_indices)


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What an engine returns for one prompt and one seed.

    Attributes:
        text: The response, markers kept, end token left out.
        token_ids: Sampled token ids, the end token included when there was one.
        sum_logprob: Sum of the sampled tokens' log-probabilities, natural log, before temperature.
        finish_reason: Why sampling stopped.
        latency_s: Seconds from submission to the last token.
    """

    text: str
    token_ids: tuple[int, ...]
    sum_logprob: float
    finish_reason: FinishReason
    latency_s: float

    @property
    def num_tokens(self) -> int:
        """Sampled tokens, the end token included."""
        return len(self.token_ids)


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One sampled response, before verification. Field meanings as in `Trajectory`.

    `failure` says why nothing could be sampled, e.g. a prompt longer than the model; "" for a real response.
    """

    round: int
    problem: Problem
    sample_index: int
    seed: int
    response: str
    parsed: ParsedResponse
    num_tokens: int
    thought_tokens: int
    mean_logprob: float
    finish_reason: FinishReason
    policy_version: int
    sampler: str
    latency_s: float
    failure: str = ""
    continued_at: str = ""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verifier's finding on one answer.

    Attributes:
        verdict: One of five.
        extracted: The answer that was found in the solution, or None.
        detail: Why, in a few words.
    """

    verdict: Verdict
    extracted: str | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A rollout with its verdict: one row of the trajectory store.

    Attributes:
        round: Round in which it was sampled.
        problem_id: The problem's id.
        sample_index: 0-based index of the sample for its problem; (round, problem_id, sample_index) is unique.
        domain: How the answer was verified.
        question: Without the prompt template.
        answer: The reference.
        response: Whole model output.
        thought: Text between the thought markers.
        solution: Text between the solution markers.
        extracted: The answer found in the solution, or None.
        verdict: The verifier's word.
        policy_version: Which weights made it; 0 is the backbone.
        seed: Sampling seed, from (run seed, round, problem, sample).
        num_tokens: Sampled tokens, the end token included.
        thought_tokens: Tokens of the thought's text.
        mean_logprob: Mean log-probability of the sampled tokens, natural log, before temperature.
        perplexity: exp(-mean_logprob).
        finish_reason: stop or length.
        sampler: Name of the replica.
        latency_s: Seconds from submission to the last token.
        created_at: UTC time in ISO 8601.
        detail: The verifier's reason, in a few words.
        defect: What is wrong with the form of the response (text of a `FormatDefect`); "" for a well-formed one.
        continued_at: Where it was cut by a lost replica or driver and another replica went on: the tokens before each
            cut, separated by spaces. What comes after n tokens was drawn with `continuation_seed(seed, n)`. "" for a
            response that was sampled in one go.
    """

    round: int
    problem_id: str
    sample_index: int
    domain: str
    question: str
    answer: str
    response: str
    thought: str
    solution: str
    extracted: str | None
    verdict: Verdict
    policy_version: int
    seed: int
    num_tokens: int
    thought_tokens: int
    mean_logprob: float
    perplexity: float
    finish_reason: FinishReason
    sampler: str
    latency_s: float
    created_at: str
    detail: str = ""
    defect: str = ""
    continued_at: str = ""

    @property
    def key(self) -> TrajectoryKey:
        """What makes it unique within a run."""
        return TrajectoryKey(self.round, self.problem_id, self.sample_index)


def judged(rollout: Rollout, judgement: Judgement, *, created_at: str) -> Trajectory:
    """Joins a rollout and its verdict."""
    return Trajectory(
        round=rollout.round,
        problem_id=rollout.problem.id,
        sample_index=rollout.sample_index,
        domain=str(rollout.problem.domain),
        question=rollout.problem.question,
        answer=rollout.problem.answer,
        response=rollout.response,
        thought=rollout.parsed.thought,
        solution=rollout.parsed.solution,
        extracted=judgement.extracted,
        verdict=judgement.verdict,
        policy_version=rollout.policy_version,
        seed=rollout.seed,
        num_tokens=rollout.num_tokens,
        thought_tokens=rollout.thought_tokens,
        mean_logprob=rollout.mean_logprob,
        perplexity=math.exp(-rollout.mean_logprob),
        finish_reason=rollout.finish_reason,
        sampler=rollout.sampler,
        latency_s=rollout.latency_s,
        created_at=created_at,
        detail=judgement.detail,
        defect=rollout.parsed.defect.value if rollout.parsed.defect else "",
        continued_at=rollout.continued_at,
    )


def text_digest(*texts: str) -> bytes:
    """SHA-256 of some texts in their order: equal for equal texts, without keeping them."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", errors="surrogatepass")).digest()


@dataclass(frozen=True, kw_only=True, slots=True)
class LearntDigests:
    """What tells equal training rows apart from different ones, 16 bytes each.

    Attributes:
        whole: Of question, thought and solution.
        thought: Of question and thought: all that is learnt under the scope `thought`.
    """

    whole: bytes
    thought: bytes

    def under(self, scope: str) -> bytes:
        """The digest of what is learnt under a scope, `whole` or `thought`."""
        return self.thought if scope == "thought" else self.whole


def learnt_digests(row: Demonstration | Trajectory | CandidateColumns) -> LearntDigests:
    """The digests of what a row teaches, whatever its id; one without a thought teaches its solution."""
    before = tuple(turn.content for turn in row.turns) if isinstance(row, Demonstration) else ()
    whole = text_digest(*before, row.question, row.thought, row.solution)[:16]
    return LearntDigests(
        whole=whole,
        thought=text_digest(*before, row.question, row.thought)[:16] if row.thought else whole,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What selection needs to know of a trajectory: its key, its numbers and digests of its text, never the text.

    A pool of a 32B run holds gigabytes of text; selection decides on these rows, some 500 bytes each, and the store
    joins the text.
    """

    key: TrajectoryKey
    domain: str
    verdict: Verdict
    finish_reason: FinishReason
    well_formed: bool
    thought_chars: int
    perplexity: float
    digests: LearntDigests


@dataclass(frozen=True, kw_only=True)
class CandidateColumns:
    """The columns of a trajectory that its candidate is made of. Field meanings as in `Trajectory`."""

    round: int
    problem_id: str
    sample_index: int
    domain: Domain
    question: str
    thought: str
    solution: str
    verdict: Verdict
    perplexity: float
    finish_reason: FinishReason
    defect: str

    @property
    def key(self) -> TrajectoryKey:
        """What makes it unique within a run."""
        return TrajectoryKey(self.round, sys.intern(self.problem_id), self.sample_index)  # an id is shared by many


def candidate_of(trajectory: Trajectory | CandidateColumns) -> Candidate:
    """A trajectory without its texts."""
    return Candidate(
        key=trajectory.key,
        domain=sys.intern(str(trajectory.domain)),
        verdict=trajectory.verdict,
        finish_reason=trajectory.finish_reason,
        well_formed=not trajectory.defect,
        thought_chars=len(trajectory.thought),
        perplexity=trajectory.perplexity,
        digests=learnt_digests(trajectory),
    )


@dataclass(frozen=True, kw_only=True)
class PairKeys:
    """A preference pair before its text is joined: two trajectories of one problem."""

    chosen: TrajectoryKey
    rejected: TrajectoryKey

    @property
    def keys(self) -> tuple[TrajectoryKey, TrajectoryKey]:
        """Chosen, rejected."""
        return self.chosen, self.rejected


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """One row of training_set.parquet.

    Attributes:
        source: "demonstration" or "trajectory".
        source_id: The demonstration's id, or the trajectory's key as "round/problem_id/sample_index".
        domain: Label of the problem type.
        question: Without the prompt template.
        thought: The thought to learn; "" only in a general row.
        solution: The solution to learn.
        dataset: Of a demonstration, the name of its file where there are several; "" otherwise.
        general: Whether it is asked as it stands, without the prompt template.
        turns: Of a chat, those before the question, which are read and not learnt.
    """

    source: str
    source_id: str
    domain: str
    question: str
    thought: str
    solution: str
    dataset: str = ""
    general: bool = False
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One row of pairs.parquet: one question, a preferred and a dispreferred trajectory, with where they came from.

    A response that the token limit cut off has the solution "": it is learnt as far as its thought goes, unclosed.
    """

    problem_id: str
    question: str
    chosen_id: str
    rejected_id: str
    chosen_thought: str
    chosen_solution: str
    rejected_thought: str
    rejected_solution: str
    chosen_perplexity: float
    rejected_perplexity: float


def trajectory_id(key: TrajectoryKey) -> str:
    """The key as one text, "round/problem_id/sample_index"."""
    return f"{key.round}/{key.problem_id}/{key.sample_index}"


@dataclass(frozen=True, kw_only=True)
class ProbeSequence:
    """A token sequence and what the trainer's own forward pass says of it.

    Attributes:
        token_ids: The sequence.
        logprobs: log p(token_ids[i+1] | token_ids[..i]), natural log, for i in 0..len-2.
        start_logprobs: The same under the weights that the stage started from; empty: not known.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    start_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """Proof that every replica serves one policy version.

    Attributes:
        policy_version: The version.
        transport: The recipe's transport, "gloo" for a broadcast without GPUs, or "checkpoint"; several, joined by
            " + ", where a replica had to fall back. Older runs say "nccl" for a broadcast from GPU to GPU.
        num_replicas: Replicas that were brought to it.
        num_bytes: Bytes sent to each replica; 0 where the replica reads the checkpoint itself.
        seconds: From the first request to the last proof.
        max_logprob_difference: Largest absolute difference between a replica's probe and the trainer's.
        probe_shift: How far the probe moved from the previous version (mean absolute); the least of all replicas that
            took new weights.
        num_digests: Tensors whose digests every rank of every replica had to match; 0: the trainer took none.
        noise: Mean absolute difference between a replica's probe and the trainer's; the largest of all replicas.
        weak: Whether the probes moved by hardly more than the noise, so that the digests alone prove the sync.
    """

    policy_version: int
    transport: str
    num_replicas: int
    num_bytes: int
    seconds: float
    max_logprob_difference: float
    probe_shift: float
    num_digests: int = 0
    noise: float = 0.0
    weak: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training stage left behind.

    Attributes:
        steps: Optimizer steps.
        num_examples: Rows trained on; what a row is depends on the method.
        num_skipped: Rows left out because they exceed the sequence length.
        num_control: Rows left out because a control token of the model stands in them as text.
        num_tokens: Tokens of all rows over all epochs, padding left out.
        final_loss: Mean loss of the last logged window.
        seconds: Wall time of the training loop, without start-up; of a resumed stage, since it was resumed.
        resumed_from_step: Optimizer step that a saved state let it continue from; 0 for a fresh start.
        share_changed: Share of all weights, 0 to 1, that are not what they were in the model that the stage started
            from, in the checkpoint's type; None where it is not known: a record of before, a start model whose tensors
            cannot be compared, a rehearsal, which has no weights.
    """

    steps: int
    num_examples: int
    num_skipped: int
    num_tokens: int
    final_loss: float
    seconds: float
    resumed_from_step: int = 0
    num_control: int = 0
    share_changed: float | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of metrics.jsonl and one step of the live progress.

    Attributes:
        name: E.g. "explore/rollouts", "train/loss".
        value: The number.
        labels: E.g. {"round": "1", "stage": "explore"}.
    """

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


PEAK_MEMORY = "peak_memory_gib"
"""Among the metrics of a `TrainProgress`: most that tensors took of the rank's GPU since the stage's first step."""


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """What the trainer reports every few optimizer steps, as one record from the first rank to whoever watches.

    Attributes:
        step: Optimizer steps done, 1-based.
        total_steps: Optimizer steps of the whole stage.
        loss: Mean over the steps since the last report and over the ranks.
        learning_rate: Of the last step.
        tokens_per_s: Tokens of all ranks, padding left out, over wall time since the last report.
        epoch: Passes over the rows so far.
        metrics: What else TRL computed, e.g. "rewards/margins" of pairs, and on GPUs `PEAK_MEMORY`; of the first rank
            only.
    """

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_s: float
    epoch: float
    metrics: dict[str, float]

    def events(self, stage: str) -> list[Event]:
        """The lines of metrics.jsonl, one a number.

        Args:
            stage: Name of the stage that is trained.
        """
        labels = {"stage": stage, "step": str(self.step), "total": str(self.total_steps)}
        numbers = {
            "loss": self.loss,
            "tokens_per_s": self.tokens_per_s,
            "learning_rate": self.learning_rate,
            "epoch": self.epoch,
            **self.metrics,
        }
        return [Event(name=f"train/{name}", value=value, labels=labels) for name, value in numbers.items()]
