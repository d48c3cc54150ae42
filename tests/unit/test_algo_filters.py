"""The filters: natural long thoughts pass, what each rule is for does not."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.config.prepare import (
    GibberishConfig,
    LanguageConfig,
    LengthConfig,
    OverlapConfig,
    PrepareConfig,
    RepetitionConfig,
)
from still_ray.prepare.filters.chain import first_drop, row_checks
from still_ray.prepare.filters.gibberish import check_gibberish
from still_ray.prepare.filters.language import check_language, script_counts
from still_ray.prepare.filters.length import check_length, check_tokens
from still_ray.prepare.filters.overlap import build_index, check_overlap
from still_ray.prepare.filters.repetition import check_repetition, find_loop, repeated_ngram_share, repeated_share
from still_ray.prepare.filters.row import Drop, RowTexts
from still_ray.prepare.filters.words import (
    counted_runs,
    counted_words,
    ngram_hashes,
    sequence_hash,
    word_hashes,
    word_hashes_of,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
QUESTION = "How many positive integers below 100 are divisible by neither 2 nor 5?"
THOUGHT = """Okay, so I need to find how many positive integers below 100 are divisible by neither 2 nor 5.

First, let me count all of them: there are 99 positive integers below 100.

Multiples of 2 below 100: 2, 4, 6, ..., 98. That is 98/2 = 49 numbers. Multiples of 5: 5, 10, ..., 95. That is 19.

Wait, I must not subtract those divisible by both twice. Multiples of 10: 10, 20, ..., 90, which is 9 numbers.

So by inclusion-exclusion the number divisible by 2 or 5 is \\(49 + 19 - 9 = 59\\). Then 99 - 59 = 40.

Wait, let me check. Numbers coprime to 10 in each block of ten are those ending in 1, 3, 7 and 9. That is 4 in ten.

Wait, let me check again. From 1 to 99 there are blocks 1-10, 11-20, ..., 91-99. Each has 4, so 10 blocks give 40.

Hmm, is 100 among them? No. It would not count anyway, since 100 is divisible by 2.

Wait, one more way: \\(\\varphi(100) = 100 \\cdot \\frac{1}{2} \\cdot \\frac{4}{5} = 40\\). Good.

