"""A group of one rank: its slice is the whole row, and what slices cannot do is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from still_ray.algo.resolved import Precision
from still_ray.trainer.sequence_parallel import ATTENTION, SequenceGroup
from still_ray.types import InputError
from tests.unit.test_planning_memory import SMALL, real_model


@pytest.fixture
def group() -> Iterator[SequenceGroup]:
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield SequenceGroup(1)
    dist.destroy_process_group()


def batch(*, padded_on_the_left: bool = False) -> dict[str, Any]:
    ids = torch.randint(0, SMALL.vocab_size, (2, 21), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, slice(None, 6) if padded_on_the_left else slice(15, None)] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "fused_lm_head": True, "use_cache": False}


def sliced(group: SequenceGroup) -> Any:
    torch.manual_seed(0)
    model = real_model(SMALL, Precision(bf16=False, gradient_checkpointing=False))
    model.set_attn_implementation(ATTENTION)
    return model


def test_the_output_is_that_of_the_fused_head(group: SequenceGroup) -> None:
    model = sliced(group)
    model.set_attn_implementation("sdpa")
    expected = model(**batch(), num_items_in_batch=7)
    model.set_attn_implementation(ATTENTION)
    group.slice_rows(model)
    found = model(**batch(), num_items_in_batch=7)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.allclose(found[name], value, atol=1e-5), name


def test_rows_that_are_padded_on_the_left_are_refused(group: SequenceGroup) -> None:
    model = sliced(group)
    group.slice_rows(model)
    with pytest.raises(ValueError, match="padded on the right"):
        model(**batch(padded_on_the_left=True))


@pytest.mark.parametrize(("name", "value"), [("softcap", 50.0), ("s_aux", torch.zeros(8)), ("sliding_window", 20)])
def test_attention_that_slices_do_not_know_is_refused(group: SequenceGroup, name: str, value: Any) -> None:
    heads = torch.zeros(1, 8, 21, 32)
    with pytest.raises(InputError, match=f"^trainer.sequence_parallel_size: attention with {name} .*; set it to 1$"):
        group._attend(None, heads, heads, heads, None, **{name: value})
    group._attend(None, heads, heads, heads, None, sliding_window=21)


def test_a_model_that_slices_do_not_know_is_refused(group: SequenceGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sliced(group)
    model.config.output_router_logits = True
    with pytest.raises(InputError, match=r"^trainer.sequence_parallel_size: the loss of a router"):
        group.slice_rows(model)
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    with pytest.raises(InputError, match=r"^trainer.sequence_parallel_size: the attention of a qwen2 model"):
        group.slice_rows(model)
