"""Share of an exploration's tokens that are sampled twice after its driver was killed at 90 %.

    python -m benchmarks.bench_killed_round --problems 32 --latency-s 20

Replicas without a model, whose tokens come at an even pace, in the real pipeline with the real files. The moment of the
kill is drawn, so that it falls anywhere between two writes. Baseline: of the same kill, what only whole trajectories
would have kept.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import ray

from benchmarks.figures import print_figure
from still_ray.actors.launcher import engine_of
from still_ray.actors.pool.actor_pool import ActorPool
from still_ray.actors.rehearsal.replica import FakeReplica, FakeReplicaSettings
from still_ray.actors.sampling.replica import replica_actor
from still_ray.actors.sampling.rollouts import RolloutPipeline
from still_ray.actors.training.policy_sync import CurrentPolicy, PolicySync
from still_ray.algo.exploration import rollout_request
from still_ray.algo.placement import resolve
from still_ray.config import ExploreConfig, Recipe, SyncConfig
from still_ray.sampler.fake import FakeSkill
from still_ray.store.partial_responses import StoredPartialResponses
from still_ray.store.trajectories import TrajectoryStore
from still_ray.types import (
    Domain,
    Judgement,
    PartialResponse,
    Problem,
    Rollout,
    RolloutRequest,
    Trajectory,
    Verdict,
    judged,
)

SAMPLES = 4
IN_FLIGHT = 16
"""Responses at each of two replicas."""
LOOK_S = 2.0
"""Longest time between two writes, within which the kill falls."""
RECIPE = Recipe.model_validate(
    {"model": {"path": "/none"}, "data": {"demonstrations": "/d", "problems": "/p", "test": "/t"}, "rounds": []}
)


class Judge:
    """Calls everything correct."""

    async def ready(self) -> None:
        """At once."""

    async def judge(self, rollouts: list[Rollout]) -> list[Trajectory]:
        """See `still_ray.actors.sampling.verifier.VerifierWorker`."""
        verdict = Judgement(verdict=Verdict.CORRECT)
        return [judged(rollout, verdict, created_at="now") for rollout in rollouts]


def explore(folder: Path, problems: int, latency_s: float, kill_at: int) -> int:
    """Samples what the folder lacks; ends the process some time after so many tokens. Returns the tokens in all."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    settled = resolve(RECIPE, has_gpus=False)
    policy = CurrentPolicy(0, "/none")

    def replica(name: str) -> Any:
        settings = FakeReplicaSettings(
            engine=engine_of(settled, name, policy),
            prompt=RECIPE.prompt,
            answers={},
            skill=FakeSkill(),
            latency_s=latency_s,
        )
        return replica_actor(settings, {}, num_gpus=0, actor_class=FakeReplica)

    replicas = ActorPool("replica", replica, size=2, max_restarts=0)
    judges = ActorPool("verifier", lambda name: ray.remote(Judge).remote(), size=1, max_restarts=0)
    for pool in (replicas, judges):
        pool.resume()
        pool.wait_ready()
    admission = PolicySync(replicas, policy, SyncConfig(transport="checkpoint"), tolerance=1.0, published=lambda: None)
    store, partials = TrajectoryStore(folder / "rows"), StoredPartialResponses(folder / "partial")
    killer = _Killer([member.handle for member in replicas.members()], folder / "decoded", kill_at)

    def commit(rows: Sequence[Trajectory]) -> None:
        killer.add(sum(row.num_tokens for row in store.commit(rows)))

    pipeline = RolloutPipeline(
        samplers=replicas, verifiers=judges, max_in_flight=IN_FLIGHT, max_attempts=3, admission=admission
    )
    pipeline.run(_requests(store, problems), commit, name="explore", partials=partials)
    store.merge()
    ray.shutdown()
    return sum(row.num_tokens for row in store)


def _requests(store: TrajectoryStore, problems: int) -> Generator[RolloutRequest]:
    config = ExploreConfig(samples_per_problem=SAMPLES)
    for number in range(problems):
        problem = Problem(id=f"p{number}", domain=Domain.MATH, question=f"What is {number}?", answer="7")
        stored = {key.sample_index for key in store.verdicts if key.problem_id == problem.id}
        wanted = [index for index in range(SAMPLES) if index not in stored]
        if request := rollout_request(problem, config, wanted, seed=1, round_number=1):
            yield request


class _Killer:
    """Ends this process once so many tokens are decoded, and notes how many there were."""

    def __init__(self, replicas: Sequence[Any], note: Path, kill_at: int) -> None:
        self._replicas = replicas
        self._note = note
        self._stored = 0
        if kill_at:
            threading.Thread(target=self._watch, args=(kill_at,), daemon=True).start()

    def add(self, num_tokens: int) -> None:
        self._stored += num_tokens

    def _decoded(self) -> int:
        parts: list[list[PartialResponse]] = ray.get(
            [replica.partial_responses.remote({}) for replica in self._replicas]
        )
        return self._stored + sum(part.num_tokens for found in parts for part in found)

    def _watch(self, kill_at: int) -> None:
        while self._decoded() < kill_at:
            time.sleep(0.2)
        time.sleep(LOOK_S * random.random())
        self._note.write_text(str(self._decoded()))
        os.kill(os.getpid(), signal.SIGKILL)


def kept(folder: Path) -> tuple[int, int]:
    """Tokens in trajectories, and those of responses that were in flight."""
    store, partials = TrajectoryStore(folder / "rows"), StoredPartialResponses(folder / "partial")
    partials.forget(store.verdicts)
    return sum(row.num_tokens for row in store), sum(part.num_tokens for part in partials.all())


def main() -> None:
    """Prints the figure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--latency-s", type=float, default=20.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--kill-at", type=int, default=0)
    asked = parser.parse_args()
    if asked.folder is not None:
        explore(asked.folder, asked.problems, asked.latency_s, asked.kill_at)
        return
    with tempfile.TemporaryDirectory() as name:
        whole, folder = Path(name) / "whole", Path(name) / "killed"
        folder.mkdir()
        total = explore(whole, asked.problems, 0.0, 0)
        command = [sys.executable, "-m", "benchmarks.bench_killed_round", "--folder", str(folder)]
        command += ["--problems", str(asked.problems), "--latency-s", str(asked.latency_s)]
        subprocess.run([*command, "--kill-at", str(int(0.9 * total))], check=False)
        decoded = int((folder / "decoded").read_text())
        whole_rows, in_flight = kept(folder)
        written = sum(path.stat().st_size for path in (folder / "partial").glob("*"))
        sys.stderr.write(
            f"killed at {decoded / total:.0%} of {total:,} tokens; {written:,} bytes of partial responses\n"
        )
        subprocess.run(command, check=True)
        same = {row.key: row.response for row in TrajectoryStore(whole / "rows")}
        resumed = {row.key: row.response for row in TrajectoryStore(folder / "rows")}
        assert same == resumed, "every response once, and as if nothing had been cut"
    print_figure(
        "tokens_lost_with_a_killed_driver",
        value=100 * (decoded - whole_rows - in_flight) / decoded,
        unit="% of the tokens sampled",
        baseline=100 * (decoded - whole_rows) / decoded,
    )


if __name__ == "__main__":
    main()