So the answer is 40. Let me also verify with \\sqrt{n}: not needed. The answer is 40."""
SOLUTION = "By inclusion-exclusion $99 - (49 + 19 - 9) = 40$, so the answer is \\boxed{40}."
NATURAL = RowTexts(QUESTION, THOUGHT, SOLUTION)
ALL = row_checks(PrepareConfig(), None)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
plain_words = st.lists(st.sampled_from(["a", "b", "c", "dog", "7", "+"]), max_size=60)


def shown(thought: str, *, question: str = QUESTION, solution: str = SOLUTION) -> RowTexts:
    return RowTexts(question, thought, solution)


def rule(drop: Drop | None) -> str | None:
    return None if drop is None else f"{drop.filter}/{drop.rule}"


# -- words ------------------------------------------------------------------------------------------------------------


def test_words_do_not_see_case_spacing_or_dollar_signs_but_see_operators() -> None:
    same = ["What is $2 + 2$?", "what  is 2+2", "WHAT IS\n\\(2+2\\)!"]
    assert len({word_hashes(text).tobytes() for text in same}) == 1
    assert sequence_hash(word_hashes("What is 2-2?")) != sequence_hash(word_hashes("What is 2+2?"))
    assert len(word_hashes("求和: 值x")) == len("求和值")  # one word each, Latin letters stay with the last
    assert np.array_equal(word_hashes("2 − 2 × 3"), word_hashes("2 - 2 * 3"))  # noqa: RUF001 - the signs in print


@given(st.lists(texts, min_size=1, max_size=4))
def test_texts_hashed_together_give_the_same_words_as_alone(parts: list[str]) -> None:
    together = word_hashes_of(parts)
    assert [words.tolist() for words in together] == [word_hashes(part).tolist() for part in parts]


@given(plain_words, plain_words)
def test_equal_words_have_equal_hashes_and_others_have_not(left: list[str], right: list[str]) -> None:
    one, other = (word_hashes(" ".join(words)) for words in (left, right))
    assert (one.tolist() == other.tolist()) == (left == right)
    assert (sequence_hash(one) == sequence_hash(other)) == (left == right)


@given(plain_words, st.integers(1, 20))
def test_ngrams_are_equal_just_where_the_words_are(words: list[str], length: int) -> None:
    hashes = ngram_hashes(word_hashes(" ".join(words)), length).tolist()
    runs = [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs))
    assert len(set(zip(hashes, runs, strict=True))) == len(set(runs))


def test_a_long_text_has_the_words_of_its_parts() -> None:
    text = "alpha beta " * 5000
    assert set(word_hashes(text).tolist()) == set(word_hashes("alpha beta").tolist())
    assert len(word_hashes(text)) == 10_000


# -- the chain --------------------------------------------------------------------------------------------------------


def test_a_natural_long_thought_passes_every_filter() -> None:
    assert first_drop(NATURAL, ALL) is None
    blocks = [THOUGHT.replace("100", str(n * 100)).replace("40", str(n * 40)) for n in range(1, 12)]
    assert first_drop(shown("\n\n".join(blocks[:1]) + " Wait, let me check. " * 3), ALL) is None


def test_real_solutions_pass_every_filter() -> None:
    path = DATA / "MATH_OAI.jsonl"
    if not path.exists():
        pytest.skip("the MATH problems are not beside the project")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    checks = row_checks(PrepareConfig.model_validate({"length": {"enabled": False}}), None)
    dropped = [rule(first_drop(RowTexts(row["problem"], row["solution"]), checks)) for row in rows]
    assert sum(name is not None for name in dropped) <= len(rows) // 200, dropped


@pytest.mark.parametrize("name", ["length", "repetition", "language", "gibberish"])
def test_each_filter_has_a_switch(name: str) -> None:
    bad = {
        "length": shown("Too short."),
        "repetition": shown("I need to check the answer once again now. " * 40),
        "language": shown(THOUGHT + "\n\n" + "所以答案是四十" * 20),
        "gibberish": shown(THOUGHT + "\ufffd" * 50),
    }[name]
    on, off = (PrepareConfig.model_validate({name: {"enabled": enabled}}) for enabled in (True, False))
    drop = first_drop(bad, row_checks(on, None))
    assert drop is not None and drop.filter == name
    assert first_drop(bad, row_checks(off, None)) is None


def test_a_megabyte_takes_well_under_a_second() -> None:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 9))) for _ in range(3000)]
    config = PrepareConfig.model_validate({"length": {"max_response_chars": 10**9}})
    index = build_index([QUESTION], config.decontaminate)
    hard = {
        "prose": ". ".join(" ".join(draw.choices(words, k=9)) for _ in range(22_000)),
        "loop": "one two three " * 75_000,
        "one word": "x" * 1_000_000,
        "ideographs": "字" * 350_000,
        "spaces": " " * 1_000_000 + "x",
    }
    for name, text in hard.items():
        started = time.perf_counter()
        for check in row_checks(config, index):
            check(shown(text))
        assert time.perf_counter() - started < 2.0, name  # 0.1 s alone; the machine may be busy


# -- length -----------------------------------------------------------------------------------------------------------


def test_lengths_are_checked_at_their_limits() -> None:
    limits = LengthConfig(
        min_question_chars=3, max_question_chars=5, min_thought_chars=4, max_response_chars=8, max_response_tokens=7
    )
    cases = {
        ("ab", "tttt", "ss"): "length/question_too_short",
        ("abc", "tttt", "ss"): None,
        ("abcdef", "tttt", "ss"): "length/question_too_long",
        ("abc", "ttt", "ss"): "length/thought_too_short",
        ("abc", "ttttt", "sss"): None,
        ("abc", "ttttt", "ssss"): "length/response_too_long",
        ("abc", "", ""): None,  # a problem
    }
    assert {case: rule(check_length(RowTexts(*case), limits)) for case in cases} == cases
    assert check_tokens(7, limits) is None
    assert rule(check_tokens(8, limits)) == "length/too_many_tokens"


# -- repetition -------------------------------------------------------------------------------------------------------

LIMITS = RepetitionConfig()


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        (THOUGHT + "\n\n" + THOUGHT, "repetition/paragraphs"),
        ("Let me compute the remainder of this number by 7. " * 20, "repetition/sentences"),
        (THOUGHT.replace("\n\n", " ") + " and then we have to look at the rest of it" * 30, "repetition/ngrams"),
        (THOUGHT * 3 + " no no" * 120, "repetition/paragraphs"),
        (" ".join(f"step {n} gives {n * n}," for n in range(400)) + " so we go on and on" * 40, "repetition/loop"),
    ],
)
def test_degenerate_thoughts_are_dropped(thought: str, expected: str) -> None:
    assert rule(check_repetition(shown(thought), LIMITS)) == expected


@pytest.mark.parametrize(
    "thought",
    [
        "Wait, " * 6 + "that is not right. " + THOUGHT,
        "\n".join(f"Let me check n = {n}: {n}^2 + {n} = {n * n + n}. Wait, is it even? Yes." for n in range(1, 80)),
        "The matrix is " + " & ".join(["0"] * 100) + ".\n\n" + THOUGHT,
        "1 + " * 60 + "1 = 61, fine. " + THOUGHT,
        THOUGHT + "\n|" + ("-" * 24 + "|") * 3 + "\n| 5 | 6 | 7 |\n" + "=" * 160 + "\n" + "*" * 160,
        "| x | y |\n|---|---|\n" + "\n".join(f"| {x} | {x * x} |" for x in range(60)),
    ],
)
def test_what_thoughts_naturally_repeat_is_kept(thought: str) -> None:
    assert check_repetition(shown(thought), LIMITS) is None


TABLE = """We compare the plans.

