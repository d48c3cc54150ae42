"""Which trajectories are learnt from: what may never happen, and that the strategies do what their names say."""

from __future__ import annotations

import inspect
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from still_ray.algo.selection.select import Demonstrated, is_usable, select_trajectories, solve_rates
from still_ray.algo.selection.strategies import STRATEGIES, Choice, TeacherLengths
from still_ray.config import Scope, SelectConfig
from still_ray.types import Candidate, FinishReason, InputError, TrajectoryKey, Verdict
from tests.fakes import make_candidate, make_digests

keys = st.builds(TrajectoryKey, st.integers(1, 3), st.sampled_from(["a", "b", "c", "d", "e"]), st.integers(0, 5))
drawn = st.builds(
    Candidate,
    key=keys,
    domain=st.sampled_from(["math", "choice", "code"]),
    verdict=st.sampled_from([Verdict.CORRECT, Verdict.CORRECT, *Verdict]),
    finish_reason=st.sampled_from([FinishReason.STOP, FinishReason.STOP, FinishReason.LENGTH]),
    well_formed=st.sampled_from([True, True, False]),
    thought_chars=st.integers(0, 300),
    perplexity=st.floats(1, 9),
    digests=st.just(make_digests("")),
)


def own_text(row: Candidate) -> Candidate:
    """With a text that no other has."""
    return replace(row, digests=make_digests(str(row.key)))


def some_text(row: Candidate, number: int) -> Candidate:
    """With one of a few texts, two of which share a thought; the same in every problem."""
    return replace(row, digests=make_digests(f"text {number}", f"thought {number // 2}"))


candidates = drawn.map(own_text)
repeating = st.lists(st.builds(some_text, drawn, st.integers(0, 7)), max_size=40, unique_by=lambda row: row.key)
pools = st.lists(candidates, max_size=40, unique_by=lambda row: row.key)
configs = st.builds(
    SelectConfig,
    strategy=st.sampled_from(sorted(STRATEGIES)),
    max_per_problem=st.integers(1, 4),
    max_examples=st.none() | st.integers(1, 10),
    max_solve_rate=st.none() | st.sampled_from([0.0, 0.5, 0.99, 1.0]),
)
teachers = st.dictionaries(st.sampled_from(["math", "choice", "physics"]), st.lists(st.integers(0, 300), max_size=30))
SCOPES: tuple[Scope, ...] = ("whole", "thought")
unhurried = settings(deadline=None)


def take(pool: Iterable[Candidate], config: SelectConfig, *, teacher: TeacherLengths, seed: int) -> list[TrajectoryKey]:
    shown = Demonstrated(thought_chars=teacher)
    return list(select_trajectories(pool, config, scope="whole", shown=shown, seed=seed).keys)


@unhurried
@given(pool=pools, config=configs, teacher=teachers, seed=st.integers(0, 5))
def test_only_correct_whole_trajectories_are_taken_and_none_twice(
    pool: list[Candidate], config: SelectConfig, teacher: dict[str, list[int]], seed: int
) -> None:
    chosen = take(pool, config, teacher=teacher, seed=seed)
    by_key = {row.key: row for row in pool}
    assert chosen == sorted(set(chosen))
    for key in chosen:
        row = by_key[key]
        assert row.verdict is Verdict.CORRECT
        assert row.well_formed
        assert row.finish_reason is FinishReason.STOP


def rate_by_hand(pool: list[Candidate], problem: str) -> float:
    """Correct answers of a problem over all its answers; what was never judged is neither."""
    unjudged = (Verdict.TIMEOUT, Verdict.ERROR)
    verdicts = [row.verdict for row in pool if row.key.problem_id == problem and row.verdict not in unjudged]
    return verdicts.count(Verdict.CORRECT) / len(verdicts)


@unhurried
@given(pool=pools, config=configs, teacher=teachers, seed=st.integers(0, 5))
def test_the_caps_hold_and_are_used_up(
    pool: list[Candidate], config: SelectConfig, teacher: dict[str, list[int]], seed: int
) -> None:
    chosen = take(pool, config, teacher=teacher, seed=seed)
    most = min(1.0 if config.max_solve_rate is None else config.max_solve_rate, 1.0)
    available = Counter(
        row.key.problem_id
        for row in pool
        if row.verdict is Verdict.CORRECT
        and is_usable(row)
        and rate_by_hand(pool, row.key.problem_id) <= most
        and not (config.strategy == "solve_rate" and rate_by_hand(pool, row.key.problem_id) == 1)
    )
    taken = Counter(key.problem_id for key in chosen)
    assert all(count <= config.max_per_problem for count in taken.values())
    possible = sum(min(count, config.max_per_problem) for count in available.values())
    cap = possible if config.max_examples is None else min(possible, config.max_examples)
    assert len(chosen) == cap


