"""Memory arithmetic against ZeRO's invariants, real caches, and tensors that are really held."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Literal
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from still_ray.algo.placement import resolve, resolve_sampler, resolve_trainer
from still_ray.algo.planning.disk import disk_parts
from still_ray.algo.planning.findings import total_bytes
from still_ray.algo.planning.fit import driver_part, sequence_findings
from still_ray.algo.planning.model import KNOWN_SHAPES, ModelShape, trains_embeddings
from still_ray.algo.planning.sampler_memory import gpu_sampler_memory, kv_bytes_per_token
from still_ray.algo.planning.trainer_memory import (
    Batch,
    TrainerMemory,
    largest_batches,
    model_states,
    trainer_memory,
)
from still_ray.algo.planning.workload import StageWork
from still_ray.algo.resolved import Precision, ResolvedTrainer
from still_ray.config import LoraConfig, SamplerConfig, TrainerConfig
from still_ray.methods.sft import SftConfig
from tests.fakes import make_recipe
from tests.live_memory import LiveMemory

Offload = Literal["none", "cpu"]

SHAPES = st.sampled_from(sorted(KNOWN_SHAPES)).map(KNOWN_SHAPES.__getitem__)
STAGES = st.sampled_from((2, 3))
OFFLOADS = st.sampled_from(("none", "cpu"))
BF16 = Precision(bf16=True, gradient_checkpointing=True)
SMALL = ModelShape(
    family="qwen2",
    num_layers=4,
    hidden_size=256,
    intermediate_size=768,
    num_heads=8,
    num_kv_heads=2,
    head_dim=32,
    vocab_size=512,
    tied=False,
    max_positions=2048,
    attention_bias=True,
)


def trainer(
    num_workers: int, stage: Any = 3, offload: Offload = "none", *, has_gpus: bool = True, **changes: Any
) -> ResolvedTrainer:
    config = TrainerConfig(num_workers=num_workers, zero_stage=stage, offload=offload, **changes)
    return resolve_trainer(config, has_gpus=has_gpus)


def memory(shape: ModelShape, config: ResolvedTrainer, tokens: int = 20_000) -> TrainerMemory:
    return trainer_memory(shape, config, Batch(rows=1, tokens=tokens))


# -- ZeRO -------------------------------------------------------------------------------------------------------------


@given(SHAPES, STAGES, OFFLOADS, st.integers(2, 64), st.integers(1, 64))
def test_more_ranks_never_need_more_of_a_device(
    shape: ModelShape, stage: int, offload: Offload, ranks: int, more: int
) -> None:
    few, many = (memory(shape, trainer(number, stage, offload)) for number in (ranks, ranks + more))
    assert many.peak_bytes <= few.peak_bytes
    assert total_bytes(many.host) <= total_bytes(few.host)


def test_the_driver_holds_numbers_of_every_rollout_and_texts_of_one_evaluation() -> None:
    works = [
        StageWork(name="evaluate backbone", num_rollouts=100, sampled_tokens=1000, is_evaluation=True),
        StageWork(name="rounds.0.explore", num_rollouts=30_000, sampled_tokens=10**9),
        StageWork(name="rounds.1.explore", num_rollouts=70_000, sampled_tokens=10**9),
        StageWork(name="evaluate rounds.1", num_rollouts=100, sampled_tokens=5000, is_evaluation=True),
    ]
    assert driver_part(works).num_bytes == 2 * 2**30 + 1100 * 100_000 + 8 * 5000


@given(SHAPES, st.integers(1, 64))
def test_zero_3_holds_eighteen_bytes_of_a_parameter_over_all_ranks(shape: ModelShape, ranks: int) -> None:
    """ZeRO's sixteen, and two more because gradients are added up in float32."""
    held = ranks * total_bytes(model_states(shape.num_parameters, trainer(ranks), BF16))
    assert 0 <= held - 18 * shape.num_parameters < 18 * ranks


