"""Direct preference optimisation on pairs of trajectories of one problem, by any of TRL's losses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, Self

from pydantic import Field, field_validator, model_validator

from still_ray.algo.selection.pairing import Pairing, pair_trajectories
from still_ray.config.methods import Expected, Method, Pool, Prepared, Request, RowSource
from still_ray.config.schema import (
    Init,
    OptimizerConfig,
    PairConfig,
    PositiveFloat,
    Scope,
    TrainingSection,
)
from still_ray.extensions import did_you_mean
from still_ray.types import FinishReason, PreferencePair, Trajectory, trajectory_id

LOSSES: Final = (
    *("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft"),
)
"""The losses of TRL 1.16's DPOTrainer; a test holds this list against TRL."""
SFT_LOSS: Final = "sft"
"""The loss that looks at the chosen side alone, as supervised fine-tuning does."""
SORTED: Final = ("aot", "aot_unpaired")
"""The losses that sort the pairs of a forward pass."""
SMOOTHED: Final = ("exo_pair", "robust", "aot", "aot_unpaired")
"""The losses that label smoothing changes; exo_pair has no value without it."""


class PreferenceOptimizerConfig(OptimizerConfig):
    """AdamW for preferences, which need far smaller steps."""

    learning_rate: PositiveFloat = Field(
        default=5e-7,
        description="Peak learning rate; with few pairs it hardly moves a bfloat16 model, plan warns where. Source: "
        "ours (Tulu 2's, arXiv 2311.10702; the DPO paper's is 1e-6), STILL-2 names none for DPO.",
    )


class DpoConfig(TrainingSection):
    """Direct preference optimisation, with an optional SFT term."""

    init: Init = Field(
        default="previous", description="Start from the previous stage's model. Source: paper (SFT, then DPO)."
    )
    scope: Scope = Field(
        default="thought",
        description="Learn the thought alone, or thought + solution. Source: paper (thought alone best).",
    )
    epochs: PositiveFloat = Field(default=1.0, description="Passes over the pairs. Source: ours, the paper names none.")
    optimizer: PreferenceOptimizerConfig = Field(
        default_factory=PreferenceOptimizerConfig, description="AdamW. Source: see its fields."
    )
    beta: PositiveFloat = Field(default=0.1, description="Strength of the reference. Source: ours (the DPO paper's).")
    loss: str | list[str] | dict[str, PositiveFloat] = Field(
        default="sigmoid",
        description="A loss of TRL's DPOTrainer, a list of them, each with weight 1, or {loss: weight}: "
        f"{', '.join(LOSSES)}. Source: paper (DPO's own, sigmoid).",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0,
        description=f"Chance that a pair is the wrong way round; of the losses {', '.join(SMOOTHED)} alone. exo_pair "
        "needs one, its paper (arXiv 2402.00856) takes 0.001. Source: ours (TRL's).",
    )
    reference: str = Field(
        default="start",
        description="The model that the policy is held to: start, the weights that the stage starts from; backbone; or "
        "a training stage before this one, e.g. 000-imitate. Source: paper (start, the model after SFT).",
    )
    sft_weight: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Weight of an SFT loss on the chosen side; 0: none. Short for `sft` among the losses. Source: "
        "paper (without was best).",
    )
    pairs: PairConfig = Field(default_factory=PairConfig, description="Choice of the pairs. Source: paper.")

    @field_validator("loss", mode="before")
    @classmethod
    def _known_losses(cls, value: Any) -> Any:
        names = [value] if isinstance(value, str) else value
        for name in names if isinstance(names, list | tuple | Mapping) else ():
            if name not in LOSSES:
                hint = did_you_mean(str(name), LOSSES) or f"; known: {', '.join(LOSSES)}"
                raise ValueError(f"unknown loss {name!r}{hint}")
        if not names or (isinstance(names, list) and len(set(names)) < len(names)):
            raise ValueError("name at least one loss, and each once")
        return value

    @model_validator(mode="after")
    def _one_sft_term(self) -> Self:
        if self.sft_weight and SFT_LOSS in dict(_weighted(self.loss)):
            raise ValueError("sft_weight is short for the loss sft: give one of them")
        return self

    @model_validator(mode="after")
    def _rows_to_compare(self) -> Self:
        for name in dict(self.losses).keys() & set(SORTED):
            self.require_rows_apart(name)
        return self

    @model_validator(mode="after")
    def _smoothing_is_of_use(self) -> Self:
        names = dict(self.losses)
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError("the loss exo_pair needs a label_smoothing above 0, e.g. 0.001")
        if self.label_smoothing and not set(names) & set(SMOOTHED):
            raise ValueError(f"label_smoothing changes none of {', '.join(names)}, only {', '.join(SMOOTHED)}")
        return self

    @property
    def losses(self) -> tuple[tuple[str, float], ...]:
        """Every term of the loss with its weight, the SFT term last where `sft_weight` asks for it."""
        short = ((SFT_LOSS, self.sft_weight),) if self.sft_weight else ()
        return (*_weighted(self.loss), *short)


