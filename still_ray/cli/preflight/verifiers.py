"""What verifiers need of the machine, before a run starts."""

from __future__ import annotations

from still_ray.cli.preflight.files import RunFiles
from still_ray.config import VerifierConfig
from still_ray.types import Domain


def sandbox_problem(files: RunFiles, config: VerifierConfig) -> str | None:
    """Why this machine cannot judge code, if a run has any to judge here; None if it can or need not."""
    domains = {*files.problems.domains, *files.test.domains} - {*config.custom}
    if Domain.CODE not in domains:
        return None
    from still_ray.verifiers.code.sandbox import Sandbox

    return Sandbox(config.code.sandbox, config.code.sandbox_command).problem()
