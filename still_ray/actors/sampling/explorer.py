"""The driver's `Explorer` on Ray: problems from Ray Data through the rollout pipeline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import replace

from still_ray.actors.sampling.answer_equivalence import judged_the_same
from still_ray.actors.sampling.problems import stream_problems
from still_ray.actors.sampling.rollouts import RolloutPipeline
from still_ray.algo.evaluation.majority import AnswerPair
from still_ray.algo.evaluation.summary import evaluation_request
from still_ray.algo.exploration import Allotment, rollout_request
from still_ray.algo.partial_responses import PartialResponses
from still_ray.config import DataConfig
from still_ray.driver.ports import Commit, EvaluateOrder, ExploreOrder, OnLoad
from still_ray.types import Problem, RolloutRequest, Trajectory, TrajectoryKey


class RayExplorer:
    """Samples and verifies with the actors of a session."""

    def __init__(
        self,
        pipeline: RolloutPipeline,
        data: DataConfig,
        *,
        test_ids: Sequence[str],
        forgetting_ids: Sequence[str] = (),
        own: Collection[str] = (),
    ) -> None:
        """Connects the pipeline to the run's files.

        Args:
            pipeline: Replicas and verifiers.
            data: Resolved paths of problems, test set and general problems.
            test_ids: Ids of the test set in the order of its file.
            forgetting_ids: Ids of the general problems likewise.
            own: The domains that have a verifier of the user's own.
        """
        self._pipeline = pipeline
        self._data = data
        self._own = frozenset(own)
        self._test_ids = tuple(test_ids)
        self._forgetting_ids = tuple(forgetting_ids)

    def explore(
        self,
        order: ExploreOrder,
        *,
        allotment: Allotment,
        commit: Commit,
        on_load: OnLoad,
        partials: PartialResponses,
    ) -> None:
        """See `still_ray.driver.ports.Explorer`."""

        def wanted(problem: Problem) -> RolloutRequest | None:
            indices = allotment.wanted(problem.id)
            return rollout_request(problem, order.config, indices, seed=order.seed, round_number=order.stage.round)

        def follow_up(request: RolloutRequest) -> RolloutRequest | None:
            return None if allotment.decides_together else wanted(request.problem)

        # beside another stage, that says what goes on
        pipeline = replace(self._pipeline, doing=lambda _: None) if order.stage.beside else self._pipeline
        while ids := [problem_id for problem_id in order.problem_ids if allotment.wanted(problem_id)]:
            name = order.stage.name
            requests = self._requests(self._data.problems, ids, wanted, name=name)
            pipeline.run(requests, commit, name=name, on_load=on_load, follow_up=follow_up, partials=partials)

    def evaluate(
        self,
        order: EvaluateOrder,
        *,
        stored: Collection[TrajectoryKey],
        on_rows: Callable[[Sequence[Trajectory], int], None],
        on_load: OnLoad,
    ) -> None:
        """See `still_ray.driver.ports.Explorer`."""
        config, round_number = order.config, order.stage.round
        ids = (self._forgetting_ids if order.general else self._test_ids)[: config.num_problems]
        path = self._data.forgetting.path if order.general and self._data.forgetting else self._data.test

        def missing(problem_id: str) -> list[int]:
            keys = (TrajectoryKey(round_number, problem_id, index) for index in range(config.num_samples))
            return [key.sample_index for key in keys if key not in stored]

        def wanted(problem: Problem) -> RolloutRequest | None:
            indices = missing(problem.id)
            return evaluation_request(
                problem, config, indices, round_number=round_number, form=order.form, general=order.general
            )

        def collect(rows: Sequence[Trajectory]) -> None:
            on_rows(rows, len(ids) * config.num_samples)

        collect(())
        if unfinished := [problem_id for problem_id in ids if missing(problem_id)]:
            name = f"{order.stage.name}-evaluate{'-general' if order.general else ''}"
            requests = self._requests(path, unfinished, wanted, name=name)
            self._pipeline.run(requests, collect, name=name, on_load=on_load)

    def answer_equivalence(self, pairs: Sequence[AnswerPair]) -> Sequence[AnswerPair]:
        """See `still_ray.driver.ports.Explorer`."""
        return judged_the_same(self._pipeline.verifiers, pairs)

    def _requests(
        self, path: str | None, ids: Sequence[str], wanted: Callable[[Problem], RolloutRequest | None], *, name: str
    ) -> Generator[RolloutRequest]:
        assert path is not None, "the recipe's data paths are resolved before a run starts"
        problems = stream_problems(path, ids=ids, batch_size=self._data.read_batch_size, own=self._own, name=name)
        with closing(problems):
            for problem in problems:
                request = wanted(problem)
                if request is not None:
                    yield request
