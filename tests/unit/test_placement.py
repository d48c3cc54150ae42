"""What the "auto" of a recipe comes down to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from still_ray.algo.placement import (
    AtHand,
    Hardware,
    decided,
    resolve,
    resolve_sampler,
    resolve_trainer,
    with_lengths,
)
from still_ray.algo.planning.bundles import bundles_of
from still_ray.algo.planning.fit import SLEEPING, parts_of_machine, room_of_rank
from still_ray.algo.planning.model import KNOWN_SHAPES, shape_of_config
from still_ray.algo.planning.plan import misfits
from still_ray.algo.planning.sampler_memory import replica_memory
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.cli.preflight import machines
from still_ray.cli.preflight.machines import crowding
from still_ray.cli.preflight.models import BACKBONE
from still_ray.config import Recipe, SamplerConfig, SyncConfig, TrainerConfig
from still_ray.types import InputError
from tests.fakes import make_recipe
from tests.model_configs import GEMMA_3_270M, GEMMA_PARAMETERS

GIB = 2**30
GEMMA = shape_of_config(GEMMA_3_270M, where="config.json", counted=GEMMA_PARAMETERS)


def autos(value: Any, key: str = "") -> Iterator[str]:
    """Dotted keys whose value is "auto"."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from autos(inner, f"{key}.{name}".lstrip("."))
    elif value == "auto":
        yield key


def read_behind(recipe: Recipe) -> dict[str, Any]:
    """The sections that actors are launched from, and the lengths."""
    sections = recipe.model_dump(mode="json", include={"model", "placement", "sampler", "trainer", "sync", "imitate"})
    sections["trainer"].pop("asked", None)
    return sections


@pytest.mark.parametrize("has_gpus", [False, True])
def test_nothing_is_left_to_the_cluster(has_gpus: bool) -> None:
    recipe = make_recipe()
    assert len([*autos(read_behind(recipe))]) == 17
    found = read_behind(resolve(recipe, has_gpus=has_gpus))
    assert [*autos(found)] == (["sampler.dtype"] if has_gpus else []), "of a checkpoint's dtype only vLLM knows"
    assert found["trainer"]["use_gpu"] == found["trainer"]["bf16"] == found["sampler"]["engine_statistics"] == has_gpus


def test_what_the_recipe_says_holds_and_a_second_time_changes_nothing() -> None:
    sections: dict[str, Any] = {
        "sampler": {"gpus_per_replica": 0.5, "dtype": "float32", "engine_statistics": False},
        "trainer": {"use_gpu": False, "bf16": True, "gradient_checkpointing": True},
        "sync": {"transport": "checkpoint", "tolerance": 0.5},
    }
    settled = resolve(make_recipe(**sections), has_gpus=True)
    for name, section in sections.items():
        assert section.items() <= getattr(settled, name).model_dump().items()
    again = resolve(settled, has_gpus=False)
    assert read_behind(again) == read_behind(settled)


def test_a_replica_has_a_gpu_for_each_of_its_devices_and_is_told_by_bfloat16_from_there() -> None:
    sampler = SamplerConfig(tensor_parallel_size=4)
    assert resolve_sampler(sampler, has_gpus=True).gpus_per_replica == 4.0
    assert not resolve_sampler(sampler, has_gpus=False).on_gpu
    tolerances = [resolve(make_recipe(), has_gpus=has_gpus).sync.tolerance for has_gpus in (False, True)]
    assert tolerances == [0.001, 0.1] and SyncConfig().tolerance == "auto"


def test_a_saved_state_is_known_by_the_section_as_it_was_asked_for_and_by_its_ranks() -> None:
    asked = TrainerConfig()
    two = asked.model_copy(update={"num_workers": 2})
    assert resolve_trainer(asked, has_gpus=True).asked == resolve_trainer(asked, has_gpus=False).asked == two
    settled = resolve(make_recipe(), has_gpus=False, at_hand=laptop(24))
    assert settled.trainer.asked == asked.model_copy(update={"num_workers": 1}), "another number of ranks, other shards"


# -- a model of real size on a small machine ---------------------------------------------------------------------------


def laptop(gib: float, **changes: Any) -> AtHand:
    """Gemma 3 270M on two cores that compute in bfloat16."""
    return AtHand(
        shape=GEMMA, machine=Hardware(**{"cores": 2, "memory_bytes": int(gib * GIB), "has_bf16": True, **changes})
    )


