"""What a replica takes for another policy than its own, and how it reads responses."""

import asyncio
from concurrent.futures import Future
from pathlib import Path

import pytest

from still_ray.actors.sampling.replica import SamplerReplica, UpdateReceipt
from still_ray.algo.placement import resolve_sampler
from still_ray.cli.preflight.models import BACKBONE
from still_ray.config import PromptConfig, SamplerConfig
from still_ray.formats.prompt import ChatRenderer
from still_ray.formats.responses.markers import render_response
from still_ray.formats.tokenizer import load_tokenizer
from still_ray.sampler.engine_settings import EngineSettings
from still_ray.sampler.fake import FakeSampler
from still_ray.sampler.protocol import NO_WEIGHTS, SamplerError
from still_ray.types import (
    Completion,
    FinishReason,
    FormatDefect,
    ProbeSequence,
    RolloutRequest,
    SamplingSettings,
)
from tests.fakes import make_problem


class Replica(SamplerReplica):
    """A replica over a fake engine; the base class would start a real one."""

    def __init__(self, checkpoint: Path, policy_version: int, sleep_level: int = 2) -> None:
        self._checkpoint = str(checkpoint)
        self._sampler = FakeSampler(name="replica-0", policy_version=policy_version)
        self._updating = asyncio.Lock()
        sampler = resolve_sampler(SamplerConfig(sleep_level=sleep_level), has_gpus=False)  # type: ignore[arg-type]
        self._settings = EngineSettings(name="r", model_path="", sampler=sampler, max_model_len=64, seed=0)


def brought(replica: Replica, policy_version: int, checkpoint: Path) -> UpdateReceipt:
    probe = ProbeSequence(token_ids=(1, 2, 3), logprobs=(-1.0, -1.0))
    return asyncio.run(replica.update(policy_version, [], str(checkpoint), [probe]))


class Speaker(Replica):
    """With a tokenizer, to make rollouts of completions."""

    def __init__(self) -> None:
        super().__init__(BACKBONE, 1)
        model, sampler = str(BACKBONE), resolve_sampler(SamplerConfig(), has_gpus=False)
        self._settings = EngineSettings(name="r", model_path=model, sampler=sampler, max_model_len=64, seed=0)
        self._renderers = {"": ChatRenderer.of(load_tokenizer(str(BACKBONE)), PromptConfig())}


def test_a_response_with_a_control_token_is_malformed_and_one_without_is_not() -> None:
    """Such a token may be sampled anywhere; only the one that ends the turn is left out of the text."""
    replica, settings = Speaker(), SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=9)
    request = RolloutRequest(round=1, problem=make_problem(), sample_indices=(0,), seeds=(5,), settings=settings)
    for thought, defect in (("So it is.", None), ("So<|im_start|> it is.", FormatDefect.CONTROL)):
        text = render_response(thought, r"\boxed{7}")
        stop = FinishReason.STOP
        said = Completion(text=text, token_ids=(5, 6), sum_logprob=-1.5, finish_reason=stop, latency_s=0.5)
        rollout = replica._rollout(request, 0, said)
        assert (rollout.parsed.defect, rollout.parsed.thought) == (defect, thought)


def submitted(replica: Replica) -> Future[Completion]:
    return replica._sampler.submit((1, 2), 0, SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=9))


@pytest.mark.parametrize("level", [1, 2])
def test_a_replica_that_sleeps_refuses_requests_until_it_has_the_weights_that_it_shall_serve(
    tmp_path: Path, level: int
) -> None:
    """At level 2 it loads even the version that it had; at level 1 it has that still."""
    replica = Replica(tmp_path, 3, level)
    asyncio.run(replica.sleep())
    with pytest.raises(SamplerError, match="sleeps"):
        submitted(replica).result()
    receipt = brought(replica, 3, tmp_path)
    assert (receipt.policy_version, receipt.transport) == (3, "checkpoint" if level == 2 else "")
    assert bool(receipt.scores_before) == (level == 1), "dropped weights score nothing"
    assert receipt.scores_after and submitted(replica).result().num_tokens > 0


def test_a_replica_without_weights_serves_nothing_although_it_is_awake(tmp_path: Path) -> None:
    replica = Replica(tmp_path, 3)
    asyncio.run(replica.sleep())
    replica._sampler.wake()
    assert replica._sampler.policy_version == NO_WEIGHTS
    with pytest.raises(SamplerError, match="no weights"):
        submitted(replica).result()


def test_the_same_version_of_another_run_is_loaded(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    replica = Replica(one, 2)
    assert brought(replica, 2, one).transport == "", "it has these weights"
    assert brought(replica, 2, other).transport == "checkpoint"
    assert brought(replica, 2, other).transport == ""
    assert brought(replica, 3, other).policy_version == 3
