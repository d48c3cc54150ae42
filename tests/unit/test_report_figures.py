"""The numbers that the report shows, worked out by hand on a small run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from still_ray.algo.evaluation.comparison import compared_with_backbone
from still_ray.algo.evaluation.summary import correct_by_problem, summarize
from still_ray.facts import ForgettingFacts
from still_ray.report.charts import Size
from still_ray.report.exploration import pass_curves, perplexities, truncation, verdict_mix
from still_ray.report.facts import Inputs, RunFacts, read_run
from still_ray.report.outcome import accuracy, accuracy_by_level, forgetting, thought_by_level
from still_ray.report.page import headline, sections, tiles
from still_ray.report.parts import DASH, Figure, count, percent, points, quantile, seconds, size
from still_ray.report.pool import COPY, HELD, fates, growth
from still_ray.report.provenance import final_training_set, lineage
from still_ray.report.running import faults, losses, syncs, throughput, times
from still_ray.store.atomic import read_json, write_text
from still_ray.store.run_directory import RunDirectory
from still_ray.types import Trajectory
from tests.report_run import (
    BACKBONE,
    EPOCH,
    EXPLORE_1,
    IMITATE,
    SFT,
    TRAINED,
    ReportRun,
    first_round,
    rollout,
    whole_run,
)

OLDER = Path(__file__).parents[1] / "data/run-c998a02"
LEVELS = Inputs(test_levels={"t1": 1, "t2": 1, "t3": 2, "t4": 2})


@pytest.fixture
def facts(tmp_path: Path) -> RunFacts:
    return whole_run(tmp_path).facts(LEVELS)


def cells(figure: Figure) -> dict[str, dict[str, str]]:
    """The table of a figure by row and column; rows of equal names are told apart by their second column."""
    assert figure.table is not None and not figure.missing
    names = [row[0] for row in figure.table.rows]
    return {
        row[0] if names.count(row[0]) == 1 else f"{row[0]} {row[1]}": dict(zip(figure.table.columns, row, strict=True))
        for row in figure.table.rows
    }


def drawn(figure: Figure) -> list[dict[str, Any]]:
    """The rows that the figure draws."""
    assert figure.draw is not None
    values: list[dict[str, Any]] = figure.draw(Size())["data"]["values"]
    return values


# -- outcome ----------------------------------------------------------------------------------------------------------


def test_accuracy_by_stage(facts: RunFacts) -> None:
    table = cells(accuracy(facts))
    assert {name: row["accuracy"] for name, row in table.items()} == {
        "backbone": "0.0%",
        "imitation": "25.0%",
        "1 · SFT": "75.0%",
        "2 · DPO": "100.0%",
    }
    assert [row["policy"] for row in table.values()] == ["v0", "v1", "v2", "v3"]


def test_a_change_that_the_test_does_not_show_is_in_brackets(facts: RunFacts) -> None:
    """One of four problems more: the exact p-value is 1, and two of four: 0.5."""
    table = cells(accuracy(facts))
    assert table["imitation"]["change, points"] == "(+25.0)" and table["imitation"]["p"] == "1.00"
    assert table["1 · SFT"]["change, points"] == "(+50.0)"


def test_a_change_on_many_problems_is_shown_as_one(tmp_path: Path) -> None:
    """Twenty problems more and none less: p = 2 / 2^20."""
    run = ReportRun(tmp_path)
    names = [f"t{number}" for number in range(20)]
    run.finish(BACKBONE, evaluation=run.evaluate(BACKBONE, dict.fromkeys(names, False)))
    run.train(IMITATE, evaluation=run.evaluate(IMITATE, dict.fromkeys(names, True)))
    table = cells(accuracy(run.facts()))
    assert table["imitation"]["change, points"] == "+100.0" and table["imitation"]["p"] == "< 0.001"


def test_a_stage_that_forgets_is_named_beside_its_test_against_the_backbone(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    names = [f"g{number}" for number in range(10)]
    asked = {BACKBONE: dict.fromkeys(names, True), IMITATE: {name: name == "g0" for name in names}}
    responses = {
        stage: [rollout(name, 0, word(right), round_number=0) for name, right in said.items()]
        for stage, said in asked.items()
    }
    for stage, rows in responses.items():
        run.store.begin(stage, stage.policy_version)
        run.store.write_evaluation(stage, rows, summarize(rows), general=True)
    backbone, now = (correct_by_problem(run.store.general_responses(stage)) for stage in asked)
    found = compared_with_backbone(summarize(responses[IMITATE]), backbone, now, alpha=0.05)
    tested = run.evaluate(BACKBONE, {"t": True})
    run.finish(BACKBONE, evaluation=tested, forgetting=ForgettingFacts(evaluation=summarize(responses[BACKBONE])))
    run.train(IMITATE, evaluation=tested, forgetting=found)
    facts = run.facts()
    (figure,) = forgetting(facts)
    table = cells(figure)
    assert figure.text.startswith("Forgetting: imitation.") and figure.open
    assert (table["backbone"]["accuracy"], table["backbone"]["p"]) == ("100.0%", DASH)
    assert {name: table["imitation"][name] for name in ("accuracy", "problems lost", "gained", "p", "alarm")} == {
        "accuracy": "10.0%",
        "problems lost": "9",
        "gained": "0",
        "p": "0.004",  # 2 / 2^9
        "alarm": "forgets",
    }
    result = read_json(run.directory.evaluation(IMITATE, general=True))
    assert result is not None and result["accuracy"] == found.evaluation.accuracy == 0.1
    assert [row["accuracy"] for row in drawn(figure)] == [1.0, 0.1]
    assert forgetting(whole_run(tmp_path / "other").facts()) == ()


def word(right: bool) -> str:
    return "correct" if right else "incorrect"


def test_solve_rate_by_level_before_and_after(facts: RunFacts) -> None:
    table = cells(accuracy_by_level(facts))
    assert table["backbone"] == {"stage": "backbone", "level 1": "0.0% of 2", "level 2": "0.0% of 2"}
    assert table["1 · SFT"] == {"stage": "1 · SFT", "level 1": "100.0% of 2", "level 2": "50.0% of 2"}


def test_without_levels_a_sentence_takes_the_place(tmp_path: Path) -> None:
    facts = whole_run(tmp_path).facts()
    for figure in (accuracy_by_level(facts), thought_by_level(facts)):
        assert figure.draw is None and figure.missing.endswith(".")


def test_thoughts_by_level_leave_out_stages_that_do_not_think(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    run.finish(BACKBONE, evaluation=run.evaluate(BACKBONE, {"t1": False, "t3": False}, thought_tokens=0))
    run.train(IMITATE, evaluation=run.evaluate(IMITATE, {"t1": True, "t3": False}, thought_tokens=30))
    figure = thought_by_level(run.facts(LEVELS))
    assert list(cells(figure)) == ["imitation"] and cells(figure)["imitation"]["level 2"] == "30.0"
    assert "No thoughts at all: backbone." in figure.text


def samples(correct: dict[str, int], number: int, **changes: Any) -> list[Trajectory]:
    """So many responses to each held-out problem, the first ones correct."""
    return [
        rollout(problem, sample, "correct" if sample < right else "incorrect", round_number=0, **changes)
        for problem, right in correct.items()
        for sample in range(number)
    ]


def test_of_several_samples_responses_are_counted_not_problems(tmp_path: Path) -> None:
    """3 + 1 of 4 samples each: 4 of 8 responses to 2 problems."""
    run = ReportRun(tmp_path)
    rows = samples({"t1": 3, "t2": 1}, 4)
    run.store.write_evaluation(BACKBONE, rows, summarize(rows))
    run.finish(BACKBONE, evaluation=summarize(rows))
    (row,) = drawn(accuracy(run.facts()))
    assert row["tip"].endswith("4 of 8 responses to 2 problems")


@pytest.mark.parametrize(
    "correct", [{"t1": 2, "t2": 2}, {"t1": 0, "t2": 0}, {"t2": 2, "t1": 1, "t3": 0}], ids=["all", "none", "some"]
)
def test_intervals_of_a_level_are_those_of_the_evaluation(tmp_path: Path, correct: dict[str, int]) -> None:
    """Also where all samples are right, or none: a bootstrap would have no width there."""
    run = ReportRun(tmp_path)
    rows = samples(correct, 2)
    run.store.write_evaluation(BACKBONE, rows, summarize(rows))
    run.finish(BACKBONE, evaluation=summarize(rows))
    (row,) = drawn(accuracy_by_level(run.facts(Inputs(test_levels=dict.fromkeys(correct, 1)))))
    assert (row["low"], row["high"]) == summarize(rows).ci95 and row["high"] - row["low"] > 0.5


def test_a_level_is_that_of_the_held_out_problem(tmp_path: Path) -> None:
    """An id may stand for another problem among those to explore."""
    facts = whole_run(tmp_path).facts(Inputs(test_levels={"t1": 1}, problem_levels={"t1": 5, "t2": 5}))
    assert {row["level"] for row in drawn(accuracy_by_level(facts))} == {1}


# -- exploration ------------------------------------------------------------------------------------------------------


def test_pass_at_k_is_the_mean_over_problems(facts: RunFacts) -> None:
    """Round 1: problems with 2, 1 and 0 of 2 correct. Round 2: with 2 and 1."""
    shares = {(row["round"], row["k"]): row["share"] for row in drawn(pass_curves(facts))}
    expected = {("round 1", 1): 1 / 2, ("round 1", 2): 2 / 3, ("round 2", 1): 3 / 4, ("round 2", 2): 1.0}
    assert shares == pytest.approx(expected)


def test_pass_at_k_ends_at_the_fewest_samples(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    run.explore(EXPLORE_1, [*first_round(), rollout("p4", 0, "correct")])
    assert {row["k"] for row in drawn(pass_curves(run.facts()))} == {1}


def adaptive(run: ReportRun, **waves: int) -> None:
    """Has the recipe of a run sample its first round adaptively."""
    recipe = yaml.safe_load(run.directory.recipe.read_text(encoding="utf-8"))
    recipe["rounds"][0]["explore"]["adaptive"] = waves
    write_text(run.directory.recipe, yaml.safe_dump(recipe))


def test_pass_at_k_counts_only_samples_that_are_drawn_whatever_the_outcome(tmp_path: Path) -> None:
    """A problem with a right answer in its first 2 samples stops; the other got 2 more, both right.

    Of the first waves 1 of 2 and 0 of 2 are right: pass@1 1/4, pass@2 1/2. With all samples pass@1 would be 1/2, and
    pass@2 (1 + 5/6) / 2.
    """
    run = ReportRun(tmp_path)
    adaptive(run, initial=2, step=2, enough_correct=1)
    verdicts = {"p1": ("correct", "incorrect"), "p2": ("incorrect", "incorrect", "correct", "correct")}
    rows = [rollout(name, number, one) for name, mine in verdicts.items() for number, one in enumerate(mine)]
    run.explore(EXPLORE_1, rows)
    figure = pass_curves(run.facts())
    assert {row["k"]: row["share"] for row in drawn(figure)} == pytest.approx({1: 1 / 4, 2: 1 / 2})
    assert "round 1: 2" in figure.text


def test_pass_at_k_that_is_1_or_0_has_an_interval_with_a_width(tmp_path: Path) -> None:
    """Exact for 3 of 3: from 0.025 ^ (1/3)."""
    run = ReportRun(tmp_path)
    run.explore(EXPLORE_1, [rollout(f"p{number}", sample, "correct") for number in range(3) for sample in range(2)])
    for row in drawn(pass_curves(run.facts())):
        assert (row["low"], row["high"]) == pytest.approx((0.025 ** (1 / 3), 1.0))


def test_many_samples_give_few_points(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    run.explore(EXPLORE_1, [rollout("p1", number, "correct") for number in range(64)])
    found = [row["k"] for row in drawn(pass_curves(run.facts()))]
    assert found[0] == 1 and found[-1] == 64 and len(found) <= 10 and found == sorted(found)


def test_verdicts_and_truncation(facts: RunFacts) -> None:
    mix = cells(verdict_mix(facts))["round 1"]
    assert [mix[name] for name in ("correct", "incorrect", "unparsable", "timeout", "error", "rollouts")] == [
        *("3", "1", "1", "1", "0", "6")
    ]
    table = cells(truncation(facts))
    assert table["round 1"]["truncated"] == percent(1 / 6) and table["round 2"]["truncated"] == "0.0%"


def test_the_shares_of_a_round_add_up(facts: RunFacts) -> None:
    totals: dict[str, float] = {}
    for row in drawn(verdict_mix(facts)):
        totals[row["round"]] = totals.get(row["round"], 0.0) + row["share"]
    assert totals == pytest.approx({"round 1": 1.0, "round 2": 1.0})


def test_perplexities_by_verdict(facts: RunFacts) -> None:
    medians = {(row["round"], row["verdict"]): row["p50"] for row in drawn(perplexities(facts))}
    assert medians["round 1", "correct"] == pytest.approx(1.2)
    assert medians["round 1", "incorrect"] == pytest.approx(2.0)
    assert medians["round 2", "incorrect"] == pytest.approx(1.05)


def test_the_pool_grows(facts: RunFacts) -> None:
    table = cells(growth(facts))
    assert [table["round 1"][name] for name in ("policy", "problems", "rollouts", "solved", "pool")] == [
        *("v1", "3", "6", "2", "6")
    ]
    assert [table["round 2"][name] for name in ("policy", "problems", "rollouts", "solved so far", "pool")] == [
        *("v2", "2", "4", "2", "10")
    ]


def test_what_selection_took_and_left(facts: RunFacts) -> None:
    """SFT took 2 of the 3 usable ones of round 1, the third is a copy; DPO a pair of the 4 of round 2 (`latest`)."""
    table = cells(fates(facts))
    columns = ("pool", "not correct", "malformed, cut off or not judged", COPY, "usable, not chosen", "used")
    assert [table["1 · SFT"][name] for name in columns] == ["6", "3", "0", "1", "0", "2"]
    assert [table["2 · DPO"][name] for name in columns] == ["4", "0", "0", "0", "2", "2"]
    assert (table["1 · SFT"]["too long to train on"], table["1 · SFT"][HELD]) == ("1", "2")
    assert table["2 · DPO"]["rows trained on"] == "3 pairs"


# -- training, time, faults -------------------------------------------------------------------------------------------


def test_losses_follow_each_other(facts: RunFacts) -> None:
    rows = drawn(losses(facts))
    assert [row["at"] for row in rows] == [1, 2, 4, 5, 6, 8, 9, 10, 12]
    assert cells(losses(facts))["1 · SFT"]["first loss"] == "2.000"
    assert cells(losses(facts))["1 · SFT"]["weights changed"] == "12.5%"


def test_every_point_of_the_loss_is_in_a_table(facts: RunFacts) -> None:
    figure = losses(facts)
    assert figure.points is not None
    shown = [(stage, step, loss) for stage, step, loss in figure.points.rows]
    assert shown[:4] == [
        ("imitation", "1", "2"),
        ("imitation", "2", "1"),
        ("imitation", "4", "0.5"),
        ("1 · SFT", "1", "2"),
    ]
    assert len(shown) == len(drawn(figure)) == 9


def test_a_step_that_was_trained_twice_counts_once(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    for step, loss in ((1, 3.0), (2, 2.5), (1, 2.9), (2, 2.4)):
        run.event("train/loss", loss, stage=IMITATE.name, step=str(step), total="2")
    run.finish(IMITATE, training=replace(TRAINED, steps=2, final_loss=2.4, share_changed=None))
    assert [(row["at"], row["loss"]) for row in drawn(losses(run.facts()))] == [(1, 2.9), (2, 2.4)]
    assert cells(losses(run.facts()))["imitation"]["weights changed"] == DASH, "a run of before does not say it"


def test_the_parts_of_a_stage_add_up_to_its_time(facts: RunFacts) -> None:
    totals: dict[str, float] = {}
    for row in drawn(times(facts)):
        totals[row["stage"]] = totals.get(row["stage"], 0.0) + row["spent"]
    assert list(totals.values()) == pytest.approx([20.0] * 6)


def test_where_the_time_of_a_stage_went(tmp_path: Path) -> None:
    """A stage from EPOCH to EPOCH + 20 s: 6 s of training, 1.5 s of sync, answers from second 12 to 17."""
    run = ReportRun(tmp_path)
    moments = ("2027-01-15T08:00:13+00:00", "2027-01-15T08:00:17+00:00")
    assert EPOCH == 1_800_000_000.0, "2027-01-15 08:00 UTC"
    evaluation = run.evaluate(IMITATE, {"t1": True}, created_at=moments[0], latency_s=1.0)
    rows = [
        rollout("t1", 0, "correct", round_number=0, created_at=moments[0], latency_s=1.0),
        rollout("t2", 0, "correct", round_number=0, created_at=moments[1], latency_s=1.0),
    ]
    run.store.write_evaluation(IMITATE, rows, summarize(rows))
    run.train(IMITATE, evaluation=evaluation)
    table = cells(times(run.facts()))["imitation"]
    assert table == {
        "stage": "imitation",
        "start and wait": "7.5 s",
        "train": "6.0 s",
        "sample and verify": DASH,
        "weight sync": "1.5 s",
        "evaluate": "5.0 s",
        "all": "20.0 s",
    }


def test_throughput_of_training(facts: RunFacts) -> None:
    assert cells(throughput(facts))["imitation train"]["tokens/s"] == "200"  # 1,200 tokens in 6 s


def test_throughput_of_a_resumed_round_counts_what_its_last_attempt_sampled(tmp_path: Path) -> None:
    """The stage ended at EPOCH + 20 s and took 20 s; an attempt of the day before had sampled one response of three.

    The two of the last attempt have 100 tokens each, from second 10 to 20.
    """
    run = ReportRun(tmp_path)
    before, *now = "2027-01-14T08:00:00+00:00", "2027-01-15T08:00:12+00:00", "2027-01-15T08:00:20+00:00"
    rows = [rollout("p1", 0, "correct", created_at=before, latency_s=2.0, num_tokens=100)]
    rows += [
        rollout("p1", 1 + at, "correct", created_at=one, latency_s=2.0, num_tokens=100) for at, one in enumerate(now)
    ]
    run.explore(EXPLORE_1, rows)
    line = cells(throughput(run.facts()))["1 · explore"]
    expected = {"tokens": "200", "time": "10.0 s", "tokens/s": "20", "responses/s": "0.2"}
    assert {name: line[name] for name in expected} == expected


def test_training_that_went_on_from_a_saved_state_has_no_rate(tmp_path: Path) -> None:
    """Its tokens are those of all steps, its time that of the last ones."""
    run = ReportRun(tmp_path)
    run.finish(IMITATE, training=replace(TRAINED, resumed_from_step=3))
    assert cells(throughput(run.facts()))["imitation"]["tokens/s"] == DASH


def test_throughput_of_training_that_does_not_say_whether_it_was_resumed(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    run.finish(IMITATE, training=TRAINED)
    path = tmp_path / "rounds" / IMITATE.name / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["training"]["resumed_from_step"]
    path.write_text(json.dumps(manifest))
    assert cells(throughput(run.facts()))["imitation"]["tokens/s"] == "200"


def test_syncs(facts: RunFacts) -> None:
    assert [row["stage"] for row in cells(syncs(facts)).values()] == ["imitation", "1 · SFT", "2 · DPO"]


@pytest.mark.parametrize(
    ("sync", "shown"),
    [
        ({"num_digests": 290, "weak": False}, "290 digests"),
        ({"num_digests": 290, "weak": True}, "290 digests, weak"),
        ({}, "probes"),
    ],
)
def test_a_sync_shows_what_proves_it(tmp_path: Path, sync: dict[str, Any], shown: str) -> None:
    """A manifest of a former release says nothing of digests."""
    run = whole_run(tmp_path)
    path = tmp_path / "rounds" / IMITATE.name / "manifest.json"
    manifest = json.loads(path.read_text())
    older = {key: value for key, value in manifest["sync"].items() if key not in ("num_digests", "noise", "weak")}
    path.write_text(json.dumps({**manifest, "sync": {**older, **sync}}))
    assert next(iter(cells(syncs(run.facts())).values()))["proof"] == shown


def test_no_faults_is_said_in_a_sentence(facts: RunFacts) -> None:
    assert faults(facts).missing.startswith("None")
    assert [tile.value for tile in tiles(facts) if tile.name == "faults survived"] == ["0"]


def test_faults_are_counted_by_stage_and_kind(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    run.event("fault/actors_lost", 1.0, stage=EXPLORE_1.name, pool="replica", cause="died")
    run.event("fault/actors_lost", 2.0, stage=EXPLORE_1.name, pool="replica", cause="died")
    run.event("fault/actors_lost", 1.0, stage=SFT.name, pool="verifier", cause="node")
    run.event("fault/trainer_rebuilt", 1.0, stage=SFT.name)
    run.event("run/started", 3.0)
    facts = run.facts()
    assert list((faults(facts).table or pytest.fail("no table")).rows) == [
        ("1 · explore", "a replica died and was replaced", "3"),
        ("1 · SFT", "a verifier was lost with its node and replaced", "1"),
        ("1 · SFT", "a rank of the trainer died; the group was built again", "1"),
        (DASH, "the run was interrupted and resumed", "1"),
    ]
    assert [tile.value for tile in tiles(facts) if tile.name == "faults survived"] == ["6"]


# -- provenance -------------------------------------------------------------------------------------------------------


def test_lineage_of_every_training_set(facts: RunFacts) -> None:
    table = cells(lineage(facts))
    assert table["1 · SFT"] == {"stage": "1 · SFT", "demonstrations": "2", "round 1": "2", "round 2": "0", "all": "4"}
    assert table["2 · DPO"]["round 2"] == "1"


def test_the_files_of_a_mix_are_told_apart_and_a_table_of_an_earlier_release_has_one(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    tested = run.evaluate(BACKBONE, {"t": True})
    run.finish(BACKBONE, evaluation=tested)
    run.train(IMITATE, evaluation=tested, num_demonstrations=5, datasets=("reasoning", "chat"))
    row = cells(lineage(run.facts()))["imitation"]
    assert (row["demonstrations: reasoning"], row["demonstrations: chat"], row["all"]) == ("3", "2", "5")
    older = read_run(RunDirectory(OLDER), Inputs())
    assert set(cells(lineage(older))["imitation"]) == {"stage", "demonstrations", "all"}


def test_the_final_policy_goes_back_to_the_backbone(facts: RunFacts) -> None:
    """DPO starts from the policy of SFT, which starts from the backbone: imitation is not part of it."""
    figure = final_training_set(facts)
    assert "trained by 1 · SFT, then 2 · DPO." in figure.text
    assert [row[:3] for row in (figure.table or pytest.fail("no table")).rows] == [
        ("1 · SFT", "demonstrations", "teacher"),
        ("1 · SFT", "round 1", "policy v1"),
        ("2 · DPO", "round 2", "policy v2"),
    ]


# -- an unfinished run ------------------------------------------------------------------------------------------------


def test_a_run_without_a_stage_is_all_sentences(tmp_path: Path) -> None:
    facts = ReportRun(tmp_path).facts()
    figures = [figure for section in sections(facts) for figure in section.figures]
    without = [figure for figure in figures if figure.id not in ("settings", "versions")]
    assert without and all(figure.missing.endswith(".") and figure.draw is None for figure in without)
    assert headline(facts) == "No stage has been evaluated yet."


def test_every_stage_of_a_run_can_be_the_last(tmp_path: Path) -> None:
    """Whatever a run in progress holds, every figure can be made."""
    run = whole_run(tmp_path)
    for stage in reversed(run.facts().stages):
        (tmp_path / "rounds" / stage.name / "manifest.json").unlink()
        for section in sections(run.facts(LEVELS)):
            for figure in section.figures:
                assert figure.missing or figure.draw or figure.table
                if figure.draw:
                    figure.draw(Size())


# -- how numbers are written ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (percent(0.4736), "47.4%"),
        (points(-0.0123), "−1.2"),  # noqa: RUF001 - a minus sign
        (count(1234567), "1,234,567"),
        (seconds(0.0654), "65 ms"),
        (seconds(33.4), "33.4 s"),
        (seconds(600), "10.0 min"),
        (seconds(9000), "2.5 h"),
        (size(1247232), "1.2 MiB"),
        (size(12), "12 B"),
    ],
)
def test_numbers(written: str, expected: str) -> None:
    assert written == expected


def test_quantiles_lie_between_neighbours() -> None:
    assert quantile([1.0, 2.0, 4.0], 0.5) == 2.0 and math.isclose(quantile([1.0, 2.0, 4.0], 0.75), 3.0)
    assert quantile([5.0], 0.9) == 5.0
