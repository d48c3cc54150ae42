"""Response formats: each reads back what it writes, and the same answer has the same verdict in all of them."""

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.config import VerifierConfig
from still_ray.formats.responses.base import ResponseFormat, TemplateFacts
from still_ray.formats.responses.channels import CHANNELS, DIALECTS, Channels
from still_ray.formats.responses.markers import MARKED
from still_ray.formats.responses.plain import PLAIN
from still_ray.formats.responses.reading import format_of, read_response
from still_ray.formats.responses.table import FORMATS, decided_format, format_named
from still_ray.formats.responses.think import THINK, THINK_TAGS, Think
from still_ray.types import FormatDefect, InputError, ParsedResponse
from still_ray.verifiers.files import verify_file
from still_ray.verifiers.pool import VerifierPool

OPENED = THINK.fitted(TemplateFacts(generation_prompt="<|Assistant|><think>\n", layout=None, source=""))
THOUGHTFUL: list[ResponseFormat] = [MARKED, THINK, OPENED, *(Channels(dialect) for dialect in DIALECTS)]
text = st.text(min_size=1).map(str.strip).filter(lambda text: text and not any(f.claims(text) for f in THOUGHTFUL))
parts = text.filter(lambda text: "analysis" not in text and "<answer>" not in text)


@given(st.sampled_from(THOUGHTFUL), parts, parts)
def test_what_is_written_reads_back(form: ResponseFormat, thought: str, solution: str) -> None:
    assert form.parse(form.render(thought, solution)) == ParsedResponse(thought=thought, solution=solution)
    assert form.render(thought, solution).startswith(form.render_thought(thought))
    assert form.render_thought(thought).startswith(form.render_cut_off(thought))
    assert form is MARKED or form.parse(form.render("", solution)).solution == solution


@given(st.sampled_from([*THOUGHTFUL, PLAIN]), parts, parts)
def test_what_the_token_limit_cut_off_has_no_whole_solution(form: ResponseFormat, thought: str, solution: str) -> None:
    for whole in (form.render(thought, solution)[:-1], form.render_cut_off(thought)):
        assert form.parse(whole, truncated=True).defect is FormatDefect.TRUNCATED


@pytest.mark.parametrize(
    ("form", "response", "expected"),
    [
        (THINK, "<think>T</think>S", ("T", "S", None)),
        (THINK, "T</think>\n\nS", ("T", "S", None)),
        (THINK, "<Reasoning>T</Reasoning><answer>S</answer>", ("T", "S", None)),
        (THINK, "<think>x</think><answer>42</answer>", ("x", "42", None)),
        (THINK, "S", ("", "S", FormatDefect.NO_THOUGHT)),
        (THINK, "<think>T", ("T", "", FormatDefect.THOUGHT_NOT_CLOSED)),
        (OPENED, "T", ("T", "", FormatDefect.THOUGHT_NOT_CLOSED)),
        (OPENED, "T</think>S", ("T", "S", None)),
        (OPENED, "<think>\nT</think>S", ("T", "S", None)),
        (THINK, "<think>T</think>S<think>U</think>V", ("T", "V", FormatDefect.TWO_THOUGHTS)),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>final<|message|>S",
            ("T", "S", None),
        ),
        (CHANNELS, "<|channel|>final<|message|>S<|return|>", ("", "S", FormatDefect.NO_THOUGHT)),
        (CHANNELS, "<|channel|>analysis<|message|>T", ("T", "", FormatDefect.THOUGHT_NOT_CLOSED)),
        (CHANNELS, "<|channel|>analysis<|message|>T<|end|>", ("T", "", FormatDefect.NO_SOLUTION)),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>commentary to=f<|message|>C<|end|>"
            "<|start|>assistant<|channel|>final<|message|>S<|return|>",
            ("T", "S", None),
        ),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>T<|end|><|channel|>final<|message|>S<|end|><|channel|>final<|message|>U",
            ("T", "S", FormatDefect.TWO_SOLUTIONS),
        ),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>T<|start|>assistant<|channel|>final<|message|>S",
            ("T", "S", None),
        ),
        (CHANNELS, "analysisT, then.assistantfinalS", ("T, then.", "S", None)),
        (CHANNELS, "<|channel>thought\nT<channel|>S", ("T", "S", None)),
        (CHANNELS, " to=self<|message|>T<|eom|><|start|>assistant to=user<|message|>S", ("T", "S", None)),
        (CHANNELS, "to=self<|message|>T<|eom|><|start|>assistant to=user<|message|>S", ("T", "S", None)),
        (
            CHANNELS,
            " to=self<|message|>A head is to=user<|message|> so.<|eom|><|start|>assistant to=user<|message|>S",
            ("A head is to=user<|message|> so.", "S", None),
        ),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>T<|end|><|start|>assistant<|channel|>final <|constrain|>text<|message|>S",
            ("T", "S", None),
        ),
        (CHANNELS, "<|channel|>final<|constrain|>json<|message|>S<|return|>", ("", "S", FormatDefect.NO_THOUGHT)),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>a to=self<|message|> b<|end|>",
            ("a to=self<|message|> b", "", FormatDefect.NO_SOLUTION),
        ),
        (CHANNELS, "S", ("", "S", FormatDefect.NO_THOUGHT)),
        (PLAIN, "Some steps.\n\nS", ("", "Some steps.\n\nS", None)),
    ],
)
def test_responses_of_the_field(
    form: ResponseFormat, response: str, expected: tuple[str, str, FormatDefect | None]
) -> None:
    thought, solution, defect = expected
    assert form.parse(response) == ParsedResponse(thought=thought, solution=solution, defect=defect)


