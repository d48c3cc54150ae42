"""The records: they cross a process and a file unchanged, and nothing changes them."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from still_ray import types
from still_ray.store.policy import PolicyRecord, read_policy_record, write_policy_record
from still_ray.store.tables import read_table, write_table
from still_ray.types import (
    CandidateColumns,
    Completion,
    Domain,
    Event,
    FinishReason,
    FormatDefect,
    Judgement,
    PairKeys,
    ParsedResponse,
    PreferencePair,
    ProbeSequence,
    Rollout,
    RolloutRequest,
    SamplingSettings,
    SyncReport,
    TrainingExample,
    TrainResult,
    TrajectoryKey,
    Turn,
    Verdict,
    judged,
    trajectory_id,
)
from tests.fakes import (
    make_candidate,
    make_demonstration,
    make_digests,
    make_part,
    make_problem,
    make_trajectory,
    train_progress,
)

AWKWARD = 'Ünïcode, "quotes", a\nbreak, \\boxed{½}, 🦉 and \x00'
SETTINGS = SamplingSettings(temperature=0.7, top_p=0.9, max_tokens=100)
RESULT = TrainResult(steps=3, num_examples=4, num_skipped=1, num_tokens=500, final_loss=0.25, seconds=1.5)
PROBE = ProbeSequence(token_ids=(1, 2, 3), logprobs=(-0.5, -1e-9))
PAIR = PreferencePair(
    problem_id="p",
    question=AWKWARD,
    chosen_id="1/p/0",
    rejected_id="1/p/1",
    chosen_thought=AWKWARD,
    chosen_solution="",
    rejected_thought="",
    rejected_solution=AWKWARD,
    chosen_perplexity=1.5,
    rejected_perplexity=1.25,
)
COLUMNS = CandidateColumns(
    round=2,
    problem_id="p",
    sample_index=3,
    domain=Domain.MATH,
    question=AWKWARD,
    thought=AWKWARD,
    solution=AWKWARD,
    verdict=Verdict.CORRECT,
    perplexity=1.5,
    finish_reason=FinishReason.STOP,
    defect="",
)
EXAMPLE = TrainingExample(
    source="trajectory", source_id="1/p/0", domain="math", question=AWKWARD, thought=AWKWARD, solution=AWKWARD
)
TURN = Turn(role="user", content=AWKWARD)
GENERAL = dataclasses.replace(
    EXAMPLE, dataset="chat", general=True, thought="", turns=(TURN, Turn(role="assistant", content=""))
)


def make_rollout(**changes: Any) -> Rollout:
    values = {
        "round": 2,
        "problem": make_problem(answer="1/2", question=AWKWARD),
        "sample_index": 3,
        "seed": 99,
        "response": AWKWARD,
        "parsed": ParsedResponse(thought="t", solution="s"),
        "num_tokens": 17,
        "thought_tokens": 5,
        "mean_logprob": -0.75,
        "finish_reason": FinishReason.STOP,
        "policy_version": 4,
        "sampler": "replica-1",
        "latency_s": 0.125,
    }
    return Rollout(**{**values, **changes})


RECORDS = [
    make_problem(level=3, subject=AWKWARD),
    make_demonstration(thought=AWKWARD),
    ParsedResponse(thought="t", solution="", defect=FormatDefect.NO_SOLUTION),
    SETTINGS,
    RolloutRequest(round=1, problem=make_problem(), sample_indices=(0, 2), seeds=(5, 6), settings=SETTINGS),
    Completion(text=AWKWARD, token_ids=(5, 6), sum_logprob=-1.5, finish_reason=FinishReason.LENGTH, latency_s=0.5),
    make_part(start=4, finish_reason=FinishReason.STOP, continued_at="4"),
    make_rollout(),
    Judgement(verdict=Verdict.TIMEOUT, extracted=None, detail="5 s"),
    make_trajectory(extracted=None, response=AWKWARD),
    make_candidate(),
    COLUMNS,
    make_digests("a text"),
    PairKeys(chosen=TrajectoryKey(1, "p", 0), rejected=TrajectoryKey(1, "p", 1)),
    TURN,
    EXAMPLE,
    PAIR,
    PROBE,
    SyncReport(
        policy_version=1,
        transport="checkpoint",
        num_replicas=2,
        num_bytes=7,
        seconds=0.5,
        max_logprob_difference=1e-6,
        probe_shift=0.1,
    ),
    RESULT,
    Event(name="train/loss", value=0.5, labels={"stage": "001-sft"}),
    train_progress(metrics={"rewards/margins": 0.25}),
]
STORED = [make_part(), make_trajectory(extracted=None, response=AWKWARD, problem_id="a/b"), EXAMPLE, GENERAL, PAIR]


def names(records: list[Any]) -> list[str]:
    return [type(record).__name__ for record in records]


def test_every_record_of_the_module_is_among_those_tested() -> None:
    records = {name for name, kind in inspect.getmembers(types, dataclasses.is_dataclass)}
    assert set(names(RECORDS)) == records


@pytest.mark.parametrize("record", RECORDS, ids=names(RECORDS))
def test_a_record_crosses_a_process_unchanged(record: Any) -> None:
    back = pickle.loads(pickle.dumps(record))
    assert back == record
    assert type(back) is type(record)


@pytest.mark.parametrize("record", RECORDS, ids=names(RECORDS))
def test_a_record_is_frozen_and_keyword_only(record: Any) -> None:
    first = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, first, getattr(record, first))
    with pytest.raises(TypeError, match="positional"):
        type(record)(getattr(record, first))


@pytest.mark.parametrize("record", STORED, ids=names(STORED))
def test_a_stored_record_comes_back_from_its_table(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "rows.parquet"
    write_table(path, [record, record], type(record))
    back = read_table(path, type(record))
    assert back == [record, record]
    for field in dataclasses.fields(record):
        assert type(getattr(back[0], field.name)) is type(getattr(record, field.name)), field.name


def test_every_verdict_domain_and_finish_reason_comes_back_as_its_enum(tmp_path: Path) -> None:
    rows = [make_trajectory(sample_index=i, verdict=verdict) for i, verdict in enumerate(Verdict)]
    rows += [make_trajectory(f"d{i}", domain=domain) for i, domain in enumerate(Domain)]
    rows += [make_trajectory(f"f{i}", finish_reason=reason) for i, reason in enumerate(FinishReason)]
    write_table(tmp_path / "t.parquet", rows, types.Trajectory)
    assert read_table(tmp_path / "t.parquet", types.Trajectory) == rows


def test_the_record_of_a_checkpoint_comes_back(tmp_path: Path) -> None:
    record = PolicyRecord(policy_version=2, stage="001-sft", result=RESULT, probes=(PROBE, PROBE))
    assert read_policy_record(tmp_path) is None
    write_policy_record(tmp_path, record)
    assert read_policy_record(str(tmp_path)) == record


# -- joining a rollout and its verdict --------------------------------------------------------------------------------


def test_a_judged_rollout_keeps_what_was_sampled_and_what_was_found() -> None:
    rollout = make_rollout()
    row = judged(rollout, Judgement(verdict=Verdict.INCORRECT, extracted="2", detail="2 is not 1/2"), created_at="now")
    assert row.key == TrajectoryKey(2, rollout.problem.id, 3)
    assert (row.question, row.answer, row.domain) == (AWKWARD, "1/2", Domain.MATH)
    assert (row.verdict, row.extracted, row.detail) == (Verdict.INCORRECT, "2", "2 is not 1/2")
    assert (row.thought, row.solution, row.response, row.defect) == ("t", "s", AWKWARD, "")
    copied = ("seed", "num_tokens", "thought_tokens", "mean_logprob", "policy_version", "sampler", "latency_s")
    assert all(getattr(row, name) == getattr(rollout, name) for name in copied)


def test_perplexity_is_the_inverse_geometric_mean_of_the_token_probabilities() -> None:
    probabilities = (0.5, 0.25, 0.125)
    rollout = make_rollout(mean_logprob=sum(map(math.log, probabilities)) / 3)
    row = judged(rollout, Judgement(verdict=Verdict.CORRECT), created_at="now")
    assert row.perplexity == pytest.approx(4.0)


def test_a_malformed_response_says_so_in_words() -> None:
    parsed = ParsedResponse(thought="t", solution="", defect=FormatDefect.TRUNCATED)
    row = judged(make_rollout(parsed=parsed), Judgement(verdict=Verdict.UNPARSABLE), created_at="now")
    assert row.defect == FormatDefect.TRUNCATED.value
    assert FormatDefect(row.defect) is FormatDefect.TRUNCATED


def test_the_id_of_a_trajectory_keeps_different_keys_apart() -> None:
    keys = [TrajectoryKey(1, "a", 11), TrajectoryKey(11, "a", 1), TrajectoryKey(1, "a/1", 1), TrajectoryKey(1, "a", 1)]
    assert trajectory_id(keys[-1]) == "1/a/1"
    assert len({trajectory_id(key) for key in keys}) == len(keys)


def test_a_completion_counts_its_tokens() -> None:
    completion = Completion(
        text="x", token_ids=(4, 5, 6), sum_logprob=-1.0, finish_reason=FinishReason.STOP, latency_s=0.0
    )
    assert completion.num_tokens == 3
