"""`evaluate` up to the first actor, what it prints, and an evaluation that is killed anywhere and resumed."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from still_ray.algo.evaluation.repetition import Repetition
from still_ray.algo.evaluation.summary import summarize
from still_ray.algo.placement import Hardware
from still_ray.algo.stages import Stage, plan_stages
from still_ray.cli.evaluate.command import Cell
from still_ray.cli.evaluate.printing import compared, differing_settings, shown_ks
from still_ray.cli.evaluate.repeat import lines_of
from still_ray.cli.evaluate.request import (
    EvaluateOptions,
    check_models,
    dated_models,
    model_name,
    notes_of,
    planned_models,
    planned_sources,
    read_benchmark,
    settled_models,
)
from still_ray.cli.main import app
from still_ray.cli.preflight import library_arguments, machines
from still_ray.cli.preflight.evaluated import EvaluatedModel
from still_ray.cli.preflight.models import BACKBONE, with_format
from still_ray.cli.preflight.provenance import package_versions, run_settings, settings_of, verifier_facts
from still_ray.config import EvaluateConfig, ForgettingConfig
from still_ray.driver.evaluation import evaluate
from still_ray.driver.ports import EvaluateOrder
from still_ray.formats.problems import validate_problems
from still_ray.store import digests
from still_ray.store.atomic import read_json, write_json, write_text
from still_ray.store.evaluations import EvaluationFolder, first_difference
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.tiny_world.arithmetic import write_world
from still_ray.types import StageKind, Trajectory, Verdict
from tests.fakes import BACKBONE as SERVED
from tests.fakes import Crashed, Disk, FakeData, FakeExplorer, FakeProgress, FakeSync, make_trajectory, mixed_skill

Fails = Callable[..., str]
STAGE = Stage(kind=StageKind.BACKBONE, round=0, policy_version=0)


@pytest.fixture(autouse=True)
def kept_signals() -> Iterator[None]:
    """The command line takes SIGTERM for itself; the test process gets it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 0, num_demonstrations=4, num_problems=5, num_test=6)
    return folder / "test.jsonl"


@pytest.fixture
def fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Runs a command that must fail for its input, before any actor starts, and gives the line that it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "still_ray.actors.evaluations", None)

    def run(*arguments: str | Path) -> str:
        result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        (line,) = result.stderr.splitlines()[-1:]
        return line.removeprefix("still-ray: ")

    return run


def planned(benchmark: Path, *models: str, **options: Any) -> tuple[list[EvaluatedModel], EvaluateOptions]:
    chosen = EvaluateOptions(models=models or (str(BACKBONE),), benchmarks=(str(benchmark),), **options)
    asked = planned_models(chosen)
    return settled_models(asked, check_models(asked))[0], chosen


def settled(model: EvaluatedModel) -> EvaluatedModel:
    """With the response format that the tiny backbone's chat template comes to."""
    return replace(model, recipe=with_format(model.recipe, "plain"))