@unhurried
@given(pool=pools, config=configs, teacher=teachers, seed=st.integers(0, 5))
def test_every_correct_trajectory_is_taken_or_in_one_count(
    pool: list[Candidate], config: SelectConfig, teacher: dict[str, list[int]], seed: int
) -> None:
    shown = Demonstrated(thought_chars=teacher, digests={row.digests.under("whole") for row in pool[:3]})
    found = select_trajectories(pool, config, scope="whole", shown=shown, seed=seed)
    left_out = found.num_unusable + found.num_often_solved + found.num_as_demonstrated + found.num_as_earlier
    assert len(found.keys) + left_out + found.num_not_chosen == found.num_correct
    assert found.num_correct == sum(row.verdict is Verdict.CORRECT for row in pool)


@unhurried
@given(pool=pools, config=configs, teacher=teachers, seed=st.integers(0, 5), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_the_pool_does_not_matter(
    pool: list[Candidate], config: SelectConfig, teacher: dict[str, list[int]], seed: int, shuffle: random.Random
) -> None:
    shuffled = list(pool)
    shuffle.shuffle(shuffled)
    turned = {domain: lengths[::-1] for domain, lengths in reversed(teacher.items())}
    first = take(pool, config, teacher=teacher, seed=seed)
    assert take(iter(shuffled), config, teacher=turned, seed=seed) == first


@unhurried
@given(
    pool=repeating,
    config=configs,
    scope=st.sampled_from(SCOPES),
    shown=st.sets(st.integers(0, 7)),
    shuffle=st.randoms(use_true_random=False),
)
def test_equal_texts_are_learnt_once_and_every_copy_is_counted(
    pool: list[Candidate], config: SelectConfig, scope: Scope, shown: set[int], shuffle: random.Random
) -> None:
    taught = {make_digests(f"text {number}", f"thought {number // 2}").under(scope) for number in shown}
    demonstrated = Demonstrated(thought_chars={}, digests=taught)
    selection = select_trajectories(pool, config, scope=scope, shown=demonstrated, seed=0)
    by_key = {row.key: row for row in pool}
    texts = [by_key[key].digests.under(scope) for key in selection.keys]
    assert len(set(texts)) == len(texts)
    assert not taught & set(texts)
    open_to_all = config.model_copy(update={"max_per_problem": 99, "max_examples": None, "strategy": "random"})
    everything = select_trajectories(pool, open_to_all, scope=scope, shown=demonstrated, seed=0)
    right = [row for row in pool if row.verdict is Verdict.CORRECT and is_usable(row)]
    rates = solve_rates(pool)
    allowed = [row for row in right if rates[row.key.problem_id] <= (config.max_solve_rate or 0)]
    allowed = right if config.max_solve_rate is None else allowed
    assert len(everything.keys) + everything.num_as_earlier + everything.num_as_demonstrated == len(allowed)
    for key in everything.keys:
        assert key == min(row.key for row in allowed if row.digests.under(scope) == by_key[key].digests.under(scope))
    shuffle.shuffle(pool)
    assert select_trajectories(pool, config, scope=scope, shown=demonstrated, seed=0) == selection


def test_the_cap_of_a_problem_counts_texts() -> None:
    pool = [make_candidate("p", index, digests=make_digests(f"text {index // 3}")) for index in range(12)]
    assert [key.sample_index for key in take(pool, SelectConfig(max_per_problem=9), teacher={}, seed=0)] == [0, 3, 6, 9]


def wide_pool(num_problems: int = 40, num_samples: int = 4) -> list[Candidate]:
    draw = random.Random(0)
    return [
        make_candidate(f"p{problem}", index, perplexity=1 + draw.random(), thought_chars=draw.randrange(2000))
        for problem in range(num_problems)
        for index in range(num_samples)
    ]


def test_another_seed_takes_others_where_the_strategy_leaves_a_choice() -> None:
    pool = wide_pool()
    config = SelectConfig(strategy="random", max_examples=10)
    picks = {tuple(take(pool, config, teacher={}, seed=seed)) for seed in range(5)}
    assert len(picks) == 5


def test_ranking_by_perplexity_takes_the_extreme_of_each_problem() -> None:
    pool = wide_pool(5)
    for strategy, extreme in (("highest_perplexity", max), ("lowest_perplexity", min)):
        config = SelectConfig.model_validate({"strategy": strategy})
        chosen = take(pool, config, teacher={}, seed=1)
        for problem in range(5):
            rows = [row for row in pool if row.key.problem_id == f"p{problem}"]
            assert extreme(rows, key=lambda row: row.perplexity).key in chosen


def test_ranking_by_perplexity_spends_the_cap_on_the_extremes_of_all() -> None:
    pool = wide_pool()
    config = SelectConfig(strategy="highest_perplexity", max_examples=6)
    best = {p: max(row.perplexity for row in pool if row.key.problem_id == p) for p in {r.key.problem_id for r in pool}}
    chosen = take(pool, config, teacher={}, seed=1)
    assert {key.problem_id for key in chosen} == set(sorted(best, key=lambda problem: -best[problem])[:6])


# -- following the teacher's lengths ----------------------------------------------------------------------------------


def mean_distance(chosen: Sequence[TrajectoryKey], pool: Sequence[Candidate], teacher: Sequence[int]) -> float:
    """The first Wasserstein distance between the chosen lengths and the teacher's, by matching quantiles."""
    lengths = {row.key: row.thought_chars for row in pool}
    mine, theirs = sorted(lengths[key] for key in chosen), sorted(teacher)
    steps = 200
    quantile = [(mine[len(mine) * i // steps], theirs[len(theirs) * i // steps]) for i in range(steps)]
    return sum(abs(a - b) for a, b in quantile) / steps


def select(pool: Sequence[Candidate], strategy: str, teacher: dict[str, list[int]], seed: int) -> list[TrajectoryKey]:
    config = SelectConfig.model_validate({"strategy": strategy})
    return take(pool, config, teacher=teacher, seed=seed)


def test_the_teachers_length_distribution_is_followed_better_than_by_chance() -> None:
    """The pool is uniform over 0..2000 characters, the teacher writes mostly 1000 to 2000."""
    draw = random.Random(3)
    teacher = [draw.randrange(1000, 2000) for _ in range(300)]
    pool = wide_pool(200, 6)
    for seed in range(3):
        followed = mean_distance(select(pool, "length_distribution", {"math": teacher}, seed), pool, teacher)
        by_chance = mean_distance(select(pool, "random", {"math": teacher}, seed), pool, teacher)
        assert followed < 0.25 * by_chance


def test_a_teacher_of_many_equal_lengths_is_followed_too() -> None:
    """90 % of the teacher's thoughts have one length; deciles coincide there, and short answers stay rare."""
    teacher = [1000] * 90 + [100] * 10
    pool = [
        make_candidate(f"p{problem}", index, thought_chars=length)
        for problem in range(100)
        for index, length in enumerate((100, 1000))
    ]
    chosen = select(pool, "length_distribution", {"math": teacher}, 0)
    lengths = Counter(row.thought_chars for row in pool if row.key in set(chosen))
    assert lengths == {1000: 90, 100: 10}


def two_lengths(domain: str, num_problems: int = 20) -> list[Candidate]:
    return [
        make_candidate(f"{domain}{problem}", index, domain=domain, thought_chars=length)
        for problem in range(num_problems)
        for index, length in enumerate((50, 5000))
    ]


def lengths_of(chosen: Sequence[TrajectoryKey], pool: Sequence[Candidate], domain: str) -> Counter[int]:
    return Counter(row.thought_chars for row in pool if row.key in set(chosen) and row.domain == domain)


def test_each_domain_follows_its_own_teacher() -> None:
    pool = two_lengths("math") + two_lengths("code")
    teacher = {"math": [50] * 36 + [5000] * 4, "code": [50] * 8 + [5000] * 32}
    chosen = select(pool, "length_distribution", teacher, 0)
    assert lengths_of(chosen, pool, "math") == {50: 18, 5000: 2}
    assert lengths_of(chosen, pool, "code") == {50: 4, 5000: 16}


def test_a_domain_that_the_teacher_lacks_follows_all_its_lengths_together() -> None:
    pool = two_lengths("choice")
    teacher = {"math": [50] * 9, "physics": [5000], "choice": []}
    assert lengths_of(select(pool, "length_distribution", teacher, 0), pool, "choice") == {50: 18, 5000: 2}


def test_without_any_demonstration_a_choice_is_still_made() -> None:
    pool = wide_pool(10, 3)
    assert len(select(pool, "length_distribution", {}, 0)) == 10
    assert select([], "length_distribution", {"math": [1]}, 0) == []


def test_every_problem_gets_its_first_pick_before_any_gets_a_second() -> None:
    config = SelectConfig(max_per_problem=3, max_examples=12)
    chosen = take(wide_pool(10, 5), config, teacher={"math": [100, 200]}, seed=0)
    assert sorted(Counter(key.problem_id for key in chosen).values()) == [1] * 8 + [2] * 2


# -- solve rates ------------------------------------------------------------------------------------------------------


def solved_so_often(**counts: tuple[int, int]) -> list[Candidate]:
    """Problems with (correct, incorrect) answers."""
    return [
        make_candidate(problem, index, verdict=Verdict.CORRECT if index < right else Verdict.INCORRECT)
        for problem, (right, wrong) in counts.items()
        for index in range(right + wrong)
    ]


def test_a_timeout_or_an_error_is_no_failure_of_the_model_but_a_missing_answer_is() -> None:
    verdicts = (Verdict.CORRECT, Verdict.TIMEOUT, Verdict.ERROR, Verdict.UNPARSABLE)
    pool = [make_candidate("p", index, verdict=verdict) for index, verdict in enumerate(verdicts)]
    assert solve_rates(pool) == {"p": 0.5}
    assert solve_rates([make_candidate("p", verdict=Verdict.TIMEOUT)]) == {}


def test_rarely_solved_problems_come_first_and_those_always_solved_not_at_all() -> None:
    pool = solved_so_often(never=(0, 4), rare=(1, 3), half=(2, 2), often=(3, 1), always=(4, 0))
    for cap, expected in ((1, ["rare"]), (2, ["half", "rare"]), (None, ["half", "often", "rare"])):
        config = SelectConfig(strategy="solve_rate", max_examples=cap)
        chosen = take(pool, config, teacher={}, seed=0)
        assert sorted(key.problem_id for key in chosen) == expected


def test_a_greatest_solve_rate_limits_every_strategy() -> None:
    pool = solved_so_often(rare=(1, 3), half=(2, 2), always=(4, 0))
    for strategy in STRATEGIES:
        config = SelectConfig.model_validate({"strategy": strategy, "max_solve_rate": 0.5})
        chosen = take(pool, config, teacher={"math": [100]}, seed=0)
        assert {key.problem_id for key in chosen} == {"rare", "half"}


# -- strategies as objects --------------------------------------------------------------------------------------------


def test_ranking_by_length_takes_the_extreme_of_each_problem() -> None:
    pool = wide_pool(5)
    for strategy, extreme in (("shortest", min), ("longest", max)):
        chosen = select(pool, strategy, {}, 1)
        for problem in range(5):
            lengths = {row.key: row.thought_chars for row in pool if row.key.problem_id == f"p{problem}"}
            assert sum(lengths[key] for key in chosen if key in lengths) == extreme(lengths.values())


def test_the_page_describes_every_strategy_in_its_own_words() -> None:
    page = (Path(__file__).parents[2] / "docs" / "selection.md").read_text(encoding="utf-8")
    for name, strategy in STRATEGIES.items():
        paragraphs = (inspect.getdoc(strategy) or "").split("\n\n")
        source = paragraphs[-1].removeprefix("Source: ")
        assert f"| `{name}` | {paragraphs[0]} | {source} |" in page


def test_a_strategy_of_ones_own_ranks_and_the_caps_are_kept_for_it() -> None:
    pool = wide_pool(5)
    config = SelectConfig(strategy="tests.unit.test_algo_selection:longest_of_all", max_per_problem=2, max_examples=7)
    chars = {row.key: row.thought_chars for row in pool}
    chosen = take(pool, config, teacher={}, seed=0)
    by_hand = take(pool, config.model_copy(update={"strategy": "longest"}), teacher={}, seed=0)
    assert sorted(chars[key] for key in chosen) == sorted(chars[key] for key in by_hand)
    for strategy in ("twice", "from_elsewhere"):
        with pytest.raises(InputError, match="which it was not given or has given before"):
            take(pool, SelectConfig(strategy=f"tests.unit.test_algo_selection:{strategy}"), teacher={}, seed=0)


def longest_of_all(choice: Choice) -> Iterable[Candidate]:
    return sorted(choice.rows, key=lambda row: -row.thought_chars)


def twice(choice: Choice) -> Iterable[Candidate]:
    return [*choice.rows, choice.rows[0]]


def from_elsewhere(choice: Choice) -> Iterable[Candidate]:
    return [make_candidate("elsewhere")]
