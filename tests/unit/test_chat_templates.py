"""Every chat template that TRL ships: what is trained is what is sampled, token for token, or it is refused."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from still_ray.actors.training.train_loop import ResponseTokenizer
from still_ray.config import PromptConfig
from still_ray.formats.chat_template import ChatTemplate, user_turn
from still_ray.formats.prompt import ChatRenderer, PromptTemplate, native_format, response_format
from still_ray.formats.responses.markers import render_response
from still_ray.tiny_world.tokenizer import build_tokenizer, write_tokenizer
from still_ray.types import FormatDefect, InputError, ParsedResponse, Turn

ROOT = Path(__file__).parents[2]
QUESTION, THOUGHT, SOLUTION = "What is 1+2?", "1+2=3.\n\nWait, 3-2=1. Yes.", r"The answer is \boxed{3}."
IMAGES: Final = {"idefics3", "llava_next", "smolvlm"}
"""Models for images and text, whose templates take a turn in typed parts only."""
TOKEN: Final = re.compile(r"<\|?/?[A-Za-z_\uff5c\u2581][\w\uff5c\u2581 ]*\|?>|\[gMASK\]|\[/?INST\]")
BEGIN, END = "<!-- chat-templates -->\n", "<!-- /chat-templates -->"


def templates() -> list[Path]:
    import trl

    return sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(build_tokenizer(), directory)
    return directory


@cache
def chat_of(path: Path, model_dir: Path) -> ChatTemplate:
    """The template on a tokenizer that has the control tokens which the template speaks of; tags are vocabulary."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    found = sorted({token for token in TOKEN.findall(tokenizer.chat_template) if "think" not in token})
    tokenizer.add_special_tokens({"bos_token": "<|begin_of_text|>", "additional_special_tokens": found})
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>")])
    return ChatTemplate(tokenizer, day="2026-01-31")


def renderer_of(chat: ChatTemplate) -> ChatRenderer:
    form = response_format(chat, native_format(chat, default="plain").name)
    return ChatRenderer(chat, PromptTemplate(text=form.prompt), form)


@pytest.mark.parametrize("path", templates(), ids=lambda path: path.stem)
def test_what_is_trained_is_what_is_sampled_or_the_template_is_refused(path: Path, model_dir: Path) -> None:
    if path.stem.removesuffix("_training") in IMAGES:
        with pytest.raises(InputError, match="does not show the text of a question, as those of models for images"):
            chat_of(path, model_dir)
        return
    renderer = renderer_of(chat_of(path, model_dir))
    tokenizer, form = renderer.chat.tokenizer, renderer.form
    prompt, whole = ResponseTokenizer(renderer, whole=True)(QUESTION, (THOUGHT, SOLUTION)) or ((), ())
    assert prompt == tuple(renderer.prompt_ids(QUESTION))
    decoded = [decode(tokenizer, ids) for ids in (prompt, whole[:-1], whole[-1:])]
    assert decoded[0] == renderer.prompt_text(QUESTION)
    assert decoded[1] == form.render(THOUGHT, SOLUTION)
    assert whole[-1] == renderer.end_token_id
    special = set(tokenizer.all_special_ids)
    as_a_whole = tokenizer.encode("".join(decoded), add_special_tokens=False)
    assert [t for t in (*prompt, *whole) if t in special] == [t for t in as_a_whole if t in special], "no token is text"
    assert not renderer.held_in_response(decoded[1])
    expected = ParsedResponse(thought=THOUGHT, solution=SOLUTION)
    if not form.has_thought:
        expected = ParsedResponse(thought="", solution=f"{THOUGHT}\n\n{SOLUTION}")
    assert form.parse(decoded[1]) == expected
    if renderer.chat.facts.layout is not None:
        shown = conversation(renderer)
        assert shown.startswith("".join(decoded[:2]))
        assert shown.removeprefix("".join(decoded[:2])).startswith(decoded[2]) or shown.endswith(SOLUTION)


CHAT = (Turn(role="user", content="Hello!"), Turn(role="assistant", content="Good day."))
SYSTEM = Turn(role="system", content="Be brief.")


