"""Wrong input: exit status 2, nothing on stdout, and one line on stderr that names the file, the row or the key."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from still_ray.cli.main import app
from still_ray.cli.preflight import library_arguments
from still_ray.cli.preflight.files import check_files
from still_ray.cli.preflight.models import BACKBONE, adapter_notes, check_model, model_shape, shape_by_config, with_date
from still_ray.cli.preflight.resume import check_same_recipe, with_kept_lengths
from still_ray.config import DataConfig, dump_recipe, load_recipe
from still_ray.formats.model_files import check_model_files
from still_ray.store.atomic import write_text
from still_ray.store.run_directory import RunDirectory
from still_ray.tiny_world.arithmetic import write_world
from still_ray.types import InputError

Fails = Callable[..., str]


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def content_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM, DeepSpeed and TRL find nothing wrong with arguments for them; none is loaded."""
    monkeypatch.setattr(library_arguments, "_answer", lambda *asked: (0, "[]", ""))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 0, num_demonstrations=4, num_problems=5, num_test=3)
    return folder


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Runs a command that must fail for its input, before any actor starts, and gives the line that it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "still_ray.actors.session", None)

    def run(*arguments: str | Path) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("still-ray: ")
        return lines[0].removeprefix("still-ray: ")

    return run


@pytest.fixture
def recipe(tmp_path: Path, world: Path) -> Callable[..., Path]:
    """Writes a recipe that is right but for the sections given."""

    def write(**sections: Any) -> Path:
        data = {name: str(world / f"{name}.jsonl") for name in ("demonstrations", "problems", "test")}
        raw = {"model": {"path": "builtin:tiny"}, "rounds": [{}], **sections}
        raw["data"] = {**data, **sections.get("data", {})}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(raw), encoding="utf-8")
        return path

    return write


def test_a_held_out_question_is_found_among_the_others_however_it_is_spelled(tmp_path: Path, world: Path) -> None:
    data = {"demonstrations": str(world / "demonstrations.jsonl")}
    for name, questions in {
        "test": [r"What is $\frac{1}{2}(4)$?", "What is 7?", "What is 8?"],
        "problems": [r"what is $\dfrac12\left(4\right)$?", "What is 78?", "What is 9?"],
    }.items():
        data[name] = str(tmp_path / f"{name}.jsonl")
        rows = [{"problem": question, "answer": "1"} for question in questions]
        Path(data[name]).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = check_files(DataConfig.model_validate(data), seed=0)
    assert files.num_leaked == 1


def test_demonstrations_with_control_tokens_are_counted(tmp_path: Path, world: Path) -> None:
    rows = (world / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()
    dumped = rows[1].replace(r"\n\n<|end_of_solution|>", r"<|im_end|>\n\n<|end_of_solution|>")
    assert dumped != rows[1]
    spoilt = [rows[0].replace(".", "<|im_start|>"), dumped, *rows[2:]]
    (tmp_path / "d.jsonl").write_text("\n".join(spoilt), encoding="utf-8")
    paths = {name: str(world / f"{name}.jsonl") for name in ("problems", "test")}
    files = check_files(DataConfig.model_validate({"demonstrations": str(tmp_path / "d.jsonl"), **paths}), seed=0)
    assert (files.num_demonstrations, files.num_left_out()) == (len(rows) - 1, 1)
    assert not any("<|im_" in shown.solution for shown in files.demonstrations())


Write = Callable[..., Path]

# -- the recipe -------------------------------------------------------------------------------------------------------


def test_a_missing_recipe(fails: Fails) -> None:
    assert fails("run", "nowhere.yaml").startswith("nowhere.yaml: no such file")


def test_an_unknown_key(fails: Fails, recipe: Write) -> None:
    path = recipe(sampler={"num_replicsa": 2})
    assert fails("run", path) == f"{path}: sampler.num_replicsa: unknown key; did you mean num_replicas?"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampler.engine.seed=1", "sampler.engine: seed cannot be handed on: the recipe's seed decides it"),
        ("sampler.engine.data_parallel_size=2", "sampler.engine: data_parallel_size cannot be handed on: a replica is"),
        (
            "sampler.engine.speculative_config={rejection_sample_method: synthetic}",
            "speculative_config.rejection_sample",
        ),
        ("trainer.deepspeed.zero_optimization={stage: 1}", "zero_optimization.stage cannot be handed on: trainer.zero"),
        ("trainer.deepspeed.bf16={enabled: true}", "trainer.deepspeed: bf16 cannot be handed on: trainer.bf16 decides"),
        ("trainer.trl.learning_rate=0.1", "trainer.trl: learning_rate cannot be handed on: optimizer of the method"),
        ("sampler.engine.enable_chunked_prefill=true", "sampler.engine.enable_chunked_prefill: cannot be used without"),
        ("sampler.engine.spec_method=ngram", "sampler.engine.spec_method: cannot be used without GPUs"),
    ],
)
def test_arguments_that_are_not_handed_on(fails: Fails, recipe: Write, override: str, said: str) -> None:
    assert said in fails("run", recipe(sampler={"gpus_per_replica": 0.0}), "--set", override)


