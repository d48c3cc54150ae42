"""Preference pairs: always one problem's right and wrong answer, chosen by the rule that was asked for."""

from __future__ import annotations

import inspect
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.algo.selection.pairing import RULES, Pairing, pair_trajectories
from still_ray.config import PairConfig, Scope
from still_ray.config.loading import recipe_from
from still_ray.types import Candidate, FinishReason, InputError, TrajectoryKey, Verdict
from tests.fakes import make_candidate, make_digests, raw_recipe

TWO_VERDICTS = (Verdict.CORRECT, Verdict.INCORRECT)
OWN_RULES = """
from dataclasses import replace

def wrong_first(responses, draw):
    return zip(responses.incorrect, responses.correct)

def from_elsewhere(responses, draw):
    stranger = replace(responses.correct[0], key=responses.correct[0].key._replace(problem_id="q"))
    return [(stranger, responses.incorrect[0])]
"""

keys = st.builds(TrajectoryKey, st.integers(1, 2), st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 5))
drawn = st.builds(
    Candidate,
    key=keys,
    domain=st.just("math"),
    verdict=st.sampled_from([Verdict.CORRECT, Verdict.INCORRECT, *Verdict]),
    finish_reason=st.sampled_from([FinishReason.STOP, FinishReason.STOP, FinishReason.LENGTH]),
    well_formed=st.sampled_from([True, True, False]),
    thought_chars=st.integers(0, 300),
    perplexity=st.sampled_from([1.0, 1.5, 2.0, 2.5, 3.0]),
    digests=st.just(make_digests("")),
)


def own_text(row: Candidate) -> Candidate:
    """With a text that no other has."""
    return replace(row, digests=make_digests(str(row.key)))


def some_text(row: Candidate, number: int) -> Candidate:
    """With one of a few texts, two of which share a thought; problems a and b have the same question."""
    question = "ab" if row.key.problem_id in "ab" else row.key.problem_id
    return replace(row, digests=make_digests(f"{question} {number}", f"{question} {number // 2}"))


candidates = drawn.map(own_text)
repeating = st.lists(st.builds(some_text, drawn, st.integers(0, 7)), max_size=40, unique_by=lambda row: row.key)
pools = st.lists(candidates, max_size=30, unique_by=lambda row: row.key)
BETWEEN_VERDICTS = ("length_matched", "paper", "random", "reverse")
"""Rules that join a correct with an incorrect response."""

rules = st.sampled_from(BETWEEN_VERDICTS)
configs = st.builds(PairConfig, rule=rules, max_per_problem=st.integers(1, 3), max_pairs=st.none() | st.integers(1, 3))
SCOPES: tuple[Scope, ...] = ("whole", "thought")
unhurried = settings(deadline=None)


def pairing_of(pool: Iterable[Candidate], config: PairConfig, *, seed: int) -> Pairing:
    return pair_trajectories(pool, config, scope="whole", seed=seed)


def usable(pool: list[Candidate], verdict: Verdict, problem: str) -> list[Candidate]:
    return [
        row
        for row in pool
        if row.key.problem_id == problem
        and row.verdict is verdict
        and row.well_formed
        and row.finish_reason is FinishReason.STOP
    ]


@unhurried
@given(pool=pools, config=configs, seed=st.integers(0, 5))
def test_a_pair_joins_a_right_and_a_wrong_answer_to_one_problem(
    pool: list[Candidate], config: PairConfig, seed: int
) -> None:
    by_key = {row.key: row for row in pool}
    pairing = pairing_of(pool, config, seed=seed)
    for pair in pairing.pairs:
        chosen, rejected = by_key[pair.chosen], by_key[pair.rejected]
        assert chosen.key.problem_id == rejected.key.problem_id
        assert (chosen.verdict, rejected.verdict) == (Verdict.CORRECT, Verdict.INCORRECT)
        assert all(row.well_formed and row.finish_reason is FinishReason.STOP for row in (chosen, rejected))
    sides = [side for pair in pairing.pairs for side in (pair.chosen, pair.rejected)]
    assert len(set(sides)) == len(sides), "a trajectory is in two pairs"


any_rule = st.builds(
    PairConfig, rule=st.sampled_from(sorted(RULES)), max_per_problem=st.integers(1, 3), max_pairs=st.integers(1, 3)
)


@unhurried
@given(pool=pools | repeating, config=any_rule, seed=st.integers(0, 5))
def test_every_problem_is_in_one_count(pool: list[Candidate], config: PairConfig, seed: int) -> None:
    found = pairing_of(pool, config, seed=seed)
    without = found.num_only_correct + found.num_only_incorrect + found.num_unusable + found.num_unmatched
    assert found.num_matched + without + found.num_only_equal == found.num_problems
    assert found.num_problems == len({row.key.problem_id for row in pool})
    matches = len(found.pairs) + found.num_equal_pairs + found.num_over_cap
    assert found.num_matched <= matches <= found.num_matched * config.max_per_problem


