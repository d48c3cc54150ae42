"""The user's own verifiers, before a run starts."""

from __future__ import annotations

from still_ray.cli.preflight.files import RunFiles
from still_ray.config import VerifierConfig
from still_ray.types import Domain


def check_verifiers(config: VerifierConfig) -> None:
    """Sees whether the user's own verifiers can be loaded, in processes of their own.

    Raises:
        InputError: One cannot.
    """
    if config.custom:
        from still_ray.verifiers.custom import check_custom_verifiers

        check_custom_verifiers(config.custom)


def sandbox_problem(files: RunFiles, config: VerifierConfig) -> str | None:
    """Why this machine cannot judge code, if a run has any to judge here; None if it can or need not."""
    domains = {*files.problems.domains, *files.test.domains} - {*config.custom}
    if Domain.CODE not in domains:
        return None
    from still_ray.verifiers.code.sandbox import Sandbox

    return Sandbox(config.code.sandbox, config.code.sandbox_command).problem()
