"""`verify`: a verdict for every row of a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from still_ray.cli.console.tables import result_console
from still_ray.config import VerifierConfig
from still_ray.config.loading import load_section
from still_ray.config.names import FormatName
from still_ray.config.schema import Section
from still_ray.types import InputError, ParsedResponse, Verdict


class _VerifySettings(Section):
    """What `--set` may name for `verify`."""

    verifier: VerifierConfig = Field(default_factory=VerifierConfig, description="As in a recipe. Source: ours.")
    format: FormatName = Field(
        default="auto",
        description="Response format of rows that name none, as a recipe's prompt.format; auto: what each response's "
        "text tells. Source: ours.",
    )


def verify_responses(source: Path, output: Path, verifiers: Sequence[str], overrides: Sequence[str]) -> None:
    """Judges the rows of a file and prints how many got which verdict.

    Args:
        source: The rows.
        output: Where the verdicts go.
        verifiers: "domain=path" texts: verifiers of the user's own.
        overrides: "verifier.key=value" or "format=name" texts.

    Raises:
        InputError: The file, a row, a setting or a verifier is wrong.
    """
    from still_ray.formats.responses.reading import read_response
    from still_ray.formats.responses.table import FORMATS, format_named
    from still_ray.verifiers.custom import check_custom_verifiers
    from still_ray.verifiers.files import verify_file
    from still_ray.verifiers.pool import VerifierPool

    settings = load_section(_VerifySettings, None, [*overrides, *map(_verifier_override, verifiers)])
    check_custom_verifiers(settings.verifier.custom)
    unnamed = "" if settings.format == "auto" else settings.format
    if unnamed:
        format_named(unnamed)  # before anything is judged

    def parse(text: str, name: str) -> ParsedResponse:
        return read_response(text, name or unnamed)

    with VerifierPool.from_config(settings.verifier) as pool:
        counts = verify_file(source, output, parse=parse, formats=FORMATS, pool=pool)
    console = result_console()
    console.print(", ".join(f"{verdict} {counts[verdict]}" for verdict in Verdict if counts[verdict]))
    console.print(f"written: {output}", markup=False)


def _verifier_override(text: str) -> str:
    domain, equals, path = text.partition("=")
    if not (domain and equals and path):
        raise InputError(f"--verifier {text}: must be DOMAIN=package.module:function")
    return f"verifier.custom.{domain}={json.dumps(path)}"
