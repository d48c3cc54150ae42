"""A session: the actors of a run, put together around the driver, and taken down at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from still_ray.actors.actor_pool import ActorPool, first_line
from still_ray.actors.cluster import Cluster, connected
from still_ray.actors.explorer import RayExplorer
from still_ray.actors.policy import CurrentPolicy, PolicySync
from still_ray.actors.replica import ReplicaSettings, replica_actor
from still_ray.actors.rollouts import RolloutPipeline
from still_ray.actors.train_loop import PROBE_TOKENS, TrainLoopSettings
from still_ray.actors.trainer_group import TrainerGroup
from still_ray.actors.verifier import verifier_actor
from still_ray.algo.evaluation import EvaluationSummary
from still_ray.algo.stages import Stage, newest_trained, plan_stages
from still_ray.config import Recipe
from still_ray.driver.evaluation import evaluate
from still_ray.driver.ports import Data, EvaluateOrder, Ports, Progress
from still_ray.driver.rounds import Driver
from still_ray.sampler.engine_settings import Device, EngineSettings, engine_environment
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import RunStore
from still_ray.types import RunError, StageKind, Trajectory
from still_ray.weight_sync.proof import default_tolerance


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """A validated recipe with the files it names.

    Attributes:
        recipe: Its paths are resolved.
        backbone: Model directory or hub id of policy version 0.
        data: The run's files.
        test_ids: Ids of the held-out problems, in the order of their file.
    """

    recipe: Recipe
    backbone: str
    data: Data
    test_ids: Sequence[str]


class Session:
    """Replicas and verifiers that live from the first stage to the last."""

    def __init__(self, inputs: RunInputs, cluster: Cluster, policy: CurrentPolicy) -> None:
        """Launches the actors; does not wait for them.

        Args:
            inputs: The run's inputs.
            cluster: The cluster joined.
            policy: What replicas start from; shared with the weight sync.
        """
        self._inputs = inputs
        self._recipe = inputs.recipe
        self._device: Device = "cuda" if cluster.has_gpus and self._recipe.sampler.gpus_per_replica != 0 else "cpu"
        self._policy = policy
        failures = self._recipe.failures
        self.samplers = ActorPool(
            "replica",
            self._launch_replica,
            size=self._recipe.sampler.num_replicas,
            max_restarts=failures.max_replica_restarts,
        )
        self.verifiers = ActorPool(
            "verifier",
            lambda name: verifier_actor(name, self._recipe.verifier),
            size=self._recipe.verifier.num_workers,
            max_restarts=failures.max_verifier_restarts,
        )

    def sync(self, trainer: TrainerGroup | None) -> PolicySync:
        """The weight sync of this session."""
        dtype = self._recipe.sampler.dtype
        effective = dtype if dtype != "auto" else ("float32" if self._device == "cpu" else "bfloat16")
        tolerance = self._recipe.sync.tolerance
        return PolicySync(
            self.samplers,
            self._policy,
            self._recipe.sync,
            tolerance=default_tolerance(effective) if tolerance == "auto" else tolerance,
            published=trainer.published if trainer else lambda: None,
        )

    def explorer(self, sync: PolicySync) -> RayExplorer:
        """The sampling and verifying of this session."""
        sampler = self._recipe.sampler
        pipeline = RolloutPipeline(
            samplers=self.samplers,
            verifiers=self.verifiers,
            max_in_flight=int(sampler.max_num_seqs * sampler.max_in_flight_factor),
            max_attempts=self._recipe.failures.max_prompt_attempts,
            admit=sync.admit,
        )
        return RayExplorer(pipeline, self._recipe.data, test_ids=self._inputs.test_ids)

    def close(self) -> None:
        """Ends the actors."""
        self.samplers.close()
        self.verifiers.close()

    def _launch_replica(self, name: str) -> Any:
        engine = EngineSettings(
            model_path=self._policy.checkpoint,
            name=name,
            sampler=self._recipe.sampler,
            max_model_len=self._recipe.model.max_length,
            seed=self._recipe.seed,
            policy_version=self._policy.version,
            device=self._device,
            trust_remote_code=self._recipe.model.trust_remote_code,
        )
        return replica_actor(ReplicaSettings(engine=engine, prompt=self._recipe.prompt), engine_environment(engine))


def run(inputs: RunInputs, directory: RunDirectory, progress: Progress) -> list[dict[str, Any]]:
    """Runs a recipe on Ray to its end; returns the lines of summary.json.

    Raises:
        RunError: A failure policy was exhausted; the text names Ray's log folder.
    """
    plan = plan_stages(inputs.recipe)
    store = RunStore(directory, plan)
    newest = newest_trained(plan, store.completed())
    policy = (
        CurrentPolicy(newest.policy_version, store.checkpoint(newest)) if newest else CurrentPolicy(0, inputs.backbone)
    )
    with _joined(inputs.recipe, directory, progress) as cluster:
        session = Session(inputs, cluster, policy)
        trainer = _trainer_group(inputs.recipe, cluster, directory)
        sync = session.sync(trainer)
        ports = Ports(
            store=store,
            data=inputs.data,
            explorer=session.explorer(sync),
            trainer=trainer,
            sync=sync,
            progress=progress,
        )
        lines = Driver(inputs.recipe, ports, backbone=inputs.backbone).run()
        trainer.close()
        session.close()
        return lines


def evaluate_model(
    inputs: RunInputs, directory: RunDirectory, progress: Progress
) -> tuple[list[Trajectory], EvaluationSummary]:
    """Evaluates the backbone of the inputs on their test set, greedily.

    Raises:
        RunError: A failure policy was exhausted.
    """
    with _joined(inputs.recipe, directory, progress) as cluster:
        session = Session(inputs, cluster, CurrentPolicy(0, inputs.backbone))
        sync = session.sync(None)
        stage = Stage(kind=StageKind.BACKBONE, round=0, policy_version=0)
        progress.stage_started(stage, f"evaluate {len(inputs.test_ids)} problems")
        sync.sync(0, inputs.backbone)
        order = EvaluateOrder(stage=stage, config=inputs.recipe.evaluate)
        result = evaluate(session.explorer(sync), order, progress)
        session.close()
        return result


@contextmanager
def _joined(recipe: Recipe, directory: RunDirectory, progress: Progress) -> Iterator[Cluster]:
    """The cluster, announced; a failure inside names Ray's log folder."""
    with connected(recipe, directory.logs / "ray.log") as cluster:
        if cluster.dashboard:
            progress.noted(f"Ray dashboard: http://{cluster.dashboard}")
        try:
            yield cluster
        except RunError as error:
            raise RunError(f"{error}\nlogs: {cluster.logs}") from error
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray: {first_line(error)}\nlogs: {cluster.logs}") from error


def _trainer_group(recipe: Recipe, cluster: Cluster, directory: RunDirectory) -> TrainerGroup:
    use_gpu = cluster.has_gpus if recipe.trainer.use_gpu == "auto" else recipe.trainer.use_gpu
    settings = TrainLoopSettings(
        trainer=recipe.trainer,
        sync=recipe.sync,
        prompt=recipe.prompt,
        max_probe_tokens=min(PROBE_TOKENS, recipe.model.max_length - 1),
        use_gpu=use_gpu,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    return TrainerGroup(
        settings,
        name=f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}",
        storage=directory.root / "ray_train",
        max_restarts=recipe.failures.max_trainer_restarts,
    )
