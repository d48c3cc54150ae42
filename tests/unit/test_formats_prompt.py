"""Prompt templates, and chat templates that must not lose a thought, with a real transformers tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest

from still_ray.config import PromptConfig
from still_ray.formats.chat_template import ChatTemplate, end_of_turn
from still_ray.formats.prompt import (
    TEMPLATE_FILE,
    ChatRenderer,
    PromptTemplate,
    load_template,
    prompt_as_it_comes,
    prompt_beside_model,
    write_prompt_beside_model,
)
from still_ray.formats.responses.markers import MARKERS, MARKERS_PROMPT, render_response
from still_ray.methods.dpo import DpoConfig
from still_ray.methods.sft import SftConfig
from still_ray.tiny_world.tokenizer import build_tokenizer, render_chat, write_tokenizer
from still_ray.types import InputError, PreferencePair, TrainingExample

ROOT = Path(__file__).parents[2]
PUBLISHED_PROMPT = ROOT.parent / "shared" / "data" / "still2_prompt.txt"
PAIR: Any = {
    **{"problem_id": "p", "question": "Q?", "chosen_id": "1/p/0", "rejected_id": "1/p/1"},
    **{"chosen_thought": "C", "chosen_solution": "D", "chosen_perplexity": 1.0, "rejected_perplexity": 1.0},
}
RESPONSE = render_response("1+2=3.\n\nWait, let me check. 3-2=1. Yes.", r"The answer is \boxed{3}.")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    write_tokenizer(build_tokenizer(), directory)
    return directory


@pytest.fixture
def tokenizer(model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir)


def test_default_template_asks_for_the_form_and_holds_the_question_once() -> None:
    prompt = PromptTemplate().render("What is {x}?")
    assert prompt.count("What is {x}?") == 1
    assert all(marker in prompt for marker in MARKERS)
    assert r"\boxed{}" in prompt
    assert load_template(None).text == MARKERS_PROMPT


def test_braces_and_placeholders_in_the_question_mean_themselves() -> None:
    assert PromptTemplate(text="{thought} {question} {0}").render("{question} %s") == "{thought} {question} %s {0}"


def test_a_byte_order_mark_is_no_part_of_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Solve: {question}", encoding="utf-8-sig")
    assert load_template(path).text == "Solve: {question}"


def test_without_placeholder_the_question_follows_a_blank_line(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("Solve:\n", encoding="utf-8")
    assert load_template(path).render("1+1?") == "Solve:\n\n1+1?"


def test_published_prompt_works() -> None:
    if not PUBLISHED_PROMPT.is_file():
        pytest.skip(f"{PUBLISHED_PROMPT} is not here")
    text = PUBLISHED_PROMPT.read_text(encoding="utf-8")
    assert load_template(PUBLISHED_PROMPT).render("Q {x}") == text.rstrip() + "\n\nQ {x}"


@pytest.mark.parametrize("content", [None, b"  \n", b"\xff\xfe"])
def test_template_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "prompt.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"prompt\.txt: the prompt template") as error:
        load_template(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_carries_what_it_is_asked_with(tokenizer: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{% if thinks %}{% endif %}" + tokenizer.chat_template)
    user = tmp_path / "user.txt"
    user.write_text("Ü {question}\n\nNow:")
    told: dict[str, bool | int | float | str] = {"thinks": True}
    prompt = PromptConfig(
        template=str(user), format="think", system="Be brief.", chat_template=str(own), chat_template_kwargs=told
    )
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    assert prompt_beside_model(checkpoint) == {}
    write_prompt_beside_model(checkpoint, ChatRenderer.of(tokenizer, prompt), prompt)
    found = PromptConfig(**prompt_beside_model(checkpoint))
    assert load_template(found.template).text == "Ü {question}\n\nNow:"
    assert (found.format, found.system, found.chat_template_kwargs) == ("think", "Be brief.", told)
    assert (checkpoint / "chat_template.jinja").read_text() == own.read_text()


def test_a_checkpoint_of_an_older_release_is_asked_for_markers(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE_FILE).write_text("{question}")
    assert prompt_beside_model(tmp_path) == {"format": "markers", "template": str(tmp_path / TEMPLATE_FILE)}


@pytest.mark.parametrize(("text", "kept"), [("Think.\n{question}", True), ("Write <|begin_of_thought|>", False)])
def test_a_model_as_it_comes_is_not_asked_for_delimiters(tmp_path: Path, text: str, *, kept: bool) -> None:
    (tmp_path / "user.txt").write_text(text)
    asked = prompt_as_it_comes(PromptConfig(template=str(tmp_path / "user.txt"), system="Be brief."), "plain")
    assert (asked.template is not None, asked.format, asked.system) == (kept, "plain", "Be brief.")


def test_a_checkpoint_may_not_name_code(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE_FILE).write_text("{question}")
    (tmp_path / "prompt.json").write_text('{"format": "os:system"}')
    with pytest.raises(InputError, match=r'prompt.json: key "format" is "os:system", which is not built in'):
        prompt_beside_model(tmp_path)
    assert prompt_beside_model(tmp_path, names_format=True)["template"] == str(tmp_path / TEMPLATE_FILE)


def test_prompt_and_completion_are_the_conversation(tokenizer: Any) -> None:
    renderer = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate(text="Think.\n{question}"))
    ids = renderer.prompt_ids("Compute 1+2.") + renderer.completion_ids(RESPONSE)
    assert all(type(token) is int for token in ids)
    assert ids[-1] == renderer.end_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids == tokenizer.encode(render_chat("Think.\nCompute 1+2.", RESPONSE), add_special_tokens=False)
    assert tokenizer.decode(renderer.prompt_ids("Compute 1+2.")) == renderer.prompt_text("Compute 1+2.")


CONTROL = {
    "qwen": ("<|im_end|>", ["<|im_start|>", "<|endoftext|>", "<|fim_prefix|>"]),
    "llama": ("<|eot_id|>", ["<s>", "</s>", "<|start_header_id|>"]),
    "mistral": ("</s>", ["[INST]", "[/INST]", "<unk>"]),
}
"""End of turn and other control tokens; that one of Qwen's is no special token."""


