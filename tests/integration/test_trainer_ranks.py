"""Two real ranks on gloo, and one: TRL under DeepSpeed ZeRO-3 against plain torch, and what a stage leaves behind."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, get_cosine_schedule_with_warmup

from still_ray.algo.optimizer_steps import total_learning_rate, warmup_steps
from still_ray.algo.placement import resolve_trainer
from still_ray.algo.planning.movement import largest_movable
from still_ray.trainer.environment import trainer_environment
from still_ray.trainer.schedule import row_order
from still_ray.types import ProbeSequence
from still_ray.weight_sync.digests import digests_of, update_digest
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.proof import Claim, prove, shift
from tests.integration.trainer_rank import (
    BY_TOKENS,
    GLOBAL_BATCH,
    GRADIENT_RATE,
    KTO,
    PROBES,
    SFT,
    SFT_BFLOAT16,
    TRAINER,
    examples,
    judged,
)
from tests.tiny_model import build_tiny_checkpoint

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 600
REPLICAS = (("replica-0", 1, 1), ("replica-1", 2, 2))
"""Name, tensor-parallel size and rank offset."""
NUM_ROWS = 24
STEPS = 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two ranks ran every scenario."""
    path = tmp_path_factory.mktemp("ranks")
    build_tiny_checkpoint(path / "start", seed=0)
    build_tiny_checkpoint(path / "untied", seed=1, tied=False)
    port = _free_port()
    ranks = [_start_rank(path, str(rank), rank, world_size=2, port=port) for rank in (0, 1)]
    ranks.append(_start_rank(path, "alone", 0, world_size=1, port=_free_port()))
    replicas = [_start_replica(path, *arguments) for arguments in REPLICAS]
    try:
        outputs = [process.communicate(timeout=TIME_LIMIT_S)[0] for process in [*ranks, *replicas]]
    finally:
        for process in [*ranks, *replicas]:
            process.kill()
    assert [process.returncode for process in [*ranks, *replicas]] == [0] * 5, "\n".join(outputs)
    (path / "output.txt").write_text("\n".join(outputs[:3]), encoding="utf-8")
    return path


def _start_replica(path: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.replica_process", str(path), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _start_rank(path: Path, name: str, rank: int, *, world_size: int, port: int) -> subprocess.Popen[str]:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
    group = ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.trainer_rank", str(path), name],
        env=os.environ
        | trainer_environment(resolve_trainer(TRAINER, has_gpus=False), use_gpu=False)
        | {name: str(v) for name, v in group.items()},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def seen(directory: Path) -> dict[str, Any]:
    """What rank 0 saw."""
    return _seen(directory, 0)


def _seen(directory: Path, rank: int | str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / f"seen-{rank}.json").read_text(encoding="utf-8"))
    return found


