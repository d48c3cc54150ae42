"""MLPs in tiles and inputs of layers on the host: the same loss and gradients, and what cannot be tiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from still_ray.trainer.activations import keep_on_host, tile_mlps
from still_ray.types import InputError

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def loss_and_gradients(tokens: int, *, num_tiles: int, checkpointed: bool) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES)).train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tile_mlps(model, num_tiles=num_tiles)
    if checkpointed:
        keep_on_host(model, pin_memory=False)
    ids = torch.arange(2 * tokens).view(2, tokens) % SIZES["vocab_size"]
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("tokens", "num_tiles"), [(12, 4), (11, 4), (3, 8)])  # even, uneven, and some empty
def test_loss_and_gradients_are_those_of_whole_mlps_and_of_layers_that_keep_everything(
    tokens: int, num_tiles: int, checkpointed: bool
) -> None:
    whole = loss_and_gradients(tokens, num_tiles=1, checkpointed=False)
    tiled = loss_and_gradients(tokens, num_tiles=num_tiles, checkpointed=checkpointed)
    for one, other in zip(whole, tiled, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-7)


def test_every_tile_is_computed_whatever_its_size() -> None:
    """Under ZeRO-3 a tile gathers weights, so ranks with batches of other sizes must come to as many."""
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    tile_mlps(model, num_tiles=8)
    sizes: list[int] = []
    model.model.layers[0].mlp.gate_proj.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for tokens in (3, 20):
        sizes.clear()
        model(input_ids=torch.zeros((1, tokens), dtype=torch.long), use_cache=False)
        assert len(sizes) == 8 and sum(sizes) == tokens and max(sizes) - min(sizes) <= 1


def test_a_mixture_of_experts_is_refused_in_one_line() -> None:
    experts: PreTrainedModel = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_experts=4, head_dim=8))
    with pytest.raises(InputError) as refused:
        tile_mlps(experts, num_tiles=2)
    said = (
        "trainer.num_mlp_tiles: model.layers.0 has a Qwen3MoeSparseMoeBlock as mlp, which cannot be tiled; set it to 1"
    )
    assert str(refused.value) == said
    tile_mlps(experts, num_tiles=1)
