"""A verifier worker: the Ray actor around killable processes.

consumes     rollouts, straight from the replica that made them
produces     trajectories
waits for    its processes, each answer at most its own timeout
unblocked by the process pool, which kills and replaces a process that hangs
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import ray

from still_ray.actors.monitoring import metrics
from still_ray.config import VerifierConfig
from still_ray.types import Judgement, Rollout, Trajectory, Verdict, judged
from still_ray.verifiers.pool import VerifierPool


class VerifierWorker:
    """Judges rollouts; becomes an actor in `verifier_actor`."""

    def __init__(self, name: str, config: VerifierConfig, run: str = "") -> None:
        """Starts the processes.

        Args:
            name: The actor's name.
            config: The recipe's verifier section.
            run: The recipe's name, for the metrics.
        """
        self._name = name
        self._metrics = metrics.MetricsRecorder(run, verifier=name)
        self._num_waiting = 0
        self._pool = VerifierPool.from_config(config)

    def __repr__(self) -> str:
        """The name that Ray puts in front of log lines."""
        return self._name

    async def ready(self) -> None:
        """Answers once the processes are up."""
        await asyncio.to_thread(self._pool.wait_until_ready)

    async def judge(self, rollouts: list[Rollout]) -> list[Trajectory]:
        """Judges rollouts, in order."""
        self._record_queue(len(rollouts))
        try:
            judgements = await asyncio.gather(*(self._judge(rollout) for rollout in rollouts))
        finally:
            self._record_queue(-len(rollouts))
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return [
            judged(rollout, judgement, created_at=now) for rollout, judgement in zip(rollouts, judgements, strict=True)
        ]

    async def _judge(self, rollout: Rollout) -> Judgement:
        started = time.monotonic()
        judgement = await self._judgement(rollout)
        domain = rollout.problem.domain
        self._metrics.count(metrics.VERDICTS, verdict=judgement.verdict.value, domain=domain)
        self._metrics.observe(metrics.VERIFICATION_SECONDS, [time.monotonic() - started], domain=domain)
        return judgement

    async def _judgement(self, rollout: Rollout) -> Judgement:
        if rollout.failure:
            return Judgement(verdict=Verdict.ERROR, detail=rollout.failure)
        problem = rollout.problem
        answer = self._pool.submit(rollout.parsed, problem.domain, problem.answer, problem.question)
        return await asyncio.wrap_future(answer)

    def _record_queue(self, change: int) -> None:
        self._num_waiting += change
        self._metrics.set(metrics.VERIFIER_REQUESTS, self._num_waiting)


def verifier_actor(name: str, config: VerifierConfig, *, run: str = "") -> Any:
    """Starts a verifier's actor; `run` is the recipe's name, for the metrics."""
    actor = ray.remote(VerifierWorker).options(
        name=name,
        num_cpus=config.cpus_per_worker,
        label_selector=config.node_labels,
        max_restarts=0,
        max_concurrency=1000,
    )
    return actor.remote(name, config, run)