def _model(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def _logprobs(model: Any, ids: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    chosen: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    return chosen


def _rows() -> list[Any]:
    return examples()[:NUM_ROWS]


def _batches() -> list[list[Any]]:
    rows = _rows()
    lengths = [len(row.prompt_ids) + len(row.completion_ids) for row in rows]
    order = row_order(lengths, epochs=2.0, global_batch_size=GLOBAL_BATCH, seed=3)
    return [[rows[i] for i in order[at : at + GLOBAL_BATCH]] for at in range(0, len(order), GLOBAL_BATCH)]


def _plain_loss(model: Any, batch: list[Any]) -> Tensor:
    """Mean over the batch's response tokens, row by row, without padding."""
    total, count = torch.zeros(()), 0
    for row in batch:
        ids = torch.tensor([row.prompt_ids + row.completion_ids])
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        total = total - logprobs[len(row.prompt_ids) - 1 :].sum()
        count += len(row.completion_ids)
    return total / count


def test_first_loss_is_the_mean_over_response_tokens_alone(directory: Path, seen: dict[str, Any]) -> None:
    with torch.no_grad():
        expected = _plain_loss(_model(directory / "start"), _batches()[0]).item()
    assert seen["sft"]["progress"][0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_two_sharded_ranks_train_as_plain_torch_does(directory: Path) -> None:
    model = _model(directory / "start").train()
    optimizer = _adamw(model)
    warmup = warmup_steps(total_steps=STEPS, warmup_ratio=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup + 1, STEPS + 1)
    schedule.step()  # its first rate is 0
    for batch in _batches():
        _plain_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), SFT.optimizer.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    plain = dict(model.named_parameters())
    for run in ("sft", "sharded"):
        trained = load_file(directory / run / "model.safetensors")
        worst = {name: (tensor - plain[name]).abs().max().item() for name, tensor in trained.items()}
        # A key's bias shifts all scores of a query alike: its gradient is noise around zero, which Adam makes large.
        assert max(value for name, value in worst.items() if "k_proj.bias" not in name) < 2e-4, worst


def _adamw(model: Any) -> torch.optim.Optimizer:
    """No weight decay on norms and biases, as in transformers."""
    free = [value for name, value in model.named_parameters() if "norm" in name or "bias" in name]
    decayed = [value for name, value in model.named_parameters() if not ("norm" in name or "bias" in name)]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": SFT.optimizer.weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=SFT.optimizer.learning_rate,
    )


@pytest.mark.parametrize("run", ["sft", "dpo"])
def test_every_step_has_a_learning_rate_from_the_first_to_the_last(seen: dict[str, Any], run: str) -> None:
    rates = [record["learning_rate"] for record in seen[run]["progress"]]
    assert len(rates) == STEPS and min(rates) > 0
    assert rates[0] == pytest.approx(max(rates) / 2), "one step of warm-up, half-way between none and the peak"


def test_arguments_reach_deepspeed_and_trl(seen: dict[str, Any]) -> None:
    assert seen["handed_on"] == [4_000_000, 1e-10]


def test_sft_lowers_its_loss_and_counts_its_rows(seen: dict[str, Any]) -> None:
    progress, result = seen["sft"]["progress"], seen["sft"]["outcome"]["result"]
    assert progress[-1]["loss"] < progress[0]["loss"] - 0.5
    assert result["final_loss"] == progress[-1]["loss"]
    assert (result["steps"], result["num_examples"], result["num_skipped"]) == (STEPS, NUM_ROWS, 1)
    assert result["num_tokens"] == 2 * sum(len(row.prompt_ids) + len(row.completion_ids) for row in _rows())
    assert [record["step"] for record in progress] == list(range(1, STEPS + 1))
    assert {record["total_steps"] for record in progress} == {STEPS}
    assert progress[-1]["epoch"] == pytest.approx(2.0)
    assert all(record["tokens_per_s"] > 0 for record in progress)


def test_dpo_starts_at_its_reference_and_widens_the_margin(seen: dict[str, Any]) -> None:
    progress = seen["dpo"]["progress"]
    assert progress[0]["metrics"]["rewards/margins"] == pytest.approx(0.0, abs=1e-4)
    assert progress[0]["loss"] > math.log(2)  # log 2 for the preference, the rest from the SFT term
    assert progress[-1]["metrics"]["rewards/margins"] > progress[1]["metrics"]["rewards/margins"] + 0.05
    assert progress[-1]["loss"] < progress[0]["loss"]


def test_the_start_model_under_another_path_is_the_same_reference(directory: Path, seen: dict[str, Any]) -> None:
    """By path it is loaded alone, asked and freed before the policy comes; else the policy is asked."""
    assert [record["metrics"] for record in seen["dpo-by-path"]["progress"]] == [
        record["metrics"] for record in seen["dpo"]["progress"]
    ]
    asked, loaded = (load_file(directory / run / "model.safetensors") for run in ("dpo", "dpo-by-path"))
    assert all(torch.equal(asked[name], loaded[name]) for name in asked)


def test_the_first_kto_loss_is_the_formula_over_both_ranks(directory: Path, seen: dict[str, Any]) -> None:
    """The policy starts from one model and is held to another; the KL term of a forward pass is of both ranks."""
    models = [_model(directory / name) for name in ("sft", "start")]

    def ratio(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
        policy, reference = (sum(_logprobs(m, prompt + completion)[len(prompt) - 1 :]) for m in models)
        return policy - reference

    rows = judged()[:NUM_ROWS]
    order = row_order([row.length for row in rows], epochs=2.0, global_batch_size=GLOBAL_BATCH, seed=3)
    step = [rows[index] for index in order[:GLOBAL_BATCH]]
    losses = []
    for at in range(0, GLOBAL_BATCH, 4):  # two ranks, two rows each, whose completions change places
        passed = step[at : at + 4]
        others = [passed[1], passed[0], passed[3], passed[2]]
        pairs = zip(passed, others, strict=True)
        kl = max(0.0, sum(ratio(row.prompt_ids, other.completion_ids) for row, other in pairs) / 4)
        for row in passed:
            reward = KTO.beta * (ratio(row.prompt_ids, row.completion_ids) - kl)
            side, weight = (1, KTO.desirable_weight) if row.desirable else (-1, KTO.undesirable_weight)
            losses.append(weight * (1 - 1 / (1 + math.exp(-side * reward))))
    assert seen["kto"]["progress"][0]["loss"] == pytest.approx(sum(losses) / GLOBAL_BATCH, abs=1e-4)


def test_kto_makes_desirable_responses_likelier_than_undesirable_ones(directory: Path, seen: dict[str, Any]) -> None:
    progress, rows = seen["kto"]["progress"], judged()[:NUM_ROWS]
    losses = [record["loss"] for record in progress]
    assert len(losses) == STEPS and sum(losses[3:]) < sum(losses[:3]) - 0.1, "two passes over the same rows"
    assert all(record["metrics"]["kl"] >= 0 for record in progress)
    before, after = (_model(directory / name) for name in ("sft", "kto"))
    gains: dict[bool, list[float]] = {True: [], False: []}
    for row in rows:
        start = len(row.prompt_ids) - 1
        gained = sum(_logprobs(after, row.sequence)[start:]) - sum(_logprobs(before, row.sequence)[start:])
        gains[row.desirable].append(gained)
    assert min(gains[True]) > max(gains[False]), gains


@pytest.mark.parametrize(
    ("run", "start"),
    [("sft", "start"), ("dpo", "sft"), ("untied-zero-2", "untied"), ("bfloat16", "start"), ("lora-dpo", "lora")],
)
def test_the_share_of_changed_weights_is_that_of_the_two_checkpoints(
    directory: Path, seen: dict[str, Any], run: str, start: str
) -> None:
    before, after = (load_file(directory / name / "model.safetensors") for name in (start, run))
    changed = sum(int((after[name] != before[name].to(after[name].dtype)).sum()) for name in after)
    share = seen[run]["outcome"]["result"]["share_changed"]
    assert share == changed / sum(tensor.numel() for tensor in after.values())
    assert 0.01 < share < 0.9 if run == "bfloat16" else share > 0.5


def test_no_weight_moves_that_the_sum_of_learning_rates_cannot_move(directory: Path) -> None:
    before, after = (load_file(directory / name / "model.safetensors") for name in ("start", "bfloat16"))
    total = total_learning_rate(peak=SFT_BFLOAT16.optimizer.learning_rate, total_steps=STEPS, warmup_ratio=0.0)
    limit = largest_movable(total)
    rounded = {name: tensor.bfloat16() for name, tensor in before.items()}
    moved = [(after[name] != start) for name, start in rounded.items()]
    sizes = torch.cat([start.abs()[changed] for start, changed in zip(rounded.values(), moved, strict=True)])
    assert len(sizes) and sizes.max().item() <= limit
    assert sizes.max().item() > limit / 8, "the limit is not idle"


def test_bfloat16_gradients_are_added_up_and_reduced_in_float32(seen: dict[str, Any]) -> None:
    assert seen["bfloat16/gradients"]["finer_than_bfloat16"] > 0.5
    assert seen["bfloat16/gradients"]["reduced_in"] == "torch.float32"


@pytest.mark.parametrize(
    ("rank", "stage"),
    [
        *((0, "bf16"), (1, "bf16"), (0, "bf16-sharded"), ("alone", "alone-1"), ("alone", "alone-3")),
        ("alone", "alone-5"),  # an adapter
    ],
)
def test_a_policy_that_has_not_moved_has_no_rewards_in_bfloat16(directory: Path, rank: int | str, stage: str) -> None:
    """Exactly none, in every batch of two epochs: no accuracy either, so no margin is above the mean of 0."""
    progress = _seen(directory, rank)[stage]["progress"]
    assert len(progress) == STEPS
    rewards = [{name: value for name, value in record["metrics"].items() if "rewards" in name} for record in progress]
    nothing = {f"rewards/{name}": 0.0 for name in ("chosen", "rejected", "margins", "accuracies")}
    assert rewards == [nothing] * STEPS
    assert len({record["metrics"]["logps/rejected"] for record in progress}) > 1, "the batches do differ"


@pytest.mark.parametrize("stage", ["alone-4", "alone-6"])
def test_a_kto_policy_that_has_not_moved_has_no_rewards_and_no_kl(directory: Path, stage: str) -> None:
    """In bfloat16 with gradient checkpointing, in every batch of two epochs; all weights, and an adapter."""
    progress = _seen(directory, "alone")[stage]["progress"]
    assert len(progress) == STEPS
    for record in progress:
        metrics = record["metrics"]
        assert {value for name, value in metrics.items() if name == "kl" or "rewards" in name} == {0.0}


@pytest.mark.parametrize(
    ("run", "scores"), [("sft", "scores"), ("untied-zero-2", "untied_scores"), ("lora", "lora_scores")]
)
def test_saved_checkpoint_says_what_the_trainer_says(
    directory: Path, seen: dict[str, Any], run: str, scores: str
) -> None:
    model = _model(directory / run)
    for ids, scored in zip(PROBES, seen[scores], strict=True):
        assert scored == pytest.approx(_logprobs(model, ids), abs=1e-4)
    probes = seen[run]["outcome"]["probes"]
    assert [tuple(probe["token_ids"]) for probe in probes] == list(PROBES)
    assert [probe["logprobs"] for probe in probes] == seen[scores]


def test_reading_the_weights_out_leaves_the_model_as_it_was(seen: dict[str, Any]) -> None:
    assert seen["scores_after_read_out"] == seen["scores"]


def test_ranks_measure_the_same_rate_of_their_links_and_a_rank_alone_none(directory: Path) -> None:
    first, second = (_seen(directory, rank)["all_gather_bytes_per_s"] for rank in (0, 1))
    assert first == second, "the slowest rank counts, and all stop at the same size"
    assert 1e6 < first < 1e12, "bytes in a second, over this machine's loopback"
    assert _seen(directory, "alone")["all_gather_bytes_per_s"] == 0.0


def test_every_rank_has_the_same_scores(directory: Path, seen: dict[str, Any]) -> None:
    assert _seen(directory, 1)["scores"] == seen["scores"]


@pytest.mark.parametrize("run", ["sft", "sharded", "untied-zero-2", "lora"])
def test_the_source_yields_the_saved_checkpoint(directory: Path, seen: dict[str, Any], run: str) -> None:
    saved = load_file(directory / run / "model.safetensors")
    read = load_file(directory / f"{run}-source.safetensors")
    assert read.keys() == saved.keys()
    assert all(torch.equal(read[name], saved[name]) for name in saved)
    metadata = seen[f"{run}/source"]["metadata"]
    assert {name: (dtype, tuple(shape)) for name, dtype, shape in metadata} == {
        name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in saved.items()
    }
    names = [name for name, _, _ in metadata]
    assert seen[f"{run}/source"]["second_pass"] == names
    assert [name for group in seen[f"{run}/source"]["groups"] for name in group] == names
    assert seen[f"{run}/source"]["only_helping"] == []


def test_the_source_holds_one_group_at_a_time(seen: dict[str, Any]) -> None:
    source = seen["sharded/source"]
    assert source["held_between_groups"] == [0] * len(source["groups"])
    layers = [group for group in source["groups"] if len(group) > 1]
    assert [{name.split(".")[2] for name in group} for group in layers] == [{"0"}, {"1"}]


@pytest.mark.parametrize("name", ["replica-0", "replica-1"])
def test_every_replica_serves_what_the_trainer_broadcast(directory: Path, seen: dict[str, Any], name: str) -> None:
    """The proof of a sync, on a replica of one rank and on one of two, which hold half a model each."""
    replica = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
    probes = [ProbeSequence(**probe) for probe in seen["sharded"]["outcome"]["probes"]]
    assert shift([probe.start_logprobs for probe in probes], replica["before"]) < 1e-4, "it served the start model"
    claim = Claim(sampler=name, policy_version=1, probes=probes, tolerance=1e-3)
    proof = prove(claim, replica["after"], replica["before"])
    assert proof.shift > 0.1 and not proof.weak
    held = digests_of(load_file(directory / "sharded-source.safetensors").items())
    assert set(replica["digests"]) == {update_digest(held)} and len(replica["digests"]) == (1, 2)[name == "replica-1"]
    assert replica["version"] == 1
    assert "cannot read a payload of transport 'pigeon'" in replica["refusal"], "an update refused before this one"


def test_a_shard_that_kept_its_old_weights_is_seen(directory: Path, seen: dict[str, Any]) -> None:
    """Every rank received every bit; the digests cannot know what became of it."""
    replica = json.loads((directory / "replica-1.json").read_text(encoding="utf-8"))
    probes = [ProbeSequence(**probe) for probe in seen["sharded"]["outcome"]["probes"]]
    claim = Claim(sampler="replica-1", policy_version=1, probes=probes, tolerance=1e-3)
    assert len(replica["lost_shard"]["digests"]) == 2
    with pytest.raises(SyncError, match="replica-1 does not serve policy version 1"):
        prove(claim, replica["lost_shard"]["scores"], replica["before"])


def test_a_dead_worker_takes_its_idle_engine_down(directory: Path) -> None:
    death = json.loads((directory / "replica-1.json").read_text(encoding="utf-8"))["death"]
    assert death["owner"] == "one of its worker processes died"
    assert death["caller"].startswith("the engine of sampler replica-1 died")


def test_only_the_first_rank_copies_what_is_broadcast(directory: Path) -> None:
    assert [_seen(directory, rank)["yielded_by_a_helper"] for rank in (0, 1)] == [0, 0]


def test_ranks_that_run_out_of_memory_agree_and_stay_in_step(directory: Path) -> None:
    first, second = (_seen(directory, rank) for rank in (0, 1))
    assert first["short_of_nothing"] == second["short_of_nothing"] == ""
    assert first["shortage"] == second["shortage"]
    assert first["shortage"].startswith("rank 1 has no memory for a group of ")
    assert first["shortage"].endswith(" MiB: CUDA out of memory")
    assert first["block_without_memory"] == [1, "no memory for a block of weights: CUDA out of memory"]
    assert second["block_without_memory"] == [0, ""]


@pytest.mark.parametrize("rank", [0, 1, "alone"])
def test_a_released_stage_leaves_no_tensor(directory: Path, rank: int | str) -> None:
    """SFT, DPO, KTO on one rank, and of adapters; on two also after a stage that died, in ZeRO-2, and in bfloat16."""
    left = _seen(directory, rank)["left"]
    assert len(left) == 7
    assert not any(left.values()), left


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_rank_finds_or_raises_is_so_for_all(directory: Path, rank: int) -> None:
    seen = _seen(directory, rank)["decisions"]
    cause = repr(OSError(28, "No space left on device"))
    assert (seen["from_first"], seen["on_every_rank"]) == (0, rank)
    assert seen["first_fails"] == ["RunError", "rank 0 fails", cause, "its actor"]
    assert seen["second_fails"] == ["RunError", "rank 1 fails", cause, "its actor"]
    assert seen["unpicklable"][0] == "RuntimeError" and seen["unpicklable"][1].startswith("UnpicklableError: ")
    assert seen["others"][:2] == ["RuntimeError", "ranks [1] have other rows than rank 0: do all see the same files?"]
    assert seen["same"] == []


def test_every_process_group_waits_as_long_as_the_recipe_says(seen: dict[str, Any]) -> None:
    """DeepSpeed makes one of its own."""
    timeouts_s = seen["decisions"]["timeouts_s"]
    assert len(timeouts_s) > 1
    assert set(timeouts_s) == {TRAINER.collective_timeout_s}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_state_that_one_rank_does_not_see_is_an_error_on_all(directory: Path, rank: int) -> None:
    state = directory / "another-view.partial-state" / "checkpoint-2"
    why = f"{state}: {socket.gethostname()} does not see the state that rank 0 continues from"
    assert _seen(directory, rank)["unseen_state"] == why


def test_an_interrupted_stage_ends_as_an_uninterrupted_one(directory: Path, seen: dict[str, Any]) -> None:
    assert "checkpoint-2" in seen["state"]
    assert seen["resumed"]["resumed_from_step"] == seen["resumed"]["result"]["resumed_from_step"] == 2
    assert seen["state_left"], "kept until the checkpoint has its record"
    whole = load_file(directory / "whole" / "model.safetensors")
    resumed = load_file(directory / "resumed" / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# -- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BY_TOKENS)
def test_passes_by_tokens_have_the_gradient_and_the_loss_of_rows_one_by_one(directory: Path, method: str) -> None:
    """Of a step of two ranks whose passes hold unequal numbers of rows, padded; four passes of a row become fewer."""
    start, by_rows, by_tokens = (
        load_file(directory / name / "model.safetensors") for name in ("start", f"{method}-rows", f"{method}-tokens")
    )
    gradients = {name: (tensor - by_rows[name]) / GRADIENT_RATE for name, tensor in start.items()}
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 0.1
    for name, gradient in gradients.items():
        torch.testing.assert_close((start[name] - by_tokens[name]) / GRADIENT_RATE, gradient, rtol=0.0, atol=1e-5)
    seen = [_seen(directory, rank) for rank in (0, 1)]
    ((loss, again),) = zip(*(_losses(seen[0][f"{method}-{kind}"]) for kind in ("rows", "tokens")), strict=True)
    assert again == pytest.approx(loss, rel=1e-5)
    (first,), (second,) = (rank[f"{method}-tokens"]["steps"] for rank in seen)
    assert len(first) == len(second) < GLOBAL_BATCH // 2
    sizes = [len(batch) for batch in (*first, *second)]
    assert sum(sizes) == GLOBAL_BATCH and len(set(sizes)) > 1


def _losses(stage: dict[str, Any]) -> list[float]:
    return [record["loss"] for record in stage["progress"]]


def test_an_adapter_changes_the_linear_layers_of_the_blocks_and_nothing_else(directory: Path) -> None:
    before, after = (load_file(directory / name / "model.safetensors") for name in ("start", "lora"))
    assert after.keys() == before.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "_proj.weight" in name}


def test_the_embeddings_are_trained_beside_an_adapter_where_that_is_asked_for(directory: Path) -> None:
    before, after = (load_file(directory / name / "model.safetensors") for name in ("lora", "lora-dpo"))
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if "_proj.weight" in name or "embed_tokens" in name}


@pytest.mark.parametrize(("run", "start_name"), [("lora", "start"), ("lora-dpo", "lora")])
def test_the_start_model_with_the_saved_adapter_is_the_merged_checkpoint(
    directory: Path, run: str, start_name: str
) -> None:
    """To within 1e-4 in float32; without the adapter it is another model by far."""
    folder = directory / run / "adapter"
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base.endswith(f"/{start_name}")
    start, merged = (_model(directory / name) for name in (start_name, run))
    plain = _logprobs(start, PROBES[2])
    adapted = PeftModel.from_pretrained(start, folder).eval()
    for ids in PROBES:
        assert _logprobs(adapted, ids) == pytest.approx(_logprobs(merged, ids), abs=1e-4)
    assert max(abs(a - b) for a, b in zip(plain, _logprobs(merged, PROBES[2]), strict=True)) > 0.1


def test_an_adapter_is_trained_alike_where_layers_are_gathered_one_by_one_and_computed_twice(
    directory: Path, seen: dict[str, Any]
) -> None:
    losses = [[record["loss"] for record in seen[run]["progress"]] for run in ("lora", "lora-sharded")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][-1] < losses[0][0] - 0.5


def test_dpo_of_an_adapter_starts_at_what_its_stage_started_from(directory: Path, seen: dict[str, Any]) -> None:
    """That is the merged model of the stage before, whose own log-probabilities the first step reports."""
    first, *_, last = (record["metrics"] for record in seen["lora-dpo"]["progress"])
    assert first["rewards/margins"] == first["rewards/chosen"] == 0.0
    assert last["rewards/margins"] > 0.1
    before = [probe["start_logprobs"] for probe in seen["lora-dpo"]["outcome"]["probes"]]
    merged = _model(directory / "lora")
    assert before == [pytest.approx(_logprobs(merged, ids), abs=1e-4) for ids in PROBES]


def test_an_interrupted_adapter_ends_as_an_uninterrupted_one_and_its_state_lacks_the_frozen_weights(
    directory: Path, seen: dict[str, Any]
) -> None:
    assert seen["lora-resumed"]["resumed_from_step"] == 2
    whole, resumed = (load_file(directory / run / "model.safetensors") for run in ("lora-dpo", "lora-resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    adapter = (directory / "lora-resumed" / "adapter" / "adapter_model.safetensors").stat().st_size
    held = sum(size for name, size in seen["lora_state_bytes"].items() if "optim" in name)
    assert 2.5 * adapter < held < 4.5 * adapter, "a float32 copy and two moments of the adapter, over both ranks"
    assert sum(seen["lora_state_bytes"].values()) < sum(tensor.nbytes for tensor in whole.values())


def test_mlps_in_tiles_and_inputs_of_layers_on_the_host_change_nothing(seen: dict[str, Any]) -> None:
    """Loss and gradient norm of every step, of ranks with batches of other sizes that gather weights one by one."""
    whole, tiled = (
        [(record["loss"], record["metrics"]["grad_norm"]) for record in seen[run]["progress"]]
        for run in ("sft", "tiled")
    )
    assert len(tiled) == STEPS
    for one, other in zip(whole, tiled, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    assert tiled[0] == pytest.approx(whole[0], rel=1e-5)


def test_a_checkpoint_keeps_tokenizer_template_and_special_tokens(directory: Path) -> None:
    start, end = (AutoTokenizer.from_pretrained(directory / name) for name in ("start", "dpo"))
    assert end.get_vocab() == start.get_vocab()
    assert end.chat_template == start.chat_template
    before, after = (GenerationConfig.from_pretrained(directory / name).to_dict() for name in ("start", "dpo"))
    assert after == before
    configs = [json.loads((directory / name / "config.json").read_text()) for name in ("start", "dpo")]
    assert configs[1] == configs[0]
    assert not (directory / "dpo" / "README.md").exists()


def test_nothing_half_written_is_left(directory: Path) -> None:
    """But for the states, which go when the checkpoint has its record; that is not the trainer's to write."""
    left = {path.name for path in directory.iterdir() if path.is_dir() and path.suffix != ".partial-state"}
    stages = {
        "sft",
        "bf16",
        "bf16-sharded",
        "dpo",
        "dpo-by-path",
        "linked",
        "kto",
        "whole",
        "resumed",
        "sharded",
        "tiled",
        "untied-zero-2",
        "bfloat16",
        *(f"lora{suffix}" for suffix in ("", "-dpo", "-resumed", "-sharded")),
        *(f"{method}-{kind}" for method in BY_TOKENS for kind in ("rows", "tokens")),
        *(f"alone-{i}" for i in range(7)),
    }
    assert left == {"start", "untied", *stages}


def test_ranks_say_nothing(directory: Path, seen: dict[str, Any]) -> None:
    assert seen["said"] == []
    noise = ("is deprecated", "LOAD_GLOBAL", "RESUME", "built successfully", "it/s")
    output = (directory / "output.txt").read_text(encoding="utf-8")
    assert [word for word in noise if word in output] == []