def _weighted(loss: str | list[str] | dict[str, float]) -> tuple[tuple[str, float], ...]:
    if isinstance(loss, dict):
        return tuple(loss.items())
    return tuple((name, 1.0) for name in ([loss] if isinstance(loss, str) else loss))


class Dpo(Method[DpoConfig, PreferencePair]):
    """Direct preference optimisation."""

    name = "dpo"
    title = "DPO"
    settings = DpoConfig
    record = PreferencePair
    table = "pairs.parquet"
    trainer = "still_ray.trainer.methods.dpo:DpoTraining"
    takes = "DPO takes pairs of a correct and an incorrect one"
    loss_text = "DPO: preference loss and, with sft_weight, cross-entropy of the chosen side."
    unit = " pairs"
    may_be_wrong = True
    num_sequences = 2
    row_counts = {"num_pairs": " pairs"}  # noqa: RUF012 - never changed
    copies = ("num_equal_responses",)
    main_settings = ("pairs.rule", "beta", "scope", "loss", "sft_weight")
    source_columns = ("problem_id", "chosen_id", "rejected_id")

    def rounds(self, settings: DpoConfig, explored: Sequence[int]) -> Sequence[int]:
        """The latest round that explored, or all so far."""
        return explored if settings.pairs.rounds == "all" else explored[-1:]

    def prepare(self, pool: Pool, request: Request[DpoConfig]) -> Prepared[PreferencePair]:
        """Pairs of the trajectories of the rounds that the settings name."""
        settings = request.settings
        pairing = pair_trajectories(
            pool.candidates(self.rounds(settings, request.explored)),
            settings.pairs,
            scope=settings.scope,
            seed=request.seed,
        )
        return Prepared(
            rows=preference_pairs(pool.trajectories([key for pair in pairing.pairs for key in pair.keys])),
            skipped="" if pairing.pairs else _nothing_to_learn(settings, pairing),
            counts={
                "num_pairs": len(pairing.pairs),
                "num_problems": pairing.num_problems,
                "num_matched": pairing.num_matched,
                "num_only_correct": pairing.num_only_correct,
                "num_only_incorrect": pairing.num_only_incorrect,
                "num_unusable": pairing.num_unusable,
                "num_unmatched": pairing.num_unmatched,
                "num_only_equal": pairing.num_only_equal,
                "num_equal_responses": pairing.num_equal_responses,
                "num_equal_sides": pairing.num_equal_sides,
                "num_equal_pairs": pairing.num_equal_pairs,
                "num_over_cap": pairing.num_over_cap,
            },
            note=_note(pairing),
        )

    def expected_rows(self, settings: DpoConfig, expected: Expected) -> int:
        """Pairs of the solved problems."""
        solved = expected.num_solved_so_far if settings.pairs.rounds == "all" else expected.num_solved
        pairs = solved * settings.pairs.max_per_problem
        return min(pairs, settings.pairs.max_pairs or pairs)

    def source(self, row: PreferencePair) -> RowSource:
        """Two trajectories; a pair counts by its chosen side."""
        return RowSource(ids=(row.chosen_id, row.rejected_id))

    def texts(self, row: PreferencePair) -> tuple[str, ...]:
        """Question, thought and solution of both sides."""
        return (
            f"{row.question}\n{row.chosen_thought}\n{row.chosen_solution}",
            f"{row.question}\n{row.rejected_thought}\n{row.rejected_solution}",
        )

    def left_out(self, label: str, counts: Mapping[str, int]) -> str:
        """Why problems have no pair, and which pairs were copies."""
        unusable = f" and {counts['num_unusable']:,} without any" if counts.get("num_unusable") else ""
        return (
            f"{label}: {counts['num_pairs']:,} pairs; without a pair were {counts['num_only_correct']:,} "
            f"problems with only correct, {counts['num_only_incorrect']:,} with only incorrect usable "
            f"responses{unusable}. "
            f"Left out: {counts.get('num_equal_sides', 0):,} pairs of equal sides, "
            f"{counts.get('num_equal_pairs', 0):,} copies of a pair."
        )

    def reference(self, settings: DpoConfig) -> str:
        """See `DpoConfig.reference`; cross-entropy of the chosen side alone compares with none."""
        return settings.reference if {*dict(settings.losses)} != {SFT_LOSS} else ""