@given(SHAPES, st.integers(1, 64))
def test_zero_2_repeats_the_parameters_on_every_rank(shape: ModelShape, ranks: int) -> None:
    held = ranks * total_bytes(model_states(shape.num_parameters, trainer(ranks, 2), BF16))
    assert 0 <= held - (16 + 2 * ranks) * shape.num_parameters < 16 * ranks


@given(SHAPES, STAGES, st.integers(1, 64))
def test_off_loading_moves_states_and_loses_none(shape: ModelShape, stage: int, ranks: int) -> None:
    kept, moved = (memory(shape, trainer(ranks, stage, offload)) for offload in ("none", "cpu"))
    step = total_bytes(part for part in moved.host if part.name == "optimizer step")
    assert total_bytes(moved.states) + total_bytes(moved.host) - step == total_bytes(kept.states)
    assert moved.peak_bytes < kept.peak_bytes


@given(SHAPES, st.integers(1, 30_000), st.integers(1, 10_000))
def test_longer_sequences_need_more(shape: ModelShape, tokens: int, more: int) -> None:
    short, long = (memory(shape, trainer(8), number) for number in (tokens, tokens + more))
    assert total_bytes(short.passing) < total_bytes(long.passing)


def test_rows_are_shared_by_models_whose_layers_attend_to_all_that_came_before() -> None:
    shared = {"num_workers": 8, "sequence_parallel_size": 8}
    recipe = resolve(make_recipe(trainer=shared, imitate={"max_length": 4096}, rounds=[]), has_gpus=True)
    windows = replace(SMALL, num_window_layers=2, window=2048)
    for shape, refusal in (
        (SMALL, None),
        (replace(windows, window=4096), None),
        (windows, "ends at 2,048 tokens"),
        (replace(SMALL, num_heads=12), r"attention heads (12), 8 does not"),
        (replace(SMALL, has_plain_cache=False), "do more than attend"),
    ):
        found = sequence_findings(recipe, shape)
        assert [finding.key for finding in found] == ["trainer.sequence_parallel_size"] * (refusal is not None)
        assert all(finding.severity == "error" and str(refusal) in finding.text for finding in found)
        alone = recipe.trainer.model_copy(update={"sequence_parallel_size": 1})
        assert sequence_findings(recipe.model_copy(update={"trainer": alone}), shape) == []


def test_a_pair_is_two_sequences() -> None:
    pair = trainer_memory(SMALL, trainer(2), Batch(rows=1, tokens=500, sequences_per_row=2))
    assert pair == trainer_memory(SMALL, trainer(2), Batch(rows=2, tokens=500))


