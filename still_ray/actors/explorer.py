"""The driver's `Explorer` on Ray: problems from Ray Data through the rollout pipeline."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from still_ray.actors.problems import stream_problems
from still_ray.actors.rollouts import RolloutPipeline
from still_ray.algo.exploration import Allotment, rollout_request
from still_ray.config import DataConfig, ExploreConfig
from still_ray.driver.ports import Commit, EvaluateOrder, ExploreOrder
from still_ray.types import Problem, RolloutRequest, Trajectory


class RayExplorer:
    """Samples and verifies with the actors of a session."""

    def __init__(self, pipeline: RolloutPipeline, data: DataConfig, *, test_ids: Sequence[str]) -> None:
        """Connects the pipeline to the run's files.

        Args:
            pipeline: Replicas and verifiers.
            data: Resolved paths of problems and test set.
            test_ids: Ids of the test set in the order of its file.
        """
        self._pipeline = pipeline
        self._data = data
        self._test_ids = tuple(test_ids)

    def explore(self, order: ExploreOrder, *, allotment: Allotment, commit: Commit) -> None:
        """See `still_ray.driver.ports.Explorer`."""

        def wanted(problem: Problem) -> RolloutRequest | None:
            indices = allotment.wanted(problem.id)
            return rollout_request(problem, order.config, indices, seed=order.seed, round_number=order.stage.round)

        requests = self._requests(self._data.problems, order.problem_ids, wanted, name=order.stage.name)
        name = order.stage.name
        self._pipeline.run(requests, commit, name=name, follow_up=lambda request: wanted(request.problem))

    def evaluate(
        self, order: EvaluateOrder, *, on_rows: Callable[[Sequence[Trajectory], int], None]
    ) -> list[Trajectory]:
        """See `still_ray.driver.ports.Explorer`."""
        ids = self._test_ids[: order.config.num_problems]
        greedy = ExploreConfig(samples_per_problem=1, temperature=0.0, max_tokens=order.config.max_tokens)
        judged: list[Trajectory] = []

        def wanted(problem: Problem) -> RolloutRequest | None:
            return rollout_request(problem, greedy, (0,), seed=0, round_number=order.stage.round)

        def collect(rows: list[Trajectory]) -> None:
            judged.extend(rows)
            on_rows(rows, len(ids))

        name = f"{order.stage.name}-evaluate"
        requests = self._requests(self._data.test, ids, wanted, name=name)
        self._pipeline.run(requests, collect, name=name)
        return judged

    def _requests(
        self, path: str | None, ids: Sequence[str], wanted: Callable[[Problem], RolloutRequest | None], *, name: str
    ) -> Generator[RolloutRequest]:
        assert path is not None, "the recipe's data paths are resolved before a run starts"
        problems = stream_problems(path, ids=ids, batch_size=self._data.read_batch_size, name=name)
        with closing(problems):
            for problem in problems:
                request = wanted(problem)
                if request is not None:
                    yield request