def test_problems_that_have_nothing_to_learn_from_are_counted() -> None:
    malformed = [make_candidate(f"p{number}", well_formed=False) for number in range(15)]
    found = pairing_of(malformed, PairConfig(), seed=0)
    assert (found.num_problems, found.num_unusable, found.pairs) == (15, 15, ())


@unhurried
@given(pool=pools, config=configs, seed=st.integers(0, 5))
def test_a_problem_gives_as_many_pairs_as_its_sides_and_the_caps_allow(
    pool: list[Candidate], config: PairConfig, seed: int
) -> None:
    pairs = Counter(pair.chosen.problem_id for pair in pairing_of(pool, config, seed=seed).pairs)
    possible = {
        problem: min(
            len(usable(pool, Verdict.CORRECT, problem)),
            len(usable(pool, Verdict.INCORRECT, problem)),
            config.max_per_problem,
        )
        for problem in {row.key.problem_id for row in pool}
    }
    assert all(count <= possible[problem] for problem, count in pairs.items())
    assert pairs.total() == min(sum(possible.values()), config.max_pairs or 1000)


@unhurried
@given(pool=pools, rule=rules, seed=st.integers(0, 5))
def test_every_problem_is_paired_or_counted(pool: list[Candidate], rule: str, seed: int) -> None:
    pairing = pairing_of(pool, PairConfig.model_validate({"rule": rule}), seed=seed)
    problems = {row.key.problem_id for row in pool}
    right = {problem for problem in problems if usable(pool, Verdict.CORRECT, problem)}
    wrong = {problem for problem in problems if usable(pool, Verdict.INCORRECT, problem)}
    assert {pair.chosen.problem_id for pair in pairing.pairs} == right & wrong
    assert (pairing.num_only_correct, pairing.num_only_incorrect) == (len(right - wrong), len(wrong - right))


@unhurried
@given(pool=pools)
def test_the_papers_rule_and_its_reverse_take_opposite_ends_of_perplexity(pool: list[Candidate]) -> None:
    for rule, ends in (("paper", (max, min)), ("reverse", (min, max))):
        for pair in pairing_of(pool, PairConfig.model_validate({"rule": rule}), seed=0).pairs:
            sides = ((pair.chosen, Verdict.CORRECT), (pair.rejected, Verdict.INCORRECT))
            for (key, verdict), end in zip(sides, ends, strict=True):
                rows = usable(pool, verdict, key.problem_id)
                perplexity = {row.key: row.perplexity for row in rows}
                assert perplexity[key] == end(perplexity.values())


