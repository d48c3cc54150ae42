"""One whole run on the real components, and everything that its run directory must hold."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from still_ray.cli.run import run_recipe
from tests.prometheus import without_series
from tests.runs import (
    COMMAND,
    ENDOFTEXT_ID,
    IM_END_ID,
    Run,
    base_model_eos,
    events_of,
    json_of,
    keys_of,
    outliving,
    rows_of,
    small_recipe,
    started,
    write_recipe,
)
from tests.watching import Watcher, tensorboard_series

pytestmark = pytest.mark.integration

TRAJECTORY_COLUMNS = {
    *("round", "problem_id", "sample_index", "domain", "question", "answer", "response", "thought", "solution"),
    *("extracted", "verdict", "policy_version", "seed", "num_tokens", "thought_tokens", "mean_logprob", "perplexity"),
    *("finish_reason", "sampler", "latency_s", "created_at"),
}

NAME = "test 数学/1"
"""Neither ASCII nor the name of a folder."""


@pytest.fixture(scope="module")
def watcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watcher]:
    """What others see of the run while it goes on."""
    watcher = Watcher(tmp_path_factory.mktemp("prometheus"))
    yield watcher
    watcher.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, watcher: Watcher) -> Run:
    """Imitate, an SFT round by object store, a DPO round with adaptive exploration, from a base model's eos."""
    folder = tmp_path_factory.mktemp("loop")
    adaptive = {"initial": 2, "step": 2}
    rounds = [{"method": "sft"}, {"method": "dpo", "explore": {"adaptive": adaptive}}]
    trainer = {"logging_steps": 1, "report_to": ["tensorboard"]}
    model = {"path": str(base_model_eos(folder / "model")), "max_length": 512}
    watched = small_recipe(name=NAME, model=model, rounds=rounds, sampler={"engine_statistics": True}, trainer=trainer)
    recipe = write_recipe(folder, watched)
    with started(recipe, folder / "run") as run:
        children: set[psutil.Process] = set()
        while run.process.poll() is None:
            children |= set(run.descendants(""))
            watcher.look(run)
            try:
                run.process.wait(2)
            except subprocess.TimeoutExpired:
                continue
        assert run.wait() == 0, run.text()
        assert outliving(list(children)) == [], "processes left behind"
    return run


def test_every_stage_leaves_what_the_contract_says(finished: Run) -> None:
    rounds = finished.run_dir / "rounds"
    stages = ["000-backbone", "000-imitate", "001-explore", "001-sft", "002-explore", "002-dpo"]
    assert {path.name for path in rounds.iterdir()} == set(stages)
    assert all((rounds / stage / "manifest.json").exists() for stage in stages)
    for stage in ("000-imitate", "001-sft"):
        assert rows_of(rounds / stage / "training_set.parquet")
    assert rows_of(rounds / "002-dpo/pairs.parquet")
    for stage in ("000-backbone", "000-imitate", "001-sft", "002-dpo"):
        assert len(rows_of(rounds / stage / "eval.parquet")) == json_of(rounds / stage / "eval.json")["num_problems"]
    versions = [line["policy_version"] for line in json_of(finished.run_dir / "summary.json")["stages"]]
    assert versions == [0, 1, 2, 3]
    resolved = yaml.safe_load((finished.run_dir / "recipe.yaml").read_text())
    assert resolved["imitate"]["optimizer"]["adam_beta2"] == 0.999, "defaults are written out"


