"""A real vLLM engine in a process of its own, beside transformers on the same checkpoints."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from still_ray.algo.placement import default_tolerance, resolve_sampler
from still_ray.algo.resolved import ResolvedSampler
from still_ray.config.schema import SamplerConfig
from still_ray.sampler.engine_settings import EngineSettings, engine_environment
from still_ray.sampler.protocol import SampledTokens, SamplerDeadError, SamplerError, SamplerStats
from still_ray.types import (
    Completion,
    FinishReason,
    PartialResponse,
    ProbeSequence,
    SamplingSettings,
    packed_tokens,
)
from still_ray.weight_sync.checkpoint import iterate
from still_ray.weight_sync.digests import digests_of
from still_ray.weight_sync.errors import SyncError
from still_ray.weight_sync.proof import Answer, ProbeProof, Prover
from still_ray.weight_sync.transports.object_store import ObjectStore
from tests.tiny_model import END_TOKEN, PAD_TOKEN, build_tiny_checkpoint

pytestmark = pytest.mark.integration

PROMPTS = [[72, 101, 108], [5, 9, 100, 20, 3, 77, 8, 1], list(range(40, 100))]
GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_tokens=24)
RANDOM = SamplingSettings(temperature=0.8, top_p=0.95, max_tokens=24)

END_ID = 258
SAMPLER = resolve_sampler(SamplerConfig(max_num_seqs=32), has_gpus=False)
MOVES = {"A": (0.1, 0.001), "bfloat16 A": (0.3, 0.1)}
HARDLY = {"A": 1e-7, "bfloat16 A": 0.003}
STORE = ObjectStore("object_store")
SHARED = resolve_sampler(SamplerConfig(max_num_seqs=8, dtype="bfloat16", tensor_parallel_size=2), has_gpus=False)
SPECULATION = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 2}}
SPECULATIVE = SAMPLER.model_copy(update={"engine": SPECULATION})
PROBES = [[(7 * i + j * j) % 250 for j in range(100)] for i in range(4)]


class EngineProcess:
    """One process with one sampler in it; functions run there one at a time."""

    def __init__(
        self, model: Path, log: Path, *, stop_token_ids: tuple[int, ...] = (), sampler: ResolvedSampler = SAMPLER
    ) -> None:
        settings = EngineSettings(
            model_path=str(model),
            name="sampler-0",
            sampler=sampler,
            max_model_len=512,
            seed=1,
            stop_token_ids=stop_token_ids,
        )
        context = multiprocessing.get_context("spawn")
        self.log = log
        self._pool = ProcessPoolExecutor(1, context, initializer=_start, initargs=(settings, str(log)))
        self._pool.submit(os.getpid)  # starts the process

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result(timeout=300)

    def close(self) -> None:
        self.call(_close)
        self._pool.shutdown()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("checkpoints")
    return {
        "A": build_tiny_checkpoint(directory / "A", seed=1),
        "B": build_tiny_checkpoint(directory / "B", seed=2, max_shard_size="100KB"),
        "untied A": build_tiny_checkpoint(directory / "uA", seed=3, tied=False),
        "untied B": build_tiny_checkpoint(directory / "uB", seed=4, tied=False),
        "bfloat16 A": build_tiny_checkpoint(directory / "bA", seed=1, dtype="bfloat16"),
        **{f"A {by}": _moved(directory / "A", by) for by in MOVES["A"]},
        **{f"bfloat16 A {by}": _moved(directory / "bA", by) for by in MOVES["bfloat16 A"]},
    }


def _moved(directory: Path, by: float) -> Path:
    """The checkpoint after an update that changes every weight by about that share."""
    import torch
    from safetensors.torch import load_file, save_file

    moved = Path(shutil.copytree(directory, f"{directory}-{by}"))
    torch.manual_seed(5)
    tensors = load_file(moved / "model.safetensors")
    changed = {name: (old.float() * (1 + by * torch.randn(old.shape))).to(old.dtype) for name, old in tensors.items()}
    save_file(changed, moved / "model.safetensors", metadata={"format": "pt"})
    return moved


@pytest.fixture(scope="module")
def engines(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, EngineProcess]]:
    logs = tmp_path_factory.mktemp("engines")
    _end_sequences_elsewhere(checkpoints["untied A"])
    processes = {
        "A": EngineProcess(checkpoints["A"], logs / "A"),
        "untied A": EngineProcess(checkpoints["untied A"], logs / "untied A", stop_token_ids=(END_ID,)),
        "bfloat16 A": EngineProcess(checkpoints["bfloat16 A"], logs / "bfloat16 A", sampler=SHARED),
        "speculative A": EngineProcess(checkpoints["A"], logs / "speculative A", sampler=SPECULATIVE),
    }
    yield processes
    for process in processes.values():
        process.close()


def _end_sequences_elsewhere(model: Path) -> None:
    """Gives a model the eos of a base model, which is not the token that ends a turn of its chat template."""
    changed = {"tokenizer_config": {"eos_token": PAD_TOKEN}, "config": {"eos_token_id": 256}}
    for name, eos in (changed | {"generation_config": {"eos_token_id": 256}}).items():
        path = model / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | eos))


@pytest.fixture
def engine(engines: dict[str, EngineProcess]) -> EngineProcess:
    return engines["A"]


# Functions that run in the engine's process.

_SAMPLER: Any = None


def _start(settings: EngineSettings, log: str) -> None:
    global _SAMPLER  # noqa: PLW0603
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(engine_environment(settings))
    from still_ray.sampler.vllm_sampler import VllmSampler

    _SAMPLER = VllmSampler(settings)


def _close() -> None:
    _SAMPLER.close()


def _complete(prompts: list[list[int]], seeds: list[int], settings: SamplingSettings) -> list[Completion]:
    futures = [_SAMPLER.submit(prompt, seed, settings) for prompt, seed in zip(prompts, seeds, strict=True)]
    return [future.result() for future in futures]


def _num_steps() -> int:
    return int(_SAMPLER.stats().num_steps)


def _complete_watched(prompts: list[list[int]], settings: SamplingSettings) -> tuple[int, list[SamplerStats]]:
    """Tokens of responses to prompts, and what the sampler said of its load meanwhile and afterwards."""
    before = _SAMPLER.stats()
    futures = [_SAMPLER.submit(prompt, seed, settings) for seed, prompt in enumerate(prompts)]
    loads = [before]
    while not all(future.done() for future in futures):
        loads.append(_SAMPLER.stats())
        time.sleep(0.001)
    loads.append(_SAMPLER.stats())
    return sum(future.result().num_tokens for future in futures), loads


def _cut(
    prompt: list[int], settings: SamplingSettings, num_tokens: int
) -> tuple[PartialResponse, Completion, list[Completion]]:
    """What there is of a response after some tokens, in two looks; the whole; and twice what goes on from the first."""
    future = _SAMPLER.submit(prompt, 5, settings)
    first, start = None, 0
    while start < num_tokens:
        sampled = _SAMPLER.sampled({future: start}).result().get(future)
        if sampled is not None:
            part = _partial_response(sampled)
            first = part if first is None else first.extended(part)
            start = first.num_tokens
    assert first is not None
    again = [_SAMPLER.submit(prompt, 5, settings, prefix=first) for _ in range(2)]
    after = _SAMPLER.sampled({again[0]: 0}).result()
    assert all(sampled.start == first.num_tokens for sampled in after.values()), "a prefix is not reported again"
    return first, future.result(), [one.result() for one in again]


def _partial_response(sampled: SampledTokens) -> PartialResponse:
    return PartialResponse(
        round=1,
        problem_id="p",
        sample_index=0,
        policy_version=0,
        start=sampled.start,
        tokens=packed_tokens(sampled.token_ids),
        sum_logprob=sampled.sum_logprob,
        latency_s=1.0,
    )


def _finished(prompt: list[int], settings: SamplingSettings, prefix: PartialResponse) -> tuple[int, Completion]:
    """The engine's steps for a response that was finished elsewhere, and the response."""
    before = _num_steps()
    completion = _SAMPLER.submit(prompt, 5, settings, prefix=prefix).result()
    return _num_steps() - before, completion