def settled_on(at_hand: AtHand, *, trains: bool = True, **sections: Any) -> ResolvedRecipe:
    """A recipe that says nothing of sizes, on CPUs."""
    return resolve(make_recipe(**sections), has_gpus=False, at_hand=at_hand, trains=trains)


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("gib", [12, 16, 24, 32, 64, 512])
def test_with_nothing_but_the_model_it_fits_the_machine(gib: int, trains: bool) -> None:
    at_hand = laptop(gib)
    settled = settled_on(at_hand, trains=trains)
    assert misfits(settled, at_hand, trains=trains) == []
    assert settled.sampler.num_replicas == settled.trainer.num_workers == 1, "its weights are held once"
    assert settled.sampler.threads == settled.trainer.threads == 2
    alike = {True: ("bfloat16", 0.25), False: ("float32", 0.001)}[settled.trainer.bf16 or not trains]
    assert (settled.sampler.dtype, settled.sync.tolerance) == alike, "a replica computes as the trainer beside it"


def test_a_cpu_replica_holds_its_lm_head_twice() -> None:
    """Seen of Gemma 3 270M in float32: 671 MB for the embedding, and as much for what vLLM packs of it."""
    settled = settled_on(laptop(24), sampler={"dtype": "float32"})
    parts = {part.name: part.num_bytes for part in replica_memory(settled, GEMMA, device_bytes=0).parts}
    assert parts["packed LM head"] == 4 * 262_144 * 640
    assert parts["weights"] == 4 * GEMMA_PARAMETERS


def test_what_other_programs_hold_is_told_before_a_run_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself an evaluation takes less than a run, which has a trainer beside its replica."""
    monkeypatch.setattr(machines, "free_memory", lambda: 12 * GIB)
    (said,) = crowding(make_recipe(), laptop(24))
    assert said.startswith("warning: 12.0 GiB of 24.0 GiB of memory are free now, and this is counted to take 1")
    assert "model states in host memory" in said and "end other programs, or ask for less" in said
    assert crowding(make_recipe(), laptop(24), trains=False) == ()
    monkeypatch.setattr(machines, "free_memory", lambda: 24 * GIB)
    assert crowding(make_recipe(), laptop(24)) == ()


def test_an_evaluation_starts_on_less() -> None:
    """0.5 GiB of weights in bfloat16, 1 GiB of cache: no trainer is beside it."""
    at_hand = laptop(8)
    assert misfits(settled_on(at_hand, trains=False), at_hand, trains=False) == []


def test_the_cache_is_an_eighth_of_the_memory_and_the_longest_sequence_what_it_holds() -> None:
    """In float32 a token takes 2 x 18 layers x 256 x 4 B = 36,864 B: 29,127 fit 1 GiB, less two blocks of 128."""
    small, large = (settled_on(laptop(gib, has_bf16=False), trains=False) for gib in (8, 16))
    assert (small.sampler.kv_cache_gib, large.sampler.kv_cache_gib) == (1, 2)
    assert large.model.max_length == 30_000, "the paper's, which the model was made for"
    longest = small.model.longest
    assert longest % 128 == 0 and 28_500 < longest <= 29_127 - 2 * 128
    assert small.evaluate.max_tokens == longest * 2 // 3
    assert small.sampler.max_num_seqs == 16
    roomy = settled_on(laptop(512), trains=False).sampler
    assert roomy.kv_cache_gib == 9, "17 sequences of 30,000 tokens and 18,432 B each"
    given = settled_on(laptop(8, has_bf16=False), trains=False, model={"path": "x", "max_length": 30_000})
    assert given.sampler.kv_cache_gib == 2, "a length that is given is held"
    joined = settled_on(AtHand(shape=GEMMA), trains=False)
    assert (joined.model.longest, joined.sampler.kv_cache_gib) == (30_000, 2), "of a cluster's memory nothing is known"
    thick = shape_of_config({**GEMMA_3_270M, "num_key_value_heads": 4}, where="", counted=GEMMA_PARAMETERS)
    few = settled_on(AtHand(shape=thick, machine=Hardware(cores=2, memory_bytes=8 * GIB)), trains=False)
    assert few.sampler.max_num_seqs == 7, "each has a share of 1,024 tokens"


def test_nothing_is_cut_for_a_cache_of_another_kind() -> None:
    """Compressed keys and values of DeepSeek's take a fraction of what its heads would."""
    config = {**GEMMA_3_270M, "model_type": "deepseek_v3", "num_key_value_heads": 128, "kv_lora_rank": 512}
    shape = shape_of_config({**config, "layer_types": None}, where="config.json", counted=GEMMA_PARAMETERS)
    at_hand = AtHand(shape=shape, machine=Hardware(cores=2, memory_bytes=16 * GIB))
    settled = settled_on(at_hand, trains=False)
    assert (settled.model.max_length, settled.sampler.max_num_seqs) == (30_000, 16)
    assert misfits(settled, at_hand, trains=False) == []


