"""The driver's `Explorer` on Ray: problems from Ray Data through the rollout pipeline."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing

from still_ray.actors.problems import stream_problems
from still_ray.actors.rollouts import RolloutPipeline
from still_ray.algo.exploration import missing_request
from still_ray.config import DataConfig, ExploreConfig
from still_ray.driver.ports import Commit, EvaluateOrder, ExploreOrder
from still_ray.types import RolloutRequest, Trajectory, TrajectoryKey


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

    def explore(self, order: ExploreOrder, *, done: Collection[TrajectoryKey], commit: Commit) -> None:
        """See `still_ray.driver.ports.Explorer`."""
        requests = self._requests(
            self._data.problems, order.problem_ids, order.config, done=done, seed=order.seed, stage=order.stage.name
        )
        self._pipeline.run(requests, commit)

    def evaluate(
        self, order: EvaluateOrder, *, on_rows: Callable[[Sequence[Trajectory], int], None]
    ) -> list[Trajectory]:
        """See `still_ray.driver.ports.Explorer`."""
        ids = self._test_ids[: order.config.num_problems]
        greedy = ExploreConfig(samples_per_problem=1, temperature=0.0, max_tokens=order.config.max_tokens)
        requests = self._requests(self._data.test, ids, greedy, done=(), seed=0, stage=f"{order.stage.name}-evaluate")
        judged: list[Trajectory] = []

        def collect(rows: list[Trajectory]) -> None:
            judged.extend(rows)
            on_rows(rows, len(ids))

        self._pipeline.run(requests, collect)
        return judged

    def _requests(
        self,
        path: str | None,
        ids: Sequence[str],
        config: ExploreConfig,
        *,
        done: Collection[TrajectoryKey],
        seed: int,
        stage: str,
    ) -> Generator[RolloutRequest]:
        assert path is not None, "the recipe's data paths are resolved before a run starts"
        number = int(stage[:3])
        problems = stream_problems(path, ids=ids, batch_size=self._data.read_batch_size, name=stage)
        with closing(problems):
            for problem in problems:
                request = missing_request(problem, config, done=done, seed=seed, round_number=number)
                if request is not None:
                    yield request
