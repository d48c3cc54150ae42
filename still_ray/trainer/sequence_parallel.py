"""Sequence parallelism: the ranks of a group compute slices of the same rows (Ulysses, arXiv 2309.14509).

A model's forward pass takes the whole padded batch, the same on every rank of the group, and runs on this rank's slice
of the positions. Only attention looks beyond a slice: there an all-to-all gives each rank all positions of some heads,
and another gives it back all heads of its positions. Of the result the numbers of each token travel, never logits, so
that TRL's losses see what they see without a group (docs/decisions/0018-sequence-parallelism.md).
"""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from still_ray.algo.planning.communication import key_copies
from still_ray.trainer.data import IGNORED_LABEL
from still_ray.types import InputError

ATTENTION: Final = "ulysses"
"""Name of the attention among transformers' implementations; one without a mask function is given no mask."""
KEY: Final = "trainer.sequence_parallel_size"
_TOKEN_FIELDS: Final = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
_REFUSED: Final = ("softcap", "s_aux", "position_bias")


class SequenceGroup:
    """The ranks that share their rows with this one; consecutive ones, which lie on one machine if it holds them.

    Building it is collective. It registers the attention of this process, which is that of the group built last.

    Args:
        size: Ranks of a group; it divides the number of all ranks.

    Attributes:
        size: Ranks of the group.
        rank: This one's place among them: it has slice `rank` of the positions.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rank = dist.get_rank() % size
        self._ranks: Any = dist.new_subgroups(size)[0]  # type: ignore[no-untyped-call]
        AttentionInterface.register(ATTENTION, self._attend)

    def slice_rows(self, model: PreTrainedModel) -> None:
        """Makes the model compute this rank's slice of each batch it is given.

        Args:
            model: With TRL's fused LM head and `ATTENTION`.

        Raises:
            InputError: Its layers cannot be sliced.
        """
        config = model.config.get_text_config()
        if not model.is_backend_compatible():
            raise InputError(f"{KEY}: the attention of a {config.model_type} model cannot be replaced; set it to 1")
        if getattr(config, "output_router_logits", False):
            raise InputError(f"{KEY}: the loss of a router is not defined on slices of rows; set it to 1")
        model.forward = functools.partial(self._forward, model.forward)

    def _forward(
        self,
        forward: Any,
        *,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        num_items_in_batch: Any = None,
        **options: Any,
    ) -> FusedCausalLMOutput:
        """The fused head's forward pass of a whole batch, of which this rank computes its slice.

        Labels are shifted before they are sliced: the label of a slice's last position is the first token of the next.
        Rows are padded on the right, where a causal attention needs no mask: no token looks at what comes after it.
        """
        if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise ValueError("rows in slices must be padded on the right")
        shifted = functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        positions = torch.arange(labels.shape[1], device=labels.device)[None]
        output: FusedCausalLMOutput = forward(
            input_ids=self._own(input_ids, 0),
            position_ids=self._own(positions, 0),
            shift_labels=self._own(shifted, IGNORED_LABEL),
            **options,
        )
        fields = self._whole(output, tokens=labels.shape[1] - 1)
        mask = labels[:, 1:] != IGNORED_LABEL
        num_items = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(**fields, loss=-fields["log_probs"].sum() / num_items, label_mask=mask)

    def _own(self, values: Tensor, padding: int) -> Tensor:
        """This rank's slice of [rows, tokens], padded to slices of equal length."""
        padded = functional.pad(values, (0, -values.shape[1] % self.size), value=padding)
        return padded.chunk(self.size, dim=1)[self.rank].contiguous()

    def _whole(self, output: FusedCausalLMOutput, *, tokens: int) -> dict[str, Tensor]:
        """The numbers of the first `tokens` positions, from all slices; only log-probabilities have a gradient."""
        names = [name for name in _TOKEN_FIELDS if output.get(name) is not None]
        own = [output[name].float() if name == "log_probs" else output[name].detach().float() for name in names]
        whole = _Gather.apply(torch.stack(own), self)[..., :tokens]  # type: ignore[no-untyped-call]
        fields = dict(zip(names, whole.unbind(), strict=True))
        if "is_top1" in fields:
            fields["is_top1"] = fields["is_top1"].bool()
        return fields

    def gathered(self, own: Tensor) -> Tensor:
        """All slices of [..., tokens / size], in the order of the positions, without a gradient."""
        slices = own.new_empty(self.size, *own.shape)
        dist.all_gather_into_tensor(slices, own[None].contiguous(), group=self._ranks)
        return torch.cat(slices.unbind(), dim=-1)

    def exchanged(self, parts: Tensor) -> Tensor:
        """[size, ...]: sends part i to rank i, and returns what rank i sent as part i; without a gradient."""
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=self._ranks)
        return received

    def _attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        dropout: float = 0.0,
        scaling: float | None = None,
        sliding_window: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Causal attention of the whole rows from slices of them, as transformers' layers call it.

        Args:
            module: The layer's attention.
            query: [rows, heads, tokens / size, head width], positions in it already.
            key: The same with as many heads as the model has for keys.
            value: As `key`.
            attention_mask: Always None: transformers makes none for this implementation.
            dropout: Of the attention's weights.
            scaling: Of the scores.
            sliding_window: Tokens that one looks back.
            options: What other implementations know.

        Returns:
            [rows, tokens / size, heads, head width].

        Raises:
            InputError: The model's attention is none of those.
        """
        refused = [name for name in _REFUSED if options.get(name) is not None]
        if sliding_window is not None and sliding_window < self.size * query.shape[2]:
            refused.append("sliding_window")
        if refused:
            raise InputError(f"{KEY}: attention with {', '.join(refused)} is not known in slices; set it to 1")
        copies = key_copies(key.shape[1], self.size)
        key, value = (heads.repeat_interleave(copies, dim=1) if copies > 1 else heads for heads in (key, value))
        query, key, value = map(self._to_heads, (query, key, value))
        attended = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return self._to_tokens(attended), None

    def _to_heads(self, sliced: Tensor) -> Tensor:
        """All positions of some heads: [rows, heads / size, tokens, width] of [rows, heads, tokens / size, width]."""
        parts = torch.stack(sliced.chunk(self.size, dim=1))
        received: Tensor = _Exchange.apply(parts, self)  # type: ignore[no-untyped-call]
        return received.permute(1, 2, 0, 3, 4).flatten(2, 3)

    def _to_tokens(self, headed: Tensor) -> Tensor:
        """All heads of some positions: [rows, tokens / size, heads, width] of [rows, heads / size, tokens, width]."""
        parts = torch.stack(headed.chunk(self.size, dim=2))
        received: Tensor = _Exchange.apply(parts, self)  # type: ignore[no-untyped-call]
        return received.permute(1, 3, 0, 2, 4).flatten(2, 3)


class _Exchange(torch.autograd.Function):
    """An all-to-all of equal parts; gradients go the same way back."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return group.exchanged(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.group.exchanged(gradient.contiguous()), None


class _Gather(torch.autograd.Function):
    """An all-gather along the last dimension, for a loss that every rank of the group computes from all of it.

    Let L be the loss of a group's rows and g[r] what rank r finds for the parameters when its own slice is given dL/d
    slice: through the exchanges g[r] has what its positions add to the loss of all slices, so the sum of g over the
    group is dL/d parameters. The engine averages over all ranks, groups x size, where the mean over groups is wanted:
    1 / groups x sum over groups of (sum of g) = 1 / (groups x size) x sum over all ranks of size x g. So a slice's
    gradient is multiplied by the size. That is also what the exact adjoint gives, the sum over the group of what each
    rank's equal loss says of the slice, without the communication.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return group.gathered(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        group: SequenceGroup = ctx.group
        return gradient.chunk(group.size, dim=-1)[group.rank] * group.size, None