def test_every_file_of_the_run_has_the_mode_that_the_umask_leaves(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    plain = (tmp_path / "plain").stat().st_mode
    assert [path for path in finished.run_dir.rglob("*") if path.is_file() and path.stat().st_mode != plain] == []


def test_every_sample_is_stored_once_with_its_columns(finished: Run) -> None:
    counts = keys_of(finished.run_dir)
    assert set(counts.values()) == {1}
    per_round = Counter(number for number, _, _ in counts)
    assert per_round[1] == 60 * 4
    rows = rows_of(finished.run_dir / "trajectories/round=001/all.parquet")
    assert set(rows[0]) >= TRAJECTORY_COLUMNS
    assert {row["policy_version"] for row in rows} == {1}
    assert {row["sampler"] for row in rows} == {"replica-0", "replica-1"}
    assert len({row["seed"] for row in rows}) == len(rows)


def test_adaptive_exploration_gives_more_samples_to_what_the_first_wave_left_unsolved(finished: Run) -> None:
    rows = rows_of(finished.run_dir / "trajectories/round=002/all.parquet")
    solved_at_once = {row["problem_id"] for row in rows if row["sample_index"] < 2 and row["verdict"] == "correct"}
    samples = Counter(row["problem_id"] for row in rows)
    assert {problem for problem, count in samples.items() if count == 2} == solved_at_once
    assert set(samples.values()) == {2, 4}
    facts = json_of(finished.run_dir / "rounds/002-explore/manifest.json")
    assert facts["num_rollouts_saved"] == 2 * len(solved_at_once)


def test_imitation_teaches_the_format(finished: Run) -> None:
    backbone, imitated = json_of(finished.run_dir / "summary.json")["stages"][:2]
    assert backbone["verdicts"]["correct"] < imitated["verdicts"]["correct"]
    assert imitated["verdicts"]["unparsable"] < imitated["num_problems"] / 2


def test_the_end_of_a_turn_ends_a_response_although_the_models_eos_is_another(finished: Run) -> None:
    summary = json_of(finished.run_dir / "summary.json")["stages"]
    assert summary[1]["truncation_rate"] < 0.5, "the imitated policy ends its turns"
    for stage in ("000-imitate", "001-sft", "002-dpo"):
        generation = json_of(finished.run_dir / f"rounds/{stage}/checkpoint/generation_config.json")
        assert generation["eos_token_id"] == [ENDOFTEXT_ID, IM_END_ID]
        responses = [row["response"] for row in rows_of(finished.run_dir / f"rounds/{stage}/eval.parquet")]
        assert not any("<|im_end|>" in response for response in responses)
    said = f"its chat template ends a turn with <|im_end|> ({IM_END_ID}), its own eos is {ENDOFTEXT_ID}"
    assert said in finished.text()
    end = json_of(finished.run_dir / "evaluation.json")["end_of_turn"]
    assert (end["token_id"], end["tokenizer_eos_id"], end["generation_eos_ids"]) == (
        *(IM_END_ID, ENDOFTEXT_ID),
        [ENDOFTEXT_ID],
    )


def test_held_out_questions_never_enter_training(finished: Run) -> None:
    held_out = {json.loads(line)["problem"] for line in (finished.run_dir / "world/test.jsonl").open()}
    evaluated = {row["question"] for row in rows_of(finished.run_dir / "rounds/001-sft/eval.parquet")}
    assert evaluated == held_out
    trained = [row for path in finished.run_dir.glob("rounds/*/training_set.parquet") for row in rows_of(path)]
    trained += rows_of(finished.run_dir / "rounds/002-dpo/pairs.parquet")
    explored = [row for path in finished.run_dir.glob("trajectories/*/*.parquet") for row in rows_of(path)]
    assert trained and explored
    assert not held_out & {row["question"] for row in [*trained, *explored]}


def test_every_training_row_names_its_source(finished: Run) -> None:
    demonstrations = {json.loads(line)["id"] for line in (finished.run_dir / "world/demonstrations.jsonl").open()}
    correct = {
        f"{row['round']}/{row['problem_id']}/{row['sample_index']}"
        for row in rows_of(finished.run_dir / "trajectories/round=001/all.parquet")
        if row["verdict"] == "correct"
    }
    rows = rows_of(finished.run_dir / "rounds/001-sft/training_set.parquet")
    by_source = {
        kind: {row["source_id"] for row in rows if row["source"] == kind} for kind in ("demonstration", "trajectory")
    }
    assert by_source["demonstration"] == demonstrations
    assert by_source["trajectory"] and by_source["trajectory"] <= correct


def test_every_sync_was_proved_and_could_have_failed(finished: Run) -> None:
    for stage in ("000-imitate", "001-sft", "002-dpo"):
        sync = json_of(finished.run_dir / f"rounds/{stage}/manifest.json")["sync"]
        assert sync["transport"] == "object_store" and sync["num_replicas"] == 2 and sync["num_bytes"] > 0
        assert sync["max_logprob_difference"] < 1e-2
        assert sync["probe_shift"] > 10 * sync["max_logprob_difference"], "the probe tells the versions apart"
        assert sync["num_digests"] > 0 and not sync["weak"]


def test_output_is_for_people(finished: Run) -> None:
    text = finished.text()
    for stage in ("000-backbone", "000-imitate", "001-explore", "001-sft", "002-dpo"):
        assert stage in text
    assert "tokens/s" in text and "loss" in text and "95 % interval" in text
    checkpoint = finished.run_dir / "rounds/002-dpo/checkpoint"
    assert f'vllm.LLM("{checkpoint}")' in text and f'from_pretrained("{checkpoint}")' in text
    assert "Warning" not in text and "WARNING" not in text and "LOAD_FAST" not in text
    assert len(text.splitlines()) < 200


def test_the_same_command_again_has_nothing_to_do(finished: Run) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.run_dir.glob("rounds/*/manifest.json")}
    run_recipe(finished.log.parent / "recipe.yaml", str(finished.run_dir), [])
    assert before == {path: path.stat().st_mtime_ns for path in finished.run_dir.glob("rounds/*/manifest.json")}