def test_memory_costs_time_first_then_precision_and_data_last() -> None:
    def costs(gib: float) -> tuple[Any, ...]:
        settled = settled_on(laptop(gib))
        trainer = settled.trainer
        longest = settled.imitate.longest
        return longest, trainer.bf16, settled.placement == "shared", trainer.gradient_checkpointing

    found = [costs(gib) for gib in (512, 64, 32, 24, 20, 16, 14, 12, 11, 10.5)]
    lengths = [longest for longest, *_ in found]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == 8192 > lengths[-1] >= 512
    whole = [rest for longest, *rest in found if longest == 8192]
    assert whole == sorted(whole), "recomputing, then taking turns, then bfloat16"
    assert whole[0] == [False, False, False] and len({tuple(rest) for rest in whole}) > 2


def test_a_recipe_s_own_numbers_hold_and_what_cannot_be_is_refused_with_the_key() -> None:
    at_hand = laptop(16)
    asked: dict[str, Any] = {
        "model": {"path": "x", "max_length": 4096},
        "sampler": {"num_replicas": 3, "threads": 1, "kv_cache_gib": 2, "max_num_seqs": 9, "dtype": "float32"},
        "placement": "dedicated",
    }
    settled = settled_on(at_hand, **asked)
    for key, value in asked["sampler"].items():
        assert getattr(settled.sampler, key) == value
    assert (settled.placement, settled.model.max_length, settled.evaluate.max_tokens) == ("dedicated", 4096, 2730)
    (found,) = misfits(settled, at_hand)
    assert found.key == "sampler.num_replicas" and "and has 16.0 GiB; most of it CPU replicas" in found.text
    too_long = settled_on(at_hand, model={"path": "x", "max_length": 40_000})
    assert {found.key for found in misfits(too_long, at_hand)} >= {"model.max_length"}


def test_a_response_that_leaves_no_room_for_a_prompt_is_refused() -> None:
    with pytest.raises(InputError, match=r"evaluate.max_tokens \(30000\) must leave room for the prompt: less than"):
        settled_on(laptop(24), evaluate={"max_tokens": 30_000})


def test_a_small_model_has_two_processes_of_each_kind_and_a_float32_one_stays_it() -> None:
    shape = shape_of_config({**GEMMA_3_270M, "dtype": "float32"}, where="", counted=1_000_000)
    at_hand = AtHand(shape=shape, machine=Hardware(cores=8, memory_bytes=32 * GIB, has_bf16=True))
    settled = settled_on(at_hand)
    assert (settled.sampler.num_replicas, settled.trainer.num_workers, settled.sampler.threads) == (2, 2, 4)
    assert settled.sampler.dtype == "float32"
    odd = settled_on(at_hand, imitate={"global_batch_size": 9}, sft={"global_batch_size": 9})
    assert odd.trainer.num_workers == 1, "nine rows are not divided by two ranks"
    shared = settled_on(
        at_hand, imitate={"global_batch_size": 9}, sft={"global_batch_size": 9}, trainer={"sequence_parallel_size": 2}
    )
    assert (shared.trainer.num_workers, shared.trainer.data_parallel_size) == (2, 1), "two ranks share all nine"


