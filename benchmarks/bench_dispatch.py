"""Makespan of a round with long-tailed responses on eight uneven replicas, against the least time that it can take.

    python -m benchmarks.bench_dispatch --problems 2560 --samples 10

The pipeline, its pools and its actors are the product's, on Ray; the engines are fakes that sleep: each decodes up to
`SLOTS` responses side by side, each at the replica's rate. Lengths are log-normal, cut at four times their mean. The
baseline is a bound that no order of work can beat: all tokens over the rate of all slots, or the longest response on
the fastest replica.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import ray

from benchmarks.figures import print_figure
from still_ray.actors.launcher import engine_of
from still_ray.actors.pool.actor_pool import ActorPool
from still_ray.actors.rehearsal.replica import FakeReplica, FakeReplicaSettings
from still_ray.actors.sampling.rollouts import RolloutPipeline
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.algo.exploration import rollout_request
from still_ray.algo.placement import resolve
from still_ray.config import ExploreConfig, Recipe, load_recipe
from still_ray.sampler.fake import FakeSampler, FakeSkill
from still_ray.types import (
    Completion,
    Domain,
    FinishReason,
    Judgement,
    PartialResponse,
    Problem,
    Rollout,
    RolloutRequest,
    SamplingSettings,
    Trajectory,
    Verdict,
    judged,
)

RATES: Final = (1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 0.6, 0.5)
"""Of the replicas, relative: half of them on the newest devices."""
SLOTS: Final = 32
MEAN_S: Final = 1.0
"""What a response of the mean length takes on the fastest replica."""
SIGMA: Final = 0.8
"""Of the logarithm of lengths: the longest tenth has a third of the tokens."""
LONGEST: Final = 4.0
"""Mean lengths at which a response is cut, as 20,000 of 5,000 tokens."""


def seconds_of(seed: int) -> float:
    """How long a response takes on the fastest replica; known to nobody beforehand."""
    drawn = random.Random(seed).lognormvariate(-(SIGMA**2) / 2, SIGMA)
    return MEAN_S * min(drawn, LONGEST)


class UnevenSampler(FakeSampler):
    """A fake sampler that decodes `SLOTS` responses side by side, each for as long as its length and the rate say."""

    def __init__(self, sampler: str, rate: float) -> None:
        """See the base class; `rate` is relative to the fastest."""
        super().__init__(name=sampler)
        self._rate = rate
        self._slots = ThreadPoolExecutor(SLOTS)

    def submit(
        self, prompt_ids: Sequence[int], seed: int, settings: SamplingSettings, *, prefix: PartialResponse | None = None
    ) -> Future[Completion]:
        """See `Sampler.submit`."""
        return self._slots.submit(self._decode, seed)

    def _decode(self, seed: int) -> Completion:
        seconds = seconds_of(seed) / self._rate
        time.sleep(seconds)
        return Completion(text="", token_ids=(1,), sum_logprob=0.0, finish_reason=FinishReason.STOP, latency_s=seconds)


class UnevenReplica(FakeReplica):
    """A fake replica around such a sampler."""

    def __init__(self, settings: FakeReplicaSettings, rate: float) -> None:
        """See the base class; `rate` is relative to the fastest."""
        super().__init__(settings)
        self._sampler = UnevenSampler(settings.engine.name, rate)


class Judge:
    """A verifier to which everything is correct, at once."""

    async def ready(self) -> None:
        """At once."""

    async def judge(self, rollouts: list[Rollout]) -> list[Trajectory]:
        """See `still_ray.actors.sampling.verifier`."""
        return [judged(rollout, Judgement(verdict=Verdict.CORRECT), created_at="now") for rollout in rollouts]


def pipeline_of(recipe: Recipe) -> RolloutPipeline:
    """Eight replicas and a verifier, all up, wired as a session wires them."""
    settled, policy = resolve(recipe, has_gpus=False), CurrentPolicy(0, "/nothing")

    def replica(name: str) -> Any:
        settings = FakeReplicaSettings(
            engine=engine_of(settled, name, policy),
            prompt=recipe.prompt,
            answers={},
            skill=FakeSkill(),
            latency_s=0.0,
        )
        rate = RATES[int(name.rpartition("-")[2]) % len(RATES)]
        return ray.remote(UnevenReplica).options(num_cpus=0.1, max_concurrency=10_000).remote(settings, rate)

    replicas = ActorPool("replica", replica, size=len(RATES), max_restarts=0)
    judges = ActorPool("verifier", lambda _: ray.remote(Judge).options(num_cpus=0.1).remote(), size=1, max_restarts=0)
    sync = PolicySync(replicas, policy, settled.sync, tolerance=1.0, published=lambda: None)
    for pool in (replicas, judges):
        pool.resume()
        pool.wait_ready()
    return RolloutPipeline(
        samplers=replicas,
        verifiers=judges,
        max_in_flight=int(SLOTS * recipe.sampler.max_in_flight_factor),
        max_attempts=1,
        admission=sync,
    )


def requests(num_problems: int, num_samples: int) -> Generator[RolloutRequest]:
    """All samples of each problem, one problem after another."""
    config = ExploreConfig(samples_per_problem=num_samples)
    for number in range(num_problems):
        problem = Problem(id=f"p{number}", domain=Domain.MATH, question=f"{number} + 1?", answer="0")
        request = rollout_request(problem, config, range(num_samples), seed=0, round_number=1)
        assert request is not None
        yield request


def least_s(seeds: Sequence[int]) -> float:
    """The bound: see the module."""
    lengths = [seconds_of(seed) for seed in seeds]
    return max(sum(lengths) / (SLOTS * sum(RATES)), *lengths)


def main() -> None:
    """Prints the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=2560)
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args()
    recipe = load_recipe(str(Path(__file__).parents[1] / "jobs" / "demo.yaml"), [])
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    pipeline, rows = pipeline_of(recipe), list[Trajectory]()
    seeds = [seed for request in requests(options.problems, options.samples) for seed in request.seeds]
    started = time.perf_counter()
    pipeline.run(requests(options.problems, options.samples), rows.extend, name="bench")
    seconds = time.perf_counter() - started
    assert len({row.key for row in rows}) == len(seeds)
    print_figure("makespan_of_uneven_replicas", value=seconds, unit="s", baseline=least_s(seeds))
    ray.shutdown()


if __name__ == "__main__":
    main()