def test_status_tells_where_the_run_stands(finished: Run) -> None:
    printed = subprocess.run([COMMAND, "status", str(finished.run_dir), "--json"], capture_output=True, check=True)
    status = json.loads(printed.stdout)
    assert status["status"] == "complete" and status["policy_version"] == 3
    assert [line["name"] for line in status["stages"]] == ["000-backbone", "000-imitate", "001-sft", "002-dpo"]


def test_another_shell_sees_the_run_on_its_cluster(finished: Run, watcher: Watcher) -> None:
    (seen,) = watcher.status
    assert seen["name"] == NAME and seen["run_dir"] == str(finished.run_dir)
    assert (seen["stage"], seen["round"], seen["policy_version"]) == ("000-imitate", 0, 0)
    steps = json_of(finished.run_dir / "rounds/000-imitate/manifest.json")["training"]["steps"]
    assert 0 < seen["done"] <= seen["total"] == steps and seen["dashboard"] in finished.text()
    assert seen["pools"]["replica"] == {"wanted": 2, "ready": 2, "starting": 0, "num_died": 0, "num_lost": 0}


def test_the_dashboard_names_actors_tasks_datasets_and_train_runs(finished: Run, watcher: Watcher) -> None:
    (train_run,) = watcher.train_runs
    assert train_run["status"] == "RUNNING"
    named = {actor["name"]: actor["repr_name"] for actor in watcher.actors}
    for name in ("replica-0", "replica-1", "verifier-0"):
        assert named[name] == name
    assert {f"mailbox-{train_run['name']}", f"trainer-group-{train_run['name']}"} <= named.keys()
    assert any(name.startswith(f"run:{NAME}:") for name in named)
    assert {"000-imitate: train", "001-explore: generate", "001-explore: judge", "sync version 1"} <= watcher.tasks
    assert any("000-imitate-evaluate: problems" in task for task in watcher.tasks)
    assert any(name.startswith("001-explore") for name in watcher.datasets)