def test_a_length_that_the_cache_cannot_hold_is_fitted_to_it_unless_it_is_given(
    benchmark: Path, fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """73,728 B a token, see tests/unit/test_cli_input.py; an eighth of 8 GiB is the cache."""
    monkeypatch.setattr(machines, "this_machine", lambda: Hardware(cores=2, memory_bytes=8 * 2**30))
    model = Path(shutil.copytree(BACKBONE, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    kind = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "head_dim": 1024}
    (model / "config.json").write_text(json.dumps({**config, **kind, "max_position_embeddings": 32_768}))
    asked = planned_models(EvaluateOptions(models=(str(model),), benchmarks=(str(benchmark),)))
    (found,), (sizes, cut) = settled_models(asked, check_models(asked))
    assert found.recipe.model.max_length == 14_336
    assert "model.max_length 14,336, evaluate.max_tokens 9,557, sampler.num_replicas 2" in sizes
    assert cut == (
        "model: for the memory's sake prompt and response are cut at 14,336 tokens instead of 30,000: the KV cache of "
        "1 GiB (sampler.kv_cache_gib) holds no more"
    )
    ((found,), _) = planned(benchmark, str(model), overrides=("sampler.kv_cache_gib=3", "sampler.num_replicas=1"))
    assert found.recipe.model.max_length == 30_000
    line = fails(
        "--model", model, "--benchmark", benchmark, "--set", "model.max_length=20000", "--set", "sampler.kv_cache_gib=1"
    )
    assert line.startswith("sampler.kv_cache_gib: one sequence of model.max_length (20,000 tokens) takes 1.4 GiB")


# -- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmark", "x.jsonl"], "give --model and --benchmark, or --repeat RESULT"),
        (["--model", "builtin:tiny"], "give --model and --benchmark, or --repeat RESULT"),
        (["--model", "builtin:tiny", "--benchmark", "AIME 1999"], "AIME 1999: neither a file nor a known benchmark"),
        (["--repeat", "nowhere"], "/nowhere: holds no eval.json; give the folder of one model on one benchmark"),
        (["--repeat", "x", "--samples", "2"], "--repeat takes everything from the result: leave --samples out"),
        (["--repeat", "x", "--model", "m"], "--repeat takes everything from the result: leave --model out"),
        (["--repeat", "x", "--set", "a=1"], "--repeat takes everything from the result: leave --set out"),
    ],
)
def test_options_that_do_not_go_together(fails: Fails, options: list[str], message: str) -> None:
    assert message in fails(*options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "evaluate.num_samples: Input should be greater than or equal to 1 (given: 0)"),
        (["--samples", "4", "--temperature", "0"], "num_samples (4) greedy responses are one and the same"),
        (
            ["--temperature", "-1"],
            "evaluate.temperature: Input should be greater than or equal to 0 or 'auto' (given: -1.0)",
        ),
        (["--top-p", "1.5"], "evaluate.top_p: Input should be less than or equal to 1 or 'auto' (given: 1.5)"),
        (
            ["--max-tokens", "4096"],
            "evaluate.max_tokens (4096) must leave room for the prompt: less than model.max_length",
        ),
        (["--prompt", "nowhere.txt"], "nowhere.txt: the prompt template cannot be read"),
        (
            ["--model", "builtin:tiny"],
            "two models are called tiny, and so would be their results; give --model NAME=DIR",
        ),
    ],
)
def test_wrong_settings(fails: Fails, benchmark: Path, options: list[str], message: str) -> None:
    assert message in fails("--model", "builtin:tiny", "--benchmark", benchmark, *options)


def test_the_same_benchmark_twice(fails: Fails, benchmark: Path) -> None:
    line = fails("--model", "builtin:tiny", "--benchmark", benchmark, "--benchmark", benchmark)
    assert "two benchmarks are called test" in line


def test_a_folder_with_other_settings_is_refused_before_anything_starts(
    fails: Fails, benchmark: Path, tmp_path: Path
) -> None:
    models, options = planned(benchmark)
    (source,) = planned_sources(options)
    read = read_benchmark(source, tmp_path / "benchmarks", seed=42)
    folder = EvaluationFolder(tmp_path / "out")
    folder.open(settings_of(settled(models[0]), read, package_versions()))
    folder.commit([make_trajectory()])
    folder.rows()
    arguments = ["--model", BACKBONE, "--benchmark", benchmark, "--output", "out"]
    line = fails(*arguments, "--samples", "2")
    assert line.startswith(
        f"{tmp_path}/out: holds an evaluation with other settings (sampling.temperature was 0.0, is "
    )
    changed = tmp_path / "changed" / "test.jsonl"
    changed.parent.mkdir()
    changed.write_text(benchmark.read_text() + "\n")
    assert "benchmark.sha256 was" in fails("--model", BACKBONE, "--benchmark", changed, "--output", "out")


