"""What a pass keeps of a device: MLPs in tiles of tokens, and the inputs of layers in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from still_ray.types import InputError


def tile_mlps(model: PreTrainedModel, *, num_tiles: int) -> None:
    """Has every layer's MLP computed in tiles from now on; 1 leaves the model as it is.

    The number is fixed and no tile is left out, however few tokens there are: under ZeRO-3 a tile may gather weights,
    which all ranks do as often, and in the order that DeepSpeed has recorded.

    Raises:
        InputError: A layer's MLP is no composition of linear layers that treats each token by itself, as far as can be
            told: a mixture of experts sorts tokens, and says what it did with all of them.
    """
    if num_tiles == 1:
        return
    for name, layer in model.named_modules():
        if type(layer).__name__ in model._no_split_modules:
            mlp = getattr(layer, "mlp", None)
            if not isinstance(mlp, nn.Module) or not _is_plain(mlp):
                found = "no module called mlp" if mlp is None else f"a {type(mlp).__name__} as mlp"
                raise InputError(f"trainer.num_mlp_tiles: {name} has {found}, which cannot be tiled; set it to 1")
            mlp.forward = partial(in_tiles, mlp.forward, num_tiles=num_tiles)


def keep_on_host(model: PreTrainedModel, *, pin_memory: bool) -> None:
    """Has what the layers keep for the backward pass wait in the host's memory; on a CPU it is there already.

    TRL's activation_offloading holds all of a step, its fused LM head too: autograd hands what is kept on as plain
    tensors, and the head asks its weight whether ZeRO-3 has gathered it (with TRL 1.16 an AttributeError). So here
    nothing outside of the decoder is off-loaded. The copies run on the stream that computes.

    Args:
        model: With recomputed layers, of which the inputs are kept and nothing else.
        pin_memory: Whether the host's memory is pinned, for the speed of the bus.
    """
    context, decoder = save_on_cpu(pin_memory=pin_memory), model.get_decoder()

    def leave(*_: object) -> None:
        context.__exit__(None, None, None)

    decoder.register_forward_pre_hook(lambda *_: context.__enter__())
    decoder.register_forward_hook(leave, always_call=True)


def in_tiles(compute: Callable[[Tensor], Tensor], states: Tensor, *, num_tiles: int) -> Tensor:
    """A function of single tokens, tile by tile; each is computed again for its part of the backward pass.

    Args:
        compute: From [tokens, hidden] to the same shape.
        states: [batch, tokens, hidden].
        num_tiles: How many; of few tokens some may be empty.
    """
    flat = states.flatten(0, -2)
    ends = [flat.shape[0] * tile // num_tiles for tile in range(num_tiles + 1)]
    tiles = flat.split_with_sizes([end - start for start, end in pairwise(ends)])
    computed = [checkpoint(compute, tile, use_reentrant=False) for tile in tiles]
    return torch.cat(computed).view_as(states)


def _is_plain(mlp: nn.Module) -> bool:
    """Whether all weights of a module are those of linear layers and it keeps no list of experts."""
    parts = [module for module in mlp.modules() if not isinstance(module, nn.Linear)]
    return not any([*part.parameters(recurse=False)] or isinstance(part, nn.ModuleList) for part in parts)