def _score(sequences: list[list[int]]) -> list[tuple[float, ...]]:
    scores: list[tuple[float, ...]] = _SAMPLER.score(sequences)
    return scores


def _complete_in_steps(prompts: list[list[int]], settings: SamplingSettings) -> tuple[int, list[Completion]]:
    """Responses to prompts, and the engine's steps meanwhile."""
    before = _num_steps()
    completions = _complete(prompts, [0] * len(prompts), settings)
    return _num_steps() - before, completions


def _load_buckets(directory: Path, version: int, without: str = "") -> int:
    from still_ray.weight_sync import checkpoint, packing

    tensors = ((name, tensor) for name, tensor in checkpoint.iterate(directory) if name != without)
    _SAMPLER.load_weights((STORE.payload(bucket) for bucket in packing.pack(tensors, 20_000)), version)
    return int(_SAMPLER.policy_version)


def _load_checkpoint(directory: Path, version: int) -> int:
    _SAMPLER.load_weights([{"transport": "checkpoint", "path": str(directory)}], version)
    return int(_SAMPLER.policy_version)


def _update(directory: Path, version: int, accident: str = "") -> Answer:
    """A weight update as a replica makes it, with an accident on the way or after it."""
    from still_ray.weight_sync import checkpoint, packing

    tensors = dict(checkpoint.iterate(directory))
    sent, before = digests_of(tensors.items()), _SAMPLER.score(PROBES)
    damaged = _damaged(tensors, accident)
    received = _SAMPLER.load_weights((STORE.payload(b) for b in packing.pack(damaged.items(), 20_000)), version, sent)
    return Answer(
        policy_version=_SAMPLER.policy_version,
        took_weights=True,
        scores_before=before,
        scores_after=_SAMPLER.score(PROBES),
        digests=received,
    )


