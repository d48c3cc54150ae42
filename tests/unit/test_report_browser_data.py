"""What the trajectory browser gets: which responses, in which blocks, and how much of the pool that is."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from still_ray.formats.responses.table import FORMATS
from still_ray.report.browser_data import BLOCK_BYTES, BrowserData, browser_data, choose, cuts_of
from still_ray.report.facts import Inputs, Response
from tests.report_run import EXPLORE_1, ReportRun, rollout, whole_run


def unpacked(block: str) -> Any:
    """What the page makes of a block."""
    return json.loads(gzip.decompress(base64.b64decode(block)))


def texts(data: BrowserData) -> list[list[Any]]:
    """The texts of all responses, in the order of the index."""
    index = unpacked(data.index)["responses"]
    blocks = [unpacked(block) for block in data.blocks]
    return [blocks[block][at] for block, at in zip(index["block"], index["at"], strict=True)]


def response(problem: str, sample: int, verdict: str, *, round_number: int = 1, num_tokens: int = 100) -> Response:
    return Response(
        round=round_number,
        problem_id=problem,
        sample_index=sample,
        domain="math",
        verdict=verdict,
        finish_reason="stop",
        policy_version=1,
        num_tokens=num_tokens,
        thought_tokens=80,
        perplexity=1.5,
        defect="",
        latency_s=1.0,
        created_at="2026-01-02T03:04:05+00:00",
    )


def pool(num_problems: int, *, rare: int = 0) -> list[Response]:
    """Problems with four responses each; the first few of them hold an error."""
    return [
        response(f"p{number:04d}", sample, "error" if number < rare and not sample else "correct")
        for number in range(num_problems)
        for sample in range(4)
    ]


# -- which responses --------------------------------------------------------------------------------------------------


def test_all_responses_are_chosen_where_they_fit() -> None:
    rounds = {1: pool(10), 2: [row._replace(round=2) for row in pool(5)]}
    assert len(choose(rounds)) == 60


def test_a_sample_holds_whole_problems() -> None:
    chosen = choose({1: pool(1000)}, max_responses=202)
    per_problem = Counter(row.problem_id for row in chosen.values())
    assert set(per_problem.values()) == {4} and len(chosen) == 200


def test_a_sample_takes_from_every_round_and_kind_of_outcome_in_turn() -> None:
    """3 of 1,000 problems hold an error: all three are seen, and the rounds have equal shares."""
    rounds = {1: pool(1000, rare=3), 2: [row._replace(round=2) for row in pool(1000)]}
    chosen = choose(rounds, max_responses=160)
    problems = {(row.round, row.problem_id) for row in chosen.values()}
    assert {problem for number, problem in problems if number == 1} >= {"p0000", "p0001", "p0002"}
    assert sum(number == 2 for number, _ in problems) == pytest.approx(20, abs=2)


def test_the_same_pool_gives_the_same_sample_in_any_order() -> None:
    rows = pool(500, rare=5)
    assert choose({1: rows}, max_responses=80).keys() == choose({1: rows[::-1]}, max_responses=80).keys()


def test_long_responses_are_fewer() -> None:
    rows = [response(f"p{number}", 0, "correct", num_tokens=20_000) for number in range(100)]
    assert len(choose({1: rows}, max_bytes=2**20)) == 13  # of about 80,400 bytes each


def test_one_response_is_shown_however_long_it_is() -> None:
    assert len(choose({1: [response("p1", 0, "correct", num_tokens=10**7)]}, max_bytes=1)) == 1


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_the_index_finds_the_text_of_every_response(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    facts = run.facts(Inputs(problem_levels={"p1": 4}, test_levels={"p1": 1, "p2": 1}))
    data = browser_data(run.directory, facts)
    index = unpacked(data.index)["responses"]
    names = [
        f"{number}/{index['problems'][problem][0]}/{sample}"
        for number, problem, sample in zip(index["round"], index["problem"], index["sample"], strict=True)
    ]
    assert len(names) == data.num_responses == 10
    found = dict(zip(names, texts(data), strict=True))
    question, answer, text, extracted, _, cuts = found["1/p2/1"]
    assert text[slice(*cuts[:2])] == "thought 1 on p2"
    assert (question, answer, extracted) == ("What is p2?", "7", "7") and "thought 1 on p2" in text
    assert found["1/p3/0"][3] is None
    assert [problem[3] for problem in index["problems"]] == [4, None, None]


def test_the_index_says_which_stages_learnt_from_a_response(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    index = unpacked(browser_data(run.directory, run.facts()).index)
    used = {
        (number, index["responses"]["problems"][problem][0], sample): [index["trained"][stage] for stage in stages]
        for number, problem, sample, stages in zip(
            *(index["responses"][name] for name in ("round", "problem", "sample", "used")), strict=True
        )
    }
    assert used[1, "p1", 0] == ["1 · SFT"] and used[1, "p1", 1] == []
    assert used[2, "p2", 0] == used[2, "p2", 1] == ["2 · DPO"]


def test_pairs_have_both_sides_and_their_perplexities(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    data = browser_data(run.directory, run.facts())
    ((problem, chosen, rejected, _, one, other, block, at),) = unpacked(data.index)["pairs"]
    assert (problem, chosen, rejected, one, other) == ("p2", "2/p2/0", "2/p2/1", 1.4, 1.05)
    question, *sides = unpacked(data.blocks[block])[at]
    assert question == "What is p2?" and sides[0] == "thought 0 on p2" and sides[2] == "thought 1 on p2"


def test_blocks_stay_small(tmp_path: Path) -> None:
    run = ReportRun(tmp_path)
    long = "x" * 20_000
    run.explore(EXPLORE_1, [rollout(f"p{number:02d}", 0, "correct", response=long) for number in range(40)])
    data = browser_data(run.directory, run.facts())
    sizes = [sum(len(text[2]) for text in unpacked(block)) for block in data.blocks]
    assert sum(sizes) == 40 * len(long) and max(sizes) <= BLOCK_BYTES + len(long) and len(sizes) == 4


def test_the_page_says_how_much_it_shows(tmp_path: Path) -> None:
    run = whole_run(tmp_path)
    facts = run.facts()
    assert browser_data(run.directory, facts).note == (
        "All 10 responses of the pool are here. All 1 preference pairs of 2 · DPO."
    )
    part = browser_data(run.directory, facts, max_bytes=1000)
    assert part.num_responses == 2 and part.note.startswith("Showing 2 of 10 responses")
    assert part.num_pairs == 1


@pytest.mark.parametrize("name", ["markers", "think", "channels", "plain"])
def test_the_parts_of_a_response_are_found_whatever_parts_them(name: str) -> None:
    form, thought, solution = FORMATS[name], "1+1=2 \U0001f600.", "It is 2."
    response = form.render(thought if form.has_thought else "", solution)
    parsed = form.parse(response)
    cuts = cuts_of(response, parsed.thought, parsed.solution)
    units = response.encode("utf-16-le")  # as JavaScript counts
    first, second = (units[2 * start : 2 * end].decode("utf-16-le") for start, end in (cuts[:2], cuts[2:]))
    assert (first, second) == (thought if form.has_thought else "", solution)


def test_parts_that_are_not_there_are_empty() -> None:
    assert cuts_of("<think>unfinished", "unfinished", "") == [7, 17, 0, 0]
    assert cuts_of("text", "", "") == cuts_of("text", "other", "parts") == [0, 0, 0, 0]