def test_a_result_of_a_run_cannot_be_repeated(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text('{"accuracy": 0.5}')
    assert "eval.json: cannot be repeated: it lacks model, which still-ray evaluate writes" in fails(
        "--repeat", tmp_path
    )


@pytest.mark.parametrize("output", ["weak/test", "strong/test"])
def test_a_result_is_not_compared_with_itself(
    results: list[dict[str, Any]], output: str, fails: Fails, tmp_path: Path
) -> None:
    line = fails("--repeat", tmp_path / "weak" / "test", "--output", tmp_path / output)
    assert line == f"{tmp_path / output}: holds a result already, which would not be made again; give another --output"
    assert len(results) == 2 and not (tmp_path / output / "prompt_template.txt").exists()


def test_a_repetition_that_was_compared_is_not_made_again_and_one_that_was_not_is_compared(
    results: list[dict[str, Any]], fails: Fails, tmp_path: Path
) -> None:
    first, again = tmp_path / "weak" / "test", tmp_path / "again"
    shutil.copytree(first, again)  # a repetition that was killed behind its last response
    (again / "prompt_template.txt").write_text(results[0]["prompt"]["text"])
    done = CliRunner().invoke(app, ["evaluate", "--repeat", str(first), "--output", str(again)])
    assert done.exit_code == 0 and done.stdout.endswith("it matches\n"), done.output
    assert "holds a result already" in fails("--repeat", first, "--output", again)


# -- what is planned --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("builtin:tiny", "tiny"),
        ("/models/Qwen2.5-7B/", "Qwen2.5-7B"),
        ("Qwen/Qwen2.5-32B-Instruct", "Qwen2.5-32B-Instruct"),
        ("runs/mine/rounds/001-sft/checkpoint", "mine-001-sft"),
        ("s3://bucket/runs/7b/rounds/002-dpo/checkpoint?endpoint_override=http://h:1", "7b-002-dpo"),
        ("/", "model"),
    ],
)
def test_models_are_called_what_tells_them_apart(given: str, name: str) -> None:
    assert model_name(given) == name