def _damaged(tensors: dict[str, Any], accident: str) -> dict[str, Any]:
    import torch

    one, other = (f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1))
    if accident == "a flipped bit":
        tensors[one].view(torch.uint8).view(-1)[40] ^= 1
    if accident == "a dropped tensor":
        del tensors[one]
    if accident == "swapped layers":
        tensors[one], tensors[other] = tensors[other], tensors[one]
    return tensors


def _keep_old_weights(ranks: list[int], old: Path) -> None:
    """Has these ranks take the next update in, and load another checkpoint instead; no rank: no more."""
    _SAMPLER._engine.collective_rpc(_load_another, args=(ranks, str(old)))


def _load_another(worker: Any, ranks: list[int], path: str) -> None:
    from still_ray.weight_sync import checkpoint

    model = worker.weight_transfer_engine.model
    vars(model).pop("load_weights", None)
    load, paths = model.load_weights, [Path(path)]

    def load_another(tensors: Any) -> Any:
        deque(tensors, maxlen=0)
        return load(checkpoint.iterate(paths.pop())) if paths else set()

    if worker.rank in ranks:
        vars(model)["load_weights"] = load_another


def _load_nothing_of(part: str) -> None:
    """Makes the model leave a part of the next update alone, as vLLM does with a name that it does not know."""
    _SAMPLER._engine.collective_rpc(_leave_out, args=(part,))


def _leave_out(worker: Any, part: str) -> None:
    model = worker.weight_transfer_engine.model
    load = type(model).load_weights
    vars(model)["load_weights"] = lambda tensors: load(model, (pair for pair in tensors if part not in pair[0]))


def _hold_on_to_the_cache() -> None:
    _SAMPLER._engine.reset_prefix_cache = lambda: False


def _let_the_cache_go() -> None:
    del _SAMPLER._engine.reset_prefix_cache


def _load_broken_stream() -> None:
    def payloads() -> Iterator[dict[str, Any]]:
        raise ConnectionError("the bucket is lost")
        yield {}

    _SAMPLER.load_weights(payloads(), 9)