def test_every_expression_of_the_grafana_dashboard_has_series(finished: Run, watcher: Watcher) -> None:
    if watcher.server is None:
        pytest.skip("no Prometheus: tools/prometheus.sh found and fetched none")
    assert without_series(watcher.server, occasions=("always", "training", "statistics")) == []
    # What was recorded is what happened, as far as it was scraped: a process reports every 10 s.
    (explored,) = watcher.server.series('max(ray_still_ray_progress{stage="001-sft"})')
    assert float(explored["values"][-1][1]) <= 1
    counted = watcher.server.series("sum(ray_still_ray_verdicts_total)")
    manifests = [json_of(path) for path in finished.run_dir.glob("rounds/*/manifest.json")]
    recorded = [manifest.get(name) for manifest in manifests for name in ("evaluation", "in_form")]
    evaluations = [facts for facts in recorded if facts]
    assert len(evaluations) == 5, "the backbone is asked as it comes and as the run asks; three policies"
    judged = sum(keys_of(finished.run_dir).values()) + sum(facts["num_responses"] for facts in evaluations)
    assert 60 <= float(counted[0]["values"][-1][1]) <= judged


def test_a_tracker_holds_the_loss_of_every_step(finished: Run) -> None:
    for stage in ("000-imitate", "001-sft", "002-dpo"):
        events = events_of(finished.run_dir, "train/loss", stage)
        logged = [(int(event["labels"]["step"]), event["value"]) for event in events]
        tracked = tensorboard_series(finished.run_dir / "trackers/tensorboard" / stage, "train/loss")
        assert [step for step, _ in tracked] == [step for step, _ in logged] and len(logged) > 1
        assert [value for _, value in tracked] == pytest.approx([value for _, value in logged])


def test_fresh_vllm_synced_replicas_and_transformers_say_the_same(finished: Run, tmp_path: Path) -> None:
    """Greedy responses of the last policy: by replicas synced in place, by a fresh engine, by transformers."""
    checkpoint = finished.run_dir / "rounds/002-dpo/checkpoint"
    synced = {row["problem_id"]: row for row in rows_of(finished.run_dir / "rounds/002-dpo/eval.parquet")}
    command = [
        COMMAND,
        "evaluate",
        "--model",
        str(checkpoint),
        "--benchmark",
        str(finished.run_dir / "world/test.jsonl"),
    ]
    options = [
        "--output",
        str(tmp_path),
        "--max-tokens",
        "200",
        "--num-problems",
        "6",
        "--set",
        "sampler.num_replicas=1",
    ]
    printed = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert printed.returncode == 0, printed.stderr
    fresh = rows_of(tmp_path / "eval.parquet")
    assert len(fresh) == 6
    assert "unparsable" in printed.stdout and "accuracy" in printed.stdout
    assert f"ends a turn with <|im_end|> ({IM_END_ID})" in " ".join(printed.stderr.split())
    assert json_of(tmp_path / "eval.json")["end_of_turn"]["generation_eos_ids"] == [ENDOFTEXT_ID, IM_END_ID]
    for row in fresh:
        assert row["response"] == synced[row["problem_id"]]["response"]
        assert row["num_tokens"] == synced[row["problem_id"]]["num_tokens"]
        response, num_tokens = greedy_by_transformers(checkpoint, row["question"])
        assert (row["response"], row["num_tokens"]) == (response, num_tokens)


def greedy_by_transformers(checkpoint: Path, question: str) -> tuple[str, int]:
    """Text and number of tokens, the end token counted but not shown."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    user = (checkpoint / "prompt_template.txt").read_text().replace("{question}", question)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": user}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    with torch.no_grad():
        output = model.generate(prompt, max_new_tokens=200, do_sample=False, attention_mask=torch.ones_like(prompt))
    tokens = output[0, prompt.shape[1] :].tolist()
    text = tokenizer.decode([token for token in tokens if token not in (ENDOFTEXT_ID, IM_END_ID)])
    return str(text), len(tokens)