def test_lengths_are_kept_and_all_else_is_settled_anew_on_another_machine() -> None:
    recipe = make_recipe()
    begun = with_lengths(recipe, resolve(recipe, has_gpus=False, at_hand=laptop(12)))
    assert [*autos(begun.model_dump(mode="json", include={"model", "imitate", "rounds"}))] == []
    assert (begun.sampler, begun.trainer, begun.placement) == (recipe.sampler, recipe.trainer, "auto")
    again = resolve(begun, has_gpus=False, at_hand=laptop(64))
    assert (again.model, again.imitate, again.rounds) == (begun.model, begun.imitate, begun.rounds)
    assert again.sampler.kv_cache_gib == 8


def test_what_was_decided_is_told_by_key_and_alike_lengths_once() -> None:
    recipe = make_recipe(sampler={"threads": 1}, rounds=[{"method": "sft"}, {"method": "sft"}])
    found = decided(recipe, resolve(recipe, has_gpus=False, at_hand=laptop(64)))
    assert "sampler.threads" not in found
    assert found["trainer.threads"] == 2
    assert [key for key in found if "max_" in key] == [
        *("model.max_length", "evaluate.max_tokens", "imitate.max_length", "sampler.max_num_seqs"),
    ]


# -- GPUs of one machine -----------------------------------------------------------------------------------------------


def gpus(number: int, gib: int = 80, model: str = "Qwen/Qwen2.5-1.5B-Instruct") -> AtHand:
    machine = Hardware(cores=16, memory_bytes=512 * GIB, num_gpus=number, device_bytes=gib * GIB)
    return AtHand(shape=KNOWN_SHAPES[model], machine=machine)


@pytest.mark.parametrize(("number", "ranks"), [(1, 1), (2, 2), (5, 4), (8, 8)])
def test_trainer_and_samplers_take_turns_on_all_gpus(number: int, ranks: int) -> None:
    """Batches of 96 rows are divided by 4 ranks and not by 5."""
    settled = resolve(make_recipe(), has_gpus=True, at_hand=gpus(number))
    assert (settled.placement, settled.sampler.num_replicas, settled.trainer.num_workers) == ("shared", number, ranks)
    assert (settled.model.max_length, settled.imitate.max_length) == (30_000, 20_000)
    assert misfits(settled, gpus(number)) == []


def test_numbers_that_fit_side_by_side_stay_there() -> None:
    counts = {"sampler": {"num_replicas": 2}, "trainer": {"num_workers": 2}}
    placements = [resolve(make_recipe(**counts), has_gpus=True, at_hand=gpus(n)).placement for n in (4, 3)]
    assert placements == ["dedicated", "shared"]
    apart = resolve(make_recipe(placement="dedicated"), has_gpus=True, at_hand=gpus(8))
    assert (apart.sampler.num_replicas, apart.trainer.num_workers) == (4, 4)


def test_rows_are_cut_to_what_a_small_gpu_trains_and_sequences_to_what_it_samples() -> None:
    """24 GB hold no states of 1.5 billion parameters at 18 B: no length helps, and the key says what does."""
    small = gpus(1, gib=24, model="Qwen/Qwen2.5-0.5B-Instruct")
    settled = resolve(make_recipe(), has_gpus=True, at_hand=small)
    assert misfits(settled, small) == []
    large = gpus(1, gib=24)
    (found, *_) = misfits(resolve(make_recipe(), has_gpus=True, at_hand=large), large)
    assert found.key == "trainer.num_workers" and "trainer.offload: cpu" in found.text


def test_more_gpus_than_there_are_is_refused_before_anything_waits_for_them() -> None:
    settled = resolve(make_recipe(sampler={"num_replicas": 2}), has_gpus=True, at_hand=gpus(1))
    assert [found.key for found in misfits(settled, gpus(1))] == ["sampler.num_replicas"]


def test_replicas_that_sleep_hold_every_gpu_and_read_a_store_when_they_wake() -> None:
    settled = resolve(make_recipe(placement="elastic"), has_gpus=True, at_hand=gpus(8))
    assert (settled.sampler.num_replicas, settled.trainer.num_workers) == (8, 8)
    assert (settled.sync.transport, misfits(settled, gpus(8))) == ("object_store", [])
    ranks = [bundle for bundle in bundles_of(settled) if bundle.role == "trainer"]
    assert {(rank.gpus, rank.shared_gpus) for rank in ranks} == {(0.0, 1.0)}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"sampler": {"num_replicas": 7}}, "trainer.num_workers"),  # seven GPUs are held, eight ranks want one
        ({"sampler": {"gpus_per_replica": 0}}, "placement"),
        ({"trainer": {"use_gpu": False}}, "placement"),
        ({"sampler": {"gpu_memory_utilization": 0.99}}, "sampler.gpu_memory_utilization"),
    ],
)
def test_ranks_that_find_no_engine_to_sleep_for_them_are_refused(sections: dict[str, Any], key: str) -> None:
    asked = {**sections, "trainer": {"num_workers": 8, **sections.get("trainer", {})}}
    settled = resolve(make_recipe(placement="elastic", **asked), has_gpus=True, at_hand=gpus(8))
    assert key in {finding.key for finding in misfits(settled, gpus(8))}


