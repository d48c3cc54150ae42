"""What a round asks for: which problems, which samples with which seeds, and which replica takes them."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.algo.exploration import (
    Allotment,
    BudgetedAllotment,
    allotment_of,
    choose_problems,
    disagreement,
    least_loaded,
    rollout_request,
)
from still_ray.algo.seeds import derived_seed, rollout_seed
from still_ray.config import AdaptiveConfig, ExploreConfig
from still_ray.types import TrajectoryKey, Verdict
from tests.fakes import make_problem

ids = st.text("abcdef", min_size=1, max_size=3)
unhurried = settings(deadline=None)

# -- problems ---------------------------------------------------------------------------------------------------------


@unhurried
@given(
    levels=st.dictionaries(ids, st.none() | st.integers(1, 5), max_size=30),
    solved=st.sets(ids),
    config=st.builds(
        ExploreConfig,
        num_problems=st.none() | st.integers(1, 10),
        levels=st.none() | st.just((2, 4)),
        skip_solved=st.booleans(),
    ),
)
def test_chosen_problems_are_eligible_distinct_and_as_many_as_asked(
    levels: dict[str, int | None], solved: set[str], config: ExploreConfig
) -> None:
    chosen = choose_problems(levels, config, solved=solved, seed=3, round_number=1)
    eligible = set(levels)
    if config.skip_solved:
        eligible -= solved
    if config.levels:
        eligible = {problem for problem in eligible if levels[problem] in {2, 3, 4}}
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= eligible
    assert len(chosen) == min(len(eligible), config.num_problems or len(eligible))
    turned = dict(reversed(levels.items()))
    assert choose_problems(turned, config, solved=solved, seed=3, round_number=1) == chosen


def test_each_round_and_each_seed_draws_other_problems() -> None:
    levels: dict[str, int | None] = {f"p{number}": None for number in range(100)}
    config = ExploreConfig(num_problems=10)
    draws = {
        tuple(choose_problems(levels, config, solved=(), seed=seed, round_number=number))
        for seed in (1, 2)
        for number in (1, 2, 3)
    }
    assert len(draws) == 6


# -- samples ----------------------------------------------------------------------------------------------------------


def keys_of(problem: str, indices: Iterable[int]) -> dict[TrajectoryKey, Verdict]:
    return {TrajectoryKey(2, problem, index): Verdict.CORRECT for index in indices}


@unhurried
@given(done=st.sets(st.integers(0, 7)), num_samples=st.integers(1, 8))
def test_exactly_the_samples_that_are_missing_are_wanted(done: set[int], num_samples: int) -> None:
    allotment = Allotment(ExploreConfig(samples_per_problem=num_samples), keys_of("p", done))
    assert list(allotment.wanted("p")) == [index for index in range(num_samples) if index not in done]
    assert list(allotment.wanted("q")) == list(range(num_samples))


def test_a_request_carries_the_rounds_settings() -> None:
    problem = make_problem("p")
    config = ExploreConfig(temperature=0.5, top_p=0.9, max_tokens=70)
    request = rollout_request(problem, config, (1, 4), seed=5, round_number=2)
    assert request is not None
    assert (request.round, request.problem, request.sample_indices) == (2, problem, (1, 4))
    assert (request.settings.temperature, request.settings.top_p, request.settings.max_tokens) == (0.5, 0.9, 70)
    assert rollout_request(problem, config, (), seed=5, round_number=2) is None


def test_a_retried_sample_has_the_seed_that_it_had_at_first() -> None:
    config = ExploreConfig(samples_per_problem=6)
    problem = make_problem("p")
    whole = rollout_request(problem, config, range(6), seed=5, round_number=2)
    rest = rollout_request(problem, config, (1, 2, 4, 5), seed=5, round_number=2)
    assert whole is not None
    assert rest is not None
    seeds = dict(zip(whole.sample_indices, whole.seeds, strict=True))
    assert dict(zip(rest.sample_indices, rest.seeds, strict=True)) == {index: seeds[index] for index in (1, 2, 4, 5)}
    assert len(set(whole.seeds)) == 6


# -- adaptive exploration ---------------------------------------------------------------------------------------------

adaptive_configs = st.builds(
    lambda cap, adaptive: ExploreConfig(samples_per_problem=cap, adaptive=adaptive),
    st.integers(6, 12),
    st.builds(AdaptiveConfig, initial=st.integers(1, 6), step=st.integers(1, 5), enough_correct=st.integers(1, 4)),
)
fates = st.lists(st.sampled_from(Verdict), min_size=12, max_size=12)


def explore(
    config: ExploreConfig, fates: dict[str, list[Verdict]], draw: random.Random
) -> tuple[dict[TrajectoryKey, Verdict], int]:
    """Samples as wanted, verdicts arriving one by one in any order, with restarts; returns what is stored and saved."""
    stored: dict[TrajectoryKey, Verdict] = {}
    allotment = Allotment(config, stored)
    while missing := [(problem, index) for problem in fates for index in allotment.wanted(problem)]:
        problem, index = draw.choice(missing)
        key = TrajectoryKey(2, problem, index)
        assert key not in stored, "sampled twice"
        stored[key] = fates[problem][index]
        if draw.random() < 0.3:
            allotment = Allotment(config, stored)
        else:
            allotment.record(key, stored[key])
    return stored, allotment.num_saved


@unhurried
@given(config=adaptive_configs, fates=st.dictionaries(ids, fates, max_size=4), draw=st.randoms(use_true_random=False))
def test_what_is_sampled_follows_from_the_verdicts_alone(
    config: ExploreConfig, fates: dict[str, list[Verdict]], draw: random.Random
) -> None:
    first = explore(config, fates, draw)
    assert explore(config, fates, draw) == first


@unhurried
@given(config=adaptive_configs, fate=fates, draw=st.randoms(use_true_random=False))
def test_a_problem_stops_at_enough_correct_or_at_the_cap(
    config: ExploreConfig, fate: list[Verdict], draw: random.Random
) -> None:
    stored, saved = explore(config, {"p": fate}, draw)
    assert config.adaptive is not None
    cap = config.samples_per_problem
    count = len(stored)
    assert [key.sample_index for key in sorted(stored)] == list(range(count))
    assert min(config.adaptive.initial, cap) <= count <= cap
    assert saved == cap - count
    if count < cap:
        enough = config.adaptive.enough_correct
        assert fate[:count].count(Verdict.CORRECT) >= enough
        before = max(count - config.adaptive.step, 0)
        assert count == config.adaptive.initial or fate[:before].count(Verdict.CORRECT) < enough


@unhurried
@given(config=adaptive_configs, verdict=st.sampled_from([verdict for verdict in Verdict if verdict != "correct"]))
def test_a_problem_that_is_never_solved_gets_as_many_as_without_adaptation(
    config: ExploreConfig, verdict: Verdict
) -> None:
    stored, saved = explore(config, {"p": [verdict] * 12}, random.Random(0))
    assert (len(stored), saved) == (config.samples_per_problem, 0)


# -- a budget of tokens -----------------------------------------------------------------------------------------------

budgets = st.builds(
    lambda cap, adaptive, budget: ExploreConfig(samples_per_problem=cap, adaptive=adaptive, max_sampled_tokens=budget),
    st.integers(6, 12),
    st.none()
    | st.builds(AdaptiveConfig, initial=st.integers(1, 4), step=st.integers(1, 3), enough_correct=st.integers(1, 4)),
    st.integers(1, 3000),
)
Response = tuple[Verdict, int]
responses = st.lists(st.tuples(st.sampled_from(Verdict), st.integers(1, 100)), min_size=12, max_size=12)


def spend(
    config: ExploreConfig, fates: dict[str, list[Response]], draw: random.Random
) -> tuple[list[set[TrajectoryKey]], dict[TrajectoryKey, int]]:
    """Samples as wanted, verdicts arriving in any order, with restarts; the generations, and the tokens of each key."""
    verdicts: dict[TrajectoryKey, Verdict] = {}
    tokens: dict[TrajectoryKey, int] = {}
    allotment = allotment_of(config, list(fates), verdicts, lambda: tokens)
    generations: list[set[TrajectoryKey]] = []
    while wanted := [TrajectoryKey(2, problem, index) for problem in fates for index in allotment.wanted(problem)]:
        if not generations or not generations[-1] & set(wanted):
            generations.append(set(wanted))
        assert generations[-1] >= set(wanted), "a wave was decided before the one before was judged"
        key = draw.choice(wanted)
        verdicts[key], tokens[key] = fates[key.problem_id][key.sample_index]
        if draw.random() < 0.3:
            allotment = allotment_of(config, list(fates), verdicts, lambda: tokens)
        else:
            allotment.record(key, verdicts[key], num_tokens=tokens[key])
    assert isinstance(allotment, BudgetedAllotment)
    assert allotment.facts().num_sampled_tokens == sum(tokens.values())
    assert allotment.num_saved == config.samples_per_problem * len(fates) - len(tokens)
    return generations, tokens


@unhurried
@given(
    config=budgets,
    fates=st.dictionaries(ids, responses, max_size=5),
    draw=st.randoms(use_true_random=False),
)
def test_a_budget_is_spent_by_verdicts_and_lengths_alone_and_only_the_last_generation_goes_over_it(
    config: ExploreConfig, fates: dict[str, list[Response]], draw: random.Random
) -> None:
    generations, tokens = spend(config, fates, draw)
    assert spend(config, fates, draw) == (generations, tokens)
    assert config.max_sampled_tokens is not None
    assert sum(tokens[key] for generation in generations[:-1] for key in generation) <= config.max_sampled_tokens
    for problem in fates:
        indices = sorted(key.sample_index for key in tokens if key.problem_id == problem)
        assert indices == list(range(len(indices))) and len(indices) <= config.samples_per_problem


def test_the_next_wave_goes_to_the_problems_that_are_least_certain() -> None:
    """Of 4 samples each problem has its name's number correct; 10 tokens a response pay for two more waves of 4."""
    config = ExploreConfig(samples_per_problem=20, max_sampled_tokens=5 * 4 * 10 + 2 * 4 * 10)
    fates = {f"p{right}": [(correct_if(n < right), 10) for n in range(20)] for right in range(5)}
    generations, _ = spend(config, fates, random.Random(0))
    first, second = ({key.problem_id for key in generation} for generation in generations)
    assert first == set(fates)
    assert "p2" in second and second < {"p1", "p2", "p3"} and len(second) == 2


