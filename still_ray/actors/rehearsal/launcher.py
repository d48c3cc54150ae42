"""Launches the actors of a rehearsal: fake replicas and a fake trainer group on the resources of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from still_ray.actors.launcher import engine_of
from still_ray.actors.rehearsal.replica import FakeReplica, FakeReplicaSettings
from still_ray.actors.rehearsal.trainer import FakeGroupSettings, FakeTrainerGroup
from still_ray.actors.sampling.replica import replica_actor
from still_ray.actors.sampling.verifier import verifier_actor
from still_ray.actors.training.policy_sync import CurrentPolicy
from still_ray.algo.devices import Devices
from still_ray.algo.resolved import ResolvedRecipe
from still_ray.sampler.fake import FakeSkill
from still_ray.store.run_directory import RunDirectory

SKILL: Final = FakeSkill(correct=0.2, malformed=0.1, gain=0.16)
"""Answers get better with every version, and never all right: pairs need both kinds. Source: ours."""
LATENCY_S: Final = 0.1
"""Of a response. Source: ours; long enough for a death in the middle of many."""


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the fakes are told.

    Attributes:
        answers: Reference answer of every problem by question.
        rebuilt: Called when a trainer group is built again.
        device_logs: Folder for the files that say what devices were busy with; "": none.
    """

    answers: Mapping[str, str]
    rebuilt: Callable[[], None]
    device_logs: str = ""


class RehearsalLauncher:
    """See `still_ray.actors.launcher.Launcher`."""

    def __init__(self, recipe: ResolvedRecipe, script: Script) -> None:
        """Remembers what to launch.

        Args:
            recipe: The rehearsed recipe.
            script: What the fakes are told.
        """
        self._recipe = recipe
        self._script = script

    def replica(self, name: str, policy: CurrentPolicy) -> Any:
        """See `Launcher`."""
        engine = engine_of(self._recipe, name, policy)
        settings = FakeReplicaSettings(
            engine=engine,
            prompt=self._recipe.prompt,
            run=self._recipe.name,
            answers=self._script.answers,
            skill=SKILL,
            latency_s=LATENCY_S,
            device_logs=self._script.device_logs,
        )
        return replica_actor(settings, {}, num_gpus=self._recipe.sampler.gpus_per_replica, actor_class=FakeReplica)

    def verifier(self, name: str) -> Any:
        """See `Launcher`."""
        return verifier_actor(name, self._recipe.verifier, run=self._recipe.name)

    def trainer(self, name: str, directory: RunDirectory, devices: Devices) -> FakeTrainerGroup:
        """See `Launcher`."""
        script = self._script
        settings = FakeGroupSettings(
            recipe=self._recipe, rebuilt=script.rebuilt, device_logs=script.device_logs, devices=devices
        )
        return FakeTrainerGroup(settings, name=name)