def test_a_rank_has_less_room_beside_an_engine_that_sleeps_and_the_host_takes_its_weights_if_it_shall() -> None:
    rooms = [room_of_rank(resolve(make_recipe(placement=p), has_gpus=True), 80 * GIB) for p in ("shared", "elastic")]
    assert rooms[0] - rooms[1] == 3 * GIB
    kept, dropped = (
        {part.name: part.num_bytes for part in parts_of_machine(settled, QWEN_7B, device_bytes=80 * GIB)}
        for settled in (
            resolve(make_recipe(placement="elastic", sampler={"sleep_level": level, "num_replicas": 2}), has_gpus=True)
            for level in (1, 2)
        )
    )
    assert kept.pop(SLEEPING) == 2 * 2 * QWEN_7B.num_parameters
    assert kept == dropped


# -- what only one side needs ------------------------------------------------------------------------------------------

QWEN_7B = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]


def eight_gpus(**changes: Any) -> AtHand:
    machine = {"cores": 64, "memory_bytes": 512 * GIB, "num_gpus": 8, "device_bytes": 80 * GIB, **changes}
    return AtHand(shape=QWEN_7B, machine=Hardware(**machine))


def test_without_a_trainer_every_gpu_samples() -> None:
    at_hand = eight_gpus()
    assert resolve(make_recipe(), has_gpus=True, at_hand=at_hand, trains=False).sampler.num_replicas == 8


@pytest.mark.parametrize("section", [{"sampler": {"gpus_per_replica": 0}}, {"trainer": {"use_gpu": False}}])
def test_who_does_not_want_the_gpus_does_not_take_turns_for_them(section: dict[str, Any]) -> None:
    assert resolve(make_recipe(**section), has_gpus=True, at_hand=eight_gpus()).placement == "dedicated"


def test_a_trainer_in_bfloat16_is_told_apart_by_the_tolerance_of_bfloat16_also_by_float32_replicas() -> None:
    sections: dict[str, Any] = {"sampler": {"dtype": "float32"}, "trainer": {"bf16": True}}
    assert settled_on(laptop(24), **sections).sync.tolerance == 0.25


def test_an_evaluation_needs_no_room_for_weights_that_nobody_sends() -> None:
    shape = KNOWN_SHAPES["Qwen/Qwen2.5-7B-Instruct"]
    at_hand = AtHand(shape=shape, machine=Hardware(cores=8, memory_bytes=48 * GIB))
    assert misfits(settled_on(at_hand, trains=False), at_hand, trains=False) == []


def test_a_response_that_is_asked_for_fits_the_length_that_follows() -> None:
    at_hand = AtHand(shape=KNOWN_SHAPES["Qwen/Qwen2.5-1.5B-Instruct"], machine=Hardware(cores=2, memory_bytes=8 * GIB))
    assert settled_on(at_hand, trains=False).model.longest < 20_000, "what an eighth of the memory holds"
    settled = settled_on(at_hand, trains=False, evaluate={"max_tokens": 20_000})
    assert (settled.model.longest > 20_000, settled.sampler.kv_cache_gib) == (True, 2)


def test_a_tiny_run_is_not_refused_for_what_is_only_estimated() -> None:
    config = json.loads((BACKBONE / "config.json").read_text(encoding="utf-8"))
    shape = shape_of_config(config, where="config.json")
    tiny = AtHand(shape=shape, machine=Hardware(cores=2, memory_bytes=5 * GIB))
    assert misfits(settled_on(tiny), tiny) == []
    large = laptop(4)
    assert [finding.severity for finding in misfits(settled_on(large), large)][:1] == ["error"]