def correct_if(right: bool) -> Verdict:
    return Verdict.CORRECT if right else Verdict.INCORRECT


def test_never_solved_problems_come_before_always_solved_ones_of_as_many_samples() -> None:
    config = ExploreConfig(samples_per_problem=8, max_sampled_tokens=2 * 4 * 10 + 4 * 10)
    fates = {"always": [(Verdict.CORRECT, 10)] * 8, "never": [(Verdict.INCORRECT, 10)] * 8}
    generations, _ = spend(config, fates, random.Random(0))
    assert [{key.problem_id for key in generation} for generation in generations] == [{"always", "never"}, {"never"}]


def test_disagreement_is_what_a_uniform_prior_expects_of_two_further_verdicts() -> None:
    """E[2 p (1 - p)] by a sum over p, weighted by the likelihood of 3 correct ones of 8."""
    grid = [(n + 0.5) / 10_000 for n in range(10_000)]
    weights = [p**3 * (1 - p) ** 5 for p in grid]
    expected = sum(w * 2 * p * (1 - p) for w, p in zip(weights, grid, strict=True)) / sum(weights)
    assert disagreement(3, 8) == pytest.approx(expected, rel=1e-4)
    assert disagreement(2, 4) > disagreement(1, 4) > disagreement(0, 4) == disagreement(4, 4)
    assert disagreement(0, 4) > disagreement(0, 8), "the longer nothing is solved, the less is to be expected"