@pytest.mark.parametrize("command", ["run", "plan", "rehearse"])
def test_what_a_library_says_of_its_arguments_ends_the_command(
    fails: Fails, recipe: Write, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(module: str, question: str, environment: object) -> tuple[int, str, str]:
        asked.append((module, json.loads(question)))
        return 0, 'noise of an import\n["trainer.trl.optm: unknown", "trainer.trl.b: unknown"]\n', "warnings"

    monkeypatch.setattr(library_arguments, "_answer", answer)
    line = fails(command, recipe(rounds=[{"train": ["sft"]}]), "--set", "trainer.trl.optm=adam")
    assert line.endswith("trainer.trl.optm: unknown (and 1 more)")
    ((module, question),) = asked
    assert module == "still_ray.trainer.library_arguments" and question["trl"] == {"optm": "adam"}
    assert question["methods"] == ["still_ray.trainer.methods.sft:SftTraining"]


@pytest.mark.parametrize(
    "key", ["explore.samples_per_problem", "sampler.tensor_parallel_size", "imitate.global_batch_size"]
)
def test_none_of_something(fails: Fails, recipe: Write, key: str) -> None:
    path = recipe()
    line = fails("run", path, "--set", f"{key}=0")
    assert line == f"{path}: {key}: Input should be greater than or equal to 1 (given: 0)"


@pytest.mark.parametrize("text", ["rounds.9.method=sft", "sampler.num_replicas", "seed=[1"])
def test_a_wrong_override(fails: Fails, recipe: Write, text: str) -> None:
    assert fails("run", recipe(), "--set", text).startswith(f"--set {text}: ")


def test_broken_yaml(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {path: a\nrounds: []\n")
    assert fails("run", path).startswith(f"{path}: line 2 is not YAML: ")


def test_half_a_surrogate_pair_in_a_recipe(fails: Fails, recipe: Write) -> None:
    path = recipe(name="half \ud800")
    assert fails("run", path) == f'{path}: key "name" holds half of a surrogate pair, which is no character'
    line = fails("run", recipe(), "--set", r'name="\ud800"')
    assert line.endswith('key "name" holds half of a surrogate pair, which is no character')


def test_the_demo_refuses_a_wrong_override_too(fails: Fails) -> None:
    assert "did you mean rounds?" in fails("demo", "--set", "round=[]")


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BACKBONE, tmp_path / "model"))


def test_a_missing_model_folder(fails: Fails, recipe: Write, tmp_path: Path) -> None:
    line = fails("run", recipe(model={"path": str(tmp_path / "nowhere")}))
    assert line.startswith(f"{tmp_path}/nowhere: no such model directory")


@pytest.mark.parametrize(
    ("lacking", "word"),
    [("tokenizer.json", "no tokenizer"), ("config.json", "no config.json"), ("model.safetensors", "safetensors")],
)
def test_a_model_folder_that_lacks_a_file(fails: Fails, recipe: Write, model: Path, lacking: str, word: str) -> None:
    (model / lacking).unlink()
    line = fails("run", recipe(model={"path": str(model)}))
    assert line.startswith(f"{model}: ")
    assert word in line


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1251144\n"


def change_config(model: Path, **values: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut_off(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def in_shards(model: Path) -> None:
    """The weights in two files with an index."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == file}, model / file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def without_first_shard(model: Path) -> None:
    in_shards(model)
    (model / "model-00001-of-00002.safetensors").unlink()


def without_index(model: Path) -> None:
    in_shards(model)
    (model / "model.safetensors.index.json").unlink()


def with_exchanged_shards(model: Path) -> None:
    in_shards(model)
    first, second = (model / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    first.rename(model / "kept")
    second.rename(first)
    (model / "kept").rename(second)


def with_tensors(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pointer of git-lfs": (
        lambda model: (model / "model.safetensors").write_bytes(POINTER),
        "model.safetensors: is a pointer of git-lfs and not the file; run git lfs pull",
    ),
    "a tokenizer that is a pointer": (
        lambda model: (model / "tokenizer.json").write_bytes(POINTER),
        "tokenizer.json: is a pointer of git-lfs",
    ),
    "a page of HTML": (
        lambda model: (model / "model.safetensors").write_bytes(b"<html>404 not found</html>"),
        "model.safetensors: is no safetensors file",
    ),
    "a header of noise": (
        lambda model: (model / "model.safetensors").write_bytes((16).to_bytes(8, "little") + b"\xff" * 16),
        "model.safetensors: is no safetensors file: its header is no JSON object",
    ),
    "no bytes": (lambda model: (model / "model.safetensors").write_bytes(b""), "model.safetensors: is no safetensors"),
    "a file cut off in its header": (
        lambda model: cut_off(model / "model.safetensors", 600),
        "model.safetensors: is cut off at 600 bytes, within its header",
    ),
    "a file cut off in its tensors": (
        lambda model: cut_off(model / "model.safetensors", 1_000_000),
        "model.safetensors: is not whole: 996,088 of 1,247,232 bytes",
    ),
    "an index of a missing shard": (
        without_first_shard,
        "index.json: names model-00001-of-00002.safetensors, which is not there (1 of 2 files lack)",
    ),
    "shards without an index": (without_index, "but neither model.safetensors nor model.safetensors.index.json"),
    "shards of another order": (with_exchanged_shards, "which it does not; fetch both again"),
    "an unknown kind": (
        lambda model: change_config(model, model_type="qwen9", architectures=["Qwen9ForCausalLM"]),
        "config.json: model_type 'qwen9' is no causal language model that transformers can train",
    ),
    "an unknown architecture": (
        lambda model: change_config(model, architectures=["Qwen9ForCausalLM"]),
        "config.json: architecture 'Qwen9ForCausalLM' is no causal language model known here",
    ),
    "a reward model": (
        lambda model: change_config(model, architectures=["Qwen2ForSequenceClassification"]),
        "config.json: architecture 'Qwen2ForSequenceClassification' is no causal language model",
    ),
    "no architecture": (lambda model: change_config(model, architectures=None), 'config.json: key "architectures"'),
    "quantized weights": (
        lambda model: change_config(model, quantization_config={"quant_method": "gptq", "bits": 4}),
        "config.json: quantization_config (gptq): quantized weights cannot be trained",
    ),
    "integers for weights": (
        lambda model: with_tensors(model, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].char()})),
        "model.safetensors: model.norm.weight is of type I8 and config.json names no quantization_config",
    ),
    "another vocabulary": (
        lambda model: change_config(model, vocab_size=384),
        "model.embed_tokens.weight has the shape [352, 96], and by config.json [384, 96]",
    ),
    "another vocabulary in a family that is not known": (
        lambda model: change_config(model, model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], vocab_size=9),
        "model.embed_tokens.weight has the shape [352, 96], and by config.json [9, 96]",
    ),
    "more layers in the config": (
        lambda model: change_config(model, num_hidden_layers=4),
        "holds no model.layers.3.self_attn.q_proj.weight, which config.json calls for",
    ),
    "fewer layers in the config": (
        lambda model: change_config(model, num_hidden_layers=2),
        "config.json: num_hidden_layers is 2, and the weights have 3 layers",
    ),
    "a lost tensor": (
        lambda model: with_tensors(model, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
        "holds no model.layers.1.mlp.up_proj.weight, which config.json calls for",
    ),
    "an unknown dtype": (lambda model: change_config(model, dtype="float4"), "config.json: dtype 'float4'"),
    "a config that is a list": (
        lambda model: (model / "config.json").write_text("[]"),
        "config.json: is no JSON object",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_model_whose_files_cannot_be_trained(fails: Fails, recipe: Write, model: Path, name: str) -> None:
    damage, words = DAMAGES[name]
    damage(model)
    line = fails("run", recipe(model={"path": str(model)}))
    assert line.startswith(str(model)) and words in line


@pytest.mark.parametrize("command", ["plan", "evaluate", "ablate"])
def test_every_command_that_uses_a_model_looks_at_its_files(
    fails: Fails, recipe: Write, model: Path, world: Path, command: str
) -> None:
    without_first_shard(model)
    path, matrix = recipe(model={"path": str(model)}), model.parent / "matrix.yaml"
    runs = {"as-it-is": {}, "warmer": {"explore": {"temperature": 1.1}}}
    matrix.write_text(
        yaml.safe_dump(
            {
                "name": "two",
                "recipe": str(path),
                "seeds": [1],
                "rows": [{"name": name, "run": name, "stage": "000-imitate"} for name in runs],
                "runs": runs,
            }
        )
    )
    arguments: dict[str, tuple[str | Path, ...]] = {
        "plan": (path,),
        "evaluate": ("--model", model, "--benchmark", world / "test.jsonl"),
        "ablate": (matrix,),
    }
    line = fails(command, *arguments[command])
    assert f"{model}/model.safetensors.index.json: names model-00001-of-00002.safetensors" in line


def test_pointers_that_nobody_reads_do_not_matter(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(POINTER)
    (model / "unused.safetensors").write_bytes(POINTER)
    assert check_model_files(model, model, trains=True)


def test_a_model_in_shards_is_as_good_as_one_in_a_file(model: Path) -> None:
    whole = check_model_files(model, model, trains=True)
    in_shards(model)
    parts = check_model_files(model, model, trains=True)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in whole.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in parts.items()
    }
    assert sum(tensor.num_elements for tensor in parts.values()) == 311_808


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_transformers_saved_has_the_tensors_that_its_config_calls_for(
    tmp_path: Path, kind: str, *, tied: bool
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **sizes, num_key_value_heads=2, vocab_size=64, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert check_model_files(tmp_path, tmp_path, trains=True)


def test_quantized_weights_may_be_evaluated(model: Path) -> None:
    change_config(model, quantization_config={"quant_method": "fp8"})
    assert check_model_files(model, model, trains=False)


def test_a_cache_that_cannot_hold_one_sequence(fails: Fails, recipe: Write, model: Path) -> None:
    """2 x 3 layers x 3 heads x 1,024 x 4 B = 73,728 B a token; 113 blocks of 128 tokens in 1 GiB, one kept back."""
    change_config(model, model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], head_dim=1024)
    sections = {"model": {"path": str(model), "max_length": 20_000}, "sampler": {"kv_cache_gib": 1}}
    assert fails("run", recipe(**sections)).startswith(
        "model.max_length: 20,000 tokens are more than the model's 4,096"
    )
    change_config(model, max_position_embeddings=32_768)
    assert fails("run", recipe(**sections)) == (
        "sampler.kv_cache_gib: one sequence of model.max_length (20,000 tokens) takes 1.4 GiB of KV cache, and 1 GiB "
        "hold one of 14,336; raise it, or lower model.max_length"
    )


def test_a_model_on_the_hub_is_known_by_its_config_where_its_family_is(model: Path) -> None:
    tensors = check_model_files(model, model, trains=True)
    assert shape_by_config(str(model), own_code=False) == model_shape(model, tensors)
    change_config(model, model_type="gemma3_text", architectures=["Gemma3ForCausalLM"])
    assert shape_by_config(str(model), own_code=False) is None
    change_config(model, model_type="of_tomorrow")
    assert shape_by_config(str(model), own_code=False) is None


def test_a_disk_without_room_for_the_checkpoints(fails: Fails, recipe: Write, small_disk: Path) -> None:
    line = fails("run", recipe(rounds=[{}, {}]), "--run-dir", small_disk)
    assert line.startswith(f"{small_disk}: 3 checkpoints of 1,247,232 bytes are to be written and ")
    assert "bytes are free, " in line and line.endswith("make room, or put the run directory on a larger disk")


def with_chat_template(model: Path, change: Callable[[Any], Any]) -> None:
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = change(config["chat_template"])
    path.write_text(json.dumps(config))


def test_a_chat_template_that_shows_no_question(fails: Fails, recipe: Write, model: Path) -> None:
    with_chat_template(model, lambda template: template.replace("message['content']", "message['content'][0].text"))
    line = fails("run", recipe(model={"path": str(model)}))
    assert "the chat template refuses a conversation of one user's turn: 'str object' has no attribute 'text'" in line


def test_a_thought_alone_cannot_be_learnt_of_a_format_without_one(fails: Fails, recipe: Write) -> None:
    line = fails("run", recipe(prompt={"format": "plain"}, rounds=[{"method": "dpo"}]))
    assert line.startswith("rounds.0.dpo.scope: thought, but responses of the format plain have none; set it to whole")


def test_a_tokenizer_without_a_chat_template(fails: Fails, recipe: Write, model: Path) -> None:
    with_chat_template(model, lambda template: None)
    assert "has no chat template" in fails("run", recipe(model={"path": str(model)}))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda template: [{"name": "rag", "template": template}],
            "{}: the tokenizer has chat templates named rag and",
        ),
        (
            lambda template: template + "{% if %}",
            '{}/tokenizer_config.json: key "chat_template": the chat template is no ',
        ),
        (
            lambda template: "{{ raise_exception('system first') }}" + template,
            '{}/tokenizer_config.json: key "chat_template": the chat template refuses a conversation',
        ),
        (lambda template: [{"nom": "default"}], "{}: its tokenizer cannot be loaded"),
    ],
)
def test_a_chat_template_that_is_none_is_told_alike_by_run_and_evaluate(
    fails: Fails, recipe: Write, model: Path, change: Callable[[Any], Any], complaint: str
) -> None:
    with_chat_template(model, change)
    path = recipe(model={"path": str(model)})
    by_run = fails("run", path)
    by_evaluate = fails("evaluate", "--model", model, "--benchmark", load_recipe(path).data.test)
    assert by_run.startswith(complaint.format(model))
    assert by_evaluate == by_run


def test_a_syntax_error_in_the_file_of_a_chat_template_names_it(fails: Fails, recipe: Write, model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ messages")
    line = fails("run", recipe(model={"path": str(model)}))
    assert line.startswith(f"{model}/chat_template.jinja: the chat template is no Jinja template (line 1): ")


def test_a_day_that_is_none(fails: Fails, recipe: Write) -> None:
    line = fails("run", recipe(prompt={"date": "yesterday"}))
    assert line.endswith("prompt.date: must be a day as YYYY-MM-DD (given: 'yesterday')")


def test_adapters_of_delimiters_that_are_single_tokens_are_warned_of(recipe: Write) -> None:
    def notes(form: str, **lora: Any) -> tuple[str, ...]:
        given = load_recipe(recipe(prompt={"format": form}, trainer={"lora": lora}))
        return adapter_notes(given, check_model(str(BACKBONE), given))

    (note,) = notes("markers", embeddings=False)
    assert note.startswith("each of <|begin_of_thought|>, <|end_of_thought|>, <|begin_of_solution|>, ")
    assert notes("plain", embeddings=False) == (), "it has no delimiters"
    assert notes("markers", embeddings=True) == notes("markers") == ()


@pytest.mark.parametrize("stored", ["2020-02-29", None])
def test_a_run_goes_on_with_the_day_that_it_began_with(
    recipe: Write, model: Path, tmp_path: Path, stored: str | None
) -> None:
    with_chat_template(model, lambda template: "{{ strftime_now('%Y') }}" + str(template))
    given = load_recipe(recipe(model={"path": str(model)}))
    directory = RunDirectory(str(tmp_path / "run"))
    directory.create()
    today = date.today().isoformat()
    if stored:
        write_text(directory.prompt_date, stored + "\n")
    dated = with_date(given, directory, asks=check_model(str(model), given).asks_date)
    assert dated.prompt.date == (stored or today)
    write_text(directory.recipe, dump_recipe(dated, {}))
    again = with_date(given, directory, asks=True)
    check_same_recipe(directory, again)
    assert again == dated
    other = given.model_copy(update={"prompt": given.prompt.model_copy(update={"date": "1999-01-01"})})
    assert with_date(other, directory, asks=True) == other
    with pytest.raises(InputError, match=r"prompt\.date differs"):
        check_same_recipe(directory, other)
    assert with_date(given, directory, asks=False) == given
    former = yaml.safe_load(dump_recipe(given, {}))
    del former["prompt"]["date"]  # of a run that began before there was such a key
    write_text(directory.recipe, yaml.safe_dump(former))
    check_same_recipe(directory, again)


def test_a_bare_day_of_yaml_is_a_day(recipe: Write) -> None:
    assert load_recipe(recipe(prompt={"date": date(2020, 2, 29)})).prompt.date == "2020-02-29"


def test_a_tokenizer_that_is_not_json(fails: Fails, recipe: Write, model: Path) -> None:
    (model / "tokenizer.json").write_text('{"version": ')
    line = fails("run", recipe(model={"path": str(model)}))
    assert line.startswith(f"{model}: its tokenizer cannot be loaded")


def test_a_missing_prompt_template(fails: Fails, recipe: Write, tmp_path: Path) -> None:
    line = fails("run", recipe(prompt={"template": "nowhere.txt"}))
    assert line.startswith(f"{tmp_path}/nowhere.txt: ")


# -- the data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demonstrations", "problems", "test"])
def test_a_missing_data_file(fails: Fails, recipe: Write, tmp_path: Path, name: str) -> None:
    line = fails("run", recipe(data={name: "nowhere.jsonl"}))
    assert line == f"{tmp_path}/nowhere.jsonl: no such file"


@pytest.mark.parametrize("name", ["demonstrations", "problems", "test"])
def test_a_broken_json_line(fails: Fails, recipe: Write, world: Path, tmp_path: Path, name: str) -> None:
    lines = (world / f"{name}.jsonl").read_text().splitlines()
    lines[1] = lines[1][:-9]
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join(lines) + "\n")
    line = fails("run", recipe(data={name: str(broken)}))
    assert line.startswith(f"{broken}, row 2: not valid JSON")


@pytest.mark.parametrize(
    ("name", "key"), [("problems", "answer"), ("problems", "problem"), ("demonstrations", "combined_text")]
)
def test_a_row_without_a_key(fails: Fails, recipe: Write, world: Path, name: str, key: str) -> None:
    rows = [json.loads(line) for line in (world / f"{name}.jsonl").read_text().splitlines()]
    del rows[2][key]
    lacking = world / f"{name}-without-{key}.jsonl"
    lacking.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = fails("run", recipe(data={name: str(lacking)}))
    assert line.startswith(f"{lacking}, row 3: missing key ")
    assert key in line


# -- the run directory ------------------------------------------------------------------------------------------------


def test_a_run_directory_below_a_file(fails: Fails, recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = fails("run", recipe(), "--run-dir", tmp_path / "file" / "run")
    assert line.startswith(f"{tmp_path}/file/run: cannot be written to")


def test_a_run_directory_in_use(fails: Fails, recipe: Write, tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    with directory.locked():
        line = fails("run", recipe(), "--run-dir", "run")
    assert line.startswith(f"{tmp_path}/run: another still-ray works in this folder")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("seed=7", "seed"),
        ("explore.temperature=0.5", "explore.temperature"),
        ("rounds=[{method: dpo}]", "rounds"),
        ("rounds.0.sft.epochs=1.0", "rounds"),
        ("sampler.engine.quantization=fp8", "sampler.engine"),
        ("trainer.trl.optim=adamw_torch", "trainer.trl"),
        ("trainer.lora={}", "trainer.lora"),
    ],
)
@pytest.mark.usefixtures("content_libraries")
def test_a_run_directory_of_another_recipe(
    fails: Fails, recipe: Write, tmp_path: Path, override: str, key: str
) -> None:
    path = recipe(data={"problems": "nowhere.jsonl"})
    begun(path, tmp_path / "run")
    line = fails("run", path, "--run-dir", "run", "--set", override)
    assert line.startswith(f"{tmp_path}/run: holds a run of another recipe ({key} differs)")


def test_a_key_that_the_schema_got_since_the_run_began_counts_as_its_default(
    fails: Fails, recipe: Write, tmp_path: Path
) -> None:
    path = recipe(data={"problems": "nowhere.jsonl"})
    begun(path, tmp_path / "run")
    stored = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    del stored["evaluate"]["num_samples"]
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(stored))
    assert fails("run", path, "--run-dir", "run").endswith("nowhere.jsonl: no such file")
    line = fails("run", path, "--run-dir", "run", "--set", "evaluate.num_samples=4")
    assert "(evaluate.num_samples differs)" in line


@pytest.mark.parametrize("override", ["sampler.num_replicas=5", "failures.max_replica_restarts=0", "name=other"])
def test_resources_may_change_between_a_run_and_its_resumption(
    fails: Fails, recipe: Write, tmp_path: Path, override: str
) -> None:
    path = recipe(data={"problems": "nowhere.jsonl"})
    begun(path, tmp_path / "run")
    assert fails("run", path, "--run-dir", "run", "--set", override).endswith("nowhere.jsonl: no such file")


def test_a_run_goes_on_with_the_lengths_that_it_began_with(recipe: Write, tmp_path: Path) -> None:
    """Whatever memory the machine has on which it goes on; what the recipe itself says is compared."""
    asked = load_recipe(recipe(rounds=[{}, {"train": ["dpo"]}], sft={"max_length": 700}))
    begun(tmp_path / "recipe.yaml", tmp_path / "run")
    directory = RunDirectory(tmp_path / "run")
    stored = yaml.safe_load(directory.recipe.read_text(encoding="utf-8"))
    stored["model"]["max_length"], stored["evaluate"]["max_tokens"] = 1000, 600
    stored["rounds"][1]["dpo"]["max_length"], stored["rounds"][0]["sft"]["max_length"] = 800, 900
    write_text(directory.recipe, yaml.safe_dump(stored))
    kept = with_kept_lengths(directory, asked)
    assert (kept.model.max_length, kept.evaluate.max_tokens, kept.imitate.max_length) == (1000, 600, "auto")
    assert [step.settings.max_length for step in kept.steps[1:]] == [700, 800]
    with pytest.raises(InputError, match=r"holds a run of another recipe \(rounds differs\)"):
        check_same_recipe(directory, kept)


def begun(recipe: Path, run_dir: Path) -> None:
    """What a run of the recipe leaves in its folder before anything else."""
    from still_ray.config import dump_recipe, load_recipe

    run_dir.mkdir()
    (run_dir / "recipe.yaml").write_text(dump_recipe(load_recipe(recipe), {}), encoding="utf-8")


@pytest.fixture
def own(tmp_path: Path, world: Path, model: Path) -> Path:
    """A folder with files of its own for a run, whose recipe names them all."""
    folder = Path(shutil.copytree(world, tmp_path / "data"))
    (folder / "prompt.txt").write_text("Solve {question}")
    data = {name: str(folder / f"{name}.jsonl") for name in ("demonstrations", "problems", "test")}
    raw = {
        "model": {"path": str(model)},
        "prompt": {"template": str(folder / "prompt.txt")},
        "data": data,
        "rounds": [],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    return folder


def reaches_ray(*arguments: str | Path) -> bool:
    """Whether a command gets as far as its actors, which `fails` keeps from being imported."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code == 1 and "import of still_ray.actors.session halted" in result.stderr


def head(path: Path, num_lines: int) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:num_lines]))


