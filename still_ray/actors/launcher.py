"""Launches the actors of a run: real engines and trainers here, fakes behind the same protocol in a rehearsal."""

from __future__ import annotations

from typing import Any, Protocol

from still_ray.actors.sampling.replica import ReplicaSettings, replica_actor
from still_ray.actors.sampling.verifier import verifier_actor
from still_ray.actors.training.live_trainer import LiveTrainer
from still_ray.actors.training.policy_sync import CurrentPolicy
from still_ray.algo.devices import Devices
from still_ray.algo.planning.bundles import PLACEMENTS
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.sampler.engine_settings import EngineSettings, engine_environment
from still_ray.store.run_directory import RunDirectory


class Launcher(Protocol):
    """Launches the actors of a run; none of the methods waits for what it launches."""

    def replica(self, name: str, policy: CurrentPolicy) -> Any:
        """A sampler replica with the methods of `still_ray.actors.sampling.replica.SamplerReplica`."""
        ...

    def verifier(self, name: str) -> Any:
        """A verifier with the methods of `still_ray.actors.sampling.verifier.VerifierWorker`."""
        ...

    def trainer(self, name: str, directory: RunDirectory, devices: Devices) -> LiveTrainer:
        """A trainer group; a name that was used before would resume that one's Ray Train run.

        Args:
            name: Its name.
            directory: The run's.
            devices: What its ranks work on although replicas hold it; none: what Ray gives them.
        """
        ...


def engine_of(recipe: ResolvedRecipe, name: str, policy: CurrentPolicy) -> EngineSettings:
    """What a replica's engine is built from, a real one or a fake.

    Args:
        recipe: The recipe.
        name: The replica's.
        policy: What it starts from.
    """
    return EngineSettings(
        model_path=policy.checkpoint,
        name=name,
        sampler=recipe.sampler,
        max_model_len=recipe.model.longest,
        seed=recipe.seed,
        policy_version=policy.version,
        device="cuda" if recipe.sampler.on_gpu else "cpu",
        trust_remote_code=recipe.model.trust_remote_code,
        sleeps=PLACEMENTS[recipe.placement].sleeps,
    )


class EngineLauncher:
    """vLLM replicas, verifier processes, and a Ray Train group under DeepSpeed."""

    def __init__(self, recipe: ResolvedRecipe) -> None:
        """Remembers what to launch."""
        self._recipe = recipe

    def replica(self, name: str, policy: CurrentPolicy) -> Any:
        """See `Launcher`."""
        engine = engine_of(self._recipe, name, policy)
        settings = ReplicaSettings(engine=engine, prompt=self._recipe.prompt, run=self._recipe.name)
        return replica_actor(settings, engine_environment(engine), num_gpus=self._recipe.sampler.gpus_per_replica)

    def verifier(self, name: str) -> Any:
        """See `Launcher`."""
        return verifier_actor(name, self._recipe.verifier, run=self._recipe.name)

    def trainer(self, name: str, directory: RunDirectory, devices: Devices) -> LiveTrainer:
        """See `Launcher`."""
        from still_ray.actors.training.train_loop import (  # torch: seconds, not for a rehearsal
            PROBE_TOKENS,
            TrainLoopSettings,
        )
        from still_ray.actors.training.trainer_group import TrainerGroup

        recipe = self._recipe
        settings = TrainLoopSettings(
            trainer=recipe.trainer,
            sync=recipe.sync,
            prompt=recipe.prompt,
            max_probe_tokens=min(PROBE_TOKENS, recipe.model.longest - 1),
            trust_remote_code=recipe.model.trust_remote_code,
            run=recipe.name,
            tracker_dir=str(directory.trackers),
            devices=devices,
            lets_go=PLACEMENTS[recipe.placement].sleeps,
        )
        return TrainerGroup(
            settings,
            name=name,
            storage=directory.ray_train,
            max_restarts=recipe.failures.max_trainer_restarts,
        )