def _note(pairing: Pairing) -> str:
    """The counts in a line; the problems in it add up."""
    without = {
        "only correct responses": pairing.num_only_correct,
        "only incorrect ones": pairing.num_only_incorrect,
        "none that is whole, well-formed and judged": pairing.num_unusable,
        "none that the rule joins": pairing.num_unmatched,
        "none but equal ones to join": pairing.num_only_equal,
    }
    reasons = ", ".join(f"{number} with {reason}" for reason, number in without.items() if number)
    left_out = {
        "copies of a response": pairing.num_equal_responses,
        "pairs of equal sides": pairing.num_equal_sides,
        "copies of a pair": pairing.num_equal_pairs,
        "pairs over max_pairs": pairing.num_over_cap,
    }
    found = f"{len(pairing.pairs)} preference pairs from {pairing.num_matched} of {pairing.num_problems} problems"
    others = f"; of the others {reasons}" if reasons else ""
    copies = ", ".join(f"{number} {what}" for what, number in left_out.items() if number)
    return f"{found}{others}" + (f"; left out: {copies}" if copies else "")


def _nothing_to_learn(settings: DpoConfig, pairing: Pairing) -> str:
    if pairing.num_unmatched:
        return f"the rule {settings.pairs.rule} joins no two responses to a problem"
    if pairing.num_problems and pairing.num_unusable == pairing.num_problems:
        return "no problem has a response to learn from that is whole, well-formed and judged"
    return "no problem has both a correct and an incorrect response to learn from"


def preference_pairs(sides: Iterable[Trajectory]) -> Iterator[PreferencePair]:
    """Streams pairs with their texts, of chosen and rejected trajectories in turn."""
    one_by_one = iter(sides)
    for chosen, rejected in zip(one_by_one, one_by_one, strict=True):
        yield _preferred(chosen, rejected)


def _preferred(chosen: Trajectory, rejected: Trajectory) -> PreferencePair:
    return PreferencePair(
        problem_id=chosen.problem_id,
        question=chosen.question,
        chosen_id=trajectory_id(chosen.key),
        rejected_id=trajectory_id(rejected.key),
        chosen_thought=chosen.thought,
        chosen_solution=_finished_solution(chosen),
        rejected_thought=rejected.thought,
        rejected_solution=_finished_solution(rejected),
        chosen_perplexity=chosen.perplexity,
        rejected_perplexity=rejected.perplexity,
    )


def _finished_solution(trajectory: Trajectory) -> str:
    return trajectory.solution if trajectory.finish_reason is FinishReason.STOP else ""


DPO = Dpo()
