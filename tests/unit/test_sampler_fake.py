from __future__ import annotations

import pickle

import pytest

from still_ray.sampler.fake import FakeSampler, FakeSkill, fake_logprobs, table_respond
from still_ray.sampler.protocol import Sampler, SamplerDeadError, SamplerError, SamplerStats
from still_ray.types import FinishReason, SamplingSettings
from tests.fakes import make_part

SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=1000)
PROMPT = (1, 2, 3)


def fake(skill: FakeSkill, *, latency_s: float = 0.0) -> Sampler:
    return FakeSampler(name="fake", respond=table_respond({PROMPT: "42"}, skill), latency_s=latency_s)


def texts(sampler: Sampler, num_seeds: int) -> list[str]:
    futures = [sampler.submit(PROMPT, seed, SETTINGS) for seed in range(num_seeds)]
    return [future.result().text for future in futures]


def test_the_same_request_has_the_same_answer() -> None:
    assert texts(fake(FakeSkill()), 20) == texts(fake(FakeSkill()), 20)


def test_answers_are_right_and_well_formed_as_often_as_asked() -> None:
    answers = texts(fake(FakeSkill(correct=0.3, malformed=0.2)), 1000)

    assert sum(r"\boxed{42}" in text for text in answers) / 1000 == pytest.approx(0.3, abs=0.05)
    assert sum(not text.endswith("<|end_of_solution|>") for text in answers) / 1000 == pytest.approx(0.2, abs=0.05)


def test_a_new_policy_version_answers_better() -> None:
    sampler = fake(FakeSkill(correct=0.2, malformed=0.0, gain=0.3))
    before = sum(r"\boxed{42}" in text for text in texts(sampler, 300))
    sampler.load_weights(iter([]), 2)

    assert sampler.policy_version == 2
    assert sum(r"\boxed{42}" in text for text in texts(sampler, 300)) > 2 * before


def test_a_short_limit_truncates() -> None:
    settings = SamplingSettings(temperature=1.0, top_p=1.0, max_tokens=10)
    completion = fake(FakeSkill()).submit(PROMPT, 0, settings).result()

    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.num_tokens == 10


def test_requests_overlap_and_an_update_waits_for_the_earlier_ones() -> None:
    sampler = fake(FakeSkill(), latency_s=0.2)
    futures = [sampler.submit(PROMPT, seed, SETTINGS) for seed in range(50)]
    assert sampler.stats().num_running == 50
    sampler.load_weights(iter([]), 1)

    assert all(future.done() for future in futures)
    assert sampler.stats().num_steps == 50
    assert max(future.result().latency_s for future in futures) < 1.0


def test_scores_are_what_a_fake_trainer_says() -> None:
    sampler = fake(FakeSkill())
    assert sampler.score([[1, 2, 3]]) == [fake_logprobs([1, 2, 3], 0)]
    assert fake_logprobs([1, 2, 3], 0) != fake_logprobs([1, 2, 3], 1)


def test_what_it_cannot_serve_fails_as_with_a_real_sampler() -> None:
    sampler = fake(FakeSkill())
    assert isinstance(sampler.submit([], 0, SETTINGS).exception(), SamplerError)
    sampler.close()
    assert isinstance(sampler.submit(PROMPT, 0, SETTINGS).exception(), SamplerDeadError)


def test_stats_travel_whole_and_count_finished_and_running_tokens() -> None:
    stats = SamplerStats(num_running=2, num_waiting=1, num_generated_tokens=30, num_running_tokens=12, num_steps=9)
    assert pickle.loads(pickle.dumps(stats)) == stats
    assert stats.num_decoded_tokens == 42


def test_what_follows_a_prefix_is_what_would_have_come_without_the_cut() -> None:
    sampler = fake(FakeSkill(), latency_s=0.6)
    future = sampler.submit(PROMPT, 3, SETTINGS)
    while not (tokens := sampler.sampled({future: 0}).result()):
        pass
    part = make_part(ids=tokens[future].token_ids, sum_logprob=tokens[future].sum_logprob)
    again = sampler.submit(PROMPT, 3, SETTINGS, prefix=part)
    whole, continued = future.result(), again.result()
    assert 0 < part.num_tokens < whole.num_tokens
    assert (continued.token_ids, continued.text) == (whole.token_ids, whole.text)
    assert continued.sum_logprob == pytest.approx(whole.sum_logprob)
    assert sampler.stats().num_generated_tokens == 2 * whole.num_tokens - part.num_tokens
