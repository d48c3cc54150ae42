"""What a run began with, by content: a resumed run whose files are others is another run.

Kept in inputs.json of the run directory; a run that was begun before there was one is held to what its next resumption
finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from still_ray.store.atomic import read_json, write_json
from still_ray.store.run_directory import RunDirectory
from still_ray.types import SCHEMA_VERSION, InputError


@dataclass(frozen=True, kw_only=True)
class RunInput:
    """Something that a run reads.

    Attributes:
        key: Of the recipe, which names it.
        place: Its path, URI or hub id.
        digest: Of its content; neither its name nor its times count.
        part: Which part of it, where it has several; "" for the whole.
        num_rows: Of a file of data.
    """

    key: str
    place: str
    digest: str
    part: str = ""
    num_rows: int | None = None

    @property
    def name(self) -> str:
        """What it is called in inputs.json."""
        return f"{self.key} ({self.part})" if self.part else self.key


def hold_inputs(directory: RunDirectory, inputs: Sequence[RunInput]) -> None:
    """Sees that a run goes on with what it began with, and notes what it had not noted.

    Raises:
        InputError: Something has another content.
    """
    stored = (read_json(directory.inputs) or {}).get("inputs", {})
    for one in inputs:
        held = stored.get(one.name)
        if held is not None and held["digest"] != one.digest:
            raise InputError(_refusal(directory, one, held))
    fresh = {one.name: {"place": one.place, "digest": one.digest, "num_rows": one.num_rows} for one in inputs}
    if wanted := {name: facts for name, facts in fresh.items() if name not in stored}:
        write_json(directory.inputs, {"schema_version": SCHEMA_VERSION, "inputs": {**stored, **wanted}})


def _refusal(directory: RunDirectory, one: RunInput, held: dict[str, Any]) -> str:
    if one.num_rows is None:
        what = f"other {one.part or 'text'}"
    elif one.num_rows == held["num_rows"]:
        what = f"{one.num_rows} other rows"
    else:
        what = f"{held['num_rows']} rows, now it holds {one.num_rows}"
    return (
        f"{one.place}: the run in {directory.root} began with {what} ({one.key}); put back what it began with, or give "
        "another --run-dir"
    )