| Plan                   | Monthly cost           | Total after 12 months  |
|------------------------|------------------------|------------------------|
| Basic                  | $12                    | $144                   |
| Plus                   | $15                    | $180                   |

So it is \\boxed{36}."""


@pytest.mark.parametrize("solution", [TABLE, "=" * 40 + "\nTotal: 96\n" + "=" * 40 + "\nso it is \\boxed{96}."])
def test_tables_and_rulers_are_no_repetition(solution: str) -> None:
    assert check_repetition(shown(THOUGHT, solution=solution), LIMITS) is None


MATRICES = {
    "zeros": " \\\\\n".join(" & ".join(["0"] * 13) for _ in range(12)),
    "identity": "\n".join(" ".join(str(int(row == column)) for column in range(15)) for row in range(15)),
    "alternating": ", ".join(str(n % 2) for n in range(160)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_matrix_inside_a_long_thought_is_no_loop_but_at_its_end_it_would_be(name: str) -> None:
    proof = " ".join(f"Step {n} gives the {n * n + 1} of {n + 7}." for n in range(400))
    assert check_repetition(shown(f"{proof}\n{MATRICES[name]}\n{THOUGHT}"), LIMITS) is None
    assert rule(check_repetition(shown(f"{proof}\n{MATRICES[name]}"), LIMITS)) == "repetition/loop"


def test_a_solution_may_repeat_its_thought() -> None:
    assert check_repetition(RowTexts(QUESTION, THOUGHT, THOUGHT), LIMITS) is None


def test_shares_are_those_counted_by_hand() -> None:
    assert repeated_share(["aaaa", "bb", "aaaa", "aaaa", "cc"], 3) == pytest.approx(8 / 16)
    assert repeated_share(["aa", "aa"], 3) == 0
    assert repeated_share([], 1) == 0
    assert repeated_share(["|--|", "|--|", "aaaa"], 3) == 0  # rulers
    words = word_hashes("a b c d e a b c f g")
    assert repeated_ngram_share(words, 3) == pytest.approx(3 / 10)  # the second "a b c"
    assert repeated_ngram_share(words, 4) == 0


@given(st.integers(1, 30), st.integers(8, 30), st.integers(0, 50), st.integers(0, 200))
def test_a_planted_loop_is_found_with_its_period(period: int, repeats: int, before: int, after: int) -> None:
    prefix = " ".join(f"p{n}" for n in range(before))
    body = " ".join(f"w{n}" for n in range(period))
    rest = " ".join(f"r{n}" for n in range(after))
    words = word_hashes(f"{prefix} {' '.join([body] * repeats)} {rest}")
    found = find_loop(words, repeats=8, least=20, max_period=30, min_share=0.2)
    counts = after < period or period * repeats >= 0.2 * (before + period * repeats + after)
    expected = (period, period * repeats) if counts and period * repeats >= 20 else None
    assert found == expected


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=300))
def test_words_that_never_repeat_are_no_loop(numbers: list[int]) -> None:
    words = word_hashes(" ".join(f"n{number}" for number in numbers))
    assert find_loop(words, repeats=8, least=20, max_period=100, min_share=0) is None
    assert repeated_ngram_share(words, 2) == 0


# -- language ---------------------------------------------------------------------------------------------------------


def test_scripts_are_counted_and_mathematics_is_none() -> None:
    assert script_counts("abcd x \\sqrt где 漢字かな 한글 \u03b1\u03b2\u03b3 ∑∞ 123") == {
        "LATIN": 4,
        "CYRILLIC": 3,
        "CJK": 4,
        "HANGUL": 2,
    }
    assert script_counts("\U00020000") == {"CJK": 1}


@pytest.mark.parametrize(
    ("thought", "dropped"),
    [
        (THOUGHT, False),
        (THOUGHT + " 设 x 为整数", False),  # a slip of five characters
        (THOUGHT + "\n\n首先我们需要计算所有小于一百的正整数的个数然后减去可以被二或五整除的数", True),
        ("首先我们需要计算所有小于一百的正整数" * 20 + " \\frac{n}{2} = 40", False),  # not English
        ("首先我们需要计算所有小于一百的正整数" * 3 + "so the number of them is forty, which was to be shown", True),
        (THOUGHT + " Πρῶτον θέλουμε", False),  # Greek is not told from mathematics
        (THOUGHT + " naïve Poincaré Erdős Łukasiewicz", False),
    ],
)
def test_mixed_languages_are_told_by_their_scripts(thought: str, dropped: bool) -> None:
    assert (check_language(shown(thought), LanguageConfig()) is not None) == dropped


def test_fenced_code_is_of_no_language() -> None:
    code = "```python\n" + "def shortest_path(graph, source):\n    return graph\n" * 9 + "```"
    chinese = "首先我们需要计算所有小于一百的正整数" * 9
    assert check_language(shown(chinese, solution=code), LanguageConfig()) is None
    assert check_language(shown(chinese + code.removesuffix("```"), solution=""), LanguageConfig()) is None  # cut off
    assert check_language(shown(chinese, solution=code.replace("`", "")), LanguageConfig()) is not None


# -- gibberish --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thought", "expected"),
    [
        (THOUGHT, None),
        (THOUGHT + "\ufffd\ufffd\ufffd", "gibberish/damaged"),
        (THOUGHT + " donâ\u20ac\u2122t itâ\u20ac\u2122s weâ\u20ac\u2122ll", "gibberish/damaged"),
        (THOUGHT + "\x00\x01\x02", "gibberish/damaged"),
        (THOUGHT + " " + "x9Qf" * 300, "gibberish/unbroken"),
        ("a b " * 200, "gibberish/entropy"),
        (
            " ".join("".join(random.Random(n).choices("bcdfghjklmnpqrstvwxz", k=6)) for n in range(90)),
            "gibberish/odd_words",
        ),
        ("\\sqrt{2} \\cdot \\frac{1}{2} \\lfloor x \\rfloor " * 30 + "rhythm strengths " * 2 + THOUGHT, None),
        ("def solve(n):\n    return sum(i for i in range(n) if i % 2)\n" + THOUGHT, None),
        ("2" * 900 + " is a long number. " + THOUGHT, None),
        ("设集合满足条件求最小值" * 200, None),
    ],
)
def test_gibberish_is_told_from_mathematics_and_code(thought: str, expected: str | None) -> None:
    assert rule(check_gibberish(shown(thought), GibberishConfig())) == expected


# -- overlap ----------------------------------------------------------------------------------------------------------

EVALUATION = [
    "Find the number of ordered pairs of integers (a, b) with a + b at most 2024 such that a divides b evenly.",
    "What is the smallest prime factor of the number 2047?",
    "Compute 3 + 4.",
]
OVERLAP = OverlapConfig()


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        (EVALUATION[0], "decontaminate/same_question"),
        (EVALUATION[0].upper().replace("?", ""), "decontaminate/same_question"),
        ("Count the ordered pairs of integers (a, b) with a + b at most 2024 such that a > 1, b > 1.", None),
        (
            "Count number of ordered pairs of integers $(a,b)$ with $a+b$ at most 2024 such that $a$ divides $b$ well.",
            "decontaminate/ngrams",
        ),
        ("Find the number of ordered pairs of integers with a sum of 2024.", None),
        ("Tell me: " + EVALUATION[1], "decontaminate/short_question"),
        ("What is the smallest prime factor of the number 2049?", None),
        ("compute $3+4$", "decontaminate/same_question"),
        ("Compute 3 + 4 x.", None),  # contains a question too short to count unless equal
        ("Compute 3 - 4.", None),
    ],
)
def test_overlap_with_evaluation_sets(question: str, expected: str | None) -> None:
    index = build_index(EVALUATION, OVERLAP)
    assert index.num_questions == 3
    assert rule(check_overlap(RowTexts(question), index, OVERLAP)) == expected


@pytest.mark.parametrize(
    ("evaluation", "question"),
    [
        (
            "Let $a, b, c$ be positive real numbers such that $a + b + c = 3$. Find the maximum of $ab+bc$.",
            "Let $a,b,c$ be positive real numbers such that $a+b+c=1$. Prove that $abc \\le 1/27$.",
        ),
        (
            "[asy] size(150); draw((0,0)--(1,0)--(1,1)--(0,1)--cycle); [/asy] What is the area of the shaded region?",
            "[asy] size(150); draw((0,0)--(1,0)--(1,1)--(0,1)--cycle); [/asy] How many symmetries has this square?",
        ),
        (
            "已知等差数列{a_n}的前n项和为S_n,且a_3=5,S_6=36,求数列{a_n}的通项公式。",
            "已知等差数列{a_n}的前n项和为S_n,若a_1=2,公差为7,求S_20。",
        ),
        (
            "Find all functions $f:\\mathbb{R}\\to\\mathbb{R}$ such that $f(x+y)=f(x)+f(y)$ for all real $x$ and $y$.",
            "Find all functions $f:\\mathbb{R}\\to\\mathbb{R}$ such that $f(x+y)=f(x)f(y)+1$ for all real $x$.",
        ),
        ("Find $f'(2)$.", "Find $f(2)$."),
        ("What is 10!?", "What is 10?"),
        ("Compute (1+2)*3.", "Compute 1+(2*3)."),
        ("Compute |5-7|.", "Compute (5-7)."),
        ("Compute $\\log_2 8$.", "Compute $\\log 2_8$."),
    ],
)
def test_notation_that_problems_share_is_no_overlap(evaluation: str, question: str) -> None:
    index = build_index([evaluation], OVERLAP)
    assert check_overlap(RowTexts(question), index, OVERLAP) is None
    assert rule(check_overlap(RowTexts(evaluation), index, OVERLAP)) == "decontaminate/same_question"
    if len(evaluation) > 40:  # contained as a whole, or enough words of it
        assert check_overlap(RowTexts(f"Solve this: {evaluation} Explain."), index, OVERLAP) is not None


def test_how_a_question_is_set_makes_no_other_question() -> None:
    index = build_index(["Compute: $f'(2)$"], OVERLAP)
    for same in ("compute \\(f\u2019(2)\\)", "Compute\n\\[ f\u2032(2) \\]"):
        assert rule(check_overlap(RowTexts(same), index, OVERLAP)) == "decontaminate/same_question"


SPELLINGS = [
    (r"Simplify $\frac{3}{\sqrt{2}}+\frac{a}{4}x$", r"Simplify $\dfrac3{\sqrt2} + \tfrac{a}4 x$"),
    (r"Simplify $\frac{1}{2}+\frac{k+1}{3}$", r"Simplify \(½+{k+1 \over 3}\)"),
    (r"Add $(\frac{(1+\frac14)^2}{3})$", r"Add $\displaystyle\left(\cfrac{\bigl(1+\frac{1}{4}\bigr)^{2}}{3}\right)$"),
    (r"Simplify: $\binom{7}{2} + \sin^3 18^\circ$", "Simplify:\\[ {7 \\choose 2} + \\operatorname{sin}^{3}18° \\]"),
    (r"Find $\int_0^1 x\,dx$.", r"Find \begin{equation*}\int_{0}^{1}xdx.\end{equation*}"),
    (r"Why is $x \le 5$, $x \ne 2$?", r"Why is $x\leqslant5$, $x≠2$?"),
    (r"Find $2 \cdot 3 \times \pi r^2 - 1$", "Find $2×3·πr²−1$"),  # noqa: RUF001 - the signs in print
    (r"A car of $12{,}500\text{ kg}$ costs \$4,000.", r"A car of $12500~\mathrm{kg}$ costs $\$4\,000$."),
    (r"Let $n \equiv 3 \pmod{7}$, $|n| \geq 1, \ldots$", r"Let $n\equiv3\ (\bmod 7)$, $\lvert n\rvert ≥ 1$, …"),
    (r"Let $A' = \{1, 2\}$. Why $\overline{A}$?", r"Let $A^{\prime}=\left\lbrace 1,\!2\right\}$. Why $\bar{A}$?"),
    (r"Find the domain in $\mathbb{R}$ of $f.$", "Find\u200b the domain in $\u211d$ of $f$."),
]  # fmt: skip


@pytest.mark.parametrize(("evaluation", "question"), [*SPELLINGS, *((b, a) for a, b in SPELLINGS)])
def test_a_question_is_known_however_its_formulas_are_spelled(evaluation: str, question: str) -> None:
    story = "The old mill on the river grinds wheat for nine villages between the hills and the sea. "
    index = build_index([evaluation, story + evaluation], OVERLAP)
    assert rule(check_overlap(RowTexts(question), index, OVERLAP)) == "decontaminate/same_question"
    assert rule(check_overlap(RowTexts(story + question), index, OVERLAP)) == "decontaminate/same_question"
    words = [word_hashes(re.sub("xdx", "x dx", text), signs=True).tolist() for text in (evaluation, question)]
    assert words[0] == words[1]  # so it is found inside of other texts, too


RESPELLED = {
    r"\\frac": r"\\dfrac",
    r"\\frac\{(\d)\}\{(\w)\}": r"\\tfrac\1\2",
    r"\\frac\{([^{}]*)\}\{([^{}]*)\}": r"{\1 \\over \2}",
    r"\\(?:left|right)(?![A-Za-z])": "",
    r"(?<!\\)\(": r"\\bigl(",
    r"(?<!\\)\$\$?((?:[^$\\]|\\.)+)\$\$?": r"\\(\\displaystyle \1\\)",
    r"\\\[(.*?)\\\]": r"$$\1$$",
    r"(?<!\\)\\[,;: ]": "~",
    r"\\text(?=\{)": r"\\mathrm",
    r"\\cdot(?![a-z])": "\u00d7",
    r"\\leq?(?![a-z])": "\u2264",
    r"\\neq?(?![a-z])": "\u2260",
    r"([\^_])(\w)": r"\1{\2}",
    r"\\sqrt\{(\d)\}": r"\\sqrt\1",
    r"\^2(?!\d)|\^\{2\}": "\u00b2",
    r"(?<=\d),(?:\\!)?(?=\d{3}(?!\d))": "{,}",
}
"""What is written in another way, and how."""


def test_no_real_question_is_missed_in_another_spelling_and_none_taken_for_another() -> None:
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    names = ("MATH_OAI", "AIME24", "AIME25")
    lines = {name: (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in names}
    files = {name: [json.loads(line)["problem"] for line in rows] for name, rows in lines.items()}
    index = build_index(files["MATH_OAI"], OVERLAP)
    for pattern, replacement in RESPELLED.items():
        other = {re.sub(pattern, replacement, question, flags=re.DOTALL) for question in files["MATH_OAI"]}
        changed = sorted(other - set(files["MATH_OAI"]))
        assert changed
        assert [text for text in changed if check_overlap(RowTexts(text), index, OVERLAP) is None] == []
    for name in ("AIME24", "AIME25"):
        assert not any(check_overlap(RowTexts(question), index, OVERLAP) for question in files[name])
    assert index.num_questions == len(files["MATH_OAI"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"Compute $\frac{1}{23}$.", r"Compute $\frac{12}{3}$."),
        (r"Compute $\frac{1}{2}3$.", r"Compute $\frac{1}{23}$."),
        (r"Compute $\sqrt{23}$.", r"Compute $\sqrt{2}3$."),
        (r"Compute $2 \cdot 3$.", r"Compute $2 + 3$."),
        (r"Is $x \le 2$?", r"Is $x \ge 2$?"),
        (r"Is $x \ne 2$?", r"Is $x = 2$?"),
        (r"Compute $x^{10}$.", r"Compute $x^{1}0 + 0$."),
        (r"Compute $\binom{4}{2}$.", r"Compute $\frac{4}{2}$."),
        (r"What is $\mathbb{R}$?", r"What is $R$?"),
        (r"What is $\vec{a}$?", r"What is $a$?"),
    ],
)
def test_what_a_formula_says_makes_another_question(one: str, other: str) -> None:
    assert check_overlap(RowTexts(other), build_index([one], OVERLAP), OVERLAP) is None


def test_words_of_a_greek_text_are_words_and_its_symbols_are_symbols() -> None:
    assert word_hashes("Έστω γωνία \u03b1").tolist() == [*word_hashes("Έστω γωνία"), *word_hashes(r"\alpha")]
    assert counted_words("Έστω γωνία \u03b1, 2πr").halves.tolist() == [2, 2, 0, 0, 0, 0]


def test_what_counts_of_a_text() -> None:
    counted = counted_words("Let $\\frac{ab}{x} \\le 12$, 7: 设 \u03b1 ≤ über + 每x")
    assert counted.halves.tolist() == [2, 0, 2, 0, 0, 2, 0, 1, 0, 0, 2, 0, 1]
    assert counted.hashes.tolist() == word_hashes("let frac ab x le 12 7 设 \u03b1 ≤ über + 每x").tolist()


@given(st.lists(st.sampled_from(["ab", "cde", "x", "+", "7", "42", "字"]), max_size=30), st.integers(1, 6))
def test_counted_runs_are_equal_just_where_the_words_are(words: list[str], least: int) -> None:
    weight = {"ab": 2, "cde": 2, "42": 2, "字": 1}
    runs = []
    for start in range(len(words)):
        ends = (
            end for end in range(start, len(words) + 1) if sum(weight.get(w, 0) for w in words[start:end]) >= 2 * least
        )
        end = next(ends, None)
        if end is not None and words[start] in weight:
            runs.append(tuple(words[start:end]))
    hashes = counted_runs(counted_words(" ".join(words)), least).tolist()
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))


def test_boilerplate_of_many_evaluation_questions_does_not_count() -> None:
    tail = "where $m$ and $n$ are relatively prime positive integers. Find the value of the expression $m + n$."
    questions = [f"The {thing} has probability m/n, {tail}" for thing in ("red ball", "blue cube", "green die")]
    mine = RowTexts(f"A fair coin lands heads with odds m/n, {tail}")
    assert rule(check_overlap(mine, build_index(questions[:2], OVERLAP), OVERLAP)) == "decontaminate/ngrams"
    index = build_index(questions, OVERLAP)
    assert check_overlap(mine, index, OVERLAP) is None
    assert rule(check_overlap(RowTexts(questions[2]), index, OVERLAP)) == "decontaminate/same_question"


def test_the_response_is_looked_at_only_where_it_is_asked_for() -> None:
    index = build_index(EVALUATION, OVERLAP)
    row = shown("Recall this one. " + EVALUATION[0])
    assert check_overlap(row, index, OVERLAP) is None
    assert rule(check_overlap(row, index, OverlapConfig(scope="whole"))) == "decontaminate/ngrams"


@given(st.lists(st.sampled_from(["if", "ox", "19", "sum", "of", "two"]), min_size=13, max_size=40), st.integers(0, 20))
def test_any_thirteen_words_of_an_evaluation_question_are_found(words: list[str], start: int) -> None:
    index = build_index([" ".join(words)], OVERLAP)
    part = words[min(start, len(words) - 13) :][:13]
    found = check_overlap(RowTexts("zebra " + " ".join(part) + " zebra"), index, OVERLAP)
    assert rule(found) == "decontaminate/ngrams"
    assert check_overlap(RowTexts(" ".join(part[:12]) + " zebra"), index, OVERLAP) is None
