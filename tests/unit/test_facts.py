"""What stages leave: records that cross a file unchanged, files of an earlier release, and files that are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from still_ray.algo.stages import plan_stages
from still_ray.facts import (
    Adoption,
    BackboneFacts,
    Estimate,
    ExploreFacts,
    SkippedFacts,
    StageFacts,
    TrainFacts,
    evaluation_from_json,
    facts_from_json,
    facts_to_json,
    state_from_json,
    state_to_json,
    summary_from_json,
    summary_line,
    summary_to_json,
)
from still_ray.types import SCHEMA_VERSION, InputError
from tests.fakes import evaluation_facts, make_recipe, stage_facts

BACKBONE, IMITATE, EXPLORE, DPO = plan_stages(make_recipe(rounds=[{"method": "dpo"}]))
SAMPLED = evaluation_facts(
    num_samples=2,
    pass_at_k={"1": Estimate(value=0.5, ci95=(0.25, 0.75)), "2": Estimate(value=0.75, ci95=(0.5, 1.0))},
    majority=Estimate(value=0.5, ci95=(0.25, 0.75)),
)
FACTS = [
    stage_facts(BACKBONE, evaluation=SAMPLED),
    stage_facts(BACKBONE, evaluation=SAMPLED, baseline="plain", in_form=evaluation_facts()),
    stage_facts(IMITATE, data={"num_demonstrations": 3, "num_explored": 0}),
    stage_facts(EXPLORE, num_problems=2, num_rollouts=4, verdicts={"correct": 3, "incorrect": 1}, num_solved=2),
    stage_facts(DPO, skipped="no pairs", data={"num_pairs": 0, "num_only_correct": 2}),
    stage_facts(DPO, adopted=Adoption(origin="long-seed1", seconds=12.5), seconds=0.0),
]

# Key by key as the driver and the store of the release before schema-checked records wrote them.
EVALUATION: dict[str, Any] = {
    "num_problems": 4,
    "num_correct": 1,
    "accuracy": 0.25,
    "ci95": [0.006, 0.806],
    "mean_thought_tokens": 31.5,
    "truncation_rate": 0.25,
    "verdicts": {"correct": 1, "incorrect": 2, "unparsable": 1, "timeout": 0, "error": 0},
    "num_samples": 1,
    "num_responses": 4,
    "num_truncated": 1,
    "ci95_method": "exact binomial",
    "pass_at_k": {"1": {"value": 0.25, "ci95": [0.006, 0.806]}},
    "majority": None,
    "thought_tokens": {"p10": 3, "median": 30, "p90": 60, "max": 61},
}
TRAINED: dict[str, Any] = {
    "schema_version": 1,
    "stage": "001-dpo",
    "kind": "dpo",
    "round": 1,
    "seconds": 20.5,
    "policy_version": 2,
    "checkpoint": "checkpoint",
    "data": {"num_pairs": 3, "num_only_correct": 1, "num_only_incorrect": 0},
    "training": {
        "steps": 4,
        "num_examples": 3,
        "num_skipped": 1,
        "num_tokens": 1200,
        "final_loss": 0.5,
        "seconds": 6.0,
        "resumed_from_step": 0,
        "num_control": 0,
        "share_changed": 0.125,
    },
    "sync": {
        "policy_version": 2,
        "transport": "object_store",
        "num_replicas": 2,
        "num_bytes": 1024,
        "seconds": 1.5,
        "max_logprob_difference": 1e-05,
        "probe_shift": 0.5,
        "num_digests": 29,
        "noise": 1e-06,
        "weak": True,
    },
    "evaluation": EVALUATION,
    "files": {"pairs.parquet": {"bytes": 10, "sha256": "0"}},
}
EXPLORED: dict[str, Any] = {
    "schema_version": 1,
    "stage": "001-explore",
    "kind": "explore",
    "round": 1,
    "seconds": 3.0,
    "policy_version": 1,
    "num_problems": 2,
    "num_rollouts": 4,
    "verdicts": {"correct": 3, "incorrect": 1, "unparsable": 0, "timeout": 0, "error": 0},
    "num_solved": 2,
    "num_rollouts_saved": 0,
    "files": {},
}
SKIPPED: dict[str, Any] = {
    "schema_version": 1,
    "stage": "001-dpo",
    "kind": "dpo",
    "round": 1,
    "seconds": 0.1,
    "policy_version": 1,
    "skipped": "no problem has both a correct and an incorrect response to learn from",
    "num_pairs": 0,
    "num_only_correct": 2,
    "files": {},
}
ADOPTED: dict[str, Any] = {**EXPLORED, "seconds": 0.0, "adopted": {"from": "long-seed1", "seconds": 3.0}}
OF_BEFORE = {"trained": TRAINED, "explored": EXPLORED, "skipped": SKIPPED, "adopted": ADOPTED}


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: type(facts).__name__)
def test_facts_cross_a_file_unchanged(facts: StageFacts) -> None:
    back = facts_from_json(json.loads(json.dumps(facts_to_json(facts))), where="manifest.json")
    assert back == facts
    assert type(back) is type(facts)


@pytest.mark.parametrize("name", OF_BEFORE)
def test_a_manifest_of_before_reads_and_is_written_key_by_key_as_it_was(name: str) -> None:
    raw = OF_BEFORE[name]
    facts = facts_from_json(raw, where="manifest.json")
    kinds = {"trained": TrainFacts, "skipped": SkippedFacts}
    assert type(facts) is kinds.get(name, ExploreFacts)
    written = json.loads(json.dumps(facts_to_json(facts)))
    assert written == {key: value for key, value in raw.items() if key not in ("schema_version", "files")}
    assert list(written)[:5] == ["stage", "kind", "round", "seconds", "policy_version"]


def test_what_a_stage_took_over_says_is_kept() -> None:
    assert facts_from_json(ADOPTED, where="").adopted == Adoption(origin="long-seed1", seconds=3.0)


def test_counts_of_any_training_method_are_kept() -> None:
    facts = facts_from_json({**TRAINED, "kind": "kto", "data": {"num_desirable": 3}}, where="")
    assert isinstance(facts, TrainFacts) and facts.data == {"num_desirable": 3} and facts.kind == "kto"


def test_a_manifest_of_an_early_release_lacks_what_came_later() -> None:
    """One greedy response to each problem, no digests, no share of changed weights, nothing on resuming."""
    early = {key: EVALUATION[key] for key in list(EVALUATION)[:7]}
    training = {key: TRAINED["training"][key] for key in list(TRAINED["training"])[:6]}
    sync = {key: TRAINED["sync"][key] for key in list(TRAINED["sync"])[:7]}
    facts = facts_from_json({**TRAINED, "evaluation": early, "training": training, "sync": sync}, where="")
    assert isinstance(facts, TrainFacts)
    assert (facts.evaluation.num_samples, facts.evaluation.num_responses, facts.evaluation.num_truncated) == (1, 4, 1)
    assert facts.evaluation.ci95_method == "Wilson"
    assert (facts.training.share_changed, facts.training.resumed_from_step) == (None, 0)
    assert (facts.sync.num_digests, facts.sync.weak) == (0, False)


def test_an_evaluation_reads_from_its_file_whatever_else_stands_there() -> None:
    raw = {"schema_version": 1, **EVALUATION, "model": {"path": "/m"}, "raw_outputs": {"num_rows": 4}}
    assert evaluation_from_json(raw, where="eval.json") == facts_of(TRAINED).evaluation


def facts_of(raw: dict[str, Any]) -> TrainFacts:
    facts = facts_from_json(raw, where="")
    assert isinstance(facts, TrainFacts)
    return facts


# -- summary.json -----------------------------------------------------------------------------------------------------


def test_a_line_of_the_summary_of_before_reads_and_is_written_as_it_was() -> None:
    line = {"name": "001-dpo", "round": 1, "policy_version": 2, "weak_sync": True, **EVALUATION}
    line |= {"share_changed": 0.125, "seconds": 20.5}
    (found,) = summary_from_json({"schema_version": 1, "stages": [line]}, where="summary.json")
    assert found == summary_line(facts_of(TRAINED))
    written = json.loads(json.dumps(summary_to_json(found)))
    assert written == line and list(written) == list(line)


def test_what_is_not_known_has_no_key_in_the_summary() -> None:
    facts = stage_facts(BACKBONE)
    assert isinstance(facts, BackboneFacts)
    line = summary_line(facts)
    assert line is not None
    assert not {"weak_sync", "share_changed"} & summary_to_json(line).keys()
    assert summary_from_json({"stages": [summary_to_json(line)]}, where="") == (line,)
    assert summary_line(stage_facts(EXPLORE)) is None and summary_line(stage_facts(DPO, skipped="no pairs")) is None


# -- state.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [{}, {"rehearsal": True}])
def test_the_state_of_before_reads_and_is_written_as_it_was(mark: dict[str, bool]) -> None:
    where = {"schema_version": 1, "round": 1, "stage": "001-sft", "policy_version": 2, "status": "complete"}
    raw = {**where, **mark, "updated_at": "2026-01-01T00:00:00+00:00"}
    state = state_from_json(raw, where="state.json")
    assert state.is_complete and state.rehearsal is bool(mark)
    written = state_to_json(state)
    assert written == raw and list(written) == list(raw)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "m.json: schema_version is 2: another version of still-ray wrote it"),
        ({"policy_version": "two"}, "m.json: policy_version should be a valid integer"),
        ({"evaluation": {**EVALUATION, "ci95": [0.1]}}, "m.json: has no evaluation.ci95.1"),
        ({"data": {"num_pairs": "many"}}, "m.json: data.num_pairs should be a valid integer"),
        ({"evaluation": None}, "m.json: evaluation should be"),
        ({"adopted": {"seconds": 1.0, "from": 3}}, "m.json: adopted.origin should be a valid string"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_file_and_key(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        facts_from_json({**TRAINED, **changed}, where="m.json")
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_a_broken_line_of_the_summary_is_named() -> None:
    line = {"name": "001-dpo", "round": 1, "policy_version": 2, "seconds": 1.0, **EVALUATION, "accuracy": "high"}
    with pytest.raises(InputError, match=r"^summary\.json: 001-dpo: evaluation\.accuracy should be a valid number"):
        summary_from_json({"schema_version": 1, "stages": [line]}, where="summary.json")
