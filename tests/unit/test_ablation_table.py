"""The arithmetic of an ablation's table, against numbers worked out by hand, and the table as it is printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from still_ray.algo.ablation.table import (
    Outcome,
    SeedResult,
    compare_rows,
    estimate,
    summarize_row,
    t975,
)
from still_ray.cli.ablate.printing import AblationResult, StageTime, as_json, as_markdown, trained_on, write_ablation
from still_ray.config.ablation import Matrix
from still_ray.store.run_directory import RunDirectory
from tests.fakes import evaluation_facts


def matrix(*comparisons: Mapping[str, str]) -> Matrix:
    return Matrix.model_validate(
        {
            "name": "little",
            "recipe": "base.yaml",
            "seeds": [1, 2, 3],
            "runs": {"one": {}, "two": {}},
            "rows": [
                {
                    "name": "A",
                    "run": "one",
                    "stage": "000-imitate",
                    "paper": {"label": "theirs", "scores": {"MATH": 86.0}},
                },
                {"name": "B", "run": "two", "stage": "001-dpo"},
            ],
            "comparisons": list(comparisons),
            "paper": "Table 9",
        }
    )


def result(
    seed: int, correct: Sequence[int], truncated: Sequence[int] = (), samples: int = 1, **trained_on: int
) -> SeedResult:
    cut = [*truncated, *[0] * (len(correct) - len(truncated))]
    marks = {
        index: Outcome(correct=right, truncated=short, samples=samples)
        for index, (right, short) in enumerate(zip(correct, cut, strict=True))
    }
    count = len(correct) * samples
    evaluation = evaluation_facts(
        accuracy=sum(correct) / count,
        truncation_rate=sum(cut) / count,
        mean_thought_tokens=10.0 * seed,
        num_problems=len(correct),
    )
    outcomes = {f"p{index}": outcome for index, outcome in marks.items()}
    return SeedResult(seed=seed, evaluation=evaluation, trained_on=trained_on, outcomes=outcomes)


# -- means over seeds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (10, 2.2281), (11, 2.2010), (20, 2.0860), (120, 1.9799)]
)
def test_quantiles_of_student_t_are_those_of_the_printed_tables(degrees: int, expected: float) -> None:
    assert t975(degrees) == pytest.approx(expected, abs=2e-4)


def test_the_interval_of_three_seeds_by_hand() -> None:
    """0.6, 0.7, 0.8: mean 0.7, standard deviation 0.1, so 4.3027 x 0.1 / sqrt(3) = 0.24842 to each side."""
    found = estimate([0.6, 0.7, 0.8])
    assert found.mean == pytest.approx(0.7)
    assert found.interval == pytest.approx((0.45158, 0.94842), abs=1e-5)


def test_an_interval_ends_where_a_share_does() -> None:
    found = estimate([0.9, 1.0, 1.0], bounds=(0.0, 1.0))
    assert found.interval is not None
    assert found.interval[0] == pytest.approx(0.966667 - 0.143423, abs=1e-5)
    assert found.interval[1] == 1.0


def test_one_seed_has_no_interval_and_none_has_no_mean() -> None:
    assert estimate([0.5]).interval is None
    with pytest.raises(ValueError, match="no mean of nothing"):
        estimate([])


def test_a_row_says_what_it_was_trained_on_over_all_seeds() -> None:
    results = [result(seed, [1, 0], num_pairs=count) for seed, count in ((1, 30), (2, 28), (3, 30))]
    row = summarize_row(matrix().rows[1], results)
    assert row is not None
    assert row.trained_on == {"num_pairs": (28, 30)}
    assert row.thought_tokens.mean == pytest.approx(20.0)
    assert row.num_problems == (2, 2, 2)
    assert summarize_row(matrix().rows[1], []) is None


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, "-"),
        ({"num_demonstrations": (110, 110), "num_explored": (0, 0)}, "110"),
        ({"num_demonstrations": (110, 110), "num_explored": (69, 70)}, "110 + 69-70"),
        ({"num_pairs": (30, 30)}, "30 pairs"),
    ],
)
def test_training_data_in_words(counts: dict[str, tuple[int, int]], expected: str) -> None:
    assert trained_on(counts) == expected


# -- comparisons ------------------------------------------------------------------------------------------------------

PAIR = {"first": "A", "second": "B"}


def test_rows_are_compared_on_the_problems_of_all_seeds_by_hand() -> None:
    """Only the first right: 4 + 4 + 3; only the second: 1. McNemar: 2 x (1 + 12) / 2^12 = 0.00635."""
    first = [result(1, [1, 1, 1, 1, 0]), result(2, [1, 1, 1, 1, 0]), result(3, [1, 1, 1, 0, 0])]
    second = [result(1, [0, 0, 0, 0, 0]), result(2, [0, 0, 0, 0, 0]), result(3, [0, 0, 0, 1, 0])]
    accuracy, truncation = compare_rows(matrix(PAIR), {"A": first, "B": second})
    assert (accuracy.only_first, accuracy.only_second) == (11, 1)
    assert accuracy.p_value == pytest.approx(26 / 4096)
    assert accuracy.difference.values == pytest.approx((0.8, 0.8, 0.4))
    assert accuracy.direction == "higher"
    assert (truncation.only_first, truncation.only_second, truncation.p_value, truncation.direction) == (0, 0, 1.0, "")


def test_a_difference_that_turns_round_with_the_seed_is_not_called_one() -> None:
    first = [result(1, [1] * 20), result(2, [0, 1, 1])]
    second = [result(1, [0] * 20), result(2, [1, 1, 1])]
    (accuracy, _) = compare_rows(matrix(PAIR), {"A": first, "B": second})
    assert accuracy.p_corrected < 0.001
    assert accuracy.direction == ""


def test_comparisons_of_a_table_are_corrected_together() -> None:
    """Six discordant problems of one kind: p = 2 / 2^6; with two comparisons twice that."""
    first, second = [result(1, [1] * 6)], [result(1, [0] * 6)]
    alone = compare_rows(matrix(PAIR), {"A": first, "B": second})[0]
    assert alone.p_corrected == pytest.approx(2 / 64)
    assert alone.direction == "higher"
    both = compare_rows(matrix(PAIR, {"first": "B", "second": "A"}), {"A": first, "B": second})
    assert [one.p_corrected for one in both[:2]] == pytest.approx([4 / 64, 4 / 64])
    assert {one.direction for one in both} == {""}


def test_truncation_is_compared_as_accuracy_is() -> None:
    first, second = [result(1, [0] * 8, [1] * 8)], [result(1, [0] * 8)]
    accuracy, truncation = compare_rows(matrix(PAIR), {"A": first, "B": second})
    assert (accuracy.direction, truncation.direction) == ("", "higher")
    assert truncation.p_value == pytest.approx(2 / 256)


def test_several_responses_to_a_problem_are_compared_by_how_many_are_right() -> None:
    """Gains of 2, 2 and 1 of 4 samples: of 8 sign patterns the two outermost reach a sum of 5, so p = 2/8."""
    first, second = [result(1, [4, 3, 2], samples=4)], [result(1, [2, 1, 1], samples=4)]
    accuracy = compare_rows(matrix(PAIR), {"A": first, "B": second})[0]
    assert accuracy.p_value == pytest.approx(0.25)
    assert accuracy.difference.mean == pytest.approx(5 / 12)


def test_rows_of_other_problems_are_not_compared() -> None:
    with pytest.raises(ValueError, match="under seed 1 were not asked the same problems"):
        compare_rows(matrix(PAIR), {"A": [result(1, [1, 0])], "B": [result(1, [1, 0, 1])]})


def test_seeds_that_only_one_row_has_do_not_count() -> None:
    assert compare_rows(matrix(PAIR), {"A": [result(1, [1])], "B": []}) == []
    found = compare_rows(matrix(PAIR), {"A": [result(1, [1]), result(2, [1])], "B": [result(2, [0])]})
    assert found[0].difference.values == (1.0,)


# -- what is written --------------------------------------------------------------------------------------------------


def finished() -> AblationResult:
    config = matrix(PAIR)
    results = {
        "A": [result(seed, [1, 1, 1, 0], num_demonstrations=110, num_explored=0) for seed in (1, 2, 3)],
        "B": [result(seed, [1, 0, 0, 0], [0, 1, 0, 0], num_pairs=30) for seed in (1, 2)],
    }
    rows = (summarize_row(row, results[row.name]) for row in config.rows)
    times = (
        StageTime(run="one-seed1", stage="000-imitate", seconds=90.0, adopted_from="", saved_s=0.0),
        StageTime(run="two-seed1", stage="000-imitate", seconds=0.0, adopted_from="one-seed1", saved_s=90.0),
    )
    return AblationResult(
        matrix=config,
        rows=tuple(row for row in rows if row is not None),
        results=results,
        comparisons=tuple(compare_rows(config, results)),
        times=times,
        skipped=("B, seed 3: no pairs",),
    )


def test_the_markdown_table_has_every_figure_beside_the_papers() -> None:
    text = as_markdown(finished())
    assert "| A | 110 | 75.0% | 75.0% 75.0% 75.0% | 75.0% - 75.0% | 0.0% | 20.0 | 86.0 | theirs |" in text
    assert "| B | 30 pairs | 25.0% | 25.0% 25.0% | 25.0% - 25.0% | 25.0% | 15.0 | - | - |" in text
    assert "No result: B, seed 3: no pairs." in text
    assert "Stages took 1.5 min; sharing saved another 1.5 min." in text


def test_what_is_written_can_be_read_again(tmp_path: Path) -> None:
    write_ablation(finished(), RunDirectory(tmp_path), versions={"ray": "1"})
    found: dict[str, Any] = json.loads((tmp_path / "ablation.json").read_text())
    assert found == {"schema_version": 1, **json.loads(json.dumps(as_json(finished()))), "versions": {"ray": "1"}}
    assert found["computed_s"] == 90.0
    assert found["rows"][0]["accuracy"]["by_seed"] == [0.75, 0.75, 0.75]
    assert [row["seed"] for row in found["rows"][1]["seeds"]] == [1, 2]
    for name in ("accuracy.svg", "truncation.svg"):
        drawn = (tmp_path / name).read_text()
        assert drawn.startswith("<svg")
        assert ">A<" in drawn