def _versions_around_an_update(directory: Path) -> tuple[list[Completion], list[Completion]]:
    """Requests just before and just after an update that was asked for while the first were running."""
    import threading

    before = [_SAMPLER.submit(prompt, 0, replace(GREEDY, max_tokens=400)) for prompt in PROMPTS]
    update = threading.Thread(target=_load_checkpoint, args=(directory, 7))
    update.start()
    while update.is_alive() and _SAMPLER._exclusive is None:
        pass
    after = [_SAMPLER.submit(prompt, 0, GREEDY) for prompt in PROMPTS]
    update.join()
    return [future.result() for future in before], [future.result() for future in after]


def _sleep_and_wake(level: int) -> tuple[bool, str, list[bool]]:
    """Whether an earlier request was served, what a later one met, and whether vLLM took itself for asleep."""
    earlier = _SAMPLER.submit(PROMPTS[0], 0, GREEDY)
    _SAMPLER.sleep(level)
    _SAMPLER.sleep(level)  # asks nothing more of an engine that sleeps
    asleep = [_SAMPLER._engine.is_sleeping()]
    refused = _SAMPLER.submit(PROMPTS[0], 0, GREEDY).exception()
    _SAMPLER.wake()
    _SAMPLER.wake()
    return earlier.done(), str(refused), [*asleep, _SAMPLER._engine.is_sleeping()]


def _break_the_engine() -> tuple[list[str], list[str]]:
    """Makes a step raise, as a lost device would, and says how callers and the owner heard of it."""
    heard: list[str] = []
    _SAMPLER._on_dead = lambda error: heard.append(repr(error))

    def step() -> None:
        raise RuntimeError("device lost")

    futures = [_SAMPLER.submit(PROMPTS[0], 0, SamplingSettings(temperature=0, top_p=1, max_tokens=400))]
    _SAMPLER._engine.step = step
    futures.append(_SAMPLER.submit(PROMPTS[0], 0, GREEDY))
    errors = [future.exception() for future in futures]
    _SAMPLER._thread.join()
    errors.append(_SAMPLER.submit(PROMPTS[0], 0, GREEDY).exception())
    return [f"{type(error).__name__}: {error}" for error in errors], heard


# What transformers says.


@functools.cache
def _reference(directory: Path) -> Any:
    from transformers import Qwen2ForCausalLM

    return Qwen2ForCausalLM.from_pretrained(directory).eval()


def greedy_tokens(directory: Path, prompt: list[int]) -> tuple[int, ...]:
    import torch

    ids = torch.tensor([prompt])
    out = _reference(directory).generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=GREEDY.max_tokens
    )
    return tuple(out[0, len(prompt) :].tolist())


def logprobs(directory: Path, token_ids: list[int]) -> list[float]:
    import torch

    with torch.no_grad():
        rows = _reference(directory)(torch.tensor([token_ids])).logits[0, :-1].float().log_softmax(-1)
    values: list[float] = rows.gather(-1, torch.tensor(token_ids[1:])[:, None])[:, 0].tolist()
    return values


def assert_serves(engine: EngineProcess, directory: Path) -> None:
    """The engine's greedy tokens and its scores are those of transformers on that checkpoint."""
    completions = engine.call(_complete, PROMPTS, [0] * len(PROMPTS), GREEDY)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert completion.token_ids == greedy_tokens(directory, prompt)
    for prompt, scores in zip(PROMPTS, engine.call(_score, PROMPTS), strict=True):
        assert scores == pytest.approx(logprobs(directory, prompt), abs=1e-3)


def test_both_transports_replace_the_weights_in_place(engine: EngineProcess, checkpoints: dict[str, Path]) -> None:
    assert_serves(engine, checkpoints["A"])
    assert engine.call(_load_buckets, checkpoints["B"], 1) == 1
    assert_serves(engine, checkpoints["B"])
    assert engine.call(_load_checkpoint, checkpoints["A"], 2) == 2
    assert_serves(engine, checkpoints["A"])


