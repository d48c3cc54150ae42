"""The tiny world: disjoint splits, correct demonstrations, a lossless tokenizer, a backbone that knows facts."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from still_ray.cli.preflight.files import check_files, with_world
from still_ray.config import Recipe
from still_ray.formats.responses.markers import render_response
from still_ray.location import Location
from still_ray.store.run_directory import RunDirectory
from still_ray.tiny_world.arithmetic import (
    DIFFICULTIES,
    MAX_VALUE,
    Chain,
    Split,
    make_chains,
    make_demonstrations,
    make_problems,
    write_world,
)
from still_ray.types import Demonstration, Domain

ROOT = Path(__file__).parents[2]
BACKBONE = ROOT / "still_ray" / "tiny_world" / "backbone"
SPLITS: tuple[Split, ...] = ("pretrain", "demonstrations", "pool", "test")
EQUATION = re.compile(r"(\d+)([+-]\d)=(\d+)")


def rendered(demonstration: Demonstration) -> str:
    return render_response(demonstration.thought, demonstration.solution)


def test_chain_knows_its_question_values_and_answer() -> None:
    chain = Chain(start=17, terms=(5, -8, 3))
    assert chain.question == "Compute 17+5-8+3."
    assert chain.values == (17, 22, 14, 17)
    assert chain.answer == "17"
    assert chain.difficulty == 4


@pytest.mark.parametrize("difficulty", [3, 8])
def test_splits_are_disjoint_for_any_seeds(difficulty: int) -> None:
    questions = {
        split: {chain.question for seed in range(4) for chain in make_chains(split, 400, seed, [difficulty])}
        for split in SPLITS
    }
    assert all(not questions[left] & questions[right] for left, right in combinations(SPLITS, 2))


def test_chains_are_different_take_turns_in_difficulty_and_stay_in_range() -> None:
    chains = make_chains("pool", 600, 0)
    assert len({chain.canonical for chain in chains}) == 600
    assert [chain.difficulty for chain in chains[: len(DIFFICULTIES)]] == list(DIFFICULTIES)
    assert all(0 <= value <= MAX_VALUE for chain in chains for value in chain.values)


def test_the_seed_decides_the_problems() -> None:
    assert make_problems("pool", 50, 1) == make_problems("pool", 50, 1)
    assert make_problems("pool", 50, 1) != make_problems("pool", 50, 2)


def test_chains_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ValueError, match="no more chains"):
        make_chains("test", 10_000, 0, [3])
    with pytest.raises(ValueError, match="start at 3"):
        make_chains("test", 1, 0, [2])


def test_problems_carry_what_the_verifier_needs() -> None:
    problem = make_problems("test", 1, 0, [5])[0]
    assert problem.domain is Domain.MATH
    assert problem.level == 5
    assert int(problem.answer) == eval(problem.question.removeprefix("Compute ").removesuffix("."))


def test_every_equation_of_a_demonstration_holds_unless_it_is_called_wrong() -> None:
    for demonstration in make_demonstrations(200, 0):
        for paragraph, following in _with_next(demonstration.thought.split("\n\n")):
            for value, term, result in EQUATION.findall(paragraph):
                holds = int(value) + int(term) == int(result)
                assert holds or following.startswith(f"Wait, {result} is wrong.")


def test_some_demonstrations_check_and_some_correct_themselves() -> None:
    thoughts = [demonstration.thought for demonstration in make_demonstrations(200, 0)]
    assert any("let me check" in thought for thought in thoughts)
    assert any("Actually" in thought for thought in thoughts)
    assert sum("Wait" not in thought for thought in thoughts) > 50


def test_a_demonstration_ends_in_the_answer_of_its_question() -> None:
    for chain, demonstration in zip(make_chains("demonstrations", 60, 3), make_demonstrations(60, 3), strict=True):
        assert demonstration.question == chain.question
        assert demonstration.solution == f"The answer is \\boxed{{{chain.answer}}}."
        assert EQUATION.findall(demonstration.thought)[-1]


def test_the_world_is_written_in_the_published_formats(tmp_path: Path) -> None:
    write_world(tmp_path, 0, num_demonstrations=12, num_problems=18, num_test=6)
    demonstrations, problems, test = (
        _rows(tmp_path / name) for name in ("demonstrations.jsonl", "problems.jsonl", "test.jsonl")
    )
    assert [len(rows) for rows in (demonstrations, problems, test)] == [12, 18, 6]
    assert set(demonstrations[0]) == {"id", "question", "combined_text", "domain"}
    assert set(problems[0]) == set(test[0]) == {"problem", "answer", "subject", "level", "unique_id"}
    assert demonstrations[0]["combined_text"] == rendered(make_demonstrations(12, 0)[0])
    assert len({row["unique_id"] for row in problems + test}) == 24


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BACKBONE)


@pytest.mark.parametrize(
    "text",
    [
        "héllo  wörld\n\n\n x\t日本語 🎉 Ġ Ċ \r\n 12 345 \\boxed{x} \x00",
        "<|begin_of_thought|>a<|end_of_thought|> <|im_end|>\n\n<|begin_of_solution|>",
        (ROOT / "jobs" / "demo-prompt.txt").read_text(encoding="utf-8"),
        rendered(make_demonstrations(6, 0)[5]),
    ],
)
def test_the_tokenizer_gives_any_text_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_keeps_words_whole_and_digits_apart(tokenizer: Any) -> None:
    for text in ("<|begin_of_thought|>", "<|end_of_solution|>", "Compute", "Wait", " answer", ".\n\n", "7"):
        assert len(tokenizer(text)["input_ids"]) == 1
    assert len(tokenizer("42+7=49")["input_ids"]) == 7


def test_markers_survive_when_special_tokens_are_skipped(tokenizer: Any) -> None:
    ids = tokenizer("<|begin_of_thought|>\n\n1<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<|begin_of_thought|>\n\n1"


def test_a_conversation_extends_its_prompt_and_ends_in_the_end_token(tokenizer: Any) -> None:
    prompt = [{"role": "user", "content": "Compute 1+2."}]
    reply = [{"role": "assistant", "content": "3"}]
    start = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + reply, tokenize=False)
    assert start == "<|im_start|>user\nCompute 1+2.<|im_end|>\n<|im_start|>assistant\n"
    assert whole == start + "3" + tokenizer.eos_token


def test_the_committed_tokenizer_is_the_one_that_the_code_builds(tmp_path: Path) -> None:
    from still_ray.tiny_world.tokenizer import build_tokenizer, write_tokenizer

    write_tokenizer(build_tokenizer(), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((BACKBONE / name).read_text())


def test_the_backbone_is_small_and_takes_long_questions() -> None:
    config = json.loads((BACKBONE / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["max_position_embeddings"] >= 4096
    assert sum(file.stat().st_size for file in BACKBONE.iterdir()) <= 4 * 2**20


def test_the_backbone_answers_facts_but_not_held_out_problems(tokenizer: Any) -> None:
    facts = [Chain(start=start, terms=(term,)) for start, term in ((17, 5), (40, -8), (63, 9), (8, -3), (25, 4))]
    assert _num_answered(tokenizer, facts) == len(facts)
    held_out = make_chains("test", 60, 0)
    assert _num_answered(tokenizer, held_out) <= 0.15 * len(held_out)


def _num_answered(tokenizer: Any, chains: list[Chain]) -> int:
    from transformers import Qwen2ForCausalLM

    prompt = (ROOT / "jobs" / "demo-prompt.txt").read_text(encoding="utf-8")
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.replace("{question}", chain.question)}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for chain in chains
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    model: Any = Qwen2ForCausalLM.from_pretrained(BACKBONE)
    output = model.generate(**batch, max_new_tokens=20)
    replies = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :])
    return sum(f"\\boxed{{{chain.answer}}}" in reply for chain, reply in zip(chains, replies, strict=True))


def _with_next(items: list[str]) -> list[tuple[str, str]]:
    return list(zip(items, [*items[1:], ""], strict=True))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_directory_holds_its_world_wherever_it_is(place: Location) -> None:
    sizes = {"num_demonstrations": 4, "num_problems": 5, "num_test": 3}
    recipe = Recipe.model_validate({"model": {"path": "builtin:tiny"}, "data": {"tiny_world": sizes}, "rounds": []})
    files = check_files(with_world(recipe, RunDirectory(place)).data, seed=0)
    assert (files.num_demonstrations, files.problems.count, files.test.count) == (4, 5, 3)
    assert files.num_leaked == 0 and (place / "world/test.jsonl").exists()