@unhurried
@given(pool=pools, config=configs, seed=st.integers(0, 5), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_pool_does_not_matter(
    pool: list[Candidate], config: PairConfig, seed: int, shuffle: random.Random
) -> None:
    shuffled = list(pool)
    shuffle.shuffle(shuffled)
    assert pairing_of(iter(shuffled), config, seed=seed) == pairing_of(pool, config, seed=seed)


@unhurried
@given(
    pool=repeating,
    config=configs,
    scope=st.sampled_from(SCOPES),
    seed=st.integers(0, 5),
    shuffle=st.randoms(use_true_random=False),
)
def test_equal_sides_and_equal_pairs_are_left_out_and_counted(
    pool: list[Candidate], config: PairConfig, scope: Scope, seed: int, shuffle: random.Random
) -> None:
    learnt = {row.key: row.digests.under(scope) for row in pool}
    config = config.model_copy(update={"max_pairs": None})
    pairing = pair_trajectories(pool, config, scope=scope, seed=seed)
    pairs = [(learnt[pair.chosen], learnt[pair.rejected]) for pair in pairing.pairs]
    assert all(chosen != rejected for chosen, rejected in pairs)
    assert len(set(pairs)) == len(pairs)
    num_possible = num_copies = 0
    for problem in {row.key.problem_id for row in pool}:
        rows = [usable(pool, verdict, problem) for verdict in (Verdict.CORRECT, Verdict.INCORRECT)]
        texts = [{learnt[row.key] for row in side} for side in rows]
        num_copies += sum(map(len, rows)) - sum(map(len, texts))
        num_possible += min(*map(len, texts), config.max_per_problem)
    assert pairing.num_equal_responses == num_copies
    assert len(pairs) + pairing.num_equal_pairs <= num_possible
    assert len(pairs) + pairing.num_equal_pairs + pairing.num_equal_sides >= num_possible
    shuffle.shuffle(pool)
    assert pair_trajectories(pool, config, scope=scope, seed=seed) == pairing


def test_a_response_whose_best_partner_equals_it_takes_the_next() -> None:
    pool = [
        make_candidate("p", 0, digests=make_digests("a right", "a")),
        make_candidate("p", 1, verdict=Verdict.INCORRECT, digests=make_digests("a wrong", "a"), perplexity=1.0),
        make_candidate("p", 2, verdict=Verdict.INCORRECT, digests=make_digests("b wrong", "b"), perplexity=2.0),
    ]
    for scope, partner, num_equal in (("whole", 1, 0), ("thought", 2, 1)):
        made = pair_trajectories(pool, PairConfig(), scope=cast(Scope, scope), seed=0)
        assert [(pair.chosen.sample_index, pair.rejected.sample_index) for pair in made.pairs] == [(0, partner)]
        assert made.num_equal_sides == num_equal


def test_problems_that_ask_the_same_give_a_pair_once() -> None:
    pool = [
        make_candidate(problem, index, verdict=verdict, digests=make_digests(verdict))
        for problem in ("p", "q")
        for index, verdict in enumerate((Verdict.CORRECT, Verdict.INCORRECT))
    ]
    pairing = pairing_of(pool, PairConfig(), seed=0)
    assert [pair.chosen.problem_id for pair in pairing.pairs] == ["p"]
    assert (pairing.num_equal_pairs, pairing.num_only_correct, pairing.num_only_incorrect) == (1, 0, 0)


def both_kinds(num_problems: int, num_samples: int = 6) -> list[Candidate]:
    draw = random.Random(1)
    return [
        make_candidate(
            f"p{problem}",
            index,
            verdict=Verdict.CORRECT if index % 2 else Verdict.INCORRECT,
            perplexity=1 + draw.random(),
        )
        for problem in range(num_problems)
        for index in range(num_samples)
    ]


def test_the_cap_leaves_a_sample_of_the_pairs_and_the_counts_as_they_are() -> None:
    pool = [*both_kinds(20), make_candidate("only-right"), make_candidate("only-wrong", verdict=Verdict.INCORRECT)]
    whole = pairing_of(pool, PairConfig(), seed=0)
    capped = [pairing_of(pool, PairConfig(max_pairs=7), seed=seed) for seed in (0, 1)]
    assert len(whole.pairs) == 20
    for pairing in capped:
        assert len(pairing.pairs) == 7
        assert set(pairing.pairs) < set(whole.pairs)
        assert (pairing.num_only_correct, pairing.num_only_incorrect) == (1, 1)
    assert capped[0] != capped[1]


def test_random_pairs_differ_with_the_seed_and_only_with_it() -> None:
    pool = both_kinds(20)
    config = PairConfig(rule="random")
    assert pairing_of(pool, config, seed=1) == pairing_of(pool, config, seed=1)
    assert pairing_of(pool, config, seed=1) != pairing_of(pool, config, seed=2)


def test_timeouts_and_errors_pair_with_nothing() -> None:
    pool = [
        make_candidate("p", 0),
        *(
            make_candidate("p", index, verdict=verdict)
            for index, verdict in enumerate((Verdict.TIMEOUT, Verdict.ERROR, Verdict.UNPARSABLE), start=1)
        ),
    ]
    pairing = pairing_of(pool, PairConfig(), seed=0)
    assert pairing.pairs == ()
    assert (pairing.num_only_correct, pairing.num_only_incorrect) == (1, 0)


def test_several_pairs_of_a_problem_go_down_the_two_rankings() -> None:
    pool = [
        make_candidate("p", index, verdict=verdict, perplexity=perplexity)
        for index, (verdict, perplexity) in enumerate(
            zip([Verdict.CORRECT] * 3 + [Verdict.INCORRECT] * 2, (3.0, 1.0, 2.0, 5.0, 4.0), strict=True)
        )
    ]
    for rule, expected in (("paper", [(0, 4), (2, 3)]), ("reverse", [(1, 3), (2, 4)])):
        config = PairConfig.model_validate({"rule": rule, "max_per_problem": 3})
        pairs = pairing_of(pool, config, seed=0).pairs
        assert [(pair.chosen.sample_index, pair.rejected.sample_index) for pair in pairs] == expected


def test_length_matched_pairs_differ_less_in_length_than_any_other_pair_of_the_problem() -> None:
    draw = random.Random(2)
    pool = [
        make_candidate(
            f"p{problem}",
            index,
            verdict=Verdict.CORRECT if index % 2 else Verdict.INCORRECT,
            thought_chars=draw.randrange(5000),
        )
        for problem in range(10)
        for index in range(6)
    ]
    chars = {row.key: row.thought_chars for row in pool}
    for pair in pairing_of(pool, PairConfig(rule="length_matched"), seed=0).pairs:
        problem = pair.chosen.problem_id
        gaps = [
            abs(one.thought_chars - other.thought_chars)
            for one in usable(pool, Verdict.CORRECT, problem)
            for other in usable(pool, Verdict.INCORRECT, problem)
        ]
        assert abs(chars[pair.chosen] - chars[pair.rejected]) == min(gaps)


def test_the_page_describes_every_rule_in_its_own_words() -> None:
    page = (Path(__file__).parents[2] / "docs" / "selection.md").read_text(encoding="utf-8")
    for name, rule in RULES.items():
        meaning, _, source = (inspect.getdoc(rule) or "").partition("\n\nSource: ")
        assert f"| `{name}` | {meaning} | {source} |" in page
        assert re.search(rf"\b{name}\b", PairConfig.model_fields["rule"].description or "")


# -- rules that look at one side, or beyond both ----------------------------------------------------------------------


def test_concise_prefers_the_shortest_correct_response_to_the_longest_correct_one() -> None:
    pool = [
        *(make_candidate("p", index, thought_chars=chars) for index, chars in enumerate((30, 10, 20, 50, 40))),
        make_candidate("p", 9, verdict=Verdict.INCORRECT, thought_chars=1),
        *(make_candidate("equally long", index, thought_chars=7) for index in range(3)),
        *(make_candidate("one of each", index, verdict=verdict) for index, verdict in enumerate(TWO_VERDICTS)),
    ]
    pairing = pairing_of(pool, PairConfig(rule="concise", max_per_problem=5), seed=0)
    assert [(pair.chosen[1:], pair.rejected.sample_index) for pair in pairing.pairs] == [(("p", 1), 3), (("p", 2), 4)]
    assert (pairing.num_only_correct, pairing.num_only_incorrect, pairing.num_unmatched) == (1, 0, 1)


def test_truncated_prefers_a_correct_response_to_one_that_came_to_no_answer() -> None:
    cut_off: dict[str, Any] = {"finish_reason": FinishReason.LENGTH, "well_formed": False}
    cut_off["verdict"] = Verdict.UNPARSABLE
    pool = [
        *(make_candidate("p", index, thought_chars=chars) for index, chars in enumerate((20, 10))),
        *(make_candidate("p", index, thought_chars=index, **cut_off) for index in (7, 8)),
        make_candidate("p", 9, thought_chars=99, finish_reason=FinishReason.LENGTH),
        make_candidate("p", 10, thought_chars=0, **cut_off),
        make_candidate("none cut off", 0),
        make_candidate("none cut off", 1, verdict=Verdict.INCORRECT),
        make_candidate("none correct", 0, **cut_off),
    ]
    pairing = pairing_of(pool, PairConfig(rule="truncated", max_per_problem=5), seed=0)
    assert [(pair.chosen[1:], pair.rejected.sample_index) for pair in pairing.pairs] == [(("p", 0), 7), (("p", 1), 8)]
    assert (pairing.num_only_correct, pairing.num_only_incorrect, pairing.num_unmatched) == (0, 0, 1)


# -- a rule of the user's own -----------------------------------------------------------------------------------------


def test_a_rule_of_ones_own_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pair_rules.py").write_text(OWN_RULES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    pool = [make_candidate("p", index, verdict=verdict) for index, verdict in enumerate((*TWO_VERDICTS, *TWO_VERDICTS))]
    config = PairConfig(rule="own_pair_rules:wrong_first", max_per_problem=2)
    pairs = pairing_of(pool, config, seed=0).pairs
    assert [(pair.chosen.sample_index, pair.rejected.sample_index) for pair in pairs] == [(1, 0), (3, 2)]
    with pytest.raises(InputError, match="not both of which it was given"):
        pairing_of(pool, PairConfig(rule="own_pair_rules:from_elsewhere"), seed=0)
    with pytest.raises(ValueError, match="own_pair_rules:no_such cannot be loaded: AttributeError"):
        pairing_of(pool, PairConfig(rule="own_pair_rules:no_such"), seed=0)


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        (
            {"dpo": {"pairs": {"rule": "papre"}}},
            "dpo.pairs.rule: unknown name 'papre'; did you mean paper?: give one of",
        ),
        (
            {"rounds": [{"method": "dpo", "dpo": {"pairs": {"rule": "concice"}}}]},
            "rounds.0.dpo.pairs.rule: unknown name 'concice'; did you mean concise?",
        ),
        (
            {"rounds": [{"sft": {"select": {"strategy": "shorter"}}}]},
            "rounds.0.sft.select.strategy: unknown name 'shorter'; did you mean shortest?",
        ),
    ],
)
def test_a_name_that_nobody_has_is_told_with_its_key_and_the_nearest(sections: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as error:
        recipe_from(raw_recipe(**sections), (), origin="recipe.yaml")
    assert str(error.value).startswith(f"recipe.yaml: {complaint}")
    assert "or your own as package.module:object" in str(error.value)