def test_a_response_that_was_cut_goes_on_from_its_tokens(engine: EngineProcess) -> None:
    """By the tokens, not by the text: a token of the tiny model is a byte, so a cut may lie within a character."""
    settings = replace(GREEDY, max_tokens=300)
    part, whole, again = engine.call(_cut, PROMPTS[1], settings, 100)
    assert 100 <= part.num_tokens < 300 and part.token_ids == whole.token_ids[: part.num_tokens]
    for continued in again:
        assert (continued.token_ids, continued.text) == (whole.token_ids, whole.text)
        assert continued.sum_logprob == pytest.approx(whole.sum_logprob, abs=1e-3)
        assert continued.finish_reason is FinishReason.LENGTH and continued.latency_s > part.latency_s
    steps, finished = engine.call(_finished, PROMPTS[1], replace(settings, max_tokens=part.num_tokens), part)
    assert steps == 0 and finished.token_ids == part.token_ids and finished.finish_reason is FinishReason.LENGTH


def test_what_follows_a_cut_is_drawn_anew_and_the_same_each_time(engine: EngineProcess) -> None:
    part, whole, again = engine.call(_cut, PROMPTS[1], replace(RANDOM, max_tokens=300), 100)
    assert again[0].token_ids == again[1].token_ids != whole.token_ids
    assert again[0].token_ids[: part.num_tokens] == whole.token_ids[: part.num_tokens] == part.token_ids


def test_an_untied_output_head_is_replaced_too(engines: dict[str, EngineProcess], checkpoints: dict[str, Path]) -> None:
    engine = engines["untied A"]
    assert_serves(engine, checkpoints["untied A"])
    engine.call(_load_buckets, checkpoints["untied B"], 1)
    assert_serves(engine, checkpoints["untied B"])


@pytest.mark.parametrize("name", ["A", "speculative A"])
def test_a_seed_decides_the_response_whatever_runs_beside_it(engines: dict[str, EngineProcess], name: str) -> None:
    engine = engines[name]
    (alone,) = engine.call(_complete, [PROMPTS[1]], [5], RANDOM)
    together = engine.call(_complete, [PROMPTS[1]] * 20, list(range(20)), RANDOM)
    assert together[5].token_ids == alone.token_ids
    assert len({completion.token_ids for completion in together}) == 20


def test_greedy_responses_under_speculation_are_those_without_it_in_fewer_steps(
    engines: dict[str, EngineProcess], checkpoints: dict[str, Path]
) -> None:
    """What the recipe hands on to the engine reaches it, and no promise gives; its weights are never updated."""
    plain, speculative = engines["A"], engines["speculative A"]
    plain.call(_load_checkpoint, checkpoints["A"], 3)
    repeated = [[*PROMPTS[1]] * 6, [72, 101, 108] * 12]
    long = replace(GREEDY, max_tokens=200)
    steps, expected = plain.call(_complete_in_steps, repeated, long)
    fewer, found = speculative.call(_complete_in_steps, repeated, long)
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.sum_logprob for one in found] == pytest.approx([one.sum_logprob for one in expected], abs=1e-2)
    assert fewer < steps, "drafts were accepted"
    for prompt, scores in zip(PROMPTS, speculative.call(_score, PROMPTS), strict=True):
        assert scores == pytest.approx(logprobs(checkpoints["A"], prompt), abs=1e-3)


def test_the_sum_of_log_probabilities_is_before_temperature(
    engine: EngineProcess, checkpoints: dict[str, Path]
) -> None:
    for completion in engine.call(_complete, [PROMPTS[1]] * 3, [1, 2, 3], RANDOM):
        whole = logprobs(checkpoints["A"], PROMPTS[1] + list(completion.token_ids))
        assert completion.sum_logprob == pytest.approx(sum(whole[len(PROMPTS[1]) - 1 :]), abs=1e-2)


