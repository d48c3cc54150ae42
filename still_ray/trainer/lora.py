"""LoRA (arXiv 2106.09685): adapters that are trained in the weights' place, and added to them when a stage ends.

A stage starts with a new adapter whose product is 0, so that its start model, and the reference that this is, are the
policy before the first step. At its end the adapter is set aside as peft's files and added to the weights: what is
saved, sent, scored and digested is a plain model, as after a stage without an adapter (docs/decisions/0016-lora.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import deepspeed
import peft
from peft.tuners.lora import Linear, LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from still_ray.algo.planning.model import trains_embeddings
from still_ray.config import LoraConfig

BASE_PREFIX: Final = "base_model.model."
"""In front of the base model's names within a peft model."""


def peft_config(lora: LoraConfig) -> peft.LoraConfig:
    """The recipe's section as peft has it."""
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
    )


def base_model(model: PreTrainedModel | peft.PeftModel) -> PreTrainedModel:
    """The model itself, within an adapter or without."""
    return model.get_base_model() if isinstance(model, peft.PeftModel) else model


def fit_adapters(model: peft.PeftModel, lora: LoraConfig) -> None:
    """Has the embeddings and the LM head trained too, where that is asked for; refuses what cannot be merged.

    They are trained where they are, not as peft's copies: TRL's fused head reads the weights of the model's own.

    Raises:
        ValueError: Something else than a linear layer has an adapter; names the first.
    """
    other = next((name for name, layer in _layers(model) if not isinstance(layer, Linear)), None)
    if other is not None:
        raise ValueError(f"trainer.lora.targets: {other.removeprefix(BASE_PREFIX)} is no linear layer")
    base = base_model(model)
    frozen = (parameter for name, parameter in base.named_parameters() if ".lora_" not in name)
    if trains_embeddings(lora, sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in frozen)):
        for _, layer in _embeddings(base):
            layer.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained adapter, whole.

    Attributes:
        config: As peft saves it.
        tensors: On the CPU, by peft's names.
    """

    config: peft.LoraConfig
    tensors: dict[str, Tensor]

    def write(self, folder: Path, *, start: str) -> None:
        """Writes adapter_config.json and adapter_model.safetensors.

        Args:
            folder: Made if it is not there.
            start: The model that the adapter belongs to, for the configuration.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.config.base_model_name_or_path = start
        self.config.inference_mode = True
        self.config.save_pretrained(folder)
        save_file(self.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def taken_adapter(model: PreTrainedModel | peft.PeftModel) -> Adapter | None:
    """Copies what was trained and adds the adapter to the weights, which then are a plain model again; collective.

    One layer at a time is whole. Every rank adds the same product, and the first rank's result is kept, rounded once to
    the type of the weights.

    Returns:
        None for a model without an adapter.
    """
    if not isinstance(model, peft.PeftModel):
        return None
    whole: dict[str, Tensor] = {}
    for name, layer in _layers(model):
        with _whole(layer):
            whole |= {f"{name}.{key}": value for key, value in _adapter_tensors(layer)}
            _merge(layer)
    embeddings = _trained_embeddings(model)
    whole |= embeddings
    tensors = peft.get_peft_model_state_dict(model, state_dict=whole, save_embedding_layers=bool(embeddings))
    adapter = Adapter(config=model.peft_config["default"], tensors=tensors)
    model.base_model.unload()
    return adapter


def _layers(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _embeddings(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """The embeddings and the LM head, by name; they may share their weights."""
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return [(name, module) for name, module in model.named_modules() if any(module is layer for layer in both)]


def _trained_embeddings(model: peft.PeftModel) -> dict[str, Tensor]:
    """Copies of those that were trained beside the adapter, by peft's names; shared ones once."""
    found: dict[str, Tensor] = {}
    trained: list[nn.Parameter] = []
    for name, layer in _embeddings(base_model(model)):
        weight: Any = layer.weight
        if weight.requires_grad and not any(weight is other for other in trained):
            trained.append(weight)
            with _whole(layer):
                found[f"{BASE_PREFIX}{name}.weight"] = weight.detach().to("cpu", copy=True)
    return found


@contextmanager
def _whole(layer: Any) -> Iterator[None]:
    """All parameters of a layer and its adapter on every rank; what the first rank makes of them is kept."""
    with deepspeed.zero.GatheredParameters(list(layer.parameters()), modifier_rank=0):
        yield


def _adapter_tensors(layer: Any) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in layer.named_parameters():
        if not name.startswith("base_layer."):
            yield name, parameter.detach().to("cpu", copy=True)


def _merge(layer: Any) -> None:
    """Adds the product in float32: in bfloat16 it would be rounded before it is added, and once more after."""
    weight: nn.Parameter = layer.base_layer.weight
    first, second = (matrix["default"].weight.detach().float() for matrix in (layer.lora_A, layer.lora_B))
    product = layer.scaling["default"] * (second @ first)
    weight.data.copy_(weight.float() + (product.T if layer.fan_in_fan_out else product))
