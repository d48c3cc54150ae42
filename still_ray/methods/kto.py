"""Kahneman-Tversky optimisation on every judged trajectory: right ones are desirable, wrong ones are not; no pairs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from still_ray.algo.seeds import derived_seed
from still_ray.algo.selection.select import distinct_candidates, is_usable
from still_ray.config.methods import Expected, Method, Pool, Prepared, Request, RowSource
from still_ray.config.schema import Init, PositiveFloat, PositiveInt, Scope, TrainingSection
from still_ray.methods.dpo import PreferenceOptimizerConfig
from still_ray.types import Candidate, Trajectory, Verdict, trajectory_id

_JUDGED: Final = (Verdict.CORRECT, Verdict.INCORRECT)


@dataclass(frozen=True, kw_only=True)
class JudgedExample:
    """One row of judged.parquet: a trajectory and whether its answer is right.

    Attributes:
        source_id: The trajectory's key as "round/problem_id/sample_index".
        problem_id: The problem's id.
        question: Without the prompt template.
        thought: The thought.
        solution: The solution.
        desirable: Whether the verifier called the answer correct.
    """

    source_id: str
    problem_id: str
    question: str
    thought: str
    solution: str
    desirable: bool


class KtoConfig(TrainingSection):
    """Kahneman-Tversky optimisation (arXiv 2402.01306)."""

    init: Init = Field(default="previous", description="Start from the previous stage's model. Source: ours (as DPO).")
    scope: Scope = Field(default="thought", description="Learn the thought alone, or thought + solution. Source: ours.")
    epochs: PositiveFloat = Field(default=1.0, description="Passes over the responses. Source: the KTO paper.")
    per_device_batch_size: PositiveInt = Field(
        default=2,
        description="Rows in one forward pass of one worker; the loss kto compares rows of a pass with one another and "
        "needs two. Source: TRL.",
    )
    optimizer: PreferenceOptimizerConfig = Field(
        default_factory=PreferenceOptimizerConfig, description="AdamW. Source: see its fields."
    )
    beta: PositiveFloat = Field(default=0.1, description="Strength of the reference. Source: the KTO paper.")
    loss: Literal["kto", "apo_zero_unpaired"] = Field(
        default="kto", description="kto, or APO's zero variant for single responses (arXiv 2408.06266). Source: TRL."
    )
    desirable_weight: PositiveFloat = Field(
        default=1.0,
        description="Weight of correct responses; the paper wants desirable_weight x correct : undesirable_weight x "
        "incorrect between 1:1 and 4:3. Source: the KTO paper.",
    )
    undesirable_weight: PositiveFloat = Field(
        default=1.0, description="Weight of incorrect responses. Source: the KTO paper."
    )
    reference: str = Field(
        default="start",
        description="The model that the policy is held to: start, the weights that the stage starts from; backbone; or "
        "a training stage before this one, e.g. 000-imitate. Source: the KTO paper (start).",
    )
    rounds: Literal["latest", "all"] = Field(
        default="latest", description="Learn from the latest round, or from all. Source: ours (on-policy)."
    )
    max_examples: PositiveInt | None = Field(
        default=None, description="At most so many responses, by the seed; null: no cap. Source: ours."
    )

    @model_validator(mode="after")
    def _rows_to_compare(self) -> Self:
        if self.loss == "kto":
            self.require_rows_apart(self.loss)
        if self.loss == "kto" and self.per_device_batch_size == 1:
            raise ValueError(
                "the loss kto compares rows of a forward pass with one another: set per_device_batch_size to 2 or "
                "more, or take apo_zero_unpaired"
            )
        return self


class Kto(Method[KtoConfig, JudgedExample]):
    """Kahneman-Tversky optimisation."""

    name = "kto"
    title = "KTO"
    settings = KtoConfig
    record = JudgedExample
    table = "judged.parquet"
    trainer = "still_ray.trainer.methods.kto:KtoTraining"
    takes = "KTO takes correct and incorrect responses, each by itself"
    loss_text = "KTO: how far correct responses are raised above the reference, and incorrect ones lowered below it."
    unit = " responses"
    may_be_wrong = True
    row_counts = {"num_desirable": " correct", "num_undesirable": " incorrect"}  # noqa: RUF012 - never changed
    copies = ("num_equal_responses",)
    main_settings = ("loss", "beta", "scope", "desirable_weight", "undesirable_weight")
    source_columns = ("source_id",)

    def rounds(self, settings: KtoConfig, explored: Sequence[int]) -> Sequence[int]:
        """The latest round that explored, or all so far."""
        return explored if settings.rounds == "all" else explored[-1:]

    def prepare(self, pool: Pool, request: Request[KtoConfig]) -> Prepared[JudgedExample]:
        """Every usable response that is called correct or incorrect; of equal ones of a verdict the first by key."""
        settings = request.settings
        candidates = list(pool.candidates(self.rounds(settings, request.explored)))
        judged = [row for row in candidates if row.verdict in _JUDGED and is_usable(row)]
        distinct = [row for verdict in _JUDGED for row in _distinct(judged, verdict, settings.scope)]
        taken = sorted(distinct, key=lambda row: row.key)
        if settings.max_examples is not None and len(taken) > settings.max_examples:
            draw = random.Random(derived_seed(request.seed, "judged"))
            taken = sorted(draw.sample(taken, settings.max_examples), key=lambda row: row.key)
        counts = Counter(row.verdict for row in taken)
        num_equal, num_over_cap = len(judged) - len(distinct), len(distinct) - len(taken)
        num_unusable = len(candidates) - len(judged)
        lacking = [verdict.value for verdict in _JUDGED if not counts[verdict]]
        return Prepared(
            rows=judged_examples(pool.trajectories([row.key for row in taken])),
            skipped=f"no {' and no '.join(lacking)} response to learn from" if lacking else "",
            counts={
                "num_desirable": counts[Verdict.CORRECT],
                "num_undesirable": counts[Verdict.INCORRECT],
                "num_equal_responses": num_equal,
                "num_responses": len(candidates),
                "num_unusable": num_unusable,
                "num_over_cap": num_over_cap,
            },
            note=f"{counts[Verdict.CORRECT]} correct and {counts[Verdict.INCORRECT]} incorrect of {len(candidates)} "
            f"responses; left out: {num_unusable} malformed, cut off or without a verdict on their answer, "
            f"{num_equal} copies of a response, {num_over_cap} over max_examples",
        )

    def expected_rows(self, settings: KtoConfig, expected: Expected) -> int:
        """Every response, were all of them usable."""
        rollouts = expected.num_rollouts_so_far if settings.rounds == "all" else expected.num_rollouts
        return min(rollouts, settings.max_examples or rollouts)

    def source(self, row: JudgedExample) -> RowSource:
        """One trajectory."""
        return RowSource(ids=(row.source_id,))

    def texts(self, row: JudgedExample) -> tuple[str, ...]:
        """Question, thought and solution."""
        return (f"{row.question}\n{row.thought}\n{row.solution}",)

    def left_out(self, label: str, counts: Mapping[str, int]) -> str:
        """How many responses of each kind there were."""
        return f"{label}: {counts['num_desirable']:,} correct and {counts['num_undesirable']:,} incorrect responses."

    def reference(self, settings: KtoConfig) -> str:
        """See `KtoConfig.reference`."""
        return settings.reference


def _distinct(rows: Iterable[Candidate], verdict: Verdict, scope: Scope) -> list[Candidate]:
    return distinct_candidates((row for row in rows if row.verdict is verdict), scope)


def judged_examples(trajectories: Iterable[Trajectory]) -> Iterator[JudgedExample]:
    """Streams rows of trajectories, which are called correct or incorrect."""
    for row in trajectories:
        yield JudgedExample(
            source_id=trajectory_id(row.key),
            problem_id=row.problem_id,
            question=row.question,
            thought=row.thought,
            solution=row.solution,
            desirable=row.verdict is Verdict.CORRECT,
        )


KTO = Kto()