@pytest.mark.parametrize(("model", "ends"), [("A", {END_ID}), ("untied A", {END_ID, 256})])
def test_a_response_ends_in_an_end_token_or_at_its_limit(
    engines: dict[str, EngineProcess], model: str, ends: set[int]
) -> None:
    """In the model's own eos or, where that is another, also in the token that ends a turn; neither is text."""
    long = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=300)
    completions = engines[model].call(_complete, [PROMPTS[0]] * 40, list(range(40)), long)
    by_reason = {reason: [c for c in completions if c.finish_reason is reason] for reason in FinishReason}

    assert {c.token_ids[-1] for c in by_reason[FinishReason.STOP]} == ends
    assert not any(ends & set(c.token_ids[:-1]) for c in completions)
    assert not any(END_TOKEN in c.text for c in by_reason[FinishReason.STOP])
    assert by_reason[FinishReason.LENGTH]
    assert all(c.num_tokens == 300 for c in by_reason[FinishReason.LENGTH])


def test_every_token_of_a_response_is_a_step_of_the_engine(engine: EngineProcess) -> None:
    before = engine.call(_num_steps)
    (completion,) = engine.call(_complete, PROMPTS[:1], [0], GREEDY)
    assert engine.call(_num_steps) - before >= completion.num_tokens > 1
    after = engine.call(_num_steps)
    time.sleep(0.5)
    assert engine.call(_num_steps) == after, "an idle engine makes none"


def test_tokens_count_while_their_responses_run(engine: EngineProcess) -> None:
    num_tokens, loads = engine.call(_complete_watched, PROMPTS, replace(RANDOM, max_tokens=60))
    assert loads[-1].num_decoded_tokens - loads[0].num_decoded_tokens == num_tokens
    assert any(load.num_running == 3 and load.num_running_tokens for load in loads)
    assert (loads[-1].num_running, loads[-1].num_waiting, loads[-1].num_running_tokens) == (0, 0, 0)


def test_markers_stay_in_the_text(engine: EngineProcess) -> None:
    hot = SamplingSettings(temperature=2.0, top_p=1.0, max_tokens=300)
    completions = engine.call(_complete, [PROMPTS[0]] * 20, list(range(20)), hot)
    assert any(259 in c.token_ids for c in completions)
    assert all(("<|begin_of_thought|>" in c.text) == (259 in c.token_ids) for c in completions)


def test_the_room_of_the_model_ends_a_response(engine: EngineProcess) -> None:
    (completion,) = engine.call(_complete, [[7] * 505], [0], GREEDY)
    assert (completion.num_tokens, completion.finish_reason) == (7, FinishReason.LENGTH)


def test_a_prompt_that_does_not_fit_is_refused(engine: EngineProcess) -> None:
    with pytest.raises(SamplerError, match="prompt of 512 tokens does not fit max_model_len 512"):
        engine.call(_complete, [[7] * 512], [0], GREEDY)


def test_settings_that_vllm_does_not_know_are_refused(engine: EngineProcess) -> None:
    with pytest.raises(SamplerError, match="temperature must be in"):
        engine.call(_complete, [PROMPTS[0]], [0], SamplingSettings(temperature=5.0, top_p=1.0, max_tokens=4))


def test_a_prompt_that_vllm_refuses_leaves_the_engine_alive(engine: EngineProcess) -> None:
    with pytest.raises(SamplerError, match="cannot serve the request"):
        engine.call(_complete, [[1_000_000]], [0], GREEDY)
    assert engine.call(_complete, [PROMPTS[0]], [0], GREEDY)


def test_more_prompt_tokens_than_one_step_takes_are_served(engine: EngineProcess) -> None:
    """vLLM 0.32 on CPU dies of seeded requests whose prompts are computed in pieces."""
    prompts = [[7 + i % 200] * 450 for i in range(40)]
    completions = engine.call(_complete, prompts, list(range(40)), RANDOM)
    assert all(completion.num_tokens for completion in completions)