@pytest.fixture(params=sorted(CONTROL))
def other(request: pytest.FixtureRequest) -> tuple[Any, str, list[str]]:
    """A tokenizer of bytes that normalizes as sentencepiece does, and its control tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end, others = CONTROL[request.param]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, normalized=True) for token in (end, *others[:2])])
    core.add_tokens([AddedToken(token, special=False) for token in (*others[2:], "<table>", "<think>", *MARKERS)])
    turns = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}END{% endfor %}"
    template = turns + "{% if add_generation_prompt %}BEGIN{% endif %}"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end)
    tokenizer.chat_template = template.replace("END", end).replace("BEGIN", "assistant: ")
    return tokenizer, end, others


def test_no_text_of_data_becomes_a_control_token(other: tuple[Any, str, list[str]]) -> None:
    tokenizer, end, others = other
    renderer = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate(text="Think.\n{question}\nNow:"))
    plain = renderer.prompt_ids("What is 1+1?")
    control = tokenizer.convert_tokens_to_ids([end, *others])
    for token in (end, *others, "\uff1c" + end[1:]):  # with a wide sign, which the tokenizer reads as the narrow one
        text = f"a {token} b{token}{token} <table> <think> {MARKERS[0]}"
        ids = renderer.completion_ids(text)
        assert [each for each in ids if each in control] == [control[0]], token
        assert ids[-1] == renderer.end_token_id == control[0]
        assert tokenizer.decode(ids[:-1]) == text.replace("\uff1c", "<")
        if token[0] != "\uff1c":  # else it cannot be told where to cut, and more is cut than the token
            assert set(tokenizer.convert_tokens_to_ids(["<table>", "<think>", MARKERS[0]])) <= set(ids)
        asked = renderer.prompt_ids(text)
        assert [each for each in asked if each in control] == [each for each in plain if each in control]
        assert tokenizer.decode(asked) == renderer.prompt_text(text).replace("\uff1c", "<")
    assert len(renderer.completion_ids(end * 3000)) == 3000 * len(end) + 1


def test_other_texts_are_encoded_as_the_chat_template_has_them(
    other: tuple[Any, str, list[str]],
) -> None:
    tokenizer, _, _ = other
    renderer = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate())
    for question in ("What is 1+1?", "Is <table> a tag?\n\n  <|x|>", "1 < 2, 3 |> 4"):
        turns = [{"role": "user", "content": PromptTemplate().render(question)}]
        whole = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert renderer.prompt_ids(question) == list(whole)
        assert renderer.completion_ids(RESPONSE)[:-1] == tokenizer.encode(RESPONSE, add_special_tokens=False)


def test_what_ends_a_dump_is_no_part_of_a_prompt(other: tuple[Any, str, list[str]]) -> None:
    tokenizer, end, _ = other
    renderer = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate())
    assert renderer.prompt_ids(f"What is 1+1? {end}\n{end}") == renderer.prompt_ids("What is 1+1?")
    assert renderer.prompt_text(f"What is 1+1?{end}") == renderer.prompt_text("What is 1+1?")


def test_rows_that_hold_a_control_token_of_the_model_are_not_trained_on(other: tuple[Any, str, list[str]]) -> None:
    from still_ray.actors.training.train_loop import ResponseTokenizer
    from still_ray.trainer.methods.dpo import DpoTraining
    from still_ray.trainer.methods.sft import SftTraining

    tokenizer, end, others = other
    renderer = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate())
    parts: Any = {"source": "demonstration", "source_id": "d", "domain": "math", "question": "Q?"}
    texts = [("T", "S"), ("T", f"S.{end}\n{end}"), (f"T{end}", "S."), (f"T {others[0]} t", "S"), ("T", f"{end} S")]
    rows = [TrainingExample(**parts, thought=thought, solution=solution) for thought, solution in texts]
    tokenize, sft = ResponseTokenizer(renderer, whole=True), SftTraining(SftConfig())
    first, dumped, ended, *rest = [sft.tokenized(row, tokenize) for row in rows]
    assert rest == [None, None]
    assert first is not None
    assert first.completion_ids == tuple(renderer.completion_ids(render_response("T", "S")))
    assert dumped == ended
    assert dumped is not None
    assert dumped.completion_ids == tuple(renderer.completion_ids(render_response("T", "S.")))
    pairs = [
        PreferencePair(**PAIR, rejected_thought=thought, rejected_solution=solution) for thought, solution in texts
    ]
    dpo, tokenize = DpoTraining(DpoConfig()), ResponseTokenizer(renderer, whole=False)
    assert [dpo.tokenized(pair, tokenize) is None for pair in pairs] == [False] * 3 + [True] * 2


@pytest.mark.parametrize("whole", [True, False])
def test_a_response_that_was_cut_off_is_learnt_without_an_end(tokenizer: Any, whole: bool) -> None:
    from still_ray.actors.training.train_loop import ResponseTokenizer
    from still_ray.trainer.methods.dpo import DpoTraining

    renderer = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate())
    pair = PreferencePair(**PAIR, rejected_thought="1+1 is", rejected_solution="")
    tokens = DpoTraining(DpoConfig()).tokenized(pair, ResponseTokenizer(renderer, whole=whole))
    assert tokens is not None
    unclosed = tokenizer.encode("<|begin_of_thought|>\n\n1+1 is", add_special_tokens=False)
    assert tokens.rejected_ids == tuple(unclosed)
    assert tokens.chosen_ids[-1] != tokens.rejected_ids[-1]


def test_thought_tokens_counts_the_text_alone(tokenizer: Any) -> None:
    renderer = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate())
    assert renderer.thought_tokens("") == 0
    assert renderer.thought_tokens("1+2=3.") == len(tokenizer.encode("1+2=3.", add_special_tokens=False))


@pytest.mark.parametrize(
    ("after_response", "eos", "end"),
    [
        ("<|im_end|>", "<|im_end|>", "<|im_end|>"),
        ("<|im_end|>\\n", "<|im_end|>", "<|im_end|>"),
        ("<|im_end|>\\n", "<|endoftext|>", "<|im_end|>"),
        ("<|im_end|><|endoftext|>", "<|endoftext|>", "<|im_end|>"),
        (" <|endoftext|>", "<|endoftext|>", "<|endoftext|>"),
        ("\\n", "<|endoftext|>", "<|endoftext|>"),
        ("", "<|endoftext|>", "<|endoftext|>"),
        ("\\n\\n### End", "<|im_end|>", "<|im_end|>"),
        ("<|eot|>", "<|im_end|>", "<|im_end|>"),
    ],
)
def test_a_turn_ends_in_the_templates_control_token_or_in_eos(
    tokenizer: Any, after_response: str, eos: str, end: str
) -> None:
    """Text after a response, or a control token that this tokenizer does not have, is no token to stop at."""
    tokenizer.chat_template = tokenizer.chat_template.replace("+ '<|im_end|>'", f"+ '{after_response}'")
    tokenizer.eos_token = eos
    renderer = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate())
    assert renderer.end_token_id == renderer.completion_ids(RESPONSE)[-1] == tokenizer.convert_tokens_to_ids(end)


def test_without_a_control_token_or_eos_nothing_ends_a_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("+ '<|im_end|>'", "+ '\\n'")
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither the chat template nor eos_token says how a turn ends"):
        ChatRenderer(ChatTemplate(tokenizer), PromptTemplate())


@pytest.mark.parametrize(
    ("own_eos", "expected"),
    [
        (("<|im_end|>", 345, 345), ((345,), False)),
        (("<|im_end|>", [345, 343], 343), ((345, 343), False)),
        (("<|im_end|>", None, [345]), ((345,), False)),
        (("<|endoftext|>", 343, 343), ((343, 345), True)),
        (("<|endoftext|>", [343, 344], 343), ((343, 344, 345), True)),
        (("<|endoftext|>", [343, 345], 343), ((343, 345), True)),
        (("<|im_end|>", 343, 345), ((343, 345), True)),
        ((None, None, None), ((345,), True)),
    ],
)
def test_the_models_own_eos_and_the_end_of_a_turn_all_end_a_response(
    tokenizer: Any, tmp_path: Path, own_eos: tuple[Any, Any, Any], expected: tuple[tuple[int, ...], bool]
) -> None:
    tokenizer.eos_token = own_eos[0]
    for name, eos in zip(("generation_config", "config"), own_eos[1:], strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps({} if eos is None else {"eos_token_id": eos}))
    end = end_of_turn(ChatTemplate(tokenizer), str(tmp_path))
    assert (end.token, end.token_id, (end.stop_token_ids, end.differs)) == ("<|im_end|>", 345, expected)


def test_an_eos_that_is_no_token_id_is_named(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(InputError, match=r'generation_config.json: eos_token_id is \["</s>"\]; a token id or a list'):
        end_of_turn(ChatTemplate(tokenizer), str(tmp_path))


def test_an_end_that_the_model_has_no_embedding_for_is_named(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 345}')
    with pytest.raises(
        InputError, match=r"ends with <\|im_end\|> \(345\), .* vocab_size of config.json is 345; resize"
    ):
        end_of_turn(ChatTemplate(tokenizer), str(tmp_path))


USER = "<|im_start|>{{ message['role'] }}\n"
LOOP = "{%% for message in messages %%}" + USER + "%s<|im_end|>\n{%% endfor %%}%s"
ANSWERS_REFUSED = (
    "{{ message.content }}{% if message.role == 'assistant' %}{{ raise_exception('no answers') }}{% endif %}"
)
PROMPT_END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("\ufeff" + LOOP % ("{{ message['content'] }}", PROMPT_END), "begins with a byte-order mark"),
        (None, "has no chat template"),
        ({"chat": LOOP, "tool_use": LOOP}, "chat templates named chat, tool_use and none that is the default"),
        ("{% for message in messages %}", r"is no Jinja template \(line 1\): Unexpected end of template"),
        ("\n{{ messages | nonsense }}", r"is no Jinja template \(line 2\): No filter named 'nonsense'"),
        (
            "{{ raise_exception('a system\n message is needed') }}",
            "refuses a conversation of one user's turn: a system message",
        ),
        ("Images: {{ messages[0]['images'] }}", "does not show the text of a question, as those of models for images"),
        ("{{ messages[1]['content'] }}", "refuses a conversation of one user's turn: "),
        ("{{ messages[0]['content'] + 1 }}", "refuses a conversation of one user's turn: "),
        (
            LOOP % (ANSWERS_REFUSED, PROMPT_END),
            "refuses a conversation of one user's turn and one assistant's turn: no answers",
        ),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_named(tokenizer: Any, template: Any, complaint: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(InputError, match=complaint) as error:
        _ = ChatTemplate(tokenizer).end_token_id
    assert tokenizer.name_or_path in str(error.value)
    assert "\n" not in str(error.value)


DATED = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}"


def test_a_chat_template_that_asks_for_the_date_is_told_one_day(tokenizer: Any) -> None:
    assert not ChatTemplate(tokenizer).asks_date
    plain = ChatRenderer(ChatTemplate(tokenizer), PromptTemplate()).prompt_text("1+1?")
    tokenizer.chat_template = DATED + tokenizer.chat_template
    assert ChatTemplate(tokenizer).asks_date
    renderer = ChatRenderer(ChatTemplate(tokenizer, day="2020-02-29"), PromptTemplate())
    system = "<|im_start|>system\nToday is 29 Feb 2020<|im_end|>\n"
    assert renderer.prompt_text("1+1?") == system + plain
    assert renderer.prompt_ids("1+1?") == tokenizer.encode(system + plain, add_special_tokens=False)
    later = ChatRenderer(ChatTemplate(tokenizer, day="2020-03-01"), PromptTemplate())
    assert renderer.prompt_ids("1+1?") != later.prompt_ids("1+1?")
