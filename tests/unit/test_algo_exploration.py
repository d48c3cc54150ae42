"""What a round asks for: which problems, which samples with which seeds, and which replica takes them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.algo.exploration import choose_problems, least_loaded, missing_request
from still_ray.algo.seeds import derived_seed, rollout_seed
from still_ray.config import ExploreConfig
from still_ray.types import TrajectoryKey
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


@unhurried
@given(done=st.sets(st.integers(0, 9)), num_samples=st.integers(1, 8))
def test_a_request_asks_for_exactly_the_samples_that_are_missing(done: set[int], num_samples: int) -> None:
    problem = make_problem("p")
    config = ExploreConfig(samples_per_problem=num_samples, temperature=0.5, top_p=0.9, max_tokens=70)
    keys = {TrajectoryKey(2, "p", index) for index in done}
    request = missing_request(problem, config, done=keys, seed=5, round_number=2)
    missing = [index for index in range(num_samples) if index not in done]
    assert (request is None) == (not missing)
    if request is not None:
        assert list(request.sample_indices) == missing
        assert (request.round, request.problem) == (2, problem)
        settings = request.settings
        assert (settings.temperature, settings.top_p, settings.max_tokens) == (0.5, 0.9, 70)


def test_other_rounds_and_problems_do_not_count_as_done() -> None:
    config = ExploreConfig(samples_per_problem=2)
    done = {TrajectoryKey(1, "p", 0), TrajectoryKey(2, "q", 0), TrajectoryKey(2, "p", 1)}
    request = missing_request(make_problem("p"), config, done=done, seed=5, round_number=2)
    assert request is not None
    assert request.sample_indices == (0,)


def test_a_retried_sample_has_the_seed_that_it_had_at_first() -> None:
    config = ExploreConfig(samples_per_problem=6)
    problem = make_problem("p")
    whole = missing_request(problem, config, done=(), seed=5, round_number=2)
    rest = missing_request(problem, config, done={TrajectoryKey(2, "p", i) for i in (0, 3)}, seed=5, round_number=2)
    assert whole is not None
    assert rest is not None
    seeds = dict(zip(whole.sample_indices, whole.seeds, strict=True))
    assert dict(zip(rest.sample_indices, rest.seeds, strict=True)) == {index: seeds[index] for index in (1, 2, 4, 5)}
    assert len(set(whole.seeds)) == 6


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
        assert all(load > 0 and load + weight > limit for load in loads.values())
    else:
        assert loads[name] == min(loads.values())
        assert loads[name] == 0 or loads[name] + weight <= limit


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
    assert load == {"a": 24, "b": 24, "c": 24}
    assert sent == 18