def test_an_update_waits_for_earlier_requests(engine: EngineProcess, checkpoints: dict[str, Path]) -> None:
    engine.call(_load_checkpoint, checkpoints["A"], 6)
    before, after = engine.call(_versions_around_an_update, checkpoints["B"])
    assert [c.token_ids[: GREEDY.max_tokens] for c in before] == [
        greedy_tokens(checkpoints["A"], prompt) for prompt in PROMPTS
    ]
    assert [c.token_ids for c in after] == [greedy_tokens(checkpoints["B"], prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("model", ["A", "bfloat16 A"])
def test_an_engine_that_sleeps_refuses_requests_and_takes_new_weights_when_it_wakes(
    engines: dict[str, EngineProcess], checkpoints: dict[str, Path], model: str, level: int
) -> None:
    """On a CPU vLLM frees nothing, so that the old weights are still there; the second engine has two workers."""
    engine, new = engines[model], f"{model} {MOVES[model][0]}"
    engine.call(_load_checkpoint, checkpoints[model], 6)
    before = engine.call(_score, PROBES)
    was_served, refused, asleep = engine.call(_sleep_and_wake, level)
    assert was_served and refused.endswith(" sleeps") and asleep == [True, False]
    assert engine.call(_score, PROBES) == before
    assert not judge(checkpoints, model, new, engine.call(_update, checkpoints[new], 7)).weak
    engine.call(_load_checkpoint, checkpoints[model], 0)


MISSING = "model.layers.1.self_attn.k_proj.weight"


def test_an_update_that_does_not_fit_is_refused_by_name(engine: EngineProcess, checkpoints: dict[str, Path]) -> None:
    with pytest.raises(SyncError, match=f"lacks {MISSING}$"):
        engine.call(_load_buckets, checkpoints["B"], 8, MISSING)
    with pytest.raises(SamplerError, match="its update to policy version 8 failed"):
        engine.call(_complete, PROMPTS, [0, 0, 0], GREEDY)
    with pytest.raises(SyncError, match=r"no parameter lm_head\.weight|has shape"):
        engine.call(_load_checkpoint, _with_a_foreign_tensor(checkpoints["A"]), 8)
    with pytest.raises(ConnectionError, match="the bucket is lost"):
        engine.call(_load_broken_stream)

    assert engine.call(_load_buckets, checkpoints["B"], 9) == 9
    assert_serves(engine, checkpoints["B"])


def _with_a_foreign_tensor(directory: Path) -> Path:
    from safetensors.torch import save_file

    from still_ray.weight_sync import checkpoint

    tensors = dict(checkpoint.iterate(directory))
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:, :-1].contiguous()
    foreign = directory.parent / "foreign"
    foreign.mkdir(exist_ok=True)
    save_file(tensors, foreign / "model.safetensors")
    return foreign


# -- the proof of an update -------------------------------------------------------------------------------------------


def judge(checkpoints: dict[str, Path], before: str, after: str, answer: Answer) -> ProbeProof:
    """What the driver makes of a replica's answer; the trainer's part is played by transformers."""
    expected = [logprobs(checkpoints[after], ids) for ids in PROBES]
    started = [logprobs(checkpoints[before], ids) for ids in PROBES]
    prover = Prover(default_tolerance("bfloat16" if "bfloat16" in after else "float32"))
    prover.expect((0, before), [], digests_of(iterate(checkpoints[before])))
    probes = [
        ProbeSequence(token_ids=tuple(ids), logprobs=tuple(now), start_logprobs=tuple(start))
        for ids, now, start in zip(PROBES, expected, started, strict=True)
    ]
    prover.expect((answer.policy_version, after), probes, digests_of(iterate(checkpoints[after])))
    proof = prover.judge("replica-0", answer)
    assert proof is not None
    return proof


@pytest.mark.parametrize("model", MOVES)
def test_what_does_not_come_as_it_was_sent_is_refused(
    engines: dict[str, EngineProcess], checkpoints: dict[str, Path], model: str
) -> None:
    new = checkpoints[f"{model} {MOVES[model][0]}"]
    named = r"model\.layers\.0\.mlp\.up_proj\.weight"
    for accident, complaint in {
        "a flipped bit": f"what came is not what was sent: {named}$",
        "swapped layers": f"what came is not what was sent: {named}, ",
        "a dropped tensor": f"lacks {named}$",
    }.items():
        engines[model].call(_load_checkpoint, checkpoints[model], 0)
        with pytest.raises(SyncError, match=complaint):
            engines[model].call(_update, new, 3, accident)
    with pytest.raises(SamplerError, match="its update to policy version 3 failed"):
        engines[model].call(_complete, PROMPTS, [0, 0, 0], GREEDY)
    engines[model].call(_load_checkpoint, checkpoints[model], 0)


@pytest.mark.parametrize(("model", "by"), [(model, by) for model, moves in MOVES.items() for by in moves])
def test_probes_tell_new_weights_from_old_ones_and_from_a_lost_shard(
    engines: dict[str, EngineProcess], checkpoints: dict[str, Path], model: str, by: float
) -> None:
    engine, new = engines[model], f"{model} {by}"
    engine.call(_load_checkpoint, checkpoints[model], 0)
    proof = judge(checkpoints, model, new, engine.call(_update, checkpoints[new], 3))
    assert not proof.weak
    for ranks in ([0, 1], [1]) if model == "bfloat16 A" else ([0],):
        engine.call(_load_checkpoint, checkpoints[model], 0)
        engine.call(_keep_old_weights, ranks, checkpoints[model])
        answer = engine.call(_update, checkpoints[new], 4)
        engine.call(_keep_old_weights, [], checkpoints[model])
        with pytest.raises(SyncError, match="replica-0 does not serve policy version 4: its probe's log-prob"):
            judge(checkpoints, model, new, answer)
    engine.call(_load_checkpoint, checkpoints[model], 0)


@pytest.mark.parametrize("model", MOVES)
def test_weights_that_hardly_move_are_proved_weakly(
    engines: dict[str, EngineProcess], checkpoints: dict[str, Path], model: str
) -> None:
    """Digests alone prove them then, except that scores which stayed the same show that nothing was loaded."""
    checkpoints[f"{model} hardly"] = _moved(checkpoints[model], HARDLY[model])
    engines[model].call(_load_checkpoint, checkpoints[model], 0)
    answer = engines[model].call(_update, checkpoints[f"{model} hardly"], 3)
    proof = judge(checkpoints, model, f"{model} hardly", answer)
    assert proof.weak and proof.shift > 0
    engines[model].call(_load_checkpoint, checkpoints[model], 0)
    with pytest.raises(SyncError, match="those before the update, to the last bit"):
        judge(checkpoints, model, f"{model} hardly", replace(answer, scores_after=engines[model].call(_score, PROBES)))


def test_a_parameter_that_the_model_did_not_load_is_named(engine: EngineProcess, checkpoints: dict[str, Path]) -> None:
    engine.call(_load_nothing_of, "layers.1.mlp.down_proj")
    with pytest.raises(SyncError, match=r"the model did not load model\.layers\.1\.mlp\.down_proj\.weight"):
        engine.call(_load_buckets, checkpoints["B"], 8)
    engine.call(_keep_old_weights, [], checkpoints["A"])
    engine.call(_load_checkpoint, checkpoints["A"], 9)
    assert_serves(engine, checkpoints["A"])


def test_a_cache_of_the_old_weights_is_an_error(engine: EngineProcess, checkpoints: dict[str, Path]) -> None:
    engine.call(_hold_on_to_the_cache)
    with pytest.raises(SamplerError, match="the cache of prefixes, computed by the old weights, cannot be emptied"):
        engine.call(_load_buckets, checkpoints["B"], 8)
    with pytest.raises(SamplerError, match="its update to policy version 8 failed"):
        engine.call(_complete, PROMPTS, [0, 0, 0], GREEDY)
    engine.call(_let_the_cache_go)
    engine.call(_load_checkpoint, checkpoints["A"], 9)
    assert_serves(engine, checkpoints["A"])


def test_the_engine_says_nothing(engine: EngineProcess) -> None:
    engine.call(_score, PROMPTS)
    assert engine.log.read_text() == ""


def test_when_the_engine_dies_everyone_hears_of_it(engine: EngineProcess) -> None:
    errors, heard = engine.call(_break_the_engine)
    assert [error.split(":")[0] for error in errors] == [SamplerDeadError.__name__] * 3
    assert all("sampler-0 died: RuntimeError: device lost" in error for error in errors)
    assert heard == ["RuntimeError('device lost')"]
