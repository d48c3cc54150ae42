"""The rollout pipeline on fake engines: its makespan on uneven replicas, and what it costs the driver for each rollout.

    python -m benchmarks.bench_pipeline --problems 2560 --rollouts 50000

The pipeline, its pools and its actors are the product's, on Ray, with ten samples of each problem.

`makespan_of_uneven_replicas`: eight engines that sleep, each `SLOTS` responses side by side at its own rate. Lengths
are log-normal, cut at four times their mean. The baseline is a bound that no order of work can beat: all tokens over
the rate of all slots, or the longest response on the fastest replica. The pipeline looks at replicas ten times in the
mean length of a response; in a real run it does so every two seconds of some minutes.

`rollout_cost`: engines that answer at once, verdicts, and the trajectory store, closed at the end. The baseline is the
same calls to the same actors in a loop over `ray.wait`, whose results are kept in a list. `rollout_memory`: what the
driver's process holds above its start at most, on both sides.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import ray

from benchmarks.figures import PeakMemory, print_figure
from still_ray.actors.launcher import engine_of
from still_ray.actors.pool import hang_detector
from still_ray.actors.pool.actor_pool import ActorPool
from still_ray.actors.rehearsal.replica import FakeReplica, FakeReplicaSettings
from still_ray.actors.sampling.rollouts import RolloutPipeline
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.algo.exploration import rollout_request
from still_ray.algo.placement import resolve
from still_ray.algo.stages import plan_stages
from still_ray.config import ExploreConfig, Recipe, load_recipe
from still_ray.sampler.fake import FakeSampler, FakeSkill
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
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
SAMPLES: Final = 10
"""Of each problem."""
BARE_IN_FLIGHT: Final = 64
"""Requests in flight where engines answer at once."""
SLOTS: Final = 32
MEAN_S: Final = 1.0
"""What a response of the mean length takes on the fastest replica."""
SIGMA: Final = 0.8
"""Of the logarithm of lengths: the longest tenth has a third of the tokens."""
LOOK_S: Final = MEAN_S / 10
"""Between two looks at the replicas, in place of 2 s: responses of minutes are pressed into a second here."""
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


def pipeline_of(recipe: Recipe, sampler: Callable[[str], Any], *, num_replicas: int, limit: int) -> RolloutPipeline:
    """Replicas and a verifier, all up, wired as a session wires them.

    Args:
        recipe: Of the run.
        sampler: Starts a replica by its name.
        num_replicas: How many.
        limit: Most samples in flight at one of them.
    """
    replicas = ActorPool("replica", sampler, size=num_replicas, max_restarts=0)
    judges = ActorPool("verifier", lambda _: ray.remote(Judge).options(num_cpus=0.1).remote(), size=1, max_restarts=0)
    config = resolve(recipe, has_gpus=False).sync
    sync = PolicySync(replicas, CurrentPolicy(0, "/nothing"), config, tolerance=1.0, published=lambda: None)
    for pool in (replicas, judges):
        pool.resume()
        pool.wait_ready()
    return RolloutPipeline(samplers=replicas, verifiers=judges, max_in_flight=limit, max_attempts=1, admission=sync)


def replica(recipe: Recipe, actor: type[FakeReplica], *arguments: float) -> Callable[[str], Any]:
    """Starts fake replicas."""

    def start(name: str) -> Any:
        settings = FakeReplicaSettings(
            engine=engine_of(resolve(recipe, has_gpus=False), name, CurrentPolicy(0, "/nothing")),
            prompt=recipe.prompt,
            answers={},
            skill=FakeSkill(),
            latency_s=0.0,
        )
        own = [rates[int(name.rpartition("-")[2])] for rates in (arguments,) if rates]
        return ray.remote(actor).options(num_cpus=0.1, max_concurrency=10_000).remote(settings, *own)

    return start


def requests(num_problems: int) -> Iterator[RolloutRequest]:
    """All samples of each problem, one problem after another."""
    config = ExploreConfig(samples_per_problem=SAMPLES)
    for number in range(num_problems):
        problem = Problem(id=f"p{number}", domain=Domain.MATH, question=f"{number} + 1?", answer="0")
        request = rollout_request(problem, config, range(SAMPLES), seed=0, round_number=1)
        assert request is not None
        yield request


def least_s(seeds: Sequence[int]) -> float:
    """The least time: see the module."""
    lengths = [seconds_of(seed) for seed in seeds]
    return max(sum(lengths) / (SLOTS * sum(RATES)), *lengths)


def makespan(recipe: Recipe, num_problems: int) -> None:
    """A round on uneven replicas."""
    hang_detector.LONGEST_LOOK_S = LOOK_S
    limit = int(SLOTS * recipe.sampler.max_in_flight_factor)
    pipeline = pipeline_of(recipe, replica(recipe, UnevenReplica, *RATES), num_replicas=len(RATES), limit=limit)
    seeds = [seed for request in requests(num_problems) for seed in request.seeds]
    rows = list[Trajectory]()
    seconds = timed(lambda: pipeline.run((request for request in requests(num_problems)), rows.extend, name="bench"))
    assert len({row.key for row in rows}) == len(seeds)
    print_figure("makespan_of_uneven_replicas", value=seconds, unit="s", baseline=least_s(seeds))
    release(pipeline)


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def release(pipeline: RolloutPipeline) -> None:
    """Ends the actors."""
    pipeline.samplers.release()
    pipeline.verifiers.release()


# -- what a rollout costs -------------------------------------------------------------------------------------------


def bare_calls(pipeline: RolloutPipeline, num_problems: int) -> list[Trajectory]:
    """Has the actors generate and judge as many responses, as a loop over `ray.wait` does, and keeps them all."""
    handles = [member.handle for member in pipeline.samplers.members()]
    (judge,) = (member.handle for member in pipeline.verifiers.members())
    judging, kept = list[ray.ObjectRef](), list[Trajectory]()
    for number, request in enumerate(requests(num_problems)):
        _, rollouts = handles[number % len(handles)].generate.remote(request)
        judging.append(judge.judge.remote(rollouts))
        if len(judging) >= BARE_IN_FLIGHT:
            (done,), judging = ray.wait(judging, num_returns=1)
            kept += ray.get(done)
    for rows in ray.get(judging):
        kept += rows
    return kept


def stored(recipe: Recipe, pipeline: RolloutPipeline, num_problems: int, folder: Path) -> None:
    """Has the pipeline sample, judge and store a round, and closes it."""
    store = RunStore(RunDirectory(folder), plan_stages(recipe))
    pipeline.run(
        (request for request in requests(num_problems)),
        lambda rows: store.commit(1, rows),
        name="bench",
        partials=store.partial_responses(1),
    )
    store.close_round(1)
    assert len(store.explored(1)) == num_problems * SAMPLES


def cost(recipe: Recipe, num_rollouts: int) -> None:
    """What a rollout costs the driver beyond the calls, in time and memory."""
    pipeline = pipeline_of(recipe, replica(recipe, FakeReplica), num_replicas=2, limit=BARE_IN_FLIGHT * SAMPLES // 2)
    num_problems = num_rollouts // SAMPLES
    pa.array([0])  # loads pandas, some 35 MB, as Ray Data does in the driver's process in any case
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as ours:
        seconds = timed(lambda: stored(recipe, pipeline, num_problems, Path(folder)))
    with PeakMemory() as bare:
        bare_s = timed(lambda: bare_calls(pipeline, num_problems))
    each_us, megabytes = 1e6 / (num_problems * SAMPLES), 1e-6
    print_figure("rollout_cost", value=seconds * each_us, unit="us", baseline=bare_s * each_us)
    print_figure(
        "rollout_memory",
        value=ours.peak_bytes * megabytes,
        unit="MB above the start",
        baseline=bare.peak_bytes * megabytes,
    )
    release(pipeline)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=2560, help="of the round on uneven replicas; 0: without it")
    parser.add_argument("--rollouts", type=int, default=50_000, help="of the round that is stored; 0: without it")
    options = parser.parse_args()
    recipe = load_recipe(str(Path(__file__).parents[1] / "jobs" / "demo.yaml"), [])
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    if options.problems:
        makespan(recipe, options.problems)
    if options.rollouts:
        cost(recipe, options.rollouts)
    ray.shutdown()


if __name__ == "__main__":
    main()