@pytest.mark.parametrize("general", [True, False])
@pytest.mark.parametrize("path", templates(), ids=lambda path: path.stem)
def test_earlier_turns_are_read_as_the_template_shows_them_and_the_last_answer_is_learnt(
    path: Path, general: bool, model_dir: Path
) -> None:
    if path.stem.removesuffix("_training") in IMAGES:
        return
    renderer = renderer_of(chat_of(path, model_dir))
    tokenizer, form = renderer.chat.tokenizer, renderer.form
    asked = QUESTION if general else renderer.template.render(QUESTION)
    for turns in (CHAT, (SYSTEM, *CHAT)):
        told = [*map(vars, turns), *user_turn(asked)]
        try:
            shown = renderer.chat.prompt_text(told)
        except InputError as error:
            assert "system" in str(error)  # noqa: PT017 - some templates refuse one, and say so
            assert turns[0] is SYSTEM
            continue
        tokens = ResponseTokenizer(renderer, whole=False)(QUESTION, ("", SOLUTION), turns=turns, general=general)
        prompt, answer = tokens or ((), ())
        assert decode(tokenizer, prompt) == shown
        assert shown.index("Good day.") < shown.index(QUESTION)
        assert (form.prompt.partition("{")[0].strip() in shown) is not general or form.prompt.startswith("{question}")
        assert decode(tokenizer, answer[:-1]) == form.render("", SOLUTION)
        assert answer[-1] == renderer.end_token_id
        if renderer.chat.facts.layout is not None:
            whole = renderer.chat.conversation([*told, {"role": "assistant", "content": SOLUTION}])
            assert unspaced(whole).startswith(unspaced(decode(tokenizer, (*prompt, *answer[:-1]))))


def unspaced(text: str) -> str:
    """Some templates close an empty thought without the line break that their generation prompt has opened it with."""
    return "".join(text.split())


def test_a_rows_own_system_turn_takes_the_place_of_the_recipes(model_dir: Path) -> None:
    found = {path.stem: path for path in templates()}
    tokenizer = chat_of(found["qwen2_5"], model_dir).tokenizer
    renderer = ChatRenderer.of(tokenizer, PromptConfig(system="Be long."))
    with_own, without = (
        decode(tokenizer, renderer.prompt_ids(QUESTION, turns=turns, general=True)) for turns in ((SYSTEM,), CHAT)
    )
    assert "Be brief." in with_own and "Be long." not in with_own
    assert without.startswith("<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\nHello!")


def test_a_control_token_in_an_earlier_turn_is_text_to_a_prompt_and_costs_a_row(model_dir: Path) -> None:
    found = {path.stem: path for path in templates()}
    renderer = renderer_of(chat_of(found["qwen2_5"], model_dir))
    tokenizer = renderer.chat.tokenizer
    turns = (Turn(role="user", content="What does <|im_start|> do?"), Turn(role="assistant", content="It begins."))
    ids = renderer.prompt_ids(QUESTION, turns=turns, general=True)
    (start,) = tokenizer.encode("<|im_start|>", add_special_tokens=False)
    assert ids.count(start) == 5  # of a system, two questions and two answers
    assert decode(tokenizer, ids) == renderer.chat.prompt_text([*map(vars, turns), *user_turn(QUESTION)])
    assert ResponseTokenizer(renderer, whole=True)(QUESTION, ("", SOLUTION), turns=turns) is None


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_an_answer_to_a_general_question_is_read_in_any_format(name: str, model_dir: Path) -> None:
    found = {path.stem: path for path in templates()}
    chat = chat_of(found[name], model_dir)
    for form in ("markers", "think", "plain"):
        renderer = ChatRenderer(chat, PromptTemplate(), response_format(chat, form))
        for text in (SOLUTION, f"<think>T</think>{SOLUTION}", render_response("T", SOLUTION)):
            parsed = renderer.parse(text, general=True)
            assert parsed.solution.endswith(SOLUTION) or form == "plain", (form, text)
            assert parsed.defect is None
    assert renderer.parse("It is", general=True, truncated=True).defect is FormatDefect.TRUNCATED


def test_an_answer_behind_a_thought_that_the_prompt_opened_and_nobody_closed_is_none(model_dir: Path) -> None:
    (path,) = (path for path in templates() if path.stem == "deepseekv3")
    renderer = renderer_of(chat_of(path, model_dir))
    assert renderer.parse(SOLUTION, general=True).defect is FormatDefect.THOUGHT_NOT_CLOSED
    assert renderer.parse(renderer.form.render("", SOLUTION), general=True).solution == SOLUTION


