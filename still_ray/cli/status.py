"""`status`: where a run stands, read from its directory alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from still_ray.cli.tables import result_console, stage_table
from still_ray.store.atomic import read_json
from still_ray.store.run_directory import RunDirectory
from still_ray.store.run_store import read_state
from still_ray.types import InputError


def print_status(run_dir: Path, *, as_json: bool) -> None:
    """Prints state and accuracies of a run.

    Raises:
        InputError: The folder holds no run.
    """
    directory = RunDirectory(run_dir)
    state = read_state(directory)
    if state is None:
        raise InputError(f"{run_dir}: holds no run (no state.json); give the folder that --run-dir named")
    summary: dict[str, Any] = read_json(directory.summary) or {"stages": []}
    if as_json:
        print(json.dumps({**state, "stages": summary["stages"]}, indent=2))  # noqa: T201 - the command's result
        return
    console = result_console()
    console.print(
        f"{state['status']}: stage {state['stage']}, round {state['round']}, policy version "
        f"{state['policy_version']}, {state['updated_at']}"
    )
    console.print(stage_table(summary["stages"]))