def test_a_model_may_be_given_a_name(benchmark: Path, tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    shutil.copytree(BACKBONE, odd)
    models, _ = planned(benchmark, f"mine={BACKBONE}", str(odd))
    assert [model.name for model in models] == ["mine", "a-b"]
    assert {model.digest for model in models} == {models[0].digest}


def test_models_in_turn_have_as_many_replicas_as_the_largest_may(benchmark: Path, tmp_path: Path) -> None:
    """The weights of one with more than ten million parameters are held once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    large = Path(shutil.copytree(BACKBONE, tmp_path / "large"))
    config = json.loads((large / "config.json").read_text())
    (large / "config.json").write_text(json.dumps({**config, "vocab_size": 200_000}))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(large))
    model.save_pretrained(large)
    alone, _ = planned(benchmark)
    both, _ = planned(benchmark, str(BACKBONE), str(large))
    counts = [one.recipe.sampler.num_replicas for one in (*alone, *both)]
    assert counts == ["auto", 1, 1]


@pytest.mark.parametrize(
    ("positions", "length", "max_tokens"), [(32_768, 30_000, 20_000), (131_072, 30_000, 20_000), (4_096, 4_096, 2_730)]
)
def test_the_published_settings_hold_where_the_model_allows_them(
    positions: int, length: int, max_tokens: int, benchmark: Path, tmp_path: Path
) -> None:
    shutil.copytree(BACKBONE, tmp_path / "model")
    config = json.loads((BACKBONE / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": positions}))
    recipe = planned(benchmark, str(tmp_path / "model"))[0][0].recipe
    assert (recipe.model.max_length, recipe.evaluate.max_tokens) == (length, max_tokens)
    assert (recipe.evaluate.sampling.temperature, recipe.evaluate.seed) == (0, 42)


def test_the_settings_name_everything_that_decides_a_result(benchmark: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Think about {question}\n")
    models, options = planned(benchmark, prompt=tmp_path / "prompt.txt", num_problems=4, samples=3, seed=7)
    (source,) = planned_sources(options)
    settings = settings_of(models[0], read_benchmark(source, tmp_path, seed=7), package_versions())
    assert settings["prompt"]["text"] == "Think about {question}"
    assert settings["benchmark"]["num_problems"] == 4
    assert settings["benchmark"]["num_bytes"] == benchmark.stat().st_size
    assert settings["sampling"]["seed"] == 7 and settings["sampling"]["temperature"] == 0.6
    assert {"transformers", "math-verify", "still-ray"} <= settings["versions"].keys()
    digests = [settings[part]["sha256"] for part in ("model", "benchmark", "prompt", "chat_template", "verifier")]
    assert all(len(digest) == 64 for digest in digests) and len(set(digests)) == 5
    assert json.loads(json.dumps(settings)) == settings


def test_arguments_for_the_engine_are_named_where_there_are_any_and_make_another_result(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_arguments, "_answer", lambda *asked: (1, "", "no vllm\nhere\n"))
    overrides = ("sampler.engine.enable_prefix_caching=true",)
    asked = planned_models(EvaluateOptions(models=(str(BACKBONE),), benchmarks=(), overrides=overrides))
    _, notes = settled_models(asked, check_models(asked))
    assert f"{asked[0].name}: sampler.engine: not checked, since vllm cannot be asked here: here" in notes
    plain, special = (
        settings_of(models[0], read_benchmark(planned_sources(options)[0], tmp_path, seed=42), {})
        for models, options in (planned(benchmark, overrides=given) for given in ((), overrides))
    )
    assert special["engine"] == {**plain["engine"], "arguments": {"enable_prefix_caching": True}}
    difference = first_difference(plain, special)
    assert difference == ("engine.arguments", None, {"enable_prefix_caching": True})


def test_the_settings_of_a_runs_evaluations_name_the_same_but_for_its_models(benchmark: Path, tmp_path: Path) -> None:
    models, options = planned(benchmark)
    (source,) = planned_sources(options)
    read = read_benchmark(source, tmp_path, seed=42)
    recipe = models[0].recipe
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": str(benchmark)})})
    alone = settings_of(models[0], read, package_versions())
    in_run = run_settings(recipe, str(BACKBONE), read.files, package_versions(), at_hand=models[0].at_hand)
    same = alone.keys() - {"model", "versions"}
    assert {key: in_run[key] for key in same} == {key: alone[key] for key in same}
    assert in_run["model"] == {"path": str(BACKBONE)} and in_run["versions"] == package_versions()


def test_the_result_of_general_problems_names_their_file_and_that_they_are_asked_as_they_stand(
    benchmark: Path, tmp_path: Path
) -> None:
    models, options = planned(benchmark)
    read = read_benchmark(planned_sources(options)[0], tmp_path, seed=42)
    general = tmp_path / "general.jsonl"
    general.write_text('{"question": "Q?", "answer": "1"}\n{"question": "R?", "answer": "2"}\n', encoding="utf-8")
    data = {"test": str(benchmark), "forgetting": ForgettingConfig(path=str(general), num_problems=1)}
    recipe = models[0].recipe.model_copy(update={"data": models[0].recipe.data.model_copy(update=data)})
    files = replace(read.files, forgetting=validate_problems(general))
    directory = RunDirectory(tmp_path / "run")
    write_json(directory.evaluation_settings, run_settings(recipe, str(BACKBONE), files, package_versions()))
    store, stage = RunStore(directory, plan_stages(recipe)), plan_stages(recipe)[0]
    store.begin(stage, 0)
    rows = [make_trajectory("g")]
    for is_general in (True, False):
        store.write_evaluation(stage, rows, summarize(rows), general=is_general)
    asked, tested = (read_json(directory.evaluation(stage, general=is_general)) or {} for is_general in (True, False))
    assert (asked["benchmark"]["name"], asked["benchmark"]["num_problems"]) == ("general", 1)
    assert (asked["prompt"]["text"], asked["prompt"]["template"]) == ("{question}", None)
    assert tested["benchmark"]["name"] == benchmark.stem and "general" not in tested
    assert asked["sampling"] == tested["sampling"] and store.general_responses(stage) == rows


def test_the_day_that_a_chat_template_is_told_is_kept_with_the_evaluation(benchmark: Path, tmp_path: Path) -> None:
    shutil.copytree(BACKBONE, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": "{{ strftime_now('%d') }}" + config["chat_template"]}))
    models, options = planned(benchmark, str(tmp_path / "model"), str(BACKBONE))
    directory = RunDirectory(str(tmp_path / "results"))
    directory.create()
    write_text(directory.prompt_date, "2020-02-29\n")  # of an evaluation that began then
    checked = check_models(models)
    asking, other = dated_models(models, checked, directory)
    (note,) = (note for note in notes_of([asking, other], checked) if "date" in note)
    assert note == "model: its chat template asks for the date and is told 2020-02-29 throughout"
    read = read_benchmark(planned_sources(options)[0], tmp_path, seed=42)
    settings = [settings_of(model, read, package_versions())["chat_template"] for model in (asking, other)]
    assert settings[0]["date"] == asking.recipe.prompt.date == "2020-02-29"
    assert other.recipe.prompt.date is None and "date" not in settings[1]


def test_another_tokenizer_is_another_model(benchmark: Path, tmp_path: Path) -> None:
    shutil.copytree(BACKBONE, tmp_path / "model")
    config = tmp_path / "model" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "added": 1}))
    one, other = planned(benchmark, str(BACKBONE), f"other={tmp_path / 'model'}")[0]
    assert one.digest == other.digest and one.files_sha256 != other.files_sha256
    (source,) = planned_sources(EvaluateOptions(benchmarks=(str(benchmark),)))
    settings = settings_of(other, read_benchmark(source, tmp_path, seed=42), package_versions())
    assert settings["model"]["files_sha256"] == other.files_sha256


@pytest.mark.parametrize("path", ["mine.rules:judge", "mine.rules.judge"])
def test_the_digest_of_the_verifiers_changes_with_the_users_own_and_none_of_it_is_run(
    path: str, benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("raise SystemExit('must not run')\n")
    rules = tmp_path / "mine" / "rules.py"
    recipe = planned(benchmark)[0][0].recipe
    recipe = recipe.model_copy(update={"verifier": recipe.verifier.model_copy(update={"custom": {"math": path}})})
    rules.write_text("def judge(solution, reference, question): return True\n")
    before = verifier_facts(recipe)
    assert before["custom"] == {"math": path} and verifier_facts(recipe) == before
    rules.write_text("def judge(solution, reference, question): return False\n")
    assert verifier_facts(recipe)["sha256"] != before["sha256"]


@pytest.mark.parametrize(
    "name",
    [
        "think.py",
        "reading.py",
        "control.py",
        "boxed.py",
        "latex.py",
        "languages.py",
        "wordlists.py",
        "judge.py",
    ],
)
def test_the_digest_of_the_verifiers_covers_what_takes_a_response_apart(
    name: str, benchmark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = planned(benchmark)[0][0].recipe
    before = verifier_facts(recipe)["sha256"]
    hashed = digests.file_digest

    def as_if_changed(path: Path) -> digests.Digest:
        return digests.Digest(sha256="0", num_bytes=0) if path.name == name else hashed(path)

    monkeypatch.setattr(digests, "file_digest", as_if_changed)
    assert verifier_facts(recipe)["sha256"] != before


def test_a_benchmark_of_another_form_is_written_out_beside_the_results(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"prompt": "1+1?", "answer": 2, "level": 3}]))
    (source,) = planned_sources(EvaluateOptions(benchmarks=(str(path),)))
    read = read_benchmark(source, tmp_path / "benchmarks", seed=42)
    assert Path(read.path).parent == tmp_path / "benchmarks" and read.index.count == 1
    assert read.digest.num_bytes == path.stat().st_size and read.written is not None
    assert read.groups["level"] == dict.fromkeys(read.index.ids, "3")
    assert read_benchmark(source, tmp_path / "benchmarks", seed=42) == read, "again, from what is there"


# -- killed and resumed -----------------------------------------------------------------------------------------------


class Dying(EvaluationFolder):
    """A journal whose process ends after so many responses; what was flushed stays."""

    def __init__(self, root: Path, *, after: int) -> None:
        super().__init__(root)
        self._left = after

    def commit(self, rows: Any) -> Any:
        if self._left <= 0:
            raise Crashed
        self._left -= 1
        fresh = super().commit(rows)
        super().rows()
        return fresh


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_an_evaluation_killed_anywhere_is_resumed_to_the_same_responses(after: int, tmp_path: Path) -> None:
    def evaluated(journal: EvaluationFolder) -> tuple[list[Trajectory], FakeProgress]:
        sync, progress = FakeSync(Disk()), FakeProgress()
        sync.sync(0, SERVED)
        explorer = FakeExplorer(FakeData(problems=(), shown=()), sync, mixed_skill, num_test=6)
        order = EvaluateOrder(stage=STAGE, config=EvaluateConfig(num_samples=3))
        rows, summary = evaluate(explorer, order, progress, journal)
        assert summary == summarize(rows, same=()) and summary.num_responses == 18
        return rows, progress

    whole, _ = evaluated(EvaluationFolder(tmp_path / "whole"))
    with pytest.raises(Crashed):
        evaluated(Dying(tmp_path / "killed", after=after))
    kept = len(EvaluationFolder(tmp_path / "killed").keys())
    assert (kept > 0) == (after > 0)
    rows, progress = evaluated(EvaluationFolder(tmp_path / "killed"))
    assert rows == whole and progress.steps[0][0] > kept and progress.steps[-1] == (18, 18)


# -- what is printed --------------------------------------------------------------------------------------------------


@pytest.fixture
def results(benchmark: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Two models on six problems: the first solves none, the second all."""
    models, options = planned(benchmark, f"weak={BACKBONE}", f"strong={BACKBONE}", max_tokens=20)
    (source,) = planned_sources(options)
    read = read_benchmark(source, tmp_path, seed=42)
    made = []
    for model, verdict in zip(map(settled, models), (Verdict.INCORRECT, Verdict.CORRECT), strict=True):
        folder = EvaluationFolder(tmp_path / model.name / "test")
        cell = Cell(model=model, benchmark=read, folder=folder, settings=settings_of(model, read, package_versions()))
        folder.open(cell.settings)
        rows = [make_trajectory(problem, verdict=verdict, round_number=0) for problem in read.index.ids]
        cell.finish(rows, summarize(rows))
        made.append(folder.result() or {})
    return made


def test_complete_evaluations_are_printed_and_compared_without_a_cluster(
    results: list[dict[str, Any]], benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "still_ray.actors.evaluations", None)
    arguments = ["evaluate", "--benchmark", str(benchmark), "--output", str(tmp_path), "--max-tokens", "20"]
    for name in ("weak", "strong"):
        arguments += ["--model", f"{name}={BACKBONE}"]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0, printed.stderr
    assert "weak on test: accuracy 0.0% [0.0%, 45.9%] on 6 problems" in printed.stdout
    assert "strong on test: accuracy 100.0% [54.1%, 100.0%]" in printed.stdout  # 1 - 0.025^(1/6)
    assert (
        "test: strong is better than weak (p = 0.0312, McNemar, exact)" in printed.stdout and "0.0312" in printed.stdout
    )
    assert printed.stderr.count("complete already") == 2
    (pair,) = json.loads((tmp_path / "comparison.json").read_text())["comparisons"]
    assert (pair["first"], pair["second"], pair["p_value"]) == ("weak", "strong", 0.03125)
    assert results[0]["by_level"] and results[0]["correct_by_problem"].keys() == results[1]["correct_by_problem"].keys()


def test_a_model_that_is_added_later_leaves_the_first_ones_result_where_it_is(
    results: list[dict[str, Any]], benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first was evaluated alone, so its result is the folder's own."""
    monkeypatch.setitem(sys.modules, "still_ray.actors.evaluations", None)
    root = tmp_path / "out"
    shutil.copytree(tmp_path / "weak" / "test", root)
    shutil.copytree(tmp_path / "strong" / "test", root / "strong" / "test")
    arguments = ["evaluate", "--benchmark", str(benchmark), "--output", str(root), "--max-tokens", "20"]
    for name in ("weak", "strong"):
        arguments += ["--model", f"{name}={BACKBONE}"]
    printed = CliRunner().invoke(app, arguments)
    assert printed.exit_code == 0 and printed.stderr.count("complete already") == 2, printed.output
    assert not (root / "weak").exists() and len(results) == 2


def test_comparisons_of_other_models_do_not_replace_each_other(results: list[dict[str, Any]], tmp_path: Path) -> None:
    def renamed(name: str) -> dict[str, Any]:
        return {**results[1], "model": {**results[1]["model"], "name": name}}

    def files() -> list[str]:
        return sorted(path.name for path in tmp_path.glob("comparison*"))

    compared(results, tmp_path)
    compared([*results, renamed("third")], tmp_path)
    assert files() == ["comparison.json"], "a model was added: the first comparisons are among the new ones"
    before = (tmp_path / "comparison.json").read_text()
    compared([results[0], renamed("fourth")], tmp_path)
    compared([results[0], renamed("fourth")], tmp_path)
    other, kept = files()
    assert kept == "comparison.json" and (tmp_path / kept).read_text() == before
    assert list(json.loads((tmp_path / other).read_text())["models"]) == ["weak", "fourth"]


def test_rows_that_repeat_earlier_ones_are_announced(
    benchmark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "still_ray.actors.evaluations", None)
    lines = benchmark.read_text().splitlines(keepends=True)
    twice = tmp_path / "twice.jsonl"
    twice.write_text("".join([*lines, *lines[:2]]))
    done = CliRunner().invoke(
        app, ["evaluate", "--model", str(BACKBONE), "--benchmark", str(twice), "--output", str(tmp_path / "out")]
    )
    assert "2 rows of twice repeat earlier ones and are left out" in done.stderr


def test_what_models_were_not_treated_alike_in_is_named(results: list[dict[str, Any]], tmp_path: Path) -> None:
    assert differing_settings(results) == []
    results[1]["sampling"]["max_tokens"] = 30
    assert differing_settings(results) == ["sampling.max_tokens"]
    compared(results, tmp_path)
    assert json.loads((tmp_path / "comparison.json").read_text())["settings_that_differ"] == ["sampling.max_tokens"]


@pytest.mark.parametrize(("num_samples", "ks"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_pass_at_k_is_printed_for_powers_of_two_and_for_all_samples(num_samples: int, ks: list[int]) -> None:
    assert shown_ks(num_samples) == ks


def test_a_repetition_is_told_in_one_line_for_each_thing() -> None:
    found = Repetition(
        inputs={"model": ("aa", "bb"), "chat template": ("cc", None)},
        versions={"vllm": ("1", "2")},
        num_responses=30,
        num_same=18,
        other_text=tuple(f"p{n:02d}" for n in range(12)),
        other_verdict=("p03",),
        accuracy=(0.5, 0.53),
    )
    assert lines_of(found) == [
        "model: differs: sha256 aa, now bb",
        "model files: the same",
        "benchmark: the same",
        "prompt template: the same",
        "chat template: cannot be told: no digest",
        "verifier: the same",
        "vllm: version 1, now 2",
        "responses: 18 of 30 the same, word for word",
        "response differs: 12 problems: p00, p01, p02, p03, p04, p05, p06, p07, p08, p09 and 2 more",
        "verdict differs: 1 problems: p03",
        "accuracy: 50.0%, now 53.0%",
        "it does not match",
    ]