# -- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_of_a_run_hardly_ever_collide_and_fit_31_bits() -> None:
    """20,000 draws of 31 bits collide 0.09 times on average (birthday problem): two are allowed."""
    seeds = [
        rollout_seed(run, number, f"p{problem}", index)
        for run in (0, 1)
        for number in (1, 2)
        for problem in range(500)
        for index in range(10)
    ]
    assert len(seeds) - len(set(seeds)) <= 2
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert 0.45 < sum(seed < 2**30 for seed in seeds) / len(seeds) < 0.55


def test_parts_of_a_seed_do_not_run_together() -> None:
    variants = [("a", "b", "c"), ("ab", "c"), ("a", "bc"), ("abc",), ("a", 1), ("a", "1"), ("a", 11), (1, "a")]
    assert len({derived_seed(*parts) for parts in variants}) == len(variants)


def test_seeds_are_the_same_in_every_process_and_release() -> None:
    """Resuming a run with a later release must ask for the same samples: SHA-256 of "int:1\\x1fstr:a"."""
    import hashlib

    first = int(hashlib.sha256(b"int:1\x1fstr:a").hexdigest()[:8], 16)
    assert derived_seed(1, "a") == first // 2


# -- replicas ---------------------------------------------------------------------------------------------------------

loads = st.dictionaries(ids, st.integers(0, 20), max_size=6)


@unhurried
@given(loads=loads, weight=st.integers(0, 30), limit=st.integers(1, 20))
def test_the_replica_chosen_has_room_and_no_other_has_less_work(loads: dict[str, int], weight: int, limit: int) -> None:
    name = least_loaded(loads, weight=weight, limit=limit)
    if name is None:
        assert all(load > 0 and load + (weight + 1) // 2 > limit for load in loads.values())
    else:
        assert loads[name] == min(loads.values())
        assert loads[name] == 0 or loads[name] + (weight + 1) // 2 <= limit


def test_an_idle_replica_takes_a_request_that_is_larger_than_the_limit() -> None:
    assert least_loaded({"a": 1, "b": 0}, weight=99, limit=10) == "b"
    assert least_loaded({"a": 1}, weight=99, limit=10) is None
    assert least_loaded({}, weight=1, limit=10) is None


def test_sending_by_least_load_keeps_replicas_within_one_request_of_each_other() -> None:
    load = {"a": 0, "b": 0, "c": 0}
    sent = 0
    while (name := least_loaded(load, weight=4, limit=24)) is not None:
        load[name] += 4
        sent += 1
        assert max(load.values()) - min(load.values()) <= 4
    assert load == {"a": 24, "b": 24, "c": 24}, "no room for half a request"
    assert sent == 18
