"""Comparing answers with each other: a verifier judges one as if the other were the reference.

A verifier that dies on the way is replaced.
"""

from __future__ import annotations

from collections.abc import Sequence

import ray

from still_ray.actors.pool.actor_pool import ActorPool
from still_ray.actors.pool.causes import is_death
from still_ray.algo.evaluation.majority import AnswerPair
from still_ray.types import FinishReason, ParsedResponse, Problem, Rollout, RunError, Trajectory, Verdict


def judged_the_same(verifiers: ActorPool, pairs: Sequence[AnswerPair]) -> list[AnswerPair]:
    """The pairs whose first answer is correct where the second is the reference.

    Raises:
        RunError: The verifiers' budget of replacements is used up.
    """
    rollouts = [posed(pair) for pair in pairs]
    while True:
        verifiers.wait_ready()
        member = next(member for member in verifiers.members() if member.ready)
        try:
            rows: list[Trajectory] = ray.get(member.handle.judge.options(name="same answers: judge").remote(rollouts))
        except ray.exceptions.RayError as error:
            if not is_death(error):
                raise RunError(f"{member.name} failed: {verifiers.cause(error)}") from error
            verifiers.replace(member.name, error)
        else:
            return [pair for pair, row in zip(pairs, rows, strict=True) if row.verdict is Verdict.CORRECT]


def posed(pair: AnswerPair) -> Rollout:
    """The first answer as a response to a problem whose reference is the second."""
    solution = f"\\boxed{{{pair.first}}}"
    problem = Problem(id="", domain=pair.domain, question=pair.question, answer=pair.second)
    return Rollout(
        round=0,
        problem=problem,
        sample_index=0,
        seed=0,
        response=solution,
        parsed=ParsedResponse(thought="", solution=solution),
        num_tokens=0,
        thought_tokens=0,
        mean_logprob=0.0,
        finish_reason=FinishReason.STOP,
        policy_version=0,
        sampler="",
        latency_s=0.0,
    )