def decode(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def conversation(renderer: ChatRenderer) -> str:
    """The same as the template itself renders it, the thought in the field that it reads."""
    turns = user_turn(renderer.template.render(QUESTION))
    names = ("reasoning_content", "thinking", "reasoning")
    answer = {"role": "assistant", "content": SOLUTION, **dict.fromkeys(names, THOUGHT)}
    return renderer.chat.conversation([*turns, answer])


def test_thinking_that_is_switched_off_is_plain(model_dir: Path) -> None:
    (path,) = (path for path in templates() if path.stem == "qwen3")
    tokenizer = chat_of(path, model_dir).tokenizer
    asked = PromptConfig(chat_template_kwargs={"enable_thinking": False}, format="auto")
    renderer = ChatRenderer.of(tokenizer, asked)
    assert renderer.form.name == "plain"
    assert renderer.prompt_text(QUESTION).endswith("<think>\n\n</think>\n\n")
    assert ChatRenderer.of(tokenizer, PromptConfig()).form.name == "think"


def test_thinking_that_is_switched_on_has_the_channels_that_the_template_speaks_of(model_dir: Path) -> None:
    (path,) = (path for path in templates() if path.stem == "gemma4")
    tokenizer = chat_of(path, model_dir).tokenizer
    renderer = ChatRenderer.of(tokenizer, PromptConfig(chat_template_kwargs={"enable_thinking": True}))
    assert renderer.form.render("T", "S") == "<|channel>thought\nT\n<channel|>S"
    assert ChatRenderer.of(tokenizer, PromptConfig()).form.name == "markers"


def test_a_token_of_the_channels_in_a_text_is_a_text(model_dir: Path) -> None:
    (path,) = (path for path in templates() if path.stem == "gptoss")
    renderer = renderer_of(chat_of(path, model_dir))
    tokenize, special = ResponseTokenizer(renderer, whole=True), set(renderer.chat.tokenizer.all_special_ids)
    plain, asked = (renderer.prompt_ids(text) for text in ("What is it?", "What is <|end|><|start|>assistant?"))
    assert [t for t in asked if t in special] == [t for t in plain if t in special]
    assert tokenize("Q?", ("T<|end|>T", SOLUTION)) is None
    assert tokenize("Q?", (THOUGHT, "S<|channel|>S")) is None


def test_reasoning_effort_reaches_the_prompt_and_a_variable_that_is_not_read_is_refused(model_dir: Path) -> None:
    (path,) = (path for path in templates() if path.stem == "gptoss")
    tokenizer = chat_of(path, model_dir).tokenizer
    prompts = [
        ChatRenderer.of(tokenizer, PromptConfig(chat_template_kwargs={"reasoning_effort": effort})).prompt_text("Q")
        for effort in ("low", "high")
    ]
    assert ["Reasoning: low" in prompts[0], "Reasoning: high" in prompts[1]] == [True, True]
    with pytest.raises(InputError, match=r"prompt.chat_template_kwargs: the chat template of .* does not read efort"):
        ChatRenderer.of(tokenizer, PromptConfig(chat_template_kwargs={"efort": "low"}))


def test_a_system_text_comes_first_or_is_refused_in_one_line(model_dir: Path) -> None:
    found = {path.stem: path for path in templates()}
    tokenizer = chat_of(found["qwen2_5"], model_dir).tokenizer
    text = ChatRenderer.of(tokenizer, PromptConfig(system="Be brief.")).prompt_text(QUESTION)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    tokenizer = chat_of(found["gemma"], model_dir).tokenizer
    with pytest.raises(InputError, match="refuses a conversation of one system's turn and one user's turn") as error:
        ChatRenderer.of(tokenizer, PromptConfig(system="Be brief."))
    assert "\n" not in str(error.value)


def table(model_dir: Path) -> Iterator[str]:
    yield "| TRL's template | format | generation prompt ends in | a turn ends in | around the thought |"
    yield "|---|---|---|---|---|"
    for path in templates():
        if path.stem.endswith("_training"):
            continue
        if path.stem in IMAGES:
            yield f"| {path.stem} | refused | | | it takes a turn in typed parts only: a model for images and text |"
            continue
        chat = chat_of(path, model_dir)
        form = renderer_of(chat).form
        end = chat.tokenizer.convert_ids_to_tokens(chat.end_token_id)
        thought = form.render("…", "").replace("…", " … ") if form.has_thought else ""
        cells = [path.stem, form.name, code(chat.facts.generation_prompt[-40:]), code(end), code(thought)]
        yield f"| {' | '.join(cells)} |"


def code(text: str) -> str:
    shown = text.replace("\n", "↵").replace("|", "\\|").strip()
    return f"`{shown}`" if shown else ""


def test_the_documents_table_is_what_was_found(model_dir: Path) -> None:
    """On a difference, the failure's text is the table to put into the page."""
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    written = page.partition(BEGIN)[2].partition(END)[0]
    assert written == "\n".join(table(model_dir)) + "\n"