def with_other_answers(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "answer": "0"}) + "\n" for row in rows))


def scaled(model: Path) -> None:
    with_tensors(model, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"] * 1.01}))


CHANGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "fewer demonstrations": (
        lambda folder: head(folder / "demonstrations.jsonl", 2),
        "/data/demonstrations.jsonl: the run in {run} began with 4 rows, now it holds 2 (data.demonstrations)",
    ),
    "fewer held-out problems": (
        lambda folder: head(folder / "test.jsonl", 1),
        "/data/test.jsonl: the run in {run} began with 3 rows, now it holds 1 (data.test)",
    ),
    "other answers": (
        lambda folder: with_other_answers(folder / "problems.jsonl"),
        "/data/problems.jsonl: the run in {run} began with 5 other rows (data.problems)",
    ),
    "another prompt": (
        lambda folder: (folder / "prompt.txt").write_text("Answer {question}"),
        "/data/prompt.txt: the run in {run} began with other text (prompt.template)",
    ),
    "another chat template": (
        lambda folder: with_chat_template(folder.parent / "model", lambda text: "{# other #}" + text),
        "/model: the run in {run} began with other config, tokenizer or chat template (model.path)",
    ),
    "other weights": (
        lambda folder: scaled(folder.parent / "model"),
        "/model: the run in {run} began with other weights (model.path)",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_goes_on_with_the_files_that_it_began_with_alone(
    fails: Fails, own: Path, tmp_path: Path, name: str
) -> None:
    change, words = CHANGES[name]
    command = ("run", own / "recipe.yaml", "--run-dir", "run")
    assert reaches_ray(*command)
    change(own)
    line = fails(*command)
    assert line == (
        f"{tmp_path}{words.format(run=tmp_path / 'run')}; put back what it began with, or give another --run-dir"
    )
    assert reaches_ray("run", own / "recipe.yaml", "--run-dir", "another-run")


@pytest.mark.usefixtures("fails")
def test_files_with_other_times_are_the_same_files(own: Path, model: Path) -> None:
    command = ("run", own / "recipe.yaml", "--run-dir", "run")
    assert reaches_ray(*command)
    for path in [*own.iterdir(), *model.iterdir()]:
        path.write_bytes(path.read_bytes())
        os.utime(path, (1e9, 1e9))
    assert reaches_ray(*command)


def test_a_run_that_was_begun_without_digests_resumes_and_is_held_to_what_it_finds(fails: Fails, own: Path) -> None:
    command = ("run", own / "recipe.yaml", "--run-dir", "run")
    assert reaches_ray(*command)
    Path("run/inputs.json").unlink()
    head(own / "demonstrations.jsonl", 3)
    assert reaches_ray(*command)
    head(own / "demonstrations.jsonl", 2)
    assert "began with 3 rows, now it holds 2 (data.demonstrations)" in fails(*command)


# -- the other commands -----------------------------------------------------------------------------------------------


def test_evaluating_a_missing_model_or_benchmark(fails: Fails, world: Path, tmp_path: Path) -> None:
    benchmark = world / "test.jsonl"
    line = fails("evaluate", "--model", tmp_path / "nowhere", "--benchmark", benchmark)
    assert line.startswith(f"{tmp_path}/nowhere: no such model directory")
    line = fails("evaluate", "--model", "builtin:tiny", "--benchmark", "nowhere.jsonl")
    assert line == "nowhere.jsonl: no such file"


@pytest.mark.parametrize("option", ["--num-problems", "--max-tokens"])
def test_evaluating_nothing(fails: Fails, world: Path, option: str) -> None:
    benchmark = world / "test.jsonl"
    line = fails("evaluate", "--model", "builtin:tiny", "--benchmark", benchmark, option, "0")
    assert "greater than or equal to 1" in line and line.endswith("(given: 0)")


def test_verifying_a_missing_file(fails: Fails, tmp_path: Path) -> None:
    assert fails("verify", "nowhere.jsonl", "--output", "out.jsonl") == "nowhere.jsonl: no such file"
    assert not (tmp_path / "out.jsonl").exists()


def test_the_status_of_a_folder_without_a_run(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert fails("status", folder).startswith(f"{folder}: holds no run (no state.json)")
        assert fails("status", folder, "--json").startswith(f"{folder}: holds no run (no state.json)")


def test_the_status_of_a_damaged_run(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"status": "runn')
    assert fails("status", tmp_path).startswith(f"{tmp_path}/state.json: is not JSON")