@given(st.data(), st.integers(1, 2), st.integers(2, 20_000), st.integers(2, 60_000))
def test_no_batch_of_so_many_tokens_takes_more_than_is_planned(
    data: st.DataObject, sequences: int, longest: int, most_tokens: int
) -> None:
    """Rows of any length and any number of them that fit."""
    length = data.draw(st.integers(1, longest))
    rows = max(1, data.draw(st.integers(1, max(1, most_tokens // (sequences * length)))))
    settings = SftConfig(max_length=longest, micro_batch_tokens=most_tokens)
    planned = [trainer_memory(SMALL, trainer(8), batch) for batch in largest_batches(settings, sequences)]
    real = trainer_memory(SMALL, trainer(8), Batch(rows=rows, tokens=length, sequences_per_row=sequences))
    assert real.peak_bytes <= max(memory.peak_bytes for memory in planned)


# -- what a real model holds ------------------------------------------------------------------------------------------


def real_model(shape: ModelShape, precision: Precision) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from still_ray.trainer.model import fit_lm_head

    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.max_positions,
    )
    model = Qwen2ForCausalLM(config).to(torch.bfloat16 if precision.bf16 else torch.float32).train()
    if precision.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    fit_lm_head(shape.vocab_size, use_gpu=False)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model


def adapted(model: Any, lora: LoraConfig) -> Any:
    """The model with adapters, its layers recomputed as TRL has them recomputed then."""
    import peft

    from still_ray.trainer.lora import fit_adapters, peft_config

    if model.is_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    model = peft.get_peft_model(model, peft_config(lora), autocast_adapter_dtype=False)
    fit_adapters(model, lora)
    return model


def measured_pass(model: Any, rows: int, tokens: int) -> tuple[int, int]:
    """Bytes that a forward pass keeps, and the peak of forward and backward, gradients in buffers that stood before.

    Of several rows the last is a third shorter, and padded.
    """
    import torch

    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    ids = torch.randint(0, model.config.vocab_size, (rows, tokens))
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[-1, -tokens // 3 :] = 0
    live = LiveMemory()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    live.ignore(ids, mask, *model.buffers(), *model.parameters(), *grads)
    with live:
        loss = model(input_ids=ids, labels=ids, attention_mask=mask, fused_lm_head=True, use_cache=False).loss
        kept = live.live
        loss.backward()
    return kept, live.peak


@pytest.mark.parametrize(
    ("bf16", "gradient_checkpointing", "vocab_size", "rows"),  # a peak inside a layer, and one in the LM head
    [
        *itertools.product((False, True), (False, True), (64, 1024), (1,)),
        (False, False, 64, 2),
        (True, True, 64, 2),
    ],
)
def test_passing_memory_is_that_of_a_real_pass(
    bf16: bool, gradient_checkpointing: bool, vocab_size: int, rows: int
) -> None:
    precision = Precision(bf16=bf16, gradient_checkpointing=gradient_checkpointing)
    shape = replace(SMALL, vocab_size=vocab_size)
    kept, peak = measured_pass(real_model(shape, precision), rows, 512)
    config = trainer(1, has_gpus=False, bf16=bf16, gradient_checkpointing=gradient_checkpointing)
    planned = trainer_memory(shape, config, Batch(rows=rows, tokens=512))
    activations = next(part.num_bytes for part in planned.passing if part.name == "activations")
    passing = total_bytes(part for part in planned.passing if part.name != "gradient buckets")
    assert activations == pytest.approx(kept, rel=0.05)
    assert passing == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize(
    ("bf16", "gradient_checkpointing", "num_tiles", "rows", "tokens"),
    [
        (False, False, 4, 1, 512),
        (False, True, 2, 1, 512),
        (False, True, 4, 1, 1536),
        (True, True, 4, 2, 512),  # a peak inside the MLP, and one in a norm
        (True, True, 8, 1, 1536),
    ],
)
def test_passing_memory_of_an_mlp_in_tiles_is_that_of_a_real_pass(
    bf16: bool, gradient_checkpointing: bool, num_tiles: int, rows: int, tokens: int
) -> None:
    from still_ray.trainer.activations import tile_mlps

    precision = Precision(bf16=bf16, gradient_checkpointing=gradient_checkpointing)
    shape = replace(SMALL, vocab_size=64, intermediate_size=1280)
    model = real_model(shape, precision)
    tile_mlps(model, num_tiles=num_tiles)
    kept, peak = measured_pass(model, rows, tokens)
    config = trainer(
        1, has_gpus=False, bf16=bf16, gradient_checkpointing=gradient_checkpointing, num_mlp_tiles=num_tiles
    )
    planned = trainer_memory(shape, config, Batch(rows=rows, tokens=tokens))
    activations = next(part.num_bytes for part in planned.passing if part.name == "activations")
    passing = total_bytes(part for part in planned.passing if part.name != "gradient buckets")
    # Autograd sums the gradients of weights over the tiles in buffers of its own, which the buckets' share counts.
    passing += 3 * shape.hidden_size * shape.intermediate_size * precision.width
    assert activations == pytest.approx(kept, rel=0.05)
    assert passing == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("tokens", [256, 768])
def test_what_waits_on_the_host_is_what_the_layers_hand_over(tokens: int) -> None:
    """Storages that autograd gives to the one that keeps its tensors, parameters and the model's inputs left out.

    In bfloat16, in pinned blocks of a power of two bytes.
    """
    import torch

    from still_ray.trainer import activations

    moved: dict[int, torch.Tensor] = {}

    def to_host(tensor: torch.Tensor) -> torch.Tensor:
        moved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    shape, batch = replace(SMALL, num_layers=10), Batch(rows=1, tokens=tokens)
    model = real_model(shape, BF16)
    kept_tensors = torch.autograd.graph.saved_tensors_hooks(to_host, lambda tensor: tensor)
    with patch.object(activations, "save_on_cpu", lambda pin_memory: kept_tensors):
        activations.keep_on_host(model, pin_memory=False)
    ids = torch.randint(0, shape.vocab_size, (1, tokens))
    model(input_ids=ids, labels=ids, fused_lm_head=True, use_cache=False)
    own = {tensor.untyped_storage().data_ptr() for tensor in (ids, *model.parameters())}
    measured = sum(tensor.untyped_storage().nbytes() for address, tensor in moved.items() if address not in own)
    stays, goes = (trainer_memory(shape, trainer(1, offload_activations=off), batch) for off in (False, True))
    kept = next(part.num_bytes for part in stays.passing if part.name == "activations")
    (host,) = goes.host
    assert kept == pytest.approx(measured, rel=0.15)
    assert kept <= host.num_bytes <= 2 * kept and not stays.host
    assert total_bytes(goes.passing) < total_bytes(stays.passing)


def test_without_gpus_nothing_is_off_loaded() -> None:
    plain, asked = (
        trainer(1, has_gpus=False, gradient_checkpointing=True, offload_activations=off) for off in (False, True)
    )
    assert memory(SMALL, plain) == memory(SMALL, asked)


@pytest.mark.parametrize(
    ("bf16", "gradient_checkpointing", "vocab_size", "dropout"),
    [(False, False, 64, 0.0), (False, False, 64, 0.1), (True, True, 64, 0.0), (True, True, 1024, 0.0)],
)
def test_passing_memory_of_adapters_is_that_of_a_real_pass(
    bf16: bool, gradient_checkpointing: bool, vocab_size: int, dropout: float
) -> None:
    precision = Precision(bf16=bf16, gradient_checkpointing=gradient_checkpointing)
    shape = replace(SMALL, vocab_size=vocab_size)
    lora = LoraConfig(rank=16, dropout=dropout, embeddings=dropout > 0 or gradient_checkpointing)
    model = adapted(real_model(shape, precision), lora)
    num_trained = shape.num_adapter_parameters(lora) + shape.num_trained_embeddings(lora)
    assert num_trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept, peak = measured_pass(model, 1, 512)
    config = trainer(1, has_gpus=False, bf16=bf16, gradient_checkpointing=gradient_checkpointing, lora=lora)
    planned = trainer_memory(shape, config, Batch(rows=1, tokens=512))
    activations = next(part.num_bytes for part in planned.passing if part.name == "activations")
    passing = total_bytes(part for part in planned.passing if part.name != "gradient buckets")
    assert activations == pytest.approx(kept, rel=0.05)
    assert passing == pytest.approx(peak, rel=0.1)


QWEN_7B = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]
QWEN_7B_ADAPTER = 32 * 28 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944))
"""Rank x layers x (inputs + outputs) of q and o, k and v, and the three of the MLP, by hand."""


def test_of_frozen_weights_only_the_weights_are_held() -> None:
    lora = LoraConfig(rank=32)
    assert QWEN_7B.num_adapter_parameters(lora) == QWEN_7B_ADAPTER == 80_740_352
    attention = LoraConfig(rank=32, targets=("q_proj", "model.layers.0.self_attn.v_proj"))
    assert QWEN_7B.num_adapter_parameters(attention) == 32 * 28 * (3584 + 3584 + 3584 + 512)
    for ranks in (1, 8):
        states = trainer_memory(QWEN_7B, trainer(ranks, lora=lora), Batch(rows=1, tokens=64)).states
        held = 2 * (7_615_616_512 + QWEN_7B_ADAPTER) + 16 * QWEN_7B_ADAPTER
        assert 0 <= ranks * total_bytes(states) - held < 18 * ranks


def test_embeddings_beside_adapters_are_trained_as_a_whole_and_held_once() -> None:
    lora, num_embeddings = LoraConfig(rank=32, embeddings=True), 2 * 152_064 * 3584
    states = trainer_memory(QWEN_7B, trainer(1, lora=lora), Batch(rows=1, tokens=64)).states
    trained = QWEN_7B_ADAPTER + num_embeddings
    assert total_bytes(states) == 2 * (7_615_616_512 + QWEN_7B_ADAPTER) + 16 * trained
    assert not trains_embeddings(LoraConfig(), 10_000_000)
    assert trains_embeddings(LoraConfig(), 9_999_999)


def test_a_run_of_adapters_keeps_whole_models_and_the_states_of_adapters() -> None:
    recipe = make_recipe(imitate={"save_steps": 10}, rounds=[{"method": "dpo"}], trainer={"lora": {}})
    parts = {part.name: part.num_bytes for part in disk_parts(recipe, [], shape=QWEN_7B, width=2)}
    assert parts["checkpoints"] == 3 * 2 * (7_615_616_512 + QWEN_7B_ADAPTER)
    assert parts["resumable state"] == 2 * 14 * QWEN_7B_ADAPTER


def test_the_adam_moments_and_the_float32_copy_are_what_torch_holds() -> None:
    """One rank of ZeRO in plain torch: bfloat16 weights, float32 sums of gradients, AdamW on a float32 copy."""
    import torch

    model = real_model(SMALL, BF16)
    low = list(model.parameters())
    live = LiveMemory()
    live.count(*low)
    with live:
        master = [parameter.detach().float() for parameter in low]
        sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in low]
        optimizer = torch.optim.AdamW(master, foreach=False)
        for copy in master:
            copy.grad = torch.zeros_like(copy)
        optimizer.step()
        optimizer.zero_grad()
        for copy in master:
            copy.grad = None
    assert len(sums) == len(low)
    assert live.live == pytest.approx(total_bytes(model_states(SMALL.num_parameters, trainer(1), BF16)), rel=0.01)