def facts(prompt: str = "<|assistant|>", source: str = "", *, thinks: bool = False) -> TemplateFacts:
    return TemplateFacts(generation_prompt=prompt, layout=None, source=source, thinks=thinks)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (facts(), "default"),
        *((facts(f"<|assistant|><{tag}>\n"), "think") for tag in THINK_TAGS),
        (facts("<|assistant|>\n<think>\n\n</think>\n\n"), "plain"),
        (facts(source="{{ content.split('</think>')[-1] }}"), "think"),
        (facts(source="<|channel>thought\n"), "default"),
        (facts(source="<|channel>thought\n", thinks=True), "channels"),
    ],
)
def test_a_chat_template_decides(template: TemplateFacts, name: str) -> None:
    assert decided_format(template, default="default").name == name


def test_behind_an_opened_tag_a_response_does_not_open_it_again() -> None:
    assert OPENED.render("T", "S") == "T\n</think>\n\nS"
    assert Think().render("T", "S") == "<think>\nT\n</think>\n\nS"
    bare = THINK.fitted(facts("<|assistant|><reason>"))
    assert bare.render("T", "S") == "\nT\n</reason>\n\nS"


def test_a_name_that_is_none_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^prompt.format: unknown name 'thnik'; did you mean think\?: give one of"):
        format_named("thnik")


ANSWERS = [
    ("math", "18", [r"\boxed{18}", r"so \boxed{19}.", r"\boxed{1} and \boxed{18}", "it is 18", r"\boxed{18.0}"]),
    ("math", "18", ["#### 18", "The answer is: 18", "The answer is **18** dollars.", "18", "The answer is about 18"]),
    ("math", r"\frac{1}{2}", [r"\boxed{0.5}", r"\boxed{\dfrac12}", r"\boxed{2}", r"\boxed{}"]),
    ("choice", "B", [r"\boxed{B}", r"\boxed{C}", "The answer is (B).", r"\boxed{\text{B}}"]),
    ("exact", "blue", [r"\boxed{blue}", r"\boxed{red}", r"\boxed{Blue}"]),
]


def test_300_responses_have_the_same_verdicts_word_for_word_in_every_form(tmp_path: Path) -> None:
    draw = random.Random(0)
    forms = {"markers": MARKED, "think": THINK, "opened": OPENED, "channels": CHANNELS, "plain": PLAIN}
    judged: dict[str, list[str]] = {}
    samples = []
    for number in range(300):
        domain, reference, said = draw.choice(ANSWERS)
        thought = draw.choice(["We count.", r"Is it \boxed{7}? No.", "Wait.\n\nAgain."])
        samples.append((number, domain, reference, thought, draw.choice(said)))
    with VerifierPool.from_config(VerifierConfig()) as pool:
        for name, form in {**forms, "named": THINK}.items():
            rows = [
                {
                    "id": number,
                    "domain": domain,
                    "answer": reference,
                    "response": form.render(thought if form.has_thought else "", said),
                }
                for number, domain, reference, thought, said in samples
            ]
            if name == "named":
                rows = [{**row, "format": "think"} for row in rows]
            source, target = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-verdicts.jsonl"
            source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            counts = verify_file(source, target, parse=read_response, formats=FORMATS, pool=pool)
            assert len(counts) > 2
            judged[name] = target.read_text().splitlines()
    assert all(lines == judged["markers"] for lines in judged.values())
    assert len(judged["markers"]) == 300


def test_a_response_tells_its_format_by_its_text() -> None:
    told = [format_of(form.render("T", "S")).name for form in (MARKED, THINK, OPENED, CHANNELS, PLAIN)]
    assert told == ["markers", "think", "think", "channels", "plain"]


@pytest.mark.parametrize(
    ("response", "name", "solution"),
    [
        ("<think>uses <|channel|>final<|message|> here</think>S", "think", "S"),
        ("<think>is that to=self<|message|> or to=user<|message|>?</think>S", "think", "S"),
        ("T</think>S <|channel|>final<|message|>", "think", "S <|channel|>final<|message|>"),
        ("<|channel|>analysis<|message|><think>?<|end|><|channel|>final<|message|>S", "channels", "S"),
        ("The head is to=user<|message|>, which names whom it is for.", "plain", ""),
    ],
)
def test_a_response_may_speak_of_another_format_within_its_own(response: str, name: str, solution: str) -> None:
    assert format_of(response).name == name
    assert read_response(response).solution == (solution or response)


@pytest.mark.parametrize(
    "unit",
    [
        "<|channel|>analysis<|message|>T<|end|>",
        "<|channel|>final <|constrain|>text",
        "<|channel>thought\nT<channel|>",
        "<|start|>assistant to=self<|message|>T<|eom|>",
        "<think>T</think>",
    ],
)
def test_a_megabyte_of_heads_is_cut_in_linear_time(unit: str) -> None:
    seconds = []
    for size in (100_000, 1_000_000):
        started = time.process_time()
        read_response(unit * (size // len(unit)))
        seconds.append(time.process_time() - started)
    assert seconds[1] < 40 * seconds[0] + 0.5  # ten times the text; quadratic time is a hundred times