# -- samplers ---------------------------------------------------------------------------------------------------------


def test_a_token_takes_as_much_as_in_a_real_cache() -> None:
    import torch

    model = real_model(SMALL, Precision(bf16=False, gradient_checkpointing=False)).eval()
    with torch.no_grad():
        cache = model(input_ids=torch.zeros((1, 40), dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 40 * kv_bytes_per_token(SMALL, width=4)


@given(SHAPES, st.sampled_from((1, 2, 4, 8, 16)))
def test_devices_together_hold_the_cache_at_least_once(shape: ModelShape, devices: int) -> None:
    whole, shared = kv_bytes_per_token(shape), kv_bytes_per_token(shape, tensor_parallel_size=devices)
    if devices <= shape.num_kv_heads:
        assert devices * shared == whole
    else:
        assert devices * shared >= whole


def test_a_cache_of_eight_bits_holds_twice_as_much_in_no_more_memory() -> None:
    plain = resolve_sampler(SamplerConfig(), has_gpus=True)
    narrow = plain.model_copy(update={"engine": {"kv_cache_dtype": "fp8", "block_size": 32}})
    wide, fp8 = (gpu_sampler_memory(SMALL, one, max_length=512, device_bytes=2**34) for one in (plain, narrow))
    assert (fp8.parts, fp8.kv_bytes, fp8.block_tokens) == (wide.parts, wide.kv_bytes, 32)
    assert 2 * fp8.kv_bytes_per_token == wide.kv_bytes_per_token
    assert fp8.num_sequences == pytest.approx(2 * wide.num_sequences, rel=0.01)


@given(SHAPES, st.sampled_from((1, 2, 4, 8)), st.integers(16, 200))
def test_planned_sequences_fit_what_is_left(shape: ModelShape, devices: int, gib: int) -> None:
    sampler = resolve_sampler(SamplerConfig(tensor_parallel_size=devices), has_gpus=True)
    found = gpu_sampler_memory(shape, sampler, max_length=30_000, device_bytes=gib * 2**30)
    assert found.num_sequences * 30_000 * found.kv_bytes_per_token <= max(0, found.kv_bytes)
    assert total_bytes(found.parts) + found.kv_bytes <= 0.9 * gib * 2**30
